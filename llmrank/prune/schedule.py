"""Pruning in steps: before each step, the model without the neurons removed so far is calibrated and ranked again.

Each step removes the lowest of the remaining neurons; removed neurons stay removed. A repair follows the last step, and starts
from the weights of the dense model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmrank.errors import OptionError, check_count
from llmrank.models.costs import Unit, unit_name

__all__ = ["ScheduleStep", "amounts_after_steps", "check_steps", "describe_steps"]

# A larger number is most likely a typing error.
MAX_STEPS = 1000


def check_steps(steps: int) -> int:
    """Return `steps` if it is an integer from 1 to 1000; otherwise raise an OptionError."""
    check_count("steps", steps)
    if steps > MAX_STEPS:
        raise OptionError(f"steps must be at most {MAX_STEPS}, got {steps}: each runs the calibration text once")
    return steps


def amounts_after_steps(amount: float | int, steps: int) -> list[float | int]:
    """Return the amounts to reach: ``amount * k / n`` after step k of n, rounded (halves to even) if `amount` is an integer.

    >>> amounts_after_steps(0.3, 2), amounts_after_steps(10, 4)
    ([0.15, 0.3], [2, 5, 8, 10])
    """
    amounts = [amount * (k / steps) for k in range(1, steps)]
    return [*(map(round, amounts) if isinstance(amount, int) else amounts), amount]


def describe_steps(steps: int, amount: float | int, amount_of: Unit, *, repairs: bool) -> str:
    """Describe the amounts and the cost of the steps in one line.

    >>> describe_steps(2, 0.3, "bytes", repairs=False)
    '2 steps, to 15.0%, 30.0% of the model bytes: 2 passes of the calibration text to rank by'
    """
    amounts = ", ".join(f"{a:,}" if isinstance(a, int) else f"{a:.1%}" for a in amounts_after_steps(amount, steps))
    return (
        f"{steps} steps, to {amounts} of the {unit_name(amount_of)}: {steps} passes of the calibration text to rank by"
        f"{', and a repair after the last' if repairs else ''}"
    )


@dataclass(frozen=True)
class ScheduleStep:
    """The result and the cost of one step.

    Attributes
    ----------
    amount : float or int
        Amount to remove from the dense model by the end of this step.
    removed : int
        Number of neurons removed in this step and all before it.
    repaired : bool
        Whether a repair was tried after the step.
    seconds : dict from str to float
        Wall time of the stages of the step.
    """

    amount: float | int
    removed: int
    repaired: bool
    seconds: dict[str, float] = field(default_factory=dict)
