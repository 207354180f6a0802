"""Summaries of an inspection in plain values: of its layers, of the agreement of its scorers, and of single neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from graphs.analysis.layer_summary import LayerSummary, shares_through_graph, summarise_layers
from graphs.analysis.measures import rank_correlation, share_also_kept
from graphs.analysis.node_summary import NodeSummary, summarise_node
from graphs.analysis.paths import Path, strongest_paths
from llmrank.inspection.inspect_model import Inspection, ScorerResult
from llmrank.inspection.layers import InspectedLayer, check_neuron
from llmrank.inspection.mixtures import ExpertSummary, summarise_experts
from llmrank.pipeline.descriptions import environment

__all__ = [
    "Agreement",
    "InspectionSummary",
    "NeuronSummary",
    "Verdict",
    "margin",
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
        Mean over the layers of Spearman's correlation of the neurons' scores, in -1..1; if only experts or heads are removed, of
        the scores of experts or groups of heads. Layers with constant scores are left out; NaN if no layer is left.
    local, global_ : float
        Of the neurons that the main scorer keeps under this budget, the share that the other scorer keeps too. NaN if the budget
        refuses the amount.
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
        Summaries of the chosen layers, by name; a mixture of experts is one layer.
    kept : mapping from str to mapping from str to int
        Number of neurons that the main scorer keeps, by budget and layer. A budget that refuses the amount has no entry.
    experts : mapping from str to tuple of ExpertSummary
        Summaries of the experts of those chosen layers that are mixtures.
    agreement : mapping from str to Agreement
        Agreement of the main scorer with every other scorer, by its name, and with itself in the other topology, by the name
        of that topology.
    inspection : Inspection
    """

    layers: dict[str, LayerSummary]
    kept: dict[str, dict[str, int]]
    experts: dict[str, tuple[ExpertSummary, ...]]
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
            "targets": list(inspection.targets),
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
                name: {
                    **layer.to_dict(),
                    "kept": {budget: counts[name] for budget, counts in self.kept.items()},
                    **({"experts": [each.to_dict() for each in self.experts[name]]} if name in self.experts else {}),
                }
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
        Names of the layers to summarise; all by default. The agreement always covers all layers.

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
    >>> from llmrank.inspection.inspect_model import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> summary = summarise_inspection(inspect_model(pipeline, {"activation": ActivationScorer()}, "activation"))
    >>> summary.layers["0"].n_nodes, summary.kept["local"], list(summary.agreement)
    (6, {'0': 4}, ['chained'])
    """
    chosen = list(inspection.layers) if names is None else list(names)
    layers = {name: inspection.layer(name) for name in chosen}
    by_graph = {
        index: _layer_summaries(inspection, index) for index in sorted({layer.graph for layer in layers.values()})
    }
    others = {name: result for name, result in inspection.results.items() if name != inspection.scorer}
    return InspectionSummary(
        layers={name: by_graph[layer.graph][layer.position] for name, layer in layers.items()},
        kept={
            budget: {name: int(keep[name].sum()) for name in chosen} for budget, keep in inspection.main.keep.items()
        },
        experts={name: summarise_experts(inspection, name) for name, layer in layers.items() if layer.is_mixture},
        agreement={
            name: _agreement(inspection, result)
            for name, result in {**others, inspection.other_topology: inspection.in_other_topology}.items()
        },
        inspection=inspection,
    )


def _layer_summaries(inspection: Inspection, index: int) -> tuple[LayerSummary, ...]:
    """Summarise the layers of a graph of the inspection. What came along edges is that of the graph which explains the scores."""
    graph, (ranked, rank) = inspection.graphs[index].graph, inspection.explained[index]
    summaries = summarise_layers(graph, inspection.main.ranks[index])
    if ranked is graph:
        return summaries
    shares = shares_through_graph(ranked, rank)
    return tuple(replace(each, through_graph=share) for each, share in zip(summaries, shares, strict=True))


def _agreement(inspection: Inspection, other: ScorerResult) -> Agreement:
    main = inspection.main
    correlations = [
        rank_correlation(_scores_to_compare(inspection, layer, main), _scores_to_compare(inspection, layer, other))
        for layer in inspection.layers.values()
        if layer.is_mixture or inspection.targets != ("experts",)
    ]
    defined = [value for value in correlations if np.isfinite(value)]
    overlaps = {"local": float("nan"), "global": float("nan")}
    for budget, by_layer in main.keep.items():
        keep = np.concatenate([by_layer[name] for name in main.importance])
        other_keep = np.concatenate([other.keep[budget][name] for name in main.importance])
        overlaps[budget] = share_also_kept(keep, other_keep)
    return Agreement(mean(defined) if defined else float("nan"), overlaps["local"], overlaps["global"])


def _scores_to_compare(
    inspection: Inspection, layer: InspectedLayer, result: ScorerResult
) -> npt.NDArray[np.floating[Any]]:
    """Return the scores of a layer's neurons or, if only experts or heads are removed, those of its routed experts or groups."""
    scores = result.importance[layer.name]
    return _sums(layer, scores) if inspection.targets in (("experts",), ("heads",)) else scores


