"""The calibration tokens on their way through a model, FFN by FFN, while earlier FFNs change.

Repair has to know what reaches an FFN once those before it were cut, and what the stream then lacks. Running the model
from its start for every FFN would cost its depth times a forward pass. Where the blocks of a stack follow one another
directly, the hidden states between them are kept and each block is run by itself; elsewhere whole passes are all there
is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from llmrank.calibration.forward import (
    Accumulator,
    TokenMasks,
    add_hook,
    at_least_float32,
    body_of,
    evaluation_mode,
    first_output,
    model_inputs,
    run_body,
    write_count,
)
from llmrank.calibration.text import TokenSequences
from llmrank.models import FFN

__all__ = ["BlockStream", "PassStream", "Reader", "Recording", "Stream", "open_stream", "recording"]

# Token ids and the mask of those that are not padding, (batch, length) each.
Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class _Call:
    """What a block was given beside the hidden states, or an FFN."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def of(self, module: nn.Module) -> Any:
        """What a module returns when it is called like this."""
        return module(*self.args, **self.kwargs)

    @property
    def lasts(self) -> bool:
        """Whether :meth:`moved` sees all that is given: no tensor hides in a container, or in an object."""
        plain = (bool, int, float, str, type(None))
        return all(
            value.layout is torch.strided if isinstance(value, torch.Tensor) else isinstance(value, plain)
            for value in (*self.args, *self.kwargs.values())
        )

    def moved(self, place: torch.Tensor, states: torch.Tensor) -> _Call:
        """The same call, for when the states have been written over.

        Parameters
        ----------
        place : tensor
            Where the first tensor that is of the states' kind and size is kept.
        states : tensor
            Those that will be written over: what else is a part of them is copied.
        """
        places = [place]

        def move(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if places and _same_kind(value, place) and value.numel() == place.numel():
                return places.pop().view(value.shape).copy_(value)
            return value.clone() if _same_memory(value, states) else value

        return _Call(tuple(map(move, self.args)), {key: move(value) for key, value in self.kwargs.items()})


class Recording:
    """How a model calls the blocks of its stack, batch by batch; filled while :func:`recording` is open.

    Attributes
    ----------
    blocks : list of nn.Module
        In the order of the stack; empty where the FFNs are not in one stack.
    first : list of tensors
        Hidden states in front of the first block, one (batch, length, hidden) tensor a batch.
    calls : list of lists
        Of every block, one a batch.
    unbroken : bool
        Whether every block was called once a batch, in order, on the very tensor that the one before returned, and left that
        as it was.
    kept : bool
        Whether :attr:`first` is for several streams; else the first one takes it.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = list(blocks)
        self.first: list[torch.Tensor] = []
        self.calls: list[list[_Call]] = [[] for _ in blocks]
        self.unbroken = bool(blocks)
        self.kept = True
        self._next = 0
        self._last: torch.Tensor | None = None
        self._given: tuple[torch.Tensor, int | None] | None = None

    def take_first(self) -> list[torch.Tensor]:
        """The hidden states in front of the first block, for a stream."""
        first = list(self.first)
        if not self.kept:
            self.first.clear()
        return first

    def before(self, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A block is called."""
        hidden = args[0] if args else kwargs.get("hidden_states")
        follows = position == self._next and (position == 0 or hidden is self._last)
        self.unbroken = self.unbroken and follows and isinstance(hidden, torch.Tensor)
        if not self.unbroken or hidden is None:
            self.first.clear()
            return
        self._given = hidden, write_count(hidden)
        if position == 0:
            self.first.append(hidden.detach())
        rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        self.calls[position].append(_Call(args[1:], rest))

    def after(self, position: int, output: Any) -> None:
        """A block has returned."""
        if self._given is not None:
            hidden, version = self._given
            # What was written into would not be what this block is given the next time.
            self.unbroken = self.unbroken and write_count(hidden) == version
            self._given = None
        self._last = first_output(output)
        self._next = (position + 1) % len(self.blocks)


@contextmanager
def recording(model: nn.Module, ffns: Sequence[FFN]) -> Iterator[Recording]:
    """Record the calls of the blocks of a stack during the forward passes inside.

    Parameters
    ----------
    model : nn.Module
    ffns : sequence of FFN
        Where they lie in more than one stack (encoder and decoder), or in none, nothing is recorded.
    """
    stacks = {ffn.stack for ffn in ffns}
    names = {ffn.name for ffn in ffns}
    blocks: list[nn.Module] = []
    if len(stacks) == 1 and not stacks & names:
        blocks = list(model.get_submodule(next(iter(stacks))).children())
    record = Recording(blocks)
    with ExitStack() as hooks:
        for position, block in enumerate(blocks):
            hooks.callback(
                block.register_forward_pre_hook(
                    lambda _block, args, kwargs, k=position: record.before(k, args, kwargs), with_kwargs=True
                ).remove
            )
            hooks.callback(
                block.register_forward_hook(lambda _block, _args, output, k=position: record.after(k, output)).remove
            )
        yield record


class Reader(Accumulator, Protocol):
    """What takes the values that a map reads, batch by batch."""

    def end_batch(self, lack: torch.Tensor | None) -> None:
        """All values of a batch were added.

        Parameters
        ----------
        lack : (batch, length, out) tensor or None
            What is to be added to the map's output for the stream behind it to be that of the whole model; None where
            that is not known.
        """


class Stream(Protocol):
    """The calibration tokens in front of one FFN after the other.

    Attributes
    ----------
    fitted : int
        Batches to fit a repair to, the first ones; those after them are held out.
    """

    fitted: int

    def feed(self, ffn: FFN, module: nn.Module, reader: Reader, whole: Reader | None = None) -> None:
        """Hand what a map reads to a reader, from all tokens; what was changed in earlier maps has its effect.

        Parameters
        ----------
        ffn : FFN
            In the model's order from call to call.
        module : nn.Module
            One of its output maps, itself as yet unchanged; each is fed once.
        reader : Reader
        whole : Reader, optional
            Takes what the map reads in the whole model, from a stream that follows that; from others nothing.
        """


class BlockStream:
    """Hidden states kept between the blocks of a stack; each block runs by itself, to look at its FFN and to go past it.

    Parameters
    ----------
    model : nn.Module
    ffns : sequence of FFN
        All that may be fed.
    record : Recording
        Unbroken.
    masks : sequence of TokenMasks
        One a batch.
    fitted : int
        See :class:`Stream`.
    follow : bool
        Keep the hidden states of the whole model beside those of the model that is being cut, and tell readers what the
        stream lacks, wherever a block adds what its FFN returns to the stream as it is.

    Notes
    -----
    Cost: two forward passes for all FFNs together, three to follow the whole model. The second time only the FFN runs where
    the block adds what the FFN's module returns and has no other, the FFN has one hidden layer, and the dtype is not of half
    precision. Memory: the hidden states of all tokens, twice to follow, once more what one FFN reads of them, those of the
    record while it keeps them, and what a block's forward pass takes for one batch.
    """

    def __init__(
        self,
        model: nn.Module,
        ffns: Sequence[FFN],
        record: Recording,
        masks: Sequence[TokenMasks],
        fitted: int,
        *,
        follow: bool = False,
    ) -> None:
        self.fitted = fitted
        self._model = model
        self._blocks, self._calls = record.blocks, record.calls
        # Of the blocks that hold the FFNs.
        self._positions = {
            ffn.name: next(k for k, block in enumerate(record.blocks) if any(m is ffn.module for m in block.modules()))
            for ffn in ffns
        }
        self._masks = TokenMasks()
        self._batch_masks = masks
        self._states, self._whole = self._begin(record, follow=follow)
        self._passed = self._whole_passed = 0
        # The first batch in front of the block that the whole model's states were last taken through.
        self._front: torch.Tensor | None = None
        # The FFN that adds what it returns to the states, and how it is called, where that is all there is to go past.
        self._leaving: nn.Module | None = None
        self._left: list[_Call] = []
        # Where what it reads is kept till then.
        self._read: list[torch.Tensor] = []

    @staticmethod
    def _begin(record: Recording, *, follow: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The states in front of the first block, of the model that is being cut and of the whole one."""
        first = record.take_first()
        states, whole = _room(first), _room(first) if follow else []
        for k in range(len(first)):
            # Those that nobody else keeps are gone one by one.
            state = first.pop(0)
            for places in (states, whole) if follow else (states,):
                places[k].copy_(state)
        return states, whole

    def feed(self, ffn: FFN, module: nn.Module, reader: Reader, whole: Reader | None = None) -> None:
        """See :meth:`Stream.feed`."""
        position = self._positions[ffn.name]
        if self._leaving is not None and position == self._passed:
            raise RuntimeError(f"{ffn.name} was fed already, and the stream has left its block")
        for earlier in range(self._passed, position):
            self._go_past(earlier, self._states)
        self._passed = position
        if self._whole and self._whole_passed <= position:
            self._look_at_whole(position, ffn, module, whole)
        adds, by_ffn = self._trial(position, ffn, module) if module is ffn.stages[-1][0].module else (False, False)
        follows = bool(self._whole) and adds
        # Nothing else in the block changes before it is gone past; the hidden states become those that the FFN adds to.
        alone = by_ffn and len(ffn.prunable) == 1 and list(self._positions.values()).count(position) == 1
        calls: list[tuple[_Call, Any]] = []
        with ExitStack() as hooks:
            add_hook(hooks, self._model, ffn, module, reader, self._masks)
            if alone:
                _listen(hooks, ffn.module, calls)
            for k, output in self._outputs(position, self._states):
                reader.end_batch(self._whole[k] - output if follows else None)
                if alone:
                    call, returned = calls.pop()
                    self._read = self._read or _room(self._states)
                    self._left.append(call.moved(self._read[k], self._states[k]))
                    _put(self._states, k, output - returned)
        self._leaving = ffn.module if alone else None

    def _look_at_whole(self, position: int, ffn: FFN, module: nn.Module, whole: Reader | None) -> None:
        """Take the whole model's states past a block, before anything in it is cut."""
        # Those before the first cut are gone past twice, to the same effect.
        for earlier in range(self._whole_passed, position):
            self._go_past(earlier, self._whole)
        self._front = self._whole[0].clone()
        with ExitStack() as hooks:
            if whole is not None:
                add_hook(hooks, self._model, ffn, module, whole, self._masks)
            for k, output in self._outputs(position, self._whole):
                if whole is not None:
                    whole.end_batch(None)
                _put(self._whole, k, output)
        self._whole_passed = position + 1

    def _trial(self, position: int, ffn: FFN, module: nn.Module) -> tuple[bool, bool]:
        """Whether the block's output moves by just what is added to the map's, and whether by what its FFN returns.

        Tried on the first batch.
        """
        if self._front is not None:
            front, output = self._front, self._whole[0]
        else:
            front = self._states[0]
            _, output = next(self._outputs(position, [front]))
        # As large as the stream itself, and different from token to token.
        added = output.roll(1, dims=-1)
        fits: list[bool] = []
        calls: list[tuple[_Call, Any]] = []

        def add(_module: nn.Module, _inputs: Any, given: torch.Tensor) -> torch.Tensor:
            fits.append(given.numel() == added.numel())
            return given + added.reshape(given.shape) if fits[-1] else given

        with ExitStack() as hooks:
            hooks.callback(module.register_forward_hook(add).remove)
            _listen(hooks, ffn.module, calls)
            _, moved = next(self._outputs(position, [front]))
        rounding = 16 * torch.finfo(output.dtype).eps * float(output.detach().abs().max())
        if fits != [True] or float((moved - output - added).abs().max()) > rounding:
            return False, False
        # What is taken away and added again is rounded twice, which half precision would show.
        if len(calls) != 1 or not calls[0][0].lasts or at_least_float32(output).dtype != output.dtype:
            return True, False
        call, returned = calls[0]
        with torch.no_grad(), evaluation_mode(self._model):
            again = call.of(ffn.module)
        like_stream = isinstance(again, torch.Tensor) and again.shape == added.shape
        return True, like_stream and torch.equal(again + added, returned)

    def _go_past(self, position: int, states: list[torch.Tensor]) -> None:
        if states is self._states and self._leaving is not None:
            with torch.no_grad(), evaluation_mode(self._model):
                for k, call in enumerate(self._left):
                    _put(states, k, states[k] + call.of(self._leaving))
            self._left.clear()
            self._leaving = None
        else:
            for k, output in self._outputs(position, states):
                _put(states, k, output)

    def _outputs(self, position: int, states: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        block, calls = self._blocks[position], self._calls[position]
        with torch.no_grad(), evaluation_mode(self._model):
            for k, (state, call, masks) in enumerate(zip(states, calls, self._batch_masks, strict=False)):
                self._masks.take(masks)
                yield k, first_output(block(state, *call.args, **call.kwargs))


def _room(states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A place for every batch's states, all in one piece of memory.

    New states take the place of old ones a block at a time. Had each a piece of its own, between all that a forward pass
    takes and gives back, the heap would be full of holes: twice the states, on the CPU.
    """
    sizes = [state.numel() for state in states]
    with torch.inference_mode(mode=False):
        pieces = torch.split(states[0].new_empty(sum(sizes)), sizes)
        return [piece.view(state.shape) for piece, state in zip(pieces, states, strict=True)]


def _put(states: list[torch.Tensor], k: int, state: torch.Tensor) -> None:
    """Put what a block returned into a batch's place, or into a new one where it is of another shape, dtype or device."""
    if state.shape != states[k].shape or not _same_kind(state, states[k]):
        states[k] = _room([state])[0]
    states[k].copy_(state.clone() if _same_memory(state, states[k]) else state)


def _same_kind(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _listen(hooks: ExitStack, module: nn.Module, calls: list[tuple[_Call, Any]]) -> None:
    """Keep how a module is called and what it returns, until `hooks` closes."""

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
        # Some blocks go on to add to the very tensor (Falcon).
        calls.append((_Call(args, kwargs), returned.clone() if isinstance(returned, torch.Tensor) else returned))

    hooks.callback(module.register_forward_hook(keep, with_kwargs=True).remove)


class _Reached(Exception):  # noqa: N818 -- no error: it ends a pass early
    """The FFN has been passed; the rest of the model is not needed."""


class PassStream:
    """Forward passes from the start of the model up to the FFN.

    Parameters
    ----------
    model : nn.Module
    ffns : sequence of FFN
    batches : sequence of (ids, mask)
        Token ids and padding masks, (batch, length) each.
    fitted : int
        See :class:`Stream`.

    Notes
    -----
    Cost: half a forward pass for each FFN on average.
    """

    def __init__(self, model: nn.Module, ffns: Sequence[FFN], batches: Sequence[Batch], fitted: int) -> None:
        self.fitted = fitted
        self._model = model
        self._body = body_of(model, ffns)
        self._batches = batches

    def feed(self, ffn: FFN, module: nn.Module, reader: Reader, whole: Reader | None = None) -> None:  # noqa: ARG002 -- a stream of the whole model is not kept
        """Run the model until the FFN's last map has returned; for the last time, where the FFN is shared by several blocks."""
        calls: list[int] = []

        def count(_module: nn.Module, _args: Any, _output: Any) -> None:
            calls[-1] += 1
            if len(calls) > 1 and calls[-1] == calls[0]:
                raise _Reached

        token_masks = TokenMasks()
        with ExitStack() as hooks, torch.no_grad(), evaluation_mode(self._model):
            add_hook(hooks, self._model, ffn, module, reader, token_masks)
            hooks.callback(ffn.stages[-1][-1].module.register_forward_hook(count).remove)
            for ids, mask in self._batches:
                inputs, *masks = model_inputs(self._model, ids, mask)
                token_masks.take(TokenMasks(*masks))
                # The first batch goes all the way and tells how often the FFN is called.
                calls.append(0)
                with suppress(_Reached):
                    run_body(self._body, inputs)
                reader.end_batch(None)


def open_stream(
    model: nn.Module,
    ffns: Sequence[FFN],
    sequences: TokenSequences,
    batch_size: int,
    record: Recording,
    held_out: TokenSequences | None = None,
    *,
    follow: bool = False,
) -> Stream:
    """The cheaper stream that is right for this model.

    Parameters
    ----------
    model : nn.Module
    ffns : sequence of FFN
    sequences : TokenSequences
        Those to fit a repair to.
    batch_size : int
    record : Recording
        Of the forward passes of `sequences`, and then of `held_out`.
    held_out : TokenSequences, optional
        Those to choose and to judge a repair by.
    follow : bool
        See :class:`BlockStream`; whole passes cannot tell what the stream lacks.
    """
    batches = list(sequences.batches(batch_size))
    fitted = len(batches)
    if held_out is not None:
        batches += held_out.batches(batch_size)
    if not record.unbroken or len(record.first) != len(batches):
        return PassStream(model, ffns, batches, fitted)
    masks = [TokenMasks(*model_inputs(model, *batch)[1:]) for batch in batches]
    return BlockStream(model, ffns, record, masks, fitted, follow=follow)
