"""Every family of mixtures: neurons or experts are removed, the checkpoint loads in stock transformers and computes the same."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import llmrank
from llmrank import Masks, prune_model
from llmrank.errors import CheckpointError, MaskError, OptionError, UnsupportedModelError
from llmrank.models import find_ffns
from llmrank.prune import GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.surgery.apply import apply_masks
from llmrank.surgery.equivalence import as_masked, masked_outputs
from llmrank.surgery.widths import WIDTHS_KEY
from llmrank.text import TokenSequences
from tests.llmrank.plain_pipelines import IsolatedFFNPipeline
from tests.llmrank.tiny_mixtures import ALIKE, MIXTURES, tiny_mixture
from tests.llmrank.tiny_models import Snapshot
from tests.pairwise import pairwise

IDS = torch.randint(3, 64, (6, 24), generator=torch.Generator().manual_seed(0))
TARGETS = ("neurons", "experts", "neurons,experts")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS[:2], use_cache=False).logits
    return found


@contextlib.contextmanager
def silenced_routers(model: Any, kept: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the logits of removed experts minus infinity in every product with a router's weight, one router after the other."""
    order = iter(kept * 2)
    honest = nn.functional.linear

    def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        result = honest(values, weight, bias)
        return result.masked_fill(~next(order), -torch.inf) if weight.shape == (8, 32) else result

    corrections = [t for n, t in (*model.named_buffers(), *model.named_parameters()) if "correction" in n]
    for tensor, keep in zip(corrections, kept, strict=False):
        tensor.data.masked_fill_(~keep, -torch.inf)
    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "linear", linear)
        yield


