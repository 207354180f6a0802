"""Every node, edge and share of a node-link drawing is that of the subgraph."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection, PathCollection

from graphs import GraphError, LayeredGraph, modified_pagerank, weighted_pagerank
from graphs.draw import node_link
from graphs.draw.nodelink import LARGEST, MAX_EDGES, SMALLEST
from graphs.draw.wording import percent
from graphs.reduction.subgraphs import Subgraph, between, ego, top_subgraph
from tests.graphs.cases import Case, cases, random_case
from tests.graphs.draw.test_draw import legible, rank_of


def parts(ax: Any) -> tuple[Any, list[Any], Any]:
    """The lines, the dots of every layer, and the boxes."""
    (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
    scatters = [c for c in ax.collections if isinstance(c, PathCollection)]
    boxes = [c for c in scatters if c.get_hatch()]
    return lines, [c for c in scatters if not c.get_hatch()], boxes[0] if boxes else None


def check(subgraph: Subgraph, ax: Any) -> None:
    lines, dots, boxes = parts(ax)
    places = [dot.get_offsets().filled(np.nan) for dot in dots]
    for layer, (place, nodes) in enumerate(zip(places, subgraph.nodes, strict=True)):
        assert place.shape == (len(nodes), 2)
        assert (place[:, 0] == layer).all()
        assert len(set(place[:, 1])) == len(nodes)
        if subgraph.scores is not None:
            for (upper, above), (lower, below) in (
                sorted(((a, p), (b, q)), key=lambda pair: pair[1])
                for a, p in zip(subgraph.scores[layer], place[:, 1], strict=True)
                for b, q in zip(subgraph.scores[layer], place[:, 1], strict=True)
            ):
                assert above <= below
                assert upper <= lower
    wanted = {}
    for layer, block in enumerate(subgraph.graph.blocks, start=1):
        matrix = block.to_csr().toarray()
        for target, source in zip(*np.nonzero(matrix), strict=True):
            ends = (*places[layer - 1][source], *places[layer][target])
            wanted[ends] = matrix[target, source] / matrix.max()
    found = {tuple(np.ravel(segment)): k for k, segment in enumerate(lines.get_segments())}
    assert found.keys() == wanted.keys()
    widths = np.array(lines.get_linewidths())
    for ends, place in found.items():
        assert widths[place] == pytest.approx(0.2 + 1.8 * wanted[ends])
    hidden = [k for k, n in enumerate(subgraph.nodes) if len(n) < subgraph.total_nodes[k]]
    assert (boxes is None) == (not hidden)
    if boxes is not None:
        assert boxes.get_offsets()[:, 0].tolist() == hidden


@settings(deadline=None, max_examples=40)
@given(cases(), st.integers(1, 5))
def test_nodes_and_edges_are_those_of_the_subgraph(case: Case, count: int) -> None:
    graph = case.graph()
    subgraph = top_subgraph(graph, modified_pagerank(graph), nodes=count)
    check(subgraph, node_link(subgraph))


def test_areas_are_proportional_to_scores() -> None:
    graph = random_case(0, (4, 6, 5)).graph()
    subgraph = top_subgraph(graph, weighted_pagerank(graph), nodes=4)
    _, dots, _ = parts(legible(node_link(subgraph)))
    assert subgraph.scores is not None
    areas, scores = np.concatenate([d.get_sizes() for d in dots]), np.concatenate(subgraph.scores)
    assert areas.max() <= LARGEST
    large = areas > SMALLEST
    assert large.sum() > 8
    np.testing.assert_allclose(areas[large] / areas.max(), scores[large] / scores.max())


def test_the_title_and_the_boxes_give_the_shares() -> None:
    graph = random_case(3, (30, 40, 20)).graph()
    rank = weighted_pagerank(graph)
    subgraph = top_subgraph(graph, rank, nodes=5)
    ax = legible(node_link(subgraph))
    shares = [np.sort(part)[-5:].sum() / part.sum() for part in rank.scores]
    weights = []
    for layer in (1, 2):
        top = [np.argsort(-rank.scores[k])[:5] for k in (layer, layer - 1)]
        matrix = graph.block(layer).toarray()
        weights.append(matrix[np.ix_(*top)].sum() / matrix.sum())
    title = ax.get_title()
    assert title.startswith("15 of 90 nodes, 50 edges\nThey hold ")
    assert f"{percent(min(shares)).removesuffix(' %')} to {percent(max(shares))} of a layer's score" in title
    assert f"{percent(min(weights)).removesuffix(' %')} to {percent(max(weights))} of a block's weight" in title
    texts = [text.get_text() for text in ax.texts]
    for hidden, share in zip((25, 35, 15), shares, strict=True):
        assert f"{hidden} others\n{percent(1 - share)}" in texts
    # Every node is labelled with its index in the original where there is space.
    assert {str(node) for nodes in subgraph.nodes for node in nodes} <= set(texts)


@pytest.mark.parametrize(("sizes", "nodes"), [((60,) * 3, 20), ((60,) * 9, 12), ((60,) * 9, 18), ((60,) * 31, 9)])
def test_texts_never_overlap(sizes: tuple[int, ...], nodes: int) -> None:
    graph = random_case(3, sizes).graph()
    graph = LayeredGraph(
        graph.blocks, graph.activations, tuple(f"model.layers.{k}.mlp:output" for k in range(len(sizes)))
    )
    ax = legible(node_link(top_subgraph(graph, weighted_pagerank(graph), nodes=nodes)))
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert len(boxes) >= len(sizes)
    # The box of a text line is higher than its digits.
    inner = [
        type(box).from_extents(box.x0, box.y0 + 0.15 * box.height, box.x1, box.y1 - 0.15 * box.height) for box in boxes
    ]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(inner, 2))


def test_a_whole_graph_has_no_boxes() -> None:
    graph = random_case(3, (3, 4)).graph()
    ax = legible(node_link(between(graph, 0, 1)))
    assert parts(ax)[2] is None
    assert ax.get_title() == "7 of 7 nodes, 12 edges\nThey hold 100 % of a block's weight"
    assert ax.get_ylabel() == "nodes by index"
    heights = parts(ax)[1][1].get_offsets()[:, 1]
    assert (np.diff(heights) < 0).all()
    check(between(graph, 0, 1), ax)


def test_many_layers_are_still_legible() -> None:
    graph = random_case(4, [9] * 31).graph()
    graph = LayeredGraph(graph.blocks, graph.activations, tuple(f"model.layers.{k}.mlp" for k in range(31)))
    ax = legible(node_link(top_subgraph(graph, weighted_pagerank(graph), nodes=4)))
    assert not any(re.fullmatch(r"\d+", text.get_text()) for text in ax.texts), "no room for indices"


def test_only_the_heaviest_of_many_edges_are_drawn() -> None:
    graph = random_case(5, (100, 100)).graph()
    subgraph = between(graph, 0, 1)
    ax = legible(node_link(subgraph))
    lines, _, _ = parts(ax)
    assert len(lines.get_segments()) == MAX_EDGES
    title = "200 of 200 nodes, 10,000 edges (the heaviest 4,000 drawn)\nThey hold 100 % of a block's weight"
    assert ax.get_title() == title
    weights = np.sort(np.abs(graph.block(1).toarray()).ravel())
    np.testing.assert_allclose(lines.get_linewidths(), 0.2 + 1.8 * weights[-MAX_EDGES:] / weights[-1])
    alphas = lines.get_colors()[:, 3]
    assert (np.diff(alphas) >= 0).all()
    assert alphas[0] < alphas[-1] <= 1


def test_degenerate_subgraphs() -> None:
    single = LayeredGraph.from_weights([[[2.0]], [[0.0]]], [1], [[1], [1]])
    legible(node_link(between(single, 0, 2)))
    silent = rank_of(single, [[0.0], [0.0], [0.0]])
    legible(node_link(top_subgraph(single, silent, nodes=1)))
    wide = random_case(6, (300, 2)).graph()
    legible(node_link(ego(wide, 1, 0, top=3)))
    legible(node_link(top_subgraph(wide, weighted_pagerank(wide), nodes=250)))


def test_invalid_arguments_are_refused() -> None:
    graph = random_case(7, (200, 200)).graph()
    subgraph = between(graph, 0, 1)
    with pytest.raises(GraphError, match=r"up to 300 nodes, got 400 in 2 layers; take fewer with .*nodes=150\)"):
        node_link(subgraph)
    with pytest.raises(GraphError, match="up to 10 nodes"):
        node_link(top_subgraph(graph, weighted_pagerank(graph), nodes=6), max_nodes=10)
    with pytest.raises(GraphError, match=r"draws a Subgraph, got LayeredGraph; .*top_subgraph"):
        node_link(graph)  # type: ignore[arg-type]
