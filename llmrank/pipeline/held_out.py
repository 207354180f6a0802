"""How many calibration sequences are held out: nothing is fitted to them, and they tell which of two models is closer."""

from __future__ import annotations

__all__ = ["n_held_out"]

# For this many calibration sequences, one more is held out from a repair.
FITTED_PER_HELD_OUT = 8


def n_held_out(samples: int) -> int:
    """Return how many sequences to hold out from a repair: one for every eight of `samples`, and at least one."""
    return max(1, samples // FITTED_PER_HELD_OUT)
