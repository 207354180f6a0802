"""The stages of pruning, in their order: functions from values to values.

None of them writes to the model, except :func:`find` if it moves the model to a device, and :func:`repair` if it is told to
(`in_place`). :class:`llmrank.pipeline.pruning_run.PruningRun` calls :func:`find`, :func:`check`, :func:`evaluate` and
:func:`calibration_tokens`, and :func:`llmrank.pipeline.plan.select` calls the others.

Parameters of all stages
------------------------
prepared : PreparedModel
    What :func:`find` has returned.
recipe : Recipe
    What is done.
tokens : CalibrationTokens
    What :func:`calibration_tokens` has returned.
execution : Execution
    How it is computed. Its batch size counts, not that of the recipe's text.
ranked : RankedModel
    Graphs and their ranks, see :func:`llmrank.pipeline.plan.rank_model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from graphs import RankResult
from llmrank.calibration.collect import collect_statistics
from llmrank.calibration.collect_by_block import collect_by_block
from llmrank.calibration.statistics import FFNStatistics
from llmrank.errors import OptionError
from llmrank.evaluation.before_and_after import Evaluation
from llmrank.evaluation.perplexity import Perplexity, perplexity, unigram_perplexity
from llmrank.execution import Execution
from llmrank.execution.free_memory import spare_memory
from llmrank.execution.onloading import onloaded_by_block
from llmrank.execution.recording import Recording, blocks_of, broken_error, record_without_running
from llmrank.file_contents import refused_unless_sound
from llmrank.models import FFNs, explicit_ffns, find_ffns
from llmrank.models.checks import check_biases
from llmrank.models.costs import ModelCosts, Unit
from llmrank.models.finding.attention import find_attentions
from llmrank.models.forward import reached_by_tokens
from llmrank.pipeline.closeness.candidates import (
    FEWEST_TOKENS,
    Choice,
    pieces,
    tokens_of_a_trial,
    try_candidates,
)
from llmrank.pipeline.closeness.distance import DenseReference
from llmrank.pipeline.closeness.loss_curves import LossCurves, measure_loss_curves
from llmrank.pipeline.closeness.removal import losses_of_blocks
from llmrank.pipeline.closeness.repair_validation import Validation, repair_where_it_helps
from llmrank.pipeline.closeness.sensitivity import first_sequences, layer_sensitivities
from llmrank.pipeline.descriptions import dtype_name
from llmrank.pipeline.recipe import Recipe
from llmrank.prune import GlobalPruner, LeastLossPruner, LocalPruner, SensitivityPruner
from llmrank.prune.amounts import protected_names
from llmrank.prune.budget import check_budget
from llmrank.prune.masks import Masks
from llmrank.prune.records.layer_record import Sensitivity
from llmrank.prune.records.units import TARGETS, check_targets, find_units, names_in_order, units_of
from llmrank.prune.selection import ROUND_OFF, Reselection, choose_masks, moved_against
from llmrank.repair import RepairedMap
from llmrank.score import BaseScorer, ExpertScorer
from llmrank.score.model_graph import ModelGraph
from llmrank.score.rank_graphs import rank_graphs
from llmrank.score.topologies import build_graphs
from llmrank.surgery.apply import check_writable
from llmrank.surgery.heads import check_heads
from llmrank.surgery.widths import check_padding
from llmrank.text import CalibrationTokens, TokenSequences
from llmrank.text.other_text import held_out_other_text

__all__ = [
    "PreparedModel",
    "RankedModel",
    "build",
    "calibrate",
    "calibration_tokens",
    "check",
    "choose",
    "choose_scorer",
    "close_decisions",
    "evaluate",
    "find",
    "measure_sensitivities",
    "memory_of_outputs",
    "perplexity_of",
    "rank",
    "record",
    "repair",
    "trial_masks",
]


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """A model with its FFNs, which fit a recipe.

    Attributes
    ----------
    model : nn.Module
    tokenizer : transformers tokenizer or None
    ffns : FFNs
        Those that text reaches.
    costs : ModelCosts
    not_reached : tuple of str
        The stacks whose FFNs no text reaches.
    without_heads : int
        Number of blocks in which no attention was found, if heads are to be removed.
    blocks : tuple of nn.Module
        The blocks that a run brings to its device one at a time; empty if the model computes where it is.
    """

    model: nn.Module
    tokenizer: Any
    ffns: FFNs
    costs: ModelCosts
    not_reached: tuple[str, ...] = ()
    without_heads: int = 0
    blocks: tuple[nn.Module, ...] = ()

    def onloaded(self, execution: Execution) -> AbstractContextManager[None]:
        """Let forward passes of the complete model compute on the device of the execution within the context."""
        return onloaded_by_block(self.model, self.blocks, execution.device)


@dataclass(frozen=True, eq=False)
class RankedModel:
    """The graphs of a model, and their ranks by the scorer that was chosen.

    Attributes
    ----------
    graphs : tuple of ModelGraph
        They hold the weights that they were built from.
    ranks : tuple of RankResult
        One for each graph.
    scorer : BaseScorer
    choice : Choice or None
        The trials that the scorer was chosen by, if there was a choice.
    """

    graphs: tuple[ModelGraph, ...]
    ranks: tuple[RankResult, ...]
    scorer: BaseScorer
    choice: Choice | None = None

    def importance(self) -> dict[str, torch.Tensor]:
        """Return the scores of the neurons of every prunable layer, by its name."""
        pairs = zip(self.graphs, self.ranks, strict=True)
        return {name: scores for graph, ranked in pairs for name, scores in graph.importance(ranked).items()}


def find(
    model: nn.Module, tokenizer: Any, recipe: Recipe, execution: Execution, move_to: torch.device | None = None
) -> PreparedModel:
    """Find the FFNs that text reaches, and refuse a model that cannot be written to or does not fit the execution.

    Parameters
    ----------
    model : nn.Module
    tokenizer : transformers tokenizer or None
    recipe : Recipe
    execution : Execution
    move_to : torch.device, optional
        The device that the complete model is moved to.

    Raises
    ------
    LLMRankError
        The model has no FFNs that can be pruned, or they cannot be written to.
    """
    structure = recipe.structure_dict
    ffns = find_ffns(model) if structure is None else explicit_ffns(model, structure)
    check_writable(ffns)  # checked now, because an error after hours of calibration would come too late
    if move_to is not None:
        placed = getattr(model, "hf_device_map", None) or {}
        if len(set(placed.values())) > 1 or any(parameter.is_meta for parameter in model.parameters()):
            raise OptionError(
                f"device={str(move_to)!r} would move the whole model, but it is spread over several devices or partly "
                "offloaded; leave device out: the model is run where its parts are"
            )
        model.to(move_to)
    reached = reached_by_tokens(model, ffns)
    not_reached = {ffn.stack for ffn in ffns} - {ffn.stack for ffn in reached}
    blocks: list[nn.Module] = []
    if execution.device is not None:
        blocks = blocks_of(model, reached)
        if not blocks:
            raise broken_error(model)
    if recipe.attention and "heads" not in recipe.targets:
        find_attentions(model, reached)  # raises an error for attentions that cannot be edges
    found = find_units(model, reached, recipe.targets)
    without_heads = len({ffn.block for ffn in reached}) - len(found.attentions) if found.attentions else 0
    return PreparedModel(
        model, tokenizer, found, ModelCosts(model, found), tuple(sorted(not_reached)), without_heads, tuple(blocks)
    )


def check(prepared: PreparedModel, recipe: Recipe) -> None:
    """Refuse a recipe that does not fit the model, such as an impossible amount, before anything is measured."""
    ffns = prepared.ffns
    check_targets(recipe.targets, ffns)
    check_heads(prepared.model, ffns)
    of_experts = [each for each in recipe.candidates if isinstance(each, ExpertScorer)]
    if of_experts and recipe.targets != ("experts",):
        raise OptionError(
            f"{type(of_experts[0]).__name__} scores whole experts, so it does not tell their neurons apart; expected "
            "targets='experts' (--targets experts), or a scorer of neurons such as wpr"
        )
    if recipe.repair is not None and recipe.repair.needs_bias:
        check_biases(prepared.model, ffns)
    check_budget(recipe.pruner, ffns, prepared.costs, jointly=recipe.jointly, targets=recipe.targets)
    if recipe.form == "padded":
        check_padding(ffns)


def evaluate(
    prepared: PreparedModel, recipe: Recipe, execution: Execution
) -> tuple[Evaluation | None, TokenSequences | None]:
    """Measure the perplexity of the dense model, and return it with its sequences; (None, None) without a text."""
    source, length = recipe.evaluation, recipe.calibration.sequence_length
    if source is None:
        return None, None
    model, tokenizer = prepared.model, prepared.tokenizer
    texts = execution.processes.from_one(lambda: source.sequences(model, tokenizer, length))
    before = perplexity_of(prepared, texts, execution, "Evaluating the dense model")
    protocol = {**texts.provenance(), "dtype": dtype_name(model), "torch_seed": torch.initial_seed()}
    return Evaluation(protocol, before, unigram=unigram_perplexity(texts)), texts


def perplexity_of(prepared: PreparedModel, texts: TokenSequences, execution: Execution, description: str) -> Perplexity:
    """Measure the perplexity of the model in its present state."""
    with prepared.onloaded(execution):
        return perplexity(prepared.model, texts, execution, description)


def calibration_tokens(
    prepared: PreparedModel, recipe: Recipe, execution: Execution, *, hold_out: bool | None = None
) -> CalibrationTokens:
    """Make the calibration sequences, and those to hold out; see :meth:`llmrank.pipeline.CalibrationText.sequences`.

    If sequences are held out, by default as the recipe asks, so are some of another kind of text. Of several processes, one makes
    the sequences for all.
    """
    holds_out = recipe.holds_out if hold_out is None else hold_out

    def make() -> CalibrationTokens:
        model, tokenizer = prepared.model, prepared.tokenizer
        made = recipe.calibration.sequences(model, tokenizer, hold_out=holds_out, progress=execution.steps)
        if not holds_out or made.other is not None:
            return made
        return made._replace(other=held_out_other_text(made.sequences, tokenizer))

    tokens = execution.processes.from_one(make)
    execution.processes.check_batches(tokens.sequences, execution.batch_size)
    return tokens


def calibrate(
    prepared: PreparedModel, recipe: Recipe, tokens: CalibrationTokens, execution: Execution
) -> tuple[FFNStatistics, ...]:
    """Collect statistics of every layer of nodes, or return those of a ranking."""
    model, ffns = prepared.model, prepared.ffns
    if recipe.calibration.ranking is not None:
        return recipe.calibration.ranking.statistics_of(model, ffns)
    attentions = find_attentions(model, ffns) if recipe.attention and "heads" not in recipe.targets else None
    collect = collect_statistics if execution.work is None else collect_by_block
    return collect(model, ffns, tokens.sequences, execution, skips=recipe.measures_skips, attentions=attentions)


def record(prepared: PreparedModel, tokens: CalibrationTokens, execution: Execution) -> Recording:
    """Record how the model calls its blocks, for a repair, without running the blocks; see :func:`record_without_running`."""
    batches = [batch for text in tokens.parts if text is not None for batch in execution.batches(text)]
    # With a work directory, the calibration has already checked that the blocks can be called one by one.
    return record_without_running(prepared.model, prepared.ffns, batches, repeat=execution.work is None)


def memory_of_outputs(prepared: PreparedModel, tokens: CalibrationTokens, execution: Execution) -> int:
    """Return how many bytes all that the blocks return takes, which saves a repair a pass; 0 if there is no room for so much."""
    last_map = prepared.ffns[0].stages[-1][0]
    n_tokens = sum(execution.share(text).ids.shape[:2].numel() for text in tokens.parts if text is not None)
    n_numbers = len(blocks_of(prepared.model, prepared.ffns)) * n_tokens * last_map.size
    needed = n_numbers * last_map.weight.itemsize
    return needed if needed <= spare_memory(prepared.model, execution) else 0


def build(prepared: PreparedModel, recipe: Recipe, statistics: Sequence[FFNStatistics]) -> tuple[ModelGraph, ...]:
    """Build the graphs in the topology of the recipe."""
    if recipe.topology == "residual" and not recipe.attention:
        statistics = [replace(entry, attention=None) for entry in statistics]
    beta = None if recipe.topology != "residual" or recipe.beta == "measured" else recipe.beta
    return build_graphs(prepared.ffns, statistics, recipe.topology, beta)


def rank(scorer: BaseScorer, graphs: Sequence[ModelGraph], execution: Execution) -> tuple[RankResult, ...]:
    """Rank every graph."""
    return rank_graphs(scorer, execution.steps(graphs, "Ranking"))


def choose_scorer(
    prepared: PreparedModel,
    recipe: Recipe,
    graphs: Sequence[ModelGraph],
    tokens: CalibrationTokens,
    execution: Execution,
) -> Choice | None:
    """Try the candidates on held-out tokens and on text of another kind, see :mod:`llmrank.pipeline.closeness.candidates`.

    Each cut is that of the recipe's pruner, or that of :func:`trial_masks` if the pruner needs sensitivities. Return None if
    there is only one candidate, or nothing was held out. A run with little memory notes the choice, and does not try again.
    """
    held_out = tokens.held_out_of_kind
    if len(recipe.candidates) == 1 or held_out is None:
        return None
    work = execution.work
    noted = None if work is None else work.progress("choice")
    if work is not None and noted is not None:
        with refused_unless_sound(f"the choice noted in {work.path}", "delete that directory, and start again"):
            return Choice.of_note(noted, [each.label() for each in recipe.candidates])
    masks = {}
    for each in execution.steps(recipe.candidates, "Ranking by every candidate"):
        ranked = RankedModel(tuple(graphs), rank_graphs(each, graphs), each)
        cut = (trial_masks if recipe.pruner.needs_sensitivity else choose)(prepared, recipe, ranked)
        masks[each.label()] = Masks(execution.processes.first(dict(cut)))
    count = tokens_of_a_trial(tokens.sequences.n_tokens, len(recipe.candidates))
    choice = try_candidates(
        prepared.model,
        prepared.ffns,
        masks,
        pieces(held_out, count, tokens.sequences),
        None if tokens.other is None else pieces(tokens.other, count, tokens.sequences),
        # With weights on disk, every pass reads all of them, so there is one pass for each text.
        max(execution.batch_size * tokens.sequences.length, FEWEST_TOKENS) if work is None else 2 * count,
        execution,
    )
    if work is not None:
        work.note("choice", choice.to_dict())
    return choice


def trial_masks(prepared: PreparedModel, recipe: Recipe, ranked: RankedModel) -> Masks:
    """Choose masks for a trial: those of a :class:`LocalPruner` with the recipe's amount; of neurons and experts only neurons."""
    pruner, found = recipe.pruner, Masks.full(prepared.ffns.sizes)
    layers, parts = prepared.ffns.layers.values(), pruner.parts(recipe.trial_targets)
    protected = protected_names(pruner.protect, names_in_order(layers, parts))
    for part in parts:
        # A share of few units may be none, and a trial of none would say nothing.
        amount, amount_of = pruner.amount, pruner.amount_of
        units = units_of(layers, part[0]) if len(part) == 1 else []
        if units and all(each.has_few and _removes_none(amount, amount_of, each.n_units) for each in units):
            amount, amount_of = 1, "neurons"
        staying = {each.name for each in units if each.min_keep == each.n_units}
        own = tuple(name for name in names_in_order(layers, [part]) if name in protected | staying)
        trial = LocalPruner(amount, pruner.min_keep, pruner.multiple_of, protect=own, amount_of=amount_of)
        found &= choose_masks(trial, ranked.graphs, ranked.ranks, jointly=True, costs=prepared.costs, targets=part)
    return found


