"""The base class of pipelines: it runs the stages in order, measures the time of each, and reports."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from time import perf_counter
from typing import Any

import torch
from torch import nn

from llmrank.errors import OptionError
from llmrank.evaluation.perplexity import Perplexity, model_size, perplexity, unigram_perplexity
from llmrank.execution import join_processes, launched_processes
from llmrank.execution.recording import Recording, record_without_running, recording
from llmrank.execution.work_directory import WorkDirectory
from llmrank.models import FFNs
from llmrank.models.digest import weights_digest
from llmrank.models.forward import run_sequences
from llmrank.pipeline.report import (
    Evaluation,
    Report,
    choice_notes,
    describe_graphs,
    describe_model,
    describe_neurons,
    dtype_name,
    json_safe,
    model_source,
    repair_notes,
)
from llmrank.pipeline.stages import PipelineStages
from llmrank.prune.budget import budget_notes, reached_amounts
from llmrank.prune.masks import Masks
from llmrank.prune.schedule import ScheduleStep, amounts_after_steps
from llmrank.repair import RepairedMap, repair_summary
from llmrank.score import BaseScorer
from llmrank.surgery.apply import apply_masks, temporarily_masked
from llmrank.surgery.equivalence import check_equivalence, masked_outputs
from llmrank.text import TokenSequences, shared_passages

__all__ = ["BasePipeline"]

logger = logging.getLogger(__name__)


class BasePipeline(PipelineStages):
    """Base class of pipelines: find FFNs, calibrate, build and rank graphs, choose keep masks, repair, and apply the masks.

    Parameters
    ----------
    model : nn.Module
        Changed in place by :meth:`run`.
    tokenizer : transformers tokenizer or None
        May be None if `calibration`, and `evaluation` if given, are tensors.
    structure_dict : mapping, optional
        A mapping (``path_to_layers``, ``path_to_modules``) that names Linears whose rows are pruned, as in the paper. By default
        the FFNs are found in the model.
    scorer : BaseScorer, optional
        That of :func:`llmrank.score.pagerank.default_scorer` by default. An :class:`llmrank.score.AutoScorer` is tried first.
    pruner : BasePruner, optional
        :class:`LocalPruner` of 30 % by default. A pruner that needs sensitivities is refused with a `structure_dict`.
    device : str or torch.device, optional
        The device that the model is moved to; by default it stays where it is. With a work directory, blocks are brought to the
        device one at a time, and the model stays on the CPU.
    calibration : CalibrationText, or a source as for :class:`CalibrationText`; optional
        The text that statistics are taken on; by default up to 16 sequences of at most 1,024 tokens of the built-in text.
    form : {"compact", "zero", "mask"}, optional
        See :func:`llmrank.surgery.apply.apply_masks`. Compact by default; zero with a `structure_dict`, which refuses compact.
    align : {"none", "pad"}
        "pad" fills compact layers up with zeros to one width; "none", the default, does not.
    repair : BaseRepair, optional
        How new weights of the output maps make up for the removed neurons, see :mod:`llmrank.repair`; none by default,
        and refused with a `structure_dict`. The repair is kept if it brings the model closer to the dense one on held-out
        sequences (see :meth:`llmrank.pipeline.CalibrationText.sequences`), or if nothing could be held out.
    targets : str or sequence of str
        What is removed: "neurons" (the default), in a mixture of experts from every expert; "experts"; or "neurons,experts".
    steps : int
        Number of steps to prune in, 1 to 1000, see :mod:`llmrank.prune.schedule`.
    evaluation : EvaluationText, a source as for :class:`EvaluationText`, or True; optional
        The text that the perplexity before and after pruning is measured on; True is the part of the built-in text that is not
        used for calibration. By default no perplexity is measured.
    progress : callable, optional
        A function such as ``rich.progress.track``; by default no progress is shown.
    undoable : bool
        Keep the original weights for :meth:`undo`. Otherwise :attr:`repaired` and :attr:`graph` are empty after :meth:`run`,
        and an error that comes later than the repair can leave the model repaired or pruned, completely or in part.
    work_directory : path-like, optional
        Run with little memory, block by block. What the present block does not need is kept in files of this directory. The run
        makes the directory, and the caller deletes it after saving the model (``pipeline.work.remove()``). The model should be
        loaded on the CPU in the dtype of its checkpoint, so that its weights stay on disk. With a `device`, forward passes,
        sums and repairs are computed there; ranks are always computed on the CPU.
    resume : bool
        Go on with an earlier run in the work directory, at the block where it ended.
    processes : Processes, optional
        The processes that divide the run among themselves. By default :meth:`run` joins those that a launcher has started
        (torchrun, accelerate) or that torch.distributed has connected. Each process calls :meth:`run` with the same model and
        options, and gets the same result.

    Attributes
    ----------
    validation : Validation or None
        After :meth:`run` with a repair: how far the model as cut and the repaired model are from the dense one; None if nothing
        could be held out.
    choice : Choice or None
        After :meth:`run` with an :class:`llmrank.score.AutoScorer`: the trials of all candidates, and the scorer that was chosen;
        None if nothing could be held out. :attr:`chosen_scorer` is the scorer itself.
    report : Report or None
        After :meth:`run`: the protocol and the outcome.
    masks : Masks or None
        After :meth:`run`: the keep masks, over all neurons of the dense model.
    sensitivities : dict from str to float
        After :meth:`run`: see :meth:`measure_sensitivities`.
    graph, rank
        After :meth:`run`: the graph and its rank, or tuples if there are several graphs. Graphs keep the original weights in
        memory. With several steps, sensitivities, graphs and ranks are those of the first step, on the dense model.
    repaired : dict from str to RepairedMap
        After :meth:`run`: the new weights of the repaired output maps, by the path of the module; empty if no repair was kept.
    """

    def run(self) -> nn.Module:
        """Prune the model and return it.

        Raises
        ------
        LLMRankError, graphs.GraphError
            Bad options, data or models, or a second run without :meth:`undo` in between. The weights are unchanged if the
            pipeline is undoable, or if the error comes before the end of the repair and before any mask is applied.
        """
        self._check_fresh()
        if self.processes.count > 1 or launched_processes()[1] == 1:
            return self._run()
        before_joining = self.processes
        with join_processes() as processes:
            self.processes = processes
            try:
                return self._run()
            finally:
                self.processes = before_joining

    def _run(self) -> nn.Module:
        self._check_processes()
        self._seconds = {}
        with self._timed("find"), self.execution.step("Finding FFNs"):
            ffns, _ = self.prepare()
        kinds = ", ".join(sorted({ffn.kind for ffn in ffns}))
        logger.info("found %d FFNs (%s) with %d neurons", len(ffns), kinds, sum(ffns.sizes.values()))
        self._prepared = None
        with self._timed("evaluate before"):
            evaluation, evaluation_text = self.evaluate()
        with self._timed("calibrate"):
            sequences, held_out = self.calibration_texts()
            self.open_work_directory(sequences, held_out)
        # Before the repair, which may change the weights in place. Offloaded weights cannot be read.
        digest = ""
        with suppress(OptionError):
            digest = weights_digest(self.model)
        masks, self.repaired = self.select(ffns, sequences, held_out)
        self.masks = Masks(masks, digest)
        report = self._report(ffns, self.masks, sequences, held_out)
        ranked = "ranked %(graphs)d graphs of %(nodes)d nodes by %(solver)s in %(iterations)d iterations"
        logger.info(f"{ranked}, error at most %(error_bound).1e", report.graph)
        if not self.undoable:
            self.model_graphs = ()
        with self._timed("apply"), self.execution.step("Applying the masks"):
            expected = None
            if self.form == "compact":
                with self.onloaded():
                    expected = masked_outputs(self.model, ffns, self.masks, sequences, self.repaired)
            self._changed_for_good = not self.undoable
            self.application = apply_masks(
                self.model,
                ffns,
                self.masks,
                self.form,
                self.align,
                self.repaired,
                undoable=self.undoable,
                store=None if self.work is None else self.work.copy_to_file,
            )
        if not self.undoable:
            self.repaired = {}
        try:
            if expected is not None:
                checking = self.execution.step("Checking the pruned model")
                with self._timed("check"), checking, self.onloaded():
                    check_equivalence(self.model, expected, sequences)
            with self._timed("evaluate after"):
                if evaluation is not None and evaluation_text is not None:
                    evaluation.after = self._perplexity(evaluation_text, "Evaluating the pruned model")
                    evaluation.calibration_overlap = shared_passages(sequences.joined(held_out), evaluation_text)
            report.after = model_size(self.model, ffns)
        except BaseException:
            if self.undoable:
                self.undo()
            raise
        report.neurons["widths_with_padding"] = self.application.widths
        report.seconds, report.evaluation = dict(self._seconds), evaluation
        self.report = report
        return self.model

    def select(
        self, ffns: FFNs, sequences: TokenSequences, held_out: TokenSequences | None = None
    ) -> tuple[Masks, dict[str, RepairedMap]]:
        """Calibrate, rank and choose keep masks, in :attr:`steps` steps; repair after the last one.

        Parameters
        ----------
        ffns : FFNs
        sequences : TokenSequences
            Sequences to rank by, and to fit a repair to.
        held_out : TokenSequences, optional
            Sequences by which the damping of a repair is chosen, and the repair is validated.

        Returns
        -------
        Masks
        dict from str to RepairedMap
            The repaired output maps. Unless the pipeline is undoable, the model may hold their weights already.
        """
        self._check_fresh()
        self.step_results = []
        self.validation = None
        self.choice = None
        present: Masks | None = None  # the masks of the step before
        repaired: dict[str, RepairedMap] = {}
        record = Recording([])
        for number, amount in enumerate(amounts_after_steps(self.pruner.amount, self.steps), start=1):
            is_first, is_last = number == 1, number == self.steps
            seconds_before = dict(self._seconds)
            with temporarily_masked(self.model, ffns, present):
                # A repair runs the model block by block, so the passes of the calibration record how the model calls its blocks.
                # With a work directory or a ranking, the calibration makes no passes of the complete model.
                makes_passes = self.work is None and self.calibration.ranking is None
                recorded = ffns if is_first and self.repair and makes_passes else FFNs()
                with self._timed("calibrate"), recording(self.model, recorded) as new_record:
                    statistics = self.calibrate(ffns, sequences)
                    if new_record.blocks and held_out is not None:
                        run_sequences(self.model, ffns, self.execution.batches(held_out))
                if not makes_passes and self.repair is not None:
                    texts = sequences.parts if held_out is None else (sequences, held_out)
                    batches = [batch for text in texts if text is not None for batch in self.execution.batches(text)]
                    # With a work directory, the calibration has already checked that the blocks can be called one by one.
                    new_record = record_without_running(self.model, ffns, batches, repeat=self.work is None)
                with self._timed("rank"):
                    graphs = self.build_graphs(ffns, statistics)
                if is_first:
                    with self._timed("choose"):
                        self.choice = self.choose_scorer(ffns, graphs, sequences, held_out)
                with self._timed("rank"):
                    ranks = self.rank_graphs(graphs)
                if is_first:
                    record, self.model_graphs, self.ranks = new_record, graphs, ranks
                    with self._timed("measure"):
                        self.sensitivities = self.measure_sensitivities(ffns, sequences, graphs, ranks)
                with self._timed("prune"):
                    if is_first and is_last:
                        # An override of choose_masks() may lack the arguments that only several steps need.
                        masks = self.choose_masks(graphs, ranks)
                    else:
                        pruner = self.pruner if is_last else self.pruner.with_amount(amount)
                        masks = self.choose_masks(graphs, ranks, pruner, present)
                    if self.processes.count > 1:
                        masks = Masks(self.processes.first(dict(masks)))
            repairs_now = self.repair is not None and is_last
            if repairs_now:
                record.keeps_first_states = False
                with self._timed("repair"):
                    masks, repaired = self.repair_output_maps(ffns, masks, sequences, record, graphs, present, held_out)
            # These graphs may hold the last references to masked weights.
            del graphs, ranks
            present = masks
            spent = {stage: total - seconds_before.get(stage, 0.0) for stage, total in self._seconds.items()}
            spent = {stage: seconds for stage, seconds in spent.items() if seconds}
            self.step_results.append(ScheduleStep(amount, masks.size - masks.kept, repairs_now, spent))
        return masks, repaired

    def evaluate(self) -> tuple[Evaluation | None, TokenSequences | None]:
        """Measure the perplexity before pruning, and return it with its sequences; (None, None) without a text."""
        if self.evaluation is None:
            return None, None
        source, length = self.evaluation, self.calibration.sequence_length
        texts = self.processes.from_one(lambda: source.sequences(self.model, self.tokenizer, length))
        before = self._perplexity(texts, "Evaluating the dense model")
        protocol = {**texts.provenance(), "dtype": dtype_name(self.model), "torch_seed": torch.initial_seed()}
        return Evaluation(protocol, before, unigram=unigram_perplexity(texts)), texts

    def _perplexity(self, texts: TokenSequences, description: str) -> Perplexity:
        with self.onloaded():
            return perplexity(self.model, texts, self.execution, description)

    def undo(self) -> nn.Module:
        """Restore the model as it was before :meth:`run`, bit for bit, but on `device`; refused unless :attr:`undoable`."""
        if self.application is None:
            raise OptionError("there is nothing to undo: run() has not pruned this model, or undo() has restored it")
        self.application.undo()
        self.application = None
        return self.model

    def open_work_directory(self, sequences: TokenSequences, held_out: TokenSequences | None) -> None:
        """Make or resume the work directory if the options ask for one. It belongs to this model, these texts and settings."""
        if self.work_directory is None:
            return
        devices = sorted({parameter.device.type for parameter in self.model.parameters()} - {"cpu"})
        if devices:
            raise OptionError(
                f"a run with little memory leaves the weights on the CPU, and parts of the model are on {', '.join(devices)}; "
                "load it on the CPU and give device= to the run, or leave work_directory out"
            )
        run = {
            "model": model_source(self.model),
            "weights": weights_digest(self.model),
            "calibration": sequences.provenance(),
            "held_out": None if held_out is None else held_out.provenance(),
            "batch_size": self.calibration.batch_size,
            "device": str(self.block_device or "cpu"),  # because rounding differs between devices
            **self._method_settings(self.scorer),
        }
        self.work = WorkDirectory(self.work_directory, json_safe(run), resume=self.resume)

    def _check_processes(self) -> None:
        """Refuse what several processes cannot do, and let only process 0 show progress."""
        count = self.processes.count
        if count == 1:
            return
        if self.work_directory is not None:
            raise OptionError(
                f"a run with little memory keeps its files in one place, and {count} processes were started; start one process, "
                "or run without --low-memory and --resume (in Python: work_directory)"
            )
        if len(set((getattr(self.model, "hf_device_map", None) or {}).values())) > 1:
            raise OptionError(
                f"{count} processes were started, and the model is spread over several devices, which only one process can "
                "use; start one process, or load the model on one device in each process"
            )
        text = self.calibration.source
        if self.calibration.samples < count and (text is None or isinstance(text, (str, os.PathLike))):
            raise OptionError(
                f"{count} processes were started for {self.calibration.samples} calibration sequences, and each needs one or "
                "more; start fewer processes, or give more sequences (--samples)"
            )
        if self.processes.rank:
            self.progress = None

    def _check_fresh(self) -> None:
        if self._changed_for_good:
            raise OptionError(
                "this pipeline has changed its model for good; load the model again, and make another pipeline"
            )
        if self.application is not None:
            raise OptionError("this pipeline has pruned its model already; call undo() first, or make another pipeline")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        seconds = perf_counter() - start
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        logger.debug("%s took %.2f s", stage, seconds)

    def _report(self, ffns: FFNs, masks: Masks, sequences: TokenSequences, held_out: TokenSequences | None) -> Report:
        """Make the report of all that is known before the masks are applied."""
        size, costs = model_size(self.model, ffns), self.costs or self.check(ffns)
        reached = reached_amounts(masks, costs)
        processes = {"processes": self.processes.count} if self.processes.count > 1 else {}
        device = {} if self.block_device is None else {"device": str(self.block_device)}
        fit, held_out_part = (sequences, held_out) if held_out is not None else sequences.parts
        notes = [
            *(f"no token reaches {stack}: its FFNs were left as they are" for stack in sorted(self._not_reached)),
            *budget_notes(self.pruner, reached),
            *choice_notes(self.candidates, self.choice, masks.removed_share),
            *repair_notes(self.repair, self.validation, self.token_warning(ffns, fit.n_tokens)),
            *(f"{rank.names[entry.layer]}: {entry.reason}" for rank in self.ranks for entry in rank.degenerate),
        ]
        return Report(
            model=describe_model(self.model, ffns) | device,
            method=self._method_settings(self.chosen_scorer),
            choice=None if self.choice is None else self.choice.to_dict(),
            calibration=sequences.provenance() | processes,
            held_out=None if held_out_part is None else held_out_part.provenance(),
            graph=describe_graphs(self.model_graphs, self.ranks),
            neurons=describe_neurons(masks, self.pruner, ffns),
            before=size,
            after=size,
            reached={str(unit): found for unit, found in reached.items()},
            steps=[asdict(step) for step in self.step_results],
            sensitivities=self.sensitivities,
            repaired=repair_summary(self.repaired),
            validation=None if self.validation is None else asdict(self.validation),
            seconds={},
            notes=notes,
        )

    def _method_settings(self, scorer: BaseScorer) -> dict[str, Any]:
        return {
            "pipeline": self.topology,
            **self.parameters(),
            "scorer": {"name": type(scorer).__name__, **scorer.parameters()},
            "pruner": {"name": type(self.pruner).__name__, **vars(self.pruner)},
            "targets": list(self.targets),
            "form": self.form,
            "align": self.align,
            "steps": self.steps,
            "repair": {"name": type(self.repair).__name__, **self.repair.parameters()} if self.repair else None,
            "structure_dict": self.structure_dict,
        }
