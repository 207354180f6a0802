"""npz: bit-exact round trips, readable by numpy and scipy alone, and errors for damaged files."""

import copy
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from graphs import GraphError, LayeredGraph
from graphs.io.exchange import read_npz, write_npz
from tests.graphs.cases import Case, cases, random_case
from tests.graphs.io.test_graph_files import same_graph
from tests.tables import table

GRAPH = random_case(1, (3, 4, 3), density=0.7).graph()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that every example overwrites, because hypothesis accepts no fixture that changes with the test."""
    return tmp_path_factory.mktemp("archive") / "graph"


def written(path: Path) -> bytes:
    write_npz(GRAPH, path)
    return path.read_bytes()


@given(case=cases(), names=st.data(), narrow=st.booleans())
def test_round_trips_are_exact(path: Path, case: Case, names: st.DataObject, narrow: bool) -> None:
    n_layers = len(case.sizes)
    drawn = names.draw(st.lists(st.text(), min_size=n_layers, max_size=n_layers, unique=True))
    weights = [weight.astype(np.float32) if narrow else weight for weight in case.weights]
    graph = LayeredGraph.from_weights(weights, case.inputs, case.activations, drawn)
    write_npz(graph, path)
    again = read_npz(path)
    assert same_graph(again, graph.with_csr())
    assert all(block.to_csr().dtype == weights[0].dtype for block in again.blocks)


def test_half_weights_are_stored_as_float32(path: Path) -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.5]], dtype=torch.bfloat16)
    graph = LayeredGraph.from_weights([weight], [1, 1], [[1, 1]])
    write_npz(graph, path)
    assert same_graph(read_npz(path), graph.with_csr())


def test_numpy_and_scipy_read_it_alone(path: Path) -> None:
    written(path)
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == {
            "meta",
            *(f"block.{k}.{part}" for k in (1, 2) for part in ("data", "indices", "indptr")),
            *(f"activation.{layer}" for layer in range(3)),
        }
        csr = sparse.csr_array(tuple(arrays[f"block.1.{part}"] for part in ("data", "indices", "indptr")), shape=(4, 3))
        meta = json.loads(arrays["meta"].tobytes())
    np.testing.assert_array_equal(csr.toarray(), GRAPH.block(1).toarray())
    assert meta == {"kind": "graph", "version": 1, "names": list(GRAPH.names), "shapes": [[4, 3], [3, 4]]}


def test_the_same_graph_gives_the_same_bytes(path: Path) -> None:
    first = written(path)
    assert written(path) == first
    with zipfile.ZipFile(path) as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_writing_refuses_what_reading_would(tmp_path: Path) -> None:
    bad = LayeredGraph.from_weights([np.array([[np.inf, 1.0]])], [1, 1], [[1]], check_finite=False)
    with pytest.raises(GraphError, match="block 1: the edge weights hold NaN or Inf"):
        write_npz(bad, tmp_path / "graph")
    with pytest.raises(GraphError, match="there is no directory"):
        write_npz(GRAPH, tmp_path / "absent" / "graph")
    assert list(tmp_path.iterdir()) == []


# --- damage


def test_truncated_files_are_refused_at_every_length(path: Path) -> None:
    whole = written(path)
    for length in (*range(16), *range(16, len(whole), 7), *range(len(whole) - 30, len(whole))):
        path.write_bytes(whole[:length])
        with pytest.raises(GraphError, match=r"cannot be read .*write it again"):
            read_npz(path)


@settings(max_examples=300)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_change_nothing(path: Path, data: st.DataObject) -> None:
    damaged = bytearray(written(path))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        found = read_npz(path)
    except GraphError:
        return
    assert same_graph(found, GRAPH.with_csr())


def test_every_byte_flipped_alone_is_refused_or_changes_nothing(path: Path) -> None:
    whole = written(path)
    refused = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            found = read_npz(path)
        except GraphError:
            refused += 1
        else:
            assert same_graph(found, GRAPH.with_csr())
    assert refused > len(whole) / 6


def archived(path: Path, changes: dict[str, Any], compression: int = zipfile.ZIP_STORED) -> None:
    """The archive of GRAPH with members changed (arrays, or raw bytes), or left out if the change is None."""
    write_npz(GRAPH, path)
    with zipfile.ZipFile(path) as archive:
        members: dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    for name, change in changes.items():
        if isinstance(change, np.ndarray):
            file = io.BytesIO()
            np.save(file, change)
            change = file.getvalue()
        members[f"{name}.npy"] = change
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)


# Replacement text that makes Python's tokenizer, its parser or numpy's dtypes fail.
PIECES = [
    b"(",
    b")",
    b"'",
    b'"',
    b"{",
    b"}",
    b"[",
    b",",
    b":",
    b"#",
    b"\\",
    b"L",
    b"-",
    b"O",
    b"<U9",
    b"V0",
    b"1e9",
    b"\0",
    b"\n",
]


@pytest.mark.slow
@settings(max_examples=300)
@given(data=st.data())
def test_damaged_headers_are_refused_though_their_checksum_is_right(path: Path, data: st.DataObject) -> None:
    written(path)
    name = data.draw(st.sampled_from(["meta", "activation.0", "block.1.indices"]))
    with zipfile.ZipFile(path) as archive:
        content = archive.read(f"{name}.npy")
    start = data.draw(st.integers(6, 127))
    stop = start + data.draw(st.integers(0, 6))
    archived(path, {name: content[:start] + data.draw(st.sampled_from(PIECES)) + content[stop:]})
    try:
        found = read_npz(path)
    except GraphError:
        return
    assert same_graph(found, GRAPH.with_csr())


def test_a_header_that_is_no_python_is_refused(path: Path) -> None:
    written(path)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("activation.0.npy")
    archived(path, {"activation.0": content.replace(b"}", b"(")})
    with pytest.raises(GraphError, match=r"the header of activation.0.npy is damaged: .*write it again"):
        read_npz(path)


def test_the_unchanged_parts_make_a_graph(path: Path) -> None:
    archived(path, {})
    assert same_graph(read_npz(path), GRAPH.with_csr())


def test_compressed_archives_are_refused(path: Path) -> None:
    archived(path, {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(GraphError, match=r"cannot be read \(.* is compressed\)"):
        read_npz(path)


class Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_never_loaded(path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    archived(path, {"activation.0": file.getvalue()})
    with pytest.raises(GraphError, match=r"cannot be read \(activation.0.npy has shape \(1,\) and dtype object"):
        read_npz(path)
    for content in (pickle.dumps(Trap()), b"\x93NUMPY" + pickle.dumps(Trap())):
        archived(path, {"activation.0": content})
        with pytest.raises(GraphError, match="cannot be read"):
            read_npz(path)


def test_a_header_that_claims_too_much_is_refused_before_memory_is_allocated(path: Path) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**14,)})
    archived(path, {"activation.0": file.getvalue() + b"\0" * 80})
    with pytest.raises(GraphError, match="claims 100000000000000 numbers of float64 in 80 bytes"):
        read_npz(path)


def test_members_that_overlap_are_refused_before_they_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand names for the same bytes would be read as a thousand arrays."""
    file = io.BytesIO()
    np.save(file, np.zeros(1000))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("activation.0.npy", file.getvalue())
        first = archive.infolist()[0]
        for k in range(1, 1000):
            twin = copy.copy(first)
            twin.filename = twin.orig_filename = f"activation.{k}.npy"
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    assert path.stat().st_size < 100_000

    def fail(*_: Any) -> None:
        pytest.fail("a member was read")

    monkeypatch.setattr(zipfile.ZipFile, "read", fail)
    with pytest.raises(GraphError, match=r"cannot be read \(.* claims 8128 bytes but takes "):
        read_npz(path)


