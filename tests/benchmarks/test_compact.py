"""A speed-up is of what it says, and its promise is of the work that was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import compact, figures
from benchmarks.compact import (
    Stopwatch,
    Trial,
    batch_of,
    check_alone,
    ffn_inputs,
    generate,
    limit,
    memory,
    rows,
    study,
    table,
    trials,
)
from benchmarks.variants import variants
from llmrank.models import find_ffns
from tests.llmrank.tiny_models import FFN, HIDDEN, Snapshot, family_model, named_family, tiny_llama, token_ids


def test_inputs_of_the_ffns_are_what_they_read() -> None:
    model = tiny_llama()
    expected: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(lambda _m, _i, output: expected.append(output.clone()))
    with torch.no_grad():
        read = ffn_inputs(model, find_ffns(model), token_ids(2, 5))
    assert len(read) == 2
    assert all(torch.equal(a, b) for a, b in zip(read, expected, strict=True))
    assert not any(ffn.module._forward_pre_hooks for ffn in find_ffns(model))


def test_more_tokens_than_the_sequence_has_are_several_sequences() -> None:
    ids = torch.arange(8)[None]
    assert batch_of(ids, 3).tolist() == [[0, 1, 2]]
    assert batch_of(ids, 16).tolist() == [[*range(8)], [*range(8)]]
    with pytest.raises(ValueError, match="12 tokens"):
        batch_of(ids, 12)


def test_contenders_take_turns_and_are_waited_for(monkeypatch: Any) -> None:
    monkeypatch.setattr("benchmarks.measure.QUICK", 0.0)  # one call counts
    seen: list[str] = []
    stopwatch = Stopwatch(3, lambda: seen.append("wait"))
    spent = stopwatch({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")})
    assert seen == ["a", "wait", "b", "wait"] * 4  # the first goes uncounted
    assert [len(seconds) for seconds in spent.values()] == [3, 3]


def test_a_speedup_is_the_median_of_the_rounds_quotients() -> None:
    found = variants(tiny_llama(), token_ids(1, 8), [0.5], [4])
    dense, half = (v.label for v in found)
    trial = Trial("ffn", 2, lambda v: None, lambda v: 10 * v.width, lambda v: 2 * v.width)
    (row,) = rows(trial, found, {dense: [6.0, 2.0, 4.0], half: [2.0, 1.0, 8.0]})
    assert (row["speedup"], row["promised"], row["removed"]) == (2.0, 2.0, 0.5)
    assert row["quartiles"] == [1.25, 2.5]
    assert row["kept_promise"]
    assert row["gflops_per_second"] == {"dense": pytest.approx(2e-7), "compact": pytest.approx(2e-7)}
    assert row["gigabytes_per_second"] == {"dense": pytest.approx(2e-8), "compact": pytest.approx(2e-8)}
    (late,) = rows(trial, found, {dense: [1.79], half: [1.0]})
    assert not late["kept_promise"]


def test_trials_count_what_they_do() -> None:
    """Against torch's counter, which counts all pairs of tokens where we count those that are not masked."""
    (dense,) = variants(tiny_llama(attn_implementation="eager"), token_ids(1, 8), [], [1])
    attended = 2 * 16  # a layer's queries by keys, and what they weigh
    found = {(trial.what, trial.tokens): trial for trial in trials(dense, token_ids(1, 8), [4, 16], 5)}
    masked = {("ffn", 4): 0, ("ffn", 16): 0, ("forward", 4): 6, ("forward", 16): 2 * 28, ("generation", 5): 10}
    assert found.keys() == masked.keys()
    for key, trial in found.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            trial.run(dense)
        assert 2 * (trial.work(dense) + 2 * attended * masked[key]) == counter.get_total_flops(), key
    weights = (
        sum(p.numel() for n, p in dense.model.named_parameters() if "proj" in n) + dense.model.lm_head.weight.numel()
    )
    assert found["forward", 4].bytes_read(dense) == 4 * weights
    assert found["generation", 5].bytes_read(dense) == 5 * 4 * weights
    assert found["ffn", 16].bytes_read(dense) == 4 * 2 * 3 * HIDDEN * FFN


def test_an_ffn_without_a_module_of_its_own_is_refused() -> None:
    check_alone(find_ffns(family_model(named_family("GPT-2"))))
    with pytest.raises(ValueError, match=r"layers\.0 holds more than its FFN"):
        check_alone(find_ffns(family_model(named_family("OPT"))))


def test_what_limits_is_what_half_of_the_best_is_reached_of() -> None:
    best = {"gflops_per_second": 100.0, "gigabytes_per_second": 10.0}

    def of(rate: float, reading: float) -> str:
        return limit({"gflops_per_second": {"compact": rate}, "gigabytes_per_second": {"compact": reading}}, best)

    assert of(80.0, 2.0) == "arithmetic, 80% of the best"
    assert of(10.0, 6.0) == "memory, 60% of the best"
    assert of(49.0, 4.9) == "neither"


def test_as_much_is_generated_whatever_comes_out() -> None:
    model = tiny_llama()
    with torch.no_grad():
        assert generate(model, token_ids(1, 6)).shape == (1, 12)


@pytest.mark.slow
def test_a_smaller_model_is_a_smaller_file_to_load() -> None:
    model = tiny_llama()
    dense, half = memory(model, token_ids(1, 8), [0.5], 4)
    assert (dense["width"], half["width"]) == (40, 20)
    # Beside the weights a file says which tensor lies where.
    assert dense["file_bytes"] - half["file_bytes"] == pytest.approx(4 * 2 * 3 * HIDDEN * 20, abs=100)
    assert all(row["peak_bytes"] > 1e8 for row in (dense, half))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_study_of_a_tiny_model(tmp_path: Path, monkeypatch: Any, dtype: torch.dtype) -> None:
    monkeypatch.setattr("benchmarks.measure.QUICK", 0.0)
    monkeypatch.setattr(compact, "peak", lambda *_: {"gflops_per_second": 1.0, "gigabytes_per_second": 1.0})
    model = tiny_llama().to(dtype)
    before = Snapshot(model)
    case = study(model, token_ids(1, 32), [0.1, 0.5], [1, 16], 3, 2, 4)
    before.assert_restored()
    assert [(row["what"], row["tokens"], row["width"]) for row in case["rows"]] == [
        (what, tokens, width)
        for what, tokens in (("ffn", 1), ("ffn", 16), ("forward", 1), ("forward", 16), ("generation", 3))
        for width in (36, 20)
    ]
    promised = {(row["what"], row["width"]): row["promised"] for row in case["rows"]}
    assert promised["ffn", 20] == 2.0
    assert promised["ffn", 36] == pytest.approx(10 / 9)
    assert 1.0 < promised["generation", 20] < 2.0
    assert (case["device"], f"torch.{case['dtype']}") == ("cpu", str(dtype))
    provenance = {"cpu": "a", "cores": 1, "threads": "1", "gpu": None}
    protocol = {"model": "tiny", "rounds": 2, "multiple": 4}
    results = {"provenance": provenance, "protocol": protocol, "cases": [case], "memory": []}
    shown = table(results)
    assert "## FFNs alone:" in shown
    assert shown.count("\n| 16 |") == 4
    (figure,) = figures.compact(results, tmp_path)
    assert figure.stat().st_size > 0