def _removes_none(amount: float | int, amount_of: Unit, n_units: int) -> bool:
    """Whether an amount removes less than half of a unit of a layer, or that is not known of a single unit."""
    if n_units == 1:
        return True
    return amount_of == "neurons" and isinstance(amount, float) and round(amount * n_units) == 0


def measure_sensitivities(
    prepared: PreparedModel, recipe: Recipe, ranked: RankedModel, tokens: CalibrationTokens, execution: Execution
) -> Mapping[str, Sensitivity]:
    """Measure the sensitivity of every prunable layer; return an empty dict if the pruner needs none.

    One layer at a time is pruned as in :func:`trial_masks`, see
    :func:`llmrank.pipeline.closeness.sensitivity.layer_sensitivities`. Units whose losses do not add up are removed in turn, see
    :mod:`llmrank.pipeline.closeness.removal`. A pruner that needs losses at several shares gets
    :class:`llmrank.pipeline.closeness.loss_curves.LossCurves`.
    """
    if not recipe.pruner.needs_sensitivity:
        return {}
    if recipe.pruner.shares_measured:
        return measure_losses(prepared, recipe, ranked, tokens, execution)
    ffns, masks = prepared.ffns, trial_masks(prepared, recipe, ranked)
    layers, targets = ffns.layers.values(), recipe.trial_targets
    units = [each for target in targets for each in units_of(layers, target)]
    groups = {each.name: each.layers for each in units}
    with prepared.onloaded(execution):
        alone = layer_sensitivities(prepared.model, ffns, masks, tokens.sequences, execution, groups=groups)
    if all(each.losses_add_up for each in units):
        return alone
    with execution.step("Removing blocks in turn"):
        reference = DenseReference(prepared.model, ffns, first_sequences(tokens.sequences), execution)
        return losses_of_blocks(reference, prepared.model, ffns, masks, alone, recipe.pruner, prepared.costs)


