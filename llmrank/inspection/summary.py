"""What an inspection says, in plain values: layer by layer, scorer against scorer, neuron by neuron."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

from graphs.analysis.layer_summary import LayerSummary, summarise_layers
from graphs.analysis.measures import kept_overlap, rank_correlation
from graphs.analysis.node_summary import NodeSummary, summarise_node
from graphs.analysis.paths import Path, strongest_paths
from llmrank.errors import OptionError
from llmrank.inspection.inspection import Inspection, Scored
from llmrank.pipeline.report import environment

__all__ = [
    "Agreement",
    "InspectionSummary",
    "NeuronFacts",
    "Verdict",
    "margin",
    "neuron_facts",
    "parse_neuron",
    "summarise_inspection",
]

FORMAT = 1


@dataclass(frozen=True)
class Agreement:
    """How far another scorer (or the other topology) agrees with the one asked for; means over the prunable layers.

    Attributes
    ----------
    correlation : float
        Spearman's, -1..1; layers where it is not defined (constant scores) are left out, NaN where all are.
    local, global_ : float
        Share of the neurons kept by the one that the other keeps too, under either budget, over all layers together; NaN
        where the budget refuses the amount.
    """

    correlation: float
    local: float
    global_: float


@dataclass(frozen=True)
class InspectionSummary:
    """An inspection in numbers.

    Attributes
    ----------
    layers : mapping from str to LayerSummary
        Of the prunable layers shown, by name.
    kept : mapping from str to mapping from str to int
        Neurons that each budget keeps of those layers, by budget and layer; without budgets that refuse the amount.
    agreement : mapping from str to Agreement
        Of the other scorers, and of the other topology (by its name).
    inspection : Inspection
    """

    layers: dict[str, LayerSummary]
    kept: dict[str, dict[str, int]]
    agreement: dict[str, Agreement]
    inspection: Inspection

    def to_dict(self) -> dict[str, Any]:
        """Everything but the scores, for JSON: finite numbers, None where there is none."""
        seen = self.inspection
        return {
            "format": FORMAT,
            "model": seen.source,
            "topology": seen.topology,
            "scorer": seen.scorer,
            "pruner": seen.pruner,
            "amount": seen.amount,
            "min_keep": seen.budgets.local.min_keep,
            "multiple_of": seen.budgets.local.multiple_of,
            "normalize": seen.budgets.global_.normalize,
            "refusals": dict(seen.budgets.refusals),
            "calibration": dict(seen.calibration),
            "environment": environment(),
            "seconds": dict(seen.seconds),
            "graphs": [
                {"layers": len(e.graph.layers), "nodes": e.graph.nodes, "edges": e.graph.edges} for e in seen.graphs
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
        Of the prunable layers to list; all by default. Agreements are over all layers in any case.

    Returns
    -------
    InspectionSummary

    Raises
    ------
    OptionError
        No such layer.
    GraphError
        NaN or Inf in the weights.

    Notes
    -----
    Cost: two passes over the weights.

    Examples
    --------
    >>> import torch
    >>> from llmrank.inspection.inspection import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> findings = summarise_inspection(inspect_model(pipeline, {"activation": ActivationScorer()}, "activation"))
    >>> findings.layers["0"].nodes, findings.kept["local"], list(findings.agreement)
    (6, {'0': 4}, ['chained'])
    """
    chosen = list(inspection.places()) if names is None else list(names)
    for name in chosen:
        inspection.place(name)
    rows: dict[str, LayerSummary] = {}
    for entry, rank in zip(inspection.graphs, inspection.main.ranks, strict=True):
        if not any(layer.name in chosen for layer in entry.prunable.values()):
            continue
        summaries = summarise_layers(entry.graph, rank)
        rows.update({layer.name: summaries[place] for place, layer in entry.prunable.items()})
    others = {name: scored for name, scored in inspection.scored.items() if name != inspection.scorer}
    return InspectionSummary(
        layers={name: rows[name] for name in chosen},
        kept={
            budget: {name: int(masks[name].sum()) for name in chosen} for budget, masks in inspection.main.masks.items()
        },
        agreement={
            name: _agreement(inspection.main, scored)
            for name, scored in {**others, inspection.other_topology: inspection.elsewhere}.items()
        },
        inspection=inspection,
    )


def _agreement(main: Scored, other: Scored) -> Agreement:
    correlations = [rank_correlation(scores, other.importance[name]) for name, scores in main.importance.items()]
    defined = [value for value in correlations if np.isfinite(value)]
    overlaps = {"local": float("nan"), "global": float("nan")}
    for budget, masks in main.masks.items():
        ours = np.concatenate([masks[name].numpy() for name in main.importance])
        theirs = np.concatenate([other.masks[budget][name].numpy() for name in main.importance])
        overlaps[budget] = kept_overlap(ours, theirs)
    return Agreement(mean(defined) if defined else float("nan"), overlaps["local"], overlaps["global"])


