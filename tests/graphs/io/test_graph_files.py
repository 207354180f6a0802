"""Files: bit-exact round trips, and errors for files that are damaged, foreign or incomplete."""

import errno
import json
import math
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from graphs import (
    Certificate,
    GraphError,
    KeepHighest,
    LayeredGraph,
    RankResult,
    bidirectional_graph,
    load_graph,
    load_rank,
    modified_pagerank,
    pagerank,
    save_graph,
    save_rank,
    weighted_pagerank,
)
from graphs.io.replacement import hidden_directory, remove_leftovers, replace_file, take_lock
from graphs.io.tensor_files import read_tensors, write_tensors
from graphs.linalg.blocks import SparseBlock
from tests.graphs.cases import SHARES, Case, cases, random_case
from tests.tables import table

GRAPH = random_case(1, (3, 4, 3), density=0.7).graph()
RANK = weighted_pagerank(GRAPH, 0.6, 0.9, "power")
CERTIFIED = weighted_pagerank(GRAPH, 0.6, 0.9, "power", keep=KeepHighest({1: 2, 2: 1}))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that every example overwrites, because hypothesis accepts no fixture that changes with the test."""
    return tmp_path_factory.mktemp("io") / "file.safetensors"


def same_array(one: Any, other: Any) -> bool:
    """Compare bit for bit, so that -0.0 is not 0.0."""
    return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())


def same_graph(one: LayeredGraph, other: LayeredGraph) -> bool:
    pairs = [
        (getattr(one.block(layer), part), getattr(other.block(layer), part))
        for layer in range(1, len(one.layer_sizes))
        for part in ("data", "indices", "indptr")
    ]
    pairs += list(zip(one.activations, other.activations, strict=True))
    return (
        one.names == other.names and one.layer_sizes == other.layer_sizes and all(same_array(*pair) for pair in pairs)
    )


def same_certificate(one: Certificate | None, other: Certificate | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.keep.keys() == other.keep.keys()
        and all(same_array(one.keep[layer], other.keep[layer]) for layer in one.keep)
        and (one.certified, dict(one.gaps), dict(one.required_gaps))
        == (other.certified, dict(other.gaps), dict(other.required_gaps))
    )


def same_rank(one: RankResult, other: RankResult) -> bool:
    for field in fields(RankResult):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "certificate":
            same = same_certificate(mine, theirs)
        elif field.name == "scores":
            same = len(mine) == len(theirs) and all(map(same_array, mine, theirs))
        elif isinstance(mine, np.ndarray):
            same = same_array(mine, theirs)
        else:
            same = type(mine) is type(theirs) and mine == theirs
        if not same:
            return False
    return True


def test_same_rank_compares_every_field() -> None:
    result = CERTIFIED
    assert same_rank(result, replace(result))
    others: dict[str, Any] = {
        field.name: (getattr(result, field.name) + 1.0)
        for field in fields(RankResult)
        if isinstance(getattr(result, field.name), np.ndarray | float)
    }
    others |= dict.fromkeys(("solver", "backend", "method", "solver_reason", "stop_reason"), "other")
    others |= dict.fromkeys(("names", "layer_bounds", "degenerate", "labels"), ("other",))
    others["scores"] = (*result.scores[:-1], -result.scores[-1])
    others["parameters"] = {}
    certificate = result.certificate
    assert certificate is not None
    assert set(others) == {field.name for field in fields(RankResult)} - {"certificate"}
    assert not any(same_rank(result, replace(result, **{name: value})) for name, value in others.items())
    for changed in (
        None,
        replace(certificate, certified=not certificate.certified),
        replace(certificate, gaps={}),
        replace(certificate, required_gaps={}),
        replace(certificate, keep={layer: ~mask for layer, mask in certificate.keep.items()}),
    ):
        assert not same_rank(result, replace(result, certificate=changed))


# --- round trips


@given(cases(), st.sampled_from([np.float32, np.float64]))
def test_a_graph_comes_back_bit_for_bit(path: Path, case: Case, dtype: Any) -> None:
    weights = [w.astype(dtype) for w in case.weights]
    names = [f"größe {layer}" for layer in range(len(case.sizes))]
    graph = LayeredGraph.from_weights(weights, case.inputs, case.activations, names)
    save_graph(graph, path)
    loaded = load_graph(path)
    assert same_graph(loaded, graph)
    assert all(isinstance(block, SparseBlock) for block in loaded.blocks)
    assert not any(activation.flags.writeable for activation in loaded.activations)


@given(cases(), SHARES, SHARES, st.sampled_from(["sweep", "power"]), st.sampled_from(["float32", "float64"]))
def test_a_rank_comes_back_bit_for_bit(
    path: Path, case: Case, gamma: float, theta: float, solver: Any, dtype: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        results = [
            weighted_pagerank(case.graph(), gamma, theta, solver, dtype=dtype, max_iter=2),
            modified_pagerank(case.graph(), solver, dtype=dtype, max_iter=2, zero_lowest=theta),
        ]
    for result in results:
        save_rank(result, path)
        assert same_rank(load_rank(path), result)


def test_an_infinite_bound_comes_back(path: Path) -> None:
    with pytest.warns(RuntimeWarning):
        result = modified_pagerank(GRAPH, "power", max_iter=1)
    assert result.error_bound == math.inf
    save_rank(result, path)
    loaded = load_rank(path)
    assert loaded.error_bound == math.inf
    assert list(loaded.error_bounds) == [math.inf]
    assert loaded.layer_bounds == result.layer_bounds == (0.0, 0.0, math.inf)


@given(
    cases(),
    st.floats(0.0, 0.95),
    st.sampled_from(["auto", "power", "anderson"]),
    st.sampled_from([None, 1, 3]),
    st.sampled_from(["float32", "float64"]),
)
def test_a_general_rank_comes_back_bit_for_bit(
    path: Path, case: Case, gamma: float, solver: str, columns: int | None, dtype: str
) -> None:
    graph = bidirectional_graph(case.graph())
    teleport = None if columns is None else np.random.default_rng(1).random((graph.n_nodes, columns))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = pagerank(graph, gamma, teleport, solver=solver, dtype=dtype, max_iter=4)
    save_rank(result, path)
    loaded = load_rank(path)
    assert same_rank(loaded, result)
    assert [s.shape[1:] for s in loaded.scores] == [() if columns is None else (columns,)] * len(case.sizes)
    for name in ("iterations", "converged", "error_bound", "block_products", "solve_seconds"):
        assert getattr(loaded, name) == getattr(result, name)
    assert repr(loaded) == repr(result)


@table(
    "keep",
    [
        KeepHighest({1: 2}),
        KeepHighest({2: 1, 0: 3, 1: 0}),
        KeepHighest(pooled=(2, 1), count=3),
        KeepHighest({0: 1}, pooled=(1, 2), count=5, weights=(4.0, 3.0)),
    ],
)
@table("solver", ["sweep", "power"])
@table("max_iter", [1, 9])
@pytest.mark.filterwarnings("ignore:power iteration stopped after max_iter=1:RuntimeWarning")
def test_a_certificate_comes_back(path: Path, keep: KeepHighest, solver: Any, max_iter: int) -> None:
    for result in (
        weighted_pagerank(GRAPH, 0.6, solver=solver, max_iter=max_iter, keep=keep),
        modified_pagerank(GRAPH, solver=solver, max_iter=max_iter, keep=keep),
        pagerank(GRAPH, solver=solver, tol=1e-6, keep=keep),
    ):
        assert result.certificate is not None
        save_rank(result, path)
        loaded = load_rank(path)
        assert same_rank(loaded, result)
        assert loaded.certificate is not None
        assert all(mask.dtype == bool for mask in loaded.certificate.keep.values())
        assert all(type(layer) is int for layer in (*loaded.certificate.keep, *loaded.certificate.gaps))


def test_more_than_ten_layers_come_back_in_order(path: Path) -> None:
    result = weighted_pagerank(random_case(4, (2,) * 13).graph(), keep=KeepHighest(dict.fromkeys(range(13), 1)))
    save_rank(result, path)
    assert same_rank(load_rank(path), result)


def test_a_failed_certificate_is_not_a_missing_one(path: Path) -> None:
    with pytest.warns(RuntimeWarning):
        result = modified_pagerank(GRAPH, "power", max_iter=1, keep=KeepHighest({2: 1}))
    assert result.certificate is not None
    assert not result.certificate.certified
    assert result.certificate.required_gaps[2] == math.inf
    save_rank(result, path)
    loaded = load_rank(path).certificate
    assert loaded is not None
    assert not loaded.certified
    assert loaded.required_gaps[2] == math.inf


def test_labels_come_back_as_text(path: Path) -> None:
    result = pagerank(networkx.DiGraph([("a", 1), (1, "a")]))
    save_rank(result, path)
    assert load_rank(path).labels == ("a", "1")


def test_loaded_graphs_rank_alike(path: Path) -> None:
    save_graph(GRAPH, path)
    for one, other in zip(weighted_pagerank(load_graph(path)).scores, weighted_pagerank(GRAPH).scores, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)


def test_paths_are_path_like_or_text(tmp_path: Path) -> None:
    save_graph(GRAPH, str(tmp_path / "graph"))
    assert same_graph(load_graph(str(tmp_path / "graph")), GRAPH)


def test_files_hold_no_pickle_and_open_with_plain_safetensors(path: Path) -> None:
    save_graph(GRAPH, path)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    assert set(header) == {
        "__metadata__",
        *(f"block.{k}.{part}" for k in (1, 2) for part in ("data", "indices", "indptr")),
        *(f"activation.{layer}" for layer in range(3)),
    }
    assert json.loads(header["__metadata__"]["meta"])["version"] == 1


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_new_files_have_default_permissions(tmp_path: Path) -> None:
    save_graph(GRAPH, tmp_path / "graph")
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("graph", "plain")}
    assert len(modes) == 1


# --- damage


@pytest.mark.parametrize("kind", ["graph", "rank"])
def test_truncated_files_are_refused_at_every_length(path: Path, kind: str) -> None:
    whole = written(path, kind)
    for length in (*range(16), *range(16, len(whole) - 8, 5), *range(len(whole) - 8, len(whole))):
        path.write_bytes(whole[:length])
        with pytest.raises(GraphError, match=r"cannot be read .*write it again"):
            load(path, kind)


@pytest.mark.parametrize("kind", ["graph", "rank"])
def test_appended_bytes_are_refused(path: Path, kind: str) -> None:
    path.write_bytes(written(path, kind) + b"\0")
    with pytest.raises(GraphError, match="cannot be read"):
        load(path, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["graph", "rank"])
@settings(max_examples=400)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_change_nothing(path: Path, kind: str, data: st.DataObject) -> None:
    damaged = bytearray(written(path, kind))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        loaded = load(path, kind)
    except GraphError:
        return
    assert same_graph(loaded, GRAPH) if kind == "graph" else same_rank(loaded, CERTIFIED)


def test_every_flipped_bit_of_the_numbers_is_detected(path: Path) -> None:
    whole = written(path, "graph")
    first = 8 + int.from_bytes(whole[:8], "little")
    for position in range(first, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(GraphError, match="damaged"):
            load_graph(path)


def written(path: Path, kind: str) -> bytes:
    if kind == "graph":
        save_graph(GRAPH, path)
    else:
        save_rank(CERTIFIED, path)
    return path.read_bytes()


def load(path: Path, kind: str) -> Any:
    return load_graph(path) if kind == "graph" else load_rank(path)


# --- foreign files


@table(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"hello, this is a text file and no tensors are in it", "cannot be read"),
        (b"PK\x03\x04" + b"\0" * 200, "cannot be read"),
        (b"\xff" * 100, "cannot be read"),
        ((2).to_bytes(8, "little") + b"{}", "is not a graph file"),
        ((9).to_bytes(8, "little") + b"{" * 9, "cannot be read"),
    ],
)
def test_foreign_files_are_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(GraphError, match=message):
        load_graph(path)


@table("meta", [None, "[1, 2]", "no json", '{"kind": "model"}', '{"kind": 5}', "[" * 100_000])
def test_safetensors_of_other_programs_are_refused(path: Path, meta: str | None) -> None:
    save_file({"weight": np.ones(3)}, path, None if meta is None else {"meta": meta})
    with pytest.raises(GraphError, match=r"is not a graph file|cannot be read"):
        load_graph(path)


def raw(header: dict[str, Any], data: bytes = b"", meta: dict[str, Any] | None = None) -> bytes:
    """Write a safetensors file by hand that the library would not write."""
    facts = {
        "__metadata__": {"meta": json.dumps({"kind": "graph", "version": 1} if meta is None else meta), "crc32": "0"}
    }
    text = json.dumps({**facts, **header}).encode()
    return len(text).to_bytes(8, "little") + text + data


@table(
    "dtype",
    [
        *("BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "F32", "I32", "U32", "F64", "I64", "U64", "C64"),
        *("F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F128"),
    ],
)
def test_tensors_of_every_type_are_refused_and_never_crash(path: Path, dtype: str) -> None:
    for size, shape in ((2, [1]), (8, [1]), (8, [4]), (0, [0]), (1, [1]), (6, [8])):
        path.write_bytes(raw({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, b"\1" * size))
        with pytest.raises(GraphError, match=r"cannot be read|is damaged"):
            load_graph(path)


@table("shape", [[10**18], [2**62, 4], [2**63, 2**63], [10**30], [-1], [1.5], ["8"], None, [[8]]])
def test_a_header_that_claims_too_much_is_refused_before_memory_is_allocated(path: Path, shape: Any) -> None:
    path.write_bytes(raw({"activation.0": {"dtype": "F64", "shape": shape, "data_offsets": [0, 8]}}, b"\0" * 8))
    with pytest.raises(GraphError, match="cannot be read"):
        load_graph(path)
    # The largest length that fits, and one longer than the file.
    for length in (2**63, 2**64 - 1, 10**8, 1000):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(GraphError, match="cannot be read"):
            load_graph(path)


def test_tensors_that_overlap_are_refused(path: Path) -> None:
    entries = {str(k): {"dtype": "U8", "shape": [1000], "data_offsets": [0, 1000]} for k in range(1000)}
    path.write_bytes(raw(entries, b"\0" * 1000))
    with pytest.raises(GraphError, match="cannot be read"):
        load_graph(path)


def test_the_arrays_of_another_kind_are_not_even_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"weight": np.ones(3)}, path, {"format": "pt"})

    class Watched:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.inner = safe_open(*args, **options)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            return None

        def metadata(self) -> Any:
            return self.inner.metadata()

    monkeypatch.setattr("graphs.io.tensor_files.safe_open", Watched)
    with pytest.raises(GraphError, match="is not a graph file"):
        load_graph(path)


def test_the_kinds_are_not_mixed_up(path: Path) -> None:
    save_rank(RANK, path)
    with pytest.raises(GraphError, match="is not a graph file"):
        load_graph(path)
    save_graph(GRAPH, path)
    with pytest.raises(GraphError, match="is not a rank file"):
        load_rank(path)


@table(("kind", "known", "load"), [("graph", 1, load_graph), ("rank", 4, load_rank)])
@table("version", [0, 2, None, "1", "3"])
def test_other_versions_are_refused_with_advice(path: Path, version: Any, kind: str, known: int, load: Any) -> None:
    write_tensors(path, {}, {}, kind, version)
    message = f"has format version {version}, this package reads {known}; upgrade the package, or write the file again"
    with pytest.raises(GraphError, match=message):
        load(path)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(GraphError, match="no graph file at"):
            load_graph(missing)
        with pytest.raises(GraphError, match="no rank file at"):
            load_rank(missing)


# --- files of the right kind, with a valid checksum, that hold no graph


def graph_parts() -> tuple[dict[str, Any], dict[str, Any]]:
    tensors: dict[str, Any] = {f"activation.{layer}": vector for layer, vector in enumerate(GRAPH.activations)}
    for layer in (1, 2):
        csr = GRAPH.block(layer)
        tensors |= {f"block.{layer}.{part}": getattr(csr, part).copy() for part in ("data", "indices", "indptr")}
    meta = {"names": list(GRAPH.names), "shapes": [[4, 3], [3, 4]]}
    return tensors, meta


def test_the_unchanged_parts_make_a_graph(path: Path) -> None:
    write_tensors(path, *graph_parts(), "graph")
    assert same_graph(load_graph(path), GRAPH)


DATA, INDICES, INDPTR = (getattr(GRAPH.block(1), part) for part in ("data", "indices", "indptr"))
FIRST = np.arange(len(DATA)) == 0


@table(
    ("name", "value"),
    [
        *(("shapes", value) for value in (None, [], 5, "43", [True, 3], [["a", 3], [3, 4]], [[4], [3, 4]], [[4, 3]])),
        *(("shapes", [first, [3, 4]]) for first in ([4, 2], [5, 3], [-4, 3], [4, 10**30], [4, 2**62], [10**12, 3])),
        ("shapes", [[0, 3], [3, 0]]),
        *(("names", value) for value in (None, 5, "abc", [1, 2, 3], ["a"], ["a", "a", "b"])),
        *(("block.1.data", data) for data in (DATA[:-1], np.append(DATA, 1.0), DATA.astype(np.int64))),
        *(("block.1.data", np.where(FIRST, value, DATA)) for value in (np.nan, np.inf, -1.0, 0.0)),
        *(("block.1.indices", indices) for indices in (INDICES + 1000, INDICES - 5, INDICES[::-1].copy())),
        *(("block.1.indices", indices) for indices in (np.zeros_like(INDICES), INDICES.astype(np.float64))),
        *(("block.1.indptr", indptr) for indptr in (np.zeros(0, np.int32), np.zeros(5, np.int32), INDPTR[:-1])),
        ("block.1.indptr", INDPTR[::-1].copy()),
        ("block.2.data", None),
        *(("activation.1", vector) for vector in (None, np.ones(9), -np.ones(4), np.full(4, np.inf))),
    ],
)
def test_inconsistent_graph_files_are_refused(path: Path, name: str, value: Any) -> None:
    tensors, meta = graph_parts()
    if name in meta:
        meta[name] = value
    elif value is None:
        del tensors[name]
    else:
        tensors[name] = value
    write_tensors(path, tensors, meta, "graph")
    with pytest.raises(GraphError, match=r"is not a consistent graph file: .*write it again"):
        load_graph(path)


# Every part of a rank file, tensors and metadata.
RANK_TENSORS = [
    *(f"score.{layer}" for layer in range(3)),
    *("residuals", "layer_residuals", "error_bounds", "step_products", "step_seconds", "layer_bounds"),
    *("keep.1", "keep.2", "certificate.gaps", "certificate.required_gaps"),
]
RANK_META = [
    *("names", "degenerate", "labels", "certified", "certified_layers"),
    *("stop_reason", "tolerance", "solver", "backend", "method", "solver_reason", "parameters", "setup_seconds"),
]


def write_rank(path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """The rank file of CERTIFIED, with parts changed, or left out if the change is None."""

    def changed(target: Any, tensors: dict[str, Any], meta: dict[str, Any], kind: str, version: int) -> None:
        assert (sorted(tensors), sorted(meta)) == (sorted(RANK_TENSORS), sorted(RANK_META))
        given = [
            {k: changes.get(k, v) for k, v in entries.items() if changes.get(k, v) is not None or k not in changes}
            for entries in (tensors, meta)
        ]
        write_tensors(target, given[0], given[1], kind, version)

    with monkeypatch.context() as patch:
        patch.setattr("graphs.io.graph_files.write_tensors", changed)
        save_rank(CERTIFIED, path)


def test_the_unchanged_parts_make_a_rank(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rank(path, monkeypatch, {})
    assert same_rank(load_rank(path), CERTIFIED)


@table("name", [*RANK_TENSORS, *RANK_META])
def test_rank_files_with_a_part_missing_are_refused(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rank(path, monkeypatch, {name: None})
    with pytest.raises(GraphError, match="is not a consistent rank file"):
        load_rank(path)


@table(
    ("name", "value"),
    [
        *(("names", value) for value in (5, ["one", "two"], [1, 2, 3])),
        *(("degenerate", value) for value in (5, [{"layer": 1}], [{"layer": 1, "reason": 5}])),
        *(("labels", value) for value in (5, ["a", "b"], list(range(10)))),
        *(("tolerance", value) for value in ("small", True)),
        *(("certified_layers", value) for value in (5, [99], [-1, 1, 2])),
        *(("setup_seconds", []), ("parameters", 5), ("solver", 5), ("stop_reason", "boredom")),
        *(("score.1", scores) for scores in (np.ones((4, 2)), np.ones(4, dtype=np.int64), np.ones(()))),
        *(("residuals", np.ones((2, 2))), ("layer_residuals", np.zeros((1, 2))), ("layer_bounds", np.zeros(2))),
        *(("error_bounds", bounds) for bounds in (np.zeros(2, dtype=np.int64), np.zeros(7))),
        ("step_products", np.zeros(7, dtype=np.int64)),
        *(("certificate.gaps", gaps) for gaps in (np.zeros(2), np.zeros((2, 3)))),
        *(("certificate.required_gaps", np.full((2, 2), value)) for value in (np.inf, np.nan)),
        ("certificate.required_gaps", np.zeros((0, 2))),
        ("keep.1", np.ones(9, dtype=np.uint8)),
    ],
)
def test_inconsistent_rank_files_are_refused(
    path: Path, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rank(path, monkeypatch, {name: value})
    with pytest.raises(GraphError, match="is not a consistent rank file"):
        load_rank(path)


# --- writing


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [True, False], ids=["over an old file", "anew"])
def test_a_failed_write_leaves_the_old_file_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, before: bool
) -> None:
    target = tmp_path / "graph.safetensors"
    if before:
        save_graph(GRAPH, target)

    def fail(_: Any, file: Path, *__: Any) -> None:
        file.write_bytes(b"half of it")
        raise failure

    monkeypatch.setattr("graphs.io.tensor_files.save_file", fail)
    with pytest.raises(type(failure)):
        save_graph(random_case(2, (2, 2)).graph(), target)
    assert list(tmp_path.iterdir()) == ([target] if before else [])
    if before:
        assert same_graph(load_graph(target), GRAPH)


def test_an_interruption_of_the_removal_is_raised_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close, interruptions = os.close, [KeyboardInterrupt()]

    def close_and_be_interrupted(descriptor: int) -> None:
        close(descriptor)
        if interruptions:
            raise interruptions.pop()

    with pytest.raises(KeyboardInterrupt), hidden_directory(tmp_path, "file"):
        monkeypatch.setattr(os, "close", close_and_be_interrupted)
    assert not interruptions
    assert list(tmp_path.iterdir()) == []


def test_a_write_replaces_the_old_file_completely(tmp_path: Path) -> None:
    target = tmp_path / "graph.safetensors"
    save_graph(random_case(2, (30, 30)).graph(), target)
    save_graph(GRAPH, target)
    assert same_graph(load_graph(target), GRAPH)
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_is_not_visible_before_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with replace_file(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
        assert partial.stat().st_dev == target.stat().st_dev
    assert target.read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_leftovers_of_a_killed_process_are_removed_by_the_next_write(tmp_path: Path) -> None:
    code = """
        import os, sys
        from graphs.io.replacement import replace_file
        with replace_file(sys.argv[1]) as partial:
            partial.write_text("half")
            print(partial.parent.name, flush=True)
            sys.stdin.read()
            os._exit(9)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        left = tmp_path / run.stdout.readline().strip()
        # Its file is kept as long as the process lives.
        for content in ("mine", "mine too"):
            with replace_file(tmp_path / "file") as partial:
                partial.write_text(content)
            assert {*tmp_path.iterdir()} == {tmp_path / "file", left}
        run.communicate()
        assert run.returncode == 9
    with replace_file(tmp_path / "another") as partial:
        assert left in tmp_path.iterdir()
    with replace_file(tmp_path / "file") as partial:
        partial.write_text("last")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "another", tmp_path / "file"]


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_without_locks_files_are_written_and_leftovers_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with replace_file(tmp_path / "file") as first:
        with replace_file(tmp_path / "file") as second:
            second.write_text("second")
        assert first.exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
