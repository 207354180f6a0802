"""Sums over tokens, from which statistics are made. Hooks on the modules of a model add to them in forward passes.

They leave padding out. They are float64, or float32 on MPS (the GPUs of Apple), which has no float64.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from llmrank.calibration.statistics.ffn_statistics import LayerStatistics, MixtureStatistics, RoutingStatistics
from llmrank.errors import CalibrationError, not_finite
from llmrank.execution.hooks import TokenMasks, add_hook, rows_by_sequence, unpadded_rows
from llmrank.models import FFN
from llmrank.models.experts import Routing

__all__ = ["FFNSums", "MixtureSums"]

# Number of tokens that a CPU converts to float64 at once: few stay in the cache, and the allocator keeps their memory. All 1,024
# tokens of a sequence took ten times as long.
ROWS_AT_ONCE = 128


class LayerSums:
    """Sums of a layer's activations and of their squares over tokens."""

    def __init__(self, size: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.total = torch.zeros(size, dtype=dtype, device=device)
        self.squares = torch.zeros(size, dtype=dtype, device=device)
        self.count = 0

    def add(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        for (sequence,) in rows_by_sequence(values, mask=mask):
            at_once = ROWS_AT_ONCE if self.total.device.type == "cpu" else max(len(sequence), 1)
            for few in torch.split(sequence, at_once):
                rows = few.to(self.total)
                self.total += rows.sum(0)
                self.squares += rows.square().sum(0)
            self.count += len(sequence)

    def finish(self, place: str, *, may_be_empty: bool = False) -> LayerStatistics:
        if self.count == 0 and not may_be_empty:
            raise CalibrationError(
                f"no calibration token passed through {place}: the module was never called in a forward pass; remove it "
                "from the model, or name the Linears to prune with structure_dict="
            )
        total, squares = self.total.double().cpu(), self.squares.double().cpu()
        if not bool(torch.isfinite(squares).all()):
            bad = int((~torch.isfinite(squares)).nonzero()[0])
            raise not_finite(f"the activations of {place}, first at neuron {bad}, are")
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
            add_hook(hooks, model, ffn, output_map.module, self._routed.add, masks)
            add_hook(hooks, model, ffn, output_map.module, self._routed.add_outputs, masks, output=True)
        for layer, stage in enumerate(ffn.stages):
            self._input_sums.append(LayerSums(stage[0].in_features, stage[0].weight.device))
            add_hook(hooks, model, ffn, stage[0].module, self._input_sums[-1].add, masks)
            # Between the Linears of an explicit FFN, which the user has named, there may be other modules. So the output of one
            # Linear is not the input of the next, and both are measured.
            if ffn.kind == "explicit" or layer == len(ffn.stages) - 1:
                self._output_sums[layer + 1] = LayerSums(stage[0].size, stage[0].weight.device)
                add_hook(hooks, model, ffn, stage[0].module, self._output_sums[layer + 1].add, masks, output=True)

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
    """The sums of the input and the output of a mixture of experts."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sums: tuple[LayerSums, LayerSums] | None = None

    def add(self, before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Add the input and the output of one batch, see :func:`llmrank.calibration.residual.add_stream_hook`."""
        if self._sums is None:
            self._sums = (LayerSums(before.shape[-1], before.device), LayerSums(after.shape[-1], after.device))
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
