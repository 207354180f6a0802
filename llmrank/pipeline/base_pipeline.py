"""Pipelines: all stages from a model to a pruned one, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import torch
from torch import nn

from graphs import LayeredGraph, RankResult
from llmrank.calibration.forward import Progress, fitting_length, input_device, progress_step, run_sequences
from llmrank.calibration.generation import GENERATED, generated_text
from llmrank.calibration.recording import Recording, recording
from llmrank.calibration.statistics import FFNStatistics, collect_statistics
from llmrank.calibration.text import TokenSequences, n_held_out, shared_passages, tokenise, tokenise_and_hold_out
from llmrank.errors import OptionError
from llmrank.evaluation.perplexity import model_size, perplexity, unigram_perplexity
from llmrank.models import FFNs, explicit_ffns, find_ffns
from llmrank.models.costs import ModelCosts
from llmrank.models.loading import parse_device
from llmrank.pipeline.options import CalibrationText, EvaluationText, check_options
from llmrank.pipeline.report import Evaluation, Report
from llmrank.pipeline.sensitivity import layer_sensitivities
from llmrank.pipeline.validation import Validation, repair_where_it_helps
from llmrank.prune import BasePruner, LocalPruner
from llmrank.prune.budget import check_budget, reached_amounts, shortfall
from llmrank.prune.masks import Masks
from llmrank.prune.schedule import ScheduleStep, amounts_after_steps
from llmrank.prune.selection import Reselection, choose_masks, prunes_jointly
from llmrank.score import BaseScorer, WeightedPageRankScorer
from llmrank.score.model_graph import ModelGraph, Topology, build_graphs
from llmrank.score.rank_graphs import rank_graphs
from llmrank.surgery.apply import AppliedMasks, apply_masks, check_writable, temporarily_masked
from llmrank.surgery.equivalence import check_equivalence, masked_outputs
from llmrank.surgery.forms import Form
from llmrank.surgery.repair import BaseRepair, RepairedMap, repair_summary
from llmrank.surgery.widths import Align, check_padding

__all__ = [
    "BasePipeline",
    "model_source",
]


class BasePipeline:
    """Base class of pipelines: find FFNs, calibrate, build graphs, rank them, choose keep masks, repair, apply the masks.

    Parameters
    ----------
    model : nn.Module
        Changed in place by :meth:`run`.
    tokenizer : transformers tokenizer or None
        None where `calibration` is a tensor.
    structure_dict : mapping, optional
        By default the FFNs are found in the model. A mapping (``path_to_layers``, ``path_to_modules``) names Linears whose rows
        are pruned, which reproduces the paper's method.
    scorer : BaseScorer, optional
        :class:`WeightedPageRankScorer` by default.
    pruner : BasePruner, optional
        :class:`LocalPruner` of 30 % by default. If the pruner needs sensitivities, they are measured, see
        :meth:`measure_sensitivities`; with a `structure_dict` such a pruner is refused.
    device : str or torch.device, optional
        Where the model is moved to; by default it stays where it is.
    calibration : CalibrationText, or a source as for :class:`CalibrationText`; optional
        The text that statistics are taken on; 16 sequences of 1,024 tokens of the built-in text by default.
    form : {"compact", "zero", "mask"}, optional
        See :func:`llmrank.surgery.apply.apply_masks`. Compact by default; with a `structure_dict` compact is refused, and zero is
        the default.
    align : {"none", "pad"}
        Pad compact layers with zeros to one width.
    repair : BaseRepair, optional
        How new weights of the output maps make up for the removed neurons, see :mod:`llmrank.surgery.repair`; none by default,
        and refused with a `structure_dict`. Sequences are held out from the repair, one for every eight, and at least one: from
        a text, the sequences that follow those of the calibration, as far as the text reaches; where nothing follows, the last
        calibration sequences, unless there is only one. The repair is kept only if it brings the model closer to the dense one on
        the held-out sequences, see :attr:`validation`; without any, it is always kept.
    steps : int
        Number of steps to prune in, 1 to 1000. In each step the calibration text passes through the model as pruned so far, see
        :mod:`llmrank.prune.schedule`.
    evaluation : EvaluationText, a source as for :class:`EvaluationText`, or True; optional
        The text that the perplexity before and after pruning is measured on. True is the part of the built-in text that is not
        used for calibration. By default no perplexity is measured.
    progress : callable, optional
        A function such as ``rich.progress.track``; by default no progress is shown.
    undoable : bool
        Keep the original weights for :meth:`undo`. If they are not kept, each is freed as soon as it is replaced. Then
        :attr:`graph`, which would refer to them, and :attr:`repaired` are empty after :meth:`run`, and after a failure while
        masks are applied, or later, the model stays pruned, completely or in part.

    Attributes
    ----------
    validation : Validation or None
        After :meth:`run` with a repair: how the model as cut and the repaired model compare on the held-out sequences, and so
        which of the two the model is now; None if nothing could be held out.
    report, masks, sensitivities, graph, rank : after :meth:`run`
        The protocol and the outcome; the keep masks; how much the output changes if one layer alone is pruned, by layer (an
        empty dict unless the pruner needs it); the graph and its rank, or tuples if there are several. The graphs refer to the
        original weights, and so keep them in memory as long as the pipeline exists. With several steps, sensitivities, graphs
        and ranks are those of the first step, on the dense model; masks always cover all neurons of the dense model.
    repaired : dict from str to RepairedMap
        After :meth:`run` with a repair: the new weights of every output map that lost neurons, by the path of its module.
    """

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
        steps: int = 1,
        evaluation: Any = None,
        progress: Progress | None = None,
        undoable: bool = True,
    ) -> None:
        check_options(structure_dict, scorer, pruner, form, align, repair, steps)
        self.model = model
        self.tokenizer = tokenizer
        self.structure_dict = structure_dict
        self.scorer = scorer if scorer is not None else WeightedPageRankScorer()
        self.pruner = pruner if pruner is not None else LocalPruner()
        self.device = None if device is None else parse_device(device)
        self.calibration = CalibrationText.of(calibration).for_model(model)
        self.form: Form = form if form is not None else ("zero" if structure_dict is not None else "compact")
        self.align: Align = align
        self.repair = repair
        self.steps = steps
        self.evaluation = EvaluationText.of(evaluation)
        self.progress = progress
        self.undoable = undoable
        self.report: Report | None = None
        self.masks: Masks | None = None
        self.sensitivities: dict[str, float] = {}
        self.application: AppliedMasks | None = None
        self.model_graphs: tuple[ModelGraph, ...] = ()
        self.ranks: tuple[RankResult, ...] = ()
        self.repaired: dict[str, RepairedMap] = {}
        self.validation: Validation | None = None
        self.costs: ModelCosts | None = None
        self.step_results: list[ScheduleStep] = []
        self._prepared: tuple[FFNs, ModelCosts] | None = None
        self._for_good = False
        self._seconds: dict[str, float] = {}

    def run(self) -> nn.Module:
        """Prune the model and return it.

        Raises
        ------
        LLMRankError, graphs.GraphError
            Bad options, data or models, or a second run without :meth:`undo` in between. The model is left as it was if the
            pipeline is undoable, or if the error comes before the repair is finished and before any mask is applied.
        """
        self._check_fresh()
        self._seconds = {}
        with self._timed("find"), progress_step(self.progress, "Finding FFNs"):
            ffns, _ = self.prepare()
        self._prepared = None
        with self._timed("evaluate before"):
            evaluation, texts = self.evaluate()
        with self._timed("calibrate"):
            sequences, held_out = self.calibration_texts()
        self.masks, self.repaired = self.select(ffns, sequences, held_out)
        facts = {
            "before": model_size(self.model, ffns),
            "method": self._method(),
            "graph": self._graph_facts(),
            "repaired": repair_summary(self.repaired),
        }
        if not self.undoable:
            self.model_graphs = ()
        with self._timed("apply"), progress_step(self.progress, "Applying the masks"):
            expected = None
            if self.form == "compact":
                expected = masked_outputs(self.model, ffns, self.masks, sequences, self.repaired)
            self._for_good = not self.undoable
            self.application = apply_masks(
                self.model, ffns, self.masks, self.form, self.align, self.repaired, undoable=self.undoable
            )
        if not self.undoable:
            self.repaired = {}
        try:
            if expected is not None:
                with self._timed("check"), progress_step(self.progress, "Checking the pruned model"):
                    check_equivalence(self.model, expected, sequences)
            with self._timed("evaluate after"):
                if evaluation is not None and texts is not None:
                    evaluation.after = perplexity(
                        self.model,
                        texts,
                        self.calibration.batch_size,
                        self._described_as("Evaluating the pruned model"),
                    )
                    evaluation.calibration_overlap = shared_passages(sequences.joined(held_out), texts)
            self.report = self._report(ffns, (sequences, held_out), facts)
        except BaseException:
            if self.undoable:
                self.undo()
            raise
        self.report.evaluation = evaluation
        return self.model

    def find(self) -> FFNs:
        """Move the model to the device, and return its FFNs."""
        structure = self.structure_dict
        ffns = find_ffns(self.model) if structure is None else explicit_ffns(self.model, structure)
        check_writable(ffns)  # now, because an error after hours of calibration would come too late
        if self.device is not None:
            placed = getattr(self.model, "hf_device_map", None) or {}
            if len(set(placed.values())) > 1 or any(parameter.is_meta for parameter in self.model.parameters()):
                raise OptionError(
                    f"device={str(self.device)!r} would move the whole model, but it is spread over several devices or partly "
                    "offloaded; leave device out: the model is run where its parts are"
                )
            self.model.to(self.device)
        return ffns

    def prepare(self) -> tuple[FFNs, ModelCosts]:
        """Find the FFNs and check the budget; the result is kept for later calls, until :meth:`run` has used it.

        Returns
        -------
        tuple of FFN
        ModelCosts

        Raises
        ------
        LLMRankError
            See :meth:`find` and :meth:`check`.
        """
        if self._prepared is None:
            ffns = self.find()
            self._prepared = ffns, self.check(ffns)
        return self._prepared

    def check(self, ffns: FFNs) -> ModelCosts:
        """Compute the costs of the model, and refuse an impossible amount or alignment before anything is measured."""
        self.costs = ModelCosts(self.model, ffns)
        check_budget(self.pruner, ffns, self.costs, jointly=prunes_jointly(self.structure_dict, self.topology))
        if self.align == "pad":
            check_padding(ffns.sizes.values())
        return self.costs

    def token_warning(self, ffns: FFNs, tokens: int | None = None) -> str | None:
        """Return a warning if there are too few calibration tokens to fit the repair well.

        Parameters
        ----------
        ffns : FFNs
        tokens : int, optional
            Number of tokens that the repair is fitted to; by default the number that :attr:`calibration` asks for.

        Returns
        -------
        str or None
            A sentence that says how many tokens are enough; None without a repair, or if there are enough.
        """
        if self.repair is None:
            return None
        tokens = self.calibration.samples * self._length() if tokens is None else tokens
        widest = max(ffns.sizes.values())
        amount = self.pruner.amount
        kept = (
            round(widest * (1.0 - amount))
            if isinstance(amount, float) and self.pruner.amount_of == "neurons"
            else widest
        )
        wanted = self.repair.tokens_wanted(kept)
        if tokens >= wanted:
            return None
        return (
            f"The repair is fitted to {tokens:,} calibration tokens for {kept:,} neurons of a layer, which is few: give "
            f"{wanted:,} or more (--samples {-(-wanted // self._length())} of {self._length():,} tokens)."
        )

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
            Other sequences, by which a repair is tuned and validated.

        Returns
        -------
        Masks
        dict from str to RepairedMap
            The repaired output maps. If the pipeline is undoable, the model is as it was; otherwise the model may hold the
            repaired weights already.
        """
        self._check_fresh()
        self.step_results = []
        self.validation = None
        present: Masks | None = None
        repaired: dict[str, RepairedMap] = {}
        record = Recording([])
        for number, amount in enumerate(amounts_after_steps(self.pruner.amount, self.steps), start=1):
            first, last = number == 1, number == self.steps
            earlier = dict(self._seconds)
            with temporarily_masked(self.model, ffns, present):
                # A repair runs the model block by block, so this pass records how the model calls its blocks.
                with self._timed("calibrate"), recording(self.model, ffns if first and self.repair else FFNs()) as seen:
                    statistics = self.calibrate(ffns, sequences)
                    if seen.blocks and held_out is not None:
                        run_sequences(self.model, ffns, held_out.batches(self.calibration.batch_size))
                with self._timed("rank"):
                    graphs = self.build_graphs(ffns, statistics)
                    ranks = self.rank_graphs(graphs)
                if first:
                    record, self.model_graphs, self.ranks = seen, graphs, ranks
                    with self._timed("measure"):
                        self.sensitivities = self.measure_sensitivities(ffns, sequences)
                with self._timed("prune"):
                    if first and last:
                        # With a single step, an override of choose_masks() is called without the arguments that steps need.
                        masks = self.choose_masks(graphs, ranks)
                    else:
                        pruner = self.pruner if last else self.pruner.with_amount(amount)
                        masks = self.choose_masks(graphs, ranks, pruner, present)
            repairs = self.repair is not None and last
            if repairs:
                record.keeps_first_states = False
                with self._timed("repair"):
                    masks, repaired = self.repair_output_maps(ffns, masks, sequences, record, graphs, present, held_out)
            # The graphs of a later step may hold the last references to masked weights: free them.
            del graphs, ranks
            present = masks
            spent = {stage: seconds - earlier.get(stage, 0.0) for stage, seconds in self._seconds.items()}
            self.step_results.append(
                ScheduleStep(
                    amount, masks.size - masks.kept, repairs, {stage: more for stage, more in spent.items() if more}
                )
            )
        return masks, repaired

    def calibration_texts(self) -> tuple[TokenSequences, TokenSequences | None]:
        """Make the calibration sequences, and those to hold out from a repair.

        Returns
        -------
        sequences : TokenSequences
            Sequences to rank by, and to fit a repair to. If nothing follows them, the last of them are held out from the repair.
        held_out : TokenSequences or None
            The sequences that follow in the text; None without a repair, or if nothing follows.
        """
        text = self.calibration
        further = n_held_out(text.samples) if self.repair is not None else 0
        if isinstance(text.source, str) and text.source == GENERATED:
            written = generated_text(
                self.model, self.tokenizer, text.samples + further, self._length(), text.seed, progress=self.progress
            )
            return written.split(text.samples)
        sequences, held_out = tokenise_and_hold_out(text.source, self.tokenizer, text.samples, self._length(), further)
        if further and held_out is None and len(sequences) > 1:
            sequences = replace(sequences, held_out=n_held_out(len(sequences)))
        return sequences, held_out

    def evaluate(self) -> tuple[Evaluation | None, TokenSequences | None]:
        """Measure the perplexity before pruning; return the evaluation and its sequences, or None twice if none is asked for."""
        if self.evaluation is None:
            return None, None
        texts = tokenise(self.evaluation.source, self.tokenizer, self.evaluation.samples, self._length(), "evaluation")
        before = perplexity(
            self.model, texts, self.calibration.batch_size, self._described_as("Evaluating the dense model")
        )
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        protocol = {**texts.provenance(), "dtype": dtype, "torch_seed": torch.initial_seed()}
        return Evaluation(protocol, before, unigram=unigram_perplexity(texts)), texts

    def _described_as(self, description: str) -> Progress | None:
        """Return the progress function with this description instead of the caller's; None without a progress function."""
        progress = self.progress
        return None if progress is None else lambda items, _: progress(items, description)

    def _length(self) -> int:
        return fitting_length(self.model, self.calibration.sequence_length)

    def calibrate(
        self, ffns: FFNs, sequences: TokenSequences, scorers: Sequence[BaseScorer] = ()
    ) -> tuple[FFNStatistics, ...]:
        """Collect statistics of every layer of nodes, with all that the pipeline's scorer and `scorers` need."""
        explained = any(scorer.needs_explained for scorer in (self.scorer, *scorers))
        around = self.statistics_options(ffns)
        return collect_statistics(
            self.model, ffns, sequences, self.calibration.batch_size, self.progress, explained=explained, **around
        )

    def statistics_options(self, ffns: FFNs) -> dict[str, Any]:  # noqa: ARG002 -- for topologies that override this
        """Return what else the calibration measures, as options of :func:`llmrank.calibration.statistics.collect_statistics`."""
        return {}

    def build_graphs(self, ffns: FFNs, statistics: Sequence[FFNStatistics]) -> tuple[ModelGraph, ...]:
        """Build the graphs, in the topology of the pipeline."""
        return build_graphs(ffns, statistics, self.topology)

    def rank_graphs(self, graphs: Sequence[ModelGraph]) -> tuple[RankResult, ...]:
        """Rank every graph."""
        steps = self.progress(graphs, "Ranking") if self.progress else graphs
        return rank_graphs(self.scorer, steps)

    def measure_sensitivities(self, ffns: FFNs, sequences: TokenSequences) -> dict[str, float]:
        """Measure the sensitivity of every prunable layer; return an empty dict if the pruner needs none.

        A sensitivity is measured with the pruner's amount removed locally, on the first calibration sequences, see
        :func:`llmrank.pipeline.sensitivity.layer_sensitivities`.
        """
        if not self.pruner.needs_sensitivity:
            return {}
        pruner = self.pruner
        trial = LocalPruner(pruner.amount, pruner.min_keep, protect=pruner.protect, amount_of=pruner.amount_of)
        masks = choose_masks(trial, self.model_graphs, self.ranks, jointly=True, costs=self.costs)
        return layer_sensitivities(
            self.model, ffns, masks, sequences, self.calibration.batch_size, progress=self.progress
        )

    def choose_masks(
        self,
        graphs: Sequence[ModelGraph],
        ranks: Sequence[RankResult],
        pruner: BasePruner | None = None,
        present: Masks | None = None,
    ) -> Masks:
        """Choose the keep masks of all prunable layers.

        A step before the last gives a `pruner` with a smaller amount. From the second step on, only neurons that `present`, the
        masks of the step before, keeps can be kept.
        """
        return choose_masks(
            pruner or self.pruner,
            graphs,
            ranks,
            jointly=prunes_jointly(self.structure_dict, self.topology),
            sensitivities=self.sensitivities,
            costs=self.costs,
            present=present,
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

        If the repair does not improve the model, these are the planned masks and no maps. If the pipeline is not undoable, the
        maps are written into the model at once, unless the choice of neurons in a later layer needs the original weights.
        """
        if self.repair is None:
            return masks, {}
        choose = Reselection(self.scorer, graphs, present)
        for_good = not (self.undoable or (self.repair.reselects and choose.looks_back))
        kept, repaired, self.validation = repair_where_it_helps(
            self.model,
            ffns,
            masks,
            self.repair,
            (sequences, held_out) if held_out is not None else sequences.parts,
            record,
            self.calibration.batch_size,
            choose,
            self.progress,
            in_place=for_good,
        )
        self._for_good = for_good and bool(repaired)
        return kept, repaired

    def parameters(self) -> dict[str, Any]:
        """Return the settings of the topology, for reports."""
        return {}

    def undo(self) -> nn.Module:
        """Restore the model as it was before :meth:`run`, bit for bit; refused if :attr:`undoable` is False."""
        if self.application is None:
            raise OptionError("there is nothing to undo: run() has not pruned this model")
        self.application.undo()
        self.application = None
        return self.model

    @property
    def graph(self) -> LayeredGraph | tuple[LayeredGraph, ...]:
        """The graph, or a tuple of graphs if there are several."""
        graphs = tuple(entry.graph for entry in self.model_graphs)
        return graphs[0] if len(graphs) == 1 else graphs

    @property
    def rank(self) -> RankResult | tuple[RankResult, ...]:
        """The rank of :attr:`graph`, or a tuple of ranks if there are several graphs."""
        return self.ranks[0] if len(self.ranks) == 1 else self.ranks

    def _check_fresh(self) -> None:
        if self._for_good:
            raise OptionError(
                "this pipeline has changed its model for good; load the model again, and make another pipeline"
            )
        if self.application is not None:
            raise OptionError("this pipeline has pruned its model already; call undo() first, or make another pipeline")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + perf_counter() - start

    def _method(self) -> dict[str, Any]:
        """Return all settings, for the report."""
        return {
            "pipeline": self.topology,
            **self.parameters(),
            "scorer": {"name": type(self.scorer).__name__, **self.scorer.parameters()},
            "pruner": {"name": type(self.pruner).__name__, **vars(self.pruner)},
            "form": self.form,
            "align": self.align,
            "steps": self.steps,
            "repair": {"name": type(self.repair).__name__, **self.repair.parameters()} if self.repair else None,
            "structure_dict": self.structure_dict,
        }

    def _graph_facts(self) -> dict[str, Any]:
        """Return how large the graphs were, and how they were ranked, for the report."""
        return {
            "graphs": len(self.model_graphs),
            "layers": sum(len(entry.graph.layer_sizes) for entry in self.model_graphs),
            "nodes": sum(entry.graph.n_nodes for entry in self.model_graphs),
            "edges_at_most": sum(entry.graph.capacity for entry in self.model_graphs),
            "solver": self.ranks[0].solver,
            "backend": self.ranks[0].backend,
            "iterations": max(rank.iterations for rank in self.ranks),
            "converged": all(rank.converged for rank in self.ranks),
            "error_bound": max(rank.error_bound for rank in self.ranks),
        }

    def _report(self, ffns: FFNs, texts: tuple[TokenSequences, TokenSequences | None], facts: dict[str, Any]) -> Report:
        masks, application, costs = self.masks, self.application, self.costs
        if masks is None or application is None or costs is None:
            raise OptionError("there is nothing to report: run() has not pruned this model")
        reached = reached_amounts(masks, costs)
        notes = shortfall(self.pruner, reached)
        fit, held_out = texts if texts[1] is not None else texts[0].parts
        warning = self.token_warning(ffns, fit.n_tokens)
        notes += [warning] if warning is not None else []
        if self.validation is not None and not self.validation.improves:
            notes.append(self.validation.sentence())
        elif self.repair is not None and self.validation is None:
            notes.append(
                "nothing could be held out, so the repair was neither chosen nor checked on other text; give more text"
            )
        notes += [f"{rank.names[entry.layer]}: {entry.reason}" for rank in self.ranks for entry in rank.degenerate]
        return Report(
            model={
                "source": model_source(self.model),
                "class": type(self.model).__name__,
                "ffns": len(ffns),
                "kinds": sorted({ffn.kind for ffn in ffns}),
                "device": str(input_device(self.model)),
                "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            },
            calibration=texts[0].provenance(),
            held_out=None if held_out is None else held_out.provenance(),
            neurons={
                "unit": "hidden neurons" if self.structure_dict is None else "rows of the listed Linears",
                "before": masks.size,
                "removed": masks.size - masks.kept,
                "share_asked": self.pruner.amount,
                "amount_of": self.pruner.amount_of,
                "share_reached": masks.removed_share,
                "widths": masks.widths,
                "widths_with_padding": application.widths,
            },
            reached={str(unit): found for unit, found in reached.items()},
            steps=[asdict(step) for step in self.step_results],
            sensitivities=self.sensitivities,
            after=model_size(self.model, ffns),
            seconds=dict(self._seconds),
            validation=None if self.validation is None else asdict(self.validation),
            notes=notes,
            **facts,
        )


def model_source(model: nn.Module) -> str:
    """Return the hub name of a model, or only the last part of its path: a report says nothing of local directories."""
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    return Path(name).name if Path(name).exists() else name
