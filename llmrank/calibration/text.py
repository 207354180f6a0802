"""Text in any form -> token sequences, for calibration and for evaluation alike."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmrank.errors import CalibrationError

__all__ = [
    "BUILT_IN",
    "TokenSequences",
    "builtin_texts",
    "check_text",
    "n_held_out",
    "overlap",
    "plain_ids",
    "read_text",
    "special_tokens",
    "tokenise",
    "tokenise_and_hold_out",
]

# What names the built-in text where a path or a text is expected.
BUILT_IN = "built-in"
REFERENCE = f"{BUILT_IN}: the Python language reference (pydoc_data.topics)"
DATASET_PREFIX = "dataset:"
# Every fourth topic of the built-in text is kept for evaluation.
EVALUATION_STRIDE = 4
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# One sequence is held out beside so many to fit to.
HELD_OUT_SHARE = 8
# Texts share a passage when this many consecutive tokens agree (fewer where sequences are shorter).
SHARED_WINDOW = 32


@dataclass(frozen=True, eq=False)
class TokenSequences:
    """Token sequences of one length, and where they came from.

    Attributes
    ----------
    ids : (n, length) int64 tensor
    mask : (n, length) bool tensor
        False at padding.
    source : str
        Where the text came from, in words.
    digest : str
        sha256 of the token ids and the mask.
    held_out : int
        The last so many sequences are held out from what is fitted to the others; no batch holds sequences of both kinds.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    source: str
    digest: str
    held_out: int = 0

    @classmethod
    def of(cls, ids: torch.Tensor, mask: torch.Tensor, source: str) -> TokenSequences:
        """Compute the digest."""
        # As bytes: numpy knows no bfloat16, which features may come in.
        content = b"".join(tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in (ids, mask))
        return cls(ids, mask, source, hashlib.sha256(content).hexdigest())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens in a sequence, padding included."""
        return int(self.ids.shape[1])

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding."""
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
        """The first so many sequences, and those after them; None where there are none."""
        parts = [
            TokenSequences.of(self.ids[rows], self.mask[rows], self.source)
            for rows in (slice(0, first), slice(first, None))
        ]
        return parts[0], parts[1] if len(parts[1]) else None

    def joined(self, other: TokenSequences | None) -> TokenSequences:
        """These sequences and others of the same length."""
        if other is None:
            return self
        return TokenSequences.of(torch.cat([self.ids, other.ids]), torch.cat([self.mask, other.mask]), self.source)

    @property
    def parts(self) -> tuple[TokenSequences, TokenSequences | None]:
        """The sequences to fit to, and those held out; None where there are none."""
        return self.split(len(self) - self.held_out)

    def provenance(self) -> dict[str, Any]:
        """What a report states about the data."""
        return {
            "source": self.source,
            "sequences": len(self),
            "sequence_length": self.length,
            "tokens": self.n_tokens,
            "sha256_of_tokens": self.digest,
        }


