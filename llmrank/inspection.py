"""Inspection: a model's graph, how every scorer ranks it, and what pruning would take; nothing is written to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from graphs import RankResult
from graphs.blocks import FloatArray
from llmrank.errors import OptionError
from llmrank.masks import Masks
from llmrank.model_graph import ModelGraph, Topology, build_graphs
from llmrank.pipeline import BasePipeline, choose_masks, model_source, prunes_jointly
from llmrank.prune import BasePruner, GlobalPruner, LocalPruner
from llmrank.score import BaseScorer

__all__ = ["Inspection", "Scored", "inspect_model"]


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
        What ``local`` and ``global`` pruning would keep at the inspection's amount.
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
    topology : {"isolated", "chained"}
    amount : float or int
        Share or number of neurons that pruning would take.
    graphs : tuple of ModelGraph
        One an FFN, or one a stack.
    scored : mapping from str to Scored
        By the scorer's name; :attr:`scorer` is the one asked for, the others are there to compare.
    scorer : str
    pruner : str
        The budget asked for, ``local`` or ``global``.
    elsewhere : Scored
        :attr:`scorer` in the other topology.
    calibration : mapping
        Provenance of the calibration text.
    seconds : mapping from str to float
        Wall time of the stages.
    """

    source: str
    topology: Topology
    amount: float | int
    graphs: tuple[ModelGraph, ...]
    scored: Mapping[str, Scored]
    scorer: str
    pruner: str
    elsewhere: Scored
    calibration: Mapping[str, Any]
    seconds: Mapping[str, float]

    @property
    def main(self) -> Scored:
        """What the scorer asked for says."""
        return self.scored[self.scorer]

    def places(self) -> dict[str, tuple[int, int]]:
        """(graph, node layer) of every prunable layer by name, in the order of the model."""
        return {
            layer.name: (position, node_layer)
            for position, entry in enumerate(self.graphs)
            for node_layer, layer in entry.prunable.items()
        }


def inspect_model(
    pipeline: BasePipeline, scorers: Mapping[str, BaseScorer], scorer: str, pruner: str = "local"
) -> Inspection:
    """Calibrate, draw the graphs, and score them by every scorer.

    Parameters
    ----------
    pipeline : BasePipeline
        Says the model, the calibration, the topology and (through its pruner) amount, min_keep and
        multiple_of; its own scorer is not used.
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
        A name that is not there.
    LLMRankError, graphs.GraphError
        As :meth:`BasePipeline.run`.

    Notes
    -----
    Cost: the forward passes of the calibration, and some reads of the FFN weights a scorer.
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

    ffns = pipeline.find()
    sequences = pipeline.sequences()
    statistics = pipeline.calibrate(ffns, sequences)
    lap("calibrate")
    graphs = pipeline.draw(ffns, statistics)
    budgets = _budgets(pipeline.pruner)
    jointly = prunes_jointly(pipeline.structure_dict, pipeline.topology)
    scored = {name: _score(graphs, entry, budgets, jointly=jointly) for name, entry in scorers.items()}
    other: Topology = "isolated" if pipeline.topology == "chained" else "chained"
    jointly = prunes_jointly(pipeline.structure_dict, other)
    elsewhere = _score(build_graphs(ffns, statistics, other), scorers[scorer], budgets, jointly=jointly)
    lap("rank")
    return Inspection(
        source=model_source(pipeline.model),
        topology=pipeline.topology,
        amount=pipeline.pruner.amount,
        graphs=graphs,
        scored=scored,
        scorer=scorer,
        pruner=pruner,
        elsewhere=elsewhere,
        calibration=sequences.provenance(),
        seconds=seconds,
    )


def _budgets(pruner: BasePruner) -> dict[str, BasePruner]:
    limits = (pruner.amount, pruner.min_keep, pruner.multiple_of)
    normalize = pruner.normalize if isinstance(pruner, GlobalPruner) else "auto"
    return {"local": LocalPruner(*limits), "global": GlobalPruner(*limits, normalize)}


def _score(
    graphs: Sequence[ModelGraph], scorer: BaseScorer, budgets: Mapping[str, BasePruner], *, jointly: bool
) -> Scored:
    ranks = tuple(scorer.rank(entry.graph, entry.statistics) for entry in graphs)
    importance: dict[str, FloatArray] = {}
    for entry, rank in zip(graphs, ranks, strict=True):
        importance.update({name: values.numpy() for name, values in entry.importance(rank).items()})
    masks = {name: choose_masks(budget, graphs, ranks, jointly=jointly) for name, budget in budgets.items()}
    return Scored(ranks, importance, masks)
