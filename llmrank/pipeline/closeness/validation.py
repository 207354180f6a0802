"""Validation of a repair: whether it brings the pruned model closer to the dense one, on held-out calibration tokens.

A repair that makes the error of every map smaller can still move the model away from the dense one, if it is fitted to few
tokens. So the model as cut and the repaired model are both compared with the dense one, and the closer one is kept. The held-out
tokens also choose the damping of each map, which biases the comparison a little towards the repaired model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from llmrank.calibration.blocks.block_stream import open_stream
from llmrank.calibration.blocks.onloading import onloaded_by_block
from llmrank.calibration.blocks.recording import Recording, blocks_of
from llmrank.calibration.blocks.work_directory import WorkDirectory
from llmrank.calibration.forward import Progress, evaluation_mode, first_output, model_inputs, progress_step, run_body
from llmrank.calibration.logits import Prediction, Predictor, predicts_next_token
from llmrank.calibration.processes import Processes
from llmrank.calibration.text import TokenSequences
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.fidelity import compare_predictions
from llmrank.models import FFNs
from llmrank.prune.masks import Masks
from llmrank.surgery.equivalence import as_masked
from llmrank.surgery.repair import BaseRepair, RepairedMap, repair_ffns
from llmrank.surgery.repair.in_files import RepairsInFiles
from llmrank.surgery.repair.in_place import RepairsInPlace
from llmrank.surgery.repair.sequential import Reselect

__all__ = ["Validation", "Validator", "repair_where_it_helps"]

Measure: TypeAlias = Literal["divergence", "squared error"]
# For every sequence the sum of the distances of its tokens, and the number of these tokens.
Distances: TypeAlias = tuple[list[float], list[int]]


@dataclass(frozen=True)
class Validation:
    """How far a pruned model is from the dense one on held-out calibration tokens, without and with its repair.

    Attributes
    ----------
    measure : {"divergence", "squared error"}
        The distance, a mean over tokens: KL(dense || pruned) of the next-token predictions, in nats; or, for models that
        predict no tokens, ``||y' - y||^2``, where y is the first output of the dense model and y' that of the pruned one.
    count : int
        Number of tokens that the means are taken over, or of sequences if the model has one output for each sequence.
    cut, repaired : float
        Mean distance without and with the repair.
    error : float or None
        Standard error of ``repaired - cut``, over sequences; None for a single sequence, or if the difference is not finite.
    """

    measure: Measure
    count: int
    cut: float
    repaired: float
    error: float | None

    @classmethod
    def of(cls, measure: Measure, cut: Distances, repaired: Distances) -> Validation:
        """Compare the distances of the same sequences without and with the repair."""
        counts = cut[1]
        change = Estimate.of([after - before for before, after in zip(cut[0], repaired[0], strict=True)], counts)
        mean_cut, mean_repaired = (Estimate.of(totals, counts).value for totals in (cut[0], repaired[0]))
        return cls(measure, change.count, mean_cut, mean_repaired, change.error)

    @property
    def improves(self) -> bool:
        """Whether the repair brings the pruned model closer to the dense one."""
        return self.repaired < self.cut

    def sentence(self) -> str:
        """Return the comparison and its outcome as a sentence."""
        distance = f"squared distance from {self.count:,} outputs of the dense model on"
        if self.measure == "divergence":
            distance = f"KL divergence from the dense model's predictions on {self.count:,}"
        error = "" if self.error is None else f" (standard error of the difference {self.error:.2g})"
        outcome = "kept" if self.improves else "dropped"
        return (
            f"{distance} held-out calibration tokens: {self.cut:.4g} without the repair, {self.repaired:.4g} with it{error}, so "
            f"the repair was {outcome}"
        )


class Validator:
    """Compares the model as cut and the repaired model with the dense one on held-out sequences.

    The constructor takes the dense model and the keep masks of the model as cut, and runs both models.

    Notes
    -----
    Cost: three forward passes of the held-out sequences. Memory: the hidden states (or first outputs) of all held-out tokens, and
    that of :class:`llmrank.calibration.logits.Predictor`.
    """

    def __init__(
        self,
        model: nn.Module,
        ffns: FFNs,
        held_out: TokenSequences,
        masks: Masks,
        batch_size: int,
        processes: Processes | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._model, self._ffns, self._processes = model, ffns, processes or Processes()
        self._onloaded = partial(onloaded_by_block, model, blocks_of(model, ffns), device)
        self._measure: Measure = "divergence" if predicts_next_token(model) else "squared error"
        self._predictor = Predictor(model)
        self._batches = list(held_out.batches(batch_size))
        with self._onloaded():
            self._dense = list(self._outputs())
        with as_masked(ffns, masks), self._onloaded():
            self._cut = self._distances()

    def compare(self, masks: Masks, repaired: Mapping[str, RepairedMap]) -> Validation:
        """Compare the model as cut and the repaired model.

        Parameters
        ----------
        masks : Masks
            Keep masks of the repaired model.
        repaired : mapping from str to RepairedMap
            Where a weight is None, the model holds the repaired weight already.

        Raises
        ------
        CalibrationError
            The predictions hold NaN.
        """
        with as_masked(self._ffns, masks, repaired), self._onloaded():
            return Validation.of(self._measure, self._cut, self._distances())

    @torch.no_grad()
    def _outputs(self) -> Iterator[Any]:
        """Yield for each batch the model's first output or, if it predicts tokens, a function that yields the predictions."""
        with evaluation_mode(self._model, self._ffns):
            for ids, mask in self._batches:
                if self._measure == "divergence":
                    yield self._predictor.hold(ids, mask)
                else:
                    inputs = model_inputs(self._model, ids, mask)[0]
                    yield first_output(run_body(self._model, inputs)).cpu().double()

    @torch.no_grad()
    def _distances(self) -> Distances:
        """Return the distances of the model as it is now from the dense one, on the held-out sequences of all processes."""
        distances: list[float] = []
        counts: list[int] = []
        measure: Callable[..., Distances] = _divergences if self._measure == "divergence" else _squared_errors
        for dense, output, (_, mask) in zip(self._dense, self._outputs(), self._batches, strict=True):
            with evaluation_mode(self._model, self._ffns):
                batch_distances, batch_counts = measure(dense, output, mask)
            distances += batch_distances
            counts += batch_counts
        parts = self._processes.gather((distances, counts))
        return [value for part, _ in parts for value in part], [count for _, part in parts for count in part]


