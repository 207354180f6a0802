"""Token sequences of one length, requests for them, and the share of passages that two texts have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from llmrank.errors import CalibrationError
from llmrank.file_contents import check_fields

__all__ = ["CalibrationTokens", "Request", "Role", "TokenSequences", "shared_passages"]

Role: TypeAlias = Literal["calibration", "evaluation"]
# Number of consecutive tokens that make a passage (fewer in shorter sequences).
PASSAGE_LENGTH = 32


@dataclass(frozen=True, eq=False)
class TokenSequences:
    """Token sequences of one length, and the source of their text.

    Attributes
    ----------
    ids : (n, length) int64 tensor
        Token ids; for a plain module that takes features, a float tensor of n rows of features.
    mask : (n, length) bool tensor
        False at padding. For features: (n,), all True.
    source : str
        Source of the text, in words.
    digest : str
        sha256 of the token ids (or features) and the mask.
    held_out : int
        Number of sequences at the end that nothing is fitted to. No batch mixes them with the others.
    details : mapping
        More facts for a report, as values that JSON can hold, such as the sources of a mixture.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    source: str
    digest: str
    held_out: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, ids: torch.Tensor, mask: torch.Tensor, source: str) -> TokenSequences:
        """Make sequences from token ids (or features) and a mask, and compute their digest; none is held out."""
        # As bytes, because features may be bfloat16, which numpy does not have.
        content = b"".join(tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in (ids, mask))
        return cls(ids, mask, source, hashlib.sha256(content).hexdigest())

    @classmethod
    def of_file(cls, ids: Any, mask: Any, source: Any, details: Any = None) -> TokenSequences:
        """Make sequences from arrays and facts that were read from a file; none is held out.

        Raises
        ------
        TypeError, ValueError
            They are no sequences: they differ in shape, or a type is wrong.
        """
        details = {} if details is None else details
        check_fields({"source": source, "details": details}, {"source": str, "details": dict})
        is_features = ids.dtype.kind == "f"
        are_rows = (ids.ndim >= 2 if is_features else ids.ndim == 2 and ids.dtype.kind == "i") and 0 not in ids.shape
        if not are_rows or mask.dtype != bool or mask.shape != (ids.shape[:1] if is_features else ids.shape):
            raise ValueError(
                f"expected token ids (n, length) and a mask of booleans, got {ids.dtype} {ids.shape}, {mask.dtype} {mask.shape}"
            )
        if not mask.reshape(len(mask), -1).any(1).all():
            raise ValueError("a sequence consists of padding")
        rows, is_text = (torch.from_numpy(np.ascontiguousarray(each)) for each in (ids, mask))
        return replace(cls.of(rows if is_features else rows.long(), is_text, source), details=details)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Number of tokens in a sequence, padding included (features: of entries along the second axis)."""
        return int(self.ids.shape[1])

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are not padding (features: of rows)."""
        return int(self.mask.sum())

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (ids, mask) of up to `batch_size` sequences; for features, a `batch_size` below 256 counts as 256."""
        size = self._rows_at_once(batch_size)
        for first, end in self._bounds:
            for start in range(first, end, size):
                rows = slice(start, min(start + size, end))
                yield self.ids[rows], self.mask[rows]

    def split(self, count: int) -> tuple[TokenSequences, TokenSequences | None]:
        """Return the first `count` sequences, and the rest of the sequences or None; :attr:`held_out` is 0 in both results."""
        head, tail = (
            replace(TokenSequences.of(self.ids[rows], self.mask[rows], self.source), details=self.details)
            for rows in (slice(0, count), slice(count, None))
        )
        return head, tail if len(tail) else None

    def spread(self, count: int) -> TokenSequences:
        """Return up to `count` of the sequences, evenly spaced.

        Examples
        --------
        >>> sequences = TokenSequences.of(torch.arange(12).view(6, 2), torch.ones(6, 2, dtype=torch.bool), "text")
        >>> sequences.spread(2).ids[:, 0].tolist()
        [2, 8]
        """
        if count >= len(self):
            return self
        return self.ordered([(2 * k + 1) * len(self) // (2 * count) for k in range(count)])

    def ordered(self, rows: Sequence[int]) -> TokenSequences:
        """Return the sequences of these rows, in their order; none is held out."""
        return TokenSequences.of(self.ids[list(rows)], self.mask[list(rows)], self.source)

    def share(self, number: int, count: int, batch_size: int) -> TokenSequences:
        """Return share `number` of `count` shares: consecutive batches of these sequences, and consecutive held-out batches.

        All shares together have the same batches as these sequences. A share may be empty.

        Examples
        --------
        >>> sequences = TokenSequences.of(torch.arange(10).view(5, 2), torch.ones(5, 2, dtype=torch.bool), "text")
        >>> [sequences.share(number, 2, 2).ids[:, 0].tolist() for number in range(2)]
        [[0, 2, 4, 6], [8]]
        """
        size, rows = self._rows_at_once(batch_size), []
        for first, end in self._bounds:
            n_batches = -(-(end - first) // size)
            # Share k begins with batch ceil(k * n_batches / count).
            bounds = (first + size * -(-k * n_batches // count) for k in (number, number + 1))
            rows.append(range(*(min(bound, end) for bound in bounds)))
        chosen = [*rows[0], *rows[1]]
        share = TokenSequences.of(self.ids[chosen], self.mask[chosen], self.source)
        return replace(share, held_out=len(rows[1]))

    @property
    def _bounds(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The first row and the row behind the last one, of the sequences to fit to and of the held-out ones."""
        fitted = len(self) - self.held_out
        return (0, fitted), (fitted, len(self))

    def _rows_at_once(self, batch_size: int) -> int:
        return max(batch_size, 256) if self.ids.is_floating_point() else batch_size

    def joined(self, other: TokenSequences | None) -> TokenSequences:
        """Return these sequences followed by the sequences of `other`, which have the same length; without `other`, these."""
        if other is None:
            return self
        source = self.source if self.source == other.source else f"{self.source}, {other.source}"
        return TokenSequences.of(torch.cat([self.ids, other.ids]), torch.cat([self.mask, other.mask]), source)

    def apart_from(self, used: TokenSequences) -> TokenSequences | None:
        """Return the sequences that share no passage with `used`, or None if all do.

        A passage is one of 32 tokens (fewer in shorter sequences), see :func:`shared_passages`.

        Examples
        --------
        >>> sequences = TokenSequences.of(torch.arange(8).view(4, 2), torch.ones(4, 2, dtype=torch.bool), "text")
        >>> sequences.apart_from(sequences.ordered([0, 2])).ids[:, 0].tolist()
        [2, 6]
        """
        length = min(PASSAGE_LENGTH, self.length, used.length)
        known = _rows_without_padding(used)
        lengths = {length, *(n for n in map(int, self.mask.sum(1)) if 0 < n < length)}
        seen = {window for row in known for size in lengths for window in _windows(row, size, 1)}
        own = (row[mask] for row, mask in zip(self.ids.numpy(), self.mask.numpy(), strict=True))
        # A shorter sequence is one passage.
        rows = [
            number for number, row in enumerate(own) if seen.isdisjoint(_windows(row, min(length, len(row)), length))
        ]
        return replace(self.ordered(rows), details=self.details) if rows else None

    @property
    def parts(self) -> tuple[TokenSequences, TokenSequences | None]:
        """The sequences to fit to, and the held-out sequences (None if there are none)."""
        return self.split(len(self) - self.held_out)

    def provenance(self) -> dict[str, Any]:
        """Describe the sequences for a report."""
        return {
            "source": self.source,
            "sequences": len(self),
            "sequence_length": self.length,
            "tokens": self.n_tokens,
            "sha256_of_tokens": self.digest,
            **self.details,
        }


