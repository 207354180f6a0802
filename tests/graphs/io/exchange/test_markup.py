"""GraphML and GEXF: files that networkx and igraph read back exactly, and that Gephi opens."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs import GraphError, LayeredGraph, weighted_pagerank
from graphs.io.convert import from_networkx, to_networkx
from graphs.io.exchange import write_gexf, write_graphml
from graphs.reduction.subgraphs import top_subgraph
from tests.graphs.cases import Case, cases, random_case
from tests.graphs.io.test_graph_files import same_graph
from tests.tables import table

WRITERS: dict[str, Callable[..., None]] = {"graphml": write_graphml, "gexf": write_gexf}
READERS: dict[str, Callable[..., Any]] = {"graphml": networkx.read_graphml, "gexf": networkx.read_gexf}
every_form = pytest.mark.parametrize("form", WRITERS)

CASE = random_case(1, (3, 4, 3), density=0.7)
GRAPH = LayeredGraph.from_weights(CASE.weights, CASE.inputs, CASE.activations, names=("in", 'm.0 <&> "ü"', "out"))
RANK = weighted_pagerank(GRAPH)

# All characters that XML can hold except a carriage return, which its readers turn into a line feed.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\ufffe\uffff", exclude_categories=("Cc", "Cs")))
NUMBERS = st.floats(0.0, allow_infinity=False, allow_nan=False, exclude_min=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that every example overwrites, because hypothesis accepts no fixture that changes with the test."""
    return tmp_path_factory.mktemp("markup") / "file.xml"


def written(form: str, path: Path, graph: Any = GRAPH, **options: Any) -> bytes:
    WRITERS[form](graph, path, **options)
    return path.read_bytes()


# --- round trips


@every_form
@given(data=st.data(), case=cases(max_blocks=3, max_size=4))
def test_round_trips_are_exact(form: str, path: Path, data: st.DataObject, case: Case) -> None:
    names = data.draw(st.lists(NAMES, min_size=len(case.sizes), max_size=len(case.sizes), unique=True))
    weights = [weight * data.draw(st.sampled_from([1.0, 1e-300, 1e300])) for weight in case.weights]
    graph = LayeredGraph.from_weights(weights, case.inputs, case.activations, names)
    rank = weighted_pagerank(graph) if data.draw(st.booleans()) else None
    WRITERS[form](graph, path, rank)
    again, labels = from_networkx(READERS[form](path))
    assert same_graph(again, graph.with_csr())
    assert labels == tuple(tuple(f"{layer}:{k}" for k in range(size)) for layer, size in enumerate(case.sizes))


@every_form
@given(weight=NUMBERS, activation=NUMBERS)
def test_every_float_comes_back(form: str, path: Path, weight: float, activation: float) -> None:
    graph = LayeredGraph.from_weights([[[weight]]], [activation], [[0.0]])
    WRITERS[form](graph, path)
    assert same_graph(from_networkx(READERS[form](path))[0], graph.with_csr())


@every_form
def test_networkx_reads_the_same_types(form: str, path: Path) -> None:
    written(form, path, rank=RANK)
    digraph = READERS[form](path)
    expected = to_networkx(GRAPH, rank=RANK)
    assert type(digraph) is networkx.DiGraph
    assert set(digraph) == {f"{layer}:{k}" for layer, k in expected}
    for (layer, k), facts in expected.nodes(data=True):
        found = dict(digraph.nodes[f"{layer}:{k}"])
        assert form == "graphml" or found.pop("label") == f"{layer}:{k}"
        assert found == facts
        assert {name: type(value) for name, value in found.items()} == {
            "layer": int,
            "index": int,
            "name": str,
            "activation": float,
            "score": float,
        }
    for (a, i), (b, j), weight in expected.edges(data="weight"):
        found = digraph.edges[f"{a}:{i}", f"{b}:{j}"]["weight"]
        assert found == weight
        assert type(found) is float
    assert digraph.number_of_edges() == expected.number_of_edges()


