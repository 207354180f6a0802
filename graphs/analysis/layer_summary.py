"""Summaries of the layers of a ranked graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphs.analysis.flow import gamma_of, share_through_graph
from graphs.analysis.measures import effective_number, gini, positions, scale_scores, top_share
from graphs.analysis.strengths import default_backend, finite_strength
from graphs.linalg.blocks import FloatArray
from graphs.linalg.validation import as_vector
from graphs.ranking.scores import finite_scores
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

__all__ = ["LayerSummary", "Spread", "shares_through_graph", "summarise_layers"]


@dataclass(frozen=True)
class Spread:
    """Minimum, quartiles, maximum and mean of the values of a layer; quartiles are interpolated linearly."""

    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float
    mean: float

    @classmethod
    def of(cls, values: Any) -> Spread:
        """Compute the spread of finite numbers, (n,).

        Raises
        ------
        GraphError
            Values that are not one-dimensional, empty or not finite.

        Examples
        --------
        >>> Spread.of([1, 2, 3, 10]).median
        2.5
        """
        array = as_vector(values, "values")
        lowest, lower, median, upper, highest = np.quantile(array, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist()
        # Without this power of two, the sum of huge values would overflow.
        exponent = np.frexp(np.abs(array).max())[1]
        return cls(lowest, lower, median, upper, highest, float(np.ldexp(np.ldexp(array, -exponent).mean(), exponent)))


@dataclass(frozen=True)
class LayerSummary:
    """Summary of one layer of a ranked graph: its edges, its activations, and how concentrated its scores are.

    Attributes
    ----------
    layer : int
        From 0 (the inputs) to L (the last layer).
    name : str
    n_nodes : int
    n_in_edges : int
        Number of edges from the layer before; 0 for layer 0.
    density : float, optional
        Number of in-edges divided by the number of pairs of a source and a target; None for layer 0.
    in_strength, out_strength : Spread, optional
        Spread of the strengths of the nodes: the sum of the weights of a node's in-edges, or of its out-edges. `in_strength` is
        None for layer 0, and `out_strength` for the last layer.
    activation : Spread
        Spread of the non-negative activations that the graph holds for the nodes.
    n_dead : int
        Number of nodes with activation 0.
    n_unreached : int, optional
        Number of nodes without an in-edge; None for layer 0.
    n_dangling : int, optional
        Number of nodes without an out-edge; None for the last layer.
    gini, effective_number, top_share : float
        Concentration of the scores, by the functions of these names in :mod:`graphs.analysis.measures`. `top_share` is the share
        of the score that the highest-scored 1 % of the nodes hold.
    highest_node : int
        Index of the node with the highest score; among equal scores the highest index.
    highest_share : float
        Share of the layer's score that `highest_node` holds.
    through_graph : float, optional
        Share of the layer's score that came along edges and not from the teleport (the score that nodes get without edges):
        ``gamma m / (gamma m + 1 - gamma)``. Here gamma is the damping, and m is the share of the previous layer's score that
        nodes with out-edges hold. None for layer 0, and if :func:`graphs.analysis.flow.gamma_of` returns None for the rank.
    """

    layer: int
    name: str
    n_nodes: int
    n_in_edges: int
    density: float | None
    in_strength: Spread | None
    out_strength: Spread | None
    activation: Spread
    n_dead: int
    n_unreached: int | None
    n_dangling: int | None
    gini: float
    effective_number: float
    top_share: float
    highest_node: int
    highest_share: float
    through_graph: float | None

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain Python values, as JSON needs them.

        Examples
        --------
        >>> from graphs import weighted_pagerank
        >>> graph = LayeredGraph.from_weights([[[1.0, 3.0]]], [1, 1], [[1]])
        >>> summarise_layers(graph, weighted_pagerank(graph))[1].to_dict()["in_strength"]["mean"]
        4.0
        """
        return dataclasses.asdict(self)


