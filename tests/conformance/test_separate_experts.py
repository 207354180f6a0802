"""Mixtures whose experts are modules: they lose neurons or experts, and the checkpoint loads and computes the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks.hand_masks import experts_silenced, neurons_set_to_zero, readers_of
from llmrank import prune_model
from llmrank.calibration.collect import collect_statistics
from llmrank.errors import CalibrationError, UnsupportedModelError
from llmrank.execution import Execution
from llmrank.models import find_ffns
from llmrank.models.forward import evaluation_mode
from llmrank.prune import LocalPruner
from llmrank.surgery.checkpoint import _class_for_config
from llmrank.surgery.widths import WIDTHS_KEY
from llmrank.text import TokenSequences
from tests.llmrank.plain_pipelines import IsolatedFFNPipeline
from tests.llmrank.tiny_models import Snapshot
from tests.llmrank.tiny_separate import MIXTRAL, SEPARATE, tiny_separate
from tests.pairwise import pairwise

IDS = torch.randint(3, 64, (6, 24), generator=torch.Generator().manual_seed(0))
TARGETS = ("neurons", "experts", "neurons,experts")
every_mixture = pytest.mark.parametrize(
    "name", ["listed", *(pytest.param(name, marks=pytest.mark.slow) for name in SEPARATE if name != "listed")]
)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": IDS[2:4]} if model.config.is_encoder_decoder else {}
    found: torch.Tensor = model(input_ids=IDS[:2], use_cache=False, **more).logits
    return found


def load(model_class: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint with the model's own class, or with that of llmrank if the configuration lists widths."""
    config = model_class.config_class.from_pretrained(path)
    model, info = _class_for_config(model_class, config).from_pretrained(path, output_loading_info=True)
    return model, info


@every_mixture
@pytest.mark.parametrize("targets", TARGETS)
def test_pruned_checkpoints_load_and_compute_what_the_masked_model_does(
    name: str, targets: str, tmp_path: Path
) -> None:
    model = tiny_separate(name)
    dense, ffns = copy.deepcopy(model), find_ffns(model)
    assert [ffn.is_routed for ffn in ffns].count(True) == 16
    readers = readers_of(model, ffns)
    before = sum(p.numel() for p in model.parameters())
    pruned = prune_model(model, None, 0.25, targets=targets, repair="none", calibration=IDS, sequence_length=24)
    with neurons_set_to_zero(dense, pruned.masks, readers), experts_silenced(dense, pruned.masks):
        expected = logits(dense)
    assert not torch.allclose(expected, logits(dense), atol=1e-2)
    torch.testing.assert_close(logits(model), expected, rtol=0.0, atol=1e-5)
    pruned.save(tmp_path / "pruned")
    loaded, info = load(type(model), tmp_path / "pruned")
    assert not any(info.values())
    equal = len({width for width in pruned.masks.widths.values() if width}) == 1
    # One field states the width of dense FFNs and of experts, which are cut by other shares if experts are removed too.
    assert hasattr(loaded.config, WIDTHS_KEY) == (targets == "neurons,experts" and name != "listed" and not equal)
    torch.testing.assert_close(logits(loaded), expected, rtol=0.0, atol=1e-5)
    removed = before - sum(p.numel() for p in loaded.parameters())
    assert removed == pruned.report.reached["parameters"]["removed"] > 0
    if targets == "experts":
        assert {m.n_experts for m in find_ffns(loaded).mixtures} == {6}
    again = prune_model(loaded, None, 0.3, targets="neurons", repair="none", calibration=IDS, sequence_length=24)
    assert again.report.neurons["removed"] > 0


@pairwise(name=SEPARATE, targets=TARGETS, form=["compact", "zero", "mask"], slow={"shared", "switch_transformers"})
def test_undo_restores_every_bit(name: str, targets: str, form: Any) -> None:
    model = tiny_separate(name)
    dense = logits(model)  # a router of Switch notes its dtype in the first call
    snapshot = Snapshot(model)
    pipeline = IsolatedFFNPipeline(
        model, None, pruner=LocalPruner(0.25), targets=targets, form=form, calibration=IDS[:, :16]
    )
    pipeline.run()
    assert not torch.allclose(logits(model), dense, atol=1e-3)
    pipeline.undo()
    snapshot.assert_restored()
    assert torch.equal(logits(model), dense)


@every_mixture
def test_repair_brings_them_closer_or_is_dropped(name: str) -> None:
    model = tiny_separate(name)
    pruned = prune_model(model, None, 0.25, targets="experts", repair="lstsq", calibration=IDS, sequence_length=24)
    validation = pruned.report.validation
    assert validation is not None
    assert validation["repaired"] <= validation["cut"] or not pruned.report.repaired


