"""Token sequences for calibration and evaluation, made from text in any form."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence

from llmrank.errors import CalibrationError

__all__ = [
    "BUILT_IN",
    "TokenSequences",
    "builtin_texts",
    "check_text",
    "n_held_out",
    "plain_ids",
    "read_text",
    "shared_passages",
    "special_tokens",
    "tokenise",
    "tokenise_and_hold_out",
]

# Name of the built-in text in places that expect a path or a text.
BUILT_IN = "built-in"
REFERENCE = f"{BUILT_IN}: the Python language reference (pydoc_data.topics)"
DATASET_PREFIX = "dataset:"
# Every fourth topic of the built-in text is reserved for evaluation.
EVALUATION_STRIDE = 4
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# One sequence is held out for this many sequences to fit to.
HELD_OUT_SHARE = 8
# Number of consecutive tokens that make a passage (fewer in shorter sequences).
PASSAGE_LENGTH = 32


@dataclass(frozen=True, eq=False)
class TokenSequences:
    """Token sequences of one length, and the source of their text.

    Attributes
    ----------
    ids : (n, length) int64 tensor
    mask : (n, length) bool tensor
        False at padding.
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
        """Make sequences from token ids and a mask, and compute their digest."""
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


def builtin_texts() -> tuple[str, str]:
    """Return the built-in text in two parts (calibration, evaluation) that share no paragraph.

    It is the language reference, which every CPython has in ``pydoc_data.topics``. Topics repeat paragraphs of other topics, so a
    paragraph is used only where it appears first.
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
    """Read the text that a user names.

    Parameters
    ----------
    source : None, "built-in", path, text, list of texts, or ``dataset:NAME[,CONFIG[,SPLIT]]``
        None and "built-in" name the part of the built-in text for `role`. Any other string is a path if that file exists, a
        dataset if it has the prefix, and else the text itself.
    role : {"calibration", "evaluation"}

    Returns
    -------
    text : str or list of str
    description : str

    Raises
    ------
    CalibrationError
        A path does not exist, a text is empty, or a dataset cannot be loaded.
    """
    text: str | list[str]
    if source is None or (isinstance(source, str) and source == BUILT_IN):
        text = builtin_texts()[0 if role == "calibration" else 1]
        return text, f"{REFERENCE}, {role} part"
    if isinstance(source, os.PathLike) or (isinstance(source, str) and _looks_like_path(source)):
        path = Path(source)
        if not path.is_file():
            problem = f"{path} is a directory" if path.is_dir() else f"no {role} text at {path}"
            raise CalibrationError(
                f"{problem}; expected the path of a text file (UTF-8), or {DATASET_PREFIX}NAME for a dataset"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(
                f"cannot read {path} as UTF-8 text ({error}); pass a {role} text in UTF-8 that you can read"
            ) from error
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
    """Check that a text can be read, without fetching a dataset; a text file is read once.

    Parameters
    ----------
    source : "built-in", path, text, or ``dataset:NAME[,CONFIG[,SPLIT]]``
        See :func:`read_text`.
    role : {"calibration", "evaluation"}

    Raises
    ------
    CalibrationError
        As for :func:`read_text`; for a dataset, its name is missing, or the package to load it with.
    """
    if not (isinstance(source, str) and source.startswith(DATASET_PREFIX)):
        read_text(source, role)
        return
    name = source.removeprefix(DATASET_PREFIX)
    if not name.split(",")[0].strip():
        raise CalibrationError(f"expected {DATASET_PREFIX}NAME[,CONFIG[,SPLIT]], got {source!r} as {role} text")
    if find_spec("datasets") is None:
        raise _datasets_missing(name)


def _datasets_missing(name: str) -> CalibrationError:
    return CalibrationError(
        f"dataset:{name} needs the datasets package; pip install 'llmrank[datasets]', or pass a text file"
    )


def _looks_like_path(source: str) -> bool:
    if source.startswith(DATASET_PREFIX) or "\n" in source or len(source) > 1024:
        return False
    with suppress(OSError):  # the string may be too long for a file name
        if Path(source).is_file():
            return True
    return " " not in source.strip() and (os.sep in source or source.endswith(".txt"))


def _read_dataset(name: str) -> list[str]:
    try:
        import datasets
    except ImportError as error:
        raise _datasets_missing(name) from error
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
    """Return the number of sequences to hold out, to choose and to judge a repair by, for `samples` sequences to fit it to."""
    return max(1, samples // HELD_OUT_SHARE)


def tokenise(
    source: Any, tokenizer: Any, samples: int, sequence_length: int, role: str = "calibration"
) -> TokenSequences:
    """Make token sequences as :func:`tokenise_and_hold_out` does, and hold out none."""
    return tokenise_and_hold_out(source, tokenizer, samples, sequence_length, 0, role)[0]


def tokenise_and_hold_out(
    source: Any, tokenizer: Any, samples: int, sequence_length: int, held_out: int, role: str = "calibration"
) -> tuple[TokenSequences, TokenSequences | None]:
    """Cut a text into token sequences, and hold out some of those that follow them.

    Parameters
    ----------
    source : see :func:`read_text`, or (n, length) integer tensor
        A text (or a list of one text) is cut into consecutive sequences without padding. A list of several texts gives one
        sequence for each text, truncated and padded. All rows of a tensor are used, at their full length.
    tokenizer : transformers tokenizer or None
        Not needed for a tensor.
    samples : int
        Largest number of sequences, taken from the beginning of a text. Lists of texts and tensors are used completely.
    sequence_length : int
        Number of tokens in a sequence. Special tokens that the tokenizer adds to a text (BOS, CLS and SEP) are included, and
        every sequence has them. Texts of a list are truncated to this length; a tensor is not.
    held_out : int
        Largest number of sequences that are held out.
    role : {"calibration", "evaluation"}

    Returns
    -------
    sequences : TokenSequences
    held_out : TokenSequences or None
        None if the text is too short, or `source` is used completely.

    Raises
    ------
    CalibrationError
        The text is empty or shorter than one sequence, there is no tokenizer for it, or a number is out of range.
    """
    if samples < 1 or sequence_length < 2:
        raise CalibrationError(
            f"expected at least 1 sample and a sequence length of at least 2, got {samples} and {sequence_length}"
        )
    if isinstance(source, TokenSequences):
        return source, None
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return _from_tensor(torch.as_tensor(source), role), None
    text, description = read_text(source, role)
    if tokenizer is None:
        raise CalibrationError(
            f"the {role} text needs a tokenizer, and this model came without one; pass a (n, length) tensor of token ids"
        )
    prefix, suffix = special_tokens(tokenizer)
    room = sequence_length - len(prefix) - len(suffix)
    if room < 1:
        raise CalibrationError(
            f"a sequence length of {sequence_length} leaves no room beside the special tokens; give a larger one"
        )
    if isinstance(text, list) and len(text) > 1:
        return _from_list(text, tokenizer, room, prefix, suffix, description), None
    single = text if isinstance(text, str) else text[0]
    # The rest of a long text is not tokenised: a token has at most some tens of characters.
    wanted = samples + held_out
    ids = plain_ids(tokenizer, single[: (wanted + 1) * sequence_length * 32])
    count = min(wanted, len(ids) // room)
    if count == 0:
        raise CalibrationError(
            f"the {role} text ({description}) is too short: {len(ids)} tokens, and one sequence takes {room}; give "
            "more text or a smaller sequence length"
        )
    body = torch.tensor(ids[: count * room], dtype=torch.long).reshape(count, room)
    before, after = (torch.tensor(special, dtype=torch.long).expand(count, -1) for special in (prefix, suffix))
    rows = torch.cat([before, body, after], dim=1)
    return TokenSequences.of(rows, torch.ones_like(rows, dtype=torch.bool), description).split(samples)


def _from_tensor(ids: torch.Tensor, role: str) -> TokenSequences:
    if ids.is_floating_point() and ids.ndim >= 2 and len(ids):
        # Features for a plain module: every row is one example, and all of them are used.
        features = ids.to("cpu").contiguous()
        return TokenSequences.of(features, torch.ones(len(features), dtype=torch.bool), "features given by the caller")
    if ids.ndim != 2 or ids.numel() == 0 or ids.shape[1] < 2 or ids.dtype not in INTEGERS:
        raise CalibrationError(
            f"{role} tokens: expected an integer tensor of shape (n, length) with length >= 2, got {ids.dtype} of shape "
            f"{tuple(ids.shape)}"
        )
    ids = ids.to("cpu", torch.long).contiguous()
    return TokenSequences.of(ids, torch.ones_like(ids, dtype=torch.bool), "token tensor given by the caller")


def _from_list(
    texts: list[str], tokenizer: Any, room: int, prefix: list[int], suffix: list[int], description: str
) -> TokenSequences:
    rows = [torch.tensor(prefix + plain_ids(tokenizer, text)[:room] + suffix, dtype=torch.long) for text in texts]
    if max(map(len, rows)) < 2:
        raise CalibrationError(f"every text of the {description} has fewer than 2 tokens; give longer texts")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return TokenSequences.of(ids, mask, description)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text, without the special tokens that the tokenizer adds."""
    try:
        # verbose=False: the text is cut into sequences later, so no warning about its length is needed.
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    except Exception as error:  # tokenizers of damaged files raise bare exceptions
        raise CalibrationError(
            f"the model's tokenizer fails on the text ({type(error).__name__}: {error}); its files are damaged or belong to "
            "another model: fetch them again"
        ) from error


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer adds before and after a text."""
    plain = plain_ids(tokenizer, "a")
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []


def shared_passages(first: TokenSequences, second: TokenSequences) -> float:
    """Compute the share of `second`'s passages that occur in `first`, 0..1.

    The passages of a sequence of `second` are consecutive windows of 32 tokens; they may occur anywhere in a sequence of
    `first`. A shorter sequence is one passage. If all of `first` are shorter, passages are as long as its longest sequence.
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
