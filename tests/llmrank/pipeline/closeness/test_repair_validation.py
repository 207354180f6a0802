"""The validation of a repair compares the model that is left with the dense one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmrank import prune_model
from llmrank.errors import CalibrationError
from llmrank.pipeline.closeness import repair_validation
from llmrank.pipeline.closeness.distance import DenseReference
from llmrank.pipeline.closeness.repair_validation import Validation
from llmrank.prune import LocalPruner
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import tiny_llama, token_ids

# The router sends this token alone to one expert.
RARE = 63
TARGETS = (
    "an expert without a token to fit to",
    "heads",
    "blocks",
    "experts",
    "neurons,experts",
    "block by block",
    "reselected",
)


@pytest.mark.parametrize(
    ("targets", "spare"), [("neurons", 0), ("neurons", 1 << 30), *((targets, 1 << 30) for targets in TARGETS)]
)
def test_known_states_validate_as_complete_passes_do(
    targets: str, spare: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    ids, few = token_ids(40, 24).clamp(max=RARE - 1), targets.startswith("an expert")
    options: dict[str, Any] = {"targets": targets, "amount": 0.5, "repair": "lstsq", "calibration": ids}
    if few:
        options["targets"], ids[-1, 12] = "neurons", RARE
    if targets == "block by block":
        options["targets"] = "neurons"
    if targets == "reselected":
        options |= {"targets": "neurons", "repair": "lstsq:reselect=true"}
    if targets == "blocks":  # the last block stays, so that there is something to repair
        options |= {"amount": 1, "pruner": LocalPruner(1, protect=(3,))}
    monkeypatch.setattr("llmrank.pipeline.stages.spare_memory", lambda *_: spare)
    found, tokens = [], []
    for known in (True, False):
        model = tiny_mixture("mixtral") if "expert" in targets else tiny_llama(num_hidden_layers=4)
        if few:
            send_to_one_expert(model, RARE)
        if targets == "block by block":
            options["work_directory"] = tmp_path / str(known)
        if not known:
            monkeypatch.setattr(DenseReference, "_known_states", SimpleNamespace(suffice=False))
        read: list[int] = []
        norm = model.model.layers[0].input_layernorm
        norm.register_forward_pre_hook(lambda _norm, args, read=read: read.append(args[0][..., 0].numel()))
        found.append(prune_model(model, None, **options, sequence_length=24).report.validation)
        tokens.append(sum(read))
    assert found[0] is not None
    assert found[1] is not None
    assert found[0]["cut"] == pytest.approx(found[1]["cut"], rel=1e-5)
    assert found[0]["repaired"] == pytest.approx(found[1]["repaired"], rel=1e-4)
    # Two passes are saved, for a trial with a few tokens; one if the dense model's states were not kept, or the repaired model's
    # are not known.
    keeps_dense = bool(spare) and targets not in ("block by block", "reselected")
    assert tokens[1] - tokens[0] == (keeps_dense + (not few)) * found[0]["count"] // 23 * 24 - 8


def test_a_cut_that_loses_nothing_is_not_repaired() -> None:
    """A repair would fit rounding errors, and they may make its divergence negative."""
    model = tiny_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight[:8] = 0.0
    expected = [layer.mlp.down_proj.weight[:, 8:].clone() for layer in model.model.layers]
    result = prune_model(
        model, None, amount=8, scorer="activation", repair="lstsq", calibration=token_ids(40, 24, seed=3)
    )
    assert result.report.validation["cut"] == 0.0
    assert not Validation("divergence", 115, 0.0, -8e-9, None).improves
    for layer, weight in zip(model.model.layers, expected, strict=True):
        assert torch.equal(layer.mlp.down_proj.weight, weight)


@torch.no_grad()
def send_to_one_expert(model: Any, token: int) -> None:
    """Have the first router of a mixture send a token, and no other one, to its first expert."""
    model.model.embed_tokens.weight[:, 0] = -9.0
    model.model.embed_tokens.weight[token, 0] = 9.0
    block = model.model.layers[0]
    block.self_attn.o_proj.weight[0] = 0.0
    block.mlp.gate.weight[:, 0] = 0.0
    block.mlp.gate.weight[0] = torch.eye(len(block.mlp.gate.weight[0]))[0] * 99.0


def test_predictions_that_are_not_finite_are_found_before_the_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[3] = 1e38
    monkeypatch.setattr(repair_validation, "repair_ffns", lambda *_: pytest.fail("a repair began"))
    with pytest.raises(CalibrationError, match="predictions are not finite"):
        prune_model(model, None, scorer="wpr", repair="lstsq", calibration=token_ids(40, 24), sequence_length=24)