def builtin_texts() -> tuple[str, str]:
    """The built-in text, split into (calibration, evaluation) without a paragraph in common.

    Every CPython carries the language reference in ``pydoc_data.topics``. Topics repeat each other's
    paragraphs, so a paragraph counts only where it appears first.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    parts: tuple[list[str], list[str]] = ([], [])
    for position, name in enumerate(sorted(topics)):
        side = parts[1 if position % EVALUATION_STRIDE == EVALUATION_STRIDE - 1 else 0]
        for paragraph in topics[name].split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                side.append(paragraph.strip("\n"))
    return "\n\n".join(parts[0]), "\n\n".join(parts[1])


def read_text(source: str | os.PathLike[str] | Sequence[str] | None, role: str = "calibration") -> tuple[Any, str]:
    """Resolve what a user named as text.

    Parameters
    ----------
    source : None, "built-in", path, text, list of texts, or ``dataset:NAME[,CONFIG[,SPLIT]]``
        None, like "built-in", is the built-in text's part for `role`. Any other string is a path if such a file exists, a
        dataset with the prefix, else the text itself.
    role : {"calibration", "evaluation"}

    Returns
    -------
    text : str or list of str
    description : str

    Raises
    ------
    CalibrationError
        A path that is not there, an empty text, a dataset that cannot be loaded.
    """
    text: str | list[str]
    if source is None or (isinstance(source, str) and source == BUILT_IN):
        text = builtin_texts()[0 if role == "calibration" else 1]
        return text, f"{REFERENCE}, {role} part"
    if isinstance(source, os.PathLike) or (isinstance(source, str) and _looks_like_path(source)):
        path = Path(source)
        if not path.is_file():
            found = f"{path} is a directory" if path.is_dir() else f"no {role} text at {path}"
            raise CalibrationError(
                f"{found}; expected the path of a text file (UTF-8), or {DATASET_PREFIX}NAME for a dataset"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CalibrationError(f"cannot read {path} as UTF-8 text ({error}); convert it to UTF-8") from error
        except OSError as error:
            raise CalibrationError(f"cannot read {path} ({error}); pass a {role} text that you may read") from error
        description = f"file {path.name}"
    elif isinstance(source, str):
        if source.startswith(DATASET_PREFIX):
            return _read_dataset(source.removeprefix(DATASET_PREFIX)), source
        text, description = source, "text given by the caller"
    elif isinstance(source, Sequence) and all(isinstance(item, str) for item in source):
        text, description = [item for item in source if item.strip()], f"list of {len(source)} texts"
    else:
        raise CalibrationError(
            f"cannot read {role} data of type {type(source).__name__}; expected a path, a text, a list of texts, or a "
            "(n, length) tensor of token ids"
        )
    if not text or (isinstance(text, str) and not text.strip()):
        raise CalibrationError(f"the {role} text ({description}) is empty; give a text of some thousand words")
    return text, description


def check_text(source: str | os.PathLike[str], role: str = "calibration") -> None:
    """Raise unless a text is there, as far as that is known without fetching a dataset.

    Parameters
    ----------
    source : "built-in", path, text, or ``dataset:NAME[,CONFIG[,SPLIT]]``
        As for :func:`read_text`.
    role : {"calibration", "evaluation"}

    Raises
    ------
    CalibrationError
        As :func:`read_text`; of a dataset, no name or no package to load it with.

    Notes
    -----
    Cost: a text file is read once.
    """
    if not (isinstance(source, str) and source.startswith(DATASET_PREFIX)):
        read_text(source, role)
        return
    name = source.removeprefix(DATASET_PREFIX)
    if not name.split(",")[0].strip():
        raise CalibrationError(f"expected {DATASET_PREFIX}NAME[,CONFIG[,SPLIT]], got {source!r} as {role} text")
    if find_spec("datasets") is None:
        raise _no_datasets(name)


def _no_datasets(name: str) -> CalibrationError:
    return CalibrationError(
        f"dataset:{name} needs the datasets package; pip install 'llmrank[datasets]', or pass a text file"
    )


def _looks_like_path(source: str) -> bool:
    if source.startswith(DATASET_PREFIX) or "\n" in source or len(source) > 1024:
        return False
    try:
        exists = Path(source).is_file()
    except OSError:  # longer than a file name can be
        exists = False
    return exists or (" " not in source.strip() and (os.sep in source or source.endswith(".txt")))


def _read_dataset(name: str) -> list[str]:
    try:
        import datasets
    except ImportError as error:
        raise _no_datasets(name) from error
    parts = name.split(",")
    split = parts[2] if len(parts) > 2 else "train"
    try:
        rows = datasets.load_dataset(parts[0], parts[1] if len(parts) > 1 and parts[1] else None, split=split)
    except Exception as error:
        raise CalibrationError(
            f"cannot load dataset {parts[0]!r}, split {split!r}: {str(error).splitlines()[0] if str(error) else error}; "
            "expected dataset:NAME[,CONFIG[,SPLIT]], or pass a text file"
        ) from error
    column = next((c for c in ("text", "content", "document") if c in rows.column_names), None)
    if column is None:
        raise CalibrationError(
            f"dataset {parts[0]!r} has no column text, content or document, but {rows.column_names}; save the text you "
            "want to a file and pass that"
        )
    return ["".join(rows[column])]


def n_held_out(samples: int) -> int:
    """How many sequences are held out, to choose and to judge a repair by, beside so many to fit it to."""
    return max(1, samples // HELD_OUT_SHARE)


def tokenise(
    source: Any, tokenizer: Any, samples: int, sequence_length: int, role: str = "calibration"
) -> TokenSequences:
    """Token sequences of a text, see :func:`tokenise_and_hold_out`; it takes the same parameters and raises the same errors."""
    return tokenise_and_hold_out(source, tokenizer, samples, sequence_length, 0, role)[0]


def tokenise_and_hold_out(
    source: Any, tokenizer: Any, samples: int, sequence_length: int, held_out: int, role: str = "calibration"
) -> tuple[TokenSequences, TokenSequences | None]:
    """Token sequences of a text, and those that follow them there.

    Parameters
    ----------
    source : see :func:`read_text`, or (n, length) integer tensor
        A text (or a list of one) is cut into consecutive sequences without padding. A list of several
        texts gives one sequence a text, all of them, truncated and padded. A tensor is taken as it
        is: all rows at their full length.
    tokenizer : transformers tokenizer or None
        Not needed for a tensor.
    samples : int
        Sequences cut from a text at the most, from its beginning; lists of texts and tensors are
        used whole.
    sequence_length : int
        Tokens in a sequence of a text, special tokens included: where the tokenizer adds some to a
        text (BOS, CLS and SEP), every sequence carries them. Texts of a list are truncated to it;
        a tensor is not.
    held_out : int
        Further sequences cut from a text at the most.
    role : {"calibration", "evaluation"}

    Returns
    -------
    sequences : TokenSequences
    further : TokenSequences or None
        None where `source` holds no more, or is used whole.

    Raises
    ------
    CalibrationError
        Empty, or shorter than one sequence; no tokenizer for a text; bad numbers.
    """
    if samples < 1 or sequence_length < 2:
        raise CalibrationError(
            f"expected at least 1 sample and a sequence length of at least 2, got {samples} and {sequence_length}"
        )
    if isinstance(source, TokenSequences):
        return source, None
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return _given(torch.as_tensor(source), role), None
    text, description = read_text(source, role)
    if tokenizer is None:
        raise CalibrationError(
            f"the {role} text needs a tokenizer, and this model came without one; pass a (n, length) tensor of token ids"
        )
    prefix, suffix = special_tokens(tokenizer)
    room = sequence_length - len(prefix) - len(suffix)
    if room < 1:
        raise CalibrationError(f"sequence length {sequence_length} leaves no room beside the special tokens")
    if isinstance(text, list) and len(text) > 1:
        return _padded(text, tokenizer, room, prefix, suffix, description), None
    joined = text if isinstance(text, str) else text[0]
    # Long texts are read no further than needed: a token has at most some tens of characters.
    wanted = samples + held_out
    ids = plain_ids(tokenizer, joined[: (wanted + 1) * sequence_length * 32])
    count = min(wanted, len(ids) // room)
    if count == 0:
        raise CalibrationError(
            f"the {role} text ({description}) is too short: {len(ids)} tokens, and one sequence takes {room}; give "
            "more text or a smaller sequence length"
        )
    rows = torch.tensor(ids[: count * room], dtype=torch.long).reshape(count, room)
    ends = [torch.tensor(end, dtype=torch.long).expand(count, -1) for end in (prefix, suffix)]
    rows = torch.cat([ends[0], rows, ends[1]], dim=1)
    return TokenSequences.of(rows, torch.ones_like(rows, dtype=torch.bool), description).split(samples)


def _given(ids: torch.Tensor, role: str) -> TokenSequences:
    if ids.is_floating_point() and ids.ndim >= 2 and len(ids):
        # Features of a plain module: every row is one example, and all of them are used.
        features = ids.to("cpu").contiguous()
        return TokenSequences.of(features, torch.ones(len(features), dtype=torch.bool), "features given by the caller")
    if ids.ndim != 2 or ids.numel() == 0 or ids.shape[1] < 2 or ids.dtype not in INTEGERS:
        raise CalibrationError(
            f"{role} tokens: expected an integer tensor of shape (n, length) with length >= 2, got {ids.dtype} of shape "
            f"{tuple(ids.shape)}"
        )
    ids = ids.to("cpu", torch.long).contiguous()
    return TokenSequences.of(ids, torch.ones_like(ids, dtype=torch.bool), "token tensor given by the caller")


def _padded(
    texts: list[str], tokenizer: Any, room: int, prefix: list[int], suffix: list[int], description: str
) -> TokenSequences:
    rows = [prefix + plain_ids(tokenizer, text)[:room] + suffix for text in texts]
    length = max(len(row) for row in rows)
    if length < 2:
        raise CalibrationError(f"every text of the {description} has less than 2 tokens; give longer texts")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row)
        mask[k, : len(row)] = True
    return TokenSequences.of(ids, mask, description)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without what the tokenizer puts before and after it."""
    try:
        # verbose=False: a long text is cut into sequences here, so its length is no reason to warn.
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    except Exception as error:  # tokenizers of damaged files raise bare exceptions
        raise CalibrationError(
            f"the model's tokenizer fails on the text ({type(error).__name__}: {error}); its files are damaged or belong to "
            "another model: fetch them again"
        ) from error


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    plain = plain_ids(tokenizer, "a")
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []


def overlap(first: TokenSequences, second: TokenSequences) -> float:
    """Share of `second`'s passages that occur in `first`, 0..1.

    A passage is a window of 32 consecutive tokens, side by side in a sequence of `second` and anywhere
    in one of `first`. A sequence of `second` that is shorter is one passage, and where all sequences of
    `first` are shorter, passages are as long as its longest.
    """
    known, asked = _rows(first), _rows(second)
    if not known or not asked:
        return 0.0
    longest = min(SHARED_WINDOW, max(len(row) for row in known))
    wanted: dict[int, set[bytes]] = {}
    for row in asked:
        window = min(longest, len(row))
        wanted.setdefault(window, set()).update(_windows(row, window, window))
    found = sum(
        len(passages & {passage for row in known for passage in _windows(row, window, 1)})
        for window, passages in wanted.items()
    )
    return found / sum(len(passages) for passages in wanted.values())


def _rows(sequences: TokenSequences) -> list[npt.NDArray[np.int64]]:
    """The tokens of every sequence without padding; sequences of nothing else are left out."""
    rows = [row[mask] for row, mask in zip(sequences.ids.numpy(), sequences.mask.numpy(), strict=True)]
    return [row for row in rows if len(row)]


def _windows(row: npt.NDArray[np.int64], window: int, step: int) -> Iterator[bytes]:
    return (row[start : start + window].tobytes() for start in range(0, len(row) - window + 1, step))
