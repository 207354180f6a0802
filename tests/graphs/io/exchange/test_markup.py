"""GraphML and GEXF: round trips, other readers, and errors for damaged or hostile files."""

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import GraphError, LayeredGraph, weighted_pagerank
from graphs.io.convert import to_networkx
from graphs.io.exchange import read_gexf, read_graphml, write_gexf, write_graphml
from graphs.reduction.subgraphs import top_subgraph
from tests.graphs.cases import Case, cases, random_case
from tests.graphs.io.test_graph_files import same_graph

WRITERS: dict[str, Callable[..., None]] = {"graphml": write_graphml, "gexf": write_gexf}
READERS: dict[str, Callable[..., Any]] = {"graphml": read_graphml, "gexf": read_gexf}
NETWORKX: dict[str, Callable[..., Any]] = {"graphml": networkx.read_graphml, "gexf": networkx.read_gexf}
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
    again, labels = READERS[form](path)
    assert same_graph(again, graph.with_csr())
    assert labels == tuple(tuple(f"{layer}:{k}" for k in range(size)) for layer, size in enumerate(case.sizes))


@every_form
@given(weight=NUMBERS, activation=NUMBERS)
def test_every_float_comes_back(form: str, path: Path, weight: float, activation: float) -> None:
    graph = LayeredGraph.from_weights([[[weight]]], [activation], [[0.0]])
    WRITERS[form](graph, path)
    assert same_graph(READERS[form](path)[0], graph.with_csr())


@every_form
def test_networkx_reads_the_same_types(form: str, path: Path) -> None:
    written(form, path, rank=RANK)
    digraph = NETWORKX[form](path)
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


def test_graphml_of_igraph_comes_back(path: Path) -> None:
    igraph = pytest.importorskip("igraph")
    written("graphml", path)
    igraph.Graph.Read_GraphML(str(path)).write_graphml(str(path))
    again, _ = read_graphml(path)
    # igraph knows no integers and writes fifteen digits.
    assert (again.layers, again.names) == (GRAPH.layers, GRAPH.names)
    for layer in (1, 2):
        np.testing.assert_allclose(again.block(layer).toarray(), GRAPH.block(layer).toarray(), rtol=1e-12)


def test_gexf_has_the_elements_that_gephi_needs(path: Path) -> None:
    root = ElementTree.fromstring(written("gexf", path, rank=RANK))
    space = {"g": "http://www.gexf.net/1.2draft"}
    graph = root.find("g:graph", space)
    assert graph is not None
    assert graph.attrib["defaultedgetype"] == "directed"
    # The weight must be the attribute of the edge that Gephi reads as its weight, not one of the other values.
    edges = graph.findall("g:edges/g:edge", space)
    assert len(edges) == GRAPH.edges
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
    again, labels = READERS[form](path)
    assert labels == tuple(tuple(f"{layer}:{k}" for layer, k in members) for members in shown.labels)
    assert same_graph(again, shown.graph)
    digraph = NETWORKX[form](path)
    assert shown.scores is not None
    assert digraph.nodes[labels[0][0]]["score"] == shown.scores[0][0]
    assert digraph.nodes[labels[2][1]]["layer"] == 3


