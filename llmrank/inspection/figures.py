"""Figures of an inspection, drawn and written to files."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphs import draw
from graphs.analysis.measures import percentiles
from graphs.io.replacement import hidden_directory, remove_leftovers
from graphs.linalg.blocks import FloatArray
from graphs.reduction.subgraphs import top_subgraph
from llmrank.errors import OptionError
from llmrank.inspection.budgets import amount_label
from llmrank.inspection.inspect_model import Inspection, ScorerResult
from llmrank.inspection.mixtures import ExpertSummary, summarise_experts
from llmrank.surgery.atomic import NAME_INSIDE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "draw_agreement",
    "draw_concentration",
    "draw_experts",
    "draw_layer",
    "draw_removed_neurons",
    "new_figure",
    "save_figure",
    "write_figures",
]

DPI = 150
FORMATS = ("png", "svg")


def write_figures(
    inspection: Inspection, directory: Path, formats: Sequence[str], top: int = 20, names: Sequence[str] | None = None
) -> list[Path]:
    """Draw the figures of an inspection: removed neurons, concentration, agreement of scorers, experts, single layers.

    Parameters
    ----------
    inspection : Inspection
    directory : Path
        An existing directory.
    formats : sequence of {"png", "svg"}
    top : int
        Number of nodes of each layer in a subgraph: those of the highest scores.
    names : sequence of str, optional
        Layers of the inspection to draw a figure of; the first, the middle and the last by default.

    Returns
    -------
    list of Path
        Files named ``removed_neurons``, ``concentration``, ``agreement``, ``experts`` if the model has any, and ``layer-K`` for
        layer K, counted from 0; each in all formats. The same inspection gives the same bytes.

    Raises
    ------
    OptionError
        A name is not that of a layer, or a format is not one of those above.
    GraphError
        See :func:`draw_layer`.
    OSError
        The directory does not exist, or the disk is full.

    Notes
    -----
    Cost: a few reads of the blocks next to each drawn layer.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from llmrank.inspection.inspect_model import inspect_model
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> from llmrank.score import ActivationScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, calibration=torch.rand(8, 4))
    >>> inspection = inspect_model(pipeline, {"activation": ActivationScorer()}, "activation")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     [path.name for path in write_figures(inspection, Path(directory), ["png"])]
    ['removed_neurons.png', 'concentration.png', 'agreement.png', 'layer-0.png']
    """
    unknown = [extension for extension in formats if extension not in FORMATS]
    if unknown:
        raise OptionError(f"figures are written as {', '.join(FORMATS)}, got {', '.join(unknown)}")
    # A wrong name raises an error before anything is drawn.
    for name in names or ():
        inspection.layer(name)
    all_names = list(inspection.layers)
    first_middle_last = sorted({round(k * (len(all_names) - 1) / 2) for k in range(3)})
    chosen = [all_names[index] for index in first_middle_last] if names is None else names
    figures = {
        "removed_neurons": draw_removed_neurons(
            inspection.main.importance, inspection.main.keep[inspection.budget], inspection.budget
        ),
        "concentration": draw_concentration(inspection),
        "agreement": draw_agreement(inspection),
    }
    if any(layer.is_mixture for layer in inspection.layers.values()):
        figures["experts"] = draw_experts(inspection)
    paths = []
    for stem, figure in figures.items():
        paths += save_figure(figure, directory, stem, formats)
    for name in chosen:
        paths += save_figure(draw_layer(inspection, name, top), directory, f"layer-{all_names.index(name)}", formats)
    return paths


def draw_removed_neurons(importance: Mapping[str, Any], masks: Mapping[str, Any], budget: str = "") -> Figure:
    """Draw the scores of every layer, how many of its neurons are kept, and the shares of neurons kept and removed.

    Parameters
    ----------
    importance : mapping from str to (n,) array
        Scores of the prunable layers, by name.
    masks : mapping from str to (n,) bool array or tensor
        Keep masks, True = kept.
    budget : str
        Name of the budget, for the title.

    Returns
    -------
    matplotlib Figure
        A heat map of the sorted scores of each layer, with a line at the number of neurons kept. Below it are bars of the shares,
        and the share of the score that is removed. In a mixture of experts, the removed neurons need not have the lowest scores.

    Raises
    ------
    GraphError
        No layer, negative or non-finite scores, or masks whose sizes differ from those of the scores.

    Examples
    --------
    >>> import torch
    >>> figure = draw_removed_neurons({"a": [0.1, 0.7, 0.2]}, {"a": torch.tensor([False, True, True])}, "local")
    >>> figure.axes[0].get_title()
    '1 layer: scores of the hidden neurons; those right of the white line are removed (local)'
    """
    figure = new_figure(10, 8)
    upper, lower = figure.subplots(2, 1)
    scores = [np.asarray(values) for values in importance.values()]
    keep = [np.asarray(masks[name]) for name in importance]
    draw.score_heatmap(scores, keep, upper)
    draw.kept_by_layer(scores, keep, lower)
    in_brackets = f" ({budget})" if budget else ""
    n_layers = "1 layer" if len(scores) == 1 else f"{len(scores)} layers"
    lowest = all(
        mask.all() or not mask.any() or s[~mask].max() <= s[mask].min() for s, mask in zip(scores, keep, strict=True)
    )
    removed = (
        "those right of the white line are removed" if lowest else "as many as lie right of the white line are removed"
    )
    upper.set_title(f"{n_layers}: scores of the hidden neurons; {removed}{in_brackets}")
    return _call_nodes_neurons(figure)


def draw_experts(inspection: Inspection) -> Figure:
    """Draw the use and the score of the routed experts of every mixture, and mark those that are removed.

    Returns
    -------
    matplotlib Figure
        Two heat maps with a row for each mixture: the share of the tokens that each expert gets, and its score, relative to the
        mean of its mixture's experts. Crosses mark experts that the main budget removes.

    Raises
    ------
    OptionError
        The model has no mixture of experts.
    """
    numbers = {name: k for k, (name, layer) in enumerate(inspection.layers.items()) if layer.is_mixture}
    if not numbers:
        raise OptionError("this model has no mixture of experts to draw")
    experts = [[each for each in summarise_experts(inspection, name) if each.routed] for name in numbers]
    removed = [[each.kept[inspection.budget] == 0 for each in row] for row in experts]
    figure = new_figure(12, 2.2 + max(1.4, 0.28 * len(experts)))
    left, right = figure.subplots(1, 2)
    labels = [str(number) for number in numbers.values()]
    scores = [np.array([each.score for each in row]) for row in experts]
    for axes, values, words in (
        (left, [100.0 * np.array([each.tokens for each in row]) for row in experts], "tokens routed to the expert (%)"),
        (right, [row / (row.mean() or 1.0) for row in scores], "score of the expert / mean of its mixture"),
    ):
        draw.group_heatmap(values, removed, labels=labels, title=words, ax=axes)
        axes.set_xlabel("expert")
    figure.suptitle(f"{inspection.source}: routed experts by {inspection.scorer}{_what_is_left(inspection, experts)}")
    return figure


def _what_is_left(inspection: Inspection, experts: Sequence[Sequence[ExpertSummary]]) -> str:
    """Return the end of a title: how many experts are removed, how wide the others are, and by which budget and amount."""
    kept = [(each.kept[inspection.budget], each.n_neurons) for row in experts for each in row]
    n_removed = sum(width == 0 for width, _ in kept)
    widths, sizes = {width for width, _ in kept if width}, {size for _, size in kept}
    parts = [f"crosses: {n_removed} of {len(kept)} experts are removed"] if n_removed else []
    if len(sizes) == 1 and widths != sizes:
        least, most = f"{min(widths):,}", f"{max(widths):,}"
        parts.append(f"each keeps {least if least == most else f'{least} to {most}'} of {max(sizes):,} neurons")
    amount = amount_label(inspection.amount, inspection.targets)
    return f"; {', '.join(parts)} ({inspection.budget}, {amount})" if parts else ""


def draw_concentration(inspection: Inspection) -> Figure:
    """Draw how concentrated the scores of each layer are: their distribution, and Lorenz curves."""
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    names, scores = list(inspection.main.importance), list(inspection.main.importance.values())
    draw.score_distribution(scores, names, ax=left)
    draw.lorenz_curves(scores, names, ax=right)
    figure.suptitle(f"{inspection.source}: scores by {inspection.scorer}, {inspection.topology}")
    return _call_nodes_neurons(figure)


def draw_agreement(inspection: Inspection) -> Figure:
    """Draw how the inspection's scorer agrees, over all layers, with another scorer and with itself in the other topology.

    The other scorer is ``activation`` if the inspection has it, else the first other one. If there is no other scorer, only the
    topologies are compared.

    Returns
    -------
    matplotlib Figure
        One plot for each comparison. A point is a neuron, at its percentiles within its layer by the two results.
    """
    others = [name for name in inspection.results if name != inspection.scorer]
    other_scorer = [name for name in ("activation", *others) if name in others][:1]
    compared = [(name, inspection.results[name]) for name in other_scorer]
    compared.append((f"{inspection.scorer}, {inspection.other_topology}", inspection.in_other_topology))
    figure = new_figure(5.5 * len(compared), 5)
    main = inspection.main
    all_axes = figure.subplots(1, len(compared), squeeze=False)[0]
    for axes, (name, other) in zip(all_axes, compared, strict=True):
        draw.compare_scores(
            _percentiles(main, main.importance),
            _percentiles(other, main.importance),
            (f"{inspection.scorer}, {inspection.topology}", name),
            keep=(
                np.concatenate([main.keep[inspection.budget][layer] for layer in main.importance]),
                np.concatenate([other.keep[inspection.budget][layer] for layer in main.importance]),
            ),
            ax=axes,
        )
        title = axes.get_title().replace(" %", "\N{NO-BREAK SPACE}%")
        axes.set_title("\n".join(textwrap.wrap(title, 60)), fontsize=9)
        axes.set_xlabel(f"percentile in its layer by {inspection.scorer}, {inspection.topology}")
        axes.set_ylabel(f"percentile in its layer by {name}")
    return _call_nodes_neurons(figure)


def draw_layer(inspection: Inspection, name: str, top: int = 20) -> Figure:
    """Draw one layer of the inspection: the subgraph of its highest neurons, the edges into it, and the flow through it.

    Parameters
    ----------
    inspection : Inspection
    name : str
        Name of a layer of the inspection.
    top : int
        Number of nodes of each layer in the subgraph: those of the highest scores.

    Returns
    -------
    matplotlib Figure
        Two subfigures: the subgraph, and below it the edges and the flow.

    Raises
    ------
    OptionError
        There is no such layer.
    GraphError
        `top` is below 1, or so high that the subgraph has more nodes than can be drawn.

    Notes
    -----
    Cost: a few reads of the blocks next to the layer.
    """
    place = inspection.layer(name)
    layer, (graph, rank) = place.position, inspection.explained[place.graph]
    layers = range(layer - 1, min(layer + 2, len(graph.layer_sizes)))
    figure = new_figure(13, 9)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    above, below = halves
    draw.node_link(top_subgraph(graph, rank, nodes=top, edges=6 * top, layers=layers), ax=above.subplots())
    left, right = below.subplots(1, 2)
    draw.adjacency_heatmap(graph, layer, rank, ax=left)
    draw.layer_flow(graph, rank, layers=layers, ax=right)
    squared = (
        "" if graph is inspection.graphs[place.graph].graph else ", with the squared weights along which scores flow"
    )
    figure.suptitle(f"{inspection.source}: {name}{squared}")
    return figure


def _percentiles(result: ScorerResult, names: Iterable[str]) -> FloatArray:
    """Return percentiles within each layer, because scores of different layers are not comparable."""
    return np.concatenate([percentiles(result.importance[name]) for name in names])


def _call_nodes_neurons(figure: Figure) -> Figure:
    """Replace the word "node" by "neuron" in all texts of a figure; all nodes that it shows must be neurons."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        renamed = re.sub(r"\bnode(s?)\b", r"neuron\1", text.get_text())
        if renamed != text.get_text():
            text.set_text(renamed)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, of a width and height in inches."""
    from matplotlib.figure import Figure

    # A figure of pyplot would be global state, and could open a window.
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, directory: Path, stem: str, formats: Sequence[str]) -> list[Path]:
    """Write a figure to a directory in several formats; return the paths. The same figure gives the same bytes.

    Each file appears completely or not at all. What a killed process leaves in the directory is removed by the next call for it,
    and by :func:`llmrank.surgery.atomic.check_output`.
    """
    import matplotlib

    paths = []
    remove_leftovers(directory, NAME_INSIDE)
    with hidden_directory(directory, NAME_INSIDE) as hidden:
        for extension in formats:
            prepared = hidden / f"{stem}.{extension}"
            # Without a date, and with a fixed salt of identifiers, a figure always gives the same SVG file.
            with matplotlib.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none"}):
                figure.savefig(prepared, dpi=DPI, metadata={"Date": None} if extension == "svg" else None)
            paths.append(prepared.replace(directory / prepared.name))
    return paths
