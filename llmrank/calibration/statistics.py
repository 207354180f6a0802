"""Forward hooks -> streaming statistics of what flows through the node layers of the FFNs.

Only sums are kept: of the values and of their squares, in float64, over all tokens that are not
padding. The activations themselves are never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from llmrank.calibration.contribution import Explained, ExplainedSums
from llmrank.calibration.forward import (
    Progress,
    TokenMasks,
    add_hook,
    body_of,
    evaluation_mode,
    first_output,
    is_decoder,
    model_inputs,
    run_body,
    unpadded_rows,
)
from llmrank.calibration.residual import SkipSums, block_path, hidden_states
from llmrank.calibration.text import TokenSequences
from llmrank.errors import CalibrationError, LLMRankError
from llmrank.models import FFN
from llmrank.models.ffn import bias_of

__all__ = ["AttentionStatistics", "FFNStatistics", "LayerStatistics", "collect"]


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What the calibration tokens did at one node layer.

    Attributes
    ----------
    norm : (n,) float64 tensor
        sqrt(sum over tokens of x^2): the activation of the nodes.
    mean : (n,) float64 tensor
        Over tokens.
    variance : (n,) float64 tensor
        Population variance over tokens.
    count : int
        Tokens.
    read_norm : (n,) float64 tensor
        Norm of what the maps that leave this layer read; equal to `norm` except in the explicit
        form, where `norm` is that of the Linear's own output.
    explained : Explained, optional
        What each node explains of what the map that reads it returns; of hidden layers, where it was asked for.
    """

    norm: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    count: int
    read_norm: torch.Tensor
    explained: Explained | None = None


@dataclass(frozen=True)
class FFNStatistics:
    """Statistics of one FFN.

    Attributes
    ----------
    layers : tuple of LayerStatistics
        Of its k+1 node layers, inputs first.
    skip : float, optional
        Share of the residual stream that goes past its block, see :class:`llmrank.calibration.residual.SkipSums`; where it was
        asked for.
    attention : AttentionStatistics, optional
        Of the attention in front of it, where that was asked for.
    """

    layers: tuple[LayerStatistics, ...]
    skip: float | None = None
    attention: AttentionStatistics | None = None


@dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of one attention.

    Attributes
    ----------
    attention : FFN
        Of the kind attention.
    layers : tuple of LayerStatistics
        Of what its value map reads, of what its output map reads, and of what that returns.
    """

    attention: FFN
    layers: tuple[LayerStatistics, ...]


@dataclass(frozen=True)
class _Rows:
    """An accumulator for what takes (tokens, n) alone."""

    take: Callable[[torch.Tensor], None]

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        self.take(unpadded_rows(values, mask))


class _Accumulator:
    """Streaming sums over tokens."""

    def __init__(self, size: int, device: torch.device) -> None:
        # MPS has no float64.
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.total = torch.zeros(size, dtype=wide, device=device)
        self.squares = torch.zeros(size, dtype=wide, device=device)
        self.count = 0

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        values = unpadded_rows(values, mask).to(self.total)
        self.total += values.sum(0)
        self.squares += values.square().sum(0)
        self.count += len(values)

    def finish(self, where: str) -> LayerStatistics:
        if self.count == 0:
            raise CalibrationError(
                f"no calibration token passed through {where}: the module was never called in a forward pass; remove it "
                "from the model, or name the Linears to prune with structure_dict="
            )
        total, squares = self.total.double().cpu(), self.squares.double().cpu()
        if not bool(torch.isfinite(squares).all()):
            bad = int((~torch.isfinite(squares)).nonzero()[0])
            raise CalibrationError(
                f"the activations of {where} are not finite, first at neuron {bad}: the weights hold NaN or Inf, or the "
                "dtype overflows; load the model in float32 or bfloat16 and check its perplexity"
            )
        mean = total / self.count
        norm = squares.sqrt()
        return LayerStatistics(norm, mean, (squares / self.count - mean.square()).clamp_min(0), self.count, norm)


def collect(
    model: nn.Module,
    ffns: Sequence[FFN],
    sequences: TokenSequences,
    batch_size: int = 1,
    progress: Progress | None = None,
    *,
    explained: bool = False,
    skips: bool = False,
    attentions: Mapping[str, FFN] | None = None,
) -> tuple[FFNStatistics, ...]:
    """Run the calibration sequences and gather the statistics of every node layer.

    Parameters
    ----------
    model : nn.Module
        Left in the mode (training or evaluation) it came in; runs without gradients. A transformers
        model, or a module that takes the ids alone.
    ffns : sequence of FFN
    sequences : TokenSequences
    batch_size : int
        Sequences at once; the result does not depend on it beyond round-off.
    progress : callable, optional
        ``progress(items, description)`` returns an iterable over the items.
    explained : bool
        Whether to find out what hidden neurons (and the inputs of attentions' output maps) explain of the outputs, see
        :mod:`llmrank.calibration.contribution`: one product more with every such map. Explicitly listed Linears have no hidden
        neurons.
    skips : bool
        Whether to measure what share of the residual stream goes past every block.
    attentions : mapping from str to FFN, optional
        The attention in front of an FFN by its name, whose statistics are to be collected too, see
        :mod:`llmrank.calibration.attention`.

    Returns
    -------
    tuple of FFNStatistics
        In the order of `ffns`.

    Raises
    ------
    CalibrationError
        Non-finite activations (the message names the layer), an FFN that no token reached, or a model that does not run on
        token ids alone.
    StructureError
        Skips of FFNs without a residual stream.

    Notes
    -----
    Cost: one forward pass without the prediction head where the model has a separate body. Memory:
    three float64 numbers a node, and what the forward pass takes.
    """
    masks = TokenMasks()
    before = attentions or {}
    units = [*ffns, *before.values()]
    body = body_of(model, units)
    blocks: dict[str, SkipSums] = {}
    with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model):
        sums = [_Sums(hooks, model, unit, masks, explained=explained) for unit in units]
        for ffn in ffns if skips else ():
            path = block_path(ffn)
            if path not in blocks:
                blocks[path] = SkipSums(path)
                _watch_block(hooks, model, ffn, model.get_submodule(path), blocks[path], masks)
        batches = list(sequences.batches(batch_size))
        for ids, mask in progress(batches, "Calibrating") if progress else batches:
            inputs, *of_batch = model_inputs(model, ids, mask)
            masks.take(TokenMasks(*of_batch))
            try:
                run_body(body, inputs)
            except LLMRankError:
                raise
            except (TypeError, ValueError, AttributeError) as error:  # what models say of inputs that they do not get
                raise CalibrationError(
                    f"{type(model).__name__} does not run on what calibration passes it, {', '.join(inputs)} alone ({error}); "
                    "expected a language model, or a plain module that takes features: prune the part that is one by itself "
                    "(a text_model, say)"
                ) from error
    layers = [entry.finish() for entry in sums]
    around = dict(zip(before, layers[len(ffns) :], strict=True))
    return tuple(
        FFNStatistics(
            own,
            blocks[block_path(ffn)].share() if skips else None,
            AttentionStatistics(before[ffn.name], around[ffn.name]) if ffn.name in before else None,
        )
        for ffn, own in zip(ffns, layers[: len(ffns)], strict=True)
    )


def _watch_block(
    hooks: ExitStack, model: nn.Module, ffn: FFN, block: nn.Module, sums: SkipSums, masks: TokenMasks
) -> None:
    """Hand the hidden states around a block to sums, until `hooks` closes."""
    side = "decoder" if is_decoder(model, ffn) else "input"

    def add(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        mask: torch.Tensor | None = getattr(masks, side)
        before, after = hidden_states(args, kwargs), first_output(output)
        if mask is not None and before.shape[:-1] != mask.shape:
            mask = mask.reshape(-1)
        sums.add(unpadded_rows(before, mask), unpadded_rows(after, mask))

    hooks.callback(block.register_forward_hook(add, with_kwargs=True).remove)


class _Sums:
    """All that streams of one FFN (or attention), fed until `hooks` closes."""

    def __init__(self, hooks: ExitStack, model: nn.Module, ffn: FFN, masks: TokenMasks, *, explained: bool) -> None:
        self._ffn = ffn
        self._reads: list[_Accumulator] = []
        self._writes: dict[int, _Accumulator] = {}
        self._explained: dict[int, ExplainedSums] = {}
        for layer, stage in enumerate(ffn.stages):
            self._reads.append(_Accumulator(stage[0].in_features, stage[0].weight.device))
            add_hook(hooks, model, ffn, stage[0].module, self._reads[-1], masks)
            if ffn.kind == "explicit" or layer == len(ffn.stages) - 1:
                self._writes[layer + 1] = _Accumulator(stage[0].size, stage[0].weight.device)
                add_hook(hooks, model, ffn, stage[0].module, self._writes[layer + 1], masks, output=True)
        for layer in range(1, len(ffn.stages)) if explained and ffn.kind != "explicit" else ():
            (reader,) = ffn.stages[layer]
            sums = self._explained[layer] = ExplainedSums(reader.weight, bias_of(reader.module))
            add_hook(hooks, model, ffn, reader.module, _Rows(sums.read), masks)
            add_hook(hooks, model, ffn, reader.module, _Rows(sums.written), masks, output=True)

    def finish(self) -> tuple[LayerStatistics, ...]:
        """Of every node layer."""
        ffn = self._ffn
        read = [acc.finish(f"{ffn.name} (input of {ffn.stages[k][0].name})") for k, acc in enumerate(self._reads)]
        written = {
            layer: acc.finish(f"{ffn.name} (output of {ffn.stages[layer - 1][0].name})")
            for layer, acc in self._writes.items()
        }
        if ffn.kind == "explicit":
            inner = [
                replace(written[layer], read_norm=read[layer].norm) if layer < len(read) else written[layer]
                for layer in range(1, len(read) + 1)
            ]
            return (read[0], *inner)
        found = [
            replace(entry, explained=self._explained[k].finish()) if k in self._explained else entry
            for k, entry in enumerate(read)
        ]
        return (*found, written[len(read)])
