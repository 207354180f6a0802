"""The meanings of neurons: the contexts in which each is most active, and the tokens that it promotes and demotes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmrank.calibration.statistics.top_activations import TopActivations, collect_top_activations
from llmrank.errors import OptionError, UnsupportedModelError
from llmrank.evaluation.token_texts import Context, TokenTexts
from llmrank.execution import Execution
from llmrank.inspection.meaning.logit_lens import LensTokens, logit_lens
from llmrank.models import FFNs
from llmrank.text import TokenSequences

__all__ = ["ActiveContext", "Meanings", "NeuronMeaning", "PromotedToken", "find_meanings"]


@dataclass(frozen=True)
class ActiveContext:
    """A token of the calibration text at which a neuron is active.

    Attributes
    ----------
    activation : float
    context : Context
        The token, and the text around it.
    """

    activation: float
    context: Context


@dataclass(frozen=True)
class PromotedToken:
    """A token that a neuron promotes, or demotes if `logit` is negative.

    Attributes
    ----------
    token : str
    logit : float
        See :class:`llmrank.inspection.meaning.logit_lens.LensTokens`.
    """

    token: str
    logit: float


@dataclass(frozen=True)
class NeuronMeaning:
    """What one neuron reacts to, and what it writes.

    Attributes
    ----------
    contexts : tuple of ActiveContext
        The contexts of the largest absolute activations, the largest first.
    promoted, demoted : tuple of PromotedToken
        The tokens by the logit lens, the strongest first; empty if the neuron has no logit lens.
    """

    contexts: tuple[ActiveContext, ...]
    promoted: tuple[PromotedToken, ...]
    demoted: tuple[PromotedToken, ...]


@dataclass(frozen=True, eq=False)
class Meanings:
    """The meanings of the neurons of a model.

    Attributes
    ----------
    top : TopActivations
        Where in the text each neuron is most active.
    lens : mapping from str to LensTokens
        By prunable layer; see :func:`llmrank.inspection.meaning.logit_lens.logit_lens`.
    without_lens : str or None
        Why the model has no logit lens, as a sentence; None if it has one.
    texts : TokenTexts
        The texts of tokens.
    neurons : mapping from str to sequence of int, or None
        The neurons that have a row in `lens`, by prunable layer; None if all neurons have one.
    """

    top: TopActivations
    lens: Mapping[str, LensTokens]
    without_lens: str | None
    texts: TokenTexts
    neurons: Mapping[str, Sequence[int]] | None = None

    def of(self, layer: str, neuron: int) -> NeuronMeaning:
        """Return the meaning of a neuron of a prunable layer."""
        activations, positions = self.top.activations[layer][neuron], self.top.positions[layer][neuron]
        contexts = tuple(
            ActiveContext(float(value), self.texts.context(self.top.sequences, int(position)))
            for value, position in zip(activations, positions, strict=True)
            if position >= 0
        )
        lens = self.lens.get(layer)
        if lens is None:
            return NeuronMeaning(contexts, (), ())
        row = neuron if self.neurons is None else list(self.neurons[layer]).index(neuron)
        promoted, demoted = (
            tuple(PromotedToken(self.texts[int(k)], float(x)) for k, x in zip(tokens[row], logits[row], strict=True))
            for tokens, logits in ((lens.promoted, lens.promoted_logits), (lens.demoted, lens.demoted_logits))
        )
        return NeuronMeaning(contexts, promoted, demoted)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield (layer, neuron) of all neurons with a meaning."""
        for layer, activations in self.top.activations.items():
            chosen = range(len(activations)) if self.neurons is None else self.neurons[layer]
            for neuron in chosen:
                yield layer, neuron


def find_meanings(
    model: Any,
    tokenizer: Any,
    ffns: FFNs,
    sequences: TokenSequences,
    k: int = 5,
    execution: Execution = Execution(),
    *,
    neurons: Mapping[str, Sequence[int]] | None = None,
) -> Meanings:
    """Find the contexts in which neurons are most active, and the tokens that they promote and demote.

    Parameters
    ----------
    model : transformers model
    tokenizer : transformers tokenizer
    ffns : FFNs
    sequences : TokenSequences
        The text of the contexts.
    k : int
        Number of contexts of each neuron, and of tokens that it promotes and demotes.
    execution : Execution
        See :func:`llmrank.calibration.statistics.top_activations.collect_top_activations`.
    neurons : mapping from str to sequence of int, optional
        Chosen neurons, by prunable layer; all by default.

    Raises
    ------
    OptionError, CalibrationError
        See :func:`llmrank.calibration.statistics.top_activations.collect_top_activations`; or there is no tokenizer.

    Notes
    -----
    Cost: a forward pass of the sequences, and the cost of :func:`llmrank.inspection.meaning.logit_lens.logit_lens`.

    The logit lens does not list special tokens, or entries of the head that are no tokens of the tokenizer, because they are
    seldom trained.
    """
    texts = TokenTexts(tokenizer)
    for name, chosen in (neurons or {}).items():
        if name not in ffns.layers:
            raise OptionError(f"there is no prunable layer {name}; expected one of {', '.join(ffns.layers)}")
        size = ffns.layers[name].size
        if not all(0 <= neuron < size for neuron in chosen):
            raise OptionError(f"neurons of {name} must be integers from 0 to {size - 1}, got {list(chosen)}")
    top = collect_top_activations(model, ffns, sequences, k, execution, layers=neurons)
    tokens = torch.ones(len(texts), dtype=torch.bool)
    tokens[[token for token in texts.special if token < len(tokens)]] = False
    try:
        lens, reason = logit_lens(model, ffns, k, neurons, tokens, execution.progress), None
    except UnsupportedModelError as error:
        lens, reason = {}, str(error)
    return Meanings(top, lens, reason, texts, neurons)