@every_form
def test_the_same_graph_gives_the_same_bytes(form: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(form, path, rank=RANK)
    monkeypatch.setattr(time, "strftime", lambda *_: "2001-01-01")
    assert written(form, path, rank=RANK) == first
    assert not re.search(rb"lastmodified|20\d\d-\d\d-\d\d", first)


@every_form
def test_files_of_other_programs_without_our_attributes(form: str, path: Path) -> None:
    other = networkx.DiGraph([("a", "x"), ("b", "x"), ("x", "z")])
    {"graphml": networkx.write_graphml_xml, "gexf": networkx.write_gexf}[form](other, path)
    graph, labels = READERS[form](path)
    assert labels == (("a", "b"), ("x",), ("z",))
    np.testing.assert_array_equal(graph.block(1).toarray(), [[1.0, 1.0]])


HEADS = {
    "graphml": (
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{keys}<graph edgedefault="directed">{body}</graph>'
        "{tail}</graphml>"
    ),
    "gexf": (
        '<gexf xmlns="http://www.gexf.net/1.2draft" version="1.2"><graph defaultedgetype="directed">{keys}{body}</graph>'
        "{tail}</gexf>"
    ),
}


def by_hand(form: str, nodes: str, edges: str, keys: str = "", tail: str = "") -> bytes:
    body = nodes + edges if form == "graphml" else f"<nodes>{nodes}</nodes><edges>{edges}</edges>"
    return HEADS[form].format(keys=keys, body=body, tail=tail).encode()


DEFAULTS = {
    "graphml": (
        (
            '<key id="w" for="edge" attr.name="weight" attr.type="double"><default>2.5</default></key>'
            '<key id="a" for="node" attr.name="activation" attr.type="double"><default>0.5</default></key>'
            '<key id="c" for="node" attr.name="colour" attr.type="string"><default>red</default></key>'
        ),
        '<node id="a"/><node id="b"><data key="a">4</data></node><node id="x"/>',
        '<edge source="a" target="x"/><edge source="b" target="x"><data key="w">7</data></edge>',
    ),
    "gexf": (
        (
            '<attributes class="edge"><attribute id="w" title="weight" type="double"><default>2.5</default></attribute>'
            "</attributes>"
            '<attributes class="node"><attribute id="a" title="activation" type="double"><default>0.5</default></attribute>'
            "</attributes>"
        ),
        '<node id="a"/><node id="b"><attvalues><attvalue for="a" value="4"/></attvalues></node><node id="x"/>',
        '<edge id="0" source="a" target="x"/><edge id="1" source="b" target="x" weight="7"/>',
    ),
}


@every_form
def test_default_values_are_used(form: str, path: Path) -> None:
    """networkx does not set default values on the elements, so every weight would be 1."""
    keys, nodes, edges = DEFAULTS[form]
    path.write_bytes(by_hand(form, nodes, edges, keys))
    graph, labels = READERS[form](path)
    assert labels == (("a", "b"), ("x",))
    assert [values.tolist() for values in graph.activations] == [[0.5, 4.0], [0.5]]
    np.testing.assert_array_equal(graph.block(1).toarray(), [[2.5, 7.0]])


def test_parallel_edges_add_up(path: Path) -> None:
    key = '<key id="w" for="edge" attr.name="weight" attr.type="double"/>'
    edge = '<edge{} source="a" target="x"><data key="w">2</data></edge>'
    for ids in (("", ""), (' id="0"', ' id="1"')):
        path.write_bytes(by_hand("graphml", '<node id="a"/><node id="x"/>', "".join(map(edge.format, ids)), key))
        np.testing.assert_array_equal(read_graphml(path)[0].block(1).toarray(), [[4.0]])


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
@pytest.mark.parametrize("name", ["a\0", "\x1b[0m", "a\rb", "\ud800", "\uffff"])
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


# --- refused on reading


def outcome(form: str, path: Path, content: bytes) -> Any:
    """Read the graph; None if the file is refused with a GraphError."""
    path.write_bytes(content)
    try:
        return READERS[form](path)[0]
    except GraphError:
        return None


def unsealed(content: bytes) -> bytes:
    """Remove the checksum, as if another program had written the file."""
    without, count = re.subn(rb"<!-- crc32 .*? -->\n", b"", content)
    assert count == 1
    return without


@every_form
@pytest.mark.parametrize("seal", [True, False])
def test_truncated_files_are_refused_at_every_length(form: str, seal: bool, path: Path) -> None:
    whole = written(form, path, rank=RANK)
    whole = whole if seal else unsealed(whole)
    # All lengths except that without the last line feed, which is optional.
    for length in range(0, len(whole.rstrip()), 7):
        assert outcome(form, path, whole[:length]) is None


@every_form
def test_every_byte_flipped_alone_is_refused_or_changes_nothing(form: str, path: Path) -> None:
    small = LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 1], [[3.0]])
    whole = written(form, path, small)
    refused = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        found = outcome(form, path, bytes(damaged))
        refused += found is None
        assert found is None or same_graph(found, small.with_csr())
    assert refused > len(whole) - 200


