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
from transformers.utils.generic import ModelOutput

from llmrank.calibration.forward import first_output, model_inputs, substitute_forward
from llmrank.errors import UnsupportedModelError

__all__ = ["Prediction", "Predictor", "check_predicts", "has_perplexity"]

Prediction: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# Places of all sequences of a batch whose logits are made at once.
PLACES = 128
# Places of the trial: together, and in two halves.
N_TRIED = 4
# By how many rounding errors of the largest logit the trial's may differ; half precision rounds once, after the sum.
ROUNDINGS, COARSE_ROUNDINGS = 64, 4


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
    Cost: a pass, and on the first batch one more for every body that was tried in vain. Memory: the logits of two bands of
    128 places (of one place of every sequence at the least), and what a pass without the head takes. Where the head cannot be
    run by itself, which a trial on the first batch finds out (the model calls no body, or more than once, or reads more of it
    than the place it speaks of; T5), the logits of the whole batch: batch * length * vocabulary * 4 bytes.
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
            See :func:`llmrank.calibration.forward.model_inputs`.
        """
        return self._predictions(ids, mask, self._logits)()

    def hold(self, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[], Iterator[Prediction]]:
        """Run the model's body now, and keep what it returned: predictions can be made later, whatever becomes of the body.

        Parameters
        ----------
        ids, mask
            See :meth:`bands`.

        Returns
        -------
        callable
            Yields the bands anew at every call.
        """

        def logits_now(inputs: dict[str, Any]) -> Callable[[slice], torch.Tensor]:
            logits_of = self._logits(inputs)
            logits_of(slice(0, 1))
            return logits_of

        return self._predictions(ids, mask, logits_now)

    def _predictions(
        self, ids: torch.Tensor, mask: torch.Tensor, logits: Callable[[dict[str, Any]], Callable[[slice], torch.Tensor]]
    ) -> Callable[[], Iterator[Prediction]]:
        inputs, _, _ = model_inputs(self._model, ids, mask, text_only=True)
        first = ids.shape[1] // 2 if "decoder_input_ids" in inputs else 1
        targets, valid = ids[:, first:], mask[:, first:]
        logits_of = logits(inputs)
        places = max(1, PLACES // max(1, len(ids)))

        def predictions() -> Iterator[Prediction]:
            for start in range(0, targets.shape[1], places):
                band = slice(start, min(start + places, targets.shape[1]))
                logits = logits_of(band)
                yield logits, targets[:, band].to(logits.device), valid[:, band].to(logits.device)
                del logits

        return predictions

    def _logits(self, inputs: dict[str, Any]) -> Callable[[slice], torch.Tensor]:
        """What makes the logits of a band of places, of all sequences of a batch."""
        if self._body is not None:
            return self._by_head(self._body, inputs)
        while self._bodies:
            body = self._bodies.pop(0)
            try:
                logits_of = self._by_head(body, inputs)
                fits = self._place_by_place(logits_of, inputs)
            except Exception:  # whatever a model says that was not made for it
                fits = False
            if fits:
                self._body, self._bodies = body, []
                return logits_of
        logits: torch.Tensor = self._model(**inputs).logits
        return lambda band: logits[:, band]

    def _place_by_place(self, logits_of: Callable[[slice], torch.Tensor], inputs: dict[str, Any]) -> bool:
        """Whether the head says the same of a few places together as of each half of them."""
        half = N_TRIED // 2
        whole = logits_of(slice(0, N_TRIED))
        parts = torch.cat([logits_of(slice(0, half)), logits_of(slice(half, N_TRIED))], dim=1)
        length = inputs.get("decoder_input_ids", inputs["input_ids"]).shape[1]
        if whole.shape[1] != min(N_TRIED, length) or parts.shape != whole.shape:
            return False
        # Some models compute in half precision and widen the logits afterwards.
        eps = max(torch.finfo(dtype).eps for dtype in (whole.dtype, next(self._model.parameters()).dtype))
        roundings = ROUNDINGS if eps <= torch.finfo(torch.float32).eps else COARSE_ROUNDINGS
        # Infinities and what is no number are found where they are read.
        largest = float(torch.nan_to_num(whole, 0.0, 0.0, 0.0).abs().max())
        return torch.allclose(parts, whole, rtol=0.0, atol=roundings * eps * largest, equal_nan=True)

    def _by_head(self, body: nn.Module, inputs: dict[str, Any]) -> Callable[[slice], torch.Tensor]:
        """Logits of a band: the model's, of a body that returns that band of what it returned the first time."""
        forward = body.forward
        returned: list[Any] = []

        def run(band: slice) -> torch.Tensor:
            calls = 0

            def narrowed(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if not returned:
                    returned.append(forward(*args, **kwargs))
                return _narrowed(returned[0], band)

            with ExitStack() as hooks:
                substitute_forward(hooks, body, narrowed)
                logits: torch.Tensor = self._model(**inputs).logits
            if calls != 1:
                raise RuntimeError(f"{type(self._model).__name__} calls its {type(body).__name__} {calls} times")
            return logits

        return run


def _bodies(model: Any) -> list[nn.Module]:
    """What may be all of a model but its head."""
    # Not with this module: that would load all that models are made of whenever llmrank is imported.
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return []
    found = [model.base_model]
    if not model.config.is_encoder_decoder:
        # Some call that in their body by themselves (OPT). An encoder beside it would run again for every band.
        found.insert(0, model.get_decoder())  # type: ignore[no-untyped-call]
    return [body for body in dict.fromkeys(found) if isinstance(body, nn.Module) and body is not model]


def _narrowed(output: Any, band: slice) -> Any:
    """What a body returned, with the hidden states of a band of places."""
    states = first_output(output)[:, band]
    if isinstance(output, ModelOutput):
        (name, *_) = output.keys()
        return type(output)(**{**output, name: states})
    if isinstance(output, tuple):
        return (states, *output[1:])
    raise TypeError(f"a body returned {type(output).__name__}")
