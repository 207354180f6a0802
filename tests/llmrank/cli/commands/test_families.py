"""``llmrank families`` prints what the sweep over all model types found."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.families import PACKAGED, RESULTS, for_the_package
from llmrank.models.measured_families import measured_families
from tests.llmrank.commands import refused, run


def test_families_lists_what_was_measured(capsys: Any) -> None:
    assert run("families") == 0
    shown = capsys.readouterr().out
    rows = measured_families().rows
    assert all(name[:12] in shown for name in rows)
    assert str(sum(row["outcome"] == "stock" for row in rows.values())) in shown
    assert run("families", "qwen*moe") == 0
    shown = capsys.readouterr().out
    assert "qwen2_moe" in shown
    assert "qwen2 " not in shown
    assert run("families", "mamba2") == 0
    assert "found no feed-forward network in Mamba2ForCausalLM" in " ".join(capsys.readouterr().out.split())
    assert run("families", "gpt_neo") == 0  # not gpt_neox
    assert "blocks: the blocks of GPTNeoForCausalLM" in " ".join(capsys.readouterr().out.split())
    assert "no model type matches 'perceptron'" in refused(capsys, "families", "perceptron")


def test_the_measured_families_are_those_of_the_benchmark() -> None:
    results = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))
    assert PACKAGED.read_text(encoding="utf-8") == for_the_package(results)
    assert measured_families().transformers == results["protocol"]["transformers"]
