"""What pruning changes token by token: the kinds of tokens that are predicted worse, and the worst examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from llmrank.errors import CalibrationError, OptionError
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.logits import Predictor, check_predicts
from llmrank.evaluation.token_texts import Context, TokenTexts
from llmrank.execution import Execution
from llmrank.models.forward import at_least_float32, evaluation_mode
from llmrank.text import TokenSequences

__all__ = ["GROUPINGS", "ChangedToken", "KindLoss", "LossChanges", "TokenLosses", "loss_changes", "token_losses"]

# Three ways to divide predicted tokens into kinds, and the kinds of each; :func:`loss_changes` explains them.
GROUPINGS: Mapping[str, tuple[str, ...]] = {
    "form": ("word beginning", "word continuation", "number", "punctuation", "white space", "special"),
    "frequency": ("frequent", "rare"),
    "sequence": ("repeated", "new"),
}
FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """How well a model predicts every token of a text.

    Attributes
    ----------
    positions : (n,) int64 array
        Indices of the predicted tokens in ``sequences.ids.flatten()``.
    losses : (n,) float64 array
        The negative log-likelihood of each predicted token, in nats.
    likeliest : (n,) int64 array
        The token to which the model gives the highest probability at each of these positions.
    probabilities : (n,) float64 array
        The probability that the model gives to this likeliest token.
    """

    positions: npt.NDArray[np.int64]
    losses: FloatArray
    likeliest: npt.NDArray[np.int64]
    probabilities: FloatArray


@dataclass(frozen=True)
class KindLoss:
    """The mean losses of one kind of predicted tokens, in nats.

    Attributes
    ----------
    before, after : float
        Mean loss of the dense model, and of the pruned one.
    change : Estimate
        Mean of the difference; its error is computed over sequences, and its count is the number of tokens.
    share_of_change : float
        The sum of the differences of these tokens, divided by that of all tokens; NaN if the latter is 0.
    """

    before: float
    after: float
    change: Estimate
    share_of_change: float


@dataclass(frozen=True)
class ChangedToken:
    """A token that the pruned model predicts worse.

    Attributes
    ----------
    context : Context
        The token, and the text around it.
    position : int
        Index of the token in ``sequences.ids.flatten()``.
    before, after : float
        The probability that the dense and the pruned model give to the token.
    predicted_before, predicted_after : str
        The token to which the dense and the pruned model give the highest probability.
    probability_before, probability_after : float
        The probability that each model gives to the token that it predicts.
    """

    context: Context
    position: int
    before: float
    after: float
    predicted_before: str
    predicted_after: str
    probability_before: float
    probability_after: float


@dataclass(frozen=True)
class LossChanges:
    """What pruning changes in the predictions of a text.

    Attributes
    ----------
    all : KindLoss
        Over all predicted tokens.
    kinds : dict from str to dict from str to KindLoss
        By grouping and kind, see :func:`loss_changes`; kinds without tokens have no entry.
    worst : tuple of ChangedToken
        The tokens whose loss grows the most.
    """

    all: KindLoss
    kinds: dict[str, dict[str, KindLoss]]
    worst: tuple[ChangedToken, ...]


@torch.no_grad()
def token_losses(model: Any, sequences: TokenSequences, execution: Execution = Execution()) -> TokenLosses:
    """Measure how well a model predicts every token of a text.

    Parameters
    ----------
    model, sequences, execution
        See :func:`llmrank.evaluation.perplexity.perplexity`, also for the exceptions and the cost.

    Raises
    ------
    UnsupportedModelError
        The model predicts no next token.
    """
    check_predicts(model, "loss of tokens")
    predictor, row = Predictor(model), 0
    parts: list[tuple[torch.Tensor, ...]] = []
    with evaluation_mode(model):
        batches = list(sequences.batches(execution.batch_size))
        for ids, mask in execution.steps(batches, "Predicting"):
            bands = [_read_band(*band) for band in predictor.bands(ids, mask)]
            losses, likeliest, probabilities, valid = (torch.cat(part, dim=1) for part in zip(*bands, strict=True))
            # The n last tokens of a sequence are predicted: all but the first or, by an encoder-decoder, the second half.
            length, n = sequences.length, losses.shape[1]
            positions = torch.arange(row * length, (row + len(ids)) * length).view(-1, length)[:, length - n :]
            parts.append(tuple(each[valid] for each in (positions, losses, likeliest, probabilities)))
            row += len(ids)
    found = [torch.cat(part).numpy() for part in zip(*parts, strict=True)]
    if not len(found[0]):
        raise CalibrationError("no token of the evaluation sequences is predicted from another; give longer texts")
    return TokenLosses(*found)


def _read_band(
    logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the losses, the likeliest tokens, their probabilities, and the mask of targets that are not padding.

    Each is a (batch, steps) tensor for one band, which is a range of positions; see :meth:`Predictor.bands`.
    """
    log_p = at_least_float32(logits).log_softmax(-1)
    highest, likeliest = log_p.max(-1)
    losses = -log_p.gather(-1, targets[..., None])[..., 0]
    return losses.double().cpu(), likeliest.cpu(), highest.exp().double().cpu(), valid.cpu()


