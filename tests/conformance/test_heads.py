"""Heads of attentions in every model family: removed so that transformers loads the checkpoint, or refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import llmrank
from benchmarks.tiny_configs import tiny_model
from llmrank.errors import UnsupportedModelError
from llmrank.models import find_ffns
from llmrank.models.finding.heads import find_heads
from llmrank.models.forward import reached_by_tokens
from llmrank.prune import BasePruner, GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.repair import BiasRepair, LeastSquaresRepair
from llmrank.surgery.apply import apply_masks
from llmrank.surgery.named_layers import ffns_of_masks
from tests.llmrank.families import FAMILIES, Family
from tests.llmrank.plain_pipelines import IsolatedFFNPipeline
from tests.llmrank.tiny_models import (
    HEADS,
    Snapshot,
    auto_class,
    every_family,
    family_model,
    logits,
    named_family,
    tiny_llama,
    token_ids,
)
from tests.tables import table

HALF = LocalPruner(0.5)
CALIBRATION = token_ids(6, 16)
PROBE = token_ids(2, 12, seed=1)
NO_SIZE = "cannot state . heads of 4 numbers each"
NO_ATTENTION = "expected one pair of linear maps"
# The families whose heads cannot be removed -> what the error says.
REFUSED = {
    "OLMo 2": "a trial shows that they depend on each other",
    "OLMo Hybrid": "a trial shows that they depend on each other",
    "StableLM": NO_SIZE,
    "GPT-2": NO_SIZE,
    "GPT-NeoX, Pythia": NO_SIZE,
    "OPT": NO_SIZE,
    "BLOOM": NO_SIZE,
    "Falcon": NO_SIZE,
    "ModernBERT": NO_SIZE,
    "Llama 3.2 Vision (text)": NO_ATTENTION,
    "T5": "whose decoder attends to two streams",
    "T5 v1.1, Flan-T5": "whose decoder attends to two streams",
    "BERT": "laid out in an unknown way",
    "RoBERTa": "laid out in an unknown way",
}
# Families whose tiny model has an attention in one of its two blocks only.
HYBRIDS = ("Jamba (dense)",)


def pipeline(model: Any, pruner: BasePruner = HALF, **options: Any) -> IsolatedFFNPipeline:
    return IsolatedFFNPipeline(model, None, pruner=pruner, calibration=CALIBRATION, **{"targets": "heads", **options})


def with_groups(**changes: Any) -> Any:
    """Make a Llama of three layers with four groups of two heads, whose first layer relies on its first groups."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4, "num_hidden_layers": 3}
    model = tiny_llama(**{**heads, **changes})
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight[:8] *= 4.0
    return model


def saved_and_loaded(model: Any, directory: Path) -> Any:
    llmrank.save(directory, model)
    return llmrank.load(directory).model


@every_family
def test_the_forms_agree_and_stock_transformers_loads_the_checkpoint(family: Family, tmp_path: Path) -> None:
    model = family_model(family)
    snapshot, dense = Snapshot(model), logits(model, PROBE) if family.name not in REFUSED else None
    outputs = {}
    for form in ("zero", "mask", "compact"):
        run = pipeline(model, form=form)
        if family.name in REFUSED:
            with pytest.raises(UnsupportedModelError, match=REFUSED[family.name]):
                run.run()
            snapshot.assert_restored()
            continue
        run.run()
        outputs[form] = logits(model, PROBE)
        assert run.masks is not None
        assert run.report is not None
        attentions = run.report.model["attentions"]
        assert len(attentions) == (1 if family.name in HYBRIDS else 2)
        assert run.report.neurons["removed"] == len(attentions) * HEADS["num_attention_heads"] // 2
        assert run.report.notes[:1] == ["heads were found in all blocks but 1"] * (family.name in HYBRIDS)
        if form == "compact":
            assert (
                run.report.before.parameters - run.report.after.parameters
                == run.report.reached["parameters"]["removed"]
            )
            llmrank.save(tmp_path / "pruned", model)
            stock = auto_class(family).from_pretrained(tmp_path / "pruned")
            assert torch.equal(logits(stock, PROBE), outputs[form])
            assert stock.config.num_key_value_heads == 1
        run.undo()
        snapshot.assert_restored()
    if dense is not None:
        torch.testing.assert_close(outputs["zero"], outputs["mask"], rtol=0, atol=0)
        torch.testing.assert_close(outputs["compact"], outputs["zero"], rtol=1e-5, atol=1e-4)
        assert (outputs["zero"] - dense).abs().max() > 1e-2