def _sums(layer: InspectedLayer, scores: npt.NDArray[Any]) -> npt.NDArray[np.floating[Any]]:
    """Return the sums over the neurons of every group of heads of an attention, or of every routed expert of a mixture."""
    heads = layer.parts[0].layer.heads
    if heads is not None:
        return np.asarray(scores.reshape(heads.n_units, -1).sum(axis=1))
    return np.array([scores[part.nodes].sum() for part in layer.parts if part.layer.mixture is not None])


@dataclass(frozen=True)
class Verdict:
    """Whether a budget keeps a neuron, and by what margin.

    Attributes
    ----------
    kept : bool
    margin : float
        The :func:`margin` of the neuron among what it is compared with; NaN if it could not be removed.
    among : {"layer", "expert", "mixture", "attention"}
        What the neuron is compared with: "layer", the neurons of its layer; "expert", the neurons of its expert; "mixture": its
        expert is compared with the other experts of the mixture, because the budget removes whole experts; "attention": its group
        of heads is compared with the other groups of the attention.
    """

    kept: bool
    margin: float
    among: Literal["layer", "expert", "mixture", "attention"] = "layer"


@dataclass(frozen=True)
class NeuronSummary:
    """A summary of one neuron.

    Attributes
    ----------
    layer : str
        Name of its layer in the inspection.
    label : str
        What the neuron is called in the model: the name of its layer or, in a mixture, its index in its expert and the expert's
        name.
    node : NodeSummary
        Score, percentile, strengths and strongest edges.
    verdicts : mapping from str to Verdict
        Whether each budget keeps the neuron. A budget that refuses the amount has no entry.
    paths : tuple of Path
        The strongest paths through the neuron, from the layer before to the layer after, if there is one.
    before, after : str, and str or None
        Names of the layers before and after the neuron's layer. `after` is None if that layer is the last of its graph.
    """

    layer: str
    label: str
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
        Name of a layer of the inspection.
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
    >>> from llmrank.inspection.inspect_model import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> inspection = inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")
    >>> summary = summarise_neuron(inspection, "0", int(inspection.main.importance["0"].argmax()))
    >>> summary.node.position, summary.verdicts["local"].kept, len(summary.node.in_edges)
    (0, True, 4)
    """
    place = inspection.layer(layer)
    check_neuron(layer, neuron, place.size)
    graph, rank = inspection.explained[place.graph]
    node = summarise_node(graph, rank, place.position, neuron, top=top)
    if (own := inspection.graphs[place.graph].graph) is not graph:
        # The scores are explained by the edges along which they flow; the neuron's own facts stay those of the model.
        facts = summarise_node(own, rank, place.position, neuron, top=0)
        names = "activation", "in_strength", "out_strength", "in_degree", "out_degree"
        node = replace(node, **{name: getattr(facts, name) for name in names})
    is_last = place.position == len(graph.layer_sizes) - 1
    return NeuronSummary(
        layer,
        place.label(neuron),
        node,
        {budget: _verdict(inspection, place, neuron, budget) for budget in inspection.main.masks},
        strongest_paths(graph, rank, place.position, neuron, k=top, before=1, after=0 if is_last else 1),
        graph.names[place.position - 1],
        None if is_last else graph.names[place.position + 1],
    )


def _verdict(inspection: Inspection, layer: InspectedLayer, neuron: int, budget: str) -> Verdict:
    """Compare a neuron, its expert or its group of heads with the others of that kind; see :class:`Verdict`."""
    scores, keep = inspection.main.importance[layer.name], inspection.main.keep[budget][layer.name]
    part = layer.part_of(neuron)
    kept = bool(keep[neuron])
    if part.layer.heads is not None:
        group = neuron // (layer.size // part.layer.heads.n_units)
        return Verdict(kept, margin(_sums(layer, scores), _sums(layer, keep) > 0, group), "attention")
    if "experts" in inspection.targets and part.layer.mixture is not None:
        sums, any_kept = _sums(layer, scores), _sums(layer, keep) > 0
        expert = [each for each in layer.parts if each.layer.mixture is not None].index(part)
        if inspection.targets == ("experts",) or not any_kept[expert]:
            return Verdict(kept, margin(sums, any_kept, expert), "mixture")
    among: Literal["layer", "expert"] = "expert" if layer.is_mixture else "layer"
    return Verdict(kept, margin(scores[part.nodes], keep[part.nodes], neuron - part.start), among)


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
