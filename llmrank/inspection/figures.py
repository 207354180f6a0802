"""The figures of an inspection, as files."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs import draw
from graphs.analysis.measures import percentiles
from graphs.linalg.blocks import FloatArray
from graphs.reduction.subgraphs import top_subgraph
from llmrank.errors import OptionError
from llmrank.inspection.inspection import Inspection, Scored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["agreement", "concentration", "layer_view", "what_went_where", "write_figures"]

DPI = 150
FORMATS = ("png", "svg")
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
        Exists.
    formats : sequence of {"png", "svg"}
    top : int
        Neurons a layer in drawings of subgraphs.
    names : sequence of str, optional
        Prunable layers to draw one by one; the first, the middle and the last by default.

    Returns
    -------
    list of Path
        ``what_went_where``, ``concentration``, ``agreement`` and, K counting the prunable layers from 0, ``layer-K``; each
        in every format. The same inspection gives the same bytes.

    Raises
    ------
    OptionError
        No such layer, or a format that figures do not have.
    OSError
        The directory is not there, or the disk is full.

    Notes
    -----
    Cost: some seconds a figure of a layer, and two reads of the blocks beside it.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from llmrank.inspection.inspection import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> inspection = inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     [path.name for path in write_figures(inspection, Path(directory), ["png"])]
    ['what_went_where.png', 'concentration.png', 'agreement.png', 'layer-0.png']
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise OptionError(f"figures are written as {', '.join(FORMATS)}, got {', '.join(unknown)}")
    for name in names or ():
        inspection.place(name)
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

    Returns
    -------
    matplotlib Figure
        Two axes: a heat map of scores with the cut, and bars.

    Raises
    ------
    GraphError
        Nothing to draw, or masks of other sizes than the scores.

    Examples
    --------
    >>> import torch
    >>> figure = what_went_where({"a": [0.1, 0.7, 0.2]}, {"a": torch.tensor([False, True, True])}, "local")
    >>> figure.axes[0].get_title()
    '1 layer of hidden neurons: score, and what goes (local): right of the white line'
    """
    figure = _figure(10, 8)
    upper, lower = figure.subplots(2, 1)
    scores = list(importance.values())
    keep = [masks[name].numpy() for name in importance]
    draw.score_heatmap(scores, keep, upper)
    draw.kept_by_layer(scores, keep, lower)
    how = f" ({budget})" if budget else ""
    layers = "1 layer" if len(scores) == 1 else f"{len(scores)} layers"
    upper.set_title(f"{layers} of hidden neurons: score, and what goes{how}: right of the white line")
    return _of_neurons(figure)


def concentration(inspection: Inspection) -> Figure:
    """How scores are distributed within the layers: the tail, and Lorenz curves.

    Parameters
    ----------
    inspection : Inspection

    Returns
    -------
    matplotlib Figure
        Two axes.
    """
    figure = _figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    names, scores = list(inspection.main.importance), list(inspection.main.importance.values())
    draw.score_distribution(scores, names, ax=left)
    draw.lorenz_curves(scores, names, ax=right)
    figure.suptitle(f"{inspection.source}: scores by {inspection.scorer}, {inspection.topology}")
    return _of_neurons(figure)


def agreement(inspection: Inspection) -> Figure:
    """The scorer asked for against another one, and against itself in the other topology; all layers together.

    The other one is the activation (a node's own part of the rank) where it was compared, else the first compared.

    Parameters
    ----------
    inspection : Inspection

    Returns
    -------
    matplotlib Figure
        An axes a comparison: percentiles of all neurons within their layers, and the share that both keep.
    """
    others = [name for name in inspection.scored if name != inspection.scorer]
    rivals = [name for name in ("activation", *others) if name in others][:1]
    pairs = [(name, inspection.scored[name]) for name in rivals]
    pairs.append((f"{inspection.scorer}, {inspection.other_topology}", inspection.elsewhere))
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
    return _of_neurons(figure)


def layer_view(inspection: Inspection, name: str, top: int = 20) -> Figure:
    """One prunable layer: its highest-ranked neighbourhood, the edges into it by score, and the flow through it.

    Parameters
    ----------
    inspection : Inspection
    name : str
        Of a prunable layer.
    top : int
        Neurons a layer in the drawing of the neighbourhood.

    Returns
    -------
    matplotlib Figure
        Two subfigures: the node-link drawing, and below it edges and flow.

    Raises
    ------
    OptionError
        No such layer.
    GraphError
        `top` below 1, or more nodes than can be drawn.

    Notes
    -----
    Cost: two reads of the blocks beside the layer.
    """
    position, layer = inspection.place(name)
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


def _of_neurons(figure: Figure) -> Figure:
    """The figure in the words of models: where all nodes are neurons, they are called so."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        words = re.sub(r"\bnode(s?)\b", r"neuron\1", text.get_text())
        if words != text.get_text():
            text.set_text(words)
    return figure


def _wrapped(text: str) -> str:
    held_together = text.replace(" %", "\N{NO-BREAK SPACE}%")
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
