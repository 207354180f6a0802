"""The inspection of a model: its graphs, their ranks by every scorer, and what pruning would remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from graphs import LayeredGraph, RankResult
from graphs.linalg.blocks import FloatArray
from llmrank.errors import OptionError
from llmrank.inspection.budgets import Budgets, make_budgets
from llmrank.inspection.layers import InspectedLayer, find_layers
from llmrank.pipeline import model_source, stages
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.prune.masks import Masks
from llmrank.prune.records.units import Target
from llmrank.prune.selection import choose_masks, prunes_jointly
from llmrank.score import AutoScorer, BaseScorer
from llmrank.score.model_graph import ModelGraph
from llmrank.score.rank_graphs import rank_graphs
from llmrank.score.topologies import Topology, build_graphs
from llmrank.text import TokenSequences

__all__ = ["Inspection", "ScorerResult", "inspect_model"]


@dataclass(frozen=True, eq=False)
class ScorerResult:
    """The ranks by one scorer, and the keep masks that follow from them.

    Attributes
    ----------
    ranks : tuple of RankResult
        One for each graph.
    importance : mapping from str to (n,) float64 array
        Scores of the neurons of each layer of the inspection, by its name; they sum to 1.
    masks : mapping from str to Masks
        Keep masks of the prunable layers at the inspection's amount, by budget (``local``, ``global``). A budget that refuses the
        amount has none.
    keep : mapping from str to mapping from str to (n,) bool array
        The same masks by the layers of the inspection. The mask of a mixture joins the masks of its experts.
    """

    ranks: tuple[RankResult, ...]
    importance: Mapping[str, FloatArray]
    masks: Mapping[str, Masks]
    keep: Mapping[str, Mapping[str, npt.NDArray[np.bool_]]]


@dataclass(frozen=True, eq=False)
class Inspection:
    """The graphs of a model, and the results of all scorers on them.

    Attributes
    ----------
    source : str
        The model's name.
    topology : {"isolated", "chained", "residual"}
    budgets : Budgets
        The pruners of the local and the global budget, with the amount and the other settings.
    graphs : tuple of ModelGraph
        Isolated: one for each FFN; chained: one for each chain of FFNs; residual: one for each FFN and, if attention is
        included, for each attention.
    results : mapping from str to ScorerResult
        Results by the name of the scorer.
    scorer : str
        Name of the main scorer. The other scorers are compared with it.
    budget : str
        The main budget, ``local`` or ``global``.
    in_other_topology : ScorerResult
        The results of :attr:`scorer` in :attr:`other_topology`.
    explained : tuple of (LayeredGraph, RankResult)
        For each graph, what explains the scores of :attr:`scorer`, see :meth:`llmrank.score.BaseScorer.explained`: the graph
        itself, or one with squared weights.
    sequences : TokenSequences
        The calibration text.
    seconds : mapping from str to float
        Wall time: ``calibrate`` is from the search for FFNs to the statistics, ``rank`` is the rest.
    targets : tuple of {"neurons", "experts"}
        What pruning would remove.
    """

    source: str
    topology: Topology
    budgets: Budgets
    graphs: tuple[ModelGraph, ...]
    results: Mapping[str, ScorerResult]
    scorer: str
    budget: str
    in_other_topology: ScorerResult
    explained: tuple[tuple[LayeredGraph, RankResult], ...]
    sequences: TokenSequences
    seconds: Mapping[str, float]
    targets: tuple[Target, ...] = ("neurons",)

    @property
    def calibration(self) -> dict[str, Any]:
        """Provenance of the calibration text."""
        return self.sequences.provenance()

    @property
    def amount(self) -> float | int:
        """The share or number of neurons that pruning would remove."""
        return self.budgets.local.amount

    @property
    def main(self) -> ScorerResult:
        """The results of :attr:`scorer`."""
        return self.results[self.scorer]

    @property
    def other_topology(self) -> Topology:
        """The topology of :attr:`in_other_topology`: isolated for a chained inspection, else chained."""
        return _other_topology(self.topology)

    @cached_property
    def layers(self) -> dict[str, InspectedLayer]:
        """The layers of the inspection by name, in the order of the model: a mixture of experts is one layer."""
        return find_layers(self.graphs)

    def layer(self, name: str) -> InspectedLayer:
        """Return a layer of the inspection.

        Raises
        ------
        OptionError
            There is no such layer; the message lists the layers.
        """
        if name not in self.layers:
            raise OptionError(f"there is no prunable layer {name!r}; expected one of {', '.join(self.layers)}")
        return self.layers[name]


def inspect_model(run: PruningRun, scorers: Mapping[str, BaseScorer], scorer: str, budget: str = "local") -> Inspection:
    """Calibrate a model, build its graphs, and rank them by every scorer. The model's weights do not change.

    Parameters
    ----------
    run : PruningRun
        A run, or a pipeline, that has not begun. Its recipe says how to calibrate, how to build the graphs, and what pruning
        would remove; of its pruner, the settings are used that :func:`make_budgets` reads. Its scorer is used only to choose one,
        if it is an :class:`llmrank.score.AutoScorer`.
    scorers : mapping from str to BaseScorer
    scorer : str
        Name of the main scorer; the others are compared with it. If it is that of the recipe and a choice, the scorer that
        is chosen takes its place, by its own name.
    budget : {"local", "global"}
        The main budget.

    Raises
    ------
    OptionError
        The scorer or the budget is unknown, or the budget refuses the amount; or see :func:`make_budgets`.
    LLMRankError, graphs.GraphError
        As :meth:`llmrank.pipeline.pruning_run.PruningRun.run`.

    Notes
    -----
    Cost: the forward passes of the calibration, one rank of every graph by each scorer, and one more in the other topology; and
    the trials of a choice.

    Examples
    --------
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> import torch
    >>> from llmrank.prune import LocalPruner
    >>> from llmrank.score import ActivationScorer, WeightedPageRankScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, pruner=LocalPruner(0.5), calibration=torch.rand(8, 4))
    >>> scorers = {"wpr": WeightedPageRankScorer(), "activation": ActivationScorer()}
    >>> inspection = inspect_model(pipeline, scorers, "wpr")
    >>> inspection.main.importance["0"].shape, inspection.main.masks["local"].kept
    ((6,), 3)
    """
    if scorer not in scorers or budget not in ("local", "global"):
        raise OptionError(
            f"expected one of the scorers {', '.join(scorers)} and the budget local or global, got {scorer!r} and {budget!r}"
        )
    started = perf_counter()
    recipe, execution = run.recipe, run.execution
    topology, targets = recipe.topology, recipe.targets
    other = _other_topology(topology)
    # By topology: whether one budget covers the neurons of all graphs.
    jointly = {each: prunes_jointly(recipe.structure_dict, each) for each in (topology, other)}
    with execution.step("Finding FFNs"):
        prepared = run.find()
    budgets = make_budgets(recipe.pruner, prepared.ffns, jointly=all(jointly.values()), targets=targets)
    if budget in budgets.refusals:
        raise OptionError(budgets.refusals[budget])
    tokens = stages.calibration_tokens(prepared, recipe, execution)
    statistics = stages.calibrate(prepared, recipe, tokens, execution)
    calibrated = perf_counter()
    graphs = stages.build(prepared, recipe, statistics)
    if isinstance(scorers[scorer], AutoScorer):
        tried = replace(recipe, pruner=budgets.accepting()[budget])
        choice = stages.choose_scorer(prepared, tried, graphs, tokens, execution)
        others = {name: each for name, each in scorers.items() if name != scorer}
        chosen = recipe.chosen_scorer(choice)
        scorer = chosen.label()
        scorers = {scorer: chosen, **others}
    named = list(scorers.items())
    results = {
        name: _rank_and_prune(graphs, each, budgets, targets, jointly=jointly[topology])
        for name, each in execution.steps(named, "Ranking")
    }
    with execution.step(f"Ranking, {other}"):
        in_other_topology = _rank_and_prune(
            build_graphs(prepared.ffns, statistics, other), scorers[scorer], budgets, targets, jointly=jointly[other]
        )
    return Inspection(
        source=model_source(run.model),
        topology=topology,
        budgets=budgets,
        graphs=graphs,
        results=results,
        scorer=scorer,
        budget=budget,
        in_other_topology=in_other_topology,
        explained=tuple(
            scorers[scorer].explained(entry.graph, rank)
            for entry, rank in zip(graphs, results[scorer].ranks, strict=True)
        ),
        sequences=tokens.sequences,
        seconds={"calibrate": calibrated - started, "rank": perf_counter() - calibrated},
        targets=targets,
    )


def _other_topology(topology: Topology) -> Topology:
    return "isolated" if topology == "chained" else "chained"


def _rank_and_prune(
    graphs: Sequence[ModelGraph], scorer: BaseScorer, budgets: Budgets, targets: tuple[Target, ...], *, jointly: bool
) -> ScorerResult:
    """Rank the graphs by a scorer, and choose the keep masks of every budget that accepts the amount."""
    ranks = rank_graphs(scorer, graphs)
    layers = find_layers(graphs)
    importance = stages.RankedModel(tuple(graphs), ranks, scorer).importance()
    masks = {
        name: choose_masks(pruner, graphs, ranks, jointly=jointly, targets=targets)
        for name, pruner in budgets.accepting().items()
    }
    return ScorerResult(
        ranks,
        {name: layer.join(importance) for name, layer in layers.items()},
        masks,
        {budget: {name: layer.join(each) for name, layer in layers.items()} for budget, each in masks.items()},
    )
