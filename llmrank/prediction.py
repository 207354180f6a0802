"""What a language model says of the tokens of a text, each given those before it; a few places at a time.

Logits are the widest thing a pass makes: of 1024 tokens and a vocabulary of 50,000 they take 200 MB, and as much again to
work with. What is wanted of them is small. So the model runs without its head, and the head on one band of places after
the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from llmrank.errors import UnsupportedModelError
from llmrank.passes import first_output, model_inputs, stand_in

__all__ = ["Prediction", "Predictor", "check_predicts", "has_perplexity"]

Prediction: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# Places of all sequences of a batch whose logits are made at once.
PLACES = 128
# Tokens of the trial, and places of its bands.
N_TOKENS, N_PLACES = 8, 2


def has_perplexity(model: nn.Module) -> bool:
    """Whether the model predicts a token from those before it: a decoder with a prediction head."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        return False
    name = type(model).__name__
    return "CausalLM" in name or "LMHead" in name or "ForConditionalGeneration" in name


def check_predicts(model: nn.Module, metric: str) -> None:
    """Raise unless the model predicts tokens.

    Parameters
    ----------
    model : nn.Module
    metric : str
        What it has none of otherwise, for the message.

    Raises
    ------
    UnsupportedModelError
        The model has no next-token prediction (an encoder, a plain module).
    """
    if not has_perplexity(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} predicts no next token, so it has no {metric}; expected a causal or "
            "encoder-decoder language model (others can be pruned, without an evaluation)"
        )


class Predictor:
    """Predictions of one model.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
        In evaluation mode, and not changed.

    Notes
    -----
    Memory: the logits of 128 places and what a pass without the head takes. Where the head cannot be run by itself (the model
    calls no body, once, whose hidden states are all it reads; a trial on a few tokens finds out) the logits of the batch,
    batch * length * vocabulary * 4 bytes.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._body: Any = None
        self._bodies = _bodies(model)

    def bands(self, ids: torch.Tensor, mask: torch.Tensor) -> Iterator[Prediction]:
        """Logits, targets and which of them count, place by place of all sequences of a batch.

        Parameters
        ----------
        ids : (batch, length) int64 tensor
        mask : (batch, length) bool tensor
            False at padding.

        Yields
        ------
        logits : (batch, steps, vocabulary) tensor
            All but the first token of a sequence are predicted; by an encoder-decoder the second half, given the first.
        targets : (batch, steps) int64 tensor
        valid : (batch, steps) bool tensor
            False where the target is padding. All three on the device of the logits.

        Raises
        ------
        CalibrationError
            See :func:`llmrank.passes.model_inputs`.
        """
        inputs, _, _ = model_inputs(self._model, ids, mask, next(self._model.parameters()).device)
        first = ids.shape[1] // 2 if "decoder_input_ids" in inputs else 1
        targets, valid = ids[:, first:], mask[:, first:]
        if self._bodies:
            self._choose_body(ids[:, :N_TOKENS], mask[:, :N_TOKENS])
        places = max(1, PLACES // max(1, len(ids)))
        logits_of = self._by_head(self._body, inputs) if self._body is not None else self._whole(inputs)
        for start in range(0, targets.shape[1], places):
            band = slice(start, min(start + places, targets.shape[1]))
            logits = logits_of(band)
            yield logits, targets[:, band].to(logits.device), valid[:, band].to(logits.device)

    def _choose_body(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Find the body behind which the head says the same of a few places as of all."""
        inputs, _, _ = model_inputs(self._model, ids, mask, next(self._model.parameters()).device)
        whole: torch.Tensor = self._model(**inputs).logits
        # Infinities and what is no number are found where they are read.
        largest = float(torch.nan_to_num(whole, 0.0, 0.0, 0.0).abs().max())
        rounding = 64 * torch.finfo(whole.dtype).eps * largest
        for body in self._bodies:
            try:
                logits_of = self._by_head(body, inputs)
                bands = [logits_of(slice(k, k + N_PLACES)) for k in range(0, whole.shape[1], N_PLACES)]
                found = torch.cat(bands, dim=1)
            except Exception:
                continue
            if found.shape == whole.shape and torch.allclose(found, whole, rtol=0.0, atol=rounding, equal_nan=True):
                self._body = body
                break
        self._bodies = []

    def _whole(self, inputs: dict[str, Any]) -> Callable[[slice], torch.Tensor]:
        logits: torch.Tensor = self._model(**inputs).logits
        return lambda band: logits[:, band]

    def _by_head(self, body: nn.Module, inputs: dict[str, Any]) -> Callable[[slice], torch.Tensor]:
        """Run the body; the logits of a band are then the model's, of a body that returns that band of what it returned."""
        forward = body.forward
        returned: list[Any] = []

        def run(band: slice) -> torch.Tensor:
            def narrowed(*args: Any, **kwargs: Any) -> Any:
                if not returned:
                    returned.append(forward(*args, **kwargs))
                return _narrowed(returned[0], band)

            with ExitStack() as hooks:
                stand_in(hooks, body, narrowed)
                logits: torch.Tensor = self._model(**inputs).logits
            return logits

        return run


def _bodies(model: Any) -> list[nn.Module]:
    """What may be all of a model but its head."""
    if not isinstance(model, PreTrainedModel):
        return []
    found = [model.base_model]
    if not model.config.is_encoder_decoder:
        # Some call the decoder in their body (OPT). An encoder beside it would run again for every band.
        found.append(model.get_decoder())  # type: ignore[no-untyped-call]
    return [body for body in found if isinstance(body, nn.Module) and body is not model]


def _narrowed(output: Any, band: slice) -> Any:
    """What a body returned, with the hidden states of a band of places."""
    states = first_output(output)[:, band]
    if isinstance(output, ModelOutput):
        (name, *_) = output.keys()
        return type(output)(**{**output, name: states})
    if isinstance(output, tuple):
        return (states, *output[1:])
    raise TypeError(f"a body returned {type(output).__name__}")
