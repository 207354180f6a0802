"""Tables in CSV and Parquet: csv and pyarrow read every number back exactly."""

import csv
import importlib.util
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphs import GraphError, LayeredGraph, weighted_pagerank
from graphs.io.convert import to_networkx
from graphs.io.exchange import tables, write_tables
from graphs.reduction.subgraphs import Subgraph, top_subgraph
from tests.graphs.cases import Case, cases, random_case
from tests.tables import table

Columns: TypeAlias = dict[str, list[Any]]

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
every_form = pytest.mark.parametrize("form", ["csv", pytest.param("parquet", marks=needs_pyarrow)])

CASE = random_case(1, (3, 4, 3), density=0.7)
GRAPH = LayeredGraph.from_weights(CASE.weights, CASE.inputs, CASE.activations, names=("in", 'a,"b"\r\n;\'ü', "out"))
RANK = weighted_pagerank(GRAPH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that every example overwrites, because hypothesis accepts no fixture that changes with the test."""
    return tmp_path_factory.mktemp("tables")


def read(path: Path) -> Columns:
    """Read the columns of a table with csv or pyarrow."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return dict(parquet.read_table(path, page_checksum_verification=True).to_pydict())
    parse: dict[str, Callable[[str], Any]] = {"name": str, "activation": float, "score": float, "weight": float}
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file, strict=True)
    assert all(len(row) == len(header) for row in rows)
    return {name: [parse.get(name, int)(row[place]) for row in rows] for place, name in enumerate(header)}


def labelled(graph: LayeredGraph | Subgraph) -> tuple[LayeredGraph, Any]:
    """Return the graph, and the (layer, index) of every node by layer."""
    if isinstance(graph, Subgraph):
        return graph.graph, graph.labels
    return graph, [[(layer, k) for k in range(size)] for layer, size in enumerate(graph.layer_sizes)]


def node_columns(graph: LayeredGraph | Subgraph, scores: Iterable[Any] | None = None) -> Columns:
    layered, labels = labelled(graph)
    columns: Columns = {
        "layer": [layer for members in labels for layer, _ in members],
        "index": [index for members in labels for _, index in members],
        "name": [name for name, size in zip(layered.names, layered.layer_sizes, strict=True) for _ in range(size)],
        "activation": np.concatenate(layered.activations).tolist(),
    }
    return columns if scores is None else {**columns, "score": np.concatenate(list(scores)).tolist()}


def edge_columns(graph: LayeredGraph | Subgraph) -> Columns:
    layered, labels = labelled(graph)
    rows = [
        (*labels[layer - 1][source], *labels[layer][target], weights[target, source].item())
        for layer in range(1, len(labels))
        for weights in [layered.block(layer).toarray()]
        for target, source in np.argwhere(weights)
    ]
    names = ("source_layer", "source", "target_layer", "target", "weight")
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def assert_same(found: Columns, expected: Columns) -> None:
    """Check that columns and rows are the same in the same order, and floats bit for bit."""
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert list(map(repr, found[name])) == list(map(repr, values)), name


def weight_type(edges: Path) -> str:
    from pyarrow import parquet

    return str(parquet.read_schema(edges).field("weight").type)


# --- round trips


@every_form
@given(case=cases(), data=st.data(), narrow=st.booleans())
def test_round_trips_are_exact(form: Any, folder: Path, case: Case, data: st.DataObject, narrow: bool) -> None:
    n_layers = len(case.sizes)
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
    names = data.draw(st.lists(text, min_size=n_layers, max_size=n_layers, unique=True))
    scale = data.draw(st.sampled_from([1.0, 1e-30, 1e30]))
    weights = [(weight * scale).astype(np.float32 if narrow else np.float64) for weight in case.weights]
    graph = LayeredGraph.from_weights(weights, case.inputs, case.activations, names)
    rank = weighted_pagerank(graph) if data.draw(st.booleans()) else None
    nodes, edges = write_tables(graph, folder / "any", rank, form)
    expected = node_columns(graph, None if rank is None else rank.scores)
    if form == "csv":  # no spreadsheet computes a name
        expected["name"] = [f"'{name}" if name[:1] in set("=+-@\t\r") else name for name in expected["name"]]
    assert_same(read(nodes), expected)
    assert_same(read(edges), edge_columns(graph))
    assert form == "csv" or weight_type(edges) == ("float" if narrow else "double")


