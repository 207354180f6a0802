"""The study of threads: every way to run a kernel gives the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.threads import LIMITS, WAYS, cases, running
from graphs.linalg import kernels


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_compute_the_same(way: str) -> None:
    before = [getattr(kernels, name) for name in ("POOL", *LIMITS)]
    for action in cases(0, (10_000, 200_000)).values():
        expected = action()
        if isinstance(expected, np.ndarray):
            with running(way):
                np.testing.assert_allclose(action(), expected, rtol=1e-12)
    assert before == [getattr(kernels, name) for name in ("POOL", *LIMITS)]