def test_statistics_are_those_of_shared_tensors() -> None:
    listed = tiny_separate("listed")
    fused = transformers.MixtralForCausalLM(transformers.MixtralConfig(**MIXTRAL)).eval()
    state = {name: value for name, value in listed.state_dict().items() if ".mlp." not in name}
    for k, layer in enumerate(listed.model.layers):
        experts, prefix = layer.mlp.experts, f"model.layers.{k}.mlp"
        state[f"{prefix}.gate.weight"] = layer.mlp.gate.weight
        state[f"{prefix}.experts.gate_up_proj"] = torch.stack([torch.cat([e.w1.weight, e.w3.weight]) for e in experts])
        state[f"{prefix}.experts.down_proj"] = torch.stack([e.w2.weight for e in experts])
    fused.load_state_dict(state)
    torch.testing.assert_close(logits(listed), logits(fused), rtol=0.0, atol=1e-5)
    mask = torch.ones_like(IDS, dtype=torch.bool)
    mask[1, 15:] = mask[4, 3:] = False
    sequences = TokenSequences.of(IDS, mask, "ids")
    found, expected = (
        collect_statistics(model, find_ffns(model), sequences, Execution(2)) for model in (listed, fused)
    )
    for one, other in zip(found, expected, strict=True):
        assert one.routing is not None
        assert other.routing is not None
        assert one.routing.count == other.routing.count
        for name in ("weight", "output_norm", "weighted_output_norm", "output_variance", "weighted_norm"):
            torch.testing.assert_close(getattr(one.routing, name), getattr(other.routing, name), rtol=1e-5, atol=1e-6)
        for layers in zip(one.layers, other.layers, strict=True):
            torch.testing.assert_close(layers[0].norm, layers[1].norm, rtol=1e-5, atol=1e-6)
        assert one.mixture is not None
        assert other.mixture is not None
        torch.testing.assert_close(one.mixture.outputs.norm, other.mixture.outputs.norm, rtol=1e-5, atol=1e-6)


def test_experts_that_get_a_token_several_times_are_refused() -> None:
    model = tiny_separate("nllb_moe")
    snapshot = Snapshot(model)
    with pytest.raises(
        CalibrationError, match=r"which tokens expert 0 of NllbMoeExperts gets; expected a mixture that sends"
    ):
        prune_model(model, None, 0.25, repair="none", calibration=IDS, sequence_length=24)
    assert all(torch.equal(value, snapshot.bits[name]) for name, value in model.state_dict().items())


def test_activations_that_are_not_finite_are_named() -> None:
    model = tiny_separate("shared").half()
    model.model.embed_tokens.weight.data *= 1000.0
    model.model.layers[0].self_attn.o_proj.weight.data *= 60000.0
    with pytest.raises(CalibrationError, match="are not finite"):
        prune_model(model, None, 0.25, repair="none", calibration=IDS, sequence_length=24)


def test_a_list_of_experts_without_a_router_is_refused() -> None:
    model = tiny_separate("listed")
    model.model.layers[0].mlp.gate = torch.nn.Identity()
    with pytest.raises(UnsupportedModelError, match=r"holds 8 experts, and their router was not found: .* found none"):
        find_ffns(model)
    # With another name, they may be ordinary FFNs side by side.
    model.model.layers[0].mlp.parts = model.model.layers[0].mlp.experts
    del model.model.layers[0].mlp.experts
    assert [ffn.is_routed for ffn in find_ffns(model)] == [False] * 8 + [True] * 8


@every_mixture
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tokens_of_every_expert_are_seen(name: str, dtype: torch.dtype) -> None:
    model = tiny_separate(name).to(dtype)
    ffns = find_ffns(model)
    seen: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}
    for mixture in ffns.mixtures:
        mixture.module.register_forward_pre_hook(
            lambda _m, args, name=mixture.name: inputs.__setitem__(name, args[0].reshape(-1, args[0].shape[-1]))
        )
    for ffn in ffns:
        if ffn.is_routed:
            ffn.module.register_forward_pre_hook(
                lambda _m, args, kwargs, name=ffn.name: seen.__setitem__(name, (*args, *kwargs.values())[0]),
                with_kwargs=True,
            )
    with evaluation_mode(model, ffns):
        logits(model)
    assert len(seen) > 8
    for ffn in ffns:
        if ffn.name in seen and ffn.mixture is not None:
            routing = ffn.mixture.routing_of(ffn.stages[0][0].module)
            assert routing is not None
            assert torch.equal(
                inputs[ffn.mixture.name][routing.tokens], seen[ffn.name].reshape(len(routing.tokens), -1)
            )
            assert bool((routing.weights > 0).all())
