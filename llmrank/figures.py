"""The figures of an inspection, as files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs import draw
from graphs.blocks import FloatArray
from graphs.concentration import percentiles
from graphs.subgraphs import top_subgraph
from llmrank.inspection import Inspection, Scored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["agreement", "concentration", "layer_view", "what_went_where", "write_figures"]

DPI = 150
# Of a model with many layers these are drawn one by one where nothing else is asked for.
DRAWN = 3


def write_figures(
    inspection: Inspection, directory: Path, formats: Sequence[str], top: int = 20, names: Sequence[str] | None = None
) -> list[Path]:
    """Draw an inspection: what goes, how concentrated scores are, who agrees, and single layers.

    Parameters
    ----------
    inspection : Inspection
    directory : Path
        Is there.
    formats : sequence of {"png", "svg"}
    top : int
        Neurons a layer in drawings of subgraphs.
    names : sequence of str, optional
        Prunable layers to draw one by one; the first, the middle and the last by default.

    Returns
    -------
    list of Path
        ``what_went_where``, ``concentration``, ``agreement`` (with something to compare), and ``layer-K``.
    """
    everything = list(inspection.places())
    chosen = _spread(everything) if names is None else names
    pictures = {
        "what_went_where": what_went_where(
            inspection.main.importance, inspection.main.masks[inspection.pruner], inspection.pruner
        ),
        "concentration": concentration(inspection),
        "agreement": agreement(inspection),
    }
    written = []
    for stem, figure in pictures.items():
        written += _save(figure, directory, stem, formats)
    for name in chosen:
        written += _save(layer_view(inspection, name, top), directory, f"layer-{everything.index(name)}", formats)
    return written


def what_went_where(importance: Mapping[str, Any], masks: Mapping[str, Any], budget: str = "") -> Figure:
    """Scores of every layer with the cut, and the shares kept and removed.

    Parameters
    ----------
    importance : mapping from str to (n,) array
        Scores of the prunable layers.
    masks : mapping from str to (n,) bool tensor
        True = kept.
    budget : str
        Named in the title.
    """
    figure = _figure(10, 8)
    upper, lower = figure.subplots(2, 1)
    scores = list(importance.values())
    keep = [masks[name].numpy() for name in importance]
    draw.score_heatmap(scores, keep, upper)
    draw.kept_by_layer(scores, keep, lower)
    how = f" ({budget})" if budget else ""
    upper.set_title(f"{len(scores)} layers of hidden neurons: score, and what goes{how}: right of the white line")
    for axes in (upper, lower):
        axes.set_xlabel(axes.get_xlabel().replace("node", "neuron"))
    return figure


def concentration(inspection: Inspection) -> Figure:
    """How scores are distributed within the layers: the tail, and Lorenz curves."""
    figure = _figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    names, scores = list(inspection.main.importance), list(inspection.main.importance.values())
    draw.score_distribution(scores, names, ax=left)
    draw.lorenz_curves(scores, names, ax=right)
    figure.suptitle(f"{inspection.source}: scores by {inspection.scorer}, {inspection.topology}")
    return figure


def agreement(inspection: Inspection) -> Figure:
    """The scorer asked for against another one, and against itself in the other topology; all layers together.

    The other one is the activation (a node's own part of the rank) where it was compared, else the first compared.
    """
    others = [name for name in inspection.scored if name != inspection.scorer]
    rivals = [name for name in ("activation", *others) if name in others][:1]
    topology = "isolated" if inspection.topology == "chained" else "chained"
    pairs = [(name, inspection.scored[name]) for name in rivals]
    pairs.append((f"{inspection.scorer}, {topology}", inspection.elsewhere))
    figure = _figure(5.5 * len(pairs), 5)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    main = inspection.main
    for axes, (name, other) in zip(panels, pairs, strict=True):
        draw.compare_rankings(
            _percentiles(main),
            _percentiles(other, main.importance),
            (f"{inspection.scorer}, {inspection.topology}", name),
            keep=(
                np.concatenate([main.masks[inspection.pruner][layer].numpy() for layer in main.importance]),
                np.concatenate([other.masks[inspection.pruner][layer].numpy() for layer in main.importance]),
            ),
            ax=axes,
        )
        axes.set_title(_wrapped(axes.get_title()), fontsize=9)
        axes.set_xlabel(f"percentile in its layer by {inspection.scorer}, {inspection.topology}")
        axes.set_ylabel(f"percentile in its layer by {name}")
    return figure


def layer_view(inspection: Inspection, name: str, top: int = 20) -> Figure:
    """One prunable layer: its highest-ranked neighbourhood, the edges into it by score, and the flow through it."""
    position, layer = inspection.places()[name]
    graph, rank = inspection.graphs[position].graph, inspection.main.ranks[position]
    around = range(layer - 1, min(layer + 1, len(graph.layers) - 1) + 1)
    figure = _figure(13, 9)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    above, below = halves
    draw.node_link(top_subgraph(graph, rank, nodes=top, edges=6 * top, layers=around), ax=above.subplots())
    left, right = below.subplots(1, 2)
    draw.adjacency_heatmap(graph, layer, rank, ax=left)
    draw.layer_flow(graph, rank, layers=around, ax=right)
    figure.suptitle(f"{inspection.source}: {name}")
    return figure


def _percentiles(scored: Scored, order: Iterable[str] | None = None) -> FloatArray:
    """Of every neuron within its layer, all layers one after the other: scores of different layers do not compare."""
    names = scored.importance if order is None else order
    return np.concatenate([percentiles(scored.importance[name]) for name in names])


def _wrapped(text: str) -> str:
    held_together = text.replace("nodes", "neurons").replace(" %", "\N{NO-BREAK SPACE}%")
    return "\n".join(textwrap.wrap(held_together, 60))


def _spread(names: Sequence[str]) -> list[str]:
    """The first, the middle and the last."""
    places = {round(k * (len(names) - 1) / (DRAWN - 1)) for k in range(DRAWN)}
    return [names[place] for place in sorted(places)]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    # Not pyplot: no global state, and no window.
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, directory: Path, stem: str, formats: Sequence[str]) -> list[Path]:
    import matplotlib

    paths = []
    for name in formats:
        path = directory / f"{stem}.{name}"
        # The same figure gives the same bytes: without the date, and with identifiers that do not change.
        with matplotlib.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none"}):
            figure.savefig(path, dpi=DPI, metadata={"Date": None} if name == "svg" else None)
        paths.append(path)
    return paths
