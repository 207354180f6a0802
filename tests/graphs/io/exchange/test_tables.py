"""Tables in CSV and Parquet: round trips, other readers, and errors for damaged files."""

import csv
import importlib.util
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs import GraphError, LayeredGraph, weighted_pagerank
from graphs.io.convert import to_networkx
from graphs.io.exchange import read_tables, write_tables
from graphs.io.exchange.rows import EDGE_COLUMNS
from graphs.reduction.subgraphs import top_subgraph
from tests.graphs.cases import Case, cases, random_case
from tests.graphs.io.test_graph_files import same_graph

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
every_form = pytest.mark.parametrize("form", ["csv", pytest.param("parquet", marks=needs_pyarrow)])
FORMATS: tuple[Any, ...] = ("csv", "parquet")

CASE = random_case(1, (3, 4, 3), density=0.7)
GRAPH = LayeredGraph.from_weights(CASE.weights, CASE.inputs, CASE.activations, names=("in", 'a,"b"\r\n;\'ü', "out"))
RANK = weighted_pagerank(GRAPH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that every example overwrites, because hypothesis accepts no fixture that changes with the test."""
    return tmp_path_factory.mktemp("tables")


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
    write_tables(graph, folder / "any", weighted_pagerank(graph) if data.draw(st.booleans()) else None, form)
    again, labels = read_tables(folder / "any", form)
    if narrow and (form == "csv" or not graph.edges):
        # CSV and tables without rows do not record the dtype; the numbers are the same.
        graph = LayeredGraph.from_weights(
            [weight.astype(np.float64) for weight in weights], case.inputs, case.activations, names
        )
    assert same_graph(again, graph.with_csr())
    assert labels == tuple(tuple((layer, k) for k in range(size)) for layer, size in enumerate(case.sizes))


@every_form
@given(
    weight=st.floats(0.0, exclude_min=True, allow_infinity=False),
    activation=st.floats(0.0, allow_infinity=False),
)
def test_every_float_comes_back(form: Any, folder: Path, weight: float, activation: float) -> None:
    graph = LayeredGraph.from_weights([[[weight]]], [activation], [[0.0]])
    write_tables(graph, folder / "float", format=form)
    assert same_graph(read_tables(folder / "float", form)[0], graph.with_csr())


@every_form
@pytest.mark.parametrize(
    "weights",
    [
        lambda weight: torch.from_numpy(weight).bfloat16(),
        np.asfortranarray,
        lambda weight: (weight.astype(np.float32), weight.astype(np.float32) / 3),
    ],
    ids=["bfloat16", "Fortran", "parallel"],
)
@pytest.mark.parametrize("elements", [1, 7, 1 << 19])
def test_dense_blocks_are_written_in_bands(
    form: Any, folder: Path, weights: Callable[[Any], Any], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = CASE.graph([weights(weight) for weight in CASE.weights])
    monkeypatch.setattr("graphs.reduction.edge_selection.BAND_ELEMENTS", elements)
    write_tables(graph, folder / "dense", format=form)
    again, _ = read_tables(folder / "dense", form)
    for layer in (1, 2):
        np.testing.assert_array_equal(again.block(layer).toarray(), graph.block(layer).toarray())
        assert form == "csv" or again.block(layer).dtype == graph.block(layer).dtype


@every_form
def test_float64_wins_where_blocks_differ(form: Any, folder: Path) -> None:
    graph = CASE.graph([CASE.weights[0].astype(np.float32), CASE.weights[1]])
    write_tables(graph, folder / "mixed", format=form)
    again, _ = read_tables(folder / "mixed", form)
    assert {block.to_csr().dtype for block in again.blocks} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(again.block(1).toarray(), graph.block(1).toarray())


@every_form
def test_subgraphs_keep_the_names_of_the_original(form: Any, folder: Path) -> None:
    graph = random_case(2, (6, 5, 7, 4)).graph()
    shown = top_subgraph(graph, weighted_pagerank(graph), 3, layers=(1, 2, 3))
    write_tables(shown, folder / "part", format=form)
    again, labels = read_tables(folder / "part", form)
    assert labels == shown.labels
    assert same_graph(again, shown.graph)
    # The manifest says that the tables may have gaps; without it gaps are errors, unless partial=True.
    (folder / f"part.manifest.{form}.json").unlink()
    with pytest.raises(GraphError, match=r"expected consecutive layers from 0, got 1, 2, 3; .* pass partial=True"):
        read_tables(folder / "part", form)
    assert same_graph(read_tables(folder / "part", form, partial=True)[0], shown.graph)


@every_form
def test_tables_in_a_directory_or_with_a_prefix(form: Any, tmp_path: Path) -> None:
    assert write_tables(GRAPH, tmp_path, format=form) == (tmp_path / f"nodes.{form}", tmp_path / f"edges.{form}")
    assert {file.name for file in tmp_path.iterdir()} == {f"nodes.{form}", f"edges.{form}", f"manifest.{form}.json"}
    stem = str(tmp_path / "graph.v1")
    assert write_tables(GRAPH, stem, format=form) == (Path(f"{stem}.nodes.{form}"), Path(f"{stem}.edges.{form}"))
    assert same_graph(read_tables(tmp_path)[0], read_tables(stem)[0])


@needs_pyarrow
def test_two_formats_side_by_side_need_a_format_argument(tmp_path: Path) -> None:
    for form in FORMATS:
        write_tables(GRAPH, tmp_path, format=form)
    with pytest.raises(GraphError, match=r"tables in 2 formats at .* choose one with format="):
        read_tables(tmp_path)
    assert same_graph(read_tables(tmp_path, "csv")[0], read_tables(tmp_path, "parquet")[0])


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


def tables(folder: Path, nodes: str, edges: str) -> None:
    """Tables of another program: no manifest, other orders, other columns."""
    (folder / "nodes.csv").write_text(nodes, encoding="utf-8")
    (folder / "edges.csv").write_text(edges, encoding="utf-8")


NODES = "index,layer,activation\n0,0,1\n1,0,2.5\n0,1,1e-3\n"
EDGES = "source_layer,source,target_layer,target,weight\n0,1,1,0,2\n0,0,1,0,1.5\n"


def test_tables_of_other_programs_are_read(tmp_path: Path) -> None:
    tables(tmp_path, NODES, EDGES)
    graph, _ = read_tables(tmp_path)
    assert graph.names == ("layer 0", "layer 1")
    assert (graph.activations[0].tolist(), graph.activations[1].tolist()) == ([1.0, 2.5], [0.001])
    np.testing.assert_array_equal(graph.block(1).toarray(), [[1.5, 2.0]])
    # Windows line ends, quotes, another order of columns and columns of its own.
    other = 'colour,weight,"target",source,target_layer,source_layer\r\nred,2,0,1,1,0\r\nblue,1.5,0,0,1,0\r\n'
    (tmp_path / "edges.csv").write_bytes(other.encode())
    assert same_graph(read_tables(tmp_path)[0], graph)


def test_csv_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, everything quoted, and columns of text with commas and digits in it."""
    nodes = '"index","layer","activation","remark"\r\n"0","0","1","x, ""y"", 0"\r\n"1","0","2.5",""\r\n"0","1","1e-3",","\r\n'
    edges = (
        "remark,source_layer,source,target_layer,target,weight\r\n"
        '"x,0,1,1,0,99,y","0","1","1","0","2"\r\n"two\nlines",0,0,1,0,1.5\r\n'
    )
    for name, text in (("nodes", nodes), ("edges", edges)):
        (tmp_path / f"{name}.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    graph, _ = read_tables(tmp_path)
    assert (graph.activations[0].tolist(), graph.activations[1].tolist()) == ([1.0, 2.5], [0.001])
    np.testing.assert_array_equal(graph.block(1).toarray(), [[1.5, 2.0]])


@needs_pyarrow
def test_a_small_file_of_a_row_a_million_times_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    from pyarrow import parquet

    tables(tmp_path, NODES, EDGES)
    write_tables(read_tables(tmp_path)[0], tmp_path, format="parquet")
    for name in ("nodes.csv", "edges.csv", "manifest.parquet.json"):
        (tmp_path / name).unlink()
    count = 1_000_000
    columns = {name: np.full(count, value) for name, value in zip(EDGE_COLUMNS, (0, 0, 1, 0, 1.0), strict=True)}
    parquet.write_table(pyarrow.table(columns), tmp_path / "edges.parquet")
    assert (tmp_path / "edges.parquet").stat().st_size < 50_000
    monkeypatch.setattr("graphs.io.exchange.parquet_files.CHUNK", 1000)
    tracemalloc.start()
    try:
        with pytest.raises(GraphError, match="more edges from layer 0 to 1 than pairs of nodes; expected every pair"):
            read_tables(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@needs_pyarrow
def test_numbers_at_the_ends_of_their_types_are_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    tables(tmp_path, NODES, EDGES)
    write_tables(read_tables(tmp_path)[0], tmp_path, format="parquet")
    for name in ("nodes.csv", "edges.csv", "manifest.parquet.json"):
        (tmp_path / name).unlink()
    whole = {name: parquet.read_table(tmp_path / f"{name}.parquet") for name in ("nodes", "edges")}
    for name, column in (("nodes", "layer"), ("nodes", "index"), *(("edges", c) for c in EDGE_COLUMNS[:4])):
        for extreme, kind in ((2**63 - 1, "int64"), (-(2**63), "int64"), (2**64 - 1, "uint64"), (2**63, "uint64")):
            values = [*whole[name][column].to_pylist()[:-1], extreme]
            place = whole[name].schema.get_field_index(column)
            try:
                changed = whole[name].set_column(place, column, pyarrow.array(values, kind))
            except (OverflowError, pyarrow.ArrowInvalid):
                continue
            for other in whole:
                parquet.write_table(changed if other == name else whole[other], tmp_path / f"{other}.parquet")
            for partial in (False, True):
                with pytest.raises(GraphError):
                    read_tables(tmp_path, partial=partial)


@needs_pyarrow
def test_parquet_of_other_types_is_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    nodes = pyarrow.table({"layer": pyarrow.array([0, 0, 1], "uint8"), "index": [0, 1, 0], "activation": [1, 2, 3]})
    edges = pyarrow.table(
        {
            "weight": pyarrow.array([2, 3], "int16"),
            "source_layer": [0, 0],
            "source": [1, 0],
            "target_layer": [1, 1],
            "target": [0, 0],
        }
    )
    parquet.write_table(nodes, tmp_path / "nodes.parquet")
    parquet.write_table(edges, tmp_path / "edges.parquet")
    np.testing.assert_array_equal(read_tables(tmp_path)[0].block(1).toarray(), [[3.0, 2.0]])


@needs_pyarrow
@pytest.mark.parametrize("rows", [1, 3, 1 << 20])
def test_chunk_size_does_not_matter(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for form in FORMATS:
        write_tables(GRAPH, tmp_path, format=form)
    monkeypatch.setattr("graphs.io.exchange.csv_files.CHUNK", rows)
    monkeypatch.setattr("graphs.io.exchange.parquet_files.CHUNK", rows)
    for form in FORMATS:
        assert same_graph(read_tables(tmp_path, form)[0], GRAPH.with_csr())


# --- invalid tables


def edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("activation", "activity", "has no column activation; expected layer, index, activation, got"),
        ("index,layer", "index,index", "has no column layer"),
        ("index,layer,activation", "index,layer,activation,layer", "has a column twice"),
        ("0,0,1\n", "0,0\n", "row 1 has 2 columns, expected the 3 of the header"),
        ("0,0,1\n", "0,0,1,1\n", "row 1 has 4 columns"),
        ("0,0,1\n", "\n", "row 1 has 0 columns"),
        ("0,0,1\n", "", "layer 0 has no index 0 and goes on to 1; a row is missing"),
        ("0,0,1\n", "1,0,1\n", "layer 0 has index 1 twice"),
        ("0,0,1\n", "-1,0,1\n", "layer 0 has index -1"),
        ("1,0,2.5\n", "7,0,2.5\n", "layer 0 has no index 1 and goes on to 7"),
        ("0,1,1e-3\n", "0,2,1\n", "expected consecutive layers from 0, got 0, 2"),
        ("0,1,1e-3\n", "", "expected nodes of at least two layers, got 1"),
        ("1e-3", "much", "activation of row 3: expected a number, got 'much'"),
        ("1e-3", "1_0", "activation of row 3: expected a number"),
        ("1e-3", "nan", "activation of row 3: expected a number"),
        ("1e-3", "-1", "expected non-negative numbers"),
        ("1e-3", "1e999", "not finite"),
        ("0,1,1e-3", "0.0,1,1", "index of row 3: expected a number"),
        ("0,1,1e-3", " 0,1,1", "index of row 3: expected a number"),
        ("0,1,1e-3", "0,99999999999999999999,1", "layer of row 3: expected a number"),
        ("0,1,1e-3\n", "0,1,1e-3", "ends within a line"),
        ("0,1,1e-3\n", '0,1,"1\n', "is not a table in CSV"),
    ],
)
def test_invalid_tables_of_nodes_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    tables(tmp_path, edited(NODES, old, new), EDGES)
    with pytest.raises(GraphError, match=message):
        read_tables(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight", "mass", "has no column weight"),
        ("0,1,1,0,2\n", "0,1,1,0\n", "expected rows of source_layer"),
        ("0,1,1,0,2\n", "0,1,1,0,2,3\n", "expected rows of source_layer"),
        ("0,1,1,0,2\n", "0,1,1,0,much\n", "expected rows of source_layer"),
        ("0,1,1,0,2\n", "0,1.0,1,0,2\n", "expected rows of source_layer"),
        ("0,1,1,0,2\n", "0,1,1,0,nan\n", "expected edges that have a finite, non-negative weight, .* of weight nan"),
        ("0,1,1,0,2\n", "0,1,1,0,inf\n", "finite, non-negative weight"),
        ("0,1,1,0,2\n", "0,1,1,0,-2\n", "finite, non-negative weight"),
        (
            "0,1,1,0,2\n",
            "0,1,2,0,2\n",
            "lead from a layer to the next, got one from node 1 of layer 0 to node 0 of layer 2",
        ),
        ("0,1,1,0,2\n", "1,0,2,0,2\n", "lead from a layer to the next"),
        ("0,1,1,0,2\n", "-1,1,0,0,2\n", "lead from a layer to the next"),
        ("0,1,1,0,2\n", "0,5,1,0,2\n", "join nodes of the table of nodes, got one from node 5"),
        ("0,1,1,0,2\n", "0,1,1,-1,2\n", "join nodes of the table of nodes"),
        ("0,1,1,0,2\n", "0,0,1,0,2\n", "1 edge.s. from layer 0 to 1 occur more than once; expected every pair"),
        ("0,0,1,0,1.5\n", "0,0,1,0,1.5", "ends within a line"),
        ("0,1,1,0,2\n", "0,1,1,0,2#\n", "expected rows of source_layer"),
    ],
)
def test_invalid_tables_of_edges_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    tables(tmp_path, NODES, edited(EDGES, old, new))
    with pytest.raises(GraphError, match=message):
        read_tables(tmp_path)


@pytest.mark.parametrize("which", ["nodes", "edges"])
@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xff\n", b"\0\n", b'"\n', b"hello\n"])
def test_foreign_csv_is_refused(tmp_path: Path, which: str, content: bytes) -> None:
    tables(tmp_path, NODES, EDGES)
    (tmp_path / f"{which}.csv").write_bytes(content)
    with pytest.raises(GraphError, match=rf"{which}.csv"):
        read_tables(tmp_path)


def test_names_must_be_one_a_layer(tmp_path: Path) -> None:
    tables(tmp_path, "layer,index,activation,name\n0,0,1,a\n0,1,1,b\n1,0,1,c\n", EDGES)
    with pytest.raises(GraphError, match="expected one name a layer, got 'a', 'b' in layer 0"):
        read_tables(tmp_path)
    tables(tmp_path, "layer,index,activation,name\n0,0,1,a\n0,1,1,a\n1,0,1,a\n", EDGES)
    with pytest.raises(GraphError, match=r"nodes.csv: expected 2 distinct layer names"):
        read_tables(tmp_path)


@needs_pyarrow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ["1", "0"]}, "expected integers in the column source, got string"),
        ({"source": [1.0, 0.0]}, "expected integers in the column source, got double"),
        ({"weight": ["1", "0"]}, "expected numbers in the column weight, got string"),
        ({"weight": [True, False]}, "expected numbers in the column weight, got bool"),
        ({"weight": [1.0, None]}, r"1 row\(s\) have no weight"),
        ({"target": None}, "has no column target"),
    ],
)
def test_parquet_of_unfit_columns_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    import pyarrow
    from pyarrow import parquet

    write_tables(LayeredGraph.from_weights([[[1.0, 2.0]]], [1, 1], [[1]]), tmp_path, format="parquet")
    (tmp_path / "manifest.parquet.json").unlink()
    columns = parquet.read_table(tmp_path / "edges.parquet").to_pydict() | changes
    kept = {name: values for name, values in columns.items() if values is not None}
    parquet.write_table(pyarrow.table(kept), tmp_path / "edges.parquet")
    with pytest.raises(GraphError, match=message):
        read_tables(tmp_path)


