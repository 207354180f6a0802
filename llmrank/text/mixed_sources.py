"""Calibration text from several sources, each with a share of the sequences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from llmrank.errors import CalibrationError
from llmrank.text.base_source import BaseSource
from llmrank.text.sequences import Request, Role, TokenSequences

__all__ = ["MixedSources", "split_shares", "whole_numbers"]

# A colon and a number with a decimal point or a percent sign, at the end of an entry. Other numbers belong to the source's name.
SHARE = re.compile(r":(\d*\.\d+|\d+(?:\.\d+)?%)(?=,|$)")
SYNTAX = "SOURCE:SHARE,SOURCE:SHARE with shares such as 0.5 or 50%"
# The sum of the shares may differ from 1 by this much, so that thirds can be written 0.33.
ROUNDING = 0.011


class MixedSources(BaseSource):
    """Several sources, each with a share of the sequences, in an order that the seed decides; or one source with all of them.

    Parameters
    ----------
    entries : sequence of (BaseSource, float)
        Sources and their shares.

    Raises
    ------
    CalibrationError
        There is no source, a share is not positive, or the shares do not add up to 1.
    """

    roles: ClassVar[tuple[Role, ...]] = ("calibration",)

    def __init__(self, entries: Sequence[tuple[BaseSource, float]]) -> None:
        super().__init__()
        listed = ", ".join(f"{source} {share:g}" for source, share in entries) or "none"
        if not entries:
            raise CalibrationError(f"expected sources with shares ({SYNTAX}), got {listed}")
        total = sum(share for _, share in entries)
        if not all(share > 0.0 for _, share in entries) or not abs(total - 1.0) <= ROUNDING:
            raise CalibrationError(f"shares must be above 0 and add up to 1 ({SYNTAX}), got {total:g} in all: {listed}")
        self.sources = tuple(source for source, _ in entries)
        self.shares = tuple(share / total for _, share in entries)

    def __str__(self) -> str:
        return ",".join(f"{source}:{share:.4}" for source, share in zip(self.sources, self.shares, strict=True))

    def check(self, role: Role) -> None:
        """Check every source."""
        for source in self.sources:
            source.check(role)

    def sequences(self, request: Request) -> tuple[TokenSequences, TokenSequences | None]:
        """See :meth:`BaseSource.sequences`; each source gives its share of the sequences, rounded to a whole number.

        Raises
        ------
        CalibrationError
            A source gets no sequence, has too little text for its share, or makes sequences of other lengths.
        """
        if len(self.sources) == 1:
            return self.sources[0].sequences(request)
        counts = whole_numbers(request.samples, self.shares)
        held_out_counts = whole_numbers(request.held_out, self.shares)
        if 0 in counts:
            raise CalibrationError(
                f"{self.sources[counts.index(0)]} has a share of {self.shares[counts.index(0)]:.3g} and gets none of "
                f"{request.samples} sequences; ask for more (--samples), or give it a larger share"
            )
        fitted, held_out, provenances = [], [], []
        for source, share, count, held_out_count in zip(
            self.sources, self.shares, counts, held_out_counts, strict=True
        ):
            found, others = source.sequences(replace(request, samples=count, held_out=held_out_count))
            if found.ids.shape != (count, request.length):
                raise CalibrationError(
                    f"{source} gives {len(found)} sequences of {found.length} tokens, and its share is {count} of "
                    f"{request.length}; give it more text or a smaller share, or ask for fewer or shorter sequences"
                )
            fitted.append(found)
            held_out += [] if others is None else [others]
            provenances.append({**found.provenance(), "share": share})
        mixed = _mixed(fitted, request.seed, provenances)
        return mixed, _mixed(held_out, request.seed, []) if held_out else None


def _mixed(parts: Sequence[TokenSequences], seed: int, provenances: list[dict[str, Any]]) -> TokenSequences:
    """Return the sequences of all parts in one random order, with the provenance of each part for reports."""
    ids, mask = (torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "mask"))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    source = ", ".join(f"{len(part)} of {part.source}" for part in parts)
    mixed = TokenSequences.of(ids[order], mask[order], source)
    return replace(mixed, details={"sources": provenances}) if provenances else mixed


def whole_numbers(total: int, shares: Sequence[float]) -> list[int]:
    """Split a whole number by shares: each part is rounded down, and the parts that lost most by the rounding get one more.

    Examples
    --------
    >>> whole_numbers(16, [0.3, 0.3, 0.4])
    [5, 5, 6]
    """
    counts = [int(total * share) for share in shares]
    by_loss = sorted(range(len(shares)), key=lambda k: counts[k] - total * shares[k])
    for k in by_loss[: total - sum(counts)]:
        counts[k] += 1
    return counts


def split_shares(text: str) -> list[tuple[str, float]] | None:
    r"""Split a text such as ``a.txt:0.5,dataset:NAME,CONFIG:0.5`` into names and shares; None if it has no share.

    Each entry ends with its share. All other colons and commas belong to the names of sources.

    Raises
    ------
    CalibrationError
        A share has no source, or a source no share.

    Examples
    --------
    >>> split_shares(r"C:\texts\a.txt:25%,dataset:allenai/c4,en:0.75")
    [('C:\\texts\\a.txt', 0.25), ('dataset:allenai/c4,en', 0.75)]
    >>> split_shares("dataset:allenai/c4,en,train")
    """
    shares = list(SHARE.finditer(text))
    if not shares:
        return None
    starts = [0, *(share.end() + 1 for share in shares)]
    names = [text[start : share.start()].strip() for start, share in zip(starts, shares, strict=False)]
    rest = text[starts[-1] :]
    if rest or starts[-1] == len(text):
        raise CalibrationError(f"{rest!r} has no share; expected {SYNTAX}, got {text!r}")
    if not all(names):
        raise CalibrationError(f"a share has no source; expected {SYNTAX}, got {text!r}")
    return [(name, _number(share[1])) for name, share in zip(names, shares, strict=True)]


def _number(share: str) -> float:
    return float(share[:-1]) / 100.0 if share.endswith("%") else float(share)
