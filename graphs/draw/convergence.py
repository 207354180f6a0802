"""How a rank was reached: the residual and the proven bound of every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from graphs.draw.axes import LINES, new_axes, plain
from graphs.errors import GraphError
from graphs.result import RankResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["convergence"]


def convergence(
    results: Sequence[RankResult],
    against: Literal["steps", "products", "seconds"] = "products",
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Error bound (line) and residual (dots) of every step, on logarithmic axes.

    Parameters
    ----------
    results : sequence of RankResult
    against : {"steps", "products", "seconds"}
        What the steps are laid out by; block products make solvers comparable.
    labels : sequence of str, optional
        By default the solvers' names.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    GraphError
        Nothing to draw, an unknown measure, or another number of labels.

    Examples
    --------
    >>> from graphs import LayeredGraph, pagerank, residual_graph
    >>> chain = LayeredGraph.from_weights([[[1.0, 2.0]], [[3.0], [1.0]]], [1, 1], [[1], [1, 2]])
    >>> ax = convergence([pagerank(residual_graph(chain), solver="power")])
    >>> ax.get_xlabel()
    'block products'
    """
    if not results or against not in ("steps", "products", "seconds"):
        raise GraphError(
            f"expected results, and against steps, products or seconds; got {len(results)} and {against!r}"
        )
    names = [result.solver for result in results] if labels is None else list(labels)
    if len(names) != len(results):
        raise GraphError(f"expected {len(results)} labels, one a result, got {len(names)}")
    ax = new_axes(ax)
    for position, (result, name) in enumerate(zip(results, names, strict=True)):
        across = {
            "steps": np.arange(1, result.iterations + 1),
            "products": result.step_products,
            "seconds": result.step_seconds,
        }[against]
        colour = LINES[position % len(LINES)]
        # An exact step has nothing left to show on a logarithmic axis, and an unknown bound nothing to show at all.
        bounds = np.where((result.error_bounds > 0) & np.isfinite(result.error_bounds), result.error_bounds, np.nan)
        residuals = np.where(result.residuals > 0, result.residuals, np.nan)
        ax.plot(across, bounds, color=colour, linewidth=1.4, label=plain(name))
        ax.plot(across, residuals, color=colour, linestyle="none", marker=".", markersize=3)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel({"steps": "steps", "products": "block products", "seconds": "seconds"}[against])
    ax.set_ylabel("L1: bound on the error (line), residual (dots)")
    ax.legend(frameon=False)
    return ax
