"""Applying masks is a transaction: it is finished and can be undone, or it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import prune as torch_prune

from llmrank.errors import MaskError, OptionError
from llmrank.models import find_ffns
from llmrank.prune import LocalPruner
from llmrank.prune.masks import Masks
from llmrank.surgery import apply, forms, widths
from llmrank.surgery.apply import apply_masks
from llmrank.surgery.checkpoint import load, save
from llmrank.surgery.forms import FORMS, tensor_masks
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_models import (
    LLAMA,
    Snapshot,
    family_model,
    features,
    logits,
    mlp,
    named_family,
    tiny_llama,
    token_ids,
)
from tests.tables import table

IDS = token_ids(2, 8, seed=5)
MODELS = {
    "gated": lambda: tiny_llama(mlp_bias=True),
    "fused": lambda: family_model(named_family("Phi-3")),
    "transposed": lambda: family_model(named_family("GPT-2")),
    "sequential": lambda: mlp(6, 12, 12, 4),
}
every_form = pytest.mark.parametrize("form", FORMS)
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))


def some_masks(model: nn.Module, seed: int = 0) -> Masks:
    """Make masks that give the layers different widths."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for position, (name, layer) in enumerate(find_ffns(model).layers.items()):
        mask = torch.ones(layer.size, dtype=torch.bool)
        mask[torch.randperm(layer.size, generator=generator)[: 3 + position]] = False
        keep[name] = mask
    return Masks(keep)


def run(model: Any) -> torch.Tensor:
    return logits(model, IDS if hasattr(model, "config") else features(5, 6))


@every_form
@every_model
def test_undo_restores_everything(make: Any, form: Any) -> None:
    model = make()
    dense = run(model)
    snapshot = Snapshot(model)
    application = apply_masks(model, find_ffns(model), some_masks(model), form)
    assert not torch.equal(run(model), dense)
    application.undo()
    snapshot.assert_restored()
    assert torch.equal(run(model), dense)
    application.undo()
    snapshot.assert_restored()


@every_model
def test_zeroed_neurons_are_zero_in_rows_biases_and_columns_and_nothing_else_is(make: Any) -> None:
    model = make()
    before, masks = Snapshot(model), some_masks(model)
    ffns = find_ffns(model)
    weights = {(p.name, p.start): p.weight.clone() for ffn in ffns for stage in ffn.stages for p in stage}
    apply_masks(model, ffns, masks, "zero")
    rows = {
        (p.name, p.start): masks[layer.name]
        for ffn in ffns
        for layer in ffn.prunable.values()
        for p in layer.input_maps
    }
    columns = {p.name: masks[layer.name] for ffn in ffns for layer in ffn.prunable.values() for p in layer.output_maps}
    for ffn in ffns:
        for linear_map in [p for stage in ffn.stages for p in stage]:
            key, bias = (linear_map.name, linear_map.start), getattr(linear_map.module, "bias", None)
            row = rows.get(key, torch.ones(linear_map.size, dtype=torch.bool))
            column = columns.get(linear_map.name, torch.ones(linear_map.in_features, dtype=torch.bool))
            assert torch.equal(linear_map.weight, weights[key] * row[:, None] * column)
            if bias is not None:
                part = slice(linear_map.start, linear_map.start + linear_map.size)
                assert torch.equal(bias[part], before.bits[f"{linear_map.name}.bias"][part] * row)


class Interrupted(BaseException):
    """A BaseException that is not an Exception, like KeyboardInterrupt and SystemExit."""