def test_igraph_reads_the_same_graphml(path: Path) -> None:
    igraph = pytest.importorskip("igraph")
    written("graphml", path, rank=RANK)
    found = igraph.Graph.Read_GraphML(str(path))
    assert found.is_directed()
    expected = to_networkx(GRAPH, rank=RANK)
    vertices = {vertex["id"]: vertex.attributes() for vertex in found.vs}
    for (layer, k), facts in expected.nodes(data=True):
        assert vertices[f"{layer}:{k}"] == {**facts, "id": f"{layer}:{k}"}
    edges = {(found.vs[e.source]["id"], found.vs[e.target]["id"]): e["weight"] for e in found.es}
    assert edges == {(f"{a}:{i}", f"{b}:{j}"): weight for (a, i), (b, j), weight in expected.edges(data="weight")}


def test_gexf_has_the_elements_that_gephi_needs(path: Path) -> None:
    root = ElementTree.fromstring(written("gexf", path, rank=RANK))
    space = {"g": "http://www.gexf.net/1.2draft"}
    graph = root.find("g:graph", space)
    assert graph is not None
    assert graph.attrib["defaultedgetype"] == "directed"
    # The weight must be the attribute of the edge that Gephi reads as its weight, not one of the other values.
    edges = graph.findall("g:edges/g:edge", space)
    assert len(edges) == GRAPH.n_edges
    assert all(float(edge.attrib["weight"]) > 0 and "id" in edge.attrib for edge in edges)
    kinds = {a.attrib["title"]: a.attrib["type"] for a in graph.findall("g:attributes/g:attribute", space)}
    assert kinds == {"layer": "long", "index": "long", "name": "string", "activation": "double", "score": "double"}


# The part of the GEXF 1.2 schema that is written: for each element its attributes (! = required) and children.
GEXF_SCHEMA = {
    "gexf": ({"!version", "variant"}, {"meta", "graph"}),
    "meta": ({"lastmodifieddate"}, {"creator", "keywords", "description"}),
    "creator": (set(), set()),
    "graph": ({"defaultedgetype", "idtype", "mode", "timeformat", "start", "end"}, {"attributes", "nodes", "edges"}),
    "attributes": ({"!class", "mode", "start", "end"}, {"attribute"}),
    "attribute": ({"!id", "!title", "!type"}, {"default", "options"}),
    "nodes": ({"count"}, {"node"}),
    "node": ({"!id", "label", "pid", "start", "end"}, {"attvalues", "spells", "nodes", "edges", "parents"}),
    "attvalues": (set(), {"attvalue"}),
    "attvalue": ({"!for", "!value", "start", "end"}, set()),
    "edges": ({"count"}, {"edge"}),
    "edge": ({"!id", "!source", "!target", "label", "type", "weight", "start", "end"}, {"attvalues", "spells"}),
}
ONE_OF = {
    ("gexf", "version"): {"1.2"},
    ("graph", "defaultedgetype"): {"directed", "undirected", "mutual"},
    ("graph", "mode"): {"static", "dynamic"},
    ("attributes", "mode"): {"static", "dynamic"},
    ("attributes", "class"): {"node", "edge"},
    ("attribute", "type"): {"integer", "long", "double", "float", "boolean", "liststring", "string", "anyURI"},
}


@pytest.mark.parametrize("ranked", [True, False])
def test_gexf_follows_the_schema(path: Path, ranked: bool) -> None:
    """Check the schema rule by rule, because the standard library cannot; Gephi needs no more."""
    root = ElementTree.fromstring(written("gexf", path, rank=RANK if ranked else None))
    space = "{http://www.gexf.net/1.2draft}"
    assert root.tag == f"{space}gexf"
    schema_location = "{http://www.w3.org/2001/XMLSchema-instance}schemaLocation"
    for element in root.iter():
        name = element.tag.removeprefix(space)
        allowed, children = GEXF_SCHEMA[name]
        given = set(element.attrib) - {schema_location}
        assert given <= {attribute.removeprefix("!") for attribute in allowed}, name
        assert given >= {attribute[1:] for attribute in allowed if attribute.startswith("!")}, name
        assert {child.tag.removeprefix(space) for child in element} <= children
        for attribute in given:
            assert element.attrib[attribute] in ONE_OF.get((name, attribute), {element.attrib[attribute]})
            # Gephi treats empty values as missing.
            assert element.attrib[attribute]
    everything: dict[str, list[Any]] = {
        name: list(root.iter(f"{space}{name}")) for name in ("node", "edge", "attribute", "attvalue", "graph")
    }
    assert len(everything["graph"]) == 1
    ids = {name: [element.attrib["id"] for element in everything[name]] for name in ("node", "edge", "attribute")}
    assert all(len(found) == len(set(found)) for found in ids.values())
    for edge in everything["edge"]:
        assert {edge.attrib["source"], edge.attrib["target"]} <= set(ids["node"])
        assert re.fullmatch(r"[0-9.]+(e[-+]?[0-9]+)?", edge.attrib["weight"])
    kinds = {element.attrib["id"]: element.attrib["type"] for element in everything["attribute"]}
    parse: dict[str, Callable[[str], Any]] = {"long": int, "double": float, "string": str}
    for value in everything["attvalue"]:
        parse[kinds[value.attrib["for"]]](value.attrib["value"])
    # Nodes and attributes are declared before they are referred to: Gephi reads from top to bottom, once.
    order = [child.tag.removeprefix(space) for child in everything["graph"][0]]
    assert order == ["attributes", "nodes", "edges"]


