"""What an inspection finds equals what pipelines and pruners do, and what is computed by other means."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from llmrank import ChainedFFNPipeline, IsolatedFFNPipeline
from llmrank.errors import OptionError
from llmrank.findings import find, neuron_facts, parse_neuron
from llmrank.inspection import Inspection, inspect_model
from llmrank.prune import BasePruner, GlobalPruner, LocalPruner
from llmrank.score import ActivationScorer, RandomScorer, WeightedPageRankScorer
from tests.llmrank.models import Snapshot, tiny_llama, token_ids

SCORERS = {"wpr": WeightedPageRankScorer(), "activation": ActivationScorer(), "random": RandomScorer(seed=1)}
TOPOLOGIES = {"chained": ChainedFFNPipeline, "isolated": IsolatedFFNPipeline}


def inspected(topology: str = "chained", budget: BasePruner | None = None, **options: Any) -> Inspection:
    pipeline = TOPOLOGIES[topology](tiny_llama(), None, pruner=budget, calibration=token_ids())
    return inspect_model(pipeline, SCORERS, "wpr", **options)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("budget", ["local", "global"])
def test_it_says_what_the_pipeline_does(topology: str, budget: str) -> None:
    pruner = LocalPruner(0.4) if budget == "local" else GlobalPruner(0.4)
    inspection = inspected(topology, pruner, pruner=budget)
    pipeline = TOPOLOGIES[topology](tiny_llama(), None, scorer=SCORERS["wpr"], pruner=pruner, calibration=token_ids())
    pipeline.run()
    assert inspection.main.masks[budget] == pipeline.masks
    assert inspection.topology == topology
    assert list(inspection.places()) == list(pipeline.masks or {})


def test_the_model_stays_as_it_was() -> None:
    model = tiny_llama()
    before = Snapshot(model)
    inspect_model(ChainedFFNPipeline(model, None, calibration=token_ids()), SCORERS, "wpr")
    before.assert_restored()


def test_the_other_topology_is_scored_too() -> None:
    chained, isolated = inspected("chained"), inspected("isolated")
    for name, scores in chained.elsewhere.importance.items():
        np.testing.assert_array_equal(scores, isolated.main.importance[name])
    assert chained.elsewhere.masks["local"] == isolated.main.masks["local"]


def test_findings_equal_independent_computation() -> None:
    inspection = inspected("isolated")
    findings = find(inspection)
    for name, (position, layer) in inspection.places().items():
        graph = inspection.graphs[position].graph
        scores = inspection.main.ranks[position].scores[layer].astype(np.float64)
        row = findings.layers[name]
        weights = graph.block(layer).toarray()
        assert (row.nodes, row.edges_in) == (weights.shape[0], np.count_nonzero(weights))
        assert row.effective == pytest.approx(1 / sum(s * s for s in scores))
        assert row.highest == int(scores.argmax())
        differences = [abs(a - b) for a, b in itertools.product(scores, scores)]
        assert row.gini == pytest.approx(sum(differences) / (2 * len(scores) ** 2 * scores.mean()))
        assert findings.kept["local"][name] == len(scores) - round(0.3 * len(scores))
    activation = findings.agreement["activation"]
    main, other = inspection.main, inspection.scored["activation"]
    correlations = [stats.spearmanr(main.importance[n], other.importance[n]).statistic for n in main.importance]
    assert activation.correlation == pytest.approx(np.mean(correlations))
    kept = [(main.masks["global"][n], other.masks["global"][n]) for n in main.importance]
    assert activation.global_ == pytest.approx(
        sum(int((a & b).sum()) for a, b in kept) / sum(int(a.sum()) for a, _ in kept)
    )
    assert set(findings.agreement) == {"activation", "random", "chained"}


def test_findings_are_json_and_can_be_of_some_layers() -> None:
    inspection = inspected("chained")
    name = list(inspection.places())[1]
    content = json.loads(json.dumps(find(inspection, [name]).to_dict(), allow_nan=False))
    assert list(content["layers"]) == [name]
    assert content["layers"][name]["kept"]["local"] == int(inspection.main.masks["local"][name].sum())
    assert content["graphs"] == [{"layers": 5, "nodes": 16 * 3 + 40 * 2, "edges": 4 * 16 * 40}]


@pytest.mark.parametrize("budget", ["local", "global"])
def test_verdicts_say_kept_and_by_what_margin(budget: str) -> None:
    inspection = inspected("chained")
    for name, scores in inspection.main.importance.items():
        keep = inspection.main.masks[budget][name].numpy()
        for neuron in (int(scores.argmax()), int(scores.argmin()), 5):
            verdict = neuron_facts(inspection, name, neuron).verdicts[budget]
            assert verdict.kept == keep[neuron]
            if keep.all() or not keep.any():
                assert not np.isfinite(verdict.ratio)
            else:
                cut = max(scores[~keep]) if keep[neuron] else min(scores[keep])
                assert verdict.ratio == pytest.approx(scores[neuron] / cut)


def test_facts_of_a_neuron_of_an_isolated_graph() -> None:
    inspection = inspected("isolated")
    name = list(inspection.places())[1]
    facts = neuron_facts(inspection, name, 3, top=2)
    graph = inspection.graphs[1].graph
    weights = graph.block(1).toarray()[3]
    # The likeliest way in is wide, though not always the widest: what counts is the share of its source.
    assert facts.facts.in_edges[0].weight == pytest.approx(weights[facts.facts.in_edges[0].node], rel=1e-6)
    assert facts.facts.in_strength == pytest.approx(weights.sum(), rel=1e-6)
    assert facts.paths
    assert all(path.nodes[1] == (1, 3) for path in facts.paths)


def test_neurons_are_named_by_number_or_name() -> None:
    inspection = inspected()
    names = list(inspection.places())
    assert parse_neuron(inspection, "1:17") == (names[1], 17)
    assert parse_neuron(inspection, f"{names[0]}:3") == (names[0], 3)
    for wrong, message in (("17", "LAYER:NEURON"), ("9:1", "0 to 1"), ("mlp:1", "0 to 1"), ("1:x", "LAYER:NEURON")):
        with pytest.raises(OptionError, match=message):
            parse_neuron(inspection, wrong)
    with pytest.raises(OptionError, match="neurons 0 to 39, got 40"):
        neuron_facts(inspection, names[0], 40)
    with pytest.raises(OptionError, match="no prunable layer 'mlp'"):
        neuron_facts(inspection, "mlp", 0)


def test_unknown_names_are_refused_before_the_calibration() -> None:
    pipeline = ChainedFFNPipeline(tiny_llama(), None, calibration="no/such/file")
    with pytest.raises(OptionError, match="expected a scorer of wpr, activation, random"):
        inspect_model(pipeline, SCORERS, "pagerank")
    with pytest.raises(OptionError, match="'thirds'"):
        inspect_model(pipeline, SCORERS, "wpr", "thirds")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_named_linears_are_pruned_as_the_pipeline_prunes_them(topology: str) -> None:
    structure = {"path_to_layers": ["model", "layers"], "path_to_modules": (("mlp", "up_proj"), ("mlp", "down_proj"))}
    pipeline = TOPOLOGIES[topology](
        tiny_llama(), None, structure, SCORERS["wpr"], GlobalPruner(0.4), calibration=token_ids()
    )
    inspection = inspect_model(pipeline, SCORERS, "wpr", "global")
    pipeline.run()
    assert inspection.main.masks["global"] == pipeline.masks
