"""Inspections of attentions, whose groups of heads are removed together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphs.analysis.measures import rank_correlation
from llmrank.cli.commands.inspect_tables import _verdict_in_words
from llmrank.inspection.inspect_model import Inspection, inspect_model
from llmrank.inspection.page.page_data import payload
from llmrank.inspection.summary import margin, summarise_inspection, summarise_neuron
from llmrank.prune import GlobalPruner, LocalPruner
from llmrank.score import ActivationScorer, WeightedPageRankScorer
from tests.llmrank.plain_pipelines import IsolatedFFNPipeline
from tests.llmrank.tiny_models import tiny_llama, token_ids
from tests.tables import table

HEADS = {"hidden_size": 64, "num_attention_heads": 8}


def inspected(pruner: Any = None, budget: str = "local", **config: Any) -> Inspection:
    model = tiny_llama(**HEADS, **{"num_key_value_heads": 4, **config})
    options = {"pruner": pruner} if pruner is not None else {}
    pipeline = IsolatedFFNPipeline(model, None, targets="heads", calibration=token_ids(), **options)
    scorers = {"wpr": WeightedPageRankScorer(), "activation": ActivationScorer()}
    return inspect_model(pipeline, scorers, "wpr", budget)


# With one head of keys and values, every head of queries is removed by itself.
@table(("key_value_heads", "groups"), [(4, 4), (1, 8)])
def test_groups_of_heads_are_compared_with_groups(key_value_heads: int, groups: int) -> None:
    inspection = inspected(num_key_value_heads=key_value_heads)
    name = next(iter(inspection.layers))
    sums = inspection.main.importance[name].reshape(groups, -1).sum(1)
    keep = inspection.main.keep["local"][name].reshape(groups, -1)
    assert (keep.all(1) == keep.any(1)).all()
    assert 0 < keep.all(1).sum() < groups
    for neuron in 0, keep[0].size, keep.size - 1:
        verdict = summarise_neuron(inspection, name, neuron).verdicts["local"]
        group = neuron // keep[0].size
        assert (verdict.kept, verdict.among) == (keep[group].all(), "attention")
        assert verdict.margin == pytest.approx(margin(sums, keep.all(1), group))
    parts = payload(inspection)["layers"][0]["experts"]
    size = keep[0].size
    assert [(part["label"], part["start"], part["size"]) for part in parts] == [
        (str(k), k * size, size) for k in range(groups)
    ]


def test_correlations_are_those_of_groups() -> None:
    inspection = inspected()
    summary = summarise_inspection(inspection, list(inspection.layers))
    by_layer = [
        rank_correlation(*(result.importance[name].reshape(4, -1).sum(1) for result in inspection.results.values()))
        for name in inspection.layers
    ]
    assert summary.agreement["activation"].correlation == pytest.approx(np.mean(by_layer))


@table("budget", ["local", "global"])
@table("amount", [1, 2, 3])
def test_the_page_removes_a_number_of_groups_as_the_pipeline_does(budget: str, amount: int) -> None:
    pruner = LocalPruner(amount) if budget == "local" else GlobalPruner(amount)
    inspection = inspected(pruner, budget)
    found = payload(inspection)
    assert not found["notes"]
    assert found["amounts"][found["inspected"]["amount"]] == f"{amount} group{'s' * (amount > 1)} of heads"


def test_a_neuron_goes_with_its_group() -> None:
    inspection = inspected()
    name = next(iter(inspection.layers))
    keep = inspection.main.keep["local"][name]
    removed = summarise_neuron(inspection, name, int(np.flatnonzero(~keep)[0])).verdicts["local"]
    words = _verdict_in_words(removed, 1.0)
    assert words.startswith("removed with its group of heads, which has 0.9")
    assert words.endswith("times the lowest kept score of its attention")
