"""Restore the random states of a process after code that seeds them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["restored_random_state"]


@contextmanager
def restored_random_state(device: torch.device) -> Iterator[None]:
    """Restore the random states of Python, numpy and torch (CPU and `device`) after the context."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
