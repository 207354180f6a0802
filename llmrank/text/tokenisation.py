"""Make token sequences from texts, lists of texts, and tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from llmrank.errors import CalibrationError
from llmrank.text.documents import CHARACTERS_PER_TOKEN, Documents, joined_ids, plain_ids
from llmrank.text.sequences import Request, TokenSequences

__all__ = ["sequences_of_rows", "sequences_of_tensor", "sequences_of_text", "special_ids", "special_tokens"]

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def sequences_of_text(
    text: str | list[str] | Documents, description: str, request: Request
) -> tuple[TokenSequences, TokenSequences | None]:
    """Cut a text (or a list of one text, or documents) into consecutive sequences, or make one sequence of each of several texts.

    Documents are joined by :func:`llmrank.text.documents.joined_ids`, which reads only as many as are needed.

    Returns
    -------
    sequences : TokenSequences
    held_out : TokenSequences or None
        The next sequences of the text; None if the request holds out none, the text is too short, or there are several texts.

    Raises
    ------
    CalibrationError
        There is no tokenizer, or it fails; the text is shorter than one sequence (each text of a list shorter than 2 tokens); or
        the special tokens fill a whole sequence.
    """
    tokenizer, length = request.tokenizer, request.length
    if tokenizer is None:
        raise CalibrationError(
            f"the {request.role} text needs a tokenizer, and this model came without one; pass a (n, length) tensor of token ids"
        )
    prefix, suffix = special_tokens(tokenizer)
    room = length - len(prefix) - len(suffix)  # number of tokens of the text in a sequence
    if room < 1:
        raise CalibrationError(
            f"a sequence length of {length} leaves no room beside the special tokens; give a larger one"
        )
    if isinstance(text, list) and len(text) > 1:
        return _from_list(text, tokenizer, room, prefix, suffix, description), None
    wanted = request.samples + request.held_out
    if isinstance(text, Documents):
        ids = joined_ids(text, tokenizer, wanted * room + len(prefix))
        if ids[: len(prefix)] == prefix:  # a chat template has written the first special tokens already
            ids = ids[len(prefix) :]
    else:
        single = text if isinstance(text, str) else text[0]
        ids = plain_ids(tokenizer, single[: (wanted + 1) * length * CHARACTERS_PER_TOKEN])
    count = min(wanted, len(ids) // room)
    if count == 0:
        raise CalibrationError(
            f"the {request.role} text ({description}) is too short: {len(ids)} tokens, and one sequence takes {room}; give "
            "more text or a smaller sequence length"
        )
    body = torch.tensor(ids[: count * room], dtype=torch.long).reshape(count, room)
    before, after = (torch.tensor(special, dtype=torch.long).expand(count, -1) for special in (prefix, suffix))
    rows = torch.cat([before, body, after], dim=1)
    return TokenSequences.of(rows, torch.ones_like(rows, dtype=torch.bool), description).split(request.samples)


def sequences_of_tensor(ids: torch.Tensor, role: str) -> TokenSequences:
    """Take every row of a tensor as a sequence: token ids (n, length), or floats, which are the features of a plain module."""
    if ids.is_floating_point() and ids.ndim >= 2 and len(ids):
        features = ids.to("cpu").contiguous()
        return TokenSequences.of(features, torch.ones(len(features), dtype=torch.bool), "features given by the caller")
    if ids.ndim != 2 or ids.numel() == 0 or ids.shape[1] < 2 or ids.dtype not in INTEGERS:
        raise CalibrationError(
            f"{role} tokens: expected an integer tensor of shape (n, length) with length >= 2, or a float tensor of features "
            f"(n, ...), got {ids.dtype} of shape {tuple(ids.shape)}"
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
    return sequences_of_rows(rows, pad, description)


def sequences_of_rows(rows: list[torch.Tensor], pad: int, description: str) -> TokenSequences:
    """Make one sequence of each row of token ids, padded on the right with the token `pad` to the length of the longest."""
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return TokenSequences.of(ids, mask, description)


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer adds before a text, and those that it adds after it.

    Both lists are empty if the tokens of the text do not appear unchanged among all tokens.
    """
    plain = plain_ids(tokenizer, "a")
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []


def special_ids(tokenizer: Any) -> set[int]:
    """Return the special tokens of a tokenizer: those with a name, and those that were added as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*getattr(tokenizer, "all_special_ids", ()), *(id_ for id_, token in added.items() if token.special)}
