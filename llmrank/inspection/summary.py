"""Summaries of an inspection in plain values: of its layers, of the agreement of its scorers, and of single neurons."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

from graphs.analysis.layer_summary import LayerSummary, summarise_layers
from graphs.analysis.measures import rank_correlation, share_also_kept
from graphs.analysis.node_summary import NodeSummary, summarise_node
from graphs.analysis.paths import Path, strongest_paths
from llmrank.errors import OptionError
from llmrank.inspection.inspection import Inspection, ScorerResult
from llmrank.pipeline.report import environment

__all__ = [
    "Agreement",
    "InspectionSummary",
    "NeuronSummary",
    "Verdict",
    "margin",
    "parse_neuron",
    "summarise_inspection",
    "summarise_neuron",
]

# Version of the JSON that to_dict returns.
FORMAT = 1


@dataclass(frozen=True)
class Agreement:
    """How far another scorer, or the same scorer in the other topology, agrees with the main scorer of an inspection.

    Attributes
    ----------
    correlation : float
        Mean of Spearman's correlation over the prunable layers, in -1..1. Layers with constant scores are left out; NaN if no
        layer is left.
    local, global_ : float
        Share of all neurons kept by the main scorer under this budget that the other one keeps too; NaN if the budget refuses
        the amount.
    """

    correlation: float
    local: float
    global_: float


@dataclass(frozen=True)
class InspectionSummary:
    """A summary of an inspection.

    Attributes
    ----------
    layers : mapping from str to LayerSummary
        Summaries of the chosen prunable layers, by name.
    kept : mapping from str to mapping from str to int
        Number of neurons that the main scorer keeps, by budget and layer. A budget that refuses the amount has no entry.
    agreement : mapping from str to Agreement
        Agreement of the main scorer with every other scorer, by its name, and with itself in the other topology, by the name
        of that topology.
    inspection : Inspection
    """

    layers: dict[str, LayerSummary]
    kept: dict[str, dict[str, int]]
    agreement: dict[str, Agreement]
    inspection: Inspection

    def to_dict(self) -> dict[str, Any]:
        """Return the summary and the protocol of the inspection as values for JSON; non-finite numbers become None."""
        inspection = self.inspection
        return {
            "format": FORMAT,
            "model": inspection.source,
            "topology": inspection.topology,
            "scorer": inspection.scorer,
            "budget": inspection.budget,
            "amount": inspection.amount,
            "min_keep": inspection.budgets.local.min_keep,
            "multiple_of": inspection.budgets.local.multiple_of,
            "normalize": inspection.budgets.global_.normalize,
            "refusals": dict(inspection.budgets.refusals),
            "calibration": dict(inspection.calibration),
            "environment": environment(),
            "seconds": dict(inspection.seconds),
            "graphs": [
                {"layers": len(entry.graph.layer_sizes), "nodes": entry.graph.n_nodes, "edges": entry.graph.n_edges}
                for entry in inspection.graphs
            ],
            "layers": {
                name: {**layer.to_dict(), "kept": {budget: counts[name] for budget, counts in self.kept.items()}}
                for name, layer in self.layers.items()
            },
            "agreement": {
                name: {key.rstrip("_"): value if np.isfinite(value) else None for key, value in asdict(entry).items()}
                for name, entry in self.agreement.items()
            },
        }


def summarise_inspection(inspection: Inspection, names: Sequence[str] | None = None) -> InspectionSummary:
    """Summarise an inspection.

    Parameters
    ----------
    inspection : Inspection
    names : sequence of str, optional
        Names of the prunable layers to summarise; all by default. The agreement always covers all layers.

    Raises
    ------
    OptionError
        There is no such layer.
    GraphError
        The weights hold NaN or Inf.

    Notes
    -----
    Cost: that of :func:`graphs.analysis.layer_summary.summarise_layers` for every graph that holds a chosen layer.

    Examples
    --------
    >>> import torch
    >>> from llmrank.inspection.inspection import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> summary = summarise_inspection(inspect_model(pipeline, {"activation": ActivationScorer()}, "activation"))
    >>> summary.layers["0"].n_nodes, summary.kept["local"], list(summary.agreement)
    (6, {'0': 4}, ['chained'])
    """
    chosen = list(inspection.layer_positions()) if names is None else list(names)
    for name in chosen:
        inspection.layer_position(name)
    by_name: dict[str, LayerSummary] = {}
    for entry, rank in zip(inspection.graphs, inspection.main.ranks, strict=True):
        if not any(place.layer.name in chosen for place in entry.prunable):
            continue
        summaries = summarise_layers(entry.graph, rank)
        by_name.update({place.layer.name: summaries[place.position] for place in entry.prunable})
    others = {name: result for name, result in inspection.results.items() if name != inspection.scorer}
    return InspectionSummary(
        layers={name: by_name[name] for name in chosen},
        kept={
            budget: {name: int(masks[name].sum()) for name in chosen} for budget, masks in inspection.main.masks.items()
        },
        agreement={
            name: _agreement(inspection.main, result)
            for name, result in {**others, inspection.other_topology: inspection.in_other_topology}.items()
        },
        inspection=inspection,
    )


def _agreement(main: ScorerResult, other: ScorerResult) -> Agreement:
    correlations = [rank_correlation(scores, other.importance[name]) for name, scores in main.importance.items()]
    defined = [value for value in correlations if np.isfinite(value)]
    overlaps = {"local": float("nan"), "global": float("nan")}
    for budget, masks in main.masks.items():
        keep = np.concatenate([masks[name].numpy() for name in main.importance])
        other_keep = np.concatenate([other.masks[budget][name].numpy() for name in main.importance])
        overlaps[budget] = share_also_kept(keep, other_keep)
    return Agreement(mean(defined) if defined else float("nan"), overlaps["local"], overlaps["global"])


@dataclass(frozen=True)
class Verdict:
    """Whether a budget keeps a neuron, and by what margin.

    Attributes
    ----------
    kept : bool
    margin : float
        The neuron's :func:`margin`.
    """

    kept: bool
    margin: float


@dataclass(frozen=True)
class NeuronSummary:
    """A summary of one neuron.

    Attributes
    ----------
    layer : str
        Name of its prunable layer.
    node : NodeSummary
        Score, percentile, strengths and strongest edges.
    verdicts : mapping from str to Verdict
        Whether each budget keeps the neuron. A budget that refuses the amount has no entry.
    paths : tuple of Path
        The strongest paths through the neuron, from the layer before to the layer after, if there is one.
    before, after : str, and str or None
        Names of the layers before and after; `after` is None if the neuron's layer is the last of its graph.
    """

    layer: str
    node: NodeSummary
    verdicts: dict[str, Verdict]
    paths: tuple[Path, ...]
    before: str
    after: str | None


def summarise_neuron(inspection: Inspection, layer: str, neuron: int, top: int = 5) -> NeuronSummary:
    """Summarise one neuron.

    Parameters
    ----------
    inspection : Inspection
    layer : str
        Name of a prunable layer.
    neuron : int
        Index in the layer.
    top : int
        Largest number of edges on each side, and of paths.

    Raises
    ------
    OptionError
        There is no such layer or neuron.
    GraphError
        `top` is below 1, or the weights hold NaN or Inf.

    Notes
    -----
    Cost: a few reads of the blocks next to the layer.

    Examples
    --------
    >>> import torch
    >>> from llmrank.inspection.inspection import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> inspection = inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")
    >>> summary = summarise_neuron(inspection, "0", int(inspection.main.importance["0"].argmax()))
    >>> summary.node.position, summary.verdicts["local"].kept, len(summary.node.in_edges)
    (0, True, 4)
    """
    graph_index, node_layer = inspection.layer_position(layer)
    scores = inspection.main.importance[layer]
    check_neuron(layer, neuron, len(scores))
    graph, rank = inspection.graphs[graph_index].graph, inspection.main.ranks[graph_index]
    keeps = {budget: masks[layer].numpy() for budget, masks in inspection.main.masks.items()}
    is_last = node_layer == len(graph.layer_sizes) - 1
    return NeuronSummary(
        layer,
        summarise_node(graph, rank, node_layer, neuron, top=top),
        {budget: Verdict(bool(keep[neuron]), margin(scores, keep, neuron)) for budget, keep in keeps.items()},
        strongest_paths(graph, rank, node_layer, neuron, k=top, before=1, after=0 if is_last else 1),
        graph.names[node_layer - 1],
        None if is_last else graph.names[node_layer + 1],
    )


def margin(scores: npt.NDArray[np.floating[Any]], keep: npt.NDArray[np.bool_], neuron: int) -> float:
    """Divide a neuron's score by the nearest score on the other side of the cut of its layer.

    Parameters
    ----------
    scores : (n,) array
        Scores of the layer.
    keep : (n,) bool array
        Keep mask of the layer, True = kept.
    neuron : int

    Returns
    -------
    float
        A kept neuron's score divided by the highest removed score, or a removed neuron's score divided by the lowest kept
        score. Inf if only the divisor is zero; NaN if both are zero, or if there is no neuron on the other side.

    Examples
    --------
    >>> scores, keep = np.array([0.125, 0.25, 0.625]), np.array([False, True, True])
    >>> margin(scores, keep, 2), margin(scores, keep, 0)
    (5.0, 0.5)
    """
    other_side = scores[keep != keep[neuron]]
    if not len(other_side):
        return float("nan")
    score, divisor = float(scores[neuron]), float(other_side.max() if keep[neuron] else other_side.min())
    if divisor == 0:
        return float("inf") if score > 0 else float("nan")
    return score / divisor


def parse_neuron(layers: Mapping[str, int], text: str) -> tuple[str, int]:
    """Parse a neuron as people write it: ``model.layers.3.mlp:17``, or ``3:17`` for the fourth prunable layer.

    If a layer has the name ``3``, that layer is meant.

    Parameters
    ----------
    layers : mapping from str to int
        Sizes of the prunable layers by name, in the order of the model.
    text : str

    Returns
    -------
    layer : str
        Name of the layer.
    neuron : int
        Index in the layer.

    Raises
    ------
    OptionError
        The text has another form, or there is no such layer or neuron.

    Examples
    --------
    >>> parse_neuron({"model.layers.0.mlp": 40, "model.layers.1.mlp": 40}, "1:17")
    ('model.layers.1.mlp', 17)
    """
    names = list(layers)
    layer, neuron = split_neuron(text)
    if layer not in layers:
        if not (layer.isdecimal() and int(layer) < len(names)):
            raise OptionError(
                f"there is no prunable layer {layer!r}; expected 0 to {len(names) - 1}, or one of {', '.join(names)}"
            )
        layer = names[int(layer)]
    check_neuron(layer, neuron, layers[layer])
    return layer, neuron


def split_neuron(text: str) -> tuple[str, int]:
    """Split ``LAYER:NEURON``; this needs no model.

    Raises
    ------
    OptionError
        The text has another form.

    Examples
    --------
    >>> split_neuron("model.layers.3.mlp:17")
    ('model.layers.3.mlp', 17)
    """
    layer, colon, neuron = (part.strip() for part in text.rpartition(":"))
    if not colon or not layer or not re.fullmatch("[0-9]{1,18}", neuron):
        raise OptionError(f"expected LAYER:NEURON, such as 3:17 or model.layers.3.mlp:17, got {text!r}")
    return layer, int(neuron)


def check_neuron(layer: str, neuron: int, size: int) -> None:
    """Raise an OptionError if a layer of this size does not have the neuron."""
    if not 0 <= neuron < size:
        raise OptionError(f"{layer} has neurons 0 to {size - 1}, got {neuron}")