def measure_losses(
    prepared: PreparedModel, recipe: Recipe, ranked: RankedModel, tokens: CalibrationTokens, execution: Execution
) -> LossCurves:
    """Return the loss curves of all layers for the shares of the pruner: those of the ranking if it has them, or measured ones.

    They are measured on sequences that are held out from a repair, in turn one of the calibration's kind and one of other text.
    """
    ranking, shares = recipe.calibration.ranking, recipe.pruner.shares_measured
    kept = None if ranking is None else ranking.losses(settings_of_losses(recipe, ranked))
    if kept is not None:
        return kept
    held_out, other = tokens.held_out_of_kind, tokens.other
    sequences = tokens.sequences if held_out is None else held_out
    if held_out is not None and other is not None:
        n = min(len(held_out), len(other))
        sequences = held_out.joined(other.spread(n)).ordered(
            [k for pair in range(n) for k in (pair, len(held_out) + pair)]
        )
    with prepared.onloaded(execution):
        return measure_loss_curves(
            prepared.model,
            prepared.ffns,
            ranked.graphs,
            ranked.ranks,
            recipe.trial_targets,
            shares,
            sequences,
            execution,
        )


def settings_of_losses(recipe: Recipe, ranked: RankedModel) -> dict[str, Any]:
    """Return what loss curves depend on besides the model and the text, as values for JSON."""
    return {
        "scorer": ranked.scorer.label(),
        "pipeline": recipe.topology,
        "beta": recipe.beta,
        "targets": sorted(recipe.targets, key=TARGETS.index),
        "shares": list(recipe.pruner.shares_measured),
    }


