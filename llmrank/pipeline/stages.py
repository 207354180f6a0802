"""The stages of a pipeline as methods, which topologies and users can override."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from graphs import LayeredGraph, RankResult
from llmrank.calibration.collect import collect_statistics
from llmrank.calibration.collect_by_block import collect_by_block
from llmrank.calibration.statistics import FFNStatistics
from llmrank.errors import OptionError
from llmrank.execution import Execution, Processes
from llmrank.execution.onloading import onloaded_by_block
from llmrank.execution.recording import Recording, blocks_of, broken_error
from llmrank.execution.work_directory import WorkDirectory
from llmrank.models import FFNs, explicit_ffns, find_ffns
from llmrank.models.checks import check_expert_biases
from llmrank.models.costs import ModelCosts
from llmrank.models.forward import fitting_length, reached_by_tokens
from llmrank.models.loading import parse_device
from llmrank.pipeline.closeness.candidates import (
    FEWEST_TOKENS,
    Choice,
    other_text,
    pieces,
    tokens_of_a_trial,
    try_candidates,
)
from llmrank.pipeline.closeness.repair_validation import Validation, repair_where_it_helps
from llmrank.pipeline.closeness.sensitivity import layer_sensitivities
from llmrank.pipeline.option_checks import check_kinds, check_options
from llmrank.pipeline.report import Report, expected_widths, token_warning
from llmrank.pipeline.texts import CalibrationText, EvaluationText
from llmrank.progress import Progress
from llmrank.prune import BasePruner, LocalPruner
from llmrank.prune.budget import check_budget
from llmrank.prune.masks import Masks
from llmrank.prune.records.units import Target, check_targets, parse_targets, units_of
from llmrank.prune.schedule import ScheduleStep
from llmrank.prune.selection import Reselection, check_both, choose_masks, prunes_jointly
from llmrank.repair import BaseRepair, RepairedMap
from llmrank.repair.duration import repair_seconds
from llmrank.score import AutoScorer, BaseScorer, ExpertScorer
from llmrank.score.model_graph import ModelGraph, Topology, build_graphs
from llmrank.score.pagerank import default_scorer
from llmrank.score.rank_graphs import rank_graphs
from llmrank.surgery.apply import AppliedMasks, check_writable
from llmrank.surgery.forms import Form
from llmrank.surgery.widths import Align, check_padding
from llmrank.text import TokenSequences

__all__ = ["PipelineStages"]


class PipelineStages:
    """The options of a pipeline, and its stages; see :class:`llmrank.pipeline.BasePipeline`, which runs them."""

    topology: ClassVar[Topology]

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        structure_dict: Mapping[str, Any] | None = None,
        scorer: BaseScorer | None = None,
        pruner: BasePruner | None = None,
        device: str | torch.device | None = None,
        *,
        calibration: Any = None,
        form: Form | None = None,
        align: Align = "none",
        repair: BaseRepair | None = None,
        targets: str | Sequence[str] = "neurons",
        steps: int = 1,
        evaluation: Any = None,
        progress: Progress | None = None,
        undoable: bool = True,
        work_directory: str | os.PathLike[str] | None = None,
        resume: bool = False,
        processes: Processes | None = None,
    ) -> None:
        check_kinds(model, progress, work_directory)
        by_block = work_directory is not None
        check_options(structure_dict, scorer, pruner, form, align, repair, steps, by_block=by_block, undoable=undoable)
        self.model = model
        self.tokenizer = tokenizer
        self.structure_dict = structure_dict
        self.scorer = scorer or default_scorer(whole_ffns=structure_dict is None)
        self.pruner = pruner if pruner is not None else LocalPruner()
        self.device = None if device is None else parse_device(device)
        self.calibration = CalibrationText.of(calibration).for_model(model)
        if self.calibration.ranking is not None and steps != 1:
            raise OptionError(
                "a ranking is of the whole model, so it prunes in one step; leave steps out, or calibrate on text"
            )
        self.form: Form = form if form is not None else ("zero" if structure_dict is not None else "compact")
        self.align: Align = align
        self.repair = repair
        self.targets = parse_targets(targets)
        self.evaluation = EvaluationText.of(evaluation)
        self.progress = progress
        self.work_directory = None if work_directory is None else Path(work_directory)
        self.steps, self.undoable, self.resume = steps, undoable, resume
        self.processes = processes or Processes()
        self.work: WorkDirectory | None = None
        self.report: Report | None = None
        self.masks: Masks | None = None
        self.choice: Choice | None = None
        self.sensitivities: dict[str, float] = {}
        self.application: AppliedMasks | None = None
        self.model_graphs: tuple[ModelGraph, ...] = ()
        self.ranks: tuple[RankResult, ...] = ()
        self.repaired: dict[str, RepairedMap] = {}
        self.validation: Validation | None = None
        self.costs: ModelCosts | None = None
        self.step_results: list[ScheduleStep] = []
        self._prepared: tuple[FFNs, ModelCosts] | None = None
        self._not_reached: set[str] = set()
        self._blocks: list[nn.Module] = []
        self._changed_for_good = False
        self._seconds: dict[str, float] = {}

    def find(self) -> FFNs:
        """Return the FFNs of the model that text reaches, and move the model to the device if one is set.

        In a run with little memory the model stays where it is, see :attr:`block_device`.
        """
        structure = self.structure_dict
        ffns = find_ffns(self.model) if structure is None else explicit_ffns(self.model, structure)
        check_writable(ffns)  # checked now, because an error after hours of calibration would come too late
        if self.device is not None and self.work_directory is None:
            placed = getattr(self.model, "hf_device_map", None) or {}
            if len(set(placed.values())) > 1 or any(parameter.is_meta for parameter in self.model.parameters()):
                raise OptionError(
                    f"device={str(self.device)!r} would move the whole model, but it is spread over several devices or partly "
                    "offloaded; leave device out: the model is run where its parts are"
                )
            self.model.to(self.device)
        reached = reached_by_tokens(self.model, ffns)
        self._not_reached = {ffn.stack for ffn in ffns} - {ffn.stack for ffn in reached}
        if self.block_device is not None:
            self._blocks = blocks_of(self.model, reached)
            if not self._blocks:
                raise broken_error(self.model)
        return reached

    @property
    def block_device(self) -> torch.device | None:
        """The device that a run with little memory brings one block at a time to; None if it computes where the weights are."""
        by_block = self.work_directory is not None and self.device is not None and self.device.type != "cpu"
        return self.device if by_block else None

    @property
    def execution(self) -> Execution:
        """How the run computes."""
        return Execution(self.calibration.batch_size, self.progress, self.processes, self.block_device, self.work)

    def onloaded(self) -> AbstractContextManager[None]:
        """Let forward passes of the complete model compute on :attr:`block_device` within the context."""
        return onloaded_by_block(self.model, self._blocks, self.block_device)

    def prepare(self) -> tuple[FFNs, ModelCosts]:
        """Find and check the FFNs (:meth:`find`, :meth:`check`). The result is kept, so that ``run`` need not do it again.

        Returns
        -------
        ffns : FFNs
        costs : ModelCosts

        Raises
        ------
        LLMRankError
            The model has no FFNs that can be pruned, or the options do not fit it.
        """
        if self._prepared is None:
            ffns = self.find()
            self._prepared = ffns, self.check(ffns)
        return self._prepared

    def check(self, ffns: FFNs) -> ModelCosts:
        """Compute the costs of the model, and refuse an impossible amount or alignment before anything is measured."""
        check_targets(self.targets, ffns)
        check_both(self.pruner, self.targets)
        of_experts = [each for each in self.candidates if isinstance(each, ExpertScorer)]
        if of_experts and self.targets != ("experts",):
            raise OptionError(
                f"{type(of_experts[0]).__name__} scores whole experts, so it does not tell their neurons apart; expected "
                "targets='experts' (--targets experts), or a scorer of neurons such as wpr"
            )
        if self.repair is not None and self.repair.needs_bias:
            check_expert_biases(ffns)
        self.costs = ModelCosts(self.model, ffns)
        jointly = prunes_jointly(self.structure_dict, self.topology)
        check_budget(self.pruner, ffns, self.costs, jointly=jointly, targets=self.targets)
        if self.align == "pad":
            check_padding(ffns.sizes.values())
        return self.costs

    def token_warning(self, ffns: FFNs, tokens: int | None = None) -> str | None:
        """Return a warning if `tokens` are too few for the repair; by default they are those that the settings ask for."""
        length = fitting_length(self.model, self.calibration.sequence_length)
        tokens = self.calibration.samples * length if tokens is None else tokens
        return token_warning(self.repair, self.pruner, ffns, tokens, length, self.targets)

    def repair_seconds(self, ffns: FFNs) -> float:
        """Estimate the seconds of the repair, without forward passes; see :mod:`llmrank.repair.duration`."""
        if self.repair is None:
            return 0.0
        tokens = self.calibration.samples * fitting_length(self.model, self.calibration.sequence_length)
        kept = expected_widths(self.pruner, ffns, self.targets)
        return repair_seconds(self.repair, ffns, kept, tokens, self.block_device)

    @property
    def candidates(self) -> tuple[BaseScorer, ...]:
        """The scorers to choose from; the scorer alone if it is no choice."""
        return self.scorer.candidates if isinstance(self.scorer, AutoScorer) else (self.scorer,)

    @property
    def chosen_scorer(self) -> BaseScorer:
        """The scorer that ranks: the one that was chosen, the first candidate if nothing was, or the only one."""
        chosen = None if self.choice is None else self.choice.chosen
        return next((each for each in self.candidates if each.label() == chosen), self.candidates[0])

    @property
    def holds_out(self) -> bool:
        """Whether the run needs held-out calibration sequences, for a repair or for a choice."""
        return self.repair is not None or len(self.candidates) > 1

    def calibration_texts(self) -> tuple[TokenSequences, TokenSequences | None]:
        """Make the calibration sequences, and those to hold out from a repair; see :meth:`CalibrationText.sequences`.

        If there are several processes, one of them makes the sequences for all.
        """
        sequences, held_out = self.processes.from_one(
            lambda: self.calibration.sequences(
                self.model, self.tokenizer, hold_out=self.holds_out, progress=self.progress
            )
        )
        self.processes.check_batches(sequences, self.calibration.batch_size)
        return sequences, held_out

    def calibrate(self, ffns: FFNs, sequences: TokenSequences) -> tuple[FFNStatistics, ...]:
        """Collect statistics of every layer of nodes, or return those of a ranking."""
        if self.calibration.ranking is not None:
            return self.calibration.ranking.statistics_of(self.model, ffns)
        options = self.statistics_options(ffns)
        if self.work is not None:
            return collect_by_block(self.model, ffns, sequences, self.execution, self.work, **options)
        return collect_statistics(self.model, ffns, sequences, self.execution, **options)

    def statistics_options(self, ffns: FFNs) -> dict[str, Any]:  # noqa: ARG002 -- for topologies that override this
        """Return further options of :func:`llmrank.calibration.collect.collect_statistics`."""
        return {}

    def build_graphs(self, ffns: FFNs, statistics: Sequence[FFNStatistics]) -> tuple[ModelGraph, ...]:
        """Build the graphs, in the topology of the pipeline."""
        return build_graphs(ffns, statistics, self.topology)

    def rank_graphs(self, graphs: Sequence[ModelGraph]) -> tuple[RankResult, ...]:
        """Rank every graph."""
        return rank_graphs(self.chosen_scorer, self.execution.steps(graphs, "Ranking"))

    def choose_scorer(
        self,
        ffns: FFNs,
        graphs: Sequence[ModelGraph],
        sequences: TokenSequences,
        held_out: TokenSequences | None,
        pruner: BasePruner | None = None,
    ) -> Choice | None:
        """Try the candidates on held-out tokens and on text of another kind, see :mod:`llmrank.pipeline.closeness.candidates`.

        Each cut is that of the pruner (by default the pipeline's own), or that of :meth:`trial_masks` if the pruner needs
        sensitivities. Return None if there is only one candidate, or nothing was held out. A run with little memory notes the
        choice, and does not try again.
        """
        kept = sequences.parts[1] if held_out is None else held_out
        if len(self.candidates) == 1 or kept is None:
            return None
        noted = None if self.work is None else self.work.progress("choice")
        if noted is not None:
            return Choice.of_dict(noted)
        # An override of choose_masks() may lack the argument.
        given = () if pruner is None else (pruner,)
        needs_sensitivity = (pruner or self.pruner).needs_sensitivity
        masks = {}
        for each in self.execution.steps(self.candidates, "Ranking by every candidate"):
            ranks = rank_graphs(each, graphs)
            cut = self.trial_masks(graphs, ranks) if needs_sensitivity else self.choose_masks(graphs, ranks, *given)
            masks[each.label()] = Masks(self.processes.first(dict(cut)))
        tokens = tokens_of_a_trial(sequences.n_tokens, len(self.candidates))
        choice = try_candidates(
            self.model,
            ffns,
            masks,
            pieces(kept, tokens, sequences),
            other_text(sequences, self.tokenizer, tokens),
            # With weights on disk, every pass reads all of them, so there is one pass for each text.
            max(self.calibration.batch_size * sequences.length, FEWEST_TOKENS) if self.work is None else 2 * tokens,
            self.execution,
        )
        if self.work is not None:
            self.work.note("choice", choice.to_dict())
        return choice

    def measure_sensitivities(
        self, ffns: FFNs, sequences: TokenSequences, graphs: Sequence[ModelGraph], ranks: Sequence[RankResult]
    ) -> dict[str, float]:
        """Measure the sensitivity of every prunable layer; return an empty dict if the pruner needs none.

        One layer at a time is pruned, by a :class:`LocalPruner` with the amount of the pipeline's pruner, see
        :func:`llmrank.pipeline.closeness.sensitivity.layer_sensitivities`. With two targets, only neurons are removed for this.
        """
        if not self.pruner.needs_sensitivity:
            return {}
        masks = self.trial_masks(graphs, ranks)
        groups = {units.name: units.layers for units in units_of(ffns.layers.values(), self._trial_targets)}
        with self.onloaded():
            return layer_sensitivities(self.model, ffns, masks, sequences, self.execution, groups=groups)

    def trial_masks(self, graphs: Sequence[ModelGraph], ranks: Sequence[RankResult]) -> Masks:
        """Choose masks for a trial: those of a :class:`LocalPruner` with the pruner's amount; of two targets, only neurons."""
        pruner = self.pruner
        common = (pruner.amount, pruner.min_keep, pruner.multiple_of)
        trial = LocalPruner(*common, protect=pruner.protect, amount_of=pruner.amount_of)
        return choose_masks(trial, graphs, ranks, jointly=True, costs=self.costs, targets=self._trial_targets)

    @property
    def _trial_targets(self) -> tuple[Target, ...]:
        return self.targets if len(self.targets) == 1 else ("neurons",)

    def choose_masks(
        self,
        graphs: Sequence[ModelGraph],
        ranks: Sequence[RankResult],
        pruner: BasePruner | None = None,
        present: Masks | None = None,
    ) -> Masks:
        """Choose the keep masks of all prunable layers.

        In all steps but the last, `pruner` has a smaller amount. `present` holds the masks of the step before; neurons that these
        masks remove stay removed.
        """
        return choose_masks(
            pruner or self.pruner,
            graphs,
            ranks,
            jointly=prunes_jointly(self.structure_dict, self.topology),
            sensitivities=self.sensitivities,
            costs=self.costs,
            present=present,
            targets=self.targets,
        )

    def repair_output_maps(
        self,
        ffns: FFNs,
        masks: Masks,
        sequences: TokenSequences,
        record: Recording,
        graphs: Sequence[ModelGraph],
        present: Masks | None = None,
        held_out: TokenSequences | None = None,
    ) -> tuple[Masks, dict[str, RepairedMap]]:
        """Repair the output maps of the FFNs; return the keep masks and the repaired maps.

        If the repair does not improve the model on the held-out tokens, the masks are those that were passed in, and no map is
        repaired. If the pipeline is not undoable, repaired weights are written into the model as soon as they are solved. The
        exception is a repair that chooses the neurons of later layers anew by the dense weights of earlier ones.
        """
        if self.repair is None:
            return masks, {}
        choose = Reselection(self.chosen_scorer, graphs, present)
        texts = (sequences, held_out) if held_out is not None else sequences.parts
        overwrites_weights = not (self.undoable or (self.repair.reselects and choose.reads_earlier_layers))
        kept, repaired, self.validation = repair_where_it_helps(
            self.model,
            ffns,
            masks,
            self.repair,
            texts,
            record,
            self.execution,
            choose,
            in_place=overwrites_weights,
        )
        self._changed_for_good = overwrites_weights and bool(repaired)
        return kept, repaired

    def parameters(self) -> dict[str, Any]:
        """Return the settings of the topology, for reports."""
        return {}

    @property
    def graph(self) -> LayeredGraph | tuple[LayeredGraph, ...]:
        """The graph, or a tuple of graphs if there are several."""
        graphs = tuple(entry.graph for entry in self.model_graphs)
        return graphs[0] if len(graphs) == 1 else graphs

    @property
    def rank(self) -> RankResult | tuple[RankResult, ...]:
        """The rank of :attr:`graph`, or a tuple of ranks if there are several graphs."""
        return self.ranks[0] if len(self.ranks) == 1 else self.ranks
