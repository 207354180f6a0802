"""What the edges of a graph measure: magnitudes of weights, or energies, which are squares."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

from graphs import LayeredGraph, RankResult

__all__ = ["EdgeMeasure", "mark_energies", "squares", "with_edge_measure", "without_mark"]

EdgeMeasure: TypeAlias = Literal["magnitude", "energy", "gate"]
# What is added to the method name of a rank of energies.
MARKS = {"energy": "of energies", "gate": "of gate energies"}


def squares(edges: str) -> bool:
    """Whether edges of this measure have squared weights, in a graph with squared activations."""
    return edges in ("energy", "gate")


def with_edge_measure(graph: LayeredGraph, edges: EdgeMeasure) -> LayeredGraph:
    """Return the graph itself, or for energies the graph of squared weights and activations.

    For the measure "gate" the squared graph has the first of parallel edges alone: that of the gate, which the graph of a model
    holds before that of the up map.
    """
    if edges == "gate":
        graph = graph.first_parallel()
    return graph.squared() if squares(edges) else graph


def mark_energies(result: RankResult, edges: EdgeMeasure) -> RankResult:
    """Add "of energies" to the method name of a rank of energies, so that nobody explains the rank by weights without squares."""
    return replace(result, method=f"{result.method} {MARKS[edges]}") if edges in MARKS else result


def without_mark(result: RankResult) -> RankResult:
    """Remove what :func:`mark_energies` has added."""
    method = result.method
    for mark in MARKS.values():
        method = method.removesuffix(f" {mark}")
    return replace(result, method=method)