@every_form
@given(
    weight=st.floats(0.0, exclude_min=True, allow_infinity=False),
    activation=st.floats(0.0, allow_infinity=False),
)
def test_every_float_comes_back(form: Any, folder: Path, weight: float, activation: float) -> None:
    graph = LayeredGraph.from_weights([[[weight]]], [activation], [[0.0]])
    nodes, edges = map(read, write_tables(graph, folder / "float", format=form))
    assert [value.hex() for value in nodes["activation"]] == [activation.hex(), (0.0).hex()]
    assert [value.hex() for value in edges["weight"]] == [weight.hex()]


@every_form
@table(
    "weights",
    [
        lambda weight: torch.from_numpy(weight).bfloat16(),
        np.asfortranarray,
        lambda weight: (weight.astype(np.float32), weight.astype(np.float32) / 3),
    ],
)
@table("elements", [1, 7, 1 << 19])
def test_dense_blocks_are_written_in_bands(
    form: Any, folder: Path, weights: Callable[[Any], Any], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = CASE.graph([weights(weight) for weight in CASE.weights])
    monkeypatch.setattr("graphs.reduction.edge_selection.BAND_ELEMENTS", elements)
    nodes, edges = write_tables(graph, folder / "dense", format=form)
    assert_same(read(nodes), node_columns(graph))
    assert_same(read(edges), edge_columns(graph))
    assert form == "csv" or weight_type(edges) == {"float32": "float", "float64": "double"}[graph.block(1).dtype.name]


@every_form
def test_float64_wins_where_blocks_differ(form: Any, folder: Path) -> None:
    graph = CASE.graph([CASE.weights[0].astype(np.float32), CASE.weights[1]])
    _, edges = write_tables(graph, folder / "mixed", format=form)
    assert_same(read(edges), edge_columns(graph))
    assert form == "csv" or weight_type(edges) == "double"


@every_form
def test_subgraphs_keep_the_names_of_the_original(form: Any, folder: Path) -> None:
    graph = random_case(2, (6, 5, 7, 4)).graph()
    shown = top_subgraph(graph, weighted_pagerank(graph), 3, layers=(1, 2, 3))
    nodes, edges = write_tables(shown, folder / "part", format=form)
    assert_same(read(nodes), node_columns(shown, shown.scores))
    assert_same(read(edges), edge_columns(shown))
    assert list(dict.fromkeys(read(nodes)["layer"])) == [1, 2, 3]


@every_form
def test_tables_in_a_directory_or_with_a_prefix(form: Any, tmp_path: Path) -> None:
    assert write_tables(GRAPH, tmp_path, format=form) == (tmp_path / f"nodes.{form}", tmp_path / f"edges.{form}")
    assert {file.name for file in tmp_path.iterdir()} == {f"nodes.{form}", f"edges.{form}"}
    stem = str(tmp_path / "graph.v1")
    assert write_tables(GRAPH, stem, format=form) == (Path(f"{stem}.nodes.{form}"), Path(f"{stem}.edges.{form}"))
    for name in ("nodes", "edges"):
        assert Path(f"{stem}.{name}.{form}").read_bytes() == (tmp_path / f"{name}.{form}").read_bytes()


# --- other readers and writers


def test_the_csv_is_plain(tmp_path: Path) -> None:
    nodes, edges = write_tables(GRAPH, tmp_path, RANK)
    with nodes.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    expected = to_networkx(GRAPH, rank=RANK)
    assert [(int(row["layer"]), int(row["index"])) for row in found] == list(expected)
    for row, (_, facts) in zip(found, expected.nodes(data=True), strict=True):
        assert list(row) == ["layer", "index", "name", "activation", "score"]
        assert (row["name"], float(row["activation"]), float(row["score"])) == (
            facts["name"],
            facts["activation"],
            facts["score"],
        )
    with edges.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["source_layer", "source", "target_layer", "target", "weight"]
    assert {((int(a), int(i)), (int(b), int(j))): float(weight) for a, i, b, j, weight in rows[1:]} == {
        (u, v): weight for u, v, weight in expected.edges(data="weight")
    }


@needs_pyarrow
def test_the_parquet_is_typed(tmp_path: Path) -> None:
    from pyarrow import parquet

    narrow = CASE.graph([weight.astype(np.float32) for weight in CASE.weights])
    nodes, edges = write_tables(narrow, tmp_path, RANK, "parquet")
    found = parquet.read_table(nodes)
    assert {field.name: str(field.type) for field in found.schema} == {
        "layer": "int32",
        "index": "int64",
        "name": "string",
        "activation": "double",
        "score": "double",
    }
    np.testing.assert_array_equal(found["score"].to_numpy(), RANK.stacked)
    found = parquet.read_table(edges)
    assert {field.name: str(field.type) for field in found.schema} == {
        "source_layer": "int32",
        "source": "int64",
        "target_layer": "int32",
        "target": "int64",
        "weight": "float",
    }
    digraph = to_networkx(narrow)
    assert found.num_rows == digraph.number_of_edges()
    for row in found.to_pylist():
        edge = (row["source_layer"], row["source"]), (row["target_layer"], row["target"])
        assert digraph.edges[edge]["weight"] == row["weight"]


@every_form
def test_the_same_graph_gives_the_same_bytes(form: Any, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_tables(GRAPH, tmp_path, RANK, form)]
    assert [path.read_bytes() for path in write_tables(GRAPH, tmp_path, RANK, form)] == first


@needs_pyarrow
def test_parquet_pages_have_checksums(tmp_path: Path) -> None:
    from pyarrow import parquet

    for path in write_tables(GRAPH, tmp_path, RANK, "parquet"):
        damaged = bytearray(path.read_bytes())
        column = parquet.read_metadata(path).row_group(0).column(0)
        # The last byte of the column's last page; its header comes before the page.
        damaged[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(OSError, match="CRC"):
            parquet.read_table(path, page_checksum_verification=True)


# --- refused or failed


@every_form
def test_values_that_do_not_fit_are_refused(form: Any, tmp_path: Path) -> None:
    bad = LayeredGraph.from_weights([np.array([[1.0, np.nan]])], [1, 1], [[1]], check_finite=False)
    with pytest.raises(GraphError, match="block 1: the edge weights hold NaN or Inf"):
        write_tables(bad, tmp_path, format=form)
    for name in ("a\0", "\ud800"):
        odd = LayeredGraph.from_weights([[[1.0]]], [1], [[1]], names=("in", name))
        with pytest.raises(GraphError, match="holds a null character or half of a surrogate pair"):
            write_tables(odd, tmp_path, format=form)
    with pytest.raises(GraphError, match="in layers of 3, 4, 3, got 2, 2"):
        write_tables(GRAPH, tmp_path, weighted_pagerank(random_case(1, (2, 2)).graph()), form)
    with pytest.raises(GraphError, match="there is no directory"):
        write_tables(GRAPH, tmp_path / "absent" / "graph", format=form)
    with pytest.raises(GraphError, match="unknown format 'xls'"):
        write_tables(GRAPH, tmp_path, format="xls")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@every_form
def test_a_failed_write_leaves_the_old_files(form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(GRAPH, tmp_path, format=form)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    write = tables.WRITERS[form]

    def fail(path: Path, columns: Any, chunks: Any) -> None:
        write(path, columns, chunks)
        if "activation" in columns:
            raise OSError("No space left on device")

    # Writing the nodes fails after the edges were written completely.
    monkeypatch.setitem(tables.WRITERS, form, fail)
    with pytest.raises(OSError, match="No space"):
        write_tables(random_case(2, (2, 2)).graph(), tmp_path, format=form)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@needs_pyarrow
def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(GraphError, match=r"pip install 'llmrank\[tables\]', or use format='csv'"):
        write_tables(GRAPH, tmp_path / "new", format="parquet")
    assert list(tmp_path.iterdir()) == []
    write_tables(GRAPH, tmp_path / "new", format="csv")


@pytest.mark.slow
@every_form
def test_a_block_is_written_with_the_memory_of_a_band(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphs.reduction.edge_selection.BAND_ELEMENTS", 1 << 14)
    graph = LayeredGraph.from_weights([np.broadcast_to(np.ones(500), (500, 500))], np.ones(500), [np.ones(500)])
    small = LayeredGraph.from_weights([np.ones((2, 2))], np.ones(2), [np.ones(2)])
    write_tables(small, tmp_path / "small", format=form)  # imports what writes this format
    tracemalloc.start()
    try:
        write_tables(graph, tmp_path, format=form)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The 250,000 edges take 10 MB as arrays, and 30 as Python's numbers.
    assert peak < 6e6