def test_the_masks_remove_what_a_textbook_loop_scores_lowest() -> None:
    """The importance of a group is the sum of the ranks of the numbers that the output map reads of its heads."""
    model = with_groups()
    run = pipeline(model, GlobalPruner(0.5), form="zero")
    run.run()
    assert run.masks is not None
    for entry, result in zip(run.model_graphs, run.ranks, strict=True):
        ((name, scores),) = entry.importance(result).items()
        sums = [sum(float(scores[k]) for k in range(8 * group, 8 * group + 8)) for group in range(4)]
        kept = [bool(run.masks[name][8 * group]) for group in range(4)]
        assert max([s for s, is_kept in zip(sums, kept, strict=True) if not is_kept], default=0.0) <= min(
            s for s, is_kept in zip(sums, kept, strict=True) if is_kept
        )
        assert torch.equal(run.masks[name].view(4, 8).any(1), run.masks[name].view(4, 8).all(1))


def test_removed_groups_are_those_rows_and_columns_of_the_dense_model() -> None:
    model = with_groups()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run = pipeline(model)
    run.run()
    assert run.masks is not None
    for k, layer in enumerate(model.model.layers):
        keep = run.masks[f"model.layers.{k}.self_attn"]
        groups = keep.view(4, 8).all(1)
        of_groups = groups.repeat_interleave(4)
        for part, kept in (("q_proj", keep), ("k_proj", of_groups), ("v_proj", of_groups)):
            dense = before[f"model.layers.{k}.self_attn.{part}.weight"]
            assert torch.equal(getattr(layer.self_attn, part).weight, dense[kept])
        assert torch.equal(layer.self_attn.o_proj.weight, before[f"model.layers.{k}.self_attn.o_proj.weight"][:, keep])


@table(
    ("changes", "loads_in_transformers"),
    [
        ({}, True),  # neurons of one width, and as many heads everywhere
        ({"num_key_value_heads": 1}, True),  # heads are removed, and the keys and values that all share stay
        ({"num_key_value_heads": 8}, True),
        ({"attention_bias": True}, True),
        # The configuration of Llama takes only numbers of heads that divide the hidden size, and three groups have six heads.
        ({"amount": 0.25}, False),
    ],
)
def test_heads_and_neurons_together(changes: dict[str, Any], loads_in_transformers: bool, tmp_path: Path) -> None:
    directory = tmp_path / "-".join(["pruned", *map(str, changes.items())])
    model = with_groups(**{k: v for k, v in changes.items() if k != "amount"})
    snapshot = Snapshot(model)
    amount = changes.get("amount", 0.5)
    run = pipeline(model, LocalPruner(amount), targets="neurons,heads", repair=LeastSquaresRepair())
    run.run()
    assert run.report is not None
    assert run.report.neurons["heads"] == {"before": 24, "removed": round(24 * amount)}
    assert run.report.neurons["removed"] == round(3 * 40 * amount)
    pruned = logits(model, PROBE)
    assert torch.equal(logits(saved_and_loaded(model, directory), PROBE), pruned)
    config = model.config.to_dict()
    assert ("llmrank_widths" in config) is not loads_in_transformers
    if loads_in_transformers:
        stock = auto_class(named_family("Llama, SmolLM2")).from_pretrained(directory)
        assert torch.equal(logits(stock, PROBE), pruned)
    run.undo()
    snapshot.assert_restored()


