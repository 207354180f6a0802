"""Pruning in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import llmrank
from llmrank import prune_model
from llmrank.errors import CalibrationError, OptionError
from llmrank.pipeline import CalibrationText, ChainedFFNPipeline
from llmrank.prune import GlobalPruner
from llmrank.repair import LeastSquaresRepair
from llmrank.score import NormScorer
from tests.llmrank.tiny_models import LLAMA, Snapshot, logits, text, tiny_llama, tiny_t5, token_ids, tokenizer
from tests.tables import table

WIDTH = LLAMA["intermediate_size"]
SHORT: dict[str, Any] = {"calibration": text(200), "samples": 4, "sequence_length": 16}


VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def seeing_model() -> Any:
    """Make a Gemma 3, which has a vision tower beside its text tower."""
    torch.manual_seed(0)
    pixels = {"image_size": 8, "patch_size": 4}
    config = transformers.Gemma3Config(
        text_config=LLAMA | {"model_type": "gemma3_text"},
        vision_config=VISION | pixels | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        **dict.fromkeys(("boi_token_index", "eoi_token_index", "image_token_index"), LLAMA["vocab_size"] - 1),
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight[:6] *= (
            8.0  # so that a global budget gives unequal widths
        )
    return model


@pytest.mark.parametrize("pruner", ["local", "global:normalize=none"])
def test_a_tower_that_no_token_reaches_is_left_alone(pruner: str, tmp_path: Path) -> None:
    model = seeing_model()
    tower = {name: value.clone() for name, value in model.state_dict().items() if "vision" in name}
    pruned = prune_model(model, None, 0.3, pruner=pruner, repair="none", calibration=token_ids(4, 16), samples=4)
    assert set(pruned.masks) == {f"model.language_model.layers.{k}.mlp" for k in range(2)}
    assert pruned.report.notes == ["no token reaches model.vision_tower.encoder.layers: its FFNs were left as they are"]
    assert len(tower) > 4
    assert all(torch.equal(model.state_dict()[name], value) for name, value in tower.items())
    wanted = logits(model, token_ids(2, 12))
    saved = pruned.save(tmp_path / "out")
    if pruner == "local":
        stock = transformers.AutoModelForImageTextToText.from_pretrained(saved)
        torch.testing.assert_close(logits(stock, token_ids(2, 12)), wanted)
    else:
        assert not pruned.masks.is_uniform
    torch.testing.assert_close(logits(llmrank.load(saved).model, token_ids(2, 12)), wanted)


def test_a_model_that_does_not_run_on_a_few_tokens_keeps_all_its_ffns() -> None:
    class Long(transformers.T5ForConditionalGeneration):
        def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
            if input_ids.shape[1] < 8:
                raise ValueError("too short")
            return super().forward(input_ids=input_ids, **more)

    model = Long(tiny_t5().config)
    pruned = prune_model(model, None, 0.3, repair="none", calibration=token_ids(4, 16), samples=4)
    assert len(pruned.masks) == 4
    assert pruned.report.notes == []


def test_states_of_an_image_are_passed_to_models_with_layers_that_attend_to_them() -> None:
    class Unused(transformers.LlamaForCausalLM):
        """Its forward has the parameter, as BLT's, but passes it twice if it is given."""

        def forward(self, input_ids: torch.Tensor, cross_attention_states: Any = None, **more: Any) -> Any:
            if cross_attention_states is not None:
                raise TypeError("got multiple values")
            return super().forward(input_ids=input_ids, **more)

    prune_model(Unused(tiny_llama().config), None, 0.3, repair="none", calibration=token_ids(4, 16), samples=4)


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
    pruned = prune_model(model, tokenizer(), amount=0.5, **SHORT)
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


@table(
    ("options", "message"),
    [
        (
            {"scorer": "wpr:gama=0.9"},
            r"scorer 'wpr' has no option 'gama' \(did you mean gamma\?\); its options are gamma",
        ),
        ({"pruner": "local:amount=0.5"}, "amount of pruner 'local:amount=0.5' is set outside of the spec"),
        ({"repair": "glue"}, "unknown repair 'glue'"),
        ({"pipeline": "loose"}, "unknown pipeline 'loose'"),
        ({"scorer": 3}, "scorer must be a BaseScorer or its name, such as 'auto', got 3"),
        ({"samples": 0}, "samples must be an integer >= 1, got 0"),
    ],
)
def test_bad_options_leave_the_model_untouched(options: dict[str, Any], message: str) -> None:
    model = tiny_llama()
    before = Snapshot(model)
    with pytest.raises(OptionError, match=message):
        prune_model(model, tokenizer(), **{**SHORT, **options})
    before.assert_restored()


def test_an_interruption_when_everything_is_done_leaves_the_model_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Any) -> Any:
        raise KeyboardInterrupt

    model = tiny_llama()
    before = Snapshot(model)
    monkeypatch.setattr("llmrank.pipeline.pruning_run.PruningRun.masks", property(interrupt))
    with pytest.raises(KeyboardInterrupt):
        prune_model(model, tokenizer(), undoable=True, **SHORT)
    before.assert_restored()


def test_it_can_be_undone_if_that_was_asked_for(tmp_path: Path) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    pruned = prune_model(model, tokenizer(), undoable=True, **SHORT)
    assert model.config.intermediate_size < WIDTH
    assert pruned.undo() is model
    snapshot.assert_restored()
    with pytest.raises(OptionError, match="nothing to undo: the model was restored already"):
        pruned.undo()
    with pytest.raises(OptionError, match="no pruned model to save"):
        pruned.save(tmp_path / "dense")
    pruned = prune_model(model, tokenizer(), **SHORT)
    with pytest.raises(OptionError, match="applied for good"):
        pruned.undo()


WRONG: tuple[Any, ...] = (
    5,
    2.5,
    True,
    b"x",
    [1],
    {"a": 1},
    object(),
    np.arange(3),
    torch.ones(2),
    len,
    int,
    10**400,
    set(),
)
# What each argument may be among them.
ALLOWED: dict[str, tuple[Any, ...]] = {"progress": (len, int), "device": (5, True)}


@table(
    "name",
    [
        "model",
        "amount_of",
        "targets",
        "pipeline",
        "scorer",
        "pruner",
        "repair",
        "form",
        "device",
        "progress",
        "work_directory",
    ],
)
def test_arguments_of_wrong_types_are_named(name: str) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    for wrong in WRONG:
        if any(wrong is allowed for allowed in ALLOWED.get(name, ())):
            continue
        options = {"model": model, "repair": "none", "scorer": "wpr", "calibration": token_ids(2, 8), name: wrong}
        with pytest.raises(OptionError, match=rf"^(unknown )?{name}\b"):
            prune_model(**options)
        snapshot.assert_restored()


@pytest.mark.parametrize("share", [float("nan"), 0.0, -0.5])
def test_shares_of_a_mixture_are_numbers(share: float, corpus: Path) -> None:
    with pytest.raises(CalibrationError, match="shares must be above 0 and add up to 1"):
        prune_model(tiny_llama(), tokenizer(), calibration={str(corpus): share, "built-in": 0.5})
