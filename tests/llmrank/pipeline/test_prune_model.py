"""Pruning in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llmrank
from llmrank import prune_model
from llmrank.errors import OptionError
from llmrank.pipeline import CalibrationText, ChainedFFNPipeline
from llmrank.prune import GlobalPruner
from llmrank.score import NormScorer
from llmrank.surgery.repair import LeastSquaresRepair
from tests.llmrank.tiny_models import LLAMA, Snapshot, logits, text, tiny_llama, token_ids, tokenizer

WIDTH = LLAMA["intermediate_size"]
SHORT: dict[str, Any] = {"calibration": text(200), "samples": 4, "sequence_length": 16}


def test_components_by_spec_and_by_object_are_the_same() -> None:
    by_spec = prune_model(
        tiny_llama(),
        tokenizer(),
        0.25,
        pipeline="chained",
        scorer="norm:p=2",
        pruner="global:normalize=robust",
        repair="lstsq:damping=0.1",
        **SHORT,
    )
    by_object = prune_model(
        tiny_llama(),
        tokenizer(),
        pipeline=ChainedFFNPipeline,
        scorer=NormScorer(2.0),
        pruner=GlobalPruner(0.25, normalize="robust"),
        repair=LeastSquaresRepair(0.1),
        calibration=CalibrationText(text(200), 4, 16),
    )
    assert by_spec.masks == by_object.masks
    assert torch.equal(logits(by_spec.model, token_ids()), logits(by_object.model, token_ids()))
    assert by_spec.report.method == by_object.report.method


def test_it_is_what_the_pipeline_does_and_it_saves(tmp_path: Path) -> None:
    model = tiny_llama()
    pruned = prune_model(model, tokenizer(), amount=0.5, repair=None, **SHORT)
    pipeline = llmrank.IsolatedFFNPipeline(
        tiny_llama(),
        tokenizer(),
        pruner=llmrank.prune.LocalPruner(0.5),
        calibration=CalibrationText(text(200), 4, 16),
    )
    pipeline.run()
    assert pruned.model is model
    assert pruned.masks == pipeline.masks
    directory = pruned.save(tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert again.config.intermediate_size == WIDTH // 2
    assert torch.equal(logits(again, token_ids()), logits(model, token_ids()))
    assert (directory / "report.json").is_file()
    assert (directory / "masks.safetensors").is_file()


def test_the_amount_reaches_a_pruner_that_is_named(tmp_path: Path) -> None:
    pruned = prune_model(tiny_llama(), tokenizer(), 0.2, amount_of="bytes", pruner="global", repair="none", **SHORT)
    assert 0.2 <= pruned.report.reached["bytes"]["share"] < 0.22


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scorer": "wpr:gama=0.9"},
            r"scorer 'wpr' has no option 'gama' \(did you mean gamma\?\); its options are gamma",
        ),
        ({"pruner": "local:amount=0.5"}, "amount of pruner 'local:amount=0.5' is set outside of the spec"),
        ({"repair": "glue"}, "unknown repair 'glue'"),
        ({"pipeline": "loose"}, "unknown pipeline 'loose'"),
        ({"scorer": 3}, "scorer must be a BaseScorer or its name, such as 'norm', got 3"),
        ({"samples": 0}, "samples must be an integer >= 1, got 0"),
    ],
)
def test_bad_options_leave_the_model_untouched(options: dict[str, Any], message: str) -> None:
    model = tiny_llama()
    before = Snapshot(model)
    with pytest.raises(OptionError, match=message):
        prune_model(model, tokenizer(), **{**SHORT, **options})
    before.assert_restored()