def test_attentions_with_different_numbers_of_heads_are_loaded_by_llmrank(tmp_path: Path) -> None:
    model = with_groups()
    run = pipeline(model, GlobalPruner(0.4), targets="heads,neurons")
    run.run()
    assert run.masks is not None
    widths = run.masks.widths
    assert len({width for name, width in widths.items() if name.endswith("attn")}) > 1
    loaded = saved_and_loaded(model, tmp_path / "pruned")
    assert torch.equal(logits(loaded, PROBE), logits(model, PROBE))
    assert loaded.config.llmrank_widths == widths
    # The loaded model is pruned further: its heads have the size that they had.
    again = pipeline(loaded, LocalPruner(0.5))
    again.run()
    assert torch.equal(logits(saved_and_loaded(loaded, tmp_path / "again"), PROBE), logits(loaded, PROBE))
    assert loaded.model.layers[0].self_attn.head_dim == 4


@pytest.mark.parametrize("width", [20, 40, 6])
def test_widths_that_do_not_fit_the_configuration_are_refused(width: int, tmp_path: Path) -> None:
    model = with_groups()
    run = pipeline(model, GlobalPruner(0.4), targets="heads,neurons")
    run.run()
    llmrank.save(tmp_path / "pruned", model)
    path = tmp_path / "pruned" / "config.json"
    text = path.read_text(encoding="utf-8")
    changed = re.sub(r'("model.layers.1.self_attn": )\d+', rf"\g<1>{width}", text)
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(llmrank.errors.CheckpointError, match=r"numbers for the heads of model\.layers\.1\.self_attn"):
        llmrank.load(tmp_path / "pruned")


def test_padded_attentions_have_as_many_heads_as_the_widest(tmp_path: Path) -> None:
    model = with_groups()
    run = pipeline(model, GlobalPruner(0.4), targets="heads,neurons", form="padded")
    run.run()
    assert run.report is not None
    padded = run.report.neurons["widths_with_padding"]
    assert len(set(padded.values())) == 2
    pruned = logits(model, PROBE)
    llmrank.save(tmp_path / "pruned", model)
    assert torch.equal(logits(llmrank.load(tmp_path / "pruned").model, PROBE), pruned)


@table("options", [{"repair": LeastSquaresRepair(reselect=True)}, {"targets": "heads,neurons"}])
def test_heads_stay_whole(options: dict[str, Any]) -> None:
    run = pipeline(with_groups(), LocalPruner(0.5), **options)
    run.run()
    assert run.masks is not None
    for name, mask in run.masks.items():
        if name.endswith("attn"):
            assert torch.equal(mask.view(4, 8).any(1), mask.view(4, 8).all(1))
            assert int(mask.sum()) == 16


def test_masks_of_parts_of_heads_are_refused() -> None:
    model = with_groups()
    ffns = type(find_ffns(model))(find_heads(model, find_ffns(model)).values())
    masks = llmrank.Masks.full(ffns.sizes)
    cut = {name: mask.clone() for name, mask in masks.items()}
    cut["model.layers.1.self_attn"][3] = False
    with pytest.raises(llmrank.errors.MaskError, match="keeps parts of heads; expected whole groups of heads"):
        apply_masks(model, ffns, llmrank.Masks(cut))


def test_with_little_memory_the_same_heads_are_removed(tmp_path: Path) -> None:
    from llmrank.pipeline.pruning_run import PruningRun

    masks, outputs = [], []
    for directory in (None, tmp_path / "work"):
        model = with_groups()
        recipe = pipeline(model, targets="heads,neurons", repair=LeastSquaresRepair()).recipe
        run = PruningRun(model, None, recipe, undoable=directory is None, work_directory=directory)
        run.run()
        assert run.masks is not None
        masks.append(run.masks)
        outputs.append(logits(model, PROBE))
    assert masks[0] == masks[1]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