def masked_by_hand(model: Any, masks: Masks, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Zero what the removed neurons write, with the model's own tensors, and let routers ignore removed experts."""
    model = copy.deepcopy(model)
    kept: dict[str, list[bool]] = {}
    for name, keep in masks.items():
        container, _, position = name.rpartition(".")
        module: Any = model.get_submodule(container if container.endswith("experts") and position.isdigit() else name)
        if isinstance(getattr(module, "down_proj", None), nn.Parameter):
            down = module.down_proj.data[int(position)]
            # Rows of a transposed matrix, which has as many as there are hidden neurons, else columns.
            down[~keep if down.shape[0] == len(keep) else slice(None)] *= 0.0 if down.shape[0] == len(keep) else 1.0
            if down.shape[0] != len(keep):
                down[:, ~keep] = 0.0
            kept.setdefault(container, []).append(bool(keep.any()))
        else:
            module.down_proj.weight.data[:, ~keep] = 0.0
    with silenced_routers(model, [torch.tensor(flags) for flags in kept.values()], monkeypatch):
        return logits(model)


@pairwise(name=MIXTURES, targets=TARGETS, amount=[0.25, 0.5], slow=ALIKE)
def test_pruned_checkpoints_load_in_stock_transformers(
    name: str, targets: str, amount: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_mixture(name)
    dense = copy.deepcopy(model)
    before = sum(p.numel() for p in model.parameters())
    pruned = prune_model(model, None, amount, targets=targets, repair="none", calibration=IDS, sequence_length=24)
    expected = masked_by_hand(dense, pruned.masks, monkeypatch)
    assert not torch.allclose(expected, logits(dense), atol=1e-2)
    torch.testing.assert_close(logits(model), expected, rtol=0.0, atol=1e-5)
    pruned.save(tmp_path / "pruned")
    if hasattr(model.config, WIDTHS_KEY):
        # One field states the widths of Jamba's plain FFNs and of its experts, which lose less where experts go too.
        assert (name, targets) == ("jamba", "neurons,experts")
        loaded, info = llmrank.load(tmp_path / "pruned").model, {}
    else:
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(logits(loaded), expected, rtol=0.0, atol=1e-5)
    removed = before - sum(p.numel() for p in loaded.parameters())
    assert removed == pruned.report.reached["parameters"]["removed"] > 0
    if targets == "experts":
        (count,) = {m.n_experts for m in find_ffns(loaded).mixtures}
        assert count == round(8 * (1 - amount))
    if targets == "neurons,experts":
        assert abs(pruned.report.neurons["share_reached"] - amount) < 0.17  # widths are multiples of 8 of 24
    # The checkpoint can be pruned again.
    again = prune_model(loaded, None, 0.3, targets="neurons", repair="none", calibration=IDS, sequence_length=24)
    assert again.report.neurons["removed"] > 0


@pairwise(name=MIXTURES, targets=TARGETS, form=["compact", "zero", "mask"], slow=ALIKE)
def test_undo_restores_every_bit(name: str, targets: str, form: Any) -> None:
    model = tiny_mixture(name)
    snapshot, dense = Snapshot(model), logits(model)
    pipeline = IsolatedFFNPipeline(
        model, None, pruner=LocalPruner(0.25), targets=targets, form=form, calibration=IDS[:, :16]
    )
    pipeline.run()
    assert pipeline.masks is not None
    cut = logits(model)
    assert not torch.allclose(cut, dense, atol=1e-3)
    pipeline.undo()
    snapshot.assert_restored()
    torch.testing.assert_close(logits(model), dense, rtol=0.0, atol=0.0)
    sequences = TokenSequences.of(IDS[:2], torch.ones_like(IDS[:2], dtype=torch.bool), "ids")
    masked = masked_outputs(model, find_ffns(model), pipeline.masks, sequences)
    torch.testing.assert_close(masked.float(), cut, rtol=0.0, atol=1e-5)


@pytest.mark.slow
@pairwise(
    name=["qwen2_moe", "deepseek_v3", "gpt_oss", "llama4_text"],
    topology=["chained", "residual"],
    pruner=["global", "sensitivity"],
    targets=TARGETS,
)
def test_every_budget_and_topology_gives_a_checkpoint_that_loads(
    name: str, topology: str, pruner: str, targets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_mixture(name)
    dense = copy.deepcopy(model)
    options: dict[str, Any] = {"calibration": IDS, "sequence_length": 24, "repair": "none"}
    pruned = prune_model(model, None, 0.25, targets=targets, pruner=pruner, pipeline=topology, **options)
    expected = masked_by_hand(dense, pruned.masks, monkeypatch)
    pruned.save(tmp_path / "pruned")
    torch.testing.assert_close(logits(llmrank.load(tmp_path / "pruned").model), expected, rtol=0.0, atol=1e-5)


# Those that are like others meet one of the targets each.
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        pytest.param(name, targets, marks=[pytest.mark.slow] if name in ALIKE else [])
        for position, name in enumerate(MIXTURES)
        for targets in (TARGETS if name not in ALIKE else TARGETS[position % 3 :][:1])
    ],
)
def test_repaired_checkpoints_compute_what_the_model_computes(name: str, targets: str, tmp_path: Path) -> None:
    model = tiny_mixture(name)
    pruned = prune_model(model, None, 0.25, targets=targets, repair="lstsq", calibration=IDS, sequence_length=24)
    validation = pruned.report.validation
    assert validation is not None
    assert validation["repaired"] < validation["cut"] or not pruned.report.repaired
    pruned.save(tmp_path / "pruned")
    loaded = llmrank.load(tmp_path / "pruned").model
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0.0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("moment_bytes", [1 << 30, 1])
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss", "qwen2_moe"])
def test_the_experts_that_are_left_make_up_for_removed_ones(
    name: str, moment_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmrank.repair.sequential.MOMENT_BYTES", moment_bytes)
    ids = torch.randint(3, 64, (40, 32), generator=torch.Generator().manual_seed(3))
    options: dict[str, Any] = {"calibration": ids, "sequence_length": 32, "samples": 40}
    pruned = prune_model(tiny_mixture(name), None, 0.25, targets="experts", repair="lstsq", **options)
    assert pruned.report.validation is not None
    assert pruned.report.validation["repaired"] < pruned.report.validation["cut"]
    assert {entry["target"] for entry in pruned.report.repaired.values()} == {"stream"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_rounding_that_sends_tokens_to_other_experts_is_no_reason_to_refuse(name: str, dtype: torch.dtype) -> None:
    count = "num_local_experts" if name == "gpt_oss" else "num_experts"
    more = {"layer_types": ["full_attention"] * 4} if name == "gpt_oss" else {}
    model = tiny_mixture(name, num_hidden_layers=4, **{count: 64}, **more).to(dtype)
    prune_model(model, None, 0.25, repair="none", calibration=IDS, sequence_length=24)
    assert {mixture.n_experts for mixture in find_ffns(model).mixtures} == {64}


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "jamba"])
@pytest.mark.parametrize("protect", [(), (0,), ("model.layers.1",)])
def test_protected_layers_with_both_targets(name: str, protect: Any) -> None:
    width = {"moe_intermediate_size" if name == "deepseek_v3" else "intermediate_size": 64}
    pruner = LocalPruner(0.5, protect=protect)
    options: dict[str, Any] = {"repair": "none", "calibration": IDS, "sequence_length": 24}
    pruned = prune_model(tiny_mixture(name, **width), None, pruner=pruner, targets="neurons,experts", **options)
    removed = {name: 1.0 - float(mask.float().mean()) for name, mask in pruned.masks.items()}
    kept_layer = {(): "none", (0,): "layers.0.", ("model.layers.1",): "layers.1."}[protect]
    assert all(
        (share == 0.0) == (kept_layer in name) for name, share in removed.items() if "layers.0." in name or protect
    )
    others = [mask for name, mask in pruned.masks.items() if kept_layer not in name]
    assert float(torch.cat(others).float().mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("pruner", [GlobalPruner, SensitivityPruner])
def test_an_amount_is_a_share_of_neurons_wherever_they_are(pruner: Any) -> None:
    """A dense first layer, and experts whose widths are rounded to multiples of eight."""
    model = tiny_mixture("deepseek_v3", moe_intermediate_size=64, intermediate_size=128)
    options: dict[str, Any] = {"repair": "none", "calibration": IDS, "sequence_length": 24}
    pruned = prune_model(model, None, pruner=pruner(0.3, protect=0), **options)
    assert pruned.masks.removed_share == pytest.approx(0.3, abs=0.05)


def test_a_number_is_a_number_of_experts() -> None:
    options: dict[str, Any] = {"repair": "none", "calibration": IDS, "sequence_length": 24}
    pruned = prune_model(tiny_mixture("mixtral"), None, pruner=GlobalPruner(3), targets="experts", **options)
    assert sum(not bool(mask.any()) for mask in pruned.masks.values()) == 3


@pytest.mark.parametrize("form", ["compact", "padded"])
def test_experts_of_any_width_are_filled_up_to_one_that_transformers_computes(form: Any) -> None:
    model = tiny_mixture("mixtral")
    ffns = find_ffns(model)
    masks = Masks({name: torch.arange(size) < 11 + k % 3 for k, (name, size) in enumerate(ffns.sizes.items())})
    sequences = TokenSequences.of(IDS[:2], torch.ones_like(IDS[:2], dtype=torch.bool), "ids")
    expected = masked_outputs(model, ffns, masks, sequences)
    apply_masks(model, ffns, masks, form=form)
    assert model.model.layers[0].mlp.experts.down_proj.shape == (8, 32, 16)
    torch.testing.assert_close(logits(model).double(), expected, rtol=0.0, atol=1e-5)


def test_experts_are_not_removed_twice_in_different_forms() -> None:
    model = tiny_mixture("mixtral")
    ffns = find_ffns(model)
    one, two = ({n: torch.ones(s, dtype=torch.bool) for n, s in ffns.sizes.items()} for _ in range(2))
    one["model.layers.0.mlp.experts.1"][:] = False
    two["model.layers.0.mlp.experts.2"][:] = False
    apply_masks(model, ffns, Masks(one), "zero")
    with pytest.raises(OptionError, match="passes over experts already"):
        apply_masks(model, ffns, Masks(two), "compact")


@pytest.mark.parametrize("form", ["compact", "mask"])
def test_ffns_of_another_state_of_the_model_are_refused(form: Any) -> None:
    model = tiny_mixture("mixtral")
    ffns = find_ffns(model)
    masks = {name: torch.ones(size, dtype=torch.bool) for name, size in ffns.sizes.items()}
    masks["model.layers.0.mlp.experts.7"][3:] = False
    masks["model.layers.0.mlp.experts.1"][:] = form == "mask"
    apply_masks(model, ffns, Masks(masks), form)
    with pytest.raises((MaskError, OptionError), match="undo"):
        apply_masks(model, ffns, Masks(masks), form)


def test_a_bias_cannot_repair_experts_without_one() -> None:
    with pytest.raises(UnsupportedModelError, match=r"repair by bias needs .*experts\.0\.down_proj has none"):
        prune_model(tiny_mixture("mixtral"), None, 0.25, repair="bias", calibration=IDS, sequence_length=24)
    pruned = prune_model(tiny_mixture("gpt_oss"), None, 0.25, repair="bias", calibration=IDS, sequence_length=24)
    assert pruned.report.validation is not None


def test_both_targets_divide_a_share_of_the_neurons() -> None:
    options: dict[str, Any] = {"targets": "neurons,experts", "repair": "none", "calibration": IDS}
    with pytest.raises(OptionError, match=r"expected an amount such as 0\.3 of neurons, got 3 of neurons"):
        prune_model(tiny_mixture("mixtral"), None, 3, **options)


def test_of_two_targets_no_more_than_the_share_is_removed() -> None:
    """Neurons alone can make up a third of all; with one expert fewer, rounded widths would remove 42 %."""
    options: dict[str, Any] = {"scorer": "wpr", "repair": "none", "calibration": IDS, "sequence_length": 24}
    pruned = prune_model(tiny_mixture("mixtral"), None, 1 / 3, targets="neurons,experts", **options)
    assert pruned.masks.removed_share == pytest.approx(1 / 3)


def test_experts_without_a_score_make_up_the_share_of_their_layer_alone() -> None:
    model = tiny_mixture("jamba")
    for tensor in model.model.layers[1].feed_forward.experts.parameters():
        tensor.data[[1, 5]] = 0.0
    options: dict[str, Any] = {"scorer": "norm", "repair": "none", "calibration": IDS, "sequence_length": 24}
    pruned = prune_model(model, None, 0.25, targets="neurons,experts", **options)
    # The FFN in front of them loses a quarter of its 24 neurons, as far as a multiple of 8 allows.
    assert list(pruned.masks.widths.values()) == [16, *(0 if k in (1, 5) else 24 for k in range(8))]


def test_a_router_keeps_as_many_experts_as_it_needs() -> None:
    options: dict[str, Any] = {"targets": "experts", "repair": "none", "calibration": IDS, "sequence_length": 24}
    with pytest.raises(OptionError, match=r"would keep 1 of 8 experts, fewer than the 2 that the router needs"):
        prune_model(tiny_mixture("mixtral"), None, 7, **options)
    with pytest.raises(OptionError, match="has no experts that could be removed"):
        prune_model(tiny_mixture("jamba", num_experts=1, num_experts_per_tok=1), None, 0.25, **options)
    model = tiny_mixture("deepseek_v3")
    ffns = find_ffns(model)
    masks = {name: torch.ones(size, dtype=torch.bool) for name, size in ffns.sizes.items()}
    masks["model.layers.1.mlp.experts.0"][:] = False
    with pytest.raises(MaskError, match=r"keep \[3, 4\] experts .* in each of its 2 groups of experts"):
        apply_masks(model, ffns, Masks(masks))


def test_experts_of_one_mixture_are_equally_wide_under_a_global_budget() -> None:
    model = tiny_mixture("qwen2_moe", moe_intermediate_size=48)
    pipeline = IsolatedFFNPipeline(model, None, pruner=GlobalPruner(0.4), calibration=IDS)
    pipeline.run()
    assert pipeline.masks is not None
    ffns = find_ffns(tiny_mixture("qwen2_moe", moe_intermediate_size=48))
    for experts in ffns.experts.values():
        widths = {pipeline.masks.widths[name] for name in experts}
        assert len(widths) == 1
        assert widths.pop() % 8 == 0


@pytest.mark.parametrize("form", ["zero", "mask"])
def test_experts_that_are_only_silenced_cannot_be_saved(form: Any, tmp_path: Path) -> None:
    model = tiny_mixture("mixtral")
    options: dict[str, Any] = {"targets": "experts", "repair": "none", "calibration": IDS, "sequence_length": 24}
    pruned = prune_model(model, None, 0.25, form=form, **options)
    with pytest.raises(CheckpointError, match="apply the masks in the compact form"):
        pruned.save(tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_masks_count_without_weights_even_if_experts_are_fused(name: str) -> None:
    """Nothing but the context tells a mixture to compute expert by expert, so that the masks of its experts count."""
    model = tiny_mixture(name)
    ffns = find_ffns(model)
    masks = Masks({layer: torch.arange(size) >= size // 2 for layer, size in ffns.sizes.items()})
    dense = logits(model)
    with as_masked(ffns, masks):
        found = logits(model)
    apply_masks(model, ffns, masks, "zero")
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-5)
    assert (found - dense).abs().max() > 1e-3