class CalibrationTokens(NamedTuple):
    """The sequences that a model is calibrated on, and those to hold out.

    Attributes
    ----------
    sequences : TokenSequences
        Statistics are taken on all of them. If nothing follows in the text, the last of them are marked as held out.
    held_out : TokenSequences or None
        The sequences that follow in the text; None if the text ends before, or none were asked for.
    other : TokenSequences or None
        Held-out sequences of another kind of text, see :func:`llmrank.text.other_text.held_out_other_text`.
    """

    sequences: TokenSequences
    held_out: TokenSequences | None
    other: TokenSequences | None = None

    @property
    def known(self) -> TokenSequences:
        """All sequences of the calibration's kind of text: those that statistics are taken on, and those held out."""
        return self.sequences.joined(self.held_out)

    @property
    def held_out_of_kind(self) -> TokenSequences | None:
        """The held-out sequences of the calibration's kind of text."""
        return self.sequences.parts[1] if self.held_out is None else self.held_out

    @property
    def parts(self) -> tuple[TokenSequences, TokenSequences | None]:
        """The sequences to fit a repair to, and those to tune and to judge it by, as many of each kind of text.

        If the text was too short to go on behind the calibration sequences, only its own last sequences are held out.
        """
        if self.held_out is None:
            return self.sequences.parts
        other = None if self.other is None else self.other.spread(len(self.held_out))
        return self.sequences, self.held_out.joined(other)