def test_an_amount_of_parameters_is_reached_by_heads_alone_and_together_with_neurons() -> None:
    found = {}
    for targets in ("heads", "heads,neurons"):
        run = pipeline(with_groups(), LocalPruner(0.1, amount_of="parameters"), targets=targets)
        run.run()
        assert run.report is not None
        assert run.report.reached["parameters"]["share"] >= 0.1
        found[targets] = run.report.neurons
    assert found["heads"]["removed"] > found["heads,neurons"]["heads"]["removed"]
    with pytest.raises(llmrank.errors.OptionError, match="the amount is a share of each: of heads, and of the neurons"):
        pipeline(with_groups(), GlobalPruner(0.1, amount_of="parameters"), targets="heads,neurons").run()


def test_a_single_head_stays() -> None:
    one = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    with pytest.raises(llmrank.errors.OptionError, match="every attention of this model has one head"):
        pipeline(tiny_llama(**one)).run()


def uneven_masks(model: Any) -> tuple[Any, llmrank.Masks]:
    """Return the attentions of a model, and masks that remove the first unit of every second one."""
    ffns = find_ffns(model)
    attentions = type(ffns)(find_heads(model, ffns).values())
    masks = {
        each.name: torch.arange(each.sizes[1]) >= (k % 2) * (each.heads.unit_size if each.heads else 0)
        for k, each in enumerate(attentions)
    }
    return attentions, llmrank.Masks(masks)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name not in {*REFUSED, *HYBRIDS}], ids=lambda f: f.name)
def test_uneven_attentions_compute_with_a_cache_and_after_loading(family: Family, tmp_path: Path) -> None:
    model = family_model(family)
    snapshot = Snapshot(model)
    attentions, masks = uneven_masks(model)
    zeroed = apply_masks(model, attentions, masks, "zero")
    expected = logits(model, PROBE)
    zeroed.undo()
    applied = apply_masks(model, attentions, masks)
    torch.testing.assert_close(logits(model, PROBE), expected, rtol=1e-5, atol=1e-4)
    loaded = saved_and_loaded(model, tmp_path / "pruned").eval()
    for each in (model.eval(), loaded):
        assert torch.equal(logits(each, PROBE), logits(model, PROBE))
        written = [each.generate(PROBE, max_new_tokens=5, do_sample=False, use_cache=cache) for cache in (True, False)]
        assert torch.equal(*written)
    applied.undo()
    snapshot.assert_restored()


