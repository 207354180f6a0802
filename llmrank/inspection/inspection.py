"""Inspection: a model's graph, how every scorer ranks it, and what pruning would take; nothing is written to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from graphs import RankResult
from graphs.linalg.blocks import FloatArray
from llmrank.calibration.forward import progress_step
from llmrank.errors import OptionError
from llmrank.models import FFN
from llmrank.pipeline import BasePipeline, model_source
from llmrank.prune import BasePruner, GlobalPruner, LayerRecord, LocalPruner, bare_record
from llmrank.prune.masks import Masks
from llmrank.prune.selection import choose_masks, prunes_jointly
from llmrank.score import BaseScorer
from llmrank.score.model_graph import ModelGraph, Topology, build_graphs
from llmrank.score.rank_graphs import rank_graphs

__all__ = ["Budgets", "Inspection", "Scored", "inspect_model"]


@dataclass(frozen=True, eq=False)
class Budgets:
    """The two budgets that an inspection compares, at one amount.

    Attributes
    ----------
    local : LocalPruner
    global_ : GlobalPruner
    refusals : mapping from str to str
        Why a budget (``local`` or ``global``) refuses the amount for this model; empty where neither does. A number of
        neurons that is little for all layers together can be more than one layer has.
    """

    local: LocalPruner
    global_: GlobalPruner
    refusals: Mapping[str, str]

    def possible(self) -> dict[str, BasePruner]:
        """The budgets that do not refuse, by name."""
        both: dict[str, BasePruner] = {"local": self.local, "global": self.global_}
        return {name: pruner for name, pruner in both.items() if name not in self.refusals}


@dataclass(frozen=True, eq=False)
class Scored:
    """What one scorer says.

    Attributes
    ----------
    ranks : tuple of RankResult
        One a graph.
    importance : mapping from str to (n,) float64 array
        Scores of every prunable layer by its name, each of sum 1.
    masks : mapping from str to Masks
        What ``local`` and ``global`` pruning would keep at the inspection's amount, of those that do not refuse it.
    """

    ranks: tuple[RankResult, ...]
    importance: Mapping[str, FloatArray]
    masks: Mapping[str, Masks]


@dataclass(frozen=True, eq=False)
class Inspection:
    """The graph of a model and everything that was found out about it.

    Attributes
    ----------
    source : str
        The model's name.
    topology : {"isolated", "chained", "residual"}
    budgets : Budgets
        With the amount, min_keep, multiple_of and normalisation of what pruning would take.
    graphs : tuple of ModelGraph
        One an FFN (and an attention), or one a stack.
    scored : mapping from str to Scored
        By the scorer's name; :attr:`scorer` is the one asked for, the others are there to compare.
    scorer : str
    pruner : str
        The budget asked for, ``local`` or ``global``.
    elsewhere : Scored
        :attr:`scorer` in the other topology: isolated of a chain, else chained.
    calibration : mapping
        Provenance of the calibration text.
    seconds : mapping from str to float
        Wall time of the stages.
    """

    source: str
    topology: Topology
    budgets: Budgets
    graphs: tuple[ModelGraph, ...]
    scored: Mapping[str, Scored]
    scorer: str
    pruner: str
    elsewhere: Scored
    calibration: Mapping[str, Any]
    seconds: Mapping[str, float]

    @property
    def amount(self) -> float | int:
        """Share or number of neurons that pruning would take."""
        return self.budgets.local.amount

    @property
    def main(self) -> Scored:
        """What the scorer asked for says."""
        return self.scored[self.scorer]

    @property
    def other_topology(self) -> Topology:
        """The topology of :attr:`elsewhere`."""
        return "isolated" if self.topology == "chained" else "chained"

    def places(self) -> dict[str, tuple[int, int]]:
        """(graph, node layer) of every prunable layer by name, in the order of the model."""
        return {
            layer.name: (position, node_layer)
            for position, entry in enumerate(self.graphs)
            for node_layer, layer in entry.prunable.items()
        }

    def place(self, name: str) -> tuple[int, int]:
        """(graph, node layer) of a prunable layer.

        Raises
        ------
        OptionError
            No such layer; the message lists them.
        """
        places = self.places()
        if name not in places:
            raise OptionError(f"no prunable layer {name!r}; expected one of {', '.join(places)}")
        return places[name]


def inspect_model(
    pipeline: BasePipeline, scorers: Mapping[str, BaseScorer], scorer: str, pruner: str = "local"
) -> Inspection:
    """Calibrate, draw the graphs, and score them by every scorer.

    Parameters
    ----------
    pipeline : BasePipeline
        Says the model, the calibration, the topology and (through its pruner) amount, min_keep,
        multiple_of and normalisation; its own scorer is not used.
    scorers : mapping from str to BaseScorer
    scorer : str
        Which of them was asked for.
    pruner : {"local", "global"}
        Which budget was asked for.

    Returns
    -------
    Inspection

    Raises
    ------
    OptionError
        A name that is not there, or an amount that the budget asked for refuses.
    LLMRankError, graphs.GraphError
        As :meth:`BasePipeline.run`.

    Notes
    -----
    Cost: the forward passes of the calibration, and some reads of the FFN weights a scorer.

    Examples
    --------
    >>> from llmrank.pipeline import IsolatedFFNPipeline
    >>> import torch
    >>> from llmrank.score import ActivationScorer, WeightedPageRankScorer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> pipeline = IsolatedFFNPipeline(model, None, pruner=LocalPruner(0.5), calibration=torch.rand(8, 4))
    >>> scorers = {"wpr": WeightedPageRankScorer(), "activation": ActivationScorer()}
    >>> inspection = inspect_model(pipeline, scorers, "wpr")
    >>> inspection.main.importance["0"].shape, inspection.main.masks["local"].kept, inspection.elsewhere.masks["local"].kept
    ((6,), 3, 3)
    """
    if scorer not in scorers or pruner not in ("local", "global"):
        raise OptionError(
            f"expected a scorer of {', '.join(scorers)} and the pruner local or global, got {scorer!r} and {pruner!r}"
        )
    seconds: dict[str, float] = {}
    begun = perf_counter()

    def lap(stage: str) -> None:
        nonlocal begun
        now = perf_counter()
        seconds[stage], begun = now - begun, now

    topology: Topology = pipeline.topology
    other: Topology = "isolated" if topology == "chained" else "chained"
    jointly = {each: prunes_jointly(pipeline.structure_dict, each) for each in (topology, other)}
    with progress_step(pipeline.progress, "Finding FFNs"):
        ffns = pipeline.find()
    budgets = _budgets(pipeline.pruner, ffns, jointly=all(jointly.values()))
    if pruner in budgets.refusals:
        raise OptionError(budgets.refusals[pruner])
    sequences = pipeline.calibration_texts()[0]
    statistics = pipeline.calibrate(ffns, sequences, list(scorers.values()))
    lap("calibrate")
    graphs = pipeline.draw(ffns, statistics)
    steps = list(scorers.items())
    scored = {
        name: _score(graphs, entry, budgets, jointly=jointly[topology])
        for name, entry in (pipeline.progress(steps, "Ranking") if pipeline.progress else steps)
    }
    with progress_step(pipeline.progress, f"Ranking, {other}"):
        elsewhere = _score(build_graphs(ffns, statistics, other), scorers[scorer], budgets, jointly=jointly[other])
    lap("rank")
    return Inspection(
        source=model_source(pipeline.model),
        topology=topology,
        budgets=budgets,
        graphs=graphs,
        scored=scored,
        scorer=scorer,
        pruner=pruner,
        elsewhere=elsewhere,
        calibration=sequences.provenance(),
        seconds=seconds,
    )


def _budgets(pruner: BasePruner, ffns: Sequence[FFN], *, jointly: bool) -> Budgets:
    if pruner.protect or pruner.of != "neurons" or (isinstance(pruner, GlobalPruner) and pruner.per_cost):
        raise OptionError(
            "an inspection shows what goes of all layers by numbers of neurons; leave protect, of and per_cost to the pruning"
        )
    limits = (pruner.amount, pruner.min_keep, pruner.multiple_of)
    local = LocalPruner(*limits)
    global_ = GlobalPruner(*limits, pruner.normalize if isinstance(pruner, GlobalPruner) else "auto")
    # Whether an amount can be depends on sizes alone: there is no need to calibrate first.
    alone = [[bare_record(layer.name, layer.size) for layer in ffn.prunable.values()] for ffn in ffns]
    together = [record for group in alone for record in group]
    groups = [together] if jointly else [together, *alone]
    both: dict[str, BasePruner] = {"local": local, "global": global_}
    refusals = {name: _refusal(budget, groups) for name, budget in both.items()}
    return Budgets(local, global_, {name: reason for name, reason in refusals.items() if reason})


def _refusal(budget: BasePruner, groups: Sequence[Sequence[LayerRecord]]) -> str:
    """Why a budget cannot be, or an empty string."""
    try:
        for group in groups:
            budget.check(group)
    except OptionError as error:
        return str(error)
    return ""


def _score(graphs: Sequence[ModelGraph], scorer: BaseScorer, budgets: Budgets, *, jointly: bool) -> Scored:
    ranks = rank_graphs(scorer, graphs)
    importance: dict[str, FloatArray] = {}
    for entry, rank in zip(graphs, ranks, strict=True):
        importance.update({name: values.numpy() for name, values in entry.importance(rank).items()})
    masks = {name: choose_masks(budget, graphs, ranks, jointly=jointly) for name, budget in budgets.possible().items()}
    return Scored(ranks, importance, masks)
