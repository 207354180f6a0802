"""The errors that llmrank raises. Every message says what was expected, what came, and what to do."""

from __future__ import annotations

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "LLMRankError",
    "MaskError",
    "ModelSourceError",
    "OptionError",
    "StructureError",
    "UnsupportedModelError",
    "is_out_of_memory",
]


class LLMRankError(ValueError):
    """Base of all errors that this package raises on purpose."""


class OptionError(LLMRankError):
    """An option or parameter is out of range, or has an unknown name."""


class ModelSourceError(LLMRankError):
    """A model cannot be found, fetched or read."""


class UnsupportedModelError(LLMRankError):
    """A model has no FFN that can be pruned: its geometry is unknown, it has experts, or its weights are quantised."""


class StructureError(LLMRankError):
    """A `structure_dict` does not fit the model."""


class CalibrationError(LLMRankError):
    """Calibration or evaluation text is empty or too short, or gave non-finite activations."""


class MaskError(LLMRankError):
    """Masks do not fit the model, or a mask file is damaged."""


class CheckpointError(LLMRankError):
    """A checkpoint cannot be written or read as asked."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or its cause, reports that memory ran out: Python's, a device's, or torch's on the CPU.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    (True, True)
    """
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
        or (error.__cause__ is not None and is_out_of_memory(error.__cause__))
    )