def summarise_layers(graph: LayeredGraph, rank: RankResult) -> tuple[LayerSummary, ...]:
    """Summarise every layer of a ranked graph.

    Cost: two reads of every block for the strengths; the first call also reads dense blocks to count their edges.
    Memory: O(nodes), and a copy of one block if the backend converts it.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        The rank of this graph, with one score a node.

    Returns
    -------
    tuple of L+1 LayerSummary

    Raises
    ------
    GraphError
        A rank of another graph or with several scores a node, scores that are negative or not finite, or NaN or Inf in the
        weights or their sums.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 0.0]]], [1, 1], [[1, 0]])
    >>> inputs, outputs = summarise_layers(graph, weighted_pagerank(graph))
    >>> inputs.n_dangling, outputs.density, outputs.n_dead, round(outputs.through_graph, 3)
    (1, 0.5, 1, 0.333)
    """
    scores = [scale_scores(values) for values in finite_scores(graph, rank)]
    backend = default_backend(graph)
    in_strengths: list[FloatArray | None] = [None]
    out_strengths: list[FloatArray | None] = []
    for layer, block in enumerate(graph.blocks, start=1):
        operator = backend.operator(block, products=2)
        out_strengths.append(finite_strength(backend, operator.out_strength, layer))
        in_strengths.append(finite_strength(backend, operator.in_strength, layer))
    through_graph = _through_graph(gamma_of(rank), scores, out_strengths)
    out_strengths.append(None)
    summaries = []
    for layer, (name, activation) in enumerate(zip(graph.names, graph.activations, strict=True)):
        into, out, values = in_strengths[layer], out_strengths[layer], scores[layer]
        block_in = graph.blocks[layer - 1] if layer else None
        highest = int(np.argmin(positions(values)))
        summaries.append(
            LayerSummary(
                layer=layer,
                name=name,
                n_nodes=len(activation),
                n_in_edges=block_in.n_edges if block_in else 0,
                density=block_in.n_edges / math.prod(block_in.shape) if block_in else None,
                in_strength=None if into is None else Spread.of(into),
                out_strength=None if out is None else Spread.of(out),
                activation=Spread.of(activation),
                n_dead=int((activation == 0).sum()),
                n_unreached=None if into is None else int((into == 0).sum()),
                n_dangling=None if out is None else int((out == 0).sum()),
                gini=gini(values),
                effective_number=effective_number(values),
                top_share=top_share(values),
                highest_node=highest,
                highest_share=float(values[highest] / values.sum()),
                through_graph=through_graph[layer],
            )
        )
    return tuple(summaries)


def shares_through_graph(graph: LayeredGraph, rank: RankResult) -> tuple[float | None, ...]:
    """Compute :attr:`LayerSummary.through_graph` of every layer. Cost: one read of every block.

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        The rank of this graph, with one score a node.

    Returns
    -------
    tuple of L+1 floats or None

    Raises
    ------
    GraphError
        As for :func:`summarise_layers`.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 0.0]]], [1, 1], [[1, 0]])
    >>> [share and round(share, 3) for share in shares_through_graph(graph, weighted_pagerank(graph))]
    [None, 0.333]
    """
    scores, backend = [scale_scores(values) for values in finite_scores(graph, rank)], default_backend(graph)
    strengths = [
        finite_strength(backend, backend.operator(block, products=1).out_strength, layer)
        for layer, block in enumerate(graph.blocks, start=1)
    ]
    return tuple(_through_graph(gamma_of(rank), scores, strengths))


def _through_graph(
    gamma: float | None, scores: Sequence[FloatArray], out_strengths: Sequence[FloatArray | None]
) -> list[float | None]:
    """Return the share of each layer's score that came along edges; None for layer 0, and without gamma."""
    shares: list[float | None] = [None]
    for source_scores, strength in zip(scores, out_strengths, strict=False):
        if gamma is None or strength is None:
            shares.append(None)
        else:
            arrived = float(source_scores[strength > 0].sum() / source_scores.sum())
            shares.append(share_through_graph(gamma, arrived, 1.0))
    return shares