@every_form
def test_missing_tables_are_refused(form: Any, tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "graph"):
        with pytest.raises(
            GraphError, match=r"no tables at .* expected .*nodes.csv and .*edges.csv or .*nodes.parquet"
        ):
            read_tables(where)
    write_tables(GRAPH, tmp_path, format=form)
    (tmp_path / f"edges.{form}").unlink()
    with pytest.raises(GraphError, match="no tables at"):
        read_tables(tmp_path)
    with pytest.raises(GraphError, match="unknown format 'xls'; expected one of csv, parquet"):
        read_tables(tmp_path, "xls")  # type: ignore[arg-type]


# --- damage


@every_form
@settings(max_examples=200)
@given(data=st.data())
def test_the_manifest_reveals_damage(form: Any, folder: Path, data: st.DataObject) -> None:
    files = [*write_tables(GRAPH, folder / "flip", format=form), folder / f"flip.manifest.{form}.json"]
    file = data.draw(st.sampled_from(files))
    damaged = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(damaged)
    try:
        found, _ = read_tables(folder / "flip", form)
    except GraphError:
        return
    assert same_graph(found, GRAPH.with_csr())


@every_form
@settings(max_examples=250)
@given(data=st.data())
def test_damage_without_a_manifest_gives_a_graph_or_an_error(form: Any, folder: Path, data: st.DataObject) -> None:
    files = write_tables(GRAPH, folder / "bare", format=form)
    (folder / f"bare.manifest.{form}.json").unlink()
    file = data.draw(st.sampled_from(files))
    damaged = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(damaged)
    try:
        found, _ = read_tables(folder / "bare", form, partial=data.draw(st.booleans()))
    except GraphError:
        return
    assert all(np.isfinite(block.to_csr().data).all() for block in found.blocks)