@every_model
@table(("form", "step"), [("mask", "mask_tensor"), ("zero", "zero_tensor"), ("compact", "compact_tensor")])
@table("failure", [RuntimeError, Interrupted])
def test_failure_in_the_middle_restores_everything(
    make: Any, form: Any, step: str, failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    snapshot, ffns, masks = Snapshot(model), find_ffns(model), some_masks(model)
    honest, n_maps = getattr(apply, step), len(tensor_masks(ffns, masks))
    for last in range(n_maps + 1):
        done: list[Any] = []

        def failing(linear: Any, *more: Any, last: int = last, done: list[Any] = done) -> None:
            if len(done) == last:
                raise failure("in the middle")
            honest(linear, *more)
            done.append(linear)

        monkeypatch.setattr(apply, step, failing)
        if last == n_maps:
            apply_masks(model, ffns, masks, form).undo()
        else:
            with pytest.raises(failure, match="in the middle"):
                apply_masks(model, ffns, masks, form)
        assert len(done) == last
        snapshot.assert_restored()
        assert not any(torch_prune.is_pruned(module) for module in model.modules())
    monkeypatch.undo()


@every_model
def test_failure_at_any_single_write_of_compact_restores_everything(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    snapshot, ffns, masks = Snapshot(model), find_ffns(model), some_masks(model)
    honest = {name: getattr(forms, name) for name in ("replace_tensor", "set_attribute")}
    total = 0
    for allowed in range(1000):
        count = 0

        def writing(name: str) -> Any:
            def write(*args: Any) -> None:
                nonlocal count
                if count == allowed:  # noqa: B023 (called within its own round)
                    raise RuntimeError("no more writes")
                count += 1
                honest[name](*args)

            return write

        for module, name in ((forms, "replace_tensor"), (forms, "set_attribute"), (widths, "set_attribute")):
            monkeypatch.setattr(module, name, writing(name))
        try:
            apply_masks(model, ffns, masks, "compact").undo()
        except RuntimeError:
            snapshot.assert_restored()
        else:
            total = count
            break
    assert total > 4
    snapshot.assert_restored()


def test_failure_while_padding_restores_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)

    def failing(*_: Any) -> None:
        raise RuntimeError("after zeroing and compacting")

    monkeypatch.setattr(apply, "set_widths", failing)
    with pytest.raises(RuntimeError, match="after zeroing"):
        apply_masks(model, find_ffns(model), some_masks(model), "padded")
    snapshot.assert_restored()


@every_model
def test_mask_form_is_not_applied_twice(make: Any) -> None:
    model = make()
    ffns, masks = find_ffns(model), some_masks(model)
    application = apply_masks(model, ffns, masks, "mask")
    masked = Snapshot(model)
    for form in FORMS:
        with pytest.raises(OptionError, match=r"carries a torch\.nn\.utils\.prune mask already"):
            apply_masks(model, ffns, masks, form)
        masked.assert_restored()
    application.undo()


@every_model
@every_form
def test_stale_ffns_are_refused_after_compacting(make: Any, form: Any) -> None:
    model = make()
    ffns, masks = find_ffns(model), some_masks(model)
    apply_masks(model, ffns, masks, "compact")
    compacted = Snapshot(model)
    with pytest.raises(MaskError, match="has been compacted since"):
        apply_masks(model, ffns, masks, form)
    with pytest.raises(MaskError, match="compacted already"):
        apply_masks(model, find_ffns(model), masks, form)
    compacted.assert_restored()


@every_form
def test_pipeline_runs_once_until_undone(form: Any) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    pipeline = ChainedFFNPipeline(model, None, calibration=token_ids(), form=form)
    pipeline.run()
    pruned, masks = Snapshot(model), pipeline.masks
    with pytest.raises(OptionError, match=r"call undo\(\) first"):
        pipeline.run()
    pruned.assert_restored()
    assert pipeline.undo() is model
    snapshot.assert_restored()
    with pytest.raises(OptionError, match="nothing to undo"):
        pipeline.undo()
    pipeline.run()
    assert pipeline.masks == masks


def test_compact_prunes_again_and_undoes_in_order() -> None:
    model = tiny_llama()
    whole = Snapshot(model)
    first = ChainedFFNPipeline(model, None, calibration=token_ids(), pruner=LocalPruner(0.25))
    first.run()
    once = Snapshot(model)
    second = ChainedFFNPipeline(model, None, calibration=token_ids(), pruner=LocalPruner(10))
    second.run()
    assert model.config.intermediate_size == 20
    assert {ffn.sizes[1] for ffn in find_ffns(model)} == {20}
    second.undo()
    once.assert_restored()
    first.undo()
    whole.assert_restored()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("topology", [ChainedFFNPipeline, IsolatedFFNPipeline])
def test_graphs_keep_the_weights_they_were_built_from(topology: Any, form: Any) -> None:
    pipeline = topology(tiny_llama(), None, calibration=token_ids(), form=form)
    pipeline.run()
    for entry, rank in zip(pipeline.model_graphs, pipeline.ranks, strict=True):
        again = pipeline.recipe.scorer.rank(entry.graph, entry.statistics)
        for old, new in zip(rank.scores, again.scores, strict=True):
            np.testing.assert_array_equal(old, new)
    if topology is ChainedFFNPipeline:
        assert pipeline.graph is pipeline.model_graphs[0].graph
        assert pipeline.rank is pipeline.ranks[0]
    else:
        assert len(pipeline.graph) == len(pipeline.rank) == 2


def test_compact_tensors_own_their_storage() -> None:
    model = tiny_llama()
    apply_masks(model, find_ffns(model), some_masks(model), "compact")
    for ffn in find_ffns(model):
        for stage in ffn.stages:
            for linear_map in stage:
                weight = linear_map.module.weight
                assert weight.is_contiguous()
                assert weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
                assert (linear_map.module.out_features, linear_map.module.in_features) == tuple(weight.shape)


@every_form
def test_frozen_parameters_stay_frozen(form: Any) -> None:
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight.requires_grad = False
    apply_masks(model, find_ffns(model), some_masks(model), form)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    suffix = "weight_orig" if form == "mask" else "weight"
    assert frozen == [f"model.layers.0.mlp.up_proj.{suffix}"]


def test_gradients_do_not_revive_masked_neurons() -> None:
    model = mlp(6, 12, 4)
    masks = some_masks(model)
    apply_masks(model, find_ffns(model), masks, "mask")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(features(8, 6)).square().sum().backward()
    optimiser.step()
    model(features(8, 6))
    removed = masks.removed("0")
    assert not model[0].weight[removed].any()
    assert not model[0].bias[removed].any()
    assert not model[2].weight[:, removed].any()


def test_padding_needs_one_original_width() -> None:
    model = mlp(6, 12, 10, 4)
    snapshot = Snapshot(model)
    with pytest.raises(MaskError, match=r"one original width, these have \[10, 12\]"):
        apply_masks(model, find_ffns(model), some_masks(model), "padded")
    snapshot.assert_restored()


def test_an_unknown_form_is_refused() -> None:
    model = mlp(6, 12, 4)
    snapshot = Snapshot(model)
    with pytest.raises(OptionError, match="expected one of compact, padded, zero, mask"):
        apply_masks(model, find_ffns(model), some_masks(model), "sparse")  # type: ignore[arg-type]
    snapshot.assert_restored()


def test_meta_weights_are_refused() -> None:
    with torch.device("meta"):
        model = mlp(6, 12, 4)
    with pytest.raises(OptionError, match="has no data here"):
        apply_masks(model, find_ffns(model), Masks({"0": [1] * 11 + [0]}), "zero")


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_undo_in_the_wrong_order_is_refused(first: Any, second: Any) -> None:
    """If the first application were undone first, the second undo would restore parts that do not fit together."""
    model = tiny_llama()
    snapshot = Snapshot(model)
    ffns = find_ffns(model)
    sizes = {layer.name: layer.size for ffn in ffns for layer in ffn.prunable.values()}
    earlier = apply_masks(model, ffns, Masks({n: torch.arange(s) > 3 for n, s in sizes.items()}), first)
    if first == "mask":
        return  # a masked model is not pruned again, see above
    ffns = find_ffns(model)
    sizes = {layer.name: layer.size for ffn in ffns for layer in ffn.prunable.values()}
    later = apply_masks(model, ffns, Masks({n: torch.arange(s) % 2 > 0 for n, s in sizes.items()}), second)
    with pytest.raises(MaskError, match="undo the later application first"):
        earlier.undo()
    later.undo()
    earlier.undo()
    snapshot.assert_restored()


@every_form
@every_model
def test_a_layer_that_keeps_all_neurons_is_not_touched(make: Any, form: Any) -> None:
    model = make()
    snapshot, ffns, masks = Snapshot(model), find_ffns(model), dict(some_masks(model))
    first = next(iter(masks))
    masks[first] = torch.ones_like(masks[first])
    # In a sequential FFN the output map of the first layer is an input map of the second, which loses neurons.
    losing = {id(mask.owner) for mask in tensor_masks(ffns, Masks(masks)) if not mask.keeps_all}
    whole = {
        linear_map.name: linear_map.module for linear_map in ffns.linear_maps if id(linear_map.module) not in losing
    }
    assert whole
    before = {name: dict(vars(module)) for name, module in whole.items()}
    held = {name: [(n, p, p.data_ptr()) for n, p in module.named_parameters()] for name, module in whole.items()}
    application = apply_masks(model, ffns, Masks(masks), form)
    for name, module in whole.items():
        assert [(n, id(p), p.data_ptr()) for n, p in module.named_parameters()] == [
            (n, id(p), d) for n, p, d in held[name]
        ]
        assert not module._forward_pre_hooks
        assert not module._buffers
        assert list(vars(module)) == list(before[name])
    application.undo()
    snapshot.assert_restored()


def test_one_axis_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(mlp_bias=True)
    copied: list[int] = []
    honest = torch.Tensor.index_select

    def counting(tensor: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
        copied.append(axis)
        return honest(tensor, axis, index)

    monkeypatch.setattr(torch.Tensor, "index_select", counting)
    apply_masks(model, find_ffns(model), some_masks(model), "compact")
    # In both layers: rows of gate and up with their biases, and columns of down.
    assert sorted(copied) == [0] * 8 + [1] * 2


def test_masks_on_a_single_layer_are_multiplied_in_when_saving(tmp_path: Path) -> None:
    model, ids = tiny_llama(), token_ids(2, 8)
    masks = dict(some_masks(model))
    masks["model.layers.0.mlp"][:] = True
    apply_masks(model, find_ffns(model), Masks(masks), "mask")
    assert [torch_prune.is_pruned(layer) for layer in model.model.layers] == [False, True]
    save(tmp_path / "out", model)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again, ids), logits(model, ids))


