"""Pass the calibration tokens through a model, block by block, while earlier FFNs change.

If the blocks of a model follow one another directly, the hidden states in front of a block are kept, and the block runs without
the rest of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from llmrank.execution.block_passes import BlockPasses
from llmrank.execution.execution import Execution
from llmrank.execution.free_memory import spare_memory
from llmrank.execution.hooks import TokenMasks, add_hook
from llmrank.execution.pass_stream import PassStream, Reader, Readers, Stream
from llmrank.execution.recording import Recording, broken_error
from llmrank.execution.states import States
from llmrank.models import FFN, FFNs
from llmrank.models.blocks import TransformerBlock
from llmrank.models.forward import evaluation_mode, first_output, model_inputs, substitute_forward
from llmrank.text import TokenSequences

__all__ = ["BlockStream", "open_stream"]

# The stage of a work directory that notes how far a stream has come.
STAGE = "repaired"


class BlockStream:
    """A stream that keeps the hidden states between blocks, and runs one block at a time.

    Parameters
    ----------
    record : Recording
        The recorded calls of the blocks. The recording must be unbroken: each block got exactly what the block before returned.
    masks : sequence of TokenMasks
        The masks of padding, one entry for each batch.
    execution : Execution
        With a work directory, the hidden states are in its files, and the stream goes on at the block where an earlier process
        ended.
    follow : bool
        Whether to follow the dense model: to keep its hidden states too, and to compute from them the tensor `missing` for
        :meth:`llmrank.execution.pass_stream.Reader.end_batch`. That tensor is known only if the block adds the map's output
        to the residual stream unchanged, and if no other map of the block was pruned.
    memory : int
        Number of bytes that may be taken to keep the inputs of an FFN's last map, so that only this map runs once it is repaired;
        with a device none are taken.

    Notes
    -----
    Cost, if one map of every FFN is read: two forward passes for all FFNs together, one more if the stream follows the dense
    model and the recording has not kept the outputs of its blocks, and up to three passes of the first batch, as a trial. If
    there is `memory`, a block whose last step adds the output of the only FFN that is read runs once instead of twice.
    :meth:`finish` passes the held-out batches through what is left of the model. A block is transferred to a device once when its
    inputs are read (twice if experts are removed), and once more after that. Memory: the hidden states of all tokens (those of
    the dense model too if the stream follows it), and `memory`. Memory of a device: one block, and what it needs for one batch.
    """

    def __init__(
        self,
        model: nn.Module,
        ffns: FFNs,
        record: Recording,
        masks: Sequence[TokenMasks],
        n_fitted_batches: int,
        execution: Execution,
        *,
        follow: bool = False,
        memory: int = 0,
    ) -> None:
        self.n_fitted_batches, self.device = n_fitted_batches, execution.device
        self.held_out_states: list[torch.Tensor] = []
        self._model, self._ffns, self._record = model, ffns, record
        self._passes = BlockPasses(model, ffns, record, masks, execution.device)
        self._positions = self._passes.positions
        self._work, self._processes = execution.work, execution.processes
        self._memory = memory if execution.device is None else 0
        # What an earlier process noted: how many blocks the states have passed, and in which file (side) they are.
        names = ("states", "dense-states") if follow else ("states",)
        done = None
        if self._work is not None:
            done = self._work.blocks_done(STAGE, len(self._passes.blocks), dict(zip(names, names, strict=True)))
        self._states, self._dense_states = self._first_states(record, names, done)
        # The numbers of the blocks that the pruned model's states, and the dense model's states, have reached.
        self._position = self._dense_position = 0 if done is None else done["blocks"]
        # The input of the last block that the dense model's states have passed: the dense model's states for the first batch.
        self._dense_input: torch.Tensor | None = None
        # The numbers of the blocks that the pruned model computes without.
        self._left_out: set[int] = set()
        # What :meth:`_is_added` returned, by the name of the FFN or mixture.
        self._additions: dict[str, bool] = {}
        # If the states already hold all of a block's output but the output of its FFN's last map, only this map must run after it
        # is repaired: the map, and its inputs (one for each batch).
        self._pending_map: nn.Module | None = None
        self._pending_inputs: list[torch.Tensor] = []

    def _first_states(
        self, record: Recording, names: tuple[str, ...], done: dict[str, int] | None
    ) -> tuple[States, States | None]:
        """Return the states of the pruned model and, if they are named, of the dense model: the first, or those in files."""
        first, follow = record.take_first_states(), len(names) > 1
        if self._work is None:
            return States.of(first), States.of(first) if follow else None
        sides = [None if done is None else done[name] for name in names]
        made = [States.in_files(self._work.file(n), first, side) for n, side in zip(names, sides, strict=True)]
        return made[0], made[1] if follow else None

    def has_passed(self, ffn: FFN) -> bool:
        """See :meth:`Stream.has_passed`."""
        return self._positions[ffn.name] < self._position

    def leave_out(self, block: TransformerBlock, hooks: ExitStack) -> None:  # noqa: ARG002 -- the dense states pass the block
        """See :meth:`Stream.leave_out`."""
        self._left_out.add(next(k for k, each in enumerate(self._passes.blocks) if each is block.module))

    def feed(
        self,
        ffn: FFN,
        readers: Readers,
        dense_readers: Readers | None = None,
        change: Callable[[], None] | None = None,
    ) -> None:
        """See :meth:`Stream.feed`."""
        position, dense_readers = self._positions[ffn.name], dense_readers or {}
        if position < self._position or (self._pending_map is not None and position == self._position):
            raise RuntimeError(f"{ffn.name} or a later FFN was fed already, and the stream has left its block")
        while self._position < position:
            # If no FFN of this block was fed, the block is not pruned, and the dense model's states pass it as it is.
            if self._dense_states is not None and self._dense_position == self._position:
                self._advance_dense(self._dense_states)
            self._advance()
        with ExitStack() as onloaded_block:
            onloaded_block.enter_context(self._passes.onloaded_block(position))
            if self._dense_states is not None and self._dense_position == position:
                with ExitStack() as hooks:
                    for module, reader in dense_readers.items():
                        add_hook(hooks, self._model, ffn, module, reader.add, self._passes.masks)
                    self._advance_dense(self._dense_states, dense_readers.values())
            is_added, follows, batch = False, self._dense_states is not None, None
            if ffn.stages[-1][0].module in readers and (follows or self._memory > 0):
                # Several groups of experts of one mixture may be fed one after the other. The trial runs for the first group,
                # before the mixture is changed, and the other groups use its result.
                name = ffn.sublayer_name if ffn.is_routed else ffn.name
                if name not in self._additions:
                    batch = self._first_batch(position)
                    found = self._is_added(position, ffn, *batch)
                    # Rounding errors may decide, and all processes must know the same of what their outputs lack.
                    self._additions[name] = self._processes.first(found) if follows else found
                is_added = self._additions[name]
            if change is not None:
                onloaded_block.close()  # so that the model's own tensors are changed, and not copies on a device
                change()
                onloaded_block.enter_context(self._passes.onloaded_block(position))
            # Nothing else in the block depends on what the last map returns, so it need not run before it is repaired.
            skips = is_added and not ffn.is_routed and len(ffn.prunable) == 1
            keeps = (
                skips and batch is not None and self._can_keep(position, ffn) and self._adds_last(position, ffn, *batch)
            )
            self._feed(position, ffn, readers, self._dense_states if is_added else None, skips=skips, keeps=keeps)

    def finish(self) -> None:
        """See :meth:`Stream.finish`. Blocks behind that of the last FFN that was fed run on the held-out batches alone."""
        first, position = self.n_fitted_batches, self._position
        held_out = range(first, len(self._states))
        # On a device, the trial of KnownStates would transfer each block as often as the pass of a single batch that it saves.
        if not held_out or (self.device is not None and len(held_out) == 1):
            return
        if self._pending_map is None:
            states = [self._states[k] for k in held_out]
        else:
            states, position = list(self._behind_pending(held_out)), position + 1
        for later in range(position, len(self._passes.blocks)):
            if later not in self._left_out:
                with self._passes.onloaded_block(later):
                    outputs = self._passes.outputs(later, states, first)
                    states = [output.to(self._states[0].device) for _, output in outputs]
        self.held_out_states = states

    def _feed(
        self, position: int, ffn: FFN, readers: Readers, dense_states: States | None, *, skips: bool, keeps: bool
    ) -> None:
        """Run a block on all batches, and tell the readers what its output lacks if the dense model's states are given.

        If it `keeps`, the states get the block's output without that of the FFN's last map, so that only this map must run later.
        """
        # In half precision, the rounding of the stream would count as missing if it is not rounded with the map's output.
        has_run = not skips or dense_states is None or torch.finfo(self._states[0].dtype).bits < 32
        with ExitStack() as hooks:
            skipped = _skip(hooks, ffn, run=has_run and dense_states is not None) if keeps or not has_run else []
            for module, reader in readers.items():
                add_hook(hooks, self._model, ffn, module, reader.add, self._passes.masks)
            for k, output in self._passes.outputs(position, self._states):
                inputs, returned = skipped.pop() if skipped else (None, None)
                missing = None
                if dense_states is not None:
                    present = output if returned is None else output + returned.reshape(output.shape)
                    missing = dense_states[k].to(output.device) - present
                for reader in readers.values():
                    reader.end_batch(missing, has_run=has_run)
                if keeps and inputs is not None:
                    self._pending_inputs.append(inputs)
                    self._states.store(k, output)
        self._pending_map = ffn.output_module if keeps else None

    def _advance_dense(self, states: States, readers: Collection[Reader] = ()) -> None:
        """Advance the dense model's states past a block, before anything in it is pruned, and end each batch of the readers."""
        self._dense_input = states[0].clone()
        outputs = self._record.take_outputs(self._dense_position)
        if len(outputs) == len(states) and not readers:
            for k, output in enumerate(outputs):
                states.store(k, output)
        else:
            with self._passes.onloaded_block(self._dense_position):
                for k, output in self._passes.outputs(self._dense_position, states):
                    for reader in readers:
                        reader.end_batch(None)
                    if self._record.keeps_states and not readers:
                        self._record.keep_output(self._dense_position, output)
                    states.store(k, output)
        states.advance()
        self._dense_position += 1

    def _first_batch(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first batch of hidden states in front of a block and behind it, before anything in the block is pruned."""
        if self._dense_input is not None and self._dense_states is not None:
            behind = self._dense_states[0]
            return self._dense_input, behind if self.device is None else behind.to(self.device)
        return self._states[0], next(self._passes.outputs(position, [self._states[0]]))[1]

    def _is_added(self, position: int, ffn: FFN, block_input: torch.Tensor, output: torch.Tensor) -> bool:
        """Whether a block's output changes by a tensor that is added to what an FFN's last map (all experts together) returns."""
        # The tensor to add: its values are as large as those of the residual stream, and differ from token to token.
        added = output.roll(1, dims=-1)
        has_fitting_size: list[bool] = []  # one entry for each call of the map

        def add(_module: nn.Module, _inputs: Any, returned: Any) -> Any:
            values = first_output(returned)
            has_fitting_size.append(values.numel() == added.numel())
            if not has_fitting_size[-1]:
                return returned
            changed = values + added.reshape(values.shape)
            return changed if isinstance(returned, torch.Tensor) else (changed, *returned[1:])

        with ExitStack() as hooks:
            hooks.callback(ffn.output_module.register_forward_hook(add).remove)
            _, changed = next(self._passes.outputs(position, [block_input]))
        # Rounding errors are those of the token's own largest value, because some tokens have values in the thousands.
        rounding = 16 * torch.finfo(output.dtype).eps * output.abs().amax(-1, keepdim=True)
        return has_fitting_size == [True] and bool(((changed - output - added).abs() <= rounding).all())

    def _can_keep(self, position: int, ffn: FFN) -> bool:
        """Whether there is memory for the inputs of an FFN's last map, and nothing else in the block will change."""
        bytes_of_inputs = sum(state.nbytes for state in self._states) * ffn.sizes[-2] // ffn.sizes[-1]
        return bytes_of_inputs <= self._memory and list(self._positions.values()).count(position) == 1

    def _adds_last(self, position: int, ffn: FFN, block_input: torch.Tensor, output: torch.Tensor) -> bool:
        """Whether a block adds the output of an FFN's last map as its last step, so that adding it later gives the same bits."""
        with ExitStack() as hooks:
            skipped = _skip(hooks, ffn, run=True)
            _, without = next(self._passes.outputs(position, [block_input]))
        ((_, returned),) = skipped
        return returned is not None and torch.equal(without + returned.reshape(without.shape), output)

    def _behind_pending(self, batches: Iterable[int]) -> Iterator[torch.Tensor]:
        """Run the last map of an FFN after it was repaired, and yield the hidden states behind the block."""
        assert self._pending_map is not None
        with torch.no_grad(), evaluation_mode(self._model, self._ffns):
            for k in batches:
                yield self._states[k] + self._pending_map(self._pending_inputs[k]).reshape(self._states[k].shape)

    def _advance(self) -> None:
        """Advance the states of the pruned model past a block."""
        states = self._states
        if self._position in self._left_out:
            for k, state in enumerate(states):
                states.store(k, state)
            states.advance()
        elif self._pending_map is None:
            self._passes.advance(self._position, states)
        else:
            for k, output in enumerate(self._behind_pending(range(len(states)))):
                states.store(k, output)
            states.advance()
            self._pending_inputs.clear()
            self._pending_map = None
        self._position += 1
        if self._work is not None:
            kept = {"states": self._states}
            if self._dense_states is not None:
                kept["dense-states"] = self._dense_states
            sides = {name: states.side for name, states in kept.items()}
            files = [states.file for states in kept.values()]
            unneeded = [file for states in kept.values() for file in states.files]
            self._work.note(STAGE, {"blocks": self._position, **sides}, files, unneeded)


def _skip(hooks: ExitStack, ffn: FFN, *, run: bool) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Let the last map of an FFN return zeros until `hooks` closes.

    Return the list to which its inputs are appended, each with what the map would return for them if `run` is set.
    """
    calls: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    forward = ffn.output_module.forward

    def skipped(x: torch.Tensor) -> torch.Tensor:
        calls.append((x, forward(x) if run else None))
        return x.new_zeros(*x.shape[:-1], ffn.sizes[-1])

    substitute_forward(hooks, ffn.output_module, skipped)
    return calls


def open_stream(
    model: nn.Module,
    ffns: FFNs,
    sequences: TokenSequences,
    record: Recording,
    execution: Execution = Execution(),
    held_out: TokenSequences | None = None,
    *,
    follow: bool = False,
) -> Stream:
    """Open a :class:`BlockStream` if the recording is unbroken and holds all batches, else a :class:`PassStream`.

    Parameters
    ----------
    record : Recording
        A recording of the forward passes of this process's share of `sequences`, followed by those of `held_out`.
    execution : Execution
    follow : bool
        Whether a :class:`BlockStream` follows the dense model. A :class:`PassStream` never does.

    Raises
    ------
    OptionError
        A device is given, and the blocks do not follow one another directly.
    """
    batches = execution.batches(sequences)
    n_fitted_batches = len(batches)
    if held_out is not None:
        batches += execution.batches(held_out)
    if not record.unbroken or len(record.first_states) != len(batches):
        if execution.device is not None:
            raise broken_error(model)
        record.forget_outputs()
        return PassStream(model, ffns, batches, n_fitted_batches)
    masks = [TokenMasks(*model_inputs(model, *batch)[1:]) for batch in batches]
    memory = spare_memory(model, execution) - record.bytes_kept
    return BlockStream(model, ffns, record, masks, n_fitted_batches, execution, follow=follow, memory=memory)
