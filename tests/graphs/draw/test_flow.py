"""Bars and ribbons are as wide as the flow of score."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import GraphError, LayeredGraph, modified_pagerank, pagerank, residual_graph, weighted_pagerank
from graphs.analysis.buckets import score_buckets
from graphs.analysis.flow import flow
from graphs.draw import layer_flow
from graphs.draw.flow import MAX_BUCKETS, MAX_LAYERS
from tests.graphs.cases import Case, cases, random_case, transition_matrix
from tests.graphs.draw.test_draw import legible, rank_of
from tests.tables import table

SHARES = (0.25, 0.25, 0.5)


def bars(ax: Any) -> Any:
    """(layers, buckets, 3): score that arrives, is held and leaves, from the heights of the bars."""
    stacks = [c for c in ax.collections if not c.get_label().startswith("_")]
    found = []
    for bucket in stacks:
        corners = np.array([path.vertices[:8] for path in bucket.get_paths()])
        heights = corners[:, :4, 1] - corners[:, :3:-1, 1]
        assert (heights[:, 1] == heights[:, 2]).all()
        found.append(heights[:, [0, 1, 3]])
    return np.array(found).swapaxes(0, 1)


def ribbons(ax: Any) -> list[tuple[int, int, float, float, float, float]]:
    """(source layer, source bucket, middle at the source, middle at the target, width at either end)."""
    found = []
    for bucket, collection in enumerate(c for c in ax.collections if c.get_label().startswith("_")):
        for path in collection.get_paths():
            points = path.vertices[:48]
            upper, lower = points[:24], points[:23:-1]
            assert (upper[:, 0] == lower[:, 0]).all()
            middle, width = (upper + lower)[:, 1] / 2, (upper - lower)[:, 1]
            found.append((int(points[0, 0]), bucket, middle[0], middle[-1], width[0], width[-1]))
    return found


@settings(deadline=None, max_examples=40)
@given(cases(min_blocks=1, max_blocks=3), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_ribbon_widths_are_the_flow(case: Case, gamma: float, modified: bool) -> None:
    graph = case.graph()
    rank = modified_pagerank(graph) if modified else weighted_pagerank(graph, gamma=gamma)
    ax = layer_flow(graph, rank, buckets=SHARES)
    stacks, drawn = bars(ax), ribbons(ax)
    for layer, scores in enumerate(rank.scores):
        places = score_buckets(scores, SHARES)
        np.testing.assert_allclose(
            stacks[layer, :, 1], [scores[places == b].sum() for b in range(3)], rtol=1e-9, atol=1e-12
        )
        if layer == 0:
            continue
        wanted = flow(graph, rank, layer, SHARES)
        if not modified:
            matrix = transition_matrix(case.weights[layer - 1], 1.0)
            before = score_buckets(rank.scores[layer - 1], SHARES)
            plain = np.zeros((3, 3))
            for i, j in np.ndindex(*matrix.shape):
                plain[places[i], before[j]] += matrix[i, j] * rank.scores[layer - 1][j]
            np.testing.assert_allclose(wanted, plain, atol=1e-12)
        np.testing.assert_allclose(stacks[layer, :, 0], wanted.sum(axis=1), atol=1e-12)
        np.testing.assert_allclose(stacks[layer - 1, :, 2], wanted.sum(axis=0), atol=1e-12)
        for source in range(3):
            widths = [width for at, bucket, *_, width in drawn if (at, bucket) == (layer - 1, source)]
            np.testing.assert_allclose(widths, wanted[:, source][wanted[:, source] > 0], rtol=1e-9, atol=1e-12)
    assert all(start == pytest.approx(stop) for *_, start, stop in drawn)


def test_ribbons_fill_their_bars_without_overlap() -> None:
    graph = random_case(1, (8, 12, 6)).graph()
    ax = legible(layer_flow(graph, weighted_pagerank(graph), buckets=SHARES))
    drawn = ribbons(ax)
    assert len(drawn) == 2 * 9
    for layer in (0, 1):
        for end in (2, 3):
            spans = sorted((r[end] - r[4] / 2, r[end] + r[4] / 2) for r in drawn if r[0] == layer)
            assert all(above[0] >= below[1] - 1e-12 for below, above in itertools.pairwise(spans))
    # Ribbons from higher buckets arrive above those from lower ones.
    for layer in (0, 1):
        targets = [r for r in drawn if r[0] == layer]
        highest = [r[3] for r in targets if r[1] == 0]
        lowest = [r[3] for r in targets if r[1] == 2]
        assert all(a > b for a, b in zip(highest, lowest, strict=True))


def test_bars_have_the_height_of_the_layer_share() -> None:
    """A PageRank sums to 1 over all layers, not in each."""
    graph = random_case(2, (5, 7, 5)).graph()
    rank = pagerank(residual_graph(graph))
    stacks = bars(legible(layer_flow(graph, rank)))
    np.testing.assert_allclose(stacks[:, :, 1].sum(axis=1), 1.0)
    np.testing.assert_allclose(stacks[:-1, :, 2].sum(axis=1), 1.0)
    np.testing.assert_allclose(stacks[1:, :, 0].sum(axis=1), 1.0)


@table(
    ("buckets", "names"),
    [
        (1, ["all nodes"]),
        (2, ["highest 1 % of nodes", "lowest 99 % of nodes"]),
        (3, ["highest 1 % of nodes", "next 9 % of nodes", "lowest 90 % of nodes"]),
        (
            5,
            [f"{part} of nodes" for part in ("highest 1 %", "next 2 %", "next 7 %", "next 22 %", "lowest 68 %")],
        ),
        ((0.125, 0.875), ["highest 12 % of nodes", "lowest 88 % of nodes"]),
        ((0.005, 0.995), ["highest 0.5 % of nodes", "lowest >99 % of nodes"]),
    ],
)
def test_buckets_are_named(buckets: Any, names: list[str]) -> None:
    graph = random_case(3, (200, 300)).graph()
    ax = legible(layer_flow(graph, weighted_pagerank(graph), buckets=buckets))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == names
    assert bars(ax).shape == (2, len(names), 3)


def test_buckets_cover_all_nodes() -> None:
    graph = random_case(3, (500, 5)).graph()
    rank = weighted_pagerank(graph)
    for count in range(1, MAX_BUCKETS + 1):
        held = bars(layer_flow(graph, rank, buckets=count))[0, :, 1]
        assert (held > 0).all()
        assert held.sum() == pytest.approx(1.0)


def test_layers_are_chosen() -> None:
    graph = random_case(4, (3, 4, 5, 6)).graph()
    rank = weighted_pagerank(graph)
    ax = legible(layer_flow(graph, rank, layers=range(1, 3)))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["layer 1", "layer 2"]
    assert len(bars(ax)) == 2
    alone = legible(layer_flow(graph, rank, layers=[3]))
    assert len(bars(alone)) == 1
    assert not ribbons(alone)
    most = random_case(5, [4] * MAX_LAYERS).graph()
    assert len(bars(legible(layer_flow(most, weighted_pagerank(most))))) == MAX_LAYERS


@pytest.mark.parametrize("modified", [False, True])
def test_many_layers_become_a_heat_map_that_says_so(modified: bool) -> None:
    graph = random_case(6, [6, 9] * 7).graph()
    graph = LayeredGraph(graph.blocks, graph.activations, tuple(f"model.layers.{k}.mlp" for k in range(14)))
    rank = modified_pagerank(graph) if modified else weighted_pagerank(graph)
    ax = legible(layer_flow(graph, rank, buckets=SHARES))
    (mesh,) = ax.collections
    shown = mesh.get_array()
    assert shown.shape == (3, 13)
    for layer in range(1, 14):
        part = flow(graph, rank, layer, SHARES)
        for bucket in range(3):
            stays = part[bucket, bucket] / part[:, bucket].sum()
            assert shown[bucket, layer - 1] == pytest.approx(stays / (part[bucket].sum() / part.sum()))
    assert ax.get_title().startswith("14 layers (0 mlp to 13 mlp), too many for ribbons (up to 12)")
    assert ax.get_yticklabels()[0].get_text() == "highest 25 % of nodes"


def test_degenerate_graphs() -> None:
    single = LayeredGraph.from_weights([[[2.0]], [[0.0]]], [1], [[1], [1]])
    legible(layer_flow(single, weighted_pagerank(single)))
    silent = rank_of(single, [[0.0], [0.0], [0.0]])
    assert (bars(legible(layer_flow(single, silent)))[:, :, 1] == 0).all()
    long = LayeredGraph.from_weights([[[0.0]]] * 13, [1], [[1]] * 13)
    ax = legible(layer_flow(long, rank_of(long, [[0.0]] * 14)))
    assert not ax.collections[0].get_array().count()


def test_invalid_arguments_are_refused() -> None:
    graph = random_case(7, (3, 4, 5)).graph()
    rank = weighted_pagerank(graph)
    for layers in ([], [0, 2], [1, 0], [0, 0]):
        with pytest.raises(GraphError, match="layers: expected at least 1 consecutive ascending layers"):
            layer_flow(graph, rank, layers=layers)
    with pytest.raises(GraphError, match="expected a layer from 0 to 2, got 3"):
        layer_flow(graph, rank, layers=[2, 3])
    for buckets in (0, MAX_BUCKETS + 1, [], (0.5, 0.4), (1.5, -0.5), "all", True, [0.1] * 10):
        with pytest.raises(GraphError, match="expected 1 to 8 buckets, or "):
            layer_flow(graph, rank, buckets=buckets)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="expected a rank of this graph"):
        layer_flow(random_case(7, (3, 4)).graph(), rank)
