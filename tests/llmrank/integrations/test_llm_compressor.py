"""Pruning within a recipe of llm-compressor; most tests skip where that is not installed."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import DataLoader

import llmrank
from llmrank.errors import CalibrationError, OptionError
from llmrank.integrations.llm_compressor import LLMRankModifier, sequences_of_batches
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import logits, tiny_llama, token_ids, tokenizer
from tests.tables import table

MODULE = "llmrank.integrations.llm_compressor"
OPTIONS: dict[str, Any] = {"amount": 0.3, "repair": "lstsq:damping=0.01", "multiple_of": 8}
WIDTH = 32  # 70 % of 40 are 28, half way between 24 and 32; ties go to the even multiple of 8
pytestmark = pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")  # llm-compressor's


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with a tiny model; the session of llm-compressor is reset afterwards."""
    core = pytest.importorskip("llmcompressor.core")
    llmrank.save(tmp_path / "model", tiny_llama(), tokenizer())
    yield tmp_path
    core.reset_session()


def batches(ids: torch.Tensor) -> Any:
    return DataLoader([{"input_ids": row} for row in ids], batch_size=2)  # type: ignore[arg-type]


def quantise(method: str = "QuantizationModifier", scheme: str = "W8A8") -> Any:
    name = {"QuantizationModifier": "quantization", "GPTQModifier": "gptq"}[method]
    modifier = getattr(importlib.import_module(f"llmcompressor.modifiers.{name}"), method)
    return modifier(targets="Linear", scheme=scheme, ignore=["lm_head"])


def compress(model: Any, recipe: Any, output: Path | None = None, *, data: bool = True) -> Any:
    from llmcompressor import oneshot

    place = None if output is None else str(output)
    source = str(model) if isinstance(model, Path) else model
    return oneshot(model=source, dataset=batches(token_ids(6, 16)) if data else None, recipe=recipe, output_dir=place)


def load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path)


YAML = """
prune_stage:
  prune_modifiers:
    LLMRankModifier: {amount: 0.3, repair: "lstsq:damping=0.01", multiple_of: 8}
    QuantizationModifier: {targets: Linear, scheme: W8A8, ignore: [lm_head]}
"""


@pytest.mark.parametrize(
    ("method", "scheme", "in_yaml"),
    [
        ("QuantizationModifier", "W8A8", False),
        ("QuantizationModifier", "W8A8", True),
        ("GPTQModifier", "W8A8", False),
    ],
)
def test_one_recipe_equals_two_steps(place: Path, method: str, scheme: str, in_yaml: bool) -> None:
    recipe = YAML if in_yaml else [LLMRankModifier(**OPTIONS), quantise(method, scheme)]
    together = compress(place / "model", recipe, place / "together")

    first = llmrank.load(place / "model")
    pruned = llmrank.prune_model(
        first.model,
        first.tokenizer,
        0.3,
        pruner="local:multiple_of=8",
        repair="lstsq:damping=0.01",
        calibration=token_ids(6, 16),
    )
    pruned.save(place / "pruned")
    apart = compress(place / "pruned", [quantise(method, scheme)], place / "apart")

    ids = token_ids(2, 12, seed=5)
    assert not torch.allclose(logits(together, ids), logits(first.model, ids))  # quantised
    assert torch.equal(logits(together, ids), logits(apart, ids))
    for name in ("together", "apart"):
        loaded = load(place / name)
        assert loaded.config.intermediate_size == WIDTH
        assert {layer.mlp.down_proj.in_features for layer in loaded.model.layers} == {WIDTH}
        assert loaded.config.quantization_config.quant_method == "compressed-tensors"
        assert torch.equal(logits(loaded, ids), logits(together, ids))


def test_the_modifier_has_masks_and_a_report(place: Path) -> None:
    modifier = LLMRankModifier(**OPTIONS)
    assert modifier.masks is None
    assert modifier.report is None
    compress(place / "model", [modifier, quantise()])
    assert set(modifier.masks.widths.values()) == {WIDTH}
    assert modifier.report.calibration["source"] == "calibration data of llm-compressor"
    assert modifier.report.calibration["tokens"] == 6 * 16


def test_the_saved_recipe_makes_the_same_modifier(place: Path) -> None:
    from llmcompressor.recipe import Recipe

    modifier = LLMRankModifier(scorer="norm", repair="none", pipeline="chained", multiple_of=16)
    compress(place / "model", [modifier, quantise()], place / "out")
    again = Recipe.create_instance(str(place / "out" / "recipe.yaml")).modifiers[0]
    assert isinstance(again, LLMRankModifier)
    options = set(LLMRankModifier.__annotations__) - {"_masks", "_report"}
    assert len(options) == 7
    assert again.model_dump(include=options) == modifier.model_dump(include=options)


def test_unequal_widths_are_filled_up_so_that_stock_transformers_loads_them(place: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:20] *= 8.0
    llmrank.save(place / "unequal", model, tokenizer())
    modifier = LLMRankModifier(scorer="norm", pruner="global:normalize=none,multiple_of=4", repair="none")
    model = compress(place / "unequal", [modifier, quantise()], place / "out")
    widths = set(modifier.masks.widths.values())
    assert len(widths) > 1
    assert load(place / "out").config.intermediate_size == max(widths) < 40
    assert torch.equal(logits(load(place / "out"), token_ids()), logits(model, token_ids()))