def test_an_attention_of_one_group_loses_single_heads(tmp_path: Path) -> None:
    model = with_groups(num_key_value_heads=2)
    for number, amount in enumerate((0.34, 0.2)):
        pipeline(model, SensitivityPruner(amount)).run()
        again = saved_and_loaded(model, tmp_path / str(number))
        assert torch.equal(logits(again, PROBE), logits(model, PROBE))
        model = again
    counts = [layer.self_attn.q_proj.out_features // 4 for layer in model.model.layers]
    assert sum(counts) < 24 - 8
    assert min(counts) < 4


def test_a_repair_by_bias_needs_biases_of_attentions() -> None:
    with pytest.raises(UnsupportedModelError, match=r"o_proj has none, nor can experts and attentions be given one"):
        pipeline(with_groups(), repair=BiasRepair()).run()
    run = pipeline(with_groups(attention_bias=True), repair=BiasRepair())
    run.run()
    assert run.report is not None
    assert len(run.report.repaired) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_heads_are_told_apart_in_half_precision(dtype: torch.dtype) -> None:
    model = with_groups(num_key_value_heads=1)
    with torch.no_grad():  # a number that is much larger than the others
        model.model.layers[0].self_attn.v_proj.weight[1] *= 64.0
    model.to(dtype)
    assert all(each.heads is not None for each in find_heads(model, find_ffns(model)).values())


def test_a_wrapped_language_model_keeps_no_cache_in_the_trial() -> None:
    model = tiny_model("gemma3", 0)
    model.set_attn_implementation("eager")
    ffns = reached_by_tokens(model, find_ffns(model))
    assert all(each.heads is not None for each in find_heads(model, ffns).values())


def test_layers_are_protected_by_name_and_by_their_place_in_the_model() -> None:
    for pruner in (LocalPruner, SensitivityPruner, GlobalPruner):
        run = pipeline(with_groups(), pruner(0.4, protect=("*.self_attn", -1)), targets="heads,neurons")
        run.run()
        assert run.masks is not None
        whole = {name for name, mask in run.masks.items() if bool(mask.all())}
        assert whole >= {*(f"model.layers.{k}.self_attn" for k in range(3)), "model.layers.2.mlp"}
        assert "model.layers.0.mlp" not in whole
    run = pipeline(with_groups(), LocalPruner(0.5, protect=0), targets="neurons,heads")
    run.run()
    assert run.masks is not None
    assert bool(run.masks["model.layers.0.self_attn"].all())
    assert not bool(run.masks["model.layers.0.mlp"].all())


def test_widths_of_neurons_do_not_round_heads() -> None:
    run = pipeline(with_groups(), LocalPruner(0.5, min_keep=8, multiple_of=8), targets="neurons,heads")
    run.run()
    assert run.report is not None
    assert run.report.neurons["heads"]["removed"] == 12
    with pytest.raises(llmrank.errors.OptionError, match="at most 72 can, because each layer keeps"):
        pipeline(with_groups(), GlobalPruner(0.99)).run()
    with pytest.raises(llmrank.errors.OptionError, match="12 of 12 groups of heads cannot be removed: at most 9 can"):
        pipeline(with_groups(), SensitivityPruner(0.99)).run()


@pytest.mark.parametrize("name", ["lm_head", "model.norm", "model.layers.0", "model"])
def test_a_listed_module_that_is_no_attention_is_refused(name: str, tmp_path: Path) -> None:
    model = with_groups()
    apply_masks(model, *uneven_masks(model))
    llmrank.save(tmp_path / "pruned", model)
    path = tmp_path / "pruned" / "config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"model.layers.1.self_attn"', f'"{name}"'), encoding="utf-8")
    with pytest.raises(llmrank.errors.CheckpointError, match="numbers for the heads of"):
        llmrank.load(tmp_path / "pruned")


def test_the_repair_of_an_attention_is_a_least_squares_fit() -> None:
    """The output map of the first attention, fitted to its dense outputs by the heads that are left."""
    model = with_groups()
    output_map = model.model.layers[0].self_attn.o_proj
    reads: list[torch.Tensor] = []
    hook = output_map.register_forward_pre_hook(lambda _module, inputs: reads.append(inputs[0].detach().flatten(0, -2)))
    logits(model, CALIBRATION)
    hook.remove()
    # The last sequence is held out.
    inputs, dense = reads[0][: 5 * 16].double(), output_map.weight.detach().double().clone()
    run = pipeline(model, repair=LeastSquaresRepair(damping=1e-9))
    run.run()
    assert run.masks is not None
    kept = inputs[:, run.masks["model.layers.0.self_attn"]]
    expected = torch.linalg.lstsq(kept, inputs @ dense.T).solution.T
    torch.testing.assert_close(output_map.weight.double(), expected, rtol=1e-5, atol=1e-6)


@table("targets", ["heads", "heads,neurons", "neurons"])
def test_masks_of_a_file_remove_heads(targets: str) -> None:
    dense, model = with_groups(), with_groups()
    run = pipeline(model, targets=targets, repair=None)
    run.run()
    assert run.masks is not None
    apply_masks(dense, ffns_of_masks(dense, run.masks), run.masks)
    assert torch.equal(logits(dense, PROBE), logits(model, PROBE))


def test_masks_of_another_model_are_refused_by_name() -> None:
    model = with_groups()
    run = pipeline(with_groups(num_hidden_layers=4), targets="neurons")
    run.run()
    assert run.masks is not None
    with pytest.raises(llmrank.errors.MaskError, match=r"1 layer\(s\) \(model\.layers\.3\.mlp\) not in it"):
        apply_masks(model, ffns_of_masks(model, run.masks), run.masks)
    fewer = llmrank.Masks({name: mask for name, mask in run.masks.items() if "layers.0" in name})
    with pytest.raises(llmrank.errors.MaskError, match="without a mask"):
        apply_masks(model, ffns_of_masks(model, fewer), fewer)
