"""Summaries: what there is to say of every layer of a ranked graph, as values and as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphs.analysis.flow import damping_of, share_through_graph
from graphs.analysis.measures import Spread, as_masses, effective_number, gini, positions, top_share
from graphs.analysis.strengths import default_backend, in_strength, out_strength
from graphs.linalg.blocks import FloatArray
from graphs.ranking.scores import finite_scores
from graphs.solvers.result import RankResult
from graphs.structures.layered import LayeredGraph

__all__ = ["LayerSummary", "summarise_layers", "to_columns"]


@dataclass(frozen=True)
class LayerSummary:
    """What there is to say about one layer of a ranked graph.

    Attributes
    ----------
    layer : int
        0..L.
    name : str
    nodes : int
    edges_in : int
        Edges from the layer before; 0 for layer 0.
    density : float, optional
        `edges_in` over the number there could be; None for layer 0, which has no block of edges into it.
    in_strength, out_strength : Spread, optional
        Sums of the weights of a node's in-edges and out-edges; None for layer 0, and for the last layer.
    activation : Spread
    dead : int
        Nodes of activation 0.
    unreached : int, optional
        Nodes without an edge in; None for layer 0.
    dangling : int, optional
        Nodes without an edge out, whose mass is lost; None for the last layer.
    gini, effective, top_share : float
        Concentration of the scores: :func:`graphs.analysis.measures.gini`, :func:`graphs.analysis.measures.effective_number`,
        and :func:`graphs.analysis.measures.top_share` of the highest 1 %.
    highest : int
        The node of the highest score (position 0), and
    highest_share : float
        its share of the layer's score.
    through_graph : float, optional
        Share of the layer's score that came through the graph, the rest being the nodes' own activation:
        ``gamma m / (gamma m + 1 - gamma)``, m the mass of the sources that do not dangle. Of a weighted PageRank
        only; None for layer 0.
    """

    layer: int
    name: str
    nodes: int
    edges_in: int
    density: float | None
    in_strength: Spread | None
    out_strength: Spread | None
    activation: Spread
    dead: int
    unreached: int | None
    dangling: int | None
    gini: float
    effective: float
    top_share: float
    highest: int
    highest_share: float
    through_graph: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values for JSON: no NaN, no infinity; what does not apply is None.

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

    Parameters
    ----------
    graph : LayeredGraph
    rank : RankResult
        One score a node of this graph.

    Returns
    -------
    tuple of L+1 LayerSummary

    Raises
    ------
    GraphError
        A rank of another graph or of several vectors; weights that are NaN or Inf, or whose sums are.

    Notes
    -----
    Cost: two reads of every block for the strengths, and for dense ones a third that counts edges, at the first call.
    Memory above the graph: O(nodes), and one block where the backend converts it.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0, 0.0], [1.0, 0.0]]], [1, 1], [[1, 0]])
    >>> inputs, outputs = summarise_layers(graph, weighted_pagerank(graph))
    >>> inputs.dangling, outputs.density, outputs.dead, round(outputs.through_graph, 3)
    (1, 0.5, 1, 0.333)
    """
    scores = finite_scores(graph, rank)
    engine = default_backend(graph)
    gamma = damping_of(rank)
    into: list[FloatArray | None] = [None]
    out: list[FloatArray | None] = []
    for layer, block in enumerate(graph.blocks, start=1):
        operator = engine.operator(block, 2)
        out.append(out_strength(engine, operator, layer))
        into.append(in_strength(engine, operator, layer))
    out.append(None)
    found = []
    for layer, (name, activation) in enumerate(zip(graph.names, graph.activations, strict=True)):
        arriving, leaving, before = into[layer], out[layer], out[layer - 1]
        block_in = graph.blocks[layer - 1] if layer else None
        masses = as_masses(scores[layer])
        highest = int(np.argmin(positions(masses)))
        through = None
        if layer and before is not None and gamma is not None:
            sources = as_masses(scores[layer - 1])
            through = share_through_graph(gamma, float(sources[before > 0].sum() / sources.sum()), 1.0)
        found.append(
            LayerSummary(
                layer=layer,
                name=name,
                nodes=len(activation),
                edges_in=block_in.edges if block_in else 0,
                density=block_in.edges / math.prod(block_in.shape) if block_in else None,
                in_strength=None if arriving is None else Spread.of(arriving),
                out_strength=None if leaving is None else Spread.of(leaving),
                activation=Spread.of(activation),
                dead=int((activation == 0).sum()),
                unreached=None if arriving is None else int((arriving == 0).sum()),
                dangling=None if leaving is None else int((leaving == 0).sum()),
                gini=gini(masses),
                effective=effective_number(masses),
                top_share=top_share(masses),
                highest=highest,
                highest_share=float(masses[highest] / masses.sum()),
                through_graph=through,
            )
        )
    return tuple(found)


def to_columns(summaries: Sequence[LayerSummary]) -> dict[str, list[Any]]:
    """A table of summaries: the values of every column, one a layer.

    Parameters
    ----------
    summaries : sequence of LayerSummary

    Returns
    -------
    dict from str to list
        In the order of the attributes; a spread becomes columns such as ``in_strength_median``. None where a value
        does not apply.

    Examples
    --------
    >>> from graphs import weighted_pagerank
    >>> graph = LayeredGraph.from_weights([[[1.0], [2.0]]], [1], [[1, 1]])
    >>> table = to_columns(summarise_layers(graph, weighted_pagerank(graph)))
    >>> table["nodes"], table["in_strength_mean"]
    ([1, 2], [None, 1.5])
    """
    columns: dict[str, list[Any]] = {}
    parts = [field.name for field in dataclasses.fields(Spread)]
    for field in dataclasses.fields(LayerSummary):
        values = [getattr(summary, field.name) for summary in summaries]
        if "Spread" in str(field.type):
            for part in parts:
                columns[f"{field.name}_{part}"] = [None if value is None else getattr(value, part) for value in values]
        else:
            columns[field.name] = values
    return columns
