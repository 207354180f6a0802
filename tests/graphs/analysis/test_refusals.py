"""What all questions about a graph and its rank refuse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graphs import GraphError, LayeredGraph, weighted_pagerank
from graphs.analysis.flow import flow
from graphs.analysis.layer_summary import summarise_layers
from graphs.analysis.node_summary import strongest_edges
from graphs.analysis.paths import strongest_paths
from graphs.reduction.subgraphs import between, ego, top_subgraph
from tests.graphs.analysis.test_node_summary import facts_of
from tests.graphs.cases import random_case
from tests.graphs.forms import as_modified
from tests.tables import table

ASKS: dict[str, Callable[[Any, Any], Any]] = {
    "flow": lambda graph, rank: flow(graph, rank, 1),
    "flow with another theta": lambda graph, rank: flow(graph, rank, 1, theta=0.5),
    "flow of a modified rank": lambda graph, rank: flow(graph, as_modified(rank), 1),
    "layers": summarise_layers,
    "a node": lambda graph, rank: facts_of(graph, rank, 1, 1),
    "edges": lambda graph, rank: strongest_edges(graph, rank, 1),
    "paths both ways": lambda graph, rank: strongest_paths(graph, rank, 1, 1, before=1, after=1),
    "paths from the inputs": lambda graph, rank: strongest_paths(graph, rank, 0, 1, before=0, after=2),
    "highest nodes": top_subgraph,
    "layers between": lambda graph, rank: between(graph, 0, 2, rank),
    "neighbours": lambda graph, rank: ego(graph, 1, 0, rank=rank),
}
GRAPH = random_case(0, (3, 4, 2)).graph()
RANK = weighted_pagerank(GRAPH)


@table(("name", "ask"), ASKS.items())
def test_ranks_that_are_not_of_the_graph_are_refused(name: str, ask: Any) -> None:
    with pytest.raises(GraphError, match=r"expected a rank of this graph.*in layers of 3, 4, 2, got 4, 3, 2"):
        ask(GRAPH, weighted_pagerank(random_case(0, (4, 3, 2)).graph()))
    several = replace(RANK, scores=tuple(np.stack([part, part], axis=1) for part in RANK.scores))
    with pytest.raises(GraphError, match="select one column"):
        ask(GRAPH, several)


@table("name", [name for name in ASKS if "paths" not in name and name not in ("layers between", "neighbours")])
def test_scores_that_are_not_finite_are_refused(name: str) -> None:
    spoiled = replace(RANK, scores=tuple(np.full_like(part, np.nan) for part in RANK.scores))
    with pytest.raises(GraphError, match="scores of layer 0: expected finite"):
        ASKS[name](GRAPH, spoiled)


@table("bad", [np.nan, np.inf])
@table(("name", "block"), [(name, block) for name in ASKS for block in ((0,) if "flow" in name else (0, 1))])
def test_weights_that_are_not_finite_are_refused(name: str, block: int, bad: float) -> None:
    weights = [np.ones((3, 2), dtype=np.float32), np.ones((2, 3), dtype=np.float32)]
    rank = weighted_pagerank(LayeredGraph.from_weights(weights, [1, 1], [[1, 1, 1], [1, 1]]))
    weights[block][1, 1] = bad  # dense weights are referred to
    graph = LayeredGraph.from_weights(weights, [1, 1], [[1, 1, 1], [1, 1]], check_finite=False)
    message = "out-strengths are not finite" if "theta" in name else rf"block {block + 1}: .*NaN or Inf"
    with pytest.raises(GraphError, match=message):
        ASKS[name](graph, rank)
