"""Blocks of every model family: left out so that transformers loads the checkpoint, or refused with the reason."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import llmrank
from benchmarks.tiny_configs import tiny_model
from llmrank.errors import LLMRankError, MaskError, OptionError
from llmrank.execution.block_stream import BlockStream
from llmrank.models import find_ffns
from llmrank.models.finding.blocks import with_blocks
from llmrank.models.stack import ShallowModel
from llmrank.pipeline import Recipe
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.prune import GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.prune.masks import Masks
from llmrank.repair import BiasRepair, LeastSquaresRepair
from llmrank.surgery.apply import apply_masks
from llmrank.surgery.named_layers import ffns_of_masks
from tests.llmrank.families import FAMILIES, Family
from tests.llmrank.tiny_models import Snapshot, auto_class, every_family, family_model, logits, tiny_llama, token_ids
from tests.tables import table

CALIBRATION = token_ids(6, 16)
PROBE = token_ids(2, 12, seed=1)
NOT_STATED = "the configuration of .* cannot state the other 3 of 4 blocks as they are"
NOT_ONE_LIST = "expected a language model whose blocks are in one list"
# The families from which no block can be left out -> what the error says.
REFUSED = {
    "Jamba (dense)": NOT_STATED,  # every second block has an attention
    "BLOOM": "and return nothing else",
    "T5": NOT_ONE_LIST,
    "T5 v1.1, Flan-T5": NOT_ONE_LIST,
}


def of_family(family: Family) -> Any:
    kinds = {"layer_types": ["linear_attention", "full_attention"] * 2} if family.model_type == "olmo_hybrid" else {}
    return family_model(family, num_hidden_layers=4, **kinds)


def of_blocks(n: int = 6, **changes: Any) -> Any:
    """Make a Llama of n blocks, which differ in what they add to the hidden states."""
    model = tiny_llama(num_hidden_layers=n, **changes)
    with torch.no_grad():
        for k, layer in enumerate(model.model.layers):
            scale = 1.0 + 2.0 * ((5 * k + 3) % n)
            layer.mlp.down_proj.weight *= scale
            layer.self_attn.o_proj.weight *= scale
    return model


def pruned(model: Any, amount: float | int = 1, **options: Any) -> Any:
    options = {"repair": None, "calibration": CALIBRATION, **options}
    return llmrank.prune_model(model, None, amount=amount, targets="blocks", undoable=True, **options)


def without(model: Any, names: list[str]) -> Any:
    """Return a copy of a dense model whose named blocks return the hidden states that they get."""
    model = copy.deepcopy(model)
    for name in names:
        block = model.get_submodule(name)

        def same(*args: Any, block: Any = block, forward: Any = block.forward, **kwargs: Any) -> Any:
            output, hidden = forward(*args, **kwargs), args[0] if args else kwargs["hidden_states"]
            return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

        block.forward = same
    return model


@every_family
def test_stock_transformers_loads_the_checkpoint_without_a_block(family: Family, tmp_path: Path) -> None:
    model = of_family(family)
    dense, snapshot = copy.deepcopy(model), Snapshot(model)
    if family.name in REFUSED:
        with pytest.raises(LLMRankError, match=REFUSED[family.name]):
            pruned(model)
        snapshot.assert_restored()
        return
    result = pruned(model)
    (left_out,) = result.report.neurons["left_out"]
    expected = logits(without(dense, [left_out]), PROBE)
    torch.testing.assert_close(logits(model, PROBE), expected, rtol=1e-5, atol=1e-5)
    assert (
        result.report.before.parameters - result.report.after.parameters
        == (result.report.reached["parameters"]["removed"])
    )
    llmrank.save(tmp_path / "pruned", model)
    stock = auto_class(family).from_pretrained(tmp_path / "pruned")
    assert torch.equal(logits(stock, PROBE), logits(model, PROBE))
    result.undo()
    snapshot.assert_restored()


def test_blocks_go_in_turn_as_a_textbook_loop_removes_them() -> None:
    model = of_blocks()
    dense = copy.deepcopy(model)
    names = [f"model.layers.{k}" for k in range(6)]
    text = CALIBRATION
    target = logits(dense, text).log_softmax(-1)[:, :-1]

    def divergence(gone: list[str]) -> float:
        found = logits(without(dense, gone), text).log_softmax(-1)[:, :-1]
        return float((target.exp() * (target - found)).sum(-1).mean())

    gone: list[str] = []
    for _ in range(3):
        gone.append(min((name for name in names if name not in gone), key=lambda name: divergence([*gone, name])))
    result = pruned(model, 0.5, repair=LeastSquaresRepair())
    losses = result.report.sensitivities
    assert sorted(result.report.neurons["left_out"]) == sorted(gone)
    assert sorted(losses, key=losses.__getitem__)[:3] == gone
    assert losses[gone[0]] == pytest.approx(divergence(gone[:1]), rel=1e-4)


def test_the_ffns_behind_a_missing_block_make_up_for_it() -> None:
    dense = of_blocks()
    text = token_ids(40, 16)
    distance = {}
    for repair in (None, LeastSquaresRepair()):
        model = copy.deepcopy(dense)
        result = pruned(model, 2, calibration=text, repair=repair)
        distance[repair is None] = float((logits(model, PROBE) - logits(dense, PROBE)).square().mean())
    assert distance[False] < 0.9 * distance[True]
    first = min(int(name.rpartition(".")[2]) for name in result.report.neurons["left_out"])
    repaired = {int(name.split(".")[2]) for name in result.report.repaired}
    left_out = {int(name.rpartition(".")[2]) for name in result.report.neurons["left_out"]}
    assert repaired == set(range(first, 6)) - left_out


@pytest.mark.parametrize("amount", [2, 0.34])
def test_an_amount_is_a_number_or_a_share_of_blocks(amount: float | int) -> None:
    model = of_blocks()
    result = pruned(model, amount)
    assert result.report.neurons["removed"] == 2
    assert len(model.model.layers) == model.config.num_hidden_layers == 4
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]
    assert "2 of 6 blocks" not in result.report.notes


def test_an_amount_of_parameters_is_reached_with_all_of_a_block() -> None:
    model = of_blocks()
    before = sum(p.numel() for p in model.parameters())
    result = pruned(model, 0.3, pruner=SensitivityPruner(0.3, amount_of="parameters"))
    removed = before - sum(p.numel() for p in model.parameters())
    assert removed == result.report.reached["parameters"]["removed"] >= 0.3 * before
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    assert removed - block < 0.3 * before


def test_protected_blocks_stay() -> None:
    result = pruned(of_blocks(), 4, pruner=LocalPruner(4, protect=(0, "model.layers.5")))
    assert result.report.neurons["left_out"] == [f"model.layers.{k}" for k in (1, 2, 3, 4)]


@table(
    ("options", "message"),
    [
        ({"amount": 6}, "6 of 6 blocks cannot be removed: at most 5 can"),
        ({"amount": 0.95}, "6 of 6 blocks cannot be removed: at most 5 can"),
        ({"pruner": GlobalPruner(2)}, "leave the pruner out"),
        ({"repair": BiasRepair()}, "use least squares with target 'stream'"),
        ({"form": "zero"}, "in the forms compact and padded"),
        ({"targets": "neurons,blocks"}, "blocks are removed in a run of their own"),
    ],
)
def test_what_does_not_go_with_blocks_is_refused_before_anything_is_changed(options: Any, message: str) -> None:
    model = of_blocks()
    snapshot = Snapshot(model)
    with pytest.raises(OptionError, match=message):
        llmrank.prune_model(model, None, **{"amount": 2, "targets": "blocks", "calibration": CALIBRATION, **options})
    snapshot.assert_restored()


def test_masks_that_leave_out_all_blocks_or_zero_one_are_refused() -> None:
    model = of_blocks(2)
    snapshot, ffns = Snapshot(model), with_blocks(model, find_ffns(model))
    none = Masks({name: torch.zeros(size, dtype=torch.bool) for name, size in ffns.sizes.items()})
    one = Masks({**none, "model.layers.0.mlp": torch.ones(ffns.sizes["model.layers.0.mlp"], dtype=torch.bool)})
    with pytest.raises(MaskError, match="leave out all blocks"):
        apply_masks(model, ffns, none)
    with pytest.raises(OptionError, match="in the forms compact and padded only"):
        apply_masks(model, ffns, one, "zero")
    with pytest.raises(MaskError, match="keeps no neuron"):
        apply_masks(model, find_ffns(model), one)
    snapshot.assert_restored()


def test_neurons_of_other_blocks_are_removed_by_the_same_masks(tmp_path: Path) -> None:
    model = of_blocks(3)
    snapshot, ffns = Snapshot(model), with_blocks(model, find_ffns(model))
    masks = {name: torch.arange(size) >= 8 for name, size in ffns.sizes.items()}
    masks["model.layers.1.mlp"] &= False
    expected = without(model, ["model.layers.1"])
    for k in (0, 2):
        expected.model.layers[k].mlp.down_proj.weight.data[:, :8] = 0.0
    applied = apply_masks(model, ffns, Masks(masks))
    torch.testing.assert_close(logits(model, PROBE), logits(expected, PROBE), rtol=1e-5, atol=1e-5)
    llmrank.save(tmp_path / "pruned", model)
    stock = type(model).from_pretrained(tmp_path / "pruned")
    assert torch.equal(logits(stock, PROBE), logits(model, PROBE))
    applied.undo()
    snapshot.assert_restored()


def test_a_shallow_model_writes_text_with_a_cache(tmp_path: Path) -> None:
    model = of_blocks()
    pruned(model, 3)
    llmrank.save(tmp_path / "pruned", model)
    for each in (model.eval(), llmrank.load(tmp_path / "pruned").model.eval()):
        written = [each.generate(PROBE, max_new_tokens=5, do_sample=False, use_cache=cache) for cache in (True, False)]
        assert torch.equal(*written)


def test_with_little_memory_the_same_blocks_are_left_out(tmp_path: Path) -> None:
    outputs, left_out = [], []
    for directory in (None, tmp_path / "work"):
        model = of_blocks()
        recipe = Recipe(pruner=LocalPruner(2), targets="blocks", calibration=token_ids(40, 16))
        run = PruningRun(model, None, recipe, undoable=directory is None, work_directory=directory)
        run.run()
        assert run.report is not None
        assert run.report.repaired
        left_out.append(run.report.neurons["left_out"])
        outputs.append(logits(model, PROBE))
    assert left_out[0] == left_out[1]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


def test_an_error_on_the_way_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_blocks()
    snapshot, ffns = Snapshot(model), with_blocks(model, find_ffns(model))
    masks = Masks({name: torch.full((size,), "layers.2." not in name) for name, size in ffns.sizes.items()})
    with monkeypatch.context() as patched:
        patched.setattr(ShallowModel, "write", _half_written(ShallowModel.write))
        with pytest.raises(KeyboardInterrupt):
            apply_masks(model, ffns, masks)
    snapshot.assert_restored()


def _half_written(write: Any) -> Any:
    def broken(self: ShallowModel, config: Any) -> None:
        write(self, config)
        raise KeyboardInterrupt

    return broken


@table("model_type", ["ctrl", "xlnet", "cpmant", "trocr", "llama"])
def test_undo_restores_numbers_of_the_model_too(model_type: str) -> None:
    model = tiny_model(model_type, 0)
    snapshot = Snapshot(model)
    result = pruned(model)
    result.undo()
    snapshot.assert_restored()


def test_a_model_that_was_trained_loses_blocks() -> None:
    model = of_blocks()
    for layer in model.model.layers:  # as transformers does it
        layer.gradient_checkpointing = False
    assert pruned(model, 2).report.neurons["removed"] == 2


def test_each_kind_of_block_stays_in_a_hybrid() -> None:
    gemma = next(family for family in FAMILIES if family.model_type == "gemma2")
    kinds = ["full_attention", "sliding_attention", "sliding_attention"] * 2
    model = family_model(gemma, num_hidden_layers=6, layer_types=kinds)
    with torch.no_grad():
        for k in (0, 3):  # the blocks that would go first
            for parameter in model.model.layers[k].parameters():
                parameter *= 0.01
    result = pruned(model, 3)
    left_out = {int(name.rpartition(".")[2]) for name in result.report.neurons["left_out"]}
    assert len({0, 3} & left_out) == 1
    assert set(model.config.layer_types) == {"full_attention", "sliding_attention"}


def test_a_block_that_stays_counts() -> None:
    model = tiny_model("deepseek_v3", 0)
    result = pruned(model, 1)
    assert result.report.neurons["before"] == len(model.model.layers) + 1
    assert result.report.neurons["left_out"] == ["model.layers.1"]
    assert "these blocks cannot be left out: model.layers.0" in result.report.notes
    with pytest.raises(OptionError, match="2 of 2 blocks cannot be removed: at most 1 can"):
        pruned(tiny_model("deepseek_v3", 0), 2)
    with pytest.raises(OptionError, match="has one block, which must stay"):
        pruned(of_blocks(1), 1)


def test_masks_of_a_file_leave_out_blocks(tmp_path: Path) -> None:
    dense, model = of_blocks(), of_blocks()
    result = pruned(model, 2)
    result.save(tmp_path / "pruned")
    masks = Masks.load(tmp_path / "pruned" / "masks.safetensors")
    ffns = ffns_of_masks(dense, masks)
    apply_masks(dense, ffns, masks)
    assert torch.equal(logits(dense, PROBE), logits(model, PROBE))
    with pytest.raises(MaskError, match=r"not all are in model\.layers now"):
        apply_masks(dense, ffns, masks)
    card = (tmp_path / "pruned" / "README.md").read_text(encoding="utf-8")
    assert "blocks were left out, each time the one that cost least" in card
    assert f"left out: {', '.join(result.report.neurons['left_out'])}" in card
    assert "ranked" not in card


def test_undoing_in_the_wrong_order_is_refused() -> None:
    model = of_blocks()
    first, second = pruned(model), pruned(model)
    with pytest.raises(MaskError, match="undo the later application first"):
        first.undo()
    second.undo()
    first.undo()
    assert len(model.model.layers) == 6


def test_nothing_is_repaired_behind_the_last_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockStream, "finish", lambda _stream: pytest.fail("held-out tokens pass for nothing"))
    model = of_blocks()
    result = pruned(model, 1, pruner=LocalPruner(1, protect=(0, 1, 2, 3, 4)), repair=LeastSquaresRepair())
    assert result.report.neurons["left_out"] == ["model.layers.5"]
    assert result.report.validation is None
    assert any(note.startswith("nothing was repaired") for note in result.report.notes)