@dataclass(frozen=True)
class Request:
    """The sequences that a caller wants from a text.

    Attributes
    ----------
    tokenizer : transformers tokenizer or None
    samples : int
        Largest number of sequences; ignored for a list of several texts, which is used as a whole.
    length : int
        Number of tokens in a sequence, special tokens included. For a list of several texts, the largest such number.
    held_out : int
        Largest number of sequences to hold out, which follow the other sequences in the text.
    role : {"calibration", "evaluation"}
        What the sequences are for; a source may have a different text for each.
    model : nn.Module, optional
        The model to calibrate, for sources that run it.
    seed : int
        Seed for sources that sample, and for the order in which rows of datasets and sequences of mixtures come.
    progress : callable, optional
        See :func:`llmrank.calibration.collect.collect_statistics`.

    Raises
    ------
    CalibrationError
        `samples` is below 1, or `length` below 2.
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
        if self.samples < 1 or self.length < 2:
            raise CalibrationError(
                f"expected at least 1 sample and a sequence length of at least 2, got {self.samples} and {self.length}"
            )


def shared_passages(first: TokenSequences, second: TokenSequences) -> float:
    """Compute the share of the distinct passages of `second` that occur in `first`, 0..1.

    The sequences of `second` are cut into passages of 32 tokens, without padding. If all sequences of `first` are shorter, the
    passages have the length of the longest one; a sequence that is shorter than a passage is one passage. A passage may begin
    at any token of `first`.
    """
    rows, other_rows = _rows_without_padding(first), _rows_without_padding(second)
    if not rows or not other_rows:
        return 0.0
    passage_length = min(PASSAGE_LENGTH, max(map(len, rows)))
    passages_by_length: dict[int, set[bytes]] = {}
    for row in other_rows:
        length = min(passage_length, len(row))
        passages_by_length.setdefault(length, set()).update(_windows(row, length, length))
    n_found = sum(
        len(passages & {window for row in rows for window in _windows(row, length, 1)})
        for length, passages in passages_by_length.items()
    )
    return n_found / sum(map(len, passages_by_length.values()))


def _rows_without_padding(sequences: TokenSequences) -> list[npt.NDArray[np.int64]]:
    """Return the tokens of every sequence without padding. Sequences that consist of padding are left out."""
    rows = [row[mask] for row, mask in zip(sequences.ids.numpy(), sequences.mask.numpy(), strict=True)]
    return [row for row in rows if len(row)]


def _windows(row: npt.NDArray[np.int64], length: int, step: int) -> Iterator[bytes]:
    """Return an iterator over the full windows of a sequence, as bytes, with starts `step` tokens apart."""
    return (row[start : start + length].tobytes() for start in range(0, len(row) - length + 1, step))
