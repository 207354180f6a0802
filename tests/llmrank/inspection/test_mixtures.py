"""Inspections of mixtures of experts: the use and the score of every expert, and what pruning would remove of it."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmrank.errors import OptionError
from llmrank.inspection.figures import draw_experts, draw_layer, write_figures
from llmrank.inspection.inspect_model import Inspection, inspect_model
from llmrank.inspection.layers import parse_neuron, parts_by_layer
from llmrank.inspection.mixtures import summarise_experts
from llmrank.inspection.page import payload
from llmrank.inspection.summary import summarise_inspection, summarise_neuron
from llmrank.models import find_ffns
from llmrank.prune import BasePruner, GlobalPruner, LocalPruner
from llmrank.score import ActivationScorer, BaseScorer, FrequencyScorer, WeightedPageRankScorer
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from tests.llmrank.tiny_mixtures import MIXTURES, tiny_mixture

TOPOLOGIES = {"isolated": IsolatedFFNPipeline, "chained": ChainedFFNPipeline, "residual": ResidualFFNPipeline}
TARGETS = ("neurons", "experts", "neurons,experts")
IDS = torch.randint(3, 64, (4, 20), generator=torch.Generator().manual_seed(0))
FIRST, SECOND = "model.layers.0.mlp.experts", "model.layers.1.mlp.experts"


def inspected(
    model: Any = "qwen2_moe",
    topology: str = "isolated",
    targets: str = "neurons",
    pruner: BasePruner | None = None,
    budget: str = "local",
    **scorers: BaseScorer,
) -> Inspection:
    model = tiny_mixture(model) if isinstance(model, str) else model
    pipeline = TOPOLOGIES[topology](model, None, pruner=pruner or LocalPruner(0.3), targets=targets, calibration=IDS)
    return inspect_model(pipeline, {"wpr": WeightedPageRankScorer(), **scorers}, "wpr", budget)


def routing(model: Any, layer: int) -> torch.Tensor:
    """Compute the weight of every expert for every token in one layer of a Qwen2-MoE, (tokens, experts), token by token."""
    block = model.model.layers[layer].mlp
    seen: list[torch.Tensor] = []
    handle = block.register_forward_pre_hook(lambda _block, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    handle.remove()
    inputs = seen[0].reshape(-1, 32).double()
    weights = torch.zeros(len(inputs), 8, dtype=torch.float64)
    for token, x in enumerate(inputs):
        probabilities = torch.softmax(block.gate.weight.detach().double() @ x, 0)
        for expert in probabilities.argsort(descending=True)[:2]:
            weights[token, expert] = probabilities[expert]
    return weights


# --- use and score


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_use_and_score_of_experts_equal_loops(topology: str) -> None:
    model = tiny_mixture("qwen2_moe")
    inspection = inspected(model, topology)
    for layer, name in enumerate((FIRST, SECOND)):
        weights = routing(model, layer)
        place = inspection.layers[name]
        scores = inspection.main.ranks[place.graph].scores[place.position]
        assert inspection.main.importance[name].sum() == pytest.approx(1.0)
        *experts, shared = summarise_experts(inspection, name)
        for e, each in enumerate(experts):
            assert each.name == f"{name}.{e}"
            assert (each.n_neurons, each.routed, each.is_dead) == (24, True, False)
            assert each.tokens == sum(1 for w in weights[:, e] if w > 0) / 80
            assert each.weight == pytest.approx(sum(float(w) for w in weights[:, e]) / 80)
            assert each.score == pytest.approx(sum(float(scores[24 * e + i]) for i in range(24)))
        assert shared.name == f"model.layers.{layer}.mlp.shared_expert"
        assert (shared.n_neurons, shared.routed, shared.tokens, shared.weight) == (40, False, 1.0, 1.0)
        assert sum(each.score for each in (*experts, shared)) == pytest.approx(1.0)


def test_a_layer_is_the_whole_mixture() -> None:
    inspection = inspected()
    assert list(inspection.layers) == list(parts_by_layer(find_ffns(tiny_mixture("qwen2_moe")))) == [FIRST, SECOND]
    summary = summarise_inspection(inspection)
    assert [layer.n_nodes for layer in summary.layers.values()] == [8 * 24 + 40] * 2
    for budget, masks in inspection.main.masks.items():
        for name in (FIRST, SECOND):
            widths = [width for part, width in masks.widths.items() if part.startswith(name.removesuffix("experts"))]
            assert summary.kept[budget][name] == sum(widths) == int(inspection.main.keep[budget][name].sum())
    content = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert content["targets"] == ["neurons"]
    assert len(content["layers"][FIRST]["experts"]) == 9
    assert content["layers"][FIRST]["experts"][0]["dead"] is False


def test_an_expert_without_tokens_is_dead() -> None:
    model = tiny_mixture("qwen2_moe")
    with torch.no_grad():
        # A row of zeros gives a logit of 0; shifted inputs are not needed, as other rows exceed it.
        for layer in model.model.layers:
            layer.mlp.gate.weight[5] = -layer.mlp.gate.weight[[0, 1, 2, 3, 4, 6, 7]].sum(0)
    inspection = inspected(model, targets="experts")
    for layer, name in enumerate((FIRST, SECOND)):
        used = (routing(model, layer) > 0).any(0).tolist()
        assert [each.is_dead for each in summarise_experts(inspection, name)] == [not each for each in used] + [False]


# --- what goes


@pytest.mark.parametrize("budget", ["local", "global"])
@pytest.mark.parametrize("targets", TARGETS)
def test_its_masks_are_those_of_the_pipeline(targets: str, budget: str) -> None:
    pruner = LocalPruner(0.4) if budget == "local" else GlobalPruner(0.4)
    inspection = inspected(targets=targets, pruner=pruner, budget=budget)
    pipeline = IsolatedFFNPipeline(
        tiny_mixture("qwen2_moe"),
        None,
        scorer=WeightedPageRankScorer(),
        pruner=pruner,
        targets=targets,
        calibration=IDS,
        form="zero",
    )
    pipeline.run()
    assert inspection.main.masks[budget] == pipeline.masks
    for name in (FIRST, SECOND):
        for each in summarise_experts(inspection, name):
            assert each.kept[budget] == int(inspection.main.masks[budget][each.name].sum())


def test_the_lowest_experts_are_removed() -> None:
    inspection = inspected(targets="experts")
    for name in (FIRST, SECOND):
        experts = [each for each in summarise_experts(inspection, name) if each.routed]
        order = sorted(range(8), key=lambda e: experts[e].score)
        assert [e for e in range(8) if experts[e].kept["local"] == 0] == sorted(order[: round(0.3 * 8)])


def test_agreement_on_experts_compares_experts() -> None:
    inspection = inspected(targets="experts", frequency=FrequencyScorer())
    found = summarise_inspection(inspection).agreement["frequency"].correlation
    correlations = []
    for name in (FIRST, SECOND):
        ours = [each.score for each in summarise_experts(inspection, name) if each.routed]
        theirs = [each.tokens for each in summarise_experts(inspection, name) if each.routed]
        ranks = [np.array([sum((b < a) + 0.5 * (b == a) for b in v) for a in v]) for v in (ours, theirs)]
        correlations.append(np.corrcoef(*ranks)[0, 1])
    assert found == pytest.approx(np.mean(correlations))


@pytest.mark.parametrize(
    ("name", "targets", "topology"),
    [
        *itertools.product(MIXTURES, TARGETS[:1], ["isolated"]),
        *itertools.product(["qwen2_moe", "deepseek_v3"], TARGETS[1:], TOPOLOGIES),
    ],
)
def test_the_page_shows_the_masks_of_every_mixture(name: str, targets: str, topology: str) -> None:
    """The data says in a note where they differ."""
    inspection = inspected(name, topology, targets, GlobalPruner(0.3), activation=ActivationScorer())
    content = json.loads(json.dumps(payload(inspection), allow_nan=False))
    assert [note for note in content["notes"] if not note.startswith("Neurons and experts are removed together")] == []
    assert content["targets"] == targets.split(",")
    summarise_inspection(inspection).to_dict()
    assert sum(layer["size"] for layer in content["layers"]) == inspection.main.masks["local"].size


@pytest.mark.parametrize("targets", ["neurons", "experts"])
@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3"])
def test_the_page_holds_the_masks_of_other_amounts(name: str, targets: str) -> None:
    content = payload(inspected(name, targets=targets))
    shape = (len(content["multiples"]), len(content["amounts"]), len(content["units"]))

    def array(entry: dict[str, str]) -> np.ndarray:
        return np.frombuffer(base64.b64decode(entry["data"]), np.dtype(entry["dtype"]).newbyteorder("<"))

    scorer = content["scorers"]["wpr"]
    positions = array(scorer["positions"]["local"])
    tables = {"local": array(content["removed"]), "global": array(scorer["removed"])}
    starts = np.cumsum([0, *(layer["size"] for layer in content["layers"])])
    for percent, multiple in ((10, 1), (40, 1), (45, 64)):
        for kind in (LocalPruner, GlobalPruner):
            other = inspected(name, targets=targets, pruner=kind(percent / 100, multiple_of=multiple), budget=kind.name)
            shown = np.ones(len(positions), dtype=bool)
            counts = tables[kind.name].reshape(shape)[content["multiples"].index(multiple), percent]
            for units, count in zip(content["units"], counts, strict=True):
                first = starts[units["layer"]] + units["start"]
                shown[first : first + units["size"]] = positions[first : first + units["size"]] >= count
            assert shown.tolist() == np.concatenate(list(other.main.keep[kind.name].values())).tolist()


# --- neurons


def test_a_neuron_of_an_expert_is_found_by_the_expert() -> None:
    layers = parts_by_layer(find_ffns(tiny_mixture("qwen2_moe")))
    wanted = (SECOND, 3 * 24 + 5)
    for text in (f"{SECOND}.3:5", "1.3:5", "1:77", f"{SECOND}:77"):
        assert parse_neuron(layers, text) == wanted
    assert parse_neuron(layers, "model.layers.0.mlp.shared_expert:39") == (FIRST, 8 * 24 + 39)
    for text, message in (
        ("1.3:24", r"experts\.3 has neurons 0 to 23, got 24"),
        ("1.9:0", "no prunable layer '1.9'"),
        ("2.0:0", "expected 0 to 1"),
        ("1:232", "neurons 0 to 231"),
    ):
        with pytest.raises(OptionError, match=message):
            parse_neuron(layers, text)


@pytest.mark.parametrize("targets", TARGETS)
def test_a_neuron_is_compared_with_those_that_it_competes_with(targets: str) -> None:
    inspection = inspected(targets=targets)
    scores, keep = inspection.main.importance[FIRST], inspection.main.keep["local"][FIRST]
    of_experts = [scores[24 * e : 24 * e + 24].sum() for e in range(8)]
    kept_experts = [keep[24 * e : 24 * e + 24].any() for e in range(8)]
    for neuron in (3, 30, 77, 190):
        e = neuron // 24
        found = summarise_neuron(inspection, FIRST, neuron)
        verdict = found.verdicts["local"]
        assert found.label == f"neuron {neuron % 24} of {FIRST}.{e}"
        assert verdict.kept == keep[neuron]
        if targets == "experts" or not kept_experts[e]:
            assert verdict.among == "mixture"
            mine, others, stays = of_experts[e], of_experts, kept_experts
        else:
            assert verdict.among == "expert"
            mine, others, stays = scores[neuron], scores[24 * e : 24 * e + 24], keep[24 * e : 24 * e + 24]
        other_side = [s for s, kept in zip(others, stays, strict=True) if kept != verdict.kept]
        if other_side:
            assert verdict.margin == pytest.approx(mine / (max(other_side) if verdict.kept else min(other_side)))
        else:
            assert np.isnan(verdict.margin)


# --- refusals and figures


def test_targets_that_the_model_or_the_amount_does_not_allow_are_refused() -> None:
    from tests.llmrank.tiny_models import tiny_llama

    with pytest.raises(OptionError, match="has no experts"):
        inspected(tiny_llama(), targets="experts")
    with pytest.raises(OptionError, match="the amount is a share of each: of heads, and of the neurons"):
        inspected(targets="neurons,experts", pruner=LocalPruner(5))
    with pytest.raises(OptionError, match="no mixture of experts to draw"):
        draw_experts(inspected(tiny_llama()))
    with pytest.raises(OptionError, match="no mixture of experts"):
        summarise_experts(inspected("deepseek_v3"), "model.layers.0.mlp")


@pytest.mark.parametrize("targets", TARGETS)
def test_the_figure_of_experts_shows_their_use_and_score(targets: str) -> None:
    inspection = inspected(targets=targets)
    figure = draw_experts(inspection)
    figure.canvas.draw()
    use, score = (axes.images[0].get_array() for axes in figure.axes[:2])
    for row, name in enumerate((FIRST, SECOND)):
        experts = [each for each in summarise_experts(inspection, name) if each.routed]
        scores = np.array([each.score for each in experts])
        np.testing.assert_allclose(use[row], [100 * each.tokens for each in experts])
        np.testing.assert_allclose(score[row], scores / scores.mean())
    n_removed = sum(each.kept["local"] == 0 for name in (FIRST, SECOND) for each in summarise_experts(inspection, name))
    assert len(figure.axes[0].lines) == 2 * n_removed
    assert ("crosses" in figure.get_suptitle()) == bool(n_removed)


def test_all_figures_of_a_mixture_are_drawn(tmp_path: Path) -> None:
    inspection = inspected("deepseek_v3", "chained", "experts")
    written = write_figures(inspection, tmp_path, ["svg"], top=4)
    assert [path.stem for path in written] == [
        "removed_neurons", "concentration", "agreement", "experts", "layer-0", "layer-1",
    ]  # fmt: skip
    draw_layer(inspection, "model.layers.1.mlp.experts", top=3).canvas.draw()
