"""The texts of calibration and evaluation: where they come from, and how they become token sequences."""

from .built_in import builtin_texts
from .sequences import CalibrationTokens, TokenSequences, shared_passages
from .sources import check_text, read_text, tokenise

__all__ = [
    "CalibrationTokens",
    "TokenSequences",
    "builtin_texts",
    "check_text",
    "read_text",
    "shared_passages",
    "tokenise",
]