@dataclass(frozen=True)
class Verdict:
    """Whether a budget keeps a neuron, and by what margin.

    Attributes
    ----------
    kept : bool
    ratio : float
        See :func:`margin`.
    """

    kept: bool
    ratio: float


@dataclass(frozen=True)
class NeuronFacts:
    """All there is to know of one neuron.

    Attributes
    ----------
    layer : str
        Name of its prunable layer.
    facts : NodeSummary
        Score, percentile, strengths, strongest edges.
    verdicts : mapping from str to Verdict
        By budget; without budgets that refuse the amount.
    paths : tuple of Path
        The likeliest ways through it, from the layer before to the layer after.
    before, after : str or None
        Names of these layers; None where there is none after.
    """

    layer: str
    facts: NodeSummary
    verdicts: dict[str, Verdict]
    paths: tuple[Path, ...]
    before: str
    after: str | None


def neuron_facts(inspection: Inspection, layer: str, neuron: int, top: int = 5) -> NeuronFacts:
    """The facts of one neuron.

    Parameters
    ----------
    inspection : Inspection
    layer : str
        Name of a prunable layer.
    neuron : int
    top : int
        Edges each way, and paths.

    Returns
    -------
    NeuronFacts

    Raises
    ------
    OptionError
        No such layer or neuron.

    Notes
    -----
    Cost: a few reads of the blocks beside the layer.

    Examples
    --------
    >>> import torch
    >>> from llmrank.inspection.inspection import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> inspection = inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")
    >>> facts = neuron_facts(inspection, "0", int(inspection.main.importance["0"].argmax()))
    >>> facts.facts.position, facts.verdicts["local"].kept, len(facts.facts.in_edges)
    (0, True, 4)
    """
    position, node_layer = inspection.place(layer)
    scores = inspection.main.importance[layer]
    check_neuron(layer, neuron, len(scores))
    graph, rank = inspection.graphs[position].graph, inspection.main.ranks[position]
    verdicts = {}
    for budget, masks in inspection.main.masks.items():
        keep = masks[layer].numpy()
        verdicts[budget] = Verdict(bool(keep[neuron]), margin(scores, keep, neuron))
    last = node_layer == len(graph.layers) - 1
    return NeuronFacts(
        layer,
        summarise_node(graph, rank, node_layer, neuron, top=top),
        verdicts,
        strongest_paths(graph, rank, node_layer, neuron, k=top, before=1, after=0 if last else 1),
        graph.names[node_layer - 1],
        None if last else graph.names[node_layer + 1],
    )


def margin(scores: npt.NDArray[np.floating[Any]], keep: npt.NDArray[np.bool_], neuron: int) -> float:
    """A neuron's score over the score at the cut of its layer.

    Parameters
    ----------
    scores : (n,) array
        Of the layer.
    keep : (n,) bool array
        True = kept.
    neuron : int

    Returns
    -------
    float
        For a kept neuron over the highest score that is removed, for a removed one over the lowest that is kept; inf
        where only the divisor is zero, NaN where both are or nothing lies beyond the cut.

    Examples
    --------
    >>> scores, keep = np.array([0.125, 0.25, 0.625]), np.array([False, True, True])
    >>> margin(scores, keep, 2), margin(scores, keep, 0)
    (5.0, 0.5)
    """
    beyond = scores[keep != keep[neuron]]
    if not len(beyond):
        return float("nan")
    score, cut = float(scores[neuron]), float(beyond.max() if keep[neuron] else beyond.min())
    if cut == 0:
        return float("inf") if score > 0 else float("nan")
    return score / cut


def parse_neuron(layers: Mapping[str, int], text: str) -> tuple[str, int]:
    """A neuron as people write it: ``3:17`` (the fourth prunable layer) or ``model.layers.3.mlp:17``.

    Parameters
    ----------
    layers : mapping from str to int
        Sizes of the prunable layers by name, in the order of the model.
    text : str

    Returns
    -------
    layer : str
    neuron : int

    Raises
    ------
    OptionError
        Something else, or no such layer or neuron.

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
                f"no prunable layer {layer!r}; expected 0 to {len(names) - 1}, or one of {', '.join(names)}"
            )
        layer = names[int(layer)]
    check_neuron(layer, neuron, layers[layer])
    return layer, neuron


def split_neuron(text: str) -> tuple[str, int]:
    """``LAYER:NEURON`` in two, whatever the model: a slip is found before one is loaded.

    Raises
    ------
    OptionError
        Something else.

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
    """Raise an OptionError unless the layer has this neuron."""
    if not 0 <= neuron < size:
        raise OptionError(f"{layer} has neurons 0 to {size - 1}, got {neuron}")
