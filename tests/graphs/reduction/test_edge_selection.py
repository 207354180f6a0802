"""Selected edges against the complete block, for every form of the weights."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from graphs.linalg.blocks import Block, DenseBlock
from graphs.linalg.stacking import StackedBlock
from graphs.linalg.validation import as_block
from graphs.reduction import edge_selection
from graphs.reduction.edge_selection import edges_at, edges_by_flow, row_bands
from tests.graphs.cases import Array, Case, cases
from tests.pairwise import pairwise_by_first
from tests.tables import table

RNG = np.random.default_rng(0)
# Multiples of an eighth: every form below holds them exactly, even with eight bits. Many are equal or zero.
WEIGHT = np.round(RNG.standard_normal((23, 17)) * 4) / 4 * (RNG.random((23, 17)) < 0.8)
FORMS: dict[str, Any] = {
    "float64": WEIGHT,
    "float32": WEIGHT.astype(np.float32),
    "Fortran": np.asfortranarray(WEIGHT),
    "strided": np.repeat(WEIGHT, 2, axis=1)[:, ::2],
    "reversed": WEIGHT[::-1].copy()[::-1],
    "read only": np.broadcast_to(WEIGHT, (1, 23, 17))[0],
    "parallel": (WEIGHT.astype(np.float32), WEIGHT / 3),
    "csr": sparse.csr_array(WEIGHT),
    "torch": torch.from_numpy(WEIGHT),
    "torch transposed": torch.from_numpy(np.ascontiguousarray(WEIGHT.T)).T,
    "parameter": torch.nn.Parameter(torch.from_numpy(WEIGHT)),
    "bfloat16": torch.from_numpy(WEIGHT).bfloat16(),
    "float8": torch.from_numpy(WEIGHT).to(torch.float8_e4m3fn),
    "stacked": StackedBlock.from_weights(
        [WEIGHT[:5], (WEIGHT[5:9].T.copy().T, WEIGHT[5:9] / 3), WEIGHT[9:]], [2.0, 0.3, 0.0]
    ),
    "stacked mixture": StackedBlock.from_weights(
        [
            torch.from_numpy(WEIGHT[:, :8]).bfloat16(),
            sparse.csr_array(WEIGHT[:, 8:9]),
            WEIGHT[:, 9:].astype(np.float32),
        ],
        [0.7, 1.0, 0.1],
        axis=1,
    ),
    "parallel bfloat16": (torch.from_numpy(WEIGHT).bfloat16(), torch.from_numpy(WEIGHT / 3).bfloat16()),
}
every_form = table("form", FORMS)
SELECTIONS = [
    (np.arange(23), np.arange(17)),
    (np.arange(5, 12), np.arange(3, 9)),
    (np.array([0, 3, 4, 20, 22]), np.array([1, 2, 16])),
    (np.array([7]), np.array([0, 5])),
    (np.array([0, 22]), np.array([16])),
]


def block_of(form: str) -> Block:
    return as_block(FORMS[form], "block")


def assembled(block: Block, rows: Array | None, columns: Array | None) -> sparse.csr_array:
    chunks = list(row_bands(block, rows, columns))
    found = np.concatenate([chunk for chunk, _ in chunks])
    np.testing.assert_array_equal(found, np.arange(block.shape[0]) if rows is None else rows)
    for _, part in chunks:
        assert part.has_canonical_format
        assert (part.data > 0).all()
        assert part.indices.dtype == np.int32
    return sparse.csr_array(sparse.vstack([part for _, part in chunks], format="csr"))


@every_form
@table("elements", [1, 20, 1 << 19])
def test_chunks_are_the_rows_and_columns_of_the_csr(form: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block = block_of(form)
    whole = block.to_csr()
    monkeypatch.setattr(edge_selection, "BAND_ELEMENTS", elements)
    for rows, columns in SELECTIONS:
        for by_row, by_column in ((rows, columns), (rows, None), (None, columns), (None, None)):
            found = assembled(block, by_row, by_column)
            expected = whole if by_row is None else whole[by_row]
            expected = expected if by_column is None else expected[:, by_column]
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found.toarray(), expected.toarray())


@pairwise_by_first(incoming=[True, False], form=FORMS, top=[None, 1, 3, 100])
def test_edges_at_nodes_are_the_heaviest_of_a_loop(form: str, incoming: bool, top: int | None) -> None:
    block = block_of(form)
    dense = block.to_csr().toarray()
    for nodes in (SELECTIONS[2][0 if incoming else 1], np.array([4]), np.arange(block.shape[0 if incoming else 1])):
        expected = set()
        for node in nodes:
            line = dense[node] if incoming else dense[:, node]
            others = sorted(np.flatnonzero(line), key=lambda other, line=line: (-line[other], other))
            expected |= {(node, other) if incoming else (other, node) for other in others[:top]}
        parts = list(edges_at(block, nodes, incoming, top))
        found = [pair for part in parts for pair in zip(part.targets.tolist(), part.sources.tolist(), strict=True)]
        assert len(found) == len(set(found))
        assert set(found) == expected
        for part in parts:
            np.testing.assert_array_equal(part.weights, dense[part.targets, part.sources])
            assert part.weights.dtype == dense.dtype


@pairwise_by_first(elements=[1, 20, 1 << 19], form=FORMS, count=[1, 4, 9, 10_000])
def test_edges_by_flow_are_the_first_of_a_sorted_list(
    form: str, elements: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = block_of(form)
    monkeypatch.setattr(edge_selection, "BAND_ELEMENTS", elements)
    dense = block.to_csr().toarray()
    strengths = dense.astype(np.float64).sum(axis=0)
    scores = np.resize([0.25, 0.5, 0.0, 1.0], block.shape[1])
    for rows, columns in SELECTIONS:
        edges = sorted(
            (-float(dense[i, j]) / strengths[j] * scores[j], r, c)
            for r, i in enumerate(rows)
            for c, j in enumerate(columns)
            if dense[i, j]
        )
        expected = np.zeros((len(rows), len(columns)), dtype=dense.dtype)
        for _, r, c in edges[:count]:
            expected[r, c] = dense[rows[r], columns[c]]
        found = edges_by_flow(block, rows, columns, scores[columns], strengths[columns], count)
        np.testing.assert_array_equal(found.toarray(), expected)
        assert found.has_canonical_format
        assert found.dtype == dense.dtype


@given(cases(max_blocks=1), st.data())
def test_selections_of_any_block(case: Case, data: st.DataObject) -> None:
    block = case.graph().blocks[0]
    rows, columns = (np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))) for size in block.shape)
    np.testing.assert_array_equal(
        assembled(block, rows, columns).toarray(), np.abs(case.weights[0])[np.ix_(rows, columns)]
    )


def test_a_selection_of_a_large_block_needs_little_memory() -> None:
    # 100 million entries of 8 bytes; only one row is stored, so that the test itself needs little memory.
    block = DenseBlock((np.broadcast_to(np.linspace(1.0, 2.0, 10_000), (10_000, 10_000)),))
    rows, columns = np.arange(0, 10_000, 1000), np.arange(0, 10_000, 777)
    tracemalloc.start()
    try:
        found = assembled(block, rows, columns)
        list(edges_at(block, np.array([5]), incoming=False, top=3))
        edges_by_flow(block, np.arange(10_000), columns, np.ones(13), np.ones(13), 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.nnz == 130
    assert peak < 30e6
