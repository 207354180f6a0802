"""Cut or repaired: which of the two is nearer to the dense model on held-out calibration tokens.

A repair makes the error of every map smaller, on held-out tokens too, where its damping is chosen by them. That does not say that
the model as a whole comes nearer: where calibration tokens are few it can move away. So both are compared at the end, and the
better one is kept. No weight is fitted to the held-out tokens; but one damping a map is chosen on them, so that the distance of
the repaired model comes out a little too small.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from llmrank.calibration.blockwise import open_stream
from llmrank.calibration.forward import Progress, evaluation_mode, first_output, model_inputs, progress_step, run_body
from llmrank.calibration.logits import Prediction, Predictor, has_perplexity
from llmrank.calibration.recording import Recording
from llmrank.calibration.text import TokenSequences
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.fidelity import compare_predictions
from llmrank.models import FFN
from llmrank.prune.masks import Masks
from llmrank.surgery.apply import RepairsInPlace
from llmrank.surgery.equivalence import as_masked
from llmrank.surgery.repair import BaseRepair, RepairedMap, repair_ffns
from llmrank.surgery.repair.sequential import Choose

__all__ = ["Validation", "Validator", "repair_where_it_helps"]

Measure: TypeAlias = Literal["divergence", "squared error"]
# The sum of the distances of every sequence, and over how many tokens it is.
Distances: TypeAlias = tuple[list[float], list[int]]


@dataclass(frozen=True)
class Validation:
    """How far a cut model is from the dense one on held-out calibration tokens, without and with its repair.

    Attributes
    ----------
    measure : {"divergence", "squared error"}
        Mean over tokens of KL(dense || model) of the next-token predictions, in nats; or for models that predict no tokens, of
        ``||y' - y||^2``, y being the first output of the dense model.
    tokens : int
        Tokens that the means are over.
    cut, repaired : float
        The mean distances.
    error : float or None
        Standard error of their difference, paired over sequences; None for a single sequence.
    """

    measure: Measure
    tokens: int
    cut: float
    repaired: float
    error: float | None

    @classmethod
    def of(cls, measure: Measure, cut: Distances, repaired: Distances) -> Validation:
        """Compare the distances of the same sequences."""
        counts = cut[1]
        change = Estimate.of([after - before for before, after in zip(cut[0], repaired[0], strict=True)], counts)
        before, after = (Estimate.of(totals, counts).value for totals in (cut[0], repaired[0]))
        return cls(measure, change.count, before, after, change.error)

    @property
    def improves(self) -> bool:
        """Whether the repaired model is nearer to the dense one."""
        return self.repaired < self.cut

    def sentence(self) -> str:
        """The comparison and its outcome in words."""
        what = "squared distance from the dense model's outputs"
        if self.measure == "divergence":
            what = "KL divergence from the dense model's predictions"
        error = "" if self.error is None else f" (standard error of the difference {self.error:.2g})"
        outcome = "kept" if self.improves else "dropped: the model is as it was cut"
        return (
            f"{what} on {self.tokens:,} held-out calibration tokens: {self.cut:.4g} as cut, {self.repaired:.4g} repaired{error}, "
            f"so the repair was {outcome}"
        )


class Validator:
    """Remembers the dense model on held-out sequences, and compares a cut model and its repair with it.

    Parameters
    ----------
    model : nn.Module
        Dense; not changed here.
    ffns : sequence of FFN
    held_out : TokenSequences
        No weight was fitted to them.
    masks : Masks
        What is kept without repair.
    batch_size : int

    Notes
    -----
    Cost: three forward passes of the held-out sequences, and of a language model's prediction head four. Memory: the hidden
    states of all held-out tokens, and see :class:`llmrank.calibration.logits.Predictor`.
    """

    def __init__(
        self, model: nn.Module, ffns: Sequence[FFN], held_out: TokenSequences, masks: Masks, batch_size: int
    ) -> None:
        self._model, self._ffns = model, ffns
        self._measure: Measure = "divergence" if has_perplexity(model) else "squared error"
        self._predictor = Predictor(model)
        self._batches = list(held_out.batches(batch_size))
        self._dense = list(self._outputs())
        with as_masked(ffns, masks):
            self._cut = self._distances()

    def compare(self, masks: Masks, repaired: Mapping[str, RepairedMap]) -> Validation:
        """Compare the cut model with the repaired one.

        Parameters
        ----------
        masks : Masks
            What is kept with the repair.
        repaired : mapping from str to RepairedMap
            Where a weight is None, the model holds it.

        Raises
        ------
        CalibrationError
            Predictions that are not numbers.
        """
        with as_masked(self._ffns, masks, repaired):
            return Validation.of(self._measure, self._cut, self._distances())

    @torch.no_grad()
    def _outputs(self) -> Iterator[Any]:
        """What the model returns for each batch: predictions (a callable that makes them), or its first output."""
        with evaluation_mode(self._model):
            for ids, mask in self._batches:
                if self._measure == "divergence":
                    yield self._predictor.hold(ids, mask)
                else:
                    inputs = model_inputs(self._model, ids, mask)[0]
                    yield first_output(run_body(self._model, inputs)).cpu().double()

    @torch.no_grad()
    def _distances(self) -> Distances:
        """Distances of the model as it is now from the dense model, summed over the tokens of every sequence."""
        distances: list[float] = []
        counts: list[int] = []
        measure: Callable[..., Distances] = _divergences if self._measure == "divergence" else _squared_errors
        for dense, output, (_, mask) in zip(self._dense, self._outputs(), self._batches, strict=True):
            with evaluation_mode(self._model):
                found, tokens = measure(dense, output, mask)
            distances += found
            counts += tokens
        return distances, counts


def repair_where_it_helps(
    model: nn.Module,
    ffns: Sequence[FFN],
    masks: Masks,
    method: BaseRepair,
    texts: tuple[TokenSequences, TokenSequences | None],
    record: Recording,
    batch_size: int = 1,
    choose: Choose | None = None,
    progress: Progress | None = None,
    *,
    in_place: bool = False,
) -> tuple[Masks, dict[str, RepairedMap], Validation | None]:
    """Repair the output maps of all FFNs, and keep that where it brings the model nearer to the dense one.

    Parameters
    ----------
    model : nn.Module
        Dense; not changed unless `in_place`.
    ffns, masks, method, choose, progress
        See :func:`llmrank.surgery.repair.repair_ffns`.
    texts : tuple of TokenSequences
        Those to fit to, and those held out to choose the damping by and to compare on; None for none.
    record : Recording
        Of the forward passes of both, see :func:`llmrank.calibration.blockwise.open_stream`.
    batch_size : int
    in_place : bool
        Write repaired weights over the model's own at once, so that no memory holds both. They are restored where the repair is
        not kept, whatever the reason.

    Returns
    -------
    masks : Masks
    repaired : dict from str to RepairedMap
        The masks that were given and no repaired map, where the repair does not help.
    validation : Validation or None
        None where nothing was held out: then the repair is kept.

    Raises
    ------
    CalibrationError, OptionError
        See :func:`llmrank.surgery.repair.repair_ffns`; predictions that are not numbers.
    OSError
        `in_place`, and no space for the temporary file that keeps the model's weights.
    """
    fit, held_out = texts
    validator = None
    if held_out is not None:
        with progress_step(progress, "Running the held-out text"):
            validator = Validator(model, ffns, held_out, masks, batch_size)
    stream = open_stream(model, ffns, fit, batch_size, record, held_out, follow=method.follows)
    validation = None
    with contextlib.closing(RepairsInPlace()) as written:
        try:
            write = written.write if in_place else None
            kept, repaired = repair_ffns(model, ffns, masks, method, stream, progress, choose, write)
            if validator is not None:
                with progress_step(progress, "Comparing cut and repaired on the held-out text"):
                    validation = validator.compare(kept, repaired)
            if validation is not None and not validation.improves:
                written.restore()
                return masks, {}, validation
        except BaseException:
            # Again, in case an interrupt cut the first time short.
            try:
                written.restore()
            finally:
                written.restore()
            raise
    return kept, repaired, validation


def _divergences(
    dense: Callable[[], Iterator[Prediction]], model: Callable[[], Iterator[Prediction]], mask: torch.Tensor
) -> Distances:
    totals, counts = compare_predictions(dense(), model(), len(mask))
    return totals[:, 0].tolist(), counts.tolist()


def _squared_errors(dense: torch.Tensor, output: torch.Tensor, mask: torch.Tensor) -> Distances:
    if dense.shape[: mask.ndim] != mask.shape:  # one output a sequence, as of a classifier
        mask = torch.ones(len(dense), dtype=torch.bool)
    squares = (output - dense).square().reshape(*mask.shape, -1).sum(-1).where(mask, 0.0)
    return squares.reshape(len(dense), -1).sum(1).tolist(), mask.reshape(len(dense), -1).sum(1).tolist()
