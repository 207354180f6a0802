"""Record how a model calls its transformer blocks, so that each block can be called again without the rest of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn

from llmrank.errors import OptionError, is_out_of_memory
from llmrank.models import FFNs
from llmrank.models.compat import tree_leaves, tree_map_only, write_count
from llmrank.models.forward import (
    evaluation_mode,
    first_output,
    run_sequences,
    substitute_forward,
)

__all__ = [
    "LENGTHS",
    "UNPACKING_ERRORS",
    "Recording",
    "blocks_of",
    "broken_error",
    "first_tokens",
    "hidden_states_of",
    "output_of_block",
    "record_without_running",
    "recording",
]

# What a model may raise if it unpacks the output of a block, and the output has another form than the model expects.
UNPACKING_ERRORS = (TypeError, ValueError, AttributeError, IndexError, RuntimeError)
# Number of tokens that show whether blocks can be called one by one.
TRIAL_TOKENS = 8
# A block returns the hidden states alone (length 0), or in a tuple of this length.
LENGTHS = range(3)


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call of a block, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def containers(self) -> list[Any]:
        """The lists and mappings among the arguments, in which a block can leave something for later blocks."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, (MutableMapping, list))]

    def to(self, device: torch.device | None) -> Call:
        """Return the call with its tensors on a device; None leaves them where they are."""
        if device is None:
            return self
        return Call(*tree_map_only(torch.Tensor, lambda value: value.to(device), (self.args, self.kwargs)))


