"""Schedules: pruning in one step, or in several, with a new calibration and ranking before each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from llmrank.errors import OptionError
from llmrank.models.costs import Unit, unit_name

__all__ = ["GROWTHS", "REPAIR_TIMES", "Growth", "RepairTime", "Schedule", "ScheduleStep"]

Growth: TypeAlias = Literal["linear", "geometric"]
RepairTime: TypeAlias = Literal["last", "each"]
GROWTHS: tuple[Growth, ...] = ("linear", "geometric")
REPAIR_TIMES: tuple[RepairTime, ...] = ("last", "each")
# Far beyond any use: a mistyped number would take years of calibration.
MOST_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """The number of steps in which neurons are removed.

    Before each step statistics are taken on the model as pruned so far, its graphs are built and ranked
    anew, and the lowest of the remaining neurons are removed. Removed neurons do not come back.

    Parameters
    ----------
    steps : int
        1 removes all neurons at once; at most 1000.
    growth : {"linear", "geometric"}
        For an amount a, step k of n reaches ``a * k / n`` (the same number in each step), or ``1 - (1 - a) ** (k / n)`` (the same
        share of the remaining neurons; only for shares).
    repair : {"last", "each"}
        When a repair, if there is one, takes place: after the last step, or after each, so that the next step chooses
        neurons in the repaired model. It always starts from the weights of the dense model.

    Raises
    ------
    OptionError
        A value is out of range or unknown.

    Examples
    --------
    >>> Schedule(2).amounts(0.3), Schedule(4).amounts(10)
    ([0.15, 0.3], [2, 5, 8, 10])
    >>> [round(amount, 3) for amount in Schedule(2, growth="geometric").amounts(0.19)]
    [0.1, 0.19]
    """

    steps: int = 1
    growth: Growth = "linear"
    repair: RepairTime = "last"

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise OptionError(f"steps must be an integer >= 1, got {self.steps!r}")
        if self.steps > MOST_STEPS:
            raise OptionError(
                f"steps must be at most {MOST_STEPS}, got {self.steps}: each runs the calibration text once"
            )
        for name, value, known in (("growth", self.growth, GROWTHS), ("repair", self.repair, REPAIR_TIMES)):
            if value not in known:
                raise OptionError(f"unknown {name} {value!r} of a schedule; expected one of {', '.join(known)}")

    def amounts(self, amount: float | int) -> list[float | int]:
        """Return the amount after each step; the last is `amount` itself. Numbers are rounded, halves to the even one.

        Raises
        ------
        OptionError
            The growth is geometric and the amount is a number of neurons.
        """
        parts = [k / self.steps for k in range(1, self.steps)]
        if isinstance(amount, int):
            if self.growth == "geometric" and self.steps > 1:
                raise OptionError(
                    f"geometric growth removes the same share in each step, so it needs a share, got {amount}; use linear growth"
                )
            return [*(round(amount * part) for part in parts), amount]
        if self.growth == "linear":
            return [*(amount * part for part in parts), amount]
        return [*(1.0 - (1.0 - amount) ** part for part in parts), amount]

    def check(self, amount: float | int, *, repairs: bool) -> None:
        """Raise if the schedule cannot reach this amount (see :meth:`amounts`), or repairs after each step but has no repair.

        Raises
        ------
        OptionError
        """
        self.amounts(amount)
        if self.repair == "each" and not repairs:
            raise OptionError("a schedule with repair='each' needs a repair; name one, or use repair='last'")

    def describe(self, amount: float | int, of: Unit, *, repairs: bool) -> str:
        """Describe the steps and their cost in one line.

        >>> Schedule(2).describe(0.3, "bytes", repairs=False)
        '2 steps, to 15.0%, 30.0% of the model bytes: 2 passes of the calibration text to rank by'
        """
        amounts = ", ".join(f"{a:,}" if isinstance(a, int) else f"{a:.1%}" for a in self.amounts(amount))
        steps = f"{self.steps} steps, to {amounts} of the {unit_name(of)}"
        text = f"{steps}: {self.steps} passes of the calibration text to rank by"
        if not repairs:
            return text
        return f"{text}, and a repair after {'the last' if self.repair == 'last' else 'each'}"


@dataclass(frozen=True)
class ScheduleStep:
    """The result and the cost of one step.

    Attributes
    ----------
    amount : float or int
        Amount that this step had to reach.
    removed : int
        Number of neurons removed so far.
    repaired : bool
        Whether a repair followed; :mod:`llmrank.calibration.blockwise` states its cost.
    seconds : dict from str to float
        Wall time of its stages.
    calibration_passes : int
        Number of passes of the calibration text through the model for the ranking.
    """

    amount: float | int
    removed: int
    repaired: bool
    seconds: dict[str, float] = field(default_factory=dict)
    calibration_passes: int = 1
