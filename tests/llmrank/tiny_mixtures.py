"""Tiny random mixtures of experts, one for each way in which transformers stores and routes them."""

from __future__ import annotations

from typing import Any

import torch
import transformers

__all__ = ["MIXTURES", "tiny_mixture"]

BASE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts_per_tok": 2,
}
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
# A first layer without experts, then experts beside shared ones whose width the same field states.
SHARED = {"intermediate_size": 48, "moe_intermediate_size": 24, "n_routed_experts": 8, "first_k_dense_replace": 1}
QWEN = {"intermediate_size": 48, "moe_intermediate_size": 24, "num_experts": 8, "decoder_sparse_step": 1}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 24, "num_local_experts": 8},
    "qwen2_moe": QWEN | {"shared_expert_intermediate_size": 40},
    "qwen3_moe": QWEN,
    "olmoe": {"intermediate_size": 24, "num_experts": 8},
    "gpt_oss": {"intermediate_size": 24, "num_local_experts": 8, "layer_types": ["full_attention"] * 2},
    "deepseek_v2": SHARED | LATENT | {"n_shared_experts": 2, "q_lora_rank": None, "n_group": 1, "topk_group": 1},
    "deepseek_v3": SHARED | LATENT | {"n_shared_experts": 2, "q_lora_rank": 16, "n_group": 2, "topk_group": 1},
    "glm4_moe": SHARED | {"n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "granitemoe": {"intermediate_size": 24, "num_local_experts": 8},
    "nemotron_h": {
        "moe_intermediate_size": 24,
        "n_routed_experts": 8,
        "moe_shared_expert_intermediate_size": 40,
        "hybrid_override_pattern": "ME",
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "jamba": {
        "intermediate_size": 24,
        "num_experts": 8,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 4,
    },
    "llama4_text": {
        "intermediate_size": 24,
        "intermediate_size_mlp": 48,
        "num_local_experts": 8,
        "interleave_moe_layer_step": 1,
    },
    "qwen3_next": QWEN
    | {"shared_expert_intermediate_size": 40, "layer_types": ["linear_attention", "full_attention"]}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "ernie4_5_moe": {
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "moe_num_experts": 8,
        "moe_k": 2,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
    },
}
# These store, route or bias their experts as one of the others does; tests with them are slow tests.
ALIKE = {"mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "glm4_moe", "granitemoe", "qwen3_next", "ernie4_5_moe"}


def tiny_mixture(name: str, seed: int = 0, **more: Any) -> Any:
    """Build a model whose experts differ, and whose router sends tokens to all of them."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(name, **{**BASE, **MIXTURES[name], **more})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    for path, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            is_routing = parameter.ndim == 3 or "router" in path or path.endswith("gate.weight")
            parameter.data.normal_(0.0, 0.3 if is_routing else 0.1, generator=generator)
    for path, buffer in model.named_buffers():
        if "correction" in path:
            buffer.normal_(0.0, 0.1, generator=generator)
    return model