def repair_where_it_helps(
    model: nn.Module,
    ffns: FFNs,
    masks: Masks,
    method: BaseRepair,
    texts: tuple[TokenSequences, TokenSequences | None],
    record: Recording,
    batch_size: int = 1,
    choose: Reselect | None = None,
    progress: Progress | None = None,
    *,
    in_place: bool = False,
    work: WorkDirectory | None = None,
    processes: Processes | None = None,
    device: torch.device | None = None,
) -> tuple[Masks, dict[str, RepairedMap], Validation | None]:
    """Repair the output maps of all FFNs, and keep the repair if it brings the model closer to the dense one.

    Parameters
    ----------
    model : nn.Module
        The dense model; not changed unless `in_place`.
    ffns, masks, method, choose, progress
        See :func:`llmrank.surgery.repair.repair_ffns`.
    texts : tuple of TokenSequences
        The sequences that the repair is fitted to, and the held-out ones or None. The held-out sequences choose the damping and
        validate the repair.
    record : Recording
        Record of the forward passes of both texts, see :func:`llmrank.calibration.blocks.block_stream.open_stream`.
    batch_size : int
    in_place : bool
        Write each repaired weight over the model's own as soon as it is solved, so that memory never holds two sets of weights.
        The old weights are restored if the repair is not kept, or anything is raised.
    work : WorkDirectory, optional
        With `in_place`: keep repaired weights and hidden states in its files, and go on where an earlier process ended.
    processes : Processes, optional
        Processes that divide the text: each passes `texts` and a `record` of its own sequences. Each has sequences to fit to, but
        some may have no held-out ones.
    device : torch.device, optional
        Device to compute on, to which blocks are brought one after the other. By default the weights stay where they are.

    Returns
    -------
    masks : Masks
    repaired : dict from str to RepairedMap
        If the repair is not kept, the masks that were passed in, and no repaired map.
    validation : Validation or None
        None if nothing was held out; in this case the repair is kept.

    Raises
    ------
    CalibrationError, OptionError
        See :func:`llmrank.surgery.repair.repair_ffns`; or the predictions hold NaN.
    OSError
        `in_place`, and there is no space for the temporary file that keeps the model's weights.
    """
    fit, held_out = texts
    validator = None
    if held_out is not None:
        with progress_step(progress, "Running the held-out text"):
            validator = Validator(model, ffns, held_out, masks, batch_size, processes, device)
    options: dict[str, Any] = {"work": work, "processes": processes, "device": device}
    stream = open_stream(model, ffns, fit, batch_size, record, held_out, follow=method.needs_dense_stream, **options)
    validation = None
    files = None if work is None else RepairsInFiles(work)
    with contextlib.closing(files or RepairsInPlace()) as in_place_repairs:
        try:
            write = in_place_repairs.write if in_place else None
            kept, repaired = repair_ffns(model, ffns, masks, method, stream, progress, choose, write, files, processes)
            if validator is not None:
                with progress_step(progress, "Validating the repair on the held-out text"):
                    validation = validator.compare(kept, repaired)
            if validation is not None and not validation.improves:
                in_place_repairs.restore()
                return masks, {}, validation
        except BaseException:
            # Twice, because an interrupt may cut the first attempt short.
            try:
                in_place_repairs.restore()
            finally:
                in_place_repairs.restore()
            raise
    return kept, repaired, validation


def _divergences(
    dense: Callable[[], Iterator[Prediction]], model: Callable[[], Iterator[Prediction]], mask: torch.Tensor
) -> Distances:
    totals, counts = compare_predictions(dense(), model(), len(mask))
    return totals[:, 0].tolist(), counts.tolist()


def _squared_errors(dense: torch.Tensor, output: torch.Tensor, mask: torch.Tensor) -> Distances:
    if dense.shape[: mask.ndim] != mask.shape:  # one output a sequence, such as a classifier's
        mask = torch.ones(len(dense), dtype=torch.bool)
    squares = (output - dense).square().reshape(*mask.shape, -1).sum(-1).where(mask, 0.0)
    return squares.reshape(len(dense), -1).sum(1).tolist(), mask.reshape(len(dense), -1).sum(1).tolist()