def kept_first(model: nn.Module, width: int) -> Masks:
    return Masks({name: torch.arange(layer.size) < width for name, layer in find_ffns(model).layers.items()})


def test_a_field_with_other_users_is_not_written(tmp_path: Path) -> None:
    """MobileBERT has more FFNs of the same width, which have no module of their own."""
    torch.manual_seed(0)
    model = transformers.MobileBertForMaskedLM(
        transformers.MobileBertConfig(
            vocab_size=64,
            hidden_size=32,
            embedding_size=16,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            intra_bottleneck_size=16,
            max_position_embeddings=64,
        )
    ).eval()
    ids = token_ids(2, 8)
    apply_masks(model, find_ffns(model), kept_first(model, 30), "compact")
    assert model.config.intermediate_size == 40
    assert set(model.config.llmrank_widths.values()) == {30}
    save(tmp_path / "out", model)
    torch.testing.assert_close(logits(load(tmp_path / "out").model, ids), logits(model, ids), rtol=0, atol=0)


def test_the_width_is_stated_in_a_configuration_with_settings_by_layer() -> None:
    layers = {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 8}
    sizes = {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 64}
    config = transformers.CONFIG_MAPPING["gemma4_text"](**LLAMA, **layers, **sizes)
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        _ = config.head_dim
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    apply_masks(model, find_ffns(model), kept_first(model, 30), "compact")
    assert config.intermediate_size == 30


