"""What an inspection says, in plain values: layer by layer, scorer against scorer, neuron by neuron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np

from graphs.concentration import kept_overlap, rank_correlation
from graphs.node_facts import NodeFacts, node_facts
from graphs.paths import Path, strongest_paths
from graphs.summary import LayerSummary, summarise
from llmrank.errors import OptionError
from llmrank.inspection import Inspection, Scored
from llmrank.report import environment

__all__ = ["Agreement", "Findings", "NeuronFacts", "Verdict", "find", "neuron_facts", "parse_neuron"]

FORMAT = 1


@dataclass(frozen=True)
class Agreement:
    """How far another scorer (or the other topology) agrees with the one asked for; means over the prunable layers.

    Attributes
    ----------
    correlation : float
        Spearman's, -1..1; layers where it is not defined (constant scores) are left out, NaN where all are.
    local, global_ : float
        Share of the neurons kept by the one that the other keeps too, under either budget, over all layers together.
    """

    correlation: float
    local: float
    global_: float


@dataclass(frozen=True)
class Findings:
    """An inspection in numbers.

    Attributes
    ----------
    layers : mapping from str to LayerSummary
        Of the prunable layers shown, by name.
    kept : mapping from str to mapping from str to int
        Neurons that each budget keeps of those layers, by budget and layer.
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


def find(inspection: Inspection, names: Sequence[str] | None = None) -> Findings:
    """Summarise an inspection.

    Parameters
    ----------
    inspection : Inspection
    names : sequence of str, optional
        Of the prunable layers to list; all by default. Agreements are over all layers in any case.

    Notes
    -----
    Cost: two passes over the weights.
    """
    chosen = list(inspection.places()) if names is None else list(names)
    rows: dict[str, LayerSummary] = {}
    for entry, rank in zip(inspection.graphs, inspection.main.ranks, strict=True):
        if not any(layer.name in chosen for layer in entry.prunable.values()):
            continue
        summaries = summarise(entry.graph, rank)
        rows.update({layer.name: summaries[place] for place, layer in entry.prunable.items()})
    others = {name: scored for name, scored in inspection.scored.items() if name != inspection.scorer}
    topology = "isolated" if inspection.topology == "chained" else "chained"
    return Findings(
        layers={name: rows[name] for name in chosen},
        kept={
            budget: {name: int(masks[name].sum()) for name in chosen} for budget, masks in inspection.main.masks.items()
        },
        agreement={
            name: _agreement(inspection.main, scored)
            for name, scored in {**others, topology: inspection.elsewhere}.items()
        },
        inspection=inspection,
    )


def _agreement(main: Scored, other: Scored) -> Agreement:
    correlations = [rank_correlation(scores, other.importance[name]) for name, scores in main.importance.items()]
    defined = [value for value in correlations if np.isfinite(value)]
    overlaps = {}
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
        Its score over the score at the cut of its layer: the highest that is removed (for a kept neuron), the
        lowest that is kept (for a removed one); inf or NaN where there is no such neuron or its score is zero.
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
    facts : NodeFacts
        Score, percentile, strengths, strongest edges.
    verdicts : mapping from str to Verdict
        By budget.
    paths : tuple of Path
        The likeliest ways through it, from the layer before to the layer after.
    """

    layer: str
    facts: NodeFacts
    verdicts: dict[str, Verdict]
    paths: tuple[Path, ...]


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

    Raises
    ------
    OptionError
        No such layer or neuron.
    """
    places = inspection.places()
    if layer not in places:
        raise OptionError(f"no prunable layer {layer!r}; expected one of {', '.join(places)}")
    scores = inspection.main.importance[layer]
    if not 0 <= neuron < len(scores):
        raise OptionError(f"{layer} has neurons 0 to {len(scores) - 1}, got {neuron}")
    position, node_layer = places[layer]
    graph, rank = inspection.graphs[position].graph, inspection.main.ranks[position]
    verdicts = {}
    for budget, masks in inspection.main.masks.items():
        keep = masks[layer].numpy()
        others = scores[~keep] if keep[neuron] else scores[keep]
        cut = (others.max() if keep[neuron] else others.min()) if len(others) else np.nan
        ratio = float(scores[neuron] / cut) if cut > 0 else (np.inf if scores[neuron] > 0 and cut == 0 else np.nan)
        verdicts[budget] = Verdict(bool(keep[neuron]), float(ratio))
    after = min(1, len(graph.layers) - 1 - node_layer)
    return NeuronFacts(
        layer,
        node_facts(graph, rank, node_layer, neuron, top=top),
        verdicts,
        strongest_paths(graph, rank, node_layer, neuron, k=top, before=1, after=after),
    )


def parse_neuron(inspection: Inspection, text: str) -> tuple[str, int]:
    """A neuron as people write it: ``3:17`` (the fourth prunable layer) or ``model.layers.3.mlp:17``.

    Raises
    ------
    OptionError
        Something else, or no such layer.
    """
    names = list(inspection.places())
    layer, colon, neuron = text.rpartition(":")
    if not colon or not neuron.strip().isdigit():
        raise OptionError(f"expected LAYER:NEURON, such as 3:17 or {names[0]}:17, got {text!r}")
    if layer in names:
        return layer, int(neuron)
    if layer.isdigit() and int(layer) < len(names):
        return names[int(layer)], int(neuron)
    raise OptionError(f"no prunable layer {layer!r}; expected 0 to {len(names) - 1}, or one of {', '.join(names)}")
