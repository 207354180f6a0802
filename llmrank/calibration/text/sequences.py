"""Token sequences of one length, and the share of the passages of one text that occur in another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from llmrank.errors import CalibrationError

__all__ = ["Request", "Role", "TokenSequences", "n_held_out", "shared_passages"]

Role: TypeAlias = Literal["calibration", "evaluation"]
# One sequence is held out for every so many sequences that a repair is fitted to.
FITTED_PER_HELD_OUT = 8
# Number of consecutive tokens that make a passage (fewer in shorter sequences).
PASSAGE_LENGTH = 32


@dataclass(frozen=True, eq=False)
class TokenSequences:
    """Token sequences of one length, and the source of their text.

    Attributes
    ----------
    ids : (n, length) int64 tensor
        For a plain module that takes features: its n rows of features, a floating tensor.
    mask : (n, length) bool tensor
        False at padding; (n,) for features.
    source : str
        Source of the text, in words.
    digest : str
        sha256 of the token ids and the mask.
    held_out : int
        Number of sequences at the end that nothing is fitted to. No batch mixes them with the others.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    source: str
    digest: str
    held_out: int = 0

    @classmethod
    def of(cls, ids: torch.Tensor, mask: torch.Tensor, source: str) -> TokenSequences:
        """Make the sequences of token ids and a mask, and compute their digest."""
        # As bytes, because features may be bfloat16, which numpy does not have.
        content = b"".join(tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in (ids, mask))
        return cls(ids, mask, source, hashlib.sha256(content).hexdigest())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Number of tokens in a sequence, padding included."""
        return int(self.ids.shape[1])

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are not padding."""
        return int(self.mask.sum())

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (ids, mask) of up to `batch_size` sequences (features: of at least 256 rows)."""
        batch_size = max(batch_size, 256) if self.ids.is_floating_point() else batch_size
        fitted = len(self) - self.held_out
        for first, end in ((0, fitted), (fitted, len(self))):
            for start in range(first, end, batch_size):
                rows = slice(start, min(start + batch_size, end))
                yield self.ids[rows], self.mask[rows]

    def split(self, first: int) -> tuple[TokenSequences, TokenSequences | None]:
        """Split into the first `first` sequences and the others, or None if there are no others."""
        head, tail = (
            TokenSequences.of(self.ids[rows], self.mask[rows], self.source)
            for rows in (slice(0, first), slice(first, None))
        )
        return head, tail if len(tail) else None

    def joined(self, other: TokenSequences | None) -> TokenSequences:
        """Append other sequences of the same length."""
        if other is None:
            return self
        return TokenSequences.of(torch.cat([self.ids, other.ids]), torch.cat([self.mask, other.mask]), self.source)

    @property
    def parts(self) -> tuple[TokenSequences, TokenSequences | None]:
        """The sequences to fit to, and the held-out ones or None."""
        return self.split(len(self) - self.held_out)

    def provenance(self) -> dict[str, Any]:
        """Describe the sequences for a report."""
        return {
            "source": self.source,
            "sequences": len(self),
            "sequence_length": self.length,
            "tokens": self.n_tokens,
            "sha256_of_tokens": self.digest,
        }


@dataclass(frozen=True)
class Request:
    """The sequences that are wanted from a text.

    Attributes
    ----------
    tokenizer : transformers tokenizer or None
    samples : int
        Largest number of sequences.
    length : int
        Number of tokens in a sequence.
    held_out : int
        Largest number of further sequences that are held out.
    role : {"calibration", "evaluation"}
        What the sequences are for; a source may have a different text for each.
    model : nn.Module, optional
        For sources that run it.
    seed : int
        For sources that sample.
    progress : callable, optional
        See :func:`llmrank.calibration.statistics.collect_statistics`.
    """

    tokenizer: Any
    samples: int
    length: int
    held_out: int = 0
    role: Role = "calibration"
    model: Any = None
    seed: int = 0
    progress: Any = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.samples < 1 or self.length < 2:
            raise CalibrationError(
                f"expected at least 1 sample and a sequence length of at least 2, got {self.samples} and {self.length}"
            )


def n_held_out(samples: int) -> int:
    """Return how many sequences to hold out from a repair that is fitted to `samples` sequences."""
    return max(1, samples // FITTED_PER_HELD_OUT)


def shared_passages(first: TokenSequences, second: TokenSequences) -> float:
    """Compute the share of `second`'s different passages that occur in `first`, 0..1.

    The passages of a sequence of `second` are consecutive windows of 32 tokens; they may occur anywhere in a sequence of
    `first`. A shorter sequence is one passage. If all sequences of `first` are shorter than 32
    tokens, passages are as long as the longest of them.
    """
    rows, other_rows = _rows_without_padding(first), _rows_without_padding(second)
    if not rows or not other_rows:
        return 0.0
    longest = min(PASSAGE_LENGTH, max(len(row) for row in rows))
    passages: dict[int, set[bytes]] = {}
    for row in other_rows:
        window = min(longest, len(row))
        passages.setdefault(window, set()).update(_windows(row, window, window))
    n_found = sum(
        len(of_length & {passage for row in rows for passage in _windows(row, window, 1)})
        for window, of_length in passages.items()
    )
    return n_found / sum(map(len, passages.values()))


def _rows_without_padding(sequences: TokenSequences) -> list[npt.NDArray[np.int64]]:
    """Return the tokens of every sequence without padding, except for sequences that are all padding."""
    rows = [row[mask] for row, mask in zip(sequences.ids.numpy(), sequences.mask.numpy(), strict=True)]
    return [row for row in rows if len(row)]


def _windows(row: npt.NDArray[np.int64], window: int, step: int) -> Iterator[bytes]:
    """Yield the windows of a sequence as bytes."""
    return (row[start : start + window].tobytes() for start in range(0, len(row) - window + 1, step))