class Recording:
    """The calls of a stack's blocks in each batch, filled while :func:`recording` is open.

    Attributes
    ----------
    blocks : list of nn.Module
        The blocks in the order of the stack that contains them; empty if the FFNs are not all in one stack.
    first_states : list of tensors
        The hidden states in front of the first block, one (batch, length, hidden) tensor for each batch.
    calls : list of lists of Call
        For every block, one call for each batch. They are complete only if the recording is unbroken.
    unbroken : bool
        Whether the blocks can be called one by one as recorded. For this, the blocks must be called in order, each on the same
        tensor object that the block before returned. A block may not write to that tensor, nor to a list or mapping among its
        arguments. The first parameter of a block must be the hidden states, which is not so if there is a second stream
        (Reformer). That the last batch has passed all blocks is checked when :func:`recording` closes. False without blocks.
    keeps_states : bool
        Whether hidden states that are taken are also kept, for another repair.
    memory : int
        Number of bytes for copies of the outputs of the blocks, as many for each block. If they need more, none is kept.
    """

    def __init__(self, blocks: Sequence[nn.Module], memory: int = 0) -> None:
        self.blocks = list(blocks)
        self.memory = memory
        self.first_states: list[torch.Tensor] = []
        self.calls: list[list[Call]] = [[] for _ in blocks]
        self.unbroken = bool(blocks)
        self.keeps_states = True
        self._next_position = 0
        self._last_output: torch.Tensor | None = None
        self._last_count: int | None = None
        self._input: tuple[torch.Tensor, int | None] | None = None
        self._contents: list[tuple[Any, list[int]]] = []
        # For every block copies of the hidden states behind it, one tensor for each batch, and the memory that is left for more:
        # one piece for each block, because a piece for each batch would fragment the heap.
        self._outputs: list[list[torch.Tensor]] = [[] for _ in blocks]
        self._free: dict[int, torch.Tensor] = {}

    def take_first_states(self) -> list[torch.Tensor]:
        """Return the hidden states in front of the first block, and forget them unless :attr:`keeps_states` is set."""
        states = list(self.first_states)
        if not self.keeps_states:
            self.first_states.clear()
        return states

    @property
    def last_outputs(self) -> list[torch.Tensor]:
        """The hidden states behind the last block, one tensor for each batch; an empty list if they are not kept."""
        return list(self._outputs[-1]) if self.blocks else []

    @property
    def bytes_kept(self) -> int:
        """Number of bytes that the outputs take which are kept now."""
        return sum(output.nbytes for kept in self._outputs for output in kept)

    def keep_output(self, position: int, output: torch.Tensor) -> None:
        """Keep a copy of the hidden states behind a block for the next batch, if there is memory for those of all blocks."""
        if not self.memory:
            return
        if position not in self._free:
            with torch.inference_mode(mode=False):
                size = self.memory // (len(self.blocks) * output.itemsize)
                self._free[position] = torch.empty(size, dtype=output.dtype, device=output.device)
        free, size = self._free[position], output.numel()
        if size > len(free) or output.dtype != free.dtype:
            self.forget_outputs()
            return
        self._outputs[position].append(free[:size].view(output.shape).copy_(output.detach()))
        self._free[position] = free[size:]

    def forget_outputs(self) -> None:
        """Free the memory of the outputs that are kept, and keep no more."""
        self.memory, self._outputs, self._free = 0, [[] for _ in self.blocks], {}

    def take_outputs(self, position: int) -> list[torch.Tensor]:
        """Return the hidden states behind a block, one tensor for each batch; an empty list if none are kept.

        They are forgotten unless :attr:`keeps_states` is set.
        """
        kept = self._outputs[position]
        if not self.keeps_states:
            self._outputs[position] = []
            self._free.pop(position, None)
        return kept

    def record_call(self, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the arguments of a block, before it runs."""
        hidden = hidden_states_of(args, kwargs)
        follows = position == self._next_position and (position == 0 or hidden is self._last_output)
        if position and isinstance(hidden, torch.Tensor):  # the model may have written to the tensor between two blocks
            follows = follows and write_count(hidden) == self._last_count
        if not args:
            follows = follows and next(iter(signature(self.blocks[position].forward).parameters)) == "hidden_states"
        self.unbroken = self.unbroken and follows and isinstance(hidden, torch.Tensor)
        if not self.unbroken or hidden is None:
            self.first_states.clear()
            return
        self._input = hidden, write_count(hidden)
        self._contents = [(value, _contents(value)) for value in Call(args, kwargs).containers]
        if position == 0:
            self.first_states.append(hidden.detach())
        other_kwargs = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        self.calls[position].append(Call(args[1:], other_kwargs))

    def record_return(self, position: int, output: Any) -> None:
        """Record the output of a block, after it has run."""
        if self._input is not None:
            hidden, count_before = self._input
            # If the block wrote to its input, the recorded states are not those that it got.
            self.unbroken = self.unbroken and write_count(hidden) == count_before
            # A block may leave something in a list or mapping for later blocks, such as keys (Gemma 3n). If the blocks are called
            # one by one, a later block finds there what belongs to another batch.
            self.unbroken = self.unbroken and all(_contents(value) == before for value, before in self._contents)
            self._input = None
        self._last_output = first_output(output)
        self._last_count = write_count(self._last_output) if isinstance(self._last_output, torch.Tensor) else None
        self._next_position = (position + 1) % len(self.blocks)
        if self.unbroken and isinstance(self._last_output, torch.Tensor):
            self.keep_output(position, self._last_output)

    def end(self) -> None:
        """Count the recording as broken if the last batch has not passed all blocks."""
        self.unbroken = self.unbroken and self._next_position == 0
        if not self.unbroken:
            self.forget_outputs()


def hidden_states_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the hidden states among the arguments of a block; None if they are not there."""
    return args[0] if args else kwargs.get("hidden_states")


def _contents(container: Any) -> list[int]:
    """Return the identities of the objects in a list or mapping."""
    return list(map(id, container.values() if isinstance(container, MutableMapping) else container))


def first_tokens(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first tokens (or rows of features) of a batch and of its mask, for a trial."""
    part = slice(TRIAL_TOKENS) if ids.is_floating_point() else (slice(1), slice(TRIAL_TOKENS))
    return ids[part], mask[part]


def blocks_of(model: nn.Module, ffns: FFNs) -> list[nn.Module]:
    """Return, in order, the blocks of the stack that all FFNs lie in; an empty list if they lie in no stack or in several."""
    stacks = {ffn.stack for ffn in ffns}
    if len(stacks) != 1 or stacks & {ffn.name for ffn in ffns}:
        return []
    return list(model.get_submodule(next(iter(stacks))).children())


def broken_error(model: nn.Module) -> OptionError:
    """Return the error for a model whose recording is broken, or whose FFNs do not all lie in one stack."""
    return OptionError(
        f"{type(model).__name__} cannot run block by block: its FFNs are not in one stack of blocks that follow one another "
        "directly; run without --low-memory (in Python: work_directory)"
    )


@contextmanager
def recording(model: nn.Module, ffns: FFNs, memory: int = 0) -> Iterator[Recording]:
    """Record the calls of the blocks during the forward passes inside the context, if all FFNs lie in one stack.

    The outputs of the blocks are kept too, if they take at most `memory` bytes.
    """
    blocks = blocks_of(model, ffns)
    record = Recording(blocks, memory)
    with ExitStack() as hooks:
        for position, block in enumerate(blocks):
            hooks.callback(
                block.register_forward_pre_hook(
                    lambda _block, args, kwargs, k=position: record.record_call(k, args, kwargs), with_kwargs=True
                ).remove
            )
            hooks.callback(
                block.register_forward_hook(
                    lambda _block, _args, output, k=position: record.record_return(k, output)
                ).remove
            )
        yield record
    record.end()


def record_without_running(
    model: nn.Module,
    ffns: FFNs,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    repeat: bool = True,
) -> Recording:
    """Record how a model calls its blocks on batches (ids, mask), without running the blocks.

    Every block is replaced by a function that returns its input, so the weights of blocks are not read. The recording is broken
    if the blocks do not follow one another directly, or if their other arguments depend on what blocks compute. Two trials show
    the latter. In the first, the blocks return unrelated values for the first batch, and their other arguments must stay the
    same. In the second, a forward pass of a few tokens is compared with the blocks called one by one as recorded. The second
    trial reads all weights twice; `repeat` is False if the model has passed this trial before.
    """
    record = Recording([])
    for length in LENGTHS:

        def input_as_output(states: torch.Tensor, length: int = length) -> Any:
            return output_of_block(states, length)

        def noise_as_output(states: torch.Tensor, length: int = length) -> Any:
            noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
            return output_of_block(noise.to(states), length, object())

        try:
            record = _record_in_place_of_blocks(model, ffns, batches, input_as_output)
            if record.unbroken:
                other = _record_in_place_of_blocks(model, ffns, batches[:1], noise_as_output)
                record.unbroken = (
                    other.unbroken
                    and all(_equal_calls(one[0], two[0]) for one, two in zip(record.calls, other.calls, strict=True))
                    and not any(calls[0].containers for calls in record.calls)
                    and (not repeat or _repeats_forward_pass(model, ffns, batches[0], input_as_output))
                )
                break
        except UNPACKING_ERRORS as error:
            if is_out_of_memory(error):
                raise
            record = Recording([])
    return record


@torch.no_grad()
def _repeats_forward_pass(
    model: nn.Module, ffns: FFNs, batch: tuple[torch.Tensor, torch.Tensor], as_output: Callable[..., Any]
) -> bool:
    """Whether the blocks, called one by one as recorded, compute what they compute in a forward pass of a few tokens."""
    few = first_tokens(*batch)
    record = _record_in_place_of_blocks(model, ffns, [few], as_output)
    outputs: list[torch.Tensor] = []
    with ExitStack() as hooks:
        last = record.blocks[-1].register_forward_hook(lambda _m, _i, output: outputs.append(first_output(output)))
        hooks.callback(last.remove)
        run_sequences(model, ffns, [few])
    states = record.first_states[0]
    with evaluation_mode(model, ffns):
        for block, calls in zip(record.blocks, record.calls, strict=True):
            states = first_output(block(states, *calls[0].args, **calls[0].kwargs))
    tolerance = 64 * torch.finfo(states.dtype).eps * float(outputs[0].abs().max())
    return states.shape == outputs[0].shape and float((states - outputs[0]).abs().max()) <= tolerance


def _record_in_place_of_blocks(
    model: nn.Module, ffns: FFNs, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], as_output: Callable[..., Any]
) -> Recording:
    """Record the calls of the blocks, while `as_output` makes the output of each block from its hidden states."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return as_output(hidden_states_of(args, kwargs))

    with recording(model, ffns) as record, ExitStack() as hooks:
        for block in record.blocks:
            substitute_forward(hooks, block, forward)
        if record.blocks:
            run_sequences(model, ffns, batches)
    return record


def output_of_block(states: torch.Tensor, length: int, rest: Any = None) -> Any:
    """Return hidden states as a block returns them, see LENGTHS."""
    return (states, rest)[:length] if length else states


def _equal_calls(one: Call, other: Call) -> bool:
    """Whether two calls have equal arguments."""
    values, others = tree_leaves((one.args, one.kwargs)), tree_leaves((other.args, other.kwargs))
    return len(values) == len(others) and all(
        torch.equal(value, twin)
        if isinstance(value, torch.Tensor) and isinstance(twin, torch.Tensor)
        else value is twin or (type(value) is type(twin) and bool(value == twin))
        for value, twin in zip(values, others, strict=True)
    )
