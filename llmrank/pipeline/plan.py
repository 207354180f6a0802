"""What to remove from a model, and what its output maps become: all stages before the masks are applied."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmrank.calibration.statistics import FFNStatistics
from llmrank.errors import OptionError
from llmrank.evaluation.perplexity import model_size
from llmrank.execution import Execution
from llmrank.execution.json_files import json_safe
from llmrank.execution.recording import Recording, recording
from llmrank.execution.work_directory import WorkDirectory
from llmrank.models import FFNs
from llmrank.models.digest import weights_digest
from llmrank.models.forward import run_sequences
from llmrank.pipeline import stages
from llmrank.pipeline.closeness.loss_curves import LossCurves, removed_units
from llmrank.pipeline.closeness.repair_validation import Validation
from llmrank.pipeline.descriptions import describe_graphs, describe_model, describe_neurons, model_source
from llmrank.pipeline.notes import choice_notes, repair_notes, warning_of_few_tokens
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.report import Report
from llmrank.pipeline.stages import PreparedModel, RankedModel
from llmrank.pipeline.stopwatch import Stopwatch
from llmrank.prune.budget import budget_notes, reached_amounts
from llmrank.prune.masks import Masks
from llmrank.prune.records.layer_record import Sensitivity
from llmrank.prune.records.units import units_of_part
from llmrank.prune.selection import Reselection
from llmrank.repair import RepairedMap, repair_summary
from llmrank.text import CalibrationTokens

__all__ = ["Plan", "Selection", "make_plan", "open_work_directory", "rank_model", "select", "selection_notes"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Selection:
    """What was chosen to be removed.

    Attributes
    ----------
    masks : Masks
    repaired : dict from str to RepairedMap
        The repaired output maps, by the path of the module.
    validation : Validation or None
    ranked : RankedModel
        The graphs and ranks of the dense model.
    sensitivities : dict from str to float
    close : dict or None
        How many decisions were close, see :func:`llmrank.pipeline.stages.close_decisions`.
    overwrote : bool
        Whether the repaired weights are in the model already.
    """

    masks: Masks
    repaired: dict[str, RepairedMap]
    validation: Validation | None
    ranked: RankedModel
    sensitivities: Mapping[str, Sensitivity]
    close: dict[str, Any] | None = None
    overwrote: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """All that a run has found out before it changes the model.

    Attributes
    ----------
    tokens : CalibrationTokens
    selection : Selection
    report : Report
        It lacks what only the pruned model can tell.
    """

    tokens: CalibrationTokens
    selection: Selection
    report: Report


def rank_model(
    prepared: PreparedModel,
    recipe: Recipe,
    statistics: tuple[FFNStatistics, ...],
    tokens: CalibrationTokens,
    execution: Execution,
    watch: Stopwatch | None = None,
) -> RankedModel:
    """Build the graphs, choose a scorer and rank by it.

    Parameters
    ----------
    prepared, recipe, statistics, tokens, execution
        See :mod:`llmrank.pipeline.stages`.
    watch : Stopwatch, optional
    """
    watch = watch or Stopwatch()
    with watch.timed("rank"):
        graphs = stages.build(prepared, recipe, statistics)
    with watch.timed("choose"):
        choice = stages.choose_scorer(prepared, recipe, graphs, tokens, execution)
    scorer = recipe.chosen_scorer(choice)
    with watch.timed("rank"):
        ranks = stages.rank(scorer, graphs, execution)
    return RankedModel(graphs, ranks, scorer, choice)


def select(
    prepared: PreparedModel,
    recipe: Recipe,
    tokens: CalibrationTokens,
    execution: Execution,
    watch: Stopwatch | None = None,
    *,
    undoable: bool = True,
) -> Selection:
    """Rank a model, choose what to remove, and repair the rest.

    Parameters
    ----------
    prepared, recipe, tokens, execution
        See :mod:`llmrank.pipeline.stages`.
    watch : Stopwatch, optional
    undoable : bool
        Leave the model as it is. Otherwise repaired weights are written into the model as soon as they are solved. The exception
        is a repair that chooses the neurons of later layers anew by the dense weights of earlier ones.
    """
    watch = watch or Stopwatch()
    # Before the repair, which may change the weights in place. Offloaded weights cannot be read.
    digest = ""
    with suppress(OptionError):
        digest = weights_digest(prepared.model)
    with watch.timed("calibrate"):
        statistics, record = _calibrate_and_record(prepared, recipe, tokens, execution)
    ranked = rank_model(prepared, recipe, statistics, tokens, execution, watch)
    with watch.timed("measure"):
        sensitivities = stages.measure_sensitivities(prepared, recipe, ranked, tokens, execution)
    with watch.timed("prune"):
        chosen = stages.choose(prepared, recipe, ranked, sensitivities)
        masks = Masks(execution.processes.first(dict(chosen)))
        close = stages.close_decisions(prepared, recipe, ranked, masks, sensitivities)
    repaired: dict[str, RepairedMap] = {}
    validation, in_place = None, False
    if recipe.repair is not None:
        record.keeps_states = False
        again = Reselection(ranked.scorer, ranked.graphs)
        in_place = not (undoable or (recipe.repair.reselects and again.reads_earlier_layers))
        with watch.timed("repair"):
            masks, repaired, validation = stages.repair(
                prepared, recipe, masks, tokens, record, again, execution, in_place=in_place
            )
    return Selection(
        Masks(masks, digest), repaired, validation, ranked, sensitivities, close, in_place and bool(repaired)
    )


def _calibrate_and_record(
    prepared: PreparedModel, recipe: Recipe, tokens: CalibrationTokens, execution: Execution
) -> tuple[tuple[FFNStatistics, ...], Recording]:
    """Calibrate, and record for a repair how the model calls its blocks: in one pass, if that is a pass of the complete model."""
    if recipe.repair is None:
        return stages.calibrate(prepared, recipe, tokens, execution), Recording([])
    if execution.work is not None or recipe.calibration.ranking is not None:
        statistics = stages.calibrate(prepared, recipe, tokens, execution)
        return statistics, stages.record(prepared, tokens, execution)
    method, memory = recipe.repair, 0
    if method.needs_dense_stream and not method.reselects:
        memory = stages.memory_of_outputs(prepared, tokens, execution)
    with recording(prepared.model, prepared.ffns, memory) as record:
        statistics = stages.calibrate(prepared, recipe, tokens, execution)
        further = None if tokens.held_out is None else tokens.parts[1]
        if record.blocks and further is not None:
            run_sequences(prepared.model, prepared.ffns, execution.batches(further))
    return statistics, record


def open_work_directory(
    directory: Path,
    prepared: PreparedModel,
    recipe: Recipe,
    tokens: CalibrationTokens,
    execution: Execution,
    *,
    resume: bool,
) -> WorkDirectory:
    """Make or resume a work directory. It belongs to this model, these texts and settings."""
    model = prepared.model
    devices = sorted({parameter.device.type for parameter in model.parameters()} - {"cpu"})
    if devices:
        raise OptionError(
            f"a run with little memory leaves the weights on the CPU, and parts of the model are on {', '.join(devices)}; "
            "load it on the CPU and give device= to the run, or leave work_directory out"
        )
    run = {
        "model": model_source(model),
        "weights": weights_digest(model),
        "calibration": tokens.sequences.provenance(),
        "held_out": None if tokens.held_out is None else tokens.held_out.provenance(),
        "other": None if tokens.other is None else tokens.other.digest,
        "batch_size": execution.batch_size,
        "device": str(execution.device or "cpu"),  # because rounding differs between devices
        **recipe.settings(),
    }
    return WorkDirectory(directory, json_safe(run), resume=resume)


def selection_notes(
    prepared: PreparedModel, recipe: Recipe, selection: Selection, tokens: CalibrationTokens
) -> list[str]:
    """Return what a reader must know of the choice of a scorer, and of the repair."""
    removed = None if prepared.ffns.attentions else selection.masks.removed_share
    too_few = warning_of_few_tokens(prepared, recipe, tokens.parts[0].n_tokens)
    return [
        *choice_notes(recipe.candidates, selection.ranked.choice, removed),
        *repair_notes(recipe.repair, selection.validation, too_few, repaired=bool(selection.repaired)),
    ]


def make_plan(
    prepared: PreparedModel,
    recipe: Recipe,
    tokens: CalibrationTokens,
    execution: Execution,
    selection: Selection,
    *,
    keeps_graphs: bool = True,
) -> Plan:
    """Begin the report of a selection.

    Parameters
    ----------
    prepared, recipe, tokens, execution
        See :mod:`llmrank.pipeline.stages`.
    selection : Selection
        What :func:`select` has returned for them.
    keeps_graphs : bool
        Without its graphs, a plan does not keep the old weights in memory.
    """
    model, ffns, masks, ranked = prepared.model, prepared.ffns, selection.masks, selection.ranked
    size, reached = model_size(model, ffns), reached_amounts(masks, prepared.costs)
    device = {} if execution.device is None else {"device": str(execution.device)}
    held_out = tokens.parts[1]
    staying = [block.name for block in ffns.blocks if block.stays]
    neurons = describe_neurons(masks, recipe.pruner, ffns)
    notes = [
        *(f"no token reaches {stack}: its FFNs were left as they are" for stack in prepared.not_reached),
        *([f"heads were found in all blocks but {prepared.without_heads}"] if prepared.without_heads else []),
        *([f"these blocks cannot be left out: {', '.join(staying)}"] if staying else []),
        *budget_notes(recipe.pruner, reached, recipe.targets, neurons["share_reached"]),
        *selection_notes(prepared, recipe, selection, tokens),
        *(f"{each.names[entry.layer]}: {entry.reason}" for each in ranked.ranks for entry in each.degenerate),
    ]
    betas = {"beta": [entry.skip for entry in ranked.graphs]} if recipe.topology == "residual" else {}
    report = Report(
        model=describe_model(model, ffns) | device,
        method=recipe.settings(ranked.scorer) | betas,
        choice=None if ranked.choice is None else ranked.choice.to_dict(),
        calibration=tokens.sequences.provenance(),
        held_out=None if held_out is None else held_out.provenance(),
        graph=describe_graphs(ranked.graphs, ranked.ranks),
        neurons=neurons | {"close_decisions": selection.close},
        before=size,
        after=size,
        reached={str(unit): found for unit, found in reached.items()},
        **_measured(selection.sensitivities, masks, ffns, recipe),
        repaired=repair_summary(selection.repaired),
        validation=None if selection.validation is None else asdict(selection.validation),
        seconds={},
        execution=execution.describe(),
        notes=notes,
    )
    sentence = "ranked %(graphs)d graphs of %(nodes)d nodes by %(solver)s in %(iterations)d iterations"
    logger.info(f"{sentence}, error at most %(error_bound).1e", report.graph)
    if not keeps_graphs:
        selection = replace(selection, ranked=replace(ranked, graphs=()))
    return Plan(tokens, selection, report)


def _measured(sensitivities: Mapping[str, Sensitivity], masks: Masks, ffns: FFNs, recipe: Recipe) -> dict[str, Any]:
    """Return what was measured for the pruner, and what loss it expects, as fields of a report."""
    if not isinstance(sensitivities, LossCurves):
        return {"sensitivities": dict(sensitivities)}
    removed = removed_units(units_of_part(ffns.layers.values(), recipe.trial_targets), masks)
    return {"loss_curves": asdict(sensitivities) | {"expected": sensitivities.expected(removed)}}
