"""Distance of a pruned model from the dense one, on sequences that both read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from llmrank.errors import not_finite
from llmrank.evaluation.fidelity import divergences
from llmrank.evaluation.logits import Prediction, Predictor
from llmrank.execution import Execution
from llmrank.execution.known_states import KnownStates
from llmrank.execution.onloading import onloaded_by_block
from llmrank.execution.recording import blocks_of, first_tokens
from llmrank.models import FFNs
from llmrank.models.forward import (
    at_least_float32,
    evaluation_mode,
    first_output,
    model_inputs,
    predicts_next_token,
    run_body,
)
from llmrank.prune.masks import Masks
from llmrank.repair import RepairedMap
from llmrank.surgery.equivalence import as_masked
from llmrank.text import TokenSequences

__all__ = ["DenseReference", "Distances", "Measure", "Outputs"]

Measure: TypeAlias = Literal["divergence", "squared error"]
# For every sequence the sum of the distances of its tokens, and the number of these tokens.
Distances: TypeAlias = tuple[list[float], list[int]]
# Yields the predictions for a batch, band by band.
Predictions: TypeAlias = Callable[[], Iterator[Prediction]]
# What a model returns for each batch: its predictions, or its first output.
Outputs: TypeAlias = list[Any]


class DenseReference:
    """The outputs of the dense model on some sequences, which those of pruned models are compared with.

    The constructor takes the dense model, and runs it.

    Parameters
    ----------
    model : nn.Module
    ffns : FFNs
    sequences : TokenSequences
    execution : Execution
        Of several processes, some may have no sequences.
    states : sequence of tensors
        See :meth:`outputs`.

    Attributes
    ----------
    measure : {"divergence", "squared error"}
        The distance for one token: KL(dense || pruned) of the next-token predictions, in nats; or, for models that predict no
        tokens, ``||y' - y||^2``, where y is the first output of the dense model and y' that of the pruned one.

    Notes
    -----
    Cost: one forward pass of the sequences, and one more for every pruned model; where states are given, passes of the head alone
    instead, after a trial with a few tokens. Memory: the hidden states (or first outputs) of all tokens, for the dense model and
    each pruned one, and that of :class:`llmrank.evaluation.logits.Predictor`.
    """

    def __init__(
        self,
        model: nn.Module,
        ffns: FFNs,
        sequences: TokenSequences,
        execution: Execution,
        states: Sequence[torch.Tensor] = (),
    ) -> None:
        self._model, self._ffns, self._processes = model, ffns, execution.processes
        self._onloaded = partial(onloaded_by_block, model, blocks_of(model, ffns), execution.device)
        self.measure: Measure = "divergence" if predicts_next_token(model) else "squared error"
        self._predictor = Predictor(model)
        self._batches = execution.batches(sequences)
        self._dense = self._run(states)

    def outputs(
        self, masks: Masks, repaired: Mapping[str, RepairedMap] | None = None, states: Sequence[torch.Tensor] = ()
    ) -> Outputs:
        """Run a pruned model, and return its outputs for :meth:`distances`.

        Parameters
        ----------
        masks : Masks
            Keep masks of the pruned model.
        repaired : mapping from str to RepairedMap, optional
            Where a weight is None, the model holds the repaired weight already.
        states : sequence of (batch, length, hidden) tensors
            The hidden states of this pruned model behind its last block, for each batch of the sequences, if they are known:
            then the blocks do not run, unless the model's output depends on them in another way too.
        """
        with as_masked(self._ffns, masks, repaired):
            return self._run(states)

    def distances(self, models: Iterable[Outputs], *, allow_nan: bool = False) -> list[Distances]:
        """Return the distances of pruned models, on the sequences of all processes; the dense model's head runs once for all.

        Raises
        ------
        CalibrationError
            The predictions of the dense model hold NaN; or those of a pruned model do, unless `allow_nan` is set. Its distances
            are NaN then.
        """
        models = list(models)
        found: list[Distances] = [([], []) for _ in models]
        with torch.no_grad(), evaluation_mode(self._model, self._ffns), self._onloaded():
            for dense, (_, mask), *outputs in zip(self._dense, self._batches, *models, strict=True):
                found = [_joined(each) for each in zip(found, self._measured(dense, outputs, mask), strict=True)]
        return self._everywhere(found, allow_nan=allow_nan)

    def check(self, outputs: Outputs) -> None:
        """Raise the errors of :meth:`distances`, as far as the first predictions for the first batch show them."""
        found: list[Distances] = [([], [])]
        if self._batches:
            dense, (_, mask) = self._dense[0], self._batches[0]
            first = (lambda: islice(dense(), 1)) if self.measure == "divergence" else dense
            with torch.no_grad(), evaluation_mode(self._model, self._ffns), self._onloaded():
                found = self._measured(first, outputs[:1], mask)
        self._everywhere(found)

    def _measured(self, dense: Any, outputs: Sequence[Any], mask: torch.Tensor) -> list[Distances]:
        """Return the distances of several models for one batch."""
        measure: Callable[..., list[Distances]] = _divergences if self.measure == "divergence" else _squared_errors
        return measure(dense, outputs, mask)

    def _everywhere(self, found: Sequence[Distances], *, allow_nan: bool = False) -> list[Distances]:
        """Return the distances on the sequences of all processes."""
        parts = self._processes.gather(found)
        joined = [_joined([part[k] for part in parts]) for k in range(len(found))]
        if not allow_nan and any(math.isnan(value) for totals, _ in joined for value in totals):
            raise not_finite("the predictions of the pruned model are")
        return joined

    @torch.no_grad()
    def _run(self, states: Sequence[torch.Tensor]) -> Outputs:
        with evaluation_mode(self._model, self._ffns), self._onloaded():
            if not states or len(states) != len(self._batches) or not self._known_states.suffice:
                return [self._output(*batch) for batch in self._batches]
            outputs = []
            for batch, state in zip(self._batches, states, strict=True):
                with self._known_states.in_place_of_blocks(state):
                    outputs.append(self._output(*batch))
            return outputs

    def _output(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        """Return the model's first output for a batch or, if it predicts tokens, a function that yields the predictions."""
        if self.measure == "divergence":
            return self._predictor.hold(ids, mask)
        return first_output(run_body(self._model, model_inputs(self._model, ids, mask)[0])).cpu().double()

    @cached_property
    def _known_states(self) -> KnownStates:
        predictor = Predictor(self._model)  # so that a few tokens do not decide how that of all batches runs

        def run(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if self.measure == "divergence":
                return torch.cat([logits for logits, *_ in predictor.bands(ids, mask)], dim=1)
            found: torch.Tensor = self._output(ids, mask)
            return found

        return KnownStates(self._model, self._ffns, partial(run, *first_tokens(*self._batches[0])))


def _joined(parts: Sequence[Distances]) -> Distances:
    return [value for part, _ in parts for value in part], [count for _, part in parts for count in part]


def _divergences(dense: Predictions, models: Sequence[Predictions], mask: torch.Tensor) -> list[Distances]:
    """Return the divergences of every model; the dense model's band and one of another model are in memory together."""
    bands = [model() for model in models]
    totals = torch.zeros(len(models), len(mask), dtype=torch.float64)
    counts = torch.zeros(len(mask), dtype=torch.int64)
    for logits, _, valid in dense():
        log_p = at_least_float32(logits[valid]).log_softmax(-1)
        if bool(log_p.isnan().any()):
            raise not_finite("the dense model's predictions are")
        rows = valid.nonzero()[:, 0].cpu()
        for total, others in zip(totals, bands, strict=True):
            q = at_least_float32(next(others)[0][valid])
            total.index_add_(0, rows, divergences(log_p, q))
        counts += torch.bincount(rows, minlength=len(mask))
        del logits, log_p, q  # before the next band is computed
    return [(total.tolist(), counts.tolist()) for total in totals]


def _squared_errors(dense: torch.Tensor, models: Sequence[torch.Tensor], mask: torch.Tensor) -> list[Distances]:
    if dense.shape[: mask.ndim] != mask.shape:  # one output a sequence, such as a classifier's
        mask = torch.ones(len(dense), dtype=torch.bool)
    counts = mask.reshape(len(dense), -1).sum(1).tolist()
    squares = [(output - dense).square().reshape(*mask.shape, -1).sum(-1).where(mask, 0.0) for output in models]
    return [(each.reshape(len(dense), -1).sum(1).tolist(), counts) for each in squares]