@pytest.mark.parametrize("cut", range(1, 40))
def test_csv_that_is_cut_off_in_a_line_is_refused(tmp_path: Path, cut: int) -> None:
    _, edges = write_tables(GRAPH, tmp_path)
    (tmp_path / "manifest.csv.json").unlink()
    whole = edges.read_bytes()
    edges.write_bytes(whole[:-cut])
    if whole[: len(whole) - cut].endswith(b"\n"):
        assert read_tables(tmp_path)[0].edges < GRAPH.edges
        return
    with pytest.raises(GraphError, match="ends within a line"):
        read_tables(tmp_path)


def test_tables_of_two_writes_are_not_mixed(tmp_path: Path) -> None:
    nodes, _ = write_tables(GRAPH, tmp_path)
    old = nodes.read_bytes()
    other = LayeredGraph.from_weights(CASE.weights, CASE.inputs * 2, CASE.activations, GRAPH.names)
    write_tables(other, tmp_path)
    nodes.write_bytes(old)
    with pytest.raises(
        GraphError, match=r"nodes.csv is not as it was written .* or remove the manifest if it was changed on"
    ):
        read_tables(tmp_path)
    (tmp_path / "manifest.csv.json").unlink()
    assert read_tables(tmp_path)[0].edges == GRAPH.edges


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2, this package reads tables of version 1; upgrade the package"),
        ({"kind": "graph"}, "is of kind 'graph'"),
        ({"subgraph": "no"}, "is of kind"),
        ({"crc32": {}}, "is not a manifest of tables"),
        ({"crc32": None}, "is not a manifest of tables"),
    ],
)
def test_other_manifests_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_tables(GRAPH, tmp_path)
    manifest = tmp_path / "manifest.csv.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(GraphError, match=message):
        read_tables(tmp_path)
    for content in ("", "[]", "5", "[" * 100_000):
        manifest.write_text(content)
        with pytest.raises(GraphError, match="is not a manifest of tables"):
            read_tables(tmp_path)


