"""Names of the command line -> classes."""

from __future__ import annotations

from typing import Any

import pytest

from llmrank import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from llmrank.errors import OptionError
from llmrank.pipeline.registry import DEFAULTS, PIPELINES, PRUNERS, SCORERS, Registry, make_pruner, make_scorer
from llmrank.prune import BasePruner, GlobalPruner
from llmrank.score import BaseScorer, WeightedPageRankScorer


def test_names() -> None:
    graph, alone = {"wpr", "mpr", "fbpr"}, {"norm", "random", "activation", "wanda", "wanda-sp", "flap", "explained"}
    assert set(SCORERS) == graph | alone
    assert set(PRUNERS) == {"local", "global", "sensitivity"}
    assert dict(PIPELINES) == {
        "isolated": IsolatedFFNPipeline,
        "chained": ChainedFFNPipeline,
        "residual": ResidualFFNPipeline,
    }
    assert DEFAULTS["scorer"] in SCORERS
    assert DEFAULTS["pruner"] in PRUNERS
    assert DEFAULTS["pipeline"] in PIPELINES


@pytest.mark.parametrize("name", list(SCORERS))
def test_every_scorer_is_made_by_name(name: str) -> None:
    scorer = make_scorer(name)
    assert type(scorer) is SCORERS[name]
    assert isinstance(scorer, BaseScorer)


@pytest.mark.parametrize("name", list(PRUNERS))
def test_every_pruner_is_made_by_name(name: str) -> None:
    pruner = make_pruner(name, amount=7)
    assert type(pruner) is PRUNERS[name]
    assert isinstance(pruner, BasePruner)
    assert pruner.amount == 7


def test_options_reach_the_class_and_none_is_left_to_it() -> None:
    assert make_scorer("wpr", gamma=0.9, theta=None) == WeightedPageRankScorer(0.9)
    pruner = make_pruner("global", normalize="mean", min_keep=None)
    assert isinstance(pruner, GlobalPruner)
    assert (pruner.normalize, pruner.min_keep) == ("mean", 1)
    assert vars(make_pruner("sensitivity", limit=3.0))["limit"] == 3.0
    protecting = make_pruner("local", protect=[0, "*.1.*"], of="bytes", per_cost=None)
    assert (protecting.protect, protecting.of) == ((0, "*.1.*"), "bytes")
    with pytest.raises(OptionError, match=r"gamma must be a number in \[0, 1\]"):
        make_scorer("wpr", gamma=2.0)


def test_unknown_names_are_answered_with_the_list() -> None:
    with pytest.raises(
        OptionError, match="unknown scorer 'pagerank'; expected one of activation, explained, fbpr, flap, mpr,"
    ):
        make_scorer("pagerank")
    with pytest.raises(OptionError, match="unknown pruner 'layer'; expected one of global, local, sensitivity"):
        make_pruner("layer")
    with pytest.raises(OptionError, match="unknown pipeline 'full'; expected one of chained, isolated, residual"):
        PIPELINES.find("full")


def test_foreign_options_are_answered_with_the_list() -> None:
    with pytest.raises(OptionError, match=r"scorer 'norm' has no option 'gamma'; its options are p \(1.0\)$"):
        make_scorer("norm", gamma=0.5, seed=1, p=None)
    with pytest.raises(OptionError, match="scorer 'wanda' has no option 'p'; it has no options"):
        make_scorer("wanda", p=1)
    with pytest.raises(
        OptionError, match=r"pruner 'local' has no option 'normalize'; its options are amount \(0.3\), min_keep"
    ):
        make_pruner("local", normalize="mean")
    with pytest.raises(OptionError, match=r"pruner 'global' has no option 'limit'; its options are amount \(0.3\)"):
        make_pruner("global", limit=3.0)


def test_register() -> None:
    registry: Registry[BaseScorer] = Registry("scorer", BaseScorer, {"wpr": WeightedPageRankScorer})

    @registry.register("mine")
    class Mine(BaseScorer):
        def __init__(self, power: float = 1.0) -> None:
            self.power = power

        def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
            return weight.sum(1) ** self.power

    made = registry.make("mine", power=2.0)
    assert isinstance(made, Mine)
    assert made.power == 2.0
    with pytest.raises(OptionError, match="cannot register Mine as scorer 'mine': expected a name that is free"):
        registry.register("mine")(Mine)
    with pytest.raises(OptionError, match="expected a child of BaseScorer"):
        registry.register("other")(GlobalPruner)  # type: ignore[arg-type]
    assert set(registry) == {"wpr", "mine"}
    assert "mine" not in SCORERS
