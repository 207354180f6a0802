"""A twelfth of all causal language models of transformers: none goes wrong. And the parts of the sweep."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.families import MODEL_TYPES, RESULTS, difference, main, measured, run_all, table
from benchmarks.hand_masks import Reader, experts_silenced, neurons_set_to_zero
from benchmarks.tiny_configs import FFN, layers_of_every_kind, tiny_config, tiny_model
from llmrank import Masks
from llmrank.models.measured_families import OTHER_TARGETS

# Types of which something was once found or named wrongly.
OUTCOMES = {
    "bart": "stock",
    "blt": "llmrank.load",
    "dory": "refused",
    "gemma3": "stock",
    "gemma3n_text, dense": "stock",
    "granitemoehybrid, dense": "stock",
    "jamba, dense": "stock",
    "mamba": "refused",
    "mllama": "stock",
    "phi4_multimodal": "stock",
    "xlnet": "stock",
    "xmod": "stock",
}
# The same of blocks: lists by block that look like lists of positions, and settings by the number of the block.
OUTCOMES_OF_BLOCKS = {"bloom": "refused", "gemma4_unified": "stock", "llama4": "stock", "mllama": "stock"}


def test_a_twelfth_of_all_types_and_those_with_a_history() -> None:
    chosen = [*MODEL_TYPES[::12], *OUTCOMES, *OUTCOMES_OF_BLOCKS]
    assert len(chosen) > 18
    rows = dict(run_all(list(dict.fromkeys(chosen)), timeout=60.0))
    bad = {name: row for name, row in rows.items() if row["outcome"] in ("wrong", "traceback", "timeout")}
    assert not bad
    # gemma3n needs timm.
    assert {name for name, row in rows.items() if row["outcome"] == "cannot build"} <= {"gemma3n"}
    assert {name: rows[name]["outcome"] for name in OUTCOMES} == OUTCOMES
    assert {name: rows[name]["blocks"]["outcome"] for name in OUTCOMES_OF_BLOCKS} == OUTCOMES_OF_BLOCKS
    of_experts = [row["experts"] for row in rows.values() if "experts" in row]
    assert sum(row["outcome"] == "stock" for row in of_experts) > 2
    assert {row["outcome"] for row in of_experts} <= {"stock", "refused"}
    of_blocks = [row["blocks"] for row in rows.values() if "blocks" in row]
    assert sum(row["outcome"] == "stock" for row in of_blocks) > 8
    assert {row["outcome"] for row in of_blocks} <= {"stock", "refused"}
    for row in [*rows.values(), *of_experts, *of_blocks]:
        if row["outcome"] in ("stock", "llmrank.load"):
            # Otherwise equal logits would prove nothing.
            assert row["effect"] > 100 * row["error"]
            assert row["effect"] > 1e-3
        else:
            assert row["reason"]


def test_a_model_that_takes_too_long_is_left_and_the_next_one_runs() -> None:
    (_, late), (_, other) = list(run_all(["llama"], timeout=0.0)) + list(run_all(["llama"], timeout=60.0))
    assert (late["outcome"], late["reason"]) == ("timeout", "more than 0 s")
    assert (other["outcome"], other["class"], other["kinds"]) == ("stock", "LlamaForCausalLM", {"gated": 2})


def test_an_error_of_another_kind_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any) -> Any:
        raise KeyError("lost")

    monkeypatch.setattr("benchmarks.families.find_ffns", broken)
    row = measured("llama")
    assert row["outcome"] == "traceback"
    assert row["reason"] == "KeyError: 'lost' in test_families.py, broken"


def test_masked_neurons_add_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, keep = torch.randn(5, 4), torch.tensor([True, False, True, True, False, True])
    hidden = torch.relu(x @ model[0].weight.T + model[0].bias)
    expected = (hidden * keep) @ model[2].weight.T + model[2].bias
    before = model(x)
    with neurons_set_to_zero(model, Masks({"0": keep}), {"0": Reader("2")}):
        torch.testing.assert_close(model(x), expected)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("transposed", [False, True])
def test_masked_neurons_of_an_expert_have_no_weights(transposed: bool) -> None:
    model = nn.Module()
    model.down = nn.Parameter(torch.ones(3, 6, 4) if transposed else torch.ones(3, 4, 6))
    keep = torch.tensor([True, False, True, True, False, True])
    with neurons_set_to_zero(model, Masks({"experts.1": keep}), {"experts.1": Reader("", "down", 1)}):
        found = model.down[1].T if transposed else model.down[1]
        assert torch.equal(found, keep.float().expand(4, 6))
        assert bool((model.down[[0, 2]] == 1).all())
    assert bool((model.down == 1).all())


def test_silenced_experts_have_logits_of_minus_infinity() -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.block = nn.ModuleDict(
        {"gate": nn.Linear(4, 3), "experts": nn.Linear(4, 3), "other": nn.Linear(4, 3, bias=False)}
    )
    model.block.gate.register_buffer("e_score_correction_bias", torch.zeros(3))
    model.block.other.weight = nn.Parameter(torch.ones(5, 4))
    masks = Masks({f"block.experts.{k}": torch.full((6,), k != 1) for k in range(3)})
    x = torch.randn(2, 4)
    before = model.block.gate(x), model.block.experts(x)
    with experts_silenced(model, masks):
        found = model.block.gate(x)
        assert torch.equal(found[:, [0, 2]], before[0][:, [0, 2]])
        assert bool((found[:, 1] == -torch.inf).all())
        assert model.block.gate.e_score_correction_bias.tolist() == [0.0, -torch.inf, 0.0]
        assert torch.equal(model.block.experts(x), before[1])
    assert torch.equal(model.block.gate(x), before[0])
    assert model.block.gate.e_score_correction_bias.tolist() == [0.0] * 3


def test_difference_is_a_share_of_the_largest_number() -> None:
    assert difference(torch.tensor([1.0, -3.0]), torch.tensor([1.0, -4.0])) == 0.25
    assert difference(torch.tensor([1.0]), torch.tensor([1.0, 2.0])) == float("inf")
    assert difference(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")


def test_layers_of_every_kind_are_kept() -> None:
    assert layers_of_every_kind([("a",), ("a",), ("b",), ("a",), ("c",)]) == [0, 2, 4]
    assert layers_of_every_kind([("a",)] * 9) == [0, 1]
    assert layers_of_every_kind([(kind,) for kind in "abcdefgh"]) == [0, 1, 2, 3, 4, 5]


def test_a_deeper_model_has_layers_of_every_kind_in_turn() -> None:
    config = tiny_model("qwen3_5_text", depth=5).config
    assert config.num_hidden_layers == 5
    assert config.layer_types == (tiny_config("qwen3_5_text").layer_types * 3)[:5]


def test_a_tiny_model_has_seeded_weights_and_small_sizes() -> None:
    config = tiny_config("qwen3_5_text")
    assert (config.intermediate_size, set(config.layer_types)) == (FFN, {"linear_attention", "full_attention"})
    first, again = (tiny_model("llama", seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert sum(value.numel() for value in first.values()) < 100_000


def test_the_page_has_the_counts_of_the_results() -> None:
    lines = (RESULTS / "families.md").read_text(encoding="utf-8").splitlines()
    pipes = 3 + len(OTHER_TARGETS)
    counts = [line.split("|")[2:] for line in lines if line.count("|") == pipes][2:]
    page = (RESULTS.parents[1] / "docs/results/families.md").read_text(encoding="utf-8").splitlines()
    assert len(counts) > 2
    assert [line.split("|")[2:] for line in page if line.count("|") == pipes][2:] == counts
    types, variants = re.findall(r"\d+", lines[0])[0], re.search(r"and (\d+) variants", lines[0])
    assert variants is not None
    assert f"Of each of the {types} model types" in page[2]
    assert f"of {variants[1]} variants" in page[2]


def test_a_run_resumes(tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "families.json"
    main(["--only", "llama", "--output", str(output)])
    main(["--only", "mamba", "--output", str(output)])
    assert "resuming with 1 rows" in capsys.readouterr().out
    results = json.loads(output.read_text(encoding="utf-8"))
    assert list(results["rows"]) == ["llama", "mamba"]
    lines = output.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    assert lines == table(results).splitlines()
    assert "| stock | 1 | 0 | 1 | 1 |" in lines
    assert "| refused | 1 | 0 | 1 | 1 |" in lines
    assert [line.split(" | ")[:6] for line in lines[-2:]] == [
        ["| llama", "stock", "", "stock", "stock", "2 gated"],
        ["| mamba", "refused", "", "refused", "refused", ""],
    ]