# --- writing


@every_form
def test_writing_refuses_what_reading_would(form: Any, tmp_path: Path) -> None:
    bad = LayeredGraph.from_weights([np.array([[1.0, np.nan]])], [1, 1], [[1]], check_finite=False)
    with pytest.raises(GraphError, match="block 1: the edge weights hold NaN or Inf"):
        write_tables(bad, tmp_path, format=form)
    for name in ("a\0", "\ud800"):
        odd = LayeredGraph.from_weights([[[1.0]]], [1], [[1]], names=("in", name))
        with pytest.raises(GraphError, match="holds a character that text files cannot"):
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

    def fail(_: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    # Writing the nodes fails after the edges were written completely.
    monkeypatch.setattr(f"graphs.io.exchange.{form}_files.write_nodes", fail)
    with pytest.raises(OSError, match="No space"):
        write_tables(random_case(2, (2, 2)).graph(), tmp_path, format=form)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@needs_pyarrow
def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(GRAPH, tmp_path, format="parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for use in (lambda: read_tables(tmp_path), lambda: write_tables(GRAPH, tmp_path / "new", format="parquet")):
        with pytest.raises(GraphError, match=r"pip install 'llmrank\[tables\]', or use format='csv'"):
            use()
    write_tables(GRAPH, tmp_path / "new", format="csv")


@every_form
def test_a_block_is_written_with_the_memory_of_a_band(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphs.reduction.edge_selection.BAND_ELEMENTS", 1 << 14)
    graph = LayeredGraph.from_weights([np.broadcast_to(np.ones(500), (500, 500))], np.ones(500), [np.ones(500)])
    tracemalloc.start()
    try:
        write_tables(graph, tmp_path, format=form)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The 250,000 edges take 10 MB as arrays, and 30 as Python's numbers.
    assert peak < 6e6
