"""The types of the errors that llmrank raises. Their messages say what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "LLMRankError",
    "MaskError",
    "ModelSourceError",
    "OptionError",
    "ProcessError",
    "StructureError",
    "UnsupportedModelError",
    "check_choice",
    "check_count",
    "check_type",
    "did_you_mean",
    "is_out_of_memory",
    "not_finite",
]


class LLMRankError(ValueError):
    """Base class of the errors of this package."""


class OptionError(LLMRankError):
    """An option is unknown, out of range or at odds with another option, or it needs a package or a device that is missing."""


class ModelSourceError(LLMRankError):
    """A model cannot be found, fetched or read."""


class UnsupportedModelError(LLMRankError):
    """A model lacks what is asked of it, such as FFNs that can be pruned or predictions of tokens, or its compact form fails."""


class StructureError(LLMRankError):
    """A `structure_dict`, which names Linears, does not fit the model or the topology; or a model has no residual stream."""


class CalibrationError(LLMRankError):
    """Calibration or evaluation text cannot be used: it is missing, too short or not for this model; or the model fails on it."""


class MaskError(LLMRankError):
    """Masks or repaired maps do not fit the model or each other, or a mask file cannot be read or written."""


class CheckpointError(LLMRankError):
    """A checkpoint or another output file cannot be written or read."""


class ProcessError(LLMRankError):
    """Another of the processes that divide a run among themselves has failed.

    Attributes
    ----------
    rank : int or None
        Number of that process, if it is known.
    said_why : bool
        Whether that process could still say why it failed.
    """

    def __init__(self, message: str, rank: int | None, *, said_why: bool = False) -> None:
        super().__init__(message)
        self.rank, self.said_why = rank, said_why


def check_type(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise an OptionError unless a value is of one of some types; `expected` names them in words.

    Examples
    --------
    >>> check_type("work_directory", 5, str, "a path")
    Traceback (most recent call last):
        ...
    llmrank.errors.OptionError: work_directory must be a path, got 5 (int)
    """
    if not isinstance(value, kinds):
        shown = repr(value)
        raise OptionError(
            f"{name} must be {expected}, got {shown if len(shown) < 80 else f'{shown[:80]}...'} ({type(value).__name__})"
        )


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise an OptionError unless a value is one of some names.

    Examples
    --------
    >>> check_choice("form", "left", ("zero", "mask"))
    Traceback (most recent call last):
        ...
    llmrank.errors.OptionError: unknown form 'left'; expected one of zero, mask
    """
    known = list(choices)
    # An array cannot be looked for in a list.
    if not isinstance(value, str) or value not in known:
        raise OptionError(f"unknown {name} {value!r}; expected one of {', '.join(known)}")


def check_count(name: str, value: Any, lowest: int = 1) -> None:
    """Raise an OptionError unless a value is an integer, and not below the lowest one that is allowed.

    Examples
    --------
    >>> check_count("samples", 2.0)
    Traceback (most recent call last):
        ...
    llmrank.errors.OptionError: samples must be an integer >= 1, got 2.0
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise OptionError(f"{name} must be an integer >= {lowest}, got {value!r}")


def not_finite(what: str) -> CalibrationError:
    """Return the error for values of a model that hold NaN or Inf; `what` names them and ends in "is" or "are".

    >>> not_finite("the model's predictions are").args[0].partition(":")[0]
    "the model's predictions are not finite"
    """
    return CalibrationError(
        f"{what} not finite: the weights hold NaN or Inf, or the dtype overflows; load the weights in float32 or bfloat16 and "
        "check the perplexity"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error or one of its causes says that Python, a device or torch on the CPU ran out of memory.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    (True, True)
    """
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
        or (error.__cause__ is not None and is_out_of_memory(error.__cause__))
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean NAME?)" with the most similar known name; "" if none is similar."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
