"""One model of a sweep: it is calibrated once, and then pruned, measured and restored for every row.

A row is one pruning experiment of the sweep: a pipeline, a scorer, a pruner, an amount and a repair.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

from graphs import RankResult
from graphs.io.replacement import hidden_directory, remove_leftovers
from llmrank.calibration.collect import collect_statistics
from llmrank.errors import OptionError, StructureError
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.greedy_decoding import check_continues
from llmrank.evaluation.items import Answers, answer_items
from llmrank.evaluation.lm_eval import LMEvalTasks
from llmrank.evaluation.perplexity import Perplexity, model_size, sequence_losses
from llmrank.execution import Execution
from llmrank.execution.json_files import json_safe
from llmrank.execution.recording import Recording
from llmrank.experiments.settings import RowSettings, SweepSettings
from llmrank.experiments.speed import measure_speed
from llmrank.file_contents import check_fields, refused_unless_sound
from llmrank.healing import DenseModel, Distillation, Healing, heal_model
from llmrank.models.digest import weights_digest
from llmrank.models.loading import LoadedModel
from llmrank.pipeline import stages
from llmrank.pipeline.closeness.candidates import Choice
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.pipeline.descriptions import environment, model_source
from llmrank.pipeline.heal import healing_tokens
from llmrank.pipeline.plan import Selection, selection_notes
from llmrank.pipeline.ranking import SETTINGS, Ranking
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.registry import make_recipe, make_repair, make_scorer
from llmrank.pipeline.stages import RankedModel
from llmrank.pipeline.texts import RankedText
from llmrank.progress import Progress
from llmrank.prune.records.layer_record import Sensitivity
from llmrank.prune.records.units import parse_targets
from llmrank.prune.selection import Reselection
from llmrank.repair import RepairedMap
from llmrank.score import AutoScorer
from llmrank.score.model_graph import ModelGraph
from llmrank.surgery.apply import AppliedMasks, apply_masks
from llmrank.surgery.atomic import atomic_directory
from llmrank.surgery.equivalence import check_equivalence, masked_outputs
from llmrank.text import CalibrationTokens, TokenSequences, shared_passages

__all__ = ["ModelStudy"]

# What a calibration holds only if the grid needs it, as the list "collected" of its settings names it. Repairs, and the choice of
# a scorer, need held-out tokens. Residual graphs need the shares of the residual stream that skip the blocks.
HELD_OUT, SKIPS = "held out", "skips"


class ModelStudy:
    """Prunes one model in many ways, and measures each.

    The statistics for all pipelines and scorers are collected in one pass of the calibration text, and kept in a directory. Rows
    share what depends on the same settings: the graphs of a pipeline, the ranks of a scorer on them, the sensitivities for an
    amount, and the record of how the model calls its blocks, which repairs need. Each repair takes its own second moments: a
    map is fitted to the inputs that it gets after the FFNs before it were pruned and repaired, and these differ from row to row.

    Parameters
    ----------
    loaded : LoadedModel
        Every method restores its model before it returns or raises an error.
    settings : SweepSettings
    tasks : LMEvalTasks or None
    directory : Path
        Where an earlier sweep has written the calibration, or where it will be written.
    progress : callable, optional
        Shows the progress of the calibration.

    Raises
    ------
    LLMRankError
        The model has no FFNs that can be pruned, a text does not fit it, or the calibration in `directory` is that of another
        model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: SweepSettings,
        tasks: LMEvalTasks | None,
        directory: Path,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._settings, self._tasks, self._items = settings, tasks, settings.asked_items
        if self._items:
            check_continues(self._model)
        self._prepared = stages.find(
            self._model, self._tokenizer, Recipe(targets=parse_targets(settings.targets)), Execution()
        )
        self._ffns = self._prepared.ffns
        self._weights_digest = weights_digest(self._model)
        ranking = self._find_calibration(directory, progress)
        self._calibration_text = RankedText(ranking, settings.calibration.batch_size)
        self._statistics = ranking.statistics_of(self._model, self._ffns)
        self._evaluation_sequences: TokenSequences = settings.evaluation.sequences(
            self._model, self._tokenizer, settings.calibration.sequence_length
        )
        self._graphs: dict[str, tuple[ModelGraph, ...]] = {}
        self._ranks: dict[tuple[str, str], tuple[RankResult, ...]] = {}
        self._choices: dict[RowSettings, Choice | None] = {}
        self._sensitivities: dict[RowSettings, Mapping[str, Sensitivity]] = {}

    def describe(self) -> dict[str, Any]:
        """Return what all rows of the model have in common."""
        sequences, held_out, _ = self._tokens
        return {
            "source": model_source(self._model),
            "weights": self._weights_digest,
            "calibration": sequences.provenance(),
            "held_out": None if held_out is None else held_out.provenance(),
            "evaluation": self._evaluation_sequences.provenance(),
            "calibration_overlap": self._overlap(),
            "versions": environment(),
        }

    def measure(
        self, row: RowSettings | None, dense: dict[str, Any] | None = None, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Prune the model as a row asks, measure it, and restore it bit for bit.

        Parameters
        ----------
        row : RowSettings or None
            How to prune the model; None measures the dense model.
        dense : dict, optional
            The results of the dense model, which the losses of this row are compared with.
        progress : callable, optional
            Shows the progress of each stage: the choice of a scorer, the repair, the evaluation.

        Returns
        -------
        dict
            The results, in values that JSON can hold.

        Raises
        ------
        LLMRankError, GraphError
            The row cannot be measured, for example because a layer cannot lose its amount.
        """
        begun = perf_counter()
        costs = self._prepared.costs
        if row is None:
            found: dict[str, Any] = {"removed": 0.0, "flops": costs.model.flops, **self._results(progress)}
            if self._settings.speed:
                speed = measure_speed(self._model, self._evaluation_sequences, self._calibration_text.batch_size)
                found["speed"] = replace(speed, ratio=1.0)
        else:
            pruned = self._prune(row, progress)
            dense_model = copy.deepcopy(self._model) if row.heal else None
            notes = selection_notes(self._prepared, self._recipe(row), pruned, self._tokens)
            outcome: dict[str, Any] = {"choice": pruned.ranked.choice, "validation": pruned.validation, "notes": notes}
            with self._applied(pruned, check=True) as application:
                if dense_model is not None:
                    healing, learned = self._heal(row, dense_model, application, progress)
                    outcome |= {"healing": healing.to_dict(), "notes": [*notes, *healing.warnings()]}
                    outcome["calibration_overlap"] = self._overlap(learned)
                del dense_model
                found = self._results(progress)
            flops = costs.model.flops - costs.removed_cost(pruned.masks.widths, "flops")
            found = {"removed": pruned.masks.removed_share, "flops": flops, **found, **outcome}
            if self._settings.speed:
                found["speed"] = measure_speed(
                    self._model,
                    self._evaluation_sequences,
                    self._calibration_text.batch_size,
                    lambda: self._applied(pruned, check=False),
                )
        if dense is not None:
            # A row in a file holds losses that are not finite as text.
            differences = [own - float(other) for own, other in zip(found["losses"], dense["losses"], strict=True)]
            found["difference"] = Estimate.of(differences, found["counts"])
            if self._items:
                right = dense.get("items", {}).get("right", ())
                if len(right) != len(self._items):
                    raise OptionError(
                        f"the row of the dense model has {len(right)} answers to {len(self._items)} items; measure it anew, in "
                        "another --output"
                    )
                own, other = (Answers(self._items, tuple(each)) for each in (found["items"]["right"], right))
                found["items"]["kept"] = own.kept(other)
        return dict(json_safe({**found, "seconds": round(perf_counter() - begun, 2)}))

    @cached_property
    def _tokens(self) -> CalibrationTokens:
        return stages.calibration_tokens(self._prepared, Recipe(calibration=self._calibration_text), Execution())

    @cached_property
    def _record(self) -> Recording:
        """The record of how the model calls its blocks on these sequences; the first repair adds what the blocks return."""
        execution = Execution(self._calibration_text.batch_size)
        record = stages.record(self._prepared, self._tokens, execution)
        record.memory = stages.memory_of_outputs(self._prepared, self._tokens, execution)
        return record

    def _find_calibration(self, directory: Path, progress: Progress | None) -> Ranking:
        """Return the calibration from the directory. It is made first if there is none, or if it lacks what the grid needs."""
        # The pipelines whose graphs need the shares of the residual stream that skip the blocks.
        with_skips = [name for name in self._settings.pipelines if make_recipe(name).measures_skips]
        needs = {SKIPS} if with_skips else set()
        repairs = any(make_repair(repair) is not None for repair in self._settings.repairs)
        if repairs or any(isinstance(make_scorer(scorer), AutoScorer) for scorer in self._settings.scorers):
            needs.add(HELD_OUT)
        pipeline = (*with_skips, *self._settings.pipelines)[0]
        # Of a sweep that was killed when its calibration was complete.
        remove_leftovers(directory.parent, directory.name)
        if (directory / SETTINGS).is_file():
            try:
                saved = Ranking.load(directory)
                with refused_unless_sound(directory / SETTINGS, "it is of no sweep"):
                    check_fields(saved.settings, {"collected": list})
            except OptionError as error:
                raise OptionError(
                    f"{error}. Delete {directory}, and repeat the command: it calibrates again"
                ) from error
            saved.statistics_of(self._model, self._ffns)  # raises if they are of another model
            has = set(saved.settings["collected"])
            if needs <= has:
                return saved
            needs |= has
            pipeline = pipeline if with_skips else saved.settings["pipeline"]
        self._calibrate(directory, needs, pipeline, progress)
        return Ranking.load(directory)

    def _calibrate(self, directory: Path, needs: set[str], pipeline: str, progress: Progress | None) -> None:
        """Collect the statistics of all FFNs in one pass, and keep them in the directory, in place of those that are there."""
        calibration = self._settings.calibration.for_model(self._model)
        execution = Execution(calibration.batch_size, progress)
        tokens = stages.calibration_tokens(
            self._prepared, Recipe(calibration=calibration), execution, hold_out=HELD_OUT in needs
        )
        # If the shares cannot be measured, other rows can be; those of residual graphs will raise this error again.
        collect = partial(collect_statistics, self._model, self._ffns, tokens.sequences, execution)
        try:
            statistics = collect(skips=SKIPS in needs)
        except StructureError:
            statistics, pipeline = collect(skips=False), DEFAULTS["pipeline"]
        about = {
            "model": model_source(self._model),
            "weights": self._weights_digest,
            "layers": self._ffns.sizes,
            "ffns": [ffn.name for ffn in self._ffns],
            "pipeline": pipeline,
            "scorer": self._settings.scorers[0],
            "calibration": tokens.sequences.provenance(),
            "collected": sorted(needs),
        }
        # Renamed, because a process that is killed while it deletes would leave a directory that is neither absent nor complete.
        with hidden_directory(directory.parent, directory.name) as aside:
            if directory.exists():
                directory.rename(aside / directory.name)
            with atomic_directory(directory) as place:
                Ranking(statistics, *tokens, about).save(place)

    def _recipe(self, row: RowSettings) -> Recipe:
        return make_recipe(
            row.pipeline,
            row.scorer,
            row.pruner,
            row.repair,
            amount=row.amount,
            amount_of=self._settings.amount_of,
            targets=self._settings.targets,
            calibration=self._calibration_text,
        )

    def _prune(self, row: RowSettings, progress: Progress | None) -> Selection:
        """Choose keep masks and compute the repair. Nothing is written to the model."""
        prepared, recipe, tokens = self._prepared, self._recipe(row), self._tokens
        execution = Execution(self._calibration_text.batch_size, progress)
        stages.check(prepared, recipe)
        if row.pipeline not in self._graphs:
            self._graphs[row.pipeline] = stages.build(prepared, recipe, self._statistics)
        graphs = self._graphs[row.pipeline]
        without_repair = replace(row, repair="none", heal=0)
        if without_repair not in self._choices:
            self._choices[without_repair] = stages.choose_scorer(prepared, recipe, graphs, tokens, execution)
        choice = self._choices[without_repair]
        scorer = recipe.chosen_scorer(choice)
        if (row.pipeline, scorer.label()) not in self._ranks:
            self._ranks[row.pipeline, scorer.label()] = stages.rank(scorer, graphs, execution)
        ranked = RankedModel(graphs, self._ranks[row.pipeline, scorer.label()], scorer, choice)
        # Losses at several shares do not depend on the amount.
        of_any_amount = replace(without_repair, amount=0, scorer=scorer.label())
        key = of_any_amount if recipe.pruner.shares_measured else without_repair
        if key not in self._sensitivities:
            self._sensitivities[key] = stages.measure_sensitivities(prepared, recipe, ranked, tokens, execution)
        sensitivities = self._sensitivities[key]
        masks = stages.choose(prepared, recipe, ranked, sensitivities)
        repaired: dict[str, RepairedMap] = {}
        validation = None
        if recipe.repair is not None:
            again = Reselection(scorer, graphs)
            masks, repaired, validation = stages.repair(prepared, recipe, masks, tokens, self._record, again, execution)
        return Selection(masks, repaired, validation, ranked, sensitivities)

    def _overlap(self, learned: TokenSequences | None = None) -> float:
        """Return the share of the evaluation passages that calibration, repair or healing have read."""
        read = self._tokens.known.joined(self._tokens.other)
        return shared_passages(read.joined(learned), self._evaluation_sequences)

    def _heal(
        self, row: RowSettings, dense: Any, application: AppliedMasks, progress: Progress | None
    ) -> tuple[Healing, TokenSequences]:
        """Heal the pruned model until the application is undone; return the sequences that it has learned from, too."""
        application.keep_parameters(self._model)
        text = self._settings.calibration.for_model(self._model)
        execution = Execution(text.batch_size, progress)
        settings, known = Distillation(row.heal), self._tokens.known
        tokens, notes = healing_tokens(text, row.heal, dense, self._tokenizer, known, progress)
        healing = heal_model(self._model, DenseModel(dense), tokens, settings, execution, notes=notes)
        return healing, tokens.sequences

    @contextmanager
    def _applied(self, pruned: Selection, *, check: bool) -> Iterator[AppliedMasks]:
        """Replace the model's FFNs by the pruned ones within the context.

        With `check`, raise an error if the outputs are not those of the masked model.
        """
        sequences = self._tokens.sequences
        expected = masked_outputs(self._model, self._ffns, pruned.masks, sequences, pruned.repaired) if check else None
        application = apply_masks(self._model, self._ffns, pruned.masks, repaired=pruned.repaired)
        try:
            if expected is not None:
                check_equivalence(self._model, expected, sequences)
            yield application
        finally:
            application.undo()

    def _results(self, progress: Progress | None) -> dict[str, Any]:
        """Measure the model in its present state, dense or pruned."""
        execution = Execution(self._calibration_text.batch_size, progress)
        losses, counts = sequence_losses(self._model, self._evaluation_sequences, execution)
        if not sum(counts):
            raise OptionError("the evaluation text predicts no token; give a longer text")
        parameters = model_size(self._model)
        found = {
            "perplexity": Perplexity.of(losses, counts).value,
            "losses": losses,
            "counts": counts,
            "parameters": parameters.parameters,
            "bytes": parameters.bytes,
        }
        if self._items:
            answers = answer_items(self._model, self._tokenizer, self._items, progress=progress)
            found["items"] = {"right": answers.right, "accuracy": answers.accuracy, "skipped": answers.skipped}
        if self._tasks is not None:
            with redirect_stdout(sys.stderr):  # lm-eval prints what it does
                documents = self._settings.documents
                found["tasks"] = self._tasks.run(self._model, self._tokenizer, documents, execution.batch_size)
        return found