def test_a_model_loaded_with_widths_by_layer_can_become_a_stock_one_again(tmp_path: Path) -> None:
    model, ids = tiny_llama(), token_ids(2, 8)
    apply_masks(model, find_ffns(model), some_masks(model), "compact")
    save(tmp_path / "uneven", model)
    loaded: Any = load(tmp_path / "uneven").model
    assert loaded.config.llmrank_widths
    apply_masks(loaded, find_ffns(loaded), kept_first(loaded, 20), "compact")
    assert loaded.config.intermediate_size == 20
    save(tmp_path / "even", loaded)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "even")
    assert torch.equal(logits(again, ids), logits(loaded, ids))


def test_a_list_of_widths_stays_a_list(tmp_path: Path) -> None:
    """Gemma 3n: its low-rank terms and per-layer inputs are not FFNs, and its sparse activations (off here) couple neurons."""
    torch.manual_seed(0)
    config = transformers.Gemma3nTextConfig(
        **{**LLAMA, "intermediate_size": [40, 40], "laurel_rank": 8, "vocab_size_per_layer_input": 64},
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0, 0.0],
        altup_num_inputs=2,
        layer_types=["sliding_attention", "full_attention"],
    )
    model, ids = transformers.Gemma3nForCausalLM(config).eval(), token_ids(2, 8)
    assert [ffn.name for ffn in find_ffns(model)] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    run = ChainedFFNPipeline(model, None, calibration=token_ids(), pruner=LocalPruner(0.3))
    run.run()
    assert model.config.intermediate_size == [28, 28]
    save(tmp_path / "out", model)
    again = transformers.Gemma3nForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_adapters_of_languages_are_not_touched(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.XmodConfig(
        **{key: LLAMA[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
        num_attention_heads=4,
        languages=["en_XX", "de_DE"],
        default_language="en_XX",
    )
    model, ids = transformers.XmodForMaskedLM(config).eval(), token_ids(2, 8)
    ChainedFFNPipeline(model, None, calibration=token_ids(), pruner=LocalPruner(0.3)).run()
    assert {name: p.shape[0] for name, p in model.named_parameters() if "dense1.weight" in name} == {
        f"roberta.encoder.layer.{k}.output.adapter_modules.{language}.dense1.weight": 8
        for k in range(2)
        for language in ("en_XX", "de_DE")
    }
    save(tmp_path / "out", model)
    again = transformers.XmodForMaskedLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize("form", ["compact", "zero"])
def test_a_protected_layer_is_not_copied(form: Any) -> None:
    model = tiny_llama()
    snapshot, ffns = Snapshot(model), find_ffns(model)
    name, *others = ffns.sizes
    masks = Masks({name: [True] * ffns.sizes[name]} | {n: [k % 2 == 0 for k in range(ffns.sizes[n])] for n in others})
    kept = {key: p.data_ptr() for key, p in model.named_parameters() if key.startswith(name)}
    applied = apply_masks(model, ffns, masks, form)
    assert kept == {key: p.data_ptr() for key, p in model.named_parameters() if key.startswith(name)}
    applied.undo()
    snapshot.assert_restored()
