"""Tests of sparse matrices with damaged index arrays, with which scipy and torch access foreign memory."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from graphs import BlockDigraph, EdgeBlock, GraphError, LayeredGraph, pagerank
from graphs.linalg.blocks import SparseBlock
from graphs.linalg.validation import as_block, as_csr, as_vector
from tests.tables import table

WEIGHTS = np.array([[1.0, 2.0, 0.0], [0.0, 3.0, 4.0], [5.0, 0.0, 6.0]])
FAR = 10**8


def matrix(form: str, change: Callable[[Any], Any]) -> Any:
    """A matrix of a format, damaged through its attributes, which scipy does not check."""
    made = sparse.csr_array(WEIGHTS).asformat(form)
    change(made)
    return made


def put(array: str, position: int, value: int) -> Callable[[Any], Any]:
    return lambda made: getattr(made, array).__setitem__(position, value)


def swap(array: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda made: setattr(made, array, change(getattr(made, array)))


def tensor(form: str, *indices: Any) -> Any:
    """A torch tensor of a format, made without checks."""
    # torch's warnings about formats in beta, and about checks that it omits.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make = getattr(torch, f"sparse_{form}_tensor")
        values = torch.ones(1, 3, 3) if form in ("bsr", "bsc") else torch.ones(6)
        parts = [torch.tensor(index) for index in indices]
        return make(*parts, values, (3, 3), check_invariants=False)


SOUND = [0, 1, 1, 2, 0, 2]
DAMAGED: dict[str, tuple[Callable[[], Any], str]] = {
    "csr, index high": (
        lambda: matrix("csr", put("indices", 1, FAR)),
        "the CSR matrix is damaged: expected column indices from 0 to 2, got 100000000 at entry 1; build it again",
    ),
    "csr, index negative": (lambda: matrix("csr", put("indices", 4, -1)), "from 0 to 2, got -1 at entry 4"),
    "csr, index one too high": (lambda: matrix("csr", put("indices", 1, 3)), "from 0 to 2, got 3 at entry 1"),
    "csr, floats": (lambda: matrix("csr", swap("indices", np.float64)), "expected integer column indices .* float64"),
    "csr, pointer high": (
        lambda: matrix("csr", put("indptr", 1, FAR)),
        "never decrease, got 100000000 and then 4 at 2",
    ),
    "csr, pointer negative": (
        lambda: matrix("csr", put("indptr", 1, -FAR)),
        "never decrease, got 0 and then -100000000 at 1",
    ),
    "csr, last pointer high": (lambda: matrix("csr", put("indptr", 3, FAR)), "pointers from 0 to 100000000, 6 values"),
    "csr, last pointer zero": (
        lambda: matrix("csr", put("indptr", 3, 0)),
        "pointers from 0 to 0, 6 values and 6 indices",
    ),
    "csr, first pointer": (lambda: matrix("csr", put("indptr", 0, 1)), "got pointers from 1 to 6"),
    "csr, pointers short": (lambda: matrix("csr", swap("indptr", lambda p: p[:-1])), r"expected 4 integers .* \(3,\)"),
    "csr, values short": (lambda: matrix("csr", swap("data", lambda d: d[:-2])), "4 values and 6 indices"),
    "csc, index high": (lambda: matrix("csc", put("indices", 1, FAR)), "the CSC matrix .* row indices from 0 to 2"),
    "csc, pointer high": (lambda: matrix("csc", put("indptr", 1, FAR)), "never decrease"),
    "bsr, index high": (lambda: matrix("bsr", put("indices", 0, FAR)), "the BSR matrix .* column indices"),
    "bsr, pointer high": (lambda: matrix("bsr", put("indptr", -1, FAR)), "the BSR matrix .* pointers from 0"),
    "bsr, other blocks": (lambda: matrix("bsr", swap("data", lambda d: np.ones((len(d), 2, 2)))), r"of shape \(3, 3\)"),
    "coo, row high": (
        lambda: matrix("coo", lambda made: made.coords[0].__setitem__(0, FAR)),
        "row indices from 0 to 2",
    ),
    "coo, column negative": (
        lambda: matrix("coo", lambda made: made.coords[1].__setitem__(0, -5)),
        "the COO matrix is damaged: expected column indices from 0 to 2, got -5 at entry 0",
    ),
    "coo, values short": (lambda: matrix("coo", swap("data", lambda d: d[:1])), "a row and a column for every value"),
    "lil, column high": (
        lambda: matrix("lil", lambda made: made.rows[0].__setitem__(1, FAR)),
        "got 100000000 at entry 1",
    ),
    "lil, values long": (
        lambda: matrix("lil", lambda made: made.data.__setitem__(0, [1.0] * 1_000_000)),
        "the LIL matrix is damaged: expected as many columns as values",
    ),
    "lil, rows few": (lambda: matrix("lil", swap("rows", lambda rows: rows[:1])), "as many columns as values"),
    "dia, values few": (lambda: matrix("dia", swap("data", lambda d: d[:1])), "the DIA matrix is damaged"),
    "dok, row high": (lambda: matrix("dok", lambda made: made._dict.__setitem__((FAR, 0), 1.0)), "the DOK matrix"),
    "torch csr, pointer high": (lambda: tensor("csr", [0, FAR, 4, 6], SOUND), "the CSR matrix .* never decrease"),
    "torch csr, index high": (lambda: tensor("csr", [0, 2, 4, 6], [0, FAR, 1, 2, 0, 2]), "the CSR matrix .* column"),
    "torch csc, index high": (lambda: tensor("csc", [0, 2, 4, 6], [0, FAR, 1, 2, 0, 2]), "the CSC matrix .* row"),
    "torch bsr, index high": (lambda: tensor("bsr", [0, 1], [FAR]), "the BSR matrix .* column indices from 0 to 0"),
    "torch coo, row high": (lambda: tensor("coo", [[0, FAR, 1, 1, 2, 2], SOUND]), "the COO matrix .* row"),
    "torch coo, row negative": (lambda: tensor("coo", [[0, -FAR, 1, 1, 2, 2], SOUND]), "the COO matrix .* row"),
}


@table("case", DAMAGED)
def test_damaged_index_arrays_are_refused(case: str) -> None:
    make, message = DAMAGED[case]
    with pytest.raises(GraphError, match=message):
        LayeredGraph.from_weights([make()], [1, 1, 1], [[1, 1, 1]])
    with pytest.raises(GraphError, match=f"block 1: .*{message}"):
        LayeredGraph.from_weights([(WEIGHTS, make())], [1, 1, 1], [[1, 1, 1]])
    if not case.startswith("torch"):
        with pytest.raises(GraphError, match=f"graph: .*{message}"):
            pagerank(make())


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_negative_indices_of_narrow_dtypes_are_refused(dtype: str) -> None:
    side = 1 << (17 if dtype == "int16" else 9)  # as an unsigned number of this dtype, -1 would be a column
    csr = sparse.csr_array(sparse.eye_array(side, format="csr"))
    csr.indices = np.zeros(side, dtype)
    csr.indices[4] = -1
    with pytest.raises(GraphError, match=f"from 0 to {side - 1}, got -1 at entry 4"):
        pagerank(csr)


def test_a_block_of_a_digraph_is_looked_at_too() -> None:
    block = SparseBlock(matrix("csr", put("indptr", 1, FAR)))
    with pytest.raises(GraphError, match="edges from layer 0 to layer 0: the CSR matrix is damaged"):
        BlockDigraph((3,), (EdgeBlock(0, 0, block),), ("all",))


def test_no_damaged_matrix_ends_the_process() -> None:
    """Run code in a process of its own, which a missing check may end by a signal."""
    program = (
        "from tests.graphs.linalg.test_validation import DAMAGED\n"
        "from graphs import GraphError, LayeredGraph\n"
        "for make, _ in DAMAGED.values():\n"
        "    try:\n"
        "        LayeredGraph.from_weights([make()], [1, 1, 1], [[1, 1, 1]])\n"
        "    except (GraphError, ValueError, RuntimeError):\n"
        "        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


@table("form", ["csr", "csc", "bsr", "coo", "lil", "dok", "dia"])
@table("width", [np.int32, np.int64])
def test_sound_matrices_of_every_format_are_read(form: str, width: type) -> None:
    given = matrix(form, lambda _: None)
    for name in ("indices", "indptr"):
        if form in ("csr", "csc", "bsr"):
            setattr(given, name, getattr(given, name).astype(width))
    before = given.toarray()
    np.testing.assert_array_equal(as_block(given, "it").to_csr().toarray(), WEIGHTS)
    np.testing.assert_array_equal(given.toarray(), before)


@table("form", ["coo", "csr", "csc", "bsr"])
def test_sound_tensors_of_every_format_are_read(form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense = torch.tensor(WEIGHTS)
        given = dense.to_sparse_bsr((3, 3)) if form == "bsr" else getattr(dense, f"to_sparse_{form}")()
    np.testing.assert_array_equal(as_block(given, "it").to_csr().toarray(), WEIGHTS)


def test_a_vector_without_numbers_is_refused() -> None:
    with pytest.raises(GraphError, match=r"it: expected real numbers \(n,\), got Tensor: a tensor on the meta device"):
        as_vector(torch.ones(2, device="meta"), "it")


def test_a_format_that_scipy_does_not_know_is_refused() -> None:
    with pytest.raises(GraphError, match=r"it: expected a dense, COO, CSR, CSC or BSR tensor, got torch.sparse_bsc"):
        as_block(tensor("bsc", [0, 1], [0]), "it")


@pytest.mark.parametrize("dtype", ["int8", "bool", "float32"])
def test_duplicates_of_a_coo_matrix_add_up_whatever_the_dtype(dtype: str) -> None:
    values = np.array([100, 100], dtype=dtype)
    found = as_csr(sparse.coo_array((values, ([0, 0], [1, 1])), shape=(1, 2)), "block 1")
    assert found.toarray().tolist() == [[0.0, 2.0 if dtype == "bool" else 200.0]]
