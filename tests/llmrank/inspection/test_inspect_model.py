"""An inspection equals what pipelines and pruners do, and its numbers equal independent computations."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from llmrank.errors import OptionError
from llmrank.inspection.inspect_model import Inspection, inspect_model
from llmrank.inspection.layers import parse_neuron, split_neuron
from llmrank.inspection.summary import margin, summarise_inspection, summarise_neuron
from llmrank.prune import BasePruner, GlobalPruner, LocalPruner
from llmrank.score import ActivationScorer, RandomScorer, WeightedPageRankScorer
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_models import STRUCTURE, Snapshot, tiny_llama, token_ids

SCORERS = {"wpr": WeightedPageRankScorer(), "activation": ActivationScorer(), "random": RandomScorer(seed=1)}
TOPOLOGIES = {"chained": ChainedFFNPipeline, "isolated": IsolatedFFNPipeline}


def inspected(topology: str = "chained", pruner: BasePruner | None = None, **options: Any) -> Inspection:
    pipeline = TOPOLOGIES[topology](tiny_llama(), None, pruner=pruner, calibration=token_ids())
    return inspect_model(pipeline, SCORERS, "wpr", **options)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("budget", ["local", "global"])
def test_its_masks_are_those_of_the_pipeline(topology: str, budget: str) -> None:
    pruner = LocalPruner(0.4) if budget == "local" else GlobalPruner(0.4)
    inspection = inspected(topology, pruner, budget=budget)
    pipeline = TOPOLOGIES[topology](tiny_llama(), None, scorer=SCORERS["wpr"], pruner=pruner, calibration=token_ids())
    pipeline.run()
    assert inspection.main.masks[budget] == pipeline.masks
    assert inspection.topology == topology
    assert list(inspection.layers) == list(pipeline.masks or {})


def test_the_model_is_not_changed() -> None:
    model = tiny_llama()
    before = Snapshot(model)
    inspect_model(ChainedFFNPipeline(model, None, calibration=token_ids()), SCORERS, "wpr")
    before.assert_restored()


def test_the_other_topology_is_scored_too() -> None:
    chained, isolated = inspected("chained"), inspected("isolated")
    for name, scores in chained.in_other_topology.importance.items():
        np.testing.assert_array_equal(scores, isolated.main.importance[name])
    assert chained.in_other_topology.masks["local"] == isolated.main.masks["local"]


def test_the_summary_equals_independent_computations() -> None:
    inspection = inspected("isolated")
    summary = summarise_inspection(inspection)
    for name, place in inspection.layers.items():
        position, layer = place.graph, place.position
        graph = inspection.graphs[position].graph
        scores = inspection.main.ranks[position].scores[layer].astype(np.float64)
        row = summary.layers[name]
        weights = graph.block(layer).toarray()
        assert (row.n_nodes, row.n_in_edges) == (weights.shape[0], np.count_nonzero(weights))
        assert row.effective_number == pytest.approx(1 / sum(s * s for s in scores))
        assert row.highest_node == int(scores.argmax())
        differences = [abs(a - b) for a, b in itertools.product(scores, scores)]
        assert row.gini == pytest.approx(sum(differences) / (2 * len(scores) ** 2 * scores.mean()))
        assert summary.kept["local"][name] == len(scores) - round(0.3 * len(scores))
    activation = summary.agreement["activation"]
    main, other = inspection.main, inspection.results["activation"]
    correlations = [stats.spearmanr(main.importance[n], other.importance[n]).statistic for n in main.importance]
    assert activation.correlation == pytest.approx(np.mean(correlations))
    kept = [(main.masks["global"][n], other.masks["global"][n]) for n in main.importance]
    assert activation.global_ == pytest.approx(
        sum(int((a & b).sum()) for a, b in kept) / sum(int(a.sum()) for a, _ in kept)
    )
    assert set(summary.agreement) == {"activation", "random", "chained"}


def test_a_summary_is_json_and_can_be_limited_to_some_layers() -> None:
    inspection = inspected("chained")
    name = list(inspection.layers)[1]
    content = json.loads(json.dumps(summarise_inspection(inspection, [name]).to_dict(), allow_nan=False))
    assert list(content["layers"]) == [name]
    assert content["layers"][name]["kept"]["local"] == int(inspection.main.masks["local"][name].sum())
    assert content["graphs"] == [{"layers": 5, "nodes": 16 * 3 + 40 * 2, "edges": 4 * 16 * 40}]


@pytest.mark.parametrize("budget", ["local", "global"])
def test_verdicts_say_whether_a_neuron_is_kept_and_by_what_margin(budget: str) -> None:
    inspection = inspected("chained")
    for name, scores in inspection.main.importance.items():
        keep = inspection.main.masks[budget][name].numpy()
        for neuron in (int(scores.argmax()), int(scores.argmin()), 5):
            verdict = summarise_neuron(inspection, name, neuron).verdicts[budget]
            assert verdict.kept == keep[neuron]
            if keep.all() or not keep.any():
                assert not np.isfinite(verdict.margin)
            else:
                cut = max(scores[~keep]) if keep[neuron] else min(scores[keep])
                assert verdict.margin == pytest.approx(scores[neuron] / cut)


def test_margins_by_hand() -> None:
    scores, keep = np.array([0.1, 0.2, 0.4, 0.0]), np.array([False, True, True, False])
    assert [margin(scores, keep, k) for k in range(4)] == pytest.approx([0.5, 2.0, 4.0, 0.0])
    everything = np.ones(4, dtype=bool)
    assert np.isnan(margin(scores, everything, 0))
    assert np.isnan(margin(scores, ~everything, 0))
    # The only score on the other side of the cut is zero.
    assert margin(scores, np.array([True, True, True, False]), 1) == np.inf
    assert np.isnan(margin(np.zeros(2), np.array([True, False]), 0))


def test_an_amount_is_refused_before_the_calibration() -> None:
    for pruner in (LocalPruner(40), GlobalPruner(0.3, min_keep=41)):
        pipeline = ChainedFFNPipeline(tiny_llama(), None, pruner=pruner, calibration="no/such/file")
        with pytest.raises(OptionError, match=r"model\.layers\.0\.mlp would keep .* of 40 neurons"):
            inspect_model(pipeline, SCORERS, "wpr")


@pytest.mark.parametrize(
    "pruner",
    [LocalPruner(protect=0), GlobalPruner(amount_of="bytes")],
    ids=["protect", "amount_of"],
)
def test_budgets_that_a_page_could_not_show_are_refused(pruner: BasePruner) -> None:
    with pytest.raises(OptionError, match="does not support protect and amount_of"):
        inspected("chained", pruner)


def test_an_amount_that_only_global_pruning_accepts() -> None:
    """50 neurons can be removed from all 80 together, but not from every layer of 40."""
    inspection = inspected("chained", GlobalPruner(50), budget="global")
    assert inspection.budgets.refusals == {
        "local": "model.layers.0.mlp would keep 0 of 40 neurons, fewer than min_keep=1; lower the amount (at most 39 "
        "of them can be removed) or min_keep"
    }
    assert inspection.main.masks["global"].kept == 30
    assert set(inspection.main.masks) == set(inspection.in_other_topology.masks) == {"global"}
    content = json.loads(json.dumps(summarise_inspection(inspection).to_dict(), allow_nan=False))
    assert content["refusals"] == inspection.budgets.refusals
    assert content["agreement"]["activation"]["local"] is None
    assert 0 < content["agreement"]["activation"]["global"] <= 1
    assert {name: set(layer["kept"]) for name, layer in content["layers"].items()} == {
        name: {"global"} for name in inspection.layers
    }
    name = next(iter(inspection.layers))
    assert set(summarise_neuron(inspection, name, 0).verdicts) == {"global"}
    with pytest.raises(OptionError, match="would keep 0 of 40"):
        inspected("chained", GlobalPruner(50), budget="local")


def test_both_budgets_have_the_settings_of_the_pruner() -> None:
    pruner = GlobalPruner(0.4, min_keep=3, multiple_of=8, normalize="mean")
    inspection = inspected("chained", pruner, budget="global")
    pipeline = ChainedFFNPipeline(
        tiny_llama(), None, scorer=SCORERS["wpr"], pruner=pruner, calibration=token_ids(), form="zero"
    )
    pipeline.run()
    assert inspection.main.masks["global"] == pipeline.masks
    assert {width % 8 for width in inspection.main.masks["local"].widths.values()} == {0}
    settings = {"amount": 0.4, "min_keep": 3, "multiple_of": 8, "normalize": "mean"}
    assert {key: summarise_inspection(inspection).to_dict()[key] for key in settings} == settings


def test_the_message_for_an_unknown_layer_lists_the_layers() -> None:
    inspection = inspected()
    with pytest.raises(OptionError, match=r"no prunable layer 'mlp'; expected one of model\.layers\.0\.mlp, model"):
        summarise_inspection(inspection, ["mlp"])


def test_facts_of_a_neuron_of_an_isolated_graph() -> None:
    inspection = inspected("isolated")
    name = list(inspection.layers)[1]
    summary = summarise_neuron(inspection, name, 3, top=2)
    graph = inspection.graphs[1].graph
    weights = graph.block(1).toarray()[3]
    # The strongest in-edge has a large weight, though not always the largest: its share of its source counts.
    assert summary.node.in_edges[0].weight == pytest.approx(weights[summary.node.in_edges[0].node], rel=1e-6)
    assert summary.node.in_strength == pytest.approx(weights.sum(), rel=1e-6)
    assert summary.paths
    assert all(path.nodes[1] == (1, 3) for path in summary.paths)


def test_edges_explain_the_rank_that_flows_along_them() -> None:
    model = tiny_llama()
    pipeline = IsolatedFFNPipeline(model, None, calibration=token_ids())
    inspection = inspect_model(pipeline, {"wpr": WeightedPageRankScorer(gamma=0.3, edges="gate")}, "wpr")
    name = next(iter(inspection.layers))
    energies = next(iter(model.model.layers)).mlp.gate_proj.weight.detach().double().numpy() ** 2
    rank, graph = inspection.main.ranks[0], inspection.graphs[0].graph
    arriving = energies[3] / energies.sum(0) * rank.scores[0]
    facts = summarise_neuron(inspection, name, 3, top=2).node
    assert [edge.node for edge in facts.in_edges] == np.argsort(-arriving)[:2].tolist()
    assert facts.in_edges[0].share == pytest.approx(arriving.max() / arriving.sum(), rel=1e-4)
    teleport = graph.activations[1].astype(np.float64) ** 2
    shares = 0.3 * arriving.sum(), 0.7 * teleport[3] / teleport.sum()
    assert facts.through_graph == pytest.approx(shares[0] / sum(shares), rel=1e-4)
    # The neuron's own facts and those of its layer are the model's, without squares.
    assert facts.activation == pytest.approx(graph.activations[1][3])
    assert facts.in_strength == pytest.approx(graph.block(1).toarray()[3].sum(), rel=1e-5)
    row = summarise_inspection(inspection).layers[name]
    assert row.through_graph == pytest.approx(0.3)
    assert row.activation.mean == pytest.approx(graph.activations[1].mean())


def test_a_neuron_is_written_with_the_number_or_the_name_of_its_layer() -> None:
    inspection = inspected()
    names = list(inspection.layers)
    layers = {name: {name: 40} for name in names}
    assert parse_neuron(layers, "1:17") == (names[1], 17)
    assert parse_neuron(layers, f"{names[0]}:3") == (names[0], 3)
    assert parse_neuron(layers, " 1 : 3 ") == (names[1], 3)
    for wrong, message in (
        ("17", "LAYER:NEURON"),
        ("9:1", "0 to 1"),
        ("mlp:1", "0 to 1"),
        ("1:x", "LAYER:NEURON"),
        (":3", "LAYER:NEURON"),
        ("1:\N{SUPERSCRIPT TWO}", "LAYER:NEURON"),
        ("1:40", "neurons 0 to 39, got 40"),
    ):
        with pytest.raises(OptionError, match=message):
            parse_neuron(layers, wrong)
    with pytest.raises(OptionError, match="LAYER:NEURON"):
        split_neuron("17")
    with pytest.raises(OptionError, match="neurons 0 to 39, got 40"):
        summarise_neuron(inspection, names[0], 40)
    with pytest.raises(OptionError, match="no prunable layer 'mlp'"):
        summarise_neuron(inspection, "mlp", 0)


def test_unknown_names_are_refused_before_the_calibration() -> None:
    pipeline = ChainedFFNPipeline(tiny_llama(), None, calibration="no/such/file")
    with pytest.raises(OptionError, match="expected one of the scorers wpr, activation, random"):
        inspect_model(pipeline, SCORERS, "pagerank")
    with pytest.raises(OptionError, match="'thirds'"):
        inspect_model(pipeline, SCORERS, "wpr", "thirds")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_named_linears_are_pruned_as_the_pipeline_prunes_them(topology: str) -> None:
    pipeline = TOPOLOGIES[topology](
        tiny_llama(), None, STRUCTURE, SCORERS["wpr"], GlobalPruner(0.4), calibration=token_ids()
    )
    inspection = inspect_model(pipeline, SCORERS, "wpr", "global")
    pipeline.run()
    assert inspection.main.masks["global"] == pipeline.masks