@every_form
@settings(max_examples=300)
@given(data=st.data(), seal=st.booleans())
def test_flipped_bytes_give_a_graph_or_an_error(form: str, path: Path, data: st.DataObject, seal: bool) -> None:
    whole = written(form, path, rank=RANK)
    damaged = bytearray(whole if seal else unsealed(whole))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    found = outcome(form, path, bytes(damaged))
    if found is not None:
        assert all(np.isfinite(block.to_csr().data).all() for block in found.blocks)


@every_form
def test_shuffled_and_repeated_lines_give_a_graph_or_an_error(form: str, path: Path) -> None:
    lines = unsealed(written(form, path, rank=RANK)).splitlines(keepends=True)
    rng = random.Random(0)
    outcomes = set()
    for _ in range(150):
        damaged = lines.copy()
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(damaged))
            damaged[place : place + 1] = rng.choice(([], [damaged[place]] * 2, [rng.choice(lines)]))
        outcomes.add(outcome(form, path, b"".join(damaged)) is None)
    assert outcomes == {True, False}


@every_form
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"directed"', b'"undirected"'),
        (b'<node id="0:0"', b'<node id="0:1"'),
        (b"target=", b"tarred="),
        (b"source=", b"sauced="),
        (b"long", b"string"),
        (b"double", b"complex"),
        (b"xmlns=", b"xmlms="),
    ],
)
def test_edits_that_leave_no_graph_are_refused(form: str, path: Path, old: bytes, new: bytes) -> None:
    whole = unsealed(written(form, path, rank=RANK))
    assert old in whole
    assert outcome(form, path, whole.replace(old, new)) is None


NODES = '<node id="a"/><node id="b"/><node id="x"/>'
EDGES = '<edge id="0" source="a" target="x"/><edge id="1" source="b" target="x"/>'
MORE = {
    "graphml": '<graph edgedefault="directed"><node id="c"/></graph>',
    "gexf": '<graph defaultedgetype="directed"><nodes><node id="c"/></nodes></graph>',
}


@every_form
@pytest.mark.parametrize(
    ("nodes", "edges"),
    [
        (NODES + '<node id="a"/>', EDGES),
        (NODES, EDGES + '<edge id="2" source="a" target="y"/>'),
        (NODES, EDGES + '<edge id="1" source="b" target="x" weight="3"/>'),
        (NODES, EDGES + '<edge id="2" source="a"/>'),
        (NODES, EDGES + '<edge id="2" target="x"/>'),
        ('<node id="a">%(inner)s</node><node id="b"/><node id="x"/>', EDGES),
        (NODES, EDGES + "%(inner)s"),
    ],
    ids=["node twice", "no such node", "edge twice", "no target", "no source", "graph in a node", "graph in a graph"],
)
def test_files_that_networkx_misreads_are_refused(form: str, path: Path, nodes: str, edges: str) -> None:
    inner = {"inner": MORE[form]}
    path.write_bytes(by_hand(form, NODES, EDGES))
    assert READERS[form](path)[1] == (("a", "b"), ("x",))
    path.write_bytes(by_hand(form, nodes % inner, edges % inner))
    with pytest.raises(GraphError, match=r"expected one graph|None cannot be a node"):
        READERS[form](path)


@every_form
def test_several_graphs_are_refused(form: str, path: Path) -> None:
    path.write_bytes(by_hand(form, NODES, EDGES, tail=MORE[form]))
    with pytest.raises(GraphError, match=r"the file has 4 nodes and 2 edges, but they make a graph of 3 and 2"):
        READERS[form](path)


@every_form
@pytest.mark.parametrize("node", ["<node/>", '<node id=""/>'])
def test_nodes_without_an_id_are_refused(form: str, path: Path, node: str) -> None:
    path.write_bytes(by_hand(form, NODES + node, EDGES))
    with pytest.raises(GraphError, match="node number 4 has no id"):
        READERS[form](path)


