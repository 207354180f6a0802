"""Predictions of a language model for every token of a text, given the tokens before it, a few positions at a time.

Logits are the largest tensor of a forward pass. So the body (the model without its head) runs first, and then the head runs on
one band (some consecutive positions) after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from llmrank.errors import OptionError, UnsupportedModelError
from llmrank.models.forward import first_output, model_inputs, predicts_next_token, substitute_forward

__all__ = ["Prediction", "Predictor", "check_predicts", "check_vocabularies"]

# The logits and targets of a band, and the mask of the valid targets, see Predictor.bands.
Prediction: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# Number of positions whose logits are computed at once, over all sequences of a batch (but at least one of each). Four times as
# many took as long: a CPU's allocator hands larger pieces back to the system each time.
POSITIONS_AT_ONCE = 128
# Whether the head can run on a band alone is tried on this many positions: their logits are computed together and in two halves.
N_TRIAL_POSITIONS = 4
# Allowed difference between the two results, in rounding errors of the largest logit: in float32, and in half precision, where a
# sum of products is rounded only once.
ROUNDINGS, COARSE_ROUNDINGS = 64, 4


def check_predicts(model: nn.Module, metric: str) -> None:
    """Check that a model predicts the next token; the message names the metric that needs predictions.

    Raises
    ------
    UnsupportedModelError
        The model predicts no next token.
    """
    if not predicts_next_token(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} predicts no next token, so it has no {metric}; expected a causal or "
            "encoder-decoder language model (others can be pruned, without an evaluation)"
        )


def check_vocabularies(dense: int | None, other: int | None) -> None:
    """Raise an OptionError if the numbers of tokens that two models predict are known and differ."""
    if dense is not None and other is not None and dense != other:
        raise OptionError(
            f"the dense model predicts {dense} tokens and the other model {other}, and distributions can only be compared over "
            "one vocabulary; pass the dense model that the other model was pruned from"
        )


class Predictor:
    """Computes the predictions of one model.

    Parameters
    ----------
    model : transformers causal or encoder-decoder language model
        It must be in evaluation mode.

    Notes
    -----
    Cost: a forward pass for each batch. Memory: a forward pass without the head, and the logits of two bands. If a trial on the
    first batch shows that the head cannot run on a band alone, the logits of the whole batch are in memory: batch * length *
    vocabulary numbers.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._body: Any = None
        self._bodies = _bodies(model)

    @property
    def is_banded(self) -> bool:
        """Whether the head runs on a band alone; known after the first batch."""
        return self._body is not None

    def bands(self, ids: torch.Tensor, mask: torch.Tensor) -> Iterator[Prediction]:
        """Yield the logits and targets of a batch, band by band of positions.

        Parameters
        ----------
        ids : (batch, length) int64 tensor
        mask : (batch, length) bool tensor
            False at padding.

        Yields
        ------
        logits : (batch, steps, vocabulary) tensor
            Predictions for the `steps` tokens of a band. All bands together predict every token of a sequence but the first; an
            encoder-decoder predicts the second half.
        targets : (batch, steps) int64 tensor
        valid : (batch, steps) bool tensor
            False if the target is padding.

        Raises
        ------
        CalibrationError, OptionError
            See :func:`llmrank.models.forward.model_inputs`.
        """
        return self._predictions(ids, mask, self._logits)()

    def hold(self, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[], Iterator[Prediction]]:
        """Run the model's body now and keep its output, so that the body may change before the logits are computed.

        If the head cannot run on a band alone, all logits are computed now and kept. Each call of the returned function yields
        the bands of :meth:`bands`.
        """

        def run_body_now(inputs: dict[str, Any]) -> Callable[[slice], torch.Tensor]:
            logits_of = self._logits(inputs)
            logits_of(slice(0, 1))  # the body runs at the first call
            return logits_of

        return self._predictions(ids, mask, run_body_now)

    def differentiable(
        self, ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Iterator[Prediction]]:
        """Run the model's body with gradients, and let the logits of the bands depend on a copy of its output.

        So the graph of one band's logits can be freed before the next band is computed: the gradients of all bands are added up
        at the copy, and then pass through the body once.

        Returns
        -------
        states : tensor
            The output of the body, with its graph; all logits if the head cannot run on a band alone.
        copy : tensor
            The same values without that graph; it requires a gradient.
        bands : iterator of (logits, targets, valid)
            See :meth:`bands`. The model must be the same as at an earlier call of :meth:`bands`, which tries the head.
        """
        held: list[torch.Tensor] = []

        def cut(states: torch.Tensor) -> torch.Tensor:
            copy = states.detach().requires_grad_()
            held.extend((states, copy))
            return copy

        def run_body_now(inputs: dict[str, Any]) -> Callable[[slice], torch.Tensor]:
            if self._body is None:
                logits = cut(self._model(**inputs).logits)
                return lambda band: logits[:, band]
            logits_of = self._band_logits(self._body, inputs, cut)
            logits_of(slice(0, 1))  # the body runs at the first call
            return logits_of

        predictions = self._predictions(ids, mask, run_body_now)
        return held[0], held[1], predictions()

    def _predictions(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        logits_function: Callable[[dict[str, Any]], Callable[[slice], torch.Tensor]],
    ) -> Callable[[], Iterator[Prediction]]:
        """Return a function that yields the bands; `logits_function` is :meth:`_logits`, or a function like it."""
        inputs, _, _ = model_inputs(self._model, ids, mask, text_only=True)
        first = ids.shape[1] // 2 if "decoder_input_ids" in inputs else 1
        targets, valid = ids[:, first:], mask[:, first:]
        logits_of = logits_function(inputs)
        positions = max(1, POSITIONS_AT_ONCE // max(1, len(ids)))

        def prediction(band: slice) -> Prediction:
            logits = logits_of(band)
            return logits, targets[:, band].to(logits.device), valid[:, band].to(logits.device)

        def predictions() -> Iterator[Prediction]:
            for start in range(0, targets.shape[1], positions):
                # No variable holds the logits while the generator waits.
                yield prediction(slice(start, min(start + positions, targets.shape[1])))

        return predictions

    def _logits(self, inputs: dict[str, Any]) -> Callable[[slice], torch.Tensor]:
        """Return a function that computes the logits of a band of positions, for all sequences of a batch."""
        if self._body is not None:
            return self._band_logits(self._body, inputs)
        while self._bodies:
            body = self._bodies.pop(0)
            try:
                logits_of = self._band_logits(body, inputs)
                fits = self._is_consistent(logits_of, inputs)
            except Exception:  # a model may raise any error when its body is replaced
                fits = False
            if fits:
                self._body, self._bodies = body, []
                return logits_of
        logits: torch.Tensor = self._model(**inputs).logits
        return lambda band: logits[:, band]

    def _is_consistent(self, logits_of: Callable[[slice], torch.Tensor], inputs: dict[str, Any]) -> bool:
        """Whether the logits of a few positions are the same if they are computed together and in two halves."""
        half = N_TRIAL_POSITIONS // 2
        together = logits_of(slice(0, N_TRIAL_POSITIONS))
        halves = torch.cat([logits_of(slice(0, half)), logits_of(slice(half, N_TRIAL_POSITIONS))], dim=1)
        length = inputs.get("decoder_input_ids", inputs["input_ids"]).shape[1]
        if together.shape[1] != min(N_TRIAL_POSITIONS, length) or halves.shape != together.shape:
            return False
        # Some models compute in half precision and convert the logits to float32 afterwards.
        eps = max(torch.finfo(dtype).eps for dtype in (together.dtype, next(self._model.parameters()).dtype))
        roundings = ROUNDINGS if eps <= torch.finfo(torch.float32).eps else COARSE_ROUNDINGS
        # NaN and Inf are reported by the code that reads the logits.
        largest = float(torch.nan_to_num(together, 0.0, 0.0, 0.0).abs().max())
        return torch.allclose(halves, together, rtol=0.0, atol=roundings * eps * largest, equal_nan=True)

    def _band_logits(
        self,
        body: nn.Module,
        inputs: dict[str, Any],
        changed: Callable[[torch.Tensor], torch.Tensor] = lambda states: states,
    ) -> Callable[[slice], torch.Tensor]:
        """Return a function that computes the logits of a band; the body runs at its first call only, and its output is kept.

        The hidden states in the output are `changed` before the head reads them.
        """
        forward = body.forward
        returned: list[Any] = []

        def run(band: slice) -> torch.Tensor:
            calls = 0

            def band_of_body(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if not returned:
                    output = forward(*args, **kwargs)
                    returned.append(_with_states(output, changed(first_output(output))))
                return _with_states(returned[0], first_output(returned[0])[:, band])

            with ExitStack() as hooks:
                substitute_forward(hooks, body, band_of_body)
                logits: torch.Tensor = self._model(**inputs).logits
            if calls != 1:
                raise RuntimeError(f"{type(self._model).__name__} calls its {type(body).__name__} {calls} times")
            return logits

        return run


def _bodies(model: Any) -> list[nn.Module]:
    """Return the modules that may be the model without its head, in the order in which they are tried."""
    # Imported here, because this import is slow.
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return []
    bodies = [model.base_model]
    if not model.config.is_encoder_decoder:
        # OPT holds its decoder inside its body. With the decoder of an encoder-decoder, the encoder would run for every band.
        bodies.insert(0, model.get_decoder())  # type: ignore[no-untyped-call]
    return [body for body in dict.fromkeys(bodies) if isinstance(body, nn.Module) and body is not model]


def _with_states(output: Any, states: torch.Tensor) -> Any:
    """Return the output of a body with other hidden states."""
    if isinstance(output, ModelOutput):
        (name, *_) = output.keys()
        return type(output)(**{**output, name: states})
    if isinstance(output, tuple):
        return (states, *output[1:])
    raise TypeError(f"a body returned {type(output).__name__}")
