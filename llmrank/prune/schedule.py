"""Schedules: all at once, or little by little, with a fresh look at what is left before each step."""

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
# Far beyond any use; a mistyped number would pass the calibration text through the model for years.
MOST_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """In how many steps neurons go.

    Before each step the calibration text passes the model as the steps before have cut it, its graphs are drawn and ranked
    anew, and the lowest of the neurons that are left go. What is gone stays gone.

    Parameters
    ----------
    steps : int
        1 is one shot; at most 1000.
    growth : {"linear", "geometric"}
        After step k of n the amount a is ``a * k / n`` (the same number in each step), or ``1 - (1 - a) ** (k / n)`` (the same
        share of what is left; for shares alone).
    repair : {"last", "each"}
        When a repair, where there is one, takes place: after the last step, or after each, so that the next one is chosen
        in the model as repaired. It always starts from the whole model's weights.

    Raises
    ------
    OptionError
        Out of range or unknown.

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
                f"steps must be at most {MOST_STEPS}, got {self.steps}: each takes a pass of the calibration text"
            )
        for name, value, known in (("growth", self.growth, GROWTHS), ("repair", self.repair, REPAIR_TIMES)):
            if value not in known:
                raise OptionError(f"unknown {name} {value!r} of a schedule; expected one of {', '.join(known)}")

    def amounts(self, amount: float | int) -> list[float | int]:
        """The amount after each step, the last being `amount` itself; numbers rounded, halves to the even one.

        Raises
        ------
        OptionError
            A number, where the growth is geometric.
        """
        parts = [k / self.steps for k in range(1, self.steps)]
        if isinstance(amount, int):
            if self.growth == "geometric" and self.steps > 1:
                raise OptionError(
                    f"geometric growth takes the same share of what is left, and needs a share, got {amount}; use linear growth"
                )
            return [*(round(amount * part) for part in parts), amount]
        if self.growth == "linear":
            return [*(amount * part for part in parts), amount]
        return [*(1.0 - (1.0 - amount) ** part for part in parts), amount]

    def check(self, amount: float | int, *, repairs: bool) -> None:
        """Refuse an amount that it cannot grow to (see :meth:`amounts`), and repair after each step where there is none.

        Raises
        ------
        OptionError
        """
        self.amounts(amount)
        if self.repair == "each" and not repairs:
            raise OptionError("a schedule with repair='each' needs a repair; name one, or use repair='last'")

    def describe(self, amount: float | int, of: Unit, *, repairs: bool) -> str:
        """What it will do and cost, in a line.

        >>> Schedule(2).describe(0.3, "bytes", repairs=False)
        '2 steps, to 15.0%, 30.0% of the model bytes: 2 passes of the calibration text to rank by'
        """
        amounts = ", ".join(f"{a:,}" if isinstance(a, int) else f"{a:.1%}" for a in self.amounts(amount))
        reach = f"{self.steps} steps, to {amounts} of the {unit_name(of)}"
        text = f"{reach}: {self.steps} passes of the calibration text to rank by"
        if not repairs:
            return text
        return f"{text}, and a repair after {'the last' if self.repair == 'last' else 'each'}"


@dataclass(frozen=True)
class ScheduleStep:
    """What one step did and cost.

    Attributes
    ----------
    amount : float or int
        Asked for up to here.
    removed : int
        Neurons gone after it.
    repaired : bool
        Whether a repair followed, at the cost that :mod:`llmrank.calibration.blockwise` tells.
    seconds : dict from str to float
        Wall time of its stages.
    calibration_passes : int
        Of the calibration text through the model, to rank by.
    """

    amount: float | int
    removed: int
    repaired: bool
    seconds: dict[str, float] = field(default_factory=dict)
    calibration_passes: int = 1
