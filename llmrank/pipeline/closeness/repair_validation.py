"""Validation of a repair: whether it brings the pruned model closer to the dense one, on held-out tokens.

A repair that makes the error of every map smaller can still move the model away from the dense one, if it is fitted to few
tokens. So the model as cut and the repaired model are both compared with the dense one, and the closer one is kept. Where the
calibration text goes on, half of the held-out sequences are of another kind of text (:mod:`llmrank.text.other_text`), which a
repair can harm unseen. The held-out tokens also choose the damping of each map, which biases the comparison a little towards the
repaired model.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from torch import nn

from llmrank.evaluation.estimate import Estimate
from llmrank.execution import Execution
from llmrank.execution.block_stream import open_stream
from llmrank.execution.recording import Recording
from llmrank.models import FFNs
from llmrank.pipeline.closeness.distance import DenseReference, Distances, Measure
from llmrank.prune.masks import Masks
from llmrank.repair import BaseRepair, RepairedMap, repair_ffns
from llmrank.repair.in_files import RepairsInFiles
from llmrank.repair.in_place import RepairsInPlace
from llmrank.repair.sequential import Reselect
from llmrank.text import TokenSequences

__all__ = ["Validation", "repair_where_it_helps"]


@dataclass(frozen=True)
class Validation:
    """How far a pruned model is from the dense one on held-out tokens, without and with its repair.

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
        # No distance is below 0 but by rounding errors.
        return max(self.repaired, 0.0) < self.cut

    def sentence(self) -> str:
        """Return the comparison and its outcome as a sentence."""
        distance = f"squared distance from {self.count:,} outputs of the dense model on"
        if self.measure == "divergence":
            distance = f"KL divergence from the dense model's predictions on {self.count:,}"
        error = "" if self.error is None else f" (standard error of the difference {self.error:.2g})"
        outcome = "kept" if self.improves else "dropped"
        return (
            f"{distance} held-out tokens: {self.cut:.4g} without the repair, {self.repaired:.4g} with it{error}, so "
            f"the repair was {outcome}"
        )


def repair_where_it_helps(
    model: nn.Module,
    ffns: FFNs,
    masks: Masks,
    method: BaseRepair,
    texts: tuple[TokenSequences, TokenSequences | None],
    record: Recording,
    execution: Execution = Execution(),
    choose: Reselect | None = None,
    *,
    in_place: bool = False,
) -> tuple[Masks, dict[str, RepairedMap], Validation | None]:
    """Repair the output maps of all FFNs, and keep the repair if it brings the model closer to the dense one.

    Parameters
    ----------
    model : nn.Module
        The dense model; not changed unless `in_place`.
    ffns, masks, method, choose
        See :func:`llmrank.repair.repair_ffns`.
    texts : tuple of TokenSequences
        The sequences that the repair is fitted to, and the held-out ones or None. The held-out sequences choose the damping and
        validate the repair.
    record : Recording
        Record of the forward passes of both texts, see :func:`llmrank.execution.block_stream.open_stream`.
    execution : Execution
        With `in_place` and a work directory, repaired weights and hidden states are kept in its files, and the repair goes on
        where an earlier process ended. Of several processes, each has sequences to fit to, but some may have no held-out ones.
    in_place : bool
        Write each repaired weight over the model's own as soon as it is solved, so that memory never holds two sets of weights.
        The old weights are restored if the repair is not kept, or anything is raised.

    Returns
    -------
    masks : Masks
    repaired : dict from str to RepairedMap
        If the repair is not kept, the masks that were passed in, and no repaired map.
    validation : Validation or None
        None if nothing was held out, in which case the repair is kept, or if there was nothing to repair.

    Raises
    ------
    CalibrationError, OptionError
        See :func:`llmrank.repair.repair_ffns`; or the predictions hold NaN.
    OSError
        `in_place`, and there is no space for the temporary file that keeps the model's weights.
    """
    fit, held_out = texts
    reference = cut = None
    if held_out is not None:
        dense_states = record.last_outputs[len(execution.batches(fit)) :]
        with execution.step("Running the held-out text"):
            reference = DenseReference(model, ffns, held_out, execution, dense_states)
            cut = reference.outputs(masks)
            reference.check(cut)  # before a repair that may take hours
        del dense_states
    stream = open_stream(model, ffns, fit, record, execution, held_out, follow=method.needs_dense_stream)
    validation = None
    files = None if execution.work is None else RepairsInFiles(execution.work)
    with contextlib.closing(files or RepairsInPlace()) as in_place_repairs:
        try:
            write = in_place_repairs.write if in_place else None
            kept, repaired = repair_ffns(model, ffns, masks, method, stream, execution, choose, write, files)
            held_out_states = stream.held_out_states
            del stream  # all other hidden states, before the predictions take memory
            if not record.keeps_states:
                record.forget_outputs()
            if reference is not None and cut is not None and repaired:
                with execution.step("Validating the repair on the held-out text"):
                    after = reference.outputs(kept, repaired, held_out_states)
                    validation = Validation.of(reference.measure, *reference.distances([cut, after]))
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
