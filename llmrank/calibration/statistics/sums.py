"""Sums over tokens, from which statistics are made. Hooks on the modules of a model add to them in forward passes.

They leave padding out. They are float64, or float32 on MPS (the GPUs of Apple), which has no float64.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llmrank.calibration.residual import hidden_states
from llmrank.calibration.statistics.ffn_statistics import LayerStatistics, MixtureStatistics, RoutingStatistics
from llmrank.errors import CalibrationError
from llmrank.execution.hooks import TokenMasks, add_hook, rows_by_sequence, unpadded_rows
from llmrank.models import FFN
from llmrank.models.experts import Mixture, Routing
from llmrank.models.forward import first_output

__all__ = ["FFNSums", "MixtureSums"]


class LayerSums:
    """Sums of a layer's activations and of their squares over tokens."""

    def __init__(self, size: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.total = torch.zeros(size, dtype=dtype, device=device)
        self.squares = torch.zeros(size, dtype=dtype, device=device)
        self.count = 0

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        for (sequence,) in rows_by_sequence(values, mask=mask):
            rows = sequence.to(self.total)
            self.total += rows.sum(0)
            self.squares += rows.square().sum(0)
            self.count += len(rows)

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


class RoutedSums:
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

    def __init__(self, sums: RoutedSums) -> None:
        self._sums = sums

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        self._sums.add_outputs(values, mask)


class FFNSums:
    """The sums of all layers of one FFN or attention; hooks add to them until `hooks` closes."""

    def __init__(self, hooks: ExitStack, model: nn.Module, ffn: FFN, masks: TokenMasks) -> None:
        self._ffn = ffn
        self._input_sums: list[LayerSums] = []
        self._output_sums: dict[int, LayerSums] = {}
        self._routed: RoutedSums | None = None
        output_map = ffn.stages[-1][0]
        routing = ffn.routing_of(output_map.module)
        if routing is not None:
            self._routed = RoutedSums(ffn.sizes[-2], output_map.weight.device, routing)
            add_hook(hooks, model, ffn, output_map.module, self._routed, masks)
            add_hook(hooks, model, ffn, output_map.module, _RoutedOutputs(self._routed), masks, output=True)
        for layer, stage in enumerate(ffn.stages):
            self._input_sums.append(LayerSums(stage[0].in_features, stage[0].weight.device))
            add_hook(hooks, model, ffn, stage[0].module, self._input_sums[-1], masks)
            # Between the Linears of an explicit FFN, which the user has named, there may be other modules. So the output of one
            # Linear is not the input of the next, and both are measured.
            if ffn.kind == "explicit" or layer == len(ffn.stages) - 1:
                self._output_sums[layer + 1] = LayerSums(stage[0].size, stage[0].weight.device)
                add_hook(hooks, model, ffn, stage[0].module, self._output_sums[layer + 1], masks, output=True)

    @property
    def parts(self) -> list[object]:
        """The sums, each with tensors and numbers as its attributes."""
        routed = [] if self._routed is None else [self._routed]
        return [*self._input_sums, *self._output_sums.values(), *routed]

    def finish(self) -> tuple[LayerStatistics, ...]:
        """Return the statistics of the k+1 layers."""
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
        """Return the statistics of the routing to an expert; None for an FFN that gets every token."""
        return None if self._routed is None else self._routed.finish(outputs)


class MixtureSums:
    """The sums of the input and the output of a mixture of experts; a hook adds to them until `hooks` closes."""

    def __init__(self, hooks: ExitStack, mixture: Mixture, masks: TokenMasks, *, in_decoder: bool) -> None:
        self._name = mixture.name
        self._side = "decoder" if in_decoder else "input"
        self._masks = masks
        self._sums: tuple[LayerSums, LayerSums] | None = None
        hooks.callback(mixture.module.register_forward_hook(self._add, with_kwargs=True).remove)

    def _add(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before, after = hidden_states(args, kwargs), first_output(output)
        if self._sums is None:
            self._sums = (LayerSums(before.shape[-1], before.device), LayerSums(after.shape[-1], after.device))
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
        """Return the statistics of the input and the output."""
        if self._sums is None:
            raise CalibrationError(
                f"no calibration token passed through {self._name}: the module was never called in a forward pass; remove it "
                "from the model, or name the Linears to prune with structure_dict="
            )
        inputs, outputs = self._sums
        return MixtureStatistics(inputs.finish(f"{self._name} (input)"), outputs.finish(f"{self._name} (output)"))
