"""Loss curves: how far a model moves from the dense one when each layer alone loses more and more of its units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from graphs import RankResult
from llmrank.execution import Execution
from llmrank.file_contents import check_fields
from llmrank.models import FFNs
from llmrank.pipeline.closeness.sensitivity import layer_sensitivities
from llmrank.prune.base_pruner import BasePruner
from llmrank.prune.least_loss_pruner import interpolated
from llmrank.prune.masks import Masks
from llmrank.prune.records.layer_record import LayerRecord
from llmrank.prune.records.units import Target, Units, units_of_part
from llmrank.prune.selection import choose_masks
from llmrank.score.model_graph import ModelGraph
from llmrank.text import TokenSequences

__all__ = ["LossCurves", "measure_loss_curves", "removed_units"]

# The name of all layers together among groups of layers.
TOGETHER = ""


@dataclass(frozen=True)
class LossCurves(Mapping[str, Mapping[int, float]]):
    """Losses as :func:`llmrank.pipeline.closeness.sensitivity.layer_sensitivities` measures them, at several amounts.

    It maps the name of every layer or other :class:`Units` to its losses by the number of removed units.

    Attributes
    ----------
    alone : mapping from str to mapping from int to float
        What this class is a mapping of.
    together : tuple of (float, float)
        For each share that was removed of all layers: the sum of their losses alone, and their loss together.
    """

    alone: Mapping[str, Mapping[int, float]]
    together: tuple[tuple[float, float], ...]

    def __getitem__(self, name: str) -> Mapping[int, float]:
        return self.alone[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.alone)

    def __len__(self) -> int:
        return len(self.alone)

    def expected(self, removed: Mapping[str, int]) -> float:
        """Return the loss that is expected if these numbers of units are removed, by the names of layers.

        Losses alone are interpolated and added up. Their sum becomes a loss together as it did for the shares that were measured,
        with straight lines between these.

        Examples
        --------
        >>> LossCurves({"a": {2: 0.2}, "b": {2: 0.4}}, ((0.6, 1.2),)).expected({"a": 2, "b": 1})
        0.8
        """
        sums, joint = np.maximum.accumulate(np.array([(0.0, 0.0), *sorted(self.together)])).T
        alone = sum(float(interpolated(self.alone[name], np.array(count))) for name, count in removed.items())
        if alone > sums[-1]:
            return float(joint[-1] / sums[-1] * alone)
        return float(np.interp(alone, sums, joint))

    def to_dict(self) -> dict[str, Any]:
        """Return the losses as values for JSON, whose keys are strings."""
        alone = {name: {str(count): loss for count, loss in losses.items()} for name, losses in self.alone.items()}
        return {"alone": alone, "together": [list(pair) for pair in self.together]}

    @classmethod
    def of_dict(cls, content: Mapping[str, Any]) -> LossCurves:
        """Read what :meth:`to_dict` has returned; see :func:`llmrank.file_contents.refused_unless_sound` for other content."""
        check_fields(content, {"alone": dict, "together": list})
        found = cls(
            {name: {int(n): float(loss) for n, loss in losses.items()} for name, losses in content["alone"].items()},
            tuple((float(alone), float(together)) for alone, together in content["together"]),
        )
        numbers = [loss for losses in found.values() for loss in losses.values()] + [
            n for p in found.together for n in p
        ]
        if not all(math.isfinite(each) and each >= 0 for each in numbers) or not found.together:
            raise ValueError("it has losses that are no numbers >= 0, or none")
        return found


class _Share(BasePruner):
    """The same share of every layer, or as much of it as the layer can lose."""

    def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
        """See :meth:`BasePruner.extract_scores`."""
        for layer in layer_list:
            layer.pruning_mask, layer.amount = layer.importance, self._possible_count(layer)


def measure_loss_curves(
    model: nn.Module,
    ffns: FFNs,
    graphs: Sequence[ModelGraph],
    ranks: Sequence[RankResult],
    targets: tuple[Target, ...],
    shares: Sequence[float],
    sequences: TokenSequences,
    execution: Execution = Execution(),
) -> LossCurves:
    """Remove each of some shares from every layer alone, those of the lowest scores, and from all layers together.

    Parameters
    ----------
    model, ffns, sequences, execution
        See :func:`llmrank.pipeline.closeness.sensitivity.layer_sensitivities`.
    graphs, ranks, targets
        See :func:`llmrank.prune.selection.choose_masks`.
    shares : sequence of float
        In ascending order. Shares that are the same number of units are measured once.

    Notes
    -----
    Cost: for each share what :func:`layer_sensitivities` takes, and a complete pass.
    """
    units = units_of_part(ffns.layers.values(), targets)
    curves: dict[str, dict[int, float]] = {each.name: {} for each in units}
    removed, together = [], []
    for share in shares:
        masks = Masks.full(ffns.sizes)
        for target in targets:
            masks &= choose_masks(_Share(share, multiple_of=1), graphs, ranks, jointly=True, targets=(target,))
        counts = removed_units(units, masks)
        new = {each.name: each.layers for each in units if counts[each.name] not in (0, *curves[each.name])}
        groups = {TOGETHER: list(ffns.layers.values()), **new}
        losses = layer_sensitivities(model, ffns, masks, sequences, execution, groups=groups)
        for name in new:
            curves[name][counts[name]] = losses[name]
        removed.append(counts)
        together.append(losses[TOGETHER])
    sums = [sum(float(interpolated(curves[n], np.array(k))) for n, k in counts.items()) for counts in removed]
    return LossCurves(curves, tuple(zip(sums, together, strict=True)))


def removed_units(units: Sequence[Units], masks: Masks) -> dict[str, int]:
    """Return how many units masks remove, by the name of the units."""
    widths = masks.widths
    return {
        each.name: each.n_units - widths[each.layers[0].name] * each.n_units // each.layers[0].size for each in units
    }
