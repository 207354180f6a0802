"""Forms of weights, and ranks with other metadata, for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import sparse

from graphs import LayeredGraph, RankResult
from graphs.linalg.stacking import StackedBlock
from tests.graphs.cases import Array, Case


def stacked(weight: Array, axis: Literal[0, 1]) -> tuple[StackedBlock, Array]:
    """Parts in up to three forms and with three scales."""
    parts = [part for part in np.array_split(weight, 3, axis) if part.size]
    makers = (np.asarray, sparse.csr_array, lambda w: torch.tensor(w).T.contiguous().T)[: len(parts)]
    scales = (1.0, 0.5, 1.5)[: len(parts)]
    block = StackedBlock.from_weights([make(w) for make, w in zip(makers, parts, strict=True)], scales, axis)
    return block, np.concatenate([np.abs(w) * scale for w, scale in zip(parts, scales, strict=True)], axis)


# The forms of weights that a user may pass: the object, and its weights.
FORMS: dict[str, Callable[[Array], tuple[Any, Array]]] = {
    "csr": lambda w: (sparse.csr_array(w), np.abs(w)),
    "float64": lambda w: (w, np.abs(w)),
    "float32": lambda w: (w.astype(np.float32), np.abs(w.astype(np.float32)).astype(np.float64)),
    "column-major": lambda w: (np.asfortranarray(w), np.abs(w)),
    "bfloat16": lambda w: (torch.tensor(w).bfloat16(), torch.tensor(w).bfloat16().double().abs().numpy()),
    "parallel": lambda w: ((w, 2 * w[:, ::-1]), np.abs(w) + 2 * np.abs(w[:, ::-1])),
    "parallel csr": lambda w: (
        (sparse.csr_array(w), sparse.csr_array(2 * w[:, ::-1])),
        np.abs(w) + 2 * np.abs(w[:, ::-1]),
    ),
    "three": lambda w: (
        (torch.tensor(w), torch.tensor(w[::-1].copy()), torch.tensor(w)),
        2 * np.abs(w) + np.abs(w[::-1]),
    ),
    "stacked targets": lambda w: stacked(w, 0),
    "stacked sources": lambda w: stacked(w, 1),
}
# These go other ways through the code; the others are slow tests.
DISTINCT = {"csr", "bfloat16", "parallel", "stacked sources"}
every_form = pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[] if form in DISTINCT else [pytest.mark.slow]) for form in FORMS]
)


def formed(case: Case, form: str) -> tuple[LayeredGraph, Case]:
    """The graph in a form of weights, and the case whose weights are those of the graph."""
    pairs = [FORMS[form](weight) for weight in case.weights]
    return case.graph([given for given, _ in pairs]), dataclasses.replace(case, weights=[seen for _, seen in pairs])


def as_scores(rank: RankResult, **changes: Any) -> RankResult:
    """The same scores, with the metadata of a scorer that does not use a graph."""
    return dataclasses.replace(rank, method="NormScorer", parameters={}, **changes)


def as_modified(rank: RankResult) -> RankResult:
    return dataclasses.replace(rank, method="modified pagerank", parameters={"zero_lowest": 0.0})