@pytest.mark.parametrize("by_process", [False, True])
def test_a_lock_is_held_against_other_processes_and_perhaps_against_its_own(by_process: bool, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from graphs.io.replacement import take_lock
print(take_lock(Path(sys.argv[1]), by_process={by_process}) is None)
"""

    def refused_elsewhere() -> bool:
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"

    lock = take_lock(tmp_path, by_process=by_process)
    assert lock is not None
    assert refused_elsewhere()
    again = take_lock(tmp_path, by_process=by_process)
    assert (again is not None) == by_process
    if again is not None:
        os.close(again)
        lock = take_lock(tmp_path, by_process=by_process)  # closing one descriptor has given the lock back
        assert lock is not None
    os.close(lock)
    assert not refused_elsewhere()
    assert take_lock(tmp_path / "absent", by_process=by_process) is None


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_a_workplace_removed_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = tempfile.mkdtemp, []

    def unlucky(*arguments: object, **options: Any) -> str:
        made.append(make(*arguments, **options))
        if len(made) == 1:
            remove_leftovers(tmp_path, "file")
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", unlucky)
    with hidden_directory(tmp_path, "file") as place:
        assert [*tmp_path.iterdir()] == [place]
    assert len(made) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    # A limit on file sizes acts like a full disk: safetensors gets a real write error.
    code = f"""
        import resource, signal, numpy
        from graphs import LayeredGraph, save_graph
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        graph = LayeredGraph.from_weights([numpy.ones((200, 200))], numpy.ones(200), [numpy.ones(200)])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            save_graph(graph, {str(tmp_path / "graph")!r})
        except OSError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"cannot write {tmp_path / 'graph'}")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"there is no directory .*absent; create it first"):
        save_graph(GRAPH, tmp_path / "absent" / "graph.safetensors")
    with pytest.raises(GraphError, match="it is a directory; expected the path of a file"):
        save_rank(RANK, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_would_be_refused_are_not_written(tmp_path: Path) -> None:
    bad = LayeredGraph.from_weights([np.array([[np.inf, 1.0]])], [1, 1], [[1]], check_finite=False)
    with pytest.raises(GraphError, match="block 1: the edge weights hold NaN or Inf"):
        save_graph(bad, tmp_path / "graph")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX links, pipes and permissions")
def test_links_stay_links_and_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link, target = tmp_path / "link", tmp_path / "real" / "graph"
    link.symlink_to(target)
    save_graph(GRAPH, link)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert same_graph(load_graph(link), load_graph(target))
    assert list((tmp_path / "real").iterdir()) == [target]
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(GraphError, match="it is a device or a pipe; expected the path of a file"):
            save_graph(GRAPH, special)
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_new_file_gets_the_permissions_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "graph"
    save_graph(GRAPH, target)
    target.chmod(0o600)
    save_graph(GRAPH, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_names_as_long_as_the_system_allows(tmp_path: Path) -> None:
    target = tmp_path / ("ü" * 120)
    save_graph(GRAPH, target)
    assert same_graph(load_graph(target), GRAPH)


@table("layer", [99, 3, -1])
def test_certificates_of_missing_layers_are_refused(path: Path, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def added(target: Any, tensors: dict[str, Any], meta: dict[str, Any], kind: str, version: int) -> None:
        more = {**tensors, f"keep.{layer}": np.ones(3, dtype=np.uint8)}
        write_tensors(target, more, {**meta, "certified_layers": [layer]}, kind, version)

    monkeypatch.setattr("graphs.io.graph_files.write_tensors", added)
    save_rank(CERTIFIED, path)
    with pytest.raises(GraphError, match=r"is not a consistent rank file: keep masks of shapes"):
        load_rank(path)


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_leftovers_of_another_name_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("graphs.io.replacement._remove", lambda place: None)  # as if the process were killed
        with hidden_directory(tmp_path, "model.v2") as left:
            pass
    remove_leftovers(tmp_path, "model")
    assert left.exists()
    remove_leftovers(tmp_path, "model.v2")
    assert not left.exists()


@table("array", [np.array(3.0), np.arange(6.0).reshape(2, 3).T, np.zeros((0, 2))])
def test_shapes_of_tensors_are_kept(tmp_path: Path, array: Any) -> None:
    write_tensors(tmp_path / "file", {"a": array}, {}, "example")
    _, tensors = read_tensors(tmp_path / "file", "example")
    assert tensors["a"].shape == array.shape
    np.testing.assert_array_equal(tensors["a"], array)


def test_equal_contents_give_equal_files(tmp_path: Path) -> None:
    tensors = {name: np.arange(3.0) for name in ("ä", "b", 'quoted "c"\n')}
    written = set()
    for k in range(16):  # safetensors writes the two entries of the metadata in an order of its own
        write_tensors(tmp_path / f"{k}", tensors, {"name": "ü\t"}, "example")
        written.add((tmp_path / f"{k}").read_bytes())
        meta, found = read_tensors(tmp_path / f"{k}", "example")
        assert meta == {"name": "ü\t"}
        assert found.keys() == tensors.keys()
    assert len(written) == 1
