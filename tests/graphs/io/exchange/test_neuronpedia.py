"""Neuronpedia's JSON: what its schema asks for, what its viewer computes with, and every number as it was."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs import GraphError, LayeredGraph, weighted_pagerank
from graphs.io.convert import to_networkx
from graphs.io.exchange import write_neuronpedia
from graphs.reduction.subgraphs import top_subgraph
from tests.graphs.cases import random_case
from tests.tables import table

CASE = random_case(1, (3, 4, 3), density=0.7)
GRAPH = LayeredGraph.from_weights(CASE.weights, CASE.inputs, CASE.activations, names=("in", 'm.0 <&> "ü"\0', "out"))
RANK = weighted_pagerank(GRAPH)
# The fields that the schema (version 1.0.0) requires of a node, and their types.
NODE = {
    "node_id": str,
    "feature": int,
    "layer": str,
    "ctx_idx": int,
    "feature_type": str,
    "jsNodeId": str,
    "clerp": str,
}


def content(folder: Path, graph: Any = GRAPH, name: str = "graph.json", **options: Any) -> dict[str, Any]:
    write_neuronpedia(graph, folder / name, **options)
    return dict(json.loads((folder / name).read_text(encoding="utf-8")))


def layer_and_index(node: dict[str, Any]) -> tuple[int, int]:
    """Undo the pairing function of Cantor, as the viewer does."""
    number = node["feature"]
    diagonal = int(((8 * number + 1) ** 0.5 - 1) / 2)
    index = number - diagonal * (diagonal + 1) // 2
    return diagonal - index, index


def test_the_schema_is_fulfilled(tmp_path: Path) -> None:
    made = content(tmp_path, rank=RANK)
    assert {*made} == {"metadata", "qParams", "nodes", "links"}
    assert {"slug", "scan", "prompt", "prompt_tokens"} <= {*made["metadata"]}
    assert all(type(node[field]) is kind for node in made["nodes"] for field, kind in NODE.items())
    ids = {node["node_id"] for node in made["nodes"]}
    assert len(ids) == len(made["nodes"]) == sum(GRAPH.layer_sizes)
    assert all({link["source"], link["target"]} <= ids for link in made["links"])
    assert {node["ctx_idx"] for node in made["nodes"]} == {0}
    assert len(made["metadata"]["prompt_tokens"]) == 1


def test_every_number_is_as_it_was(tmp_path: Path) -> None:
    made = content(tmp_path, rank=RANK)
    expected = to_networkx(GRAPH, rank=RANK)
    nodes = {layer_and_index(node): node for node in made["nodes"]}
    assert {key: node["activation"] for key, node in nodes.items()} == dict(expected.nodes(data="activation"))
    assert nodes[1, 2]["layer"] == "1"
    assert nodes[1, 2]["clerp"] == f'm.0 <&> "ü"\0 2, score {RANK.scores[1][2]:.3g}'
    edges = {
        (tuple(map(int, link["source"].split("_")[:2])), tuple(map(int, link["target"].split("_")[:2]))): link["weight"]
        for link in made["links"]
    }
    assert edges == {(source, target): weight for source, target, weight in expected.edges(data="weight")}


def test_influence_is_the_share_of_the_layer_down_to_a_node(tmp_path: Path) -> None:
    made = content(tmp_path, rank=RANK)
    expected = []
    for scores in RANK.scores:
        order = np.argsort(-scores, kind="stable")
        shares = np.empty(len(scores))
        shares[order] = np.cumsum(scores[order]) / scores.sum()
        expected += shares.tolist()
    assert [node["influence"] for node in made["nodes"]] == pytest.approx(expected)
    assert max(node["influence"] for node in made["nodes"]) == 1.0
    # With a threshold, the viewer shows its slider; at this one it shows every node.
    assert made["metadata"]["node_threshold"] == 1.0


def test_nodes_of_a_subgraph_keep_their_numbers(tmp_path: Path) -> None:
    shown = top_subgraph(GRAPH, RANK, nodes=2, layers=(1, 2))
    made = content(tmp_path, shown)
    assert {layer_and_index(node) for node in made["nodes"]} == {label for layer in shown.labels for label in layer}


def test_a_graph_without_scores_has_no_influences(tmp_path: Path) -> None:
    made = content(tmp_path)
    assert {node["influence"] for node in made["nodes"]} == {None}
    assert made["nodes"][0]["clerp"] == "in 0"
    assert "node_threshold" not in made["metadata"]


@table(
    ("model", "name"),
    [("google/gemma-2-2b", "gemma-2-2b"), ("a/b c:ü/", "b-c-"), ("", "model"), ("m_1.gguf", "m_1.gguf")],
)
def test_names_are_made_of_what_neuronpedia_takes(tmp_path: Path, model: str, name: str) -> None:
    made = content(tmp_path, name="graph 0-top.neuronpedia.json", model=model)["metadata"]
    assert made["scan"] == name
    assert re.fullmatch(f"{re.escape(name)}-graph-0-top-[0-9a-f]{{8}}", made["slug"])


def test_graphs_have_names_of_their_own(tmp_path: Path) -> None:
    slugs = [
        content(tmp_path, name=name, **options)["metadata"]["slug"]
        for name, options in (
            ("run.v1.json", {}),
            ("run.v2.json", {}),
            ("run.v1.json", {"rank": RANK}),
            ("run.v1.json", {}),
        )
    ]
    assert slugs[0] == slugs[3]
    assert len({*slugs}) == 3
    assert slugs[0].startswith("model-run.v1-")


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with pytest.raises(GraphError, match="above max_edges=1, more than a viewer shows"):
        write_neuronpedia(GRAPH, target, max_edges=1)
    bad = LayeredGraph.from_weights([[[np.nan]]], [1], [[1]], check_finite=False)
    with pytest.raises(GraphError, match="the edge weights hold NaN or Inf"):
        write_neuronpedia(bad, target)
    for scores in np.inf, np.nan:
        broken = replace(RANK, scores=(*RANK.scores[:2], np.full(3, scores)))
        with pytest.raises(GraphError, match="scores"):
            write_neuronpedia(GRAPH, target, broken)
    with pytest.raises(GraphError, match="expected a LayeredGraph or a Subgraph, got NoneType"):
        write_neuronpedia(None, target)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="in layers of 3, 4, 3, got 2, 2"):
        write_neuronpedia(GRAPH, target, weighted_pagerank(random_case(1, (2, 2)).graph()))
    assert list(tmp_path.iterdir()) == []
