"""Distance of a pruned model from the dense one, on sequences that both read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from llmrank.errors import not_finite
from llmrank.evaluation.fidelity import divergences
from llmrank.evaluation.logits import Prediction, Predictor
from llmrank.execution import Execution
from llmrank.execution.onloading import onloaded_by_block
from llmrank.execution.recording import blocks_of
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

__all__ = ["DenseReference", "Distances", "Measure"]

Measure: TypeAlias = Literal["divergence", "squared error"]
# For every sequence the sum of the distances of its tokens, and the number of these tokens.
Distances: TypeAlias = tuple[list[float], list[int]]
# Yields the predictions for a batch, band by band.
Predictions: TypeAlias = Callable[[], Iterator[Prediction]]


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

    Attributes
    ----------
    measure : {"divergence", "squared error"}
        The distance for one token: KL(dense || pruned) of the next-token predictions, in nats; or, for models that predict no
        tokens, ``||y' - y||^2``, where y is the first output of the dense model and y' that of the pruned one.

    Notes
    -----
    Cost: one forward pass of the sequences, and one more for every pruned model. Memory: the hidden states (or first outputs) of
    all tokens, and that of :class:`llmrank.evaluation.logits.Predictor`.
    """

    def __init__(
        self,
        model: nn.Module,
        ffns: FFNs,
        sequences: TokenSequences,
        execution: Execution,
    ) -> None:
        self._model, self._ffns, self._processes = model, ffns, execution.processes
        self._onloaded = partial(onloaded_by_block, model, blocks_of(model, ffns), execution.device)
        self.measure: Measure = "divergence" if predicts_next_token(model) else "squared error"
        self._predictor = Predictor(model)
        self._batches = execution.batches(sequences)
        with self._onloaded():
            self._dense = list(self._outputs())

    def distances(self, masks: Masks, repaired: Mapping[str, RepairedMap] | None = None) -> Distances:
        """Return the distances of a pruned model, on the sequences of all processes.

        Parameters
        ----------
        masks : Masks
            Keep masks of the pruned model.
        repaired : mapping from str to RepairedMap, optional
            Where a weight is None, the model holds the repaired weight already.

        Raises
        ------
        CalibrationError
            The predictions hold NaN.
        """
        (distances,) = self.distances_of([masks], repaired)
        if any(map(math.isnan, distances[0])):
            raise not_finite("the predictions of the pruned model are")
        return distances

    @torch.no_grad()
    def distances_of(
        self, masks: Iterable[Masks], repaired: Mapping[str, RepairedMap] | None = None
    ) -> list[Distances]:
        """Return the distances of several pruned models, see :meth:`distances`; the dense model's head runs once for all.

        The hidden states (or first outputs) of all of them are in memory together. A model whose predictions hold NaN has NaN as
        its distances; if those of the dense model do, that is a CalibrationError.
        """
        outputs = []
        for each in masks:
            with as_masked(self._ffns, each, repaired), self._onloaded():
                outputs.append(list(self._outputs()))
        found: list[Distances] = [([], []) for _ in outputs]
        measure: Callable[..., list[Distances]] = _divergences if self.measure == "divergence" else _squared_errors
        with evaluation_mode(self._model, self._ffns), self._onloaded():
            for dense, (_, mask), *models in zip(self._dense, self._batches, *outputs, strict=True):
                found = [_joined(each) for each in zip(found, measure(dense, models, mask), strict=True)]
        parts = self._processes.gather(found)
        return [_joined([part[k] for part in parts]) for k in range(len(found))]

    @torch.no_grad()
    def _outputs(self) -> Iterator[Any]:
        """Yield for each batch the model's first output or, if it predicts tokens, a function that yields the predictions."""
        with evaluation_mode(self._model, self._ffns):
            for ids, mask in self._batches:
                if self.measure == "divergence":
                    yield self._predictor.hold(ids, mask)
                else:
                    inputs = model_inputs(self._model, ids, mask)[0]
                    yield first_output(run_body(self._model, inputs)).cpu().double()


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
    return [(total.tolist(), counts.tolist()) for total in totals]


def _squared_errors(dense: torch.Tensor, models: Sequence[torch.Tensor], mask: torch.Tensor) -> list[Distances]:
    if dense.shape[: mask.ndim] != mask.shape:  # one output a sequence, such as a classifier's
        mask = torch.ones(len(dense), dtype=torch.bool)
    counts = mask.reshape(len(dense), -1).sum(1).tolist()
    squares = [(output - dense).square().reshape(*mask.shape, -1).sum(-1).where(mask, 0.0) for output in models]
    return [(each.reshape(len(dense), -1).sum(1).tolist(), counts) for each in squares]
