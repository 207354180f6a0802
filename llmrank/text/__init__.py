"""The texts of calibration and evaluation: where they come from, and how they become token sequences."""

from llmrank.text.built_in import builtin_texts
from llmrank.text.sequences import CalibrationTokens, TokenSequences, n_held_out, shared_passages
from llmrank.text.sources import check_text, read_text, tokenise, tokenise_and_hold_out

__all__ = [
    "CalibrationTokens",
    "TokenSequences",
    "builtin_texts",
    "check_text",
    "n_held_out",
    "read_text",
    "shared_passages",
    "tokenise",
    "tokenise_and_hold_out",
]