@pytest.mark.parametrize("kind", ["", ' for="all"'])
def test_defaults_of_nodes_and_edges_alike_are_refused(path: Path, kind: str) -> None:
    key = f'<key id="w"{kind} attr.name="weight" attr.type="double"><default>2</default></key>'
    path.write_bytes(by_hand("graphml", NODES, EDGES, key))
    with pytest.raises(GraphError, match="for both nodes and edges has a default value"):
        read_graphml(path)


def test_elements_of_other_namespaces_do_not_count(path: Path) -> None:
    other = '<d0:node xmlns:d0="urn:other"><d0:edge/></d0:node>'
    path.write_bytes(
        by_hand("graphml", NODES, EDGES, f'<key id="d" for="node" attr.name="look" attr.type="string"/>{other}')
    )
    assert read_graphml(path)[0].layers == (2, 1)


@every_form
def test_intended_edits_need_the_checksum_removed(form: str, path: Path) -> None:
    graph = LayeredGraph.from_weights([[[0.5, 2.0]]], [1, 1], [[1]])
    edited = written(form, path, graph).replace(b"0.5", b"0.75")
    path.write_bytes(edited)
    with pytest.raises(GraphError, match=r"is not as it was written .* remove the comment with the checksum"):
        READERS[form](path)
    path.write_bytes(unsealed(edited))
    np.testing.assert_array_equal(READERS[form](path)[0].block(1).toarray(), [[0.75, 2.0]])


BOMB = b"""<?xml version="1.0"?>
<!DOCTYPE %(root)s [
 <!ENTITY a "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa">
 <!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
 <!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;"><!ENTITY e "&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;">
 <!ENTITY f "&e;&e;&e;&e;&e;&e;&e;&e;&e;&e;"><!ENTITY g "&f;&f;&f;&f;&f;&f;&f;&f;&f;&f;">
]>
<%(root)s>&g;</%(root)s>"""
FILE = b'<?xml version="1.0"?><!DOCTYPE %(root)s SYSTEM "file:///etc/passwd"><%(root)s/>'


@every_form
@pytest.mark.parametrize("bomb", [BOMB, FILE], ids=["entities", "external"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_are_refused_before_they_expand(form: str, path: Path, bomb: bytes, encoding: str) -> None:
    content = (bomb % {b"root": form.encode()}).decode().encode(encoding)
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(GraphError, match="document type declaration, whose entities can expand without end"):
        READERS[form](path)
    assert time.monotonic() - started < 1.0


@every_form
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no element found"),
        (b"hello", "syntax error"),
        (b"\xff\xfe\x00", "expected well-formed XML"),
        (b"PK\x03\x04" + b"\0" * 50, "expected well-formed XML"),
        (b"<?xml version='1.0' encoding='klingon'?><a/>", "expected well-formed XML"),
        (b"<html><body/></html>", "expected the root element"),
        (b"<%(root)s/>", "is not a .* file that can be read"),
        (b"<%(root)s>" + b"<a>" * 100_000, "nest more than 64 deep"),
        (b"<%(root)s>" + b"<edge/>" * 11, "more than max_edges=10 edges"),
    ],
)
def test_foreign_and_hostile_files_are_refused(form: str, path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content.replace(b"%(root)s", form.encode()))
    with pytest.raises(GraphError, match=message):
        READERS[form](path, max_edges=10)


def test_the_formats_are_not_mixed_up(path: Path) -> None:
    written("gexf", path)
    with pytest.raises(
        GraphError, match="expected the root element <graphml>, got <gexf>; choose the reader of its format"
    ):
        read_graphml(path)
    written("graphml", path)
    with pytest.raises(GraphError, match="expected the root element <gexf>, got <graphml>"):
        read_gexf(path)


@every_form
def test_graphs_that_are_not_layered_are_refused_by_their_file(form: str, path: Path) -> None:
    ring = networkx.DiGraph([("a", "b"), ("b", "a")])
    {"graphml": networkx.write_graphml_xml, "gexf": networkx.write_gexf}[form](ring, path)
    with pytest.raises(GraphError, match=rf"{re.escape(str(path))}: no layers fit"):
        READERS[form](path)


@every_form
def test_missing_files_are_refused(form: str, tmp_path: Path) -> None:
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(GraphError, match=r"no G\w+ file at"):
            READERS[form](missing)
