"""The study of threads: every way to run a kernel gives the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.threads import OneThread, StandardPool, cases
from graphs.linalg import kernels


@pytest.mark.parametrize("pool", [OneThread(), StandardPool()])
def test_the_contenders_compute_the_same(pool: object, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: action for name, action in cases(0).items() if "product, 10," in name or "100,000" in name}
    expected = {name: action() for name, action in found.items()}
    monkeypatch.setattr(kernels, "POOL", pool)
    for name, action in found.items():
        np.testing.assert_allclose(action(), expected[name], rtol=1e-12)
