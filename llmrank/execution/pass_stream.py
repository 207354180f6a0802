"""Pass the calibration tokens through a model, FFN by FFN, while earlier FFNs change.

To repair an FFN, one needs its input in the model whose earlier FFNs are pruned already, and the change that their pruning has
made in the residual stream. In the stream of this module, the model runs from its start for every FFN. The stream in
:mod:`llmrank.execution.block_stream` is for models whose blocks can run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from llmrank.execution.hooks import TokenMasks, add_hook
from llmrank.models import FFN, FFNs
from llmrank.models.blocks import TransformerBlock
from llmrank.models.forward import body_of, evaluation_mode, model_inputs, run_body

__all__ = ["PassStream", "Reader", "Readers", "Stream"]


class Reader(Protocol):
    """Receives the inputs of a linear map, batch by batch."""

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Add values of a batch, see :func:`llmrank.execution.hooks.add_hook`."""

    def end_batch(self, missing: torch.Tensor | None, *, has_run: bool = True) -> None:
        """Finish a batch, after all its values were added.

        Parameters
        ----------
        missing : (batch, length, out) tensor or None
            What the map should return, so that the residual stream behind the block becomes that of the dense model, less what it
            returns now if it `has_run`. None if that is unknown.
        has_run : bool
            Whether what the map returns now is subtracted from `missing`. The same for all batches, and in all processes.
        """


# The readers of maps, by the module of the map.
Readers: TypeAlias = Mapping[nn.Module, Reader]


class Stream(Protocol):
    """Passes the calibration tokens to one FFN after the other.

    Attributes
    ----------
    n_fitted_batches : int
        Number of batches to fit a repair to; the batches after these are held out.
    device : torch.device or None
        Where FFNs compute; None if that is where their weights are.
    held_out_states : list of tensors
        The hidden states behind the last block, one (batch, length, hidden) tensor for each held-out batch; empty if they are not
        known, and before :meth:`finish`.
    """

    n_fitted_batches: int
    device: torch.device | None
    held_out_states: list[torch.Tensor]

    def has_passed(self, ffn: FFN) -> bool:
        """Whether the stream goes on behind an FFN, because an earlier process has repaired this FFN."""

    def leave_out(self, block: TransformerBlock, hooks: ExitStack) -> None:
        """Let the pruned model compute without a block until `hooks` closes; no FFN of the block may be fed."""

    def feed(
        self,
        ffn: FFN,
        readers: Readers,
        dense_readers: Readers | None = None,
        change: Callable[[], None] | None = None,
    ) -> None:
        """Pass the inputs of linear maps, for all tokens, to the readers of these maps.

        All maps that run before a read map compute with the weights that they have at the time of the call.

        Parameters
        ----------
        ffn : FFN
            The FFN whose maps are read. Calls follow the order of the FFNs in the model.
        readers : mapping from nn.Module to Reader
            The output map of the FFN, which is not pruned yet, with its reader; or the output maps of several experts of the
            FFN's mixture. Each map is fed to a reader at most once.
        dense_readers : mapping from nn.Module to Reader, optional
            The same maps with readers of their inputs in the dense model. These readers get inputs only if the stream follows the
            dense model (passes the tokens through it too), and if no map of the block was fed before.
        change : callable, optional
            Changes the block. It is called after the dense model has passed the block, and before the inputs are read.
        """

    def finish(self) -> None:
        """Set :attr:`held_out_states`, after the last FFN was fed and while the repaired maps compute."""


class _FFNPassed(Exception):  # noqa: N818 -- no error: it ends a forward pass early
    """Raised when the FFN has returned, because the rest of the model is not needed."""


class PassStream:
    """A stream that runs the model from its start up to the FFN.

    Notes
    -----
    Cost for each FFN: half a forward pass on average.
    """

    def __init__(
        self, model: nn.Module, ffns: FFNs, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], n_fitted_batches: int
    ) -> None:
        self.n_fitted_batches = n_fitted_batches
        self.device: torch.device | None = None
        self.held_out_states: list[torch.Tensor] = []
        self._model, self._ffns = model, ffns
        self._body = body_of(model, ffns)
        self._batches = batches

    def has_passed(self, ffn: FFN) -> bool:  # noqa: ARG002 -- this stream can begin at any FFN
        """See :meth:`Stream.has_passed`."""
        return False

    def leave_out(self, block: TransformerBlock, hooks: ExitStack) -> None:
        """See :meth:`Stream.leave_out`."""
        block.leave_out(hooks)

    def feed(
        self,
        ffn: FFN,
        readers: Readers,
        dense_readers: Readers | None = None,  # noqa: ARG002 -- the dense model is not followed
        change: Callable[[], None] | None = None,
    ) -> None:
        """See :meth:`Stream.feed`. If several blocks share the FFN, a forward pass ends at the last call of the FFN."""
        if change is not None:
            change()
        n_calls: list[int] = []

        def count(_module: nn.Module, _args: Any, _output: Any) -> None:
            n_calls[-1] += 1
            if len(n_calls) > 1 and n_calls[-1] == n_calls[0]:
                raise _FFNPassed

        token_masks = TokenMasks()
        with ExitStack() as hooks, torch.no_grad(), evaluation_mode(self._model, self._ffns):
            for module, reader in readers.items():
                add_hook(hooks, self._model, ffn, module, reader.add, token_masks)
            hooks.callback(ffn.output_module.register_forward_hook(count).remove)
            for ids, mask in self._batches:
                inputs, *masks = model_inputs(self._model, ids, mask)
                token_masks.replace(TokenMasks(*masks))
                # The first batch runs to the end, and shows how often the FFN is called.
                n_calls.append(0)
                with suppress(_FFNPassed):
                    run_body(self._body, inputs)
                for reader in readers.values():
                    reader.end_batch(None)

    def finish(self) -> None:
        """See :meth:`Stream.finish`. The states are not known."""