def choose(
    prepared: PreparedModel,
    recipe: Recipe,
    ranked: RankedModel,
    sensitivities: Mapping[str, Sensitivity] | None = None,
) -> Masks:
    """Choose the keep masks of all prunable layers."""
    return choose_masks(
        recipe.pruner,
        ranked.graphs,
        ranked.ranks,
        jointly=recipe.jointly,
        sensitivities=sensitivities,
        costs=prepared.costs,
        targets=recipe.targets,
    )


def close_decisions(
    prepared: PreparedModel,
    recipe: Recipe,
    ranked: RankedModel,
    masks: Masks,
    sensitivities: Mapping[str, Sensitivity] | None = None,
) -> dict[str, Any] | None:
    """Count the neurons whose masks would differ if round-off moved every score against them.

    Return the count, and by what share of it each score was moved, see :mod:`llmrank.prune.selection.close_decisions`; None for
    blocks, which are not chosen by scores, and for pruners of others, which may not expect a second call. Sensitivities are not
    moved, and what a repair chooses again is not counted.
    """
    if "blocks" in recipe.targets or type(recipe.pruner) not in (
        LocalPruner,
        GlobalPruner,
        SensitivityPruner,
        LeastLossPruner,
    ):
        return None
    share = max(ROUND_OFF.get(parameter.dtype, 0.0) for parameter in prepared.model.parameters())
    moved = replace(ranked, ranks=moved_against(ranked.graphs, ranked.ranks, masks, share))
    again = choose(prepared, recipe, moved, sensitivities)
    return {"neurons": sum(int((masks[name] != again[name]).sum()) for name in masks), "round_off": share}


def repair(
    prepared: PreparedModel,
    recipe: Recipe,
    masks: Masks,
    tokens: CalibrationTokens,
    recording: Recording,
    choose_again: Reselection,
    execution: Execution,
    *,
    in_place: bool = False,
) -> tuple[Masks, dict[str, RepairedMap], Validation | None]:
    """Repair the output maps of the FFNs; return the keep masks, the repaired maps and the validation.

    If the repair does not improve the model on the held-out tokens, the masks are those that were passed in, and no map is
    repaired. See :func:`llmrank.pipeline.closeness.repair_validation.repair_where_it_helps`, also for `in_place`.
    """
    if recipe.repair is None:
        return masks, {}, None
    return repair_where_it_helps(
        prepared.model,
        prepared.ffns,
        masks,
        recipe.repair,
        tokens.parts,
        recording,
        execution,
        choose_again,
        in_place=in_place,
    )
