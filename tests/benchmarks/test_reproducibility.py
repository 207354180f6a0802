"""The study of reproducibility: what it says of two runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.readme import reproducibility
from benchmarks.reproducibility import compared, table


def outcome(mask: list[bool], score: float = 1.0, weight: float = 1.0, scorer: str = "wpr") -> dict[str, Any]:
    return {
        "masks": {"mlp": torch.tensor(mask)},
        "scores": torch.tensor([2.0, score], dtype=torch.float64),
        "weights": {"weight": torch.tensor([weight, 0.0]), "other": torch.ones(1)},
        "scorer": scorer,
    }


EXPECTED = outcome([True, False])


def row(found: dict[str, Any], name: str = "2 threads") -> dict[str, Any]:
    own = {
        "model": "a",
        "name": name,
        "compared_with": "1 thread",
        "close_decisions": {"neurons": 3, "round_off": 1e-5},
    }
    return {**own, **compared(found, EXPECTED)}


@pytest.mark.parametrize(
    ("found", "cell", "line"),
    [
        (outcome([True, False]), "the same bits", "yes | 0 of 2 | 0.0e+00 | 0.0e+00 | 3"),
        (
            outcome([True, False], 1.5, 1.25),
            "the same masks, weights 2e-01",
            "no | 0 of 2 | 5.0e-01 | 2.5e-01 | 3",
        ),
        (
            outcome([False, True], scorer="flap"),
            "2 of 2 masks differ, another scorer",
            "no, another scorer was chosen | 2 of 2 | 0.0e+00 |  | 3",
        ),
    ],
)
def test_two_runs_are_compared(found: dict[str, Any], cell: str, line: str) -> None:
    machine = {"cpu": "a CPU", "vector_instructions": "AVX2", "torch": "2", "blas": "mkl"}
    results = {"provenance": machine, "rows": [{"name": "1 thread"}, row(found)], "texts": []}
    assert f"| a | 2 threads | 1 thread | {line} |" in table(results).splitlines()
    shown = reproducibility(results)["reproducibility"].splitlines()
    assert shown == ["| run | compared with | a |", "| --- | --- | --- |", f"| 2 threads | 1 thread | {cell} |"]