def test_two_members_of_one_name_are_refused(path: Path) -> None:
    write_npz(GRAPH, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("activation.0.npy", archive.read("activation.1.npy"))
    with pytest.raises(GraphError, match=r"activation.0.npy occurs twice"):
        read_npz(path)


def meta(**changes: Any) -> np.ndarray[Any, Any]:
    facts = {"kind": "graph", "version": 1, "names": list(GRAPH.names), "shapes": [[4, 3], [3, 4]], **changes}
    return np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)


@table("version", [0, 2, None, "1"])
def test_other_versions_are_refused_with_advice(path: Path, version: Any) -> None:
    archived(path, {"meta": meta(version=version)})
    with pytest.raises(GraphError, match=f"has format version {version}, this package reads 1; upgrade the package"):
        read_npz(path)


@table(
    "content", [None, meta(kind="rank"), np.frombuffer(b"[" * 100_000, np.uint8), np.frombuffer(b"\xff{}", np.uint8)]
)
def test_archives_of_other_programs_are_refused(path: Path, content: Any) -> None:
    archived(path, {"meta": content})
    with pytest.raises(GraphError, match=r"is not a graph \("):
        read_npz(path)


# What the arrays may not be is asked of graph files, which are read by the same function; these types only an archive can hold.
@table(
    "changes",
    [
        {"meta": meta(shapes=None)},
        {"meta": meta(shapes=[[4, 2], [3, 4]])},
        {"block.1.data": None},
        {"block.1.indices": np.zeros(0, np.int32)},
        {"activation.1": np.full(4, "1")},
        {"activation.1": np.zeros(4, "V1")},
        {"activation.1": np.zeros(4, [("a", "f8")])},
    ],
)
def test_inconsistent_archives_are_refused(path: Path, changes: dict[str, Any]) -> None:
    archived(path, changes)
    with pytest.raises(GraphError, match=r"is not a consistent graph: .*write it again"):
        read_npz(path)


@table("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 200, b"\x93NUMPY\x01\x00"])
def test_foreign_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(GraphError, match="cannot be read"):
        read_npz(path)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(GraphError, match="no npz file at"):
            read_npz(missing)