@every_form
def test_subgraphs_keep_the_names_of_the_original(form: str, path: Path) -> None:
    graph = random_case(2, (6, 5, 7, 4)).graph()
    shown = top_subgraph(graph, weighted_pagerank(graph), 3, layers=(1, 2, 3))
    written(form, path, shown)
    again, labels = from_networkx(READERS[form](path))
    assert labels == tuple(tuple(f"{layer}:{k}" for layer, k in members) for members in shown.labels)
    assert same_graph(again, shown.graph)
    digraph = READERS[form](path)
    assert shown.scores is not None
    assert digraph.nodes[labels[0][0]]["score"] == shown.scores[0][0]
    assert digraph.nodes[labels[2][1]]["layer"] == 3


@every_form
def test_the_same_graph_gives_the_same_bytes(form: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(form, path, rank=RANK)
    monkeypatch.setattr(time, "strftime", lambda *_: "2001-01-01")
    assert written(form, path, rank=RANK) == first
    assert not re.search(rb"lastmodified|20\d\d-\d\d-\d\d", first)


# --- refused on writing


@every_form
def test_more_edges_than_a_viewer_shows_are_refused(form: str, tmp_path: Path) -> None:
    graph = LayeredGraph.from_weights([np.ones((10, 20))], np.ones(20), [np.ones(10)])
    with pytest.raises(
        GraphError, match=r"200 edges, above max_edges=199, .* \(top_subgraph, ego, between\) .* \(sparsify\)"
    ):
        WRITERS[form](graph, tmp_path / "file", max_edges=199)
    assert list(tmp_path.iterdir()) == []
    WRITERS[form](graph, tmp_path / "file", max_edges=200)


@every_form
@table("name", ["a\0", "\x1b[0m", "a\rb", "\ud800", "\uffff"])
def test_names_that_xml_cannot_hold_are_refused(form: str, tmp_path: Path, name: str) -> None:
    graph = LayeredGraph.from_weights([[[1.0]]], [1], [[1]], names=("in", name))
    with pytest.raises(GraphError, match="which XML cannot hold"):
        WRITERS[form](graph, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@every_form
def test_weights_and_ranks_that_do_not_fit_are_refused(form: str, tmp_path: Path) -> None:
    bad = LayeredGraph.from_weights([np.array([[np.nan, 1.0]])], [1, 1], [[1]], check_finite=False)
    with pytest.raises(GraphError, match="the edge weights hold NaN or Inf"):
        WRITERS[form](bad, tmp_path / "file")
    with pytest.raises(GraphError, match="in layers of 3, 4, 3, got 2, 2"):
        WRITERS[form](GRAPH, tmp_path / "file", weighted_pagerank(random_case(1, (2, 2)).graph()))
    with pytest.raises(GraphError, match="there is no directory"):
        WRITERS[form](GRAPH, tmp_path / "absent" / "file")
    assert list(tmp_path.iterdir()) == []


@every_form
def test_a_failed_write_leaves_the_old_file(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    before = written(form, target)

    def fail(file: Path, content: bytes) -> None:
        file.write_text(content.decode()[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        WRITERS[form](GRAPH, target)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == before
