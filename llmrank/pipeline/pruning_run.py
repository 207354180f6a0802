"""A run of a recipe on a model: it calls the stages, applies what they chose, and can undo it."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphs import LayeredGraph, RankResult
from llmrank.errors import OptionError, check_type
from llmrank.evaluation.logits import check_predicts
from llmrank.evaluation.perplexity import model_size
from llmrank.execution import Execution, Processes, join_processes, launched_processes
from llmrank.execution.onloading import onloaded_by_block
from llmrank.execution.work_directory import WorkDirectory
from llmrank.healing import DenseModel, Distillation, heal_model
from llmrank.models import FFNs
from llmrank.models.loading import parse_device
from llmrank.pipeline import stages
from llmrank.pipeline.heal import healing_tokens
from llmrank.pipeline.plan import Plan, Selection, make_plan, open_work_directory, select
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.report import Report
from llmrank.pipeline.stages import PreparedModel
from llmrank.pipeline.stopwatch import Stopwatch
from llmrank.pipeline.texts import CalibrationText
from llmrank.progress import Progress
from llmrank.prune.masks import Masks
from llmrank.score.model_graph import ModelGraph
from llmrank.surgery.apply import AppliedMasks, apply_masks
from llmrank.surgery.equivalence import check_equivalence, masked_outputs
from llmrank.surgery.forms import SMALLER
from llmrank.text import CalibrationTokens, TokenSequences, shared_passages

__all__ = ["PruningRun"]

logger = logging.getLogger(__name__)


class PruningRun:
    """A run of a recipe on a model: find FFNs, calibrate, build and rank graphs, choose keep masks, repair, and apply the masks.

    Parameters
    ----------
    model : nn.Module
        Changed in place by :meth:`run`.
    tokenizer : transformers tokenizer or None
        May be None if the texts of the recipe are tensors.
    recipe : Recipe
        What is done.
    device : str or torch.device, optional
        The device that the model is moved to; by default it stays where it is. With a work directory, blocks are brought to the
        device one at a time, and the model stays on the CPU.
    progress : callable, optional
        A function such as ``rich.progress.track``; by default no progress is shown.
    undoable : bool
        Keep the original weights for :meth:`undo`. Otherwise the plan holds no repaired maps and no graphs after :meth:`run`,
        and an error that comes later than the repair can leave the model repaired or pruned, completely or in part.
    work_directory : path-like, optional
        Run with little memory, block by block. What the present block does not need is kept in files of this directory. The run
        makes the directory, and the caller deletes it after saving the model (``run.work.remove()``). The model should be
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
    execution : Execution
        How it is computed.
    plan : Plan or None
        After :meth:`run`: the calibration tokens and the selection. Its graphs keep the original weights in memory.
    report : Report or None
        After :meth:`run`: the protocol and the outcome.
    work : WorkDirectory or None
        The files of a run with little memory.
    application : AppliedMasks or None
        What :meth:`undo` undoes.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        recipe: Recipe,
        device: str | torch.device | None = None,
        *,
        progress: Progress | None = None,
        undoable: bool = True,
        work_directory: str | os.PathLike[str] | None = None,
        resume: bool = False,
        processes: Processes | None = None,
    ) -> None:
        check_type("model", model, nn.Module, "a torch module (llmrank.load(...).model loads one)")
        if progress is not None and not callable(progress):
            raise OptionError(f"progress must be a function such as rich.progress.track, or None, got {progress!r}")
        check_type("recipe", recipe, Recipe, "a Recipe; make_recipe of llmrank.pipeline.registry makes one from specs")
        if processes is not None:
            check_type("processes", processes, Processes, "Processes, or None")
        if work_directory is not None:
            check_type("work_directory", work_directory, (str, os.PathLike), "a path")
            if undoable or recipe.structure_dict is not None or recipe.form not in SMALLER:
                raise OptionError(
                    "a run with little memory takes no structure_dict, prunes into the form compact or padded, and cannot be "
                    "undone; leave structure_dict and form out, and pass undoable=False"
                )
            if recipe.heal is not None:
                raise OptionError(
                    "healing needs the models in memory; leave heal out, and heal the checkpoint with llmrank heal, against the "
                    "predictions that llmrank predict writes"
                )
        self.model, self.tokenizer = model, tokenizer
        self.recipe = replace(recipe, calibration=recipe.calibration.for_model(model, recipe.heal))
        self.undoable, self.resume = undoable, resume
        self.work_directory = None if work_directory is None else Path(work_directory)
        # A run with little memory brings blocks to the device one at a time; otherwise the model is moved there.
        parsed = None if device is None else parse_device(device)
        self._move_to = parsed if work_directory is None else None
        by_block = work_directory is not None and parsed is not None and parsed.type != "cpu"
        batch_size = recipe.calibration.batch_size
        self.execution = Execution(batch_size, progress, processes or Processes(), parsed if by_block else None)
        self.work: WorkDirectory | None = None
        self.plan: Plan | None = None
        self.application: AppliedMasks | None = None
        self.report: Report | None = None
        self._prepared: PreparedModel | None = None
        self._blocks: Sequence[nn.Module] = ()
        self._changed_for_good = False

    def find(self) -> PreparedModel:
        """Find the FFNs, and move the model to the device if one is set; see :func:`llmrank.pipeline.stages.find`."""
        return stages.find(self.model, self.tokenizer, self.recipe, self.execution, self._move_to)

    def prepare(self) -> PreparedModel:
        """Find the FFNs, and check that the recipe fits them.

        The result is kept, so that :meth:`run` need not do it again.

        Raises
        ------
        LLMRankError
            The model has no FFNs that can be pruned, or the recipe does not fit it.
        """
        if self._prepared is None:
            prepared = self.find()
            stages.check(prepared, self.recipe)
            self._prepared = prepared
        return self._prepared

    def run(self, watch: Stopwatch | None = None) -> nn.Module:
        """Prune the model and return it.

        Parameters
        ----------
        watch : Stopwatch, optional
            Adds up the seconds of every stage, and the report shows all that it holds; by default a new one.

        Raises
        ------
        LLMRankError, graphs.GraphError
            Bad options, data or models, or a second run without :meth:`undo` in between. The weights are unchanged if the
            run is undoable, or if the error comes before the end of the repair and before any mask is applied.
        """
        if self._changed_for_good:
            raise OptionError("this run has changed its model for good; load the model again, and make another run")
        if self.application is not None:
            raise OptionError("this run has pruned its model already; call undo() first, or make another run")
        # Processes that were given are kept, unless a launcher has started others.
        if self.execution.processes.count > 1 or launched_processes()[1] == 1:
            return self._run(self.execution, watch or Stopwatch())
        with join_processes() as processes:
            return self._run(replace(self.execution, processes=processes), watch or Stopwatch())

    def _run(self, execution: Execution, watch: Stopwatch) -> nn.Module:
        recipe = self.recipe
        _check_processes(self.model, recipe, execution.processes.count, by_block=self.work_directory is not None)
        self.plan = self.report = None
        with watch.timed("find"), execution.step("Finding FFNs"):
            prepared = self.prepare()
        self._prepared, self._blocks = None, prepared.blocks
        kinds = ", ".join(sorted({ffn.kind for ffn in prepared.ffns}))
        n_neurons = sum(prepared.ffns.sizes.values())
        logger.info("found %d FFNs (%s) with %d neurons", len(prepared.ffns), kinds, n_neurons)
        with watch.timed("evaluate before"):
            evaluation, text = stages.evaluate(prepared, recipe, execution)
        with watch.timed("calibrate"):
            tokens = stages.calibration_tokens(prepared, recipe, execution)
            execution = self.with_work_directory(prepared, tokens, execution)
            # The text is made before anything is changed, so that a bad one leaves the model as it was.
            to_learn = None if recipe.heal is None else self._tokens_to_learn(recipe.heal, tokens, execution)
        dense = None if to_learn is None else copy.deepcopy(self.model)
        selection = select(prepared, recipe, tokens, execution, watch, undoable=self.undoable)
        self._changed_for_good = selection.overwrote
        self.plan = make_plan(prepared, recipe, tokens, execution, selection, keeps_graphs=self.undoable)
        del selection  # its graphs may hold the last references to old weights
        try:
            with watch.timed("apply"), execution.step("Applying the masks"):
                expected, self.application = self._apply(
                    prepared.ffns, self.plan.selection, tokens.sequences, execution
                )
            if not self.undoable:  # so that no second set of weights stays in memory
                self.plan = replace(self.plan, selection=replace(self.plan.selection, repaired={}))
            if expected is not None:
                checking = execution.step("Checking the pruned model")
                with watch.timed("check"), checking, self.onloaded():
                    check_equivalence(self.model, expected, tokens.sequences)
            with watch.timed("heal"):
                healing = None
                if dense is not None and to_learn is not None and recipe.heal is not None:
                    if self.undoable:
                        self.application.keep_parameters(self.model)
                    learned, notes = to_learn
                    healing = heal_model(self.model, DenseModel(dense), learned, recipe.heal, execution, notes=notes)
                del dense
            with watch.timed("evaluate after"):
                if evaluation is not None and text is not None:
                    evaluation.after = stages.perplexity_of(prepared, text, execution, "Evaluating the pruned model")
                    read = tokens.known.joined(tokens.other).joined(None if to_learn is None else to_learn[0].sequences)
                    evaluation.calibration_overlap = shared_passages(read, text)
            left_out = self.application.masks.left_out(prepared.ffns.layers.values())
            size = model_size(self.model, prepared.ffns.without(left_out))
            report = self.plan.report
            neurons = {**report.neurons, "widths_with_padding": self.application.widths}
            seconds = dict(watch.seconds)
            self.report = replace(
                report, after=size, neurons=neurons, seconds=seconds, evaluation=evaluation, healing=healing
            )
        except BaseException:
            if self.undoable and self.application is not None:
                self.undo()
            raise
        return self.model

    def _apply(
        self, ffns: FFNs, selection: Selection, sequences: TokenSequences, execution: Execution
    ) -> tuple[torch.Tensor | None, AppliedMasks]:
        """Apply the masks; return with them what the smaller model must compute, or None in another form."""
        recipe, masks, repaired, expected = self.recipe, selection.masks, selection.repaired, None
        if recipe.form in SMALLER:
            with self.onloaded():
                expected = masked_outputs(self.model, ffns, masks, sequences, repaired)
        self._changed_for_good = not self.undoable
        store = None if execution.work is None else execution.work.copy_to_file
        return expected, apply_masks(
            self.model, ffns, masks, recipe.form, repaired, undoable=self.undoable, store=store
        )

    def _tokens_to_learn(
        self, settings: Distillation, tokens: CalibrationTokens, execution: Execution
    ) -> tuple[CalibrationTokens, list[str]]:
        """Make the sequences to heal on, apart from those that the repair will know, and check that the model can be healed."""
        check_predicts(self.model, "divergence")
        text = self.recipe.calibration
        assert isinstance(text, CalibrationText)
        progress = execution.progress
        return healing_tokens(text, settings.tokens, self.model, self.tokenizer, tokens.known, progress)

    def onloaded(self) -> AbstractContextManager[None]:
        """Let forward passes of the complete model compute on the device of the execution within the context."""
        return onloaded_by_block(self.model, self._blocks, self.execution.device)

    def with_work_directory(
        self, prepared: PreparedModel, tokens: CalibrationTokens, execution: Execution
    ) -> Execution:
        """Make or resume the work directory, if the run has one, and return the execution that uses it."""
        if self.work_directory is None:
            return execution
        self.work = open_work_directory(
            self.work_directory, prepared, self.recipe, tokens, execution, resume=self.resume
        )
        return replace(execution, work=self.work)

    def undo(self) -> nn.Module:
        """Restore the model as it was before :meth:`run`, bit for bit, but on `device`; refused unless `undoable`."""
        if self.application is None:
            raise OptionError("there is nothing to undo: run() has not pruned this model, or undo() has restored it")
        self.application.undo()
        self.application = None
        return self.model

    @property
    def masks(self) -> Masks | None:
        """After :meth:`run`: the keep masks, over all neurons of the dense model."""
        return None if self.plan is None else self.plan.selection.masks

    @property
    def ranks(self) -> tuple[RankResult, ...]:
        """After :meth:`run`: the rank of every graph."""
        return () if self.plan is None else self.plan.selection.ranked.ranks

    @property
    def model_graphs(self) -> tuple[ModelGraph, ...]:
        """After :meth:`run`: the graphs; empty if the run is not undoable."""
        return () if self.plan is None else self.plan.selection.ranked.graphs

    @property
    def graph(self) -> LayeredGraph | tuple[LayeredGraph, ...]:
        """The graph, or a tuple of graphs if there are several."""
        found = tuple(entry.graph for entry in self.model_graphs)
        return found[0] if len(found) == 1 else found

    @property
    def rank(self) -> RankResult | tuple[RankResult, ...]:
        """The rank of :attr:`graph`, or a tuple of ranks if there are several graphs."""
        return self.ranks[0] if len(self.ranks) == 1 else self.ranks


def _check_processes(model: nn.Module, recipe: Recipe, count: int, *, by_block: bool) -> None:
    """Refuse what several processes cannot do."""
    if count == 1:
        return
    if by_block:
        raise OptionError(
            f"a run with little memory keeps its files in one place, and {count} processes were started; start one process, "
            "or run without --low-memory and --resume (in Python: work_directory)"
        )
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise OptionError(
            f"{count} processes were started, and the model is spread over several devices, which only one process can "
            "use; start one process, or load the model on one device in each process"
        )
    if recipe.heal is not None:
        raise OptionError(
            f"a run heals in one process, and {count} were started; leave heal out, and heal the model afterwards (llmrank.heal, "
            "llmrank heal)"
        )
    text = recipe.calibration.source
    if recipe.calibration.n_sequences < count and (text is None or isinstance(text, (str, os.PathLike))):
        raise OptionError(
            f"{count} processes were started for {recipe.calibration.n_sequences} calibration sequences, and each needs one or "
            "more; start fewer processes, or give more sequences (--samples)"
        )
