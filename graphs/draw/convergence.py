"""Convergence of ranks: the residual and the error bound of every step of a solver.

The residual is the L1 norm of the change that one more application of the equation would make. The error bound is a proven bound
on the L1 distance to the exact rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from graphs.draw.axes import SMALL_FONT, new_axes, wrap_to_axes
from graphs.draw.colours import line_style
from graphs.draw.inputs import IntArray
from graphs.draw.wording import as_literal
from graphs.errors import GraphError
from graphs.solvers.result import RankResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_STEPS", "convergence"]

# Maximum number of steps to draw of a result: more could not be seen on a page, and vector files would be larger.
MAX_STEPS = 1000


def convergence(
    results: Sequence[RankResult],
    against: Literal["steps", "products", "seconds"] = "products",
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the error bound (line) and the residual (small markers) of every step, on logarithmic axes.

    Of more than `MAX_STEPS` steps, at most that many are drawn, about evenly spaced on the logarithmic axis.

    Parameters
    ----------
    results : sequence of RankResult
    against : {"steps", "products", "seconds"}
        Quantity on the x axis. ``products`` are the multiplications by a block of the graph; their number makes solvers
        comparable.
    labels : sequence of str, optional
        The names of the results in the legend; by default the names of their solvers.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        A large marker ends each line. The legend says which results are exact, because the axis cannot show zeros.

    Raises
    ------
    GraphError
        No results, an unknown value of `against`, or a wrong number of labels.

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
            f"expected at least one result, and against='steps', 'products' or 'seconds'; "
            f"got {len(results)} results and {against!r}"
        )
    names = [result.solver for result in results] if labels is None else list(labels)
    if len(names) != len(results):
        raise GraphError(f"expected {len(results)} labels, one a result, got {len(names)}")
    ax = new_axes(ax)
    any_visible = False
    for position, (result, name) in enumerate(zip(results, names, strict=True)):
        drawn = _steps_to_draw(result.iterations)
        x = {
            "steps": np.arange(1, result.iterations + 1),
            "products": result.step_products,
            "seconds": result.step_seconds,
        }[against][drawn]
        # A logarithmic axis cannot show the zeros of exact steps and unknown (infinite) bounds.
        bounds, residuals = (
            np.where((values > 0) & np.isfinite(values), values, np.nan)[drawn]
            for values in (result.error_bounds, result.residuals)
        )
        style = line_style(position)
        visible = np.flatnonzero(np.isfinite(bounds))
        exact = f" (exact after {result.iterations:,})" if result.stop_reason == "exact" else ""
        label, ends = as_literal(f"{name}{exact}"), visible[-1:].tolist()
        ax.plot(x, bounds, linewidth=1.4, markersize=6, markevery=ends, label=label, **style)
        ax.plot(x, residuals, **{**style, "linestyle": "none"}, markersize=2.5)
        any_visible = any_visible or bool(len(visible) or np.isfinite(residuals).any())
    if any_visible:
        ax.set_xscale("log")
        ax.set_yscale("log")
    else:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no step left an error", ha="center", va="center", transform=ax.transAxes)
    ax.set_xlabel("block products" if against == "products" else against)
    ax.set_ylabel(wrap_to_axes(ax, "L1: bound on the error (line), residual (markers)", upright=True))
    ax.legend(frameon=False, fontsize=SMALL_FONT + 0.5, handlelength=3.5)
    return ax


def _steps_to_draw(steps: int) -> IntArray:
    """Choose the indices of at most `MAX_STEPS` steps, among them the first and the last."""
    if steps <= MAX_STEPS:
        return np.arange(steps)
    return np.unique(np.geomspace(1, steps, MAX_STEPS).round().astype(np.int64)) - 1