def loss_changes(
    before: TokenLosses, after: TokenLosses, sequences: TokenSequences, tokenizer: Any, worst: int = 10
) -> LossChanges:
    """Compare the losses of two models on one text: by kinds of the predicted token, and in the worst examples.

    Every token has one kind in each of three groupings. ``form``: the beginning of a word, a continuation (directly behind a
    letter or digit), a number (it holds a digit), punctuation, white space, or a special token. ``frequency``: the commonest
    tokens of the text, which together make up half of it, are frequent, and the others rare. ``sequence``: a token that occurs
    earlier in its own sequence is repeated, any other is new.

    Parameters
    ----------
    before, after : TokenLosses
        The losses of the dense and of the pruned model, on `sequences`.
    sequences : TokenSequences
    tokenizer : transformers tokenizer
    worst : int
        Number of examples.

    Raises
    ------
    OptionError
        There is no tokenizer, or the losses are of other texts.
    """
    if not np.array_equal(before.positions, after.positions) or int(before.positions.max()) >= sequences.ids.numel():
        raise OptionError("the losses are of different texts; measure both models on the same sequences")
    texts = TokenTexts(tokenizer)
    groups = _kinds(sequences, before.positions, texts)
    rows = before.positions // sequences.length
    total = float((after.losses - before.losses).sum())

    def kind(chosen: npt.NDArray[np.bool_]) -> KindLoss:
        change = (after.losses - before.losses)[chosen]
        estimate = Estimate.of(
            np.bincount(rows[chosen], change, len(sequences)).tolist(),
            np.bincount(rows[chosen], minlength=len(sequences)).tolist(),
        )
        share = float(change.sum()) / total if total else float("nan")
        return KindLoss(float(before.losses[chosen].mean()), float(after.losses[chosen].mean()), estimate, share)

    kinds = {
        grouping: {name: kind(labels == k) for k, name in enumerate(GROUPINGS[grouping]) if (labels == k).any()}
        for grouping, labels in groups.items()
    }
    order = np.argsort(before.losses - after.losses, kind="stable")[:worst]
    return LossChanges(
        kind(np.ones(len(rows), dtype=bool)),
        kinds,
        tuple(_changed(before, after, int(k), sequences, texts) for k in order if after.losses[k] > before.losses[k]),
    )


def _changed(
    before: TokenLosses, after: TokenLosses, k: int, sequences: TokenSequences, texts: TokenTexts
) -> ChangedToken:
    position = int(before.positions[k])
    return ChangedToken(
        context=texts.context(sequences, position),
        position=position,
        before=float(np.exp(-before.losses[k])),
        after=float(np.exp(-after.losses[k])),
        predicted_before=texts[int(before.likeliest[k])],
        predicted_after=texts[int(after.likeliest[k])],
        probability_before=float(before.probabilities[k]),
        probability_after=float(after.probabilities[k]),
    )


def _kinds(
    sequences: TokenSequences, positions: npt.NDArray[np.int64], texts: TokenTexts
) -> dict[str, npt.NDArray[np.int64]]:
    """Return for each grouping the index of every predicted token's kind."""
    ids = sequences.ids.flatten().numpy()
    targets = ids[positions]
    forms = np.array([_form(int(token), int(ids[at - 1]), texts) for token, at in zip(targets, positions, strict=True)])
    tokens, index, counts = np.unique(targets, return_inverse=True, return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    rare = np.ones(len(tokens), dtype=np.int64)
    # The commonest tokens are frequent: just enough of them to make up half of the text.
    rare[by_count[: int(np.searchsorted(np.cumsum(counts[by_count]), len(targets) / 2)) + 1]] = 0
    _, first = np.unique(sequences.ids.numpy() + _sequence_offsets(sequences), return_index=True)
    new = np.zeros(len(ids), dtype=np.int64)
    new[first] = 1
    return {"form": forms, "frequency": rare[index], "sequence": new[positions]}


def _sequence_offsets(sequences: TokenSequences) -> npt.NDArray[np.int64]:
    """Return a number for each sequence. Added to its tokens, it makes them different from those of all other sequences."""
    return np.arange(len(sequences))[:, None] * (int(sequences.ids.max()) + 1)


def _form(token: int, previous: int, texts: TokenTexts) -> int:
    text, before = texts[token], texts[previous]
    if token in texts.special:
        name = "special"
    elif not text.strip():
        name = "white space"
    elif any(map(str.isdigit, text)):
        name = "number"
    elif not any(map(str.isalpha, text)):
        name = "punctuation"
    elif not text[0].isspace() and before[-1:].isalnum():
        name = "word continuation"
    else:
        name = "word beginning"
    return GROUPINGS["form"].index(name)
