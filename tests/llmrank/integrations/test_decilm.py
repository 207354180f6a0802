"""Checkpoints of the architecture DeciLMForCausalLM, as their readers read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import llmrank
from llmrank import Masks
from llmrank.errors import CheckpointError, OptionError, UnsupportedModelError
from llmrank.integrations.decilm import write_decilm
from llmrank.models import FFNs, find_ffns
from llmrank.models.finding.heads import find_heads
from llmrank.surgery.apply import apply_masks
from tests.llmrank.tiny_models import family_model, logits, named_family, token_ids, tokenizer


def saved(path: Path, widths: list[int], family: str = "Llama, SmolLM2", **changes: Any) -> Any:
    """Write a checkpoint whose layers have these widths; return the model."""
    model = family_model(named_family(family), num_hidden_layers=len(widths), **changes)
    ffns = find_ffns(model)
    layers = zip(ffns.layers.values(), widths, strict=True)
    apply_masks(model, ffns, Masks({layer.name: torch.arange(layer.size) < width for layer, width in layers}))
    llmrank.save(path, model, tokenizer())
    return model


@pytest.mark.parametrize(
    ("family", "changes", "bias"),
    [("Llama, SmolLM2", {}, False), ("Qwen2", {}, True), ("Mistral", {"sliding_window": None}, False)],
)
def test_vllm_reads_the_width_of_every_layer(family: str, changes: Any, bias: bool, tmp_path: Path) -> None:
    saved(tmp_path / "pruned", [30, 17], family, **changes)
    assert write_decilm(tmp_path / "pruned", tmp_path / "served") == (30, 17)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "served", trust_remote_code=True)
    assert config.architectures == ["DeciLMForCausalLM"]
    assert [block.ffn.intermediate_size for block in config.block_configs] == [30, 17]
    for block in config.block_configs:
        # What vLLM asks: see DeciLMDecoderLayer in its models/nemotron_nas.py.
        assert not block.attention.no_op
        assert not block.ffn.no_op
        assert not hasattr(block.ffn, "ffn_mult")
        assert config.num_attention_heads // block.attention.n_heads_in_group == config.num_key_value_heads
    assert getattr(config, "qkv_bias", False) is bias
    assert not hasattr(config, "llmrank_widths")
    again = type(config).from_dict(json.loads(config.to_json_string()))
    assert [block.ffn.intermediate_size for block in again.block_configs] == [30, 17]
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("pruned", "served")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "served").get_vocab() == tokenizer().get_vocab()


def test_code_that_comes_with_a_checkpoint_is_not_served(tmp_path: Path) -> None:
    saved(tmp_path / "pruned", [30, 17])
    code = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model", "AutoTokenizer": ["theirs.T", None]}
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = tmp_path / "pruned" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": code}))
    (tmp_path / "pruned" / "theirs.py").write_text("raise SystemExit")
    write_decilm(tmp_path / "pruned", tmp_path / "served")
    served = {path.name: path.read_text(errors="replace") for path in (tmp_path / "served").iterdir()}
    assert [name for name in served if name.endswith(".py")] == ["configuration_layers.py"]
    assert not any("theirs" in text for text in served.values())


@pytest.mark.parametrize("hidden", [16, 576, 896, 2048, 5120])
def test_the_factor_of_a_width_is_rounded_up_to_the_width(hidden: int, tmp_path: Path) -> None:
    from llmrank.integrations.decilm import _configuration

    config = {"num_attention_heads": 4, "hidden_size": hidden, "model_type": "llama", "num_key_value_heads": 2}
    widths = (256, 512, 768, 1024, 4864, 14336, 27648)
    for block, width in zip(_configuration(config, widths)["block_configs"], widths, strict=True):
        size = int(2 * block["ffn"]["ffn_mult"] * hidden / 3)  # as SGLang and mlx-lm compute it
        assert size + -size % 256 == width


def test_mlx_computes_what_the_model_computes(tmp_path: Path) -> None:
    loader = pytest.importorskip("mlx_lm.utils")
    mx = pytest.importorskip("mlx.core")
    rope = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}
    model = saved(
        tmp_path / "pruned", [512, 256, 768], intermediate_size=1024, rope_parameters=rope, tie_word_embeddings=True
    )
    write_decilm(tmp_path / "pruned", tmp_path / "served")
    ids = token_ids(1, 20)
    served, _ = loader.load_model(tmp_path / "served")
    found = np.array(served(mx.array(ids.numpy())))[0]
    expected = logits(model, ids)[0].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_the_architecture_does_not_compute_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "gemma", [30, 17], "Gemma")
    with pytest.raises(UnsupportedModelError, match="of the types llama, mistral, qwen2, not gemma"):
        write_decilm(tmp_path / "gemma", tmp_path / "served")
    saved(tmp_path / "mistral", [30, 17], "Mistral", sliding_window=8)
    with pytest.raises(UnsupportedModelError, match="a sliding window of attention"):
        write_decilm(tmp_path / "mistral", tmp_path / "served")
    saved(tmp_path / "llama", [30, 17])
    (tmp_path / "llama" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model.layers.0.mlp.down_proj.weight"):
        write_decilm(tmp_path / "llama", tmp_path / "served")
    with pytest.raises(CheckpointError, match="has no configuration that can be read"):
        write_decilm(tmp_path / "absent", tmp_path / "served")
    model = family_model(named_family("Llama, SmolLM2"))
    attentions = FFNs(find_heads(model, find_ffns(model)).values())
    masks = {name: torch.arange(size) >= (8 if "1" in name else 0) for name, size in attentions.sizes.items()}
    apply_masks(model, attentions, Masks(masks))
    llmrank.save(tmp_path / "heads", model)
    with pytest.raises(UnsupportedModelError, match="these layers have different numbers"):
        write_decilm(tmp_path / "heads", tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "pruned", [30, 17])
    path = tmp_path / "pruned" / "config.json"
    text = path.read_text(encoding="utf-8")
    config = json.loads(text)
    without = {key: value for key, value in config.items() if key != "num_hidden_layers"}
    changes = [{"hidden_size": "16"}, {"head_dim": "x"}, {"num_hidden_layers": 0}, {"rope_parameters": 3}]
    for content in ([], 3, without, *(config | change for change in changes)):
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(OptionError, match="does not hold what llmrank writes"):
            write_decilm(tmp_path / "pruned", tmp_path / "served")
    for change in ({"num_hidden_layers": 10**12}, {"head_dim": 5}):
        path.write_text(json.dumps(config | change), encoding="utf-8")
        with pytest.raises(CheckpointError):
            write_decilm(tmp_path / "pruned", tmp_path / "served")
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(CheckpointError, match="no configuration that can be read"):
        write_decilm(tmp_path / "pruned", tmp_path / "served")
    path.write_text(text, encoding="utf-8")
    (tmp_path / "pruned" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="expected a file of safetensors"):
        write_decilm(tmp_path / "pruned", tmp_path / "served")
    assert not (tmp_path / "served").exists()
