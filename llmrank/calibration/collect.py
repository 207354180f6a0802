"""Collect statistics of the activations at every layer of the FFNs, with forward hooks.

The hooks add the activations and their squares to sums over all tokens that are not padding. The sums are float64, or float32 on
MPS (the GPUs of Apple), which has no float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llmrank.calibration.residual import SkipSums, block_path, hidden_states
from llmrank.calibration.statistics import (
    AttentionStatistics,
    FFNStatistics,
    LayerStatistics,
    MixtureStatistics,
    RoutingStatistics,
)
from llmrank.errors import CalibrationError, LLMRankError
from llmrank.execution import Execution
from llmrank.execution.hooks import TokenMasks, add_hook, unpadded_rows
from llmrank.models import FFN, FFNs
from llmrank.models.experts import Mixture, Routing
from llmrank.models.forward import body_of, evaluation_mode, first_output, is_decoder, model_inputs, run_body
from llmrank.text import TokenSequences

__all__ = ["collect_statistics"]


class _LayerSums:
    """Sums of a layer's activations and of their squares over tokens."""

    def __init__(self, size: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.total = torch.zeros(size, dtype=dtype, device=device)
        self.squares = torch.zeros(size, dtype=dtype, device=device)
        self.count = 0

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        values = unpadded_rows(values, mask).to(self.total)
        self.total += values.sum(0)
        self.squares += values.square().sum(0)
        self.count += len(values)

    def finish(self, place: str, *, may_be_empty: bool = False) -> LayerStatistics:
        if self.count == 0 and not may_be_empty:
            raise CalibrationError(
                f"no calibration token passed through {place}: the module was never called in a forward pass; remove it "
                "from the model, or name the Linears to prune with structure_dict="
            )
        total, squares = self.total.double().cpu(), self.squares.double().cpu()
        if not bool(torch.isfinite(squares).all()):
            bad = int((~torch.isfinite(squares)).nonzero()[0])
            raise CalibrationError(
                f"the activations of {place} are not finite, first at neuron {bad}: the weights hold NaN or Inf, or the "
                "dtype overflows; load the model in float32 or bfloat16 and check its perplexity"
            )
        count = max(self.count, 1)
        mean = total / count
        norm = squares.sqrt()
        return LayerStatistics(norm, mean, (squares / count - mean.square()).clamp_min(0), self.count, norm)


class _RoutedSums:
    """Sums over the tokens that a router sends to one expert; hooks on the expert's output map add to them."""

    def __init__(self, size: int, device: torch.device, routing: Routing) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.weighted_squares = torch.zeros(size, dtype=dtype, device=device)
        self.count, self.weight, self.output_norm, self.weighted_output_norm = 0, 0.0, 0.0, 0.0
        self._routing = routing

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Add the activations of the expert's hidden neurons (tokens, n), which are the input of its output map."""
        weights = self._routing_weights(mask).to(self.weighted_squares)
        rows = unpadded_rows(values, mask).to(self.weighted_squares)
        self.weighted_squares += (rows * weights[:, None]).square().sum(0)
        self.count += len(weights)
        self.weight += float(weights.sum())

    def add_outputs(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Add the outputs of the expert (tokens, out)."""
        norms = unpadded_rows(values, mask).float().norm(dim=-1).to(self.weighted_squares)
        self.output_norm += float(norms.sum())
        self.weighted_output_norm += float((norms * self._routing_weights(mask).to(norms)).sum())

    def _routing_weights(self, mask: torch.Tensor | None) -> torch.Tensor:
        weights = self._routing.weights
        return weights if mask is None else weights[mask.to(weights.device)]

    def finish(self, outputs: LayerStatistics) -> RoutingStatistics:
        return RoutingStatistics(
            self.count,
            self.weight,
            self.output_norm,
            self.weighted_output_norm,
            float(outputs.variance.sum()),
            self.weighted_squares.double().cpu().sqrt(),
        )


class _RoutedOutputs:
    """The accumulator for the outputs of an expert: it adds them to the sums whose own `add` takes hidden neurons."""

    def __init__(self, sums: _RoutedSums) -> None:
        self._sums = sums

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        self._sums.add_outputs(values, mask)


def collect_statistics(
    model: nn.Module,
    ffns: FFNs,
    sequences: TokenSequences,
    execution: Execution = Execution(),
    *,
    skips: bool = False,
    attentions: Mapping[str, FFN] | None = None,
    run: Callable[[TokenMasks], None] | None = None,
) -> tuple[FFNStatistics, ...]:
    """Run a model on the calibration sequences, and collect the statistics of every layer of its FFNs.

    Parameters
    ----------
    model : nn.Module
        A transformers model, or a plain module that takes token ids or features as its only argument.
    ffns : FFNs
    sequences : TokenSequences
    execution : Execution
        Each process runs the model on its share of the sequences. The sums are added up, so all return the same statistics.
    skips : bool
        Whether to measure, for every block, the share of the residual stream that skips it.
    attentions : mapping from str to FFN, optional
        Attentions whose statistics are collected too, each under the name of the FFN that follows it.
    run : callable, optional
        Runs the FFNs on all sequences, in place of the forward passes of the model. It gets an object for the masks of padding,
        and replaces these masks before it runs each batch.

    Returns
    -------
    tuple of FFNStatistics
        In the order of `ffns`.

    Raises
    ------
    CalibrationError
        Activations are not finite, no token reached an FFN or attention, padding cannot be told from text, or the model cannot
        read the ids or does not run on them alone.
    StructureError
        `skips` is set, and an FFN lies in no block with a residual stream.

    Notes
    -----
    Cost: one forward pass of all sequences. Memory: that of the forward pass of one batch.
    """
    masks = TokenMasks()
    attentions = attentions or {}
    ffns_and_attentions = FFNs((*ffns, *attentions.values()))
    body = body_of(model, ffns_and_attentions)
    skip_sums: dict[str, SkipSums] = {}
    with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model, ffns):
        sums = [_FFNSums(hooks, model, entry, masks) for entry in ffns_and_attentions]
        in_decoder = {ffn.mixture.name: is_decoder(model, ffn) for ffn in ffns if ffn.mixture is not None}
        mixture_sums = {m.name: _MixtureSums(hooks, m, masks, in_decoder=in_decoder[m.name]) for m in ffns.mixtures}
        for ffn in ffns if skips else ():
            path = block_path(ffn)
            if path not in skip_sums:
                skip_sums[path] = SkipSums(path)
                _add_block_hook(hooks, model, ffn, model.get_submodule(path), skip_sums[path], masks)
        if run is not None:
            run(masks)
        else:
            for batch in execution.steps(execution.batches(sequences), "Calibrating"):
                inputs, *batch_masks = model_inputs(model, *batch)
                masks.replace(TokenMasks(*batch_masks))
                _run(model, body, inputs)
    of_mixtures = [part for entry in mixture_sums.values() for part in entry.parts]
    execution.processes.add_up([*(part for entry in sums for part in entry.parts), *of_mixtures, *skip_sums.values()])
    layers = [entry.finish() for entry in sums]
    mixtures = {name: entry.finish() for name, entry in mixture_sums.items()}
    # `sums` and `layers` hold first the FFNs, and then the attentions.
    attention_layers = dict(zip(attentions, layers[len(ffns) :], strict=True))
    return tuple(
        FFNStatistics(
            ffn_layers,
            skip_sums[block_path(ffn)].share() if skips else None,
            AttentionStatistics(attentions[ffn.name], attention_layers[ffn.name]) if ffn.name in attentions else None,
            entry.finish_routing(ffn_layers[-1]),
            None if ffn.mixture is None else mixtures[ffn.mixture.name],
        )
        for ffn, entry, ffn_layers in zip(ffns, sums, layers, strict=False)
    )


def _run(model: nn.Module, body: nn.Module, inputs: dict[str, Any]) -> None:
    try:
        run_body(body, inputs)
    except LLMRankError:
        raise
    except (TypeError, ValueError, AttributeError) as error:  # models raise these for missing inputs
        raise CalibrationError(
            f"{type(model).__name__} does not run on the inputs of calibration, {', '.join(inputs)} alone ({error}); "
            "expected a language model, or a plain module that takes features: if the model contains one (a text_model, "
            "for example), prune that part by itself"
        ) from error


def _add_block_hook(
    hooks: ExitStack, model: nn.Module, ffn: FFN, block: nn.Module, sums: SkipSums, masks: TokenMasks
) -> None:
    """Register a hook that adds the hidden states in front of and behind a block to `sums`, until `hooks` closes."""
    side = "decoder" if is_decoder(model, ffn) else "input"

    def add(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        mask: torch.Tensor | None = getattr(masks, side)
        before, after = hidden_states(args, kwargs), first_output(output)
        if mask is not None and before.shape[:-1] != mask.shape:
            mask = mask.reshape(-1)
        sums.add(unpadded_rows(before, mask), unpadded_rows(after, mask))

    hooks.callback(block.register_forward_hook(add, with_kwargs=True).remove)


class _FFNSums:
    """The sums of all layers of one FFN or attention; hooks add to them until `hooks` closes."""

    def __init__(self, hooks: ExitStack, model: nn.Module, ffn: FFN, masks: TokenMasks) -> None:
        self._ffn = ffn
        self._input_sums: list[_LayerSums] = []
        self._output_sums: dict[int, _LayerSums] = {}
        self._routed: _RoutedSums | None = None
        output_map = ffn.stages[-1][0]
        routing = ffn.routing_of(output_map.module)
        if routing is not None:
            self._routed = _RoutedSums(ffn.sizes[-2], output_map.weight.device, routing)
            add_hook(hooks, model, ffn, output_map.module, self._routed, masks)
            add_hook(hooks, model, ffn, output_map.module, _RoutedOutputs(self._routed), masks, output=True)
        for layer, stage in enumerate(ffn.stages):
            self._input_sums.append(_LayerSums(stage[0].in_features, stage[0].weight.device))
            add_hook(hooks, model, ffn, stage[0].module, self._input_sums[-1], masks)
            # Between the Linears of an explicit FFN, which the user has named, there may be other modules. So the output of one
            # Linear is not the input of the next, and both are measured.
            if ffn.kind == "explicit" or layer == len(ffn.stages) - 1:
                self._output_sums[layer + 1] = _LayerSums(stage[0].size, stage[0].weight.device)
                add_hook(hooks, model, ffn, stage[0].module, self._output_sums[layer + 1], masks, output=True)

    @property
    def parts(self) -> list[object]:
        """The sums, each with tensors and numbers as its attributes."""
        routed = [] if self._routed is None else [self._routed]
        return [*self._input_sums, *self._output_sums.values(), *routed]

    def finish(self) -> tuple[LayerStatistics, ...]:
        ffn = self._ffn
        inputs = [
            sums.finish(f"{ffn.name} (input of {ffn.stages[k][0].name})", may_be_empty=ffn.is_routed)
            for k, sums in enumerate(self._input_sums)
        ]
        outputs = {
            layer: sums.finish(f"{ffn.name} (output of {ffn.stages[layer - 1][0].name})", may_be_empty=ffn.is_routed)
            for layer, sums in self._output_sums.items()
        }
        if ffn.kind == "explicit":
            hidden = [replace(outputs[layer], read_norm=inputs[layer].norm) for layer in range(1, len(inputs))]
            return (inputs[0], *hidden, outputs[len(inputs)])
        return (*inputs, outputs[len(inputs)])

    def finish_routing(self, outputs: LayerStatistics) -> RoutingStatistics | None:
        return None if self._routed is None else self._routed.finish(outputs)


class _MixtureSums:
    """The sums of the input and the output of a mixture of experts; a hook adds to them until `hooks` closes."""

    def __init__(self, hooks: ExitStack, mixture: Mixture, masks: TokenMasks, *, in_decoder: bool) -> None:
        self._name = mixture.name
        self._side = "decoder" if in_decoder else "input"
        self._masks = masks
        self._sums: tuple[_LayerSums, _LayerSums] | None = None
        hooks.callback(mixture.module.register_forward_hook(self._add, with_kwargs=True).remove)

    def _add(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before, after = hidden_states(args, kwargs), first_output(output)
        if self._sums is None:
            self._sums = (_LayerSums(before.shape[-1], before.device), _LayerSums(after.shape[-1], after.device))
        mask: torch.Tensor | None = getattr(self._masks, self._side)
        if mask is not None and before.shape[:-1] != mask.shape:
            mask = mask.reshape(-1)
        for sums, values in zip(self._sums, (before, after.reshape(before.shape)), strict=True):
            sums.add(values, mask)

    @property
    def parts(self) -> tuple[object, ...]:
        """The sums of the input and the output, if the mixture was called."""
        return self._sums or ()

    def finish(self) -> MixtureStatistics:
        if self._sums is None:
            raise CalibrationError(
                f"no calibration token passed through {self._name}: the module was never called in a forward pass; remove it "
                "from the model, or name the Linears to prune with structure_dict="
            )
        inputs, outputs = self._sums
        return MixtureStatistics(inputs.finish(f"{self._name} (input)"), outputs.finish(f"{self._name} (output)"))