@pytest.mark.parametrize(
    ("targets", "sizes"),
    [
        (["neurons", "heads"], {"intermediate_size": 16, "num_key_value_heads": 1, "num_attention_heads": 2}),
        ("blocks", {"num_hidden_layers": 1}),
    ],
)
def test_heads_and_blocks_go_as_in_a_step_of_its_own(place: Path, targets: Any, sizes: dict[str, int]) -> None:
    modifier = LLMRankModifier(**(OPTIONS | {"amount": 0.5}), targets=targets)
    together = compress(place / "model", [modifier, quantise()], place / "together")
    first = llmrank.load(place / "model")
    options = {"targets": targets, "pruner": "local:multiple_of=8", "repair": "lstsq:damping=0.01"}
    llmrank.prune_model(first.model, first.tokenizer, 0.5, calibration=token_ids(6, 16), **options).save(
        place / "pruned"
    )
    apart = compress(place / "pruned", [quantise()], place / "apart")
    loaded, ids = load(place / "together"), token_ids(2, 12, seed=5)
    assert {name: getattr(loaded.config, name) for name in sizes} == sizes
    assert torch.equal(logits(loaded, ids), logits(together, ids))
    assert torch.equal(logits(apart, ids), logits(together, ids))


@pytest.mark.parametrize("order", ["after", "twice"])
def test_another_place_than_the_first_is_refused(place: Path, order: str) -> None:
    model = load(place / "model")
    before, weights = logits(model, token_ids()), copy.deepcopy(model.state_dict())
    mine = LLMRankModifier(**OPTIONS)
    recipe = [quantise(), mine] if order == "after" else [mine, LLMRankModifier(**OPTIONS), quantise()]
    with pytest.raises(OptionError, match="must occur once in a recipe, as its first modifier"):
        compress(model, recipe)
    assert mine.masks is None
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert torch.equal(logits(model, token_ids()), before)


def test_a_quantised_model_is_refused(place: Path) -> None:
    model = load(place / "model")
    compress(model, [quantise()])
    with pytest.raises(OptionError, match="the model is quantised already"):
        compress(model, [LLMRankModifier(**OPTIONS)])


@pytest.mark.parametrize("all_experts", [True, False])
def test_a_mixture_is_refused(place: Path, all_experts: bool) -> None:
    from llmcompressor import oneshot

    llmrank.save(place / "mixture", tiny_mixture("mixtral"), tokenizer())
    model = load(place / "mixture")
    before = logits(model, token_ids())
    data = batches(token_ids(6, 16))
    with pytest.raises(OptionError, match="a mixture of experts cannot be pruned in a recipe"):
        oneshot(model=model, dataset=data, recipe=LLMRankModifier(**OPTIONS), moe_calibrate_all_experts=all_experts)
    torch.testing.assert_close(logits(model, token_ids()), before)


def test_no_calibration_data_are_refused(place: Path) -> None:
    model = load(place / "model")
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(CalibrationError, match="pass dataset= to oneshot"):
        compress(model, [LLMRankModifier(**OPTIONS), quantise()], data=False)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


@table(
    ("option", "message"),
    [
        ({"scorer": "wpx"}, "unknown scorer 'wpx'"),
        ({"pruner": "local:amount=0.2"}, "amount of pruner"),
        ({"amount": 1.5}, "amount"),
        ({"multiple_of": 0}, "multiple_of must be an integer >= 1"),
        ({"repair": "lstsq:damp=1"}, "has no option 'damp'"),
        ({"pipeline": "ring"}, "unknown pipeline 'ring'"),
        ({"targets": "Linear"}, "unknown targets 'Linear'"),
        ({"targets": "neurons,experts"}, "a mixture of experts cannot be pruned in a recipe"),
        ({"ammount": 0.2}, "ammount"),
    ],
)
def test_bad_options_are_refused_when_the_modifier_is_made(option: dict[str, Any], message: str) -> None:
    pytest.importorskip("llmcompressor")
    with pytest.raises(ValueError, match=message):
        LLMRankModifier(**option)


def test_samples_lose_their_padding_on_either_side() -> None:
    left = {"input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    alone = {"input_ids": torch.tensor([[4, 3]])}
    sequences = sequences_of_batches([left, alone])
    assert sequences.ids.tolist() == [[5, 6, 0], [7, 8, 9], [4, 3, 0]]
    assert sequences.mask.tolist() == [[True, True, False], [True, True, True], [True, True, False]]


@table(
    ("data", "message"),
    [
        (None, "got 0 samples"),
        ([], "got 0 samples"),
        ([{"input_ids": torch.tensor([[1], [2]])}], "got 2 samples, none as long"),
        ([{"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.ones(1, 3)}], "no images"),
        ([{"inputs_embeds": torch.ones(1, 2, 3)}], "have the inputs inputs_embeds"),
    ],
)
def test_data_without_text_are_refused(data: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        sequences_of_batches(data)


def test_without_llm_compressor_only_making_a_modifier_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llmcompressor.core", None)
    monkeypatch.delitem(sys.modules, MODULE)
    absent = importlib.import_module(MODULE)
    with pytest.raises(OptionError, match=r"llmrank\[compressor\]"):
        absent.LLMRankModifier(amount=0.3)
