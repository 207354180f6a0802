"""The study of repairs by the number of tokens: its table, and the repair as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import repair
from llmrank.repair import Moments


def row(tokens: int, name: str, losses: list[float], **more: Any) -> dict[str, Any]:
    return {"tokens": tokens, "repair": name, "losses": losses, "counts": [2, 2], **more}


def test_changes_are_against_the_cut_model_and_paired() -> None:
    validation = {"cut": 0.5, "repaired": 0.25}
    results = {
        "models": {
            "tiny": {
                "dense": {"losses": [2.0, 2.0], "counts": [2, 2]},
                "rows": [
                    row(1024, "none", [6.0, 4.0]),
                    row(1024, "before", [6.5, 4.5], seconds=1.0),
                    row(1024, "now", [4.0, 4.0], seconds=1.0, validation=validation),
                ],
            }
        }
    }
    lines = repair.table(results).splitlines()
    assert lines[2] == f"## tiny: dense {np.e:.2f}, 2 sequences of 1024 tokens"
    cut, before, now = np.exp(2.5), np.exp(2.75), np.exp(2.0)
    assert lines[-1] == (
        f"| 1,024 | {cut:.2f} | {before:.2f} (+0.250 ± 0.000) | {now:.2f} (-0.500 ± 0.500) | "
        "0.500 cut, 0.250 repaired: kept |"
    )


@pytest.mark.parametrize("lacks", [False, True])
def test_one_ridge_is_chosen_on_held_out_tokens_and_fitted_to_all(lacks: bool) -> None:
    random = np.random.default_rng(0)
    x, weight = random.normal(size=(60, 5)), random.normal(size=(3, 5))
    lack = random.normal(size=(60, 3)) if lacks else np.zeros((60, 3))
    keep = np.array([True, True, True, False, False])
    given = torch.from_numpy(lack) if lacks else None
    fit, held_out = (
        Moments.of(torch.from_numpy(x[part]), None if given is None else given[part])
        for part in (slice(0, 40), slice(40, 60))
    )
    found = repair.OneRidge().solve(torch.from_numpy(weight), None, torch.from_numpy(keep), fit, held_out)

    def solved(rows: slice, damping: float) -> Any:
        inner = x[rows][:, keep].T @ x[rows][:, keep]
        ridge = damping * np.trace(inner) / keep.sum() * np.eye(keep.sum())
        target = x[rows][:, ~keep] @ weight[:, ~keep].T + lack[rows]
        return np.linalg.solve(inner + ridge, x[rows][:, keep].T @ target).T

    def error(damping: float) -> float:
        target = x[40:][:, ~keep] @ weight[:, ~keep].T + lack[40:]
        return float(np.square(target - x[40:][:, keep] @ solved(slice(0, 40), damping).T).sum())

    assert found.damping == min(repair.OLD_DAMPINGS, key=error)
    np.testing.assert_allclose(
        found.weight[:, torch.from_numpy(keep)], weight[:, keep] + solved(slice(0, 60), found.damping), rtol=1e-8
    )
