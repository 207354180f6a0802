"""Tiny configurations of any model type of transformers: the default configuration with every size made small.

A field is a size if its name is in `SIZES`. Lists with one entry a layer are cut to layers of every kind. Nested configurations
are shrunk in the same way. `OVERRIDES` holds what a type needs beyond that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, LENGTH = 128, 64
# Tokens from here on are special to some models (they stand for images, say).
FIRST_SPECIAL = 100
N_LAYERS, MOST_LAYERS = 2, 6
HIDDEN, HEADS, HEAD = 32, 4, 8
# Unlike every other size, so that no other map has the shapes of an FFN or of a router by accident.
FFN, EXPERTS = 56, 12
SIZES: tuple[tuple[int, str], ...] = (
    (1, "topk_group first_k_dense_replace num_dense_layers moe_layer_start_index"),
    (
        VOCABULARY,
        """
        vocab_size vocab_size_per_layer_input n_vocab decoder_vocab_size unpadded_vocab_size audio_vocab_size
        pronunciation_vocab_size shape_vocab_size encoder_hash_byte_group_vocab ngram_vocab_size_base codebook_size
        """,
    ),
    (
        LENGTH,
        """
        max_position_embeddings n_positions n_ctx max_seq_len model_max_length max_target_positions
        max_source_positions sliding_window sliding_window_size local_attention attention_window_size window_size
        context_length original_max_position_embeddings keep_window_size rel_extent local_attention_window_len
        attention_chunk_size floor_scale mem_len
        """,
    ),
    (
        N_LAYERS,
        """
        num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers
        num_decoder_layers depth num_blocks conf_num_hidden_layers n_input_layers n_recurrent_layers n_output_layers
        num_global_layers num_layers_per_stack max_window_layers
        """,
    ),
    (
        HIDDEN,
        """
        hidden_size d_model n_embd dim emb_dim embedding_dim embedding_size word_embed_proj_dim hidden_size_global
        input_embedding_size output_embedding_size lru_width out_hidden_size output_proj_dims output_channels
        backbone_hidden_size pronunciation_embed_dim shape_embed_dim attention_hidden_size ple_embed_dim input_size
        ext_pw_out_channel depthwise_separable_out_channel nemo_conv_channels projector_input_dim
        projector_output_dim dim_model_base router_hidden_size prompt_mid_dim adapter_in_dim adapter_out_dim
        adapter_input_size downsample_hidden_size
        """,
    ),
    # Twice the hidden size, as many state space models have it.
    (64, "mamba_d_ssm"),
    (
        FFN,
        """
        intermediate_size ffn_dim n_inner d_ff dff dim_ff d_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim
        feed_forward_size mlp_dim intermediate_size_mlp dense_intermediate_size shared_intermediate_size
        """,
    ),
    # Experts are narrower than FFNs.
    (
        24,
        """
        moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size
        expert_ffn_hidden_size moe_shared_expert_intermediate_size
        """,
    ),
    (
        HEADS,
        """
        num_attention_heads n_head n_heads num_heads num_kv_heads attention_heads encoder_attention_heads
        decoder_attention_heads swa_num_attention_heads num_encoder_attention_heads num_decoder_attention_heads
        conf_num_attention_heads linear_num_value_heads linear_num_heads num_query_groups index_n_heads index_topk
        laurel_rank time_step_rank mamba_dt_rank loop_gate_rank gated_norm_rank prompt_length num_codebooks
        zero_expert_num adapter_rank d_rel
        """,
    ),
    (EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (
        2,
        """
        num_key_value_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok num_experts_per_token
        moe_k moe_topk n_group num_expert_group top_k_experts num_kv_shared_layers n_groups index_topk_blocks
        heads_per_ngram
        """,
    ),
    (
        HEAD,
        """
        head_dim swa_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim
        linear_head_dim dim_head d_kv d_head kv_channels rotary_dim index_head_dim hidden_size_per_layer_input
        hc_lowrank mamba_d_state state_size ssm_state_size mamba_chunk_size chunk_size attention_head_size
        block_size index_block_size split_ngram_parts mamba_n_heads mamba_num_heads n_mamba_heads mamba_d_head
        mamba_head_dim mamba_headdim
        """,
    ),
    (16, "kv_lora_rank q_lora_rank o_lora_rank qk_head_dim"),
)
SIZE_OF = {name: size for size, names in SIZES for name in names.split()}
# Lists that state the kind of every layer.
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types", "attention_layers")
DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
# What a configuration writes down and does not take.
NOT_ARGUMENTS = ("model_type", "transformers_version", "time_step_limit")
# Pairs that have nothing to do with layers.
NOT_BY_LAYER = ("architectures", "axial_pos_embds_dim", "axial_pos_shape", "mlp_multipliers", "time_step_limit")
MIXTURE = {"n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MAMBA2 = {"num_heads": 8, "head_dim": 8}
OVERRIDES: dict[str, dict[str, Any]] = {
    # By default the kinds of layers have no rotary embedding, and the model asks for it.
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), ROPE),
    },
    # Its nested configurations have other names for their sizes, and no default for the rotary embedding.
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"hidden_size": HIDDEN, "ffn_hidden_size": 24, "moe_num_experts": EXPERTS, "moe_top_k": 2},
    },
    # By default the numbers of experts are None, which no model can be built from.
    "deepseek_v2": {**MIXTURE, "first_k_dense_replace": 1},
    "dots1": {**MIXTURE, "n_shared_experts": 1, "first_k_dense_replace": 1},
    # Layers with a sliding window have sizes of their own.
    "dots3_note_text": {
        "head_dim": 2 * HEAD,
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 2 * HEAD,
        "swa_qk_nope_head_dim": HEAD,
        "swa_v_head_dim": HEAD,
    },
    # The layers are of three groups, whose numbers must add up.
    "dory": {
        "num_hidden_layers": 3,
        "n_input_layers": 1,
        "n_recurrent_layers": 1,
        "n_output_layers": 1,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    # None of its sizes for inputs by layer may be other than 0, which is no default.
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "num_hidden_layers": N_LAYERS,
            "num_kv_shared_layers": N_LAYERS,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_attention_heads": HEADS,
            "num_key_value_heads": 2,
            "head_dim": HEAD,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        }
    },
    # Layers that use the cache of other layers must be of the kinds of those.
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [FFN] * 4,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    },
    # By default the size of a head is None.
    "hunyuan_v1_dense": {"head_dim": HEAD},
    # And the number of experts is 1.
    "hunyuan_v1_moe": {"head_dim": HEAD, "num_experts": EXPERTS, "moe_topk": 2},
    "ministral": {"head_dim": HEAD},
    # Periods, not lists, state which layers are attentions and which are mixtures.
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": MAMBA2,
    # By default no layer of so few attends to an image.
    "mllama_text_model": {"cross_attention_layers": [1]},
    # The width of a musical model's input is the number of its codebooks, here one, so that it reads ids as others do.
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    # A pattern that is repeated states the kinds of the layers.
    "recurrent_gemma": {"num_hidden_layers": 3},
    # The hashing of its attention is random without a seed.
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 24],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "hash_seed": 0,
    },
    # Its sizes are rounded up to multiples of 64.
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    # The adapter to use must be named.
    "xmod": {"default_language": "en_XX"},
    # Only two hybrid layers or more share their parameters.
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * HIDDEN,
        "attention_head_dim": 2 * HEAD,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * HIDDEN,
        "attention_head_dim": 2 * HEAD,
    },
}
# Fields of the default configuration, for types whose default cannot be made.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
}
# Further models: a name, and the type and the changes that make it.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "doge, experts": ("doge", {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2}),
    "gemma3n_text, dense": ("gemma3n_text", {"activation_sparsity_pattern": [0.0] * 4}),
    "gemma4_text, experts": (
        "gemma4_text",
        {"enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": 2, "moe_intermediate_size": 24},
    ),
    "gemma4_text, wide": (
        "gemma4_text",
        {
            "use_double_wide_mlp": True,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "granitemoehybrid, dense": ("granitemoehybrid", {"num_local_experts": 0, "num_experts_per_tok": 0}),
    "hunyuan_v1_moe, one expert": ("hunyuan_v1_moe", {"num_experts": 1, "moe_topk": 1}),
    "jamba, dense": ("jamba", {"num_experts": 1, "num_experts_per_tok": 1}),
}
# Types whose class for causal language models takes a part of their configuration.
PARTS = {"musicgen": "decoder", "musicgen_melody": "decoder"}


def tiny_config(model_type: str) -> Any:
    """Return a tiny configuration of a model type or variant."""
    model_type, changes = VARIANTS.get(model_type, (model_type, {}))
    config = shrunk(transformers.CONFIG_MAPPING[model_type](**DEFAULTS.get(model_type, {})), changes)
    return getattr(config, PARTS[model_type]) if model_type in PARTS else config


def shrunk(config: Any, more: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Return a configuration of the same class with small sizes, and `more` changes."""
    changes = sizes(config) | special_tokens(config) | layers(config)
    for name, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            changes[name] = shrunk(value)
    if "kv_lora_rank" in vars(config) and "num_key_value_heads" in vars(config):
        # Heads that share a compressed cache are as many as those of the queries.
        changes["num_key_value_heads"] = HEADS
    changes |= OVERRIDES.get(config.model_type, {}) | dict(more)
    return type(config)(**DEFAULTS.get(config.model_type, {}) | changes)


def sizes(config: Any) -> dict[str, int]:
    """Return the fields that are sizes and larger than they should be, with their tiny values."""
    return {
        name: SIZE_OF[name]
        for name, value in vars(config).items()
        if name in SIZE_OF and isinstance(value, int) and value > SIZE_OF[name]
    }


def special_tokens(config: Any) -> dict[str, int]:
    """Return the ids of special tokens beyond the tiny vocabulary, each with an id of its own inside it."""
    beyond = [
        name
        for name, value in vars(config).items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= FIRST_SPECIAL
    ]
    return {name: FIRST_SPECIAL + place for place, name in enumerate(beyond)}


def layers(config: Any) -> dict[str, Any]:
    """Return the number of layers and the lists with one entry a layer, cut to a layer of every kind."""
    depth_name = next((name for name in DEPTHS if isinstance(vars(config).get(name), int)), None)
    if depth_name is None:
        return {}
    depth = vars(config)[depth_name]
    by_layer = {
        name: list(value)
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == depth
    }
    kinds = list(zip(*(by_layer[name] for name in KINDS if name in by_layer), strict=True)) or [()] * depth
    chosen = layers_of_every_kind(kinds)
    return {depth_name: len(chosen)} | {name: [value[k] for k in chosen] for name, value in by_layer.items()}


def layers_of_every_kind(kinds: Iterable[tuple[Any, ...]]) -> list[int]:
    """Return the indices of the first layer of every kind, and of more layers if these are fewer than two."""
    listed = list(kinds)
    first = list({kind: place for place, kind in reversed(list(enumerate(listed)))}.values())
    chosen = sorted(first)[:MOST_LAYERS]
    rest = [place for place in range(len(listed)) if place not in chosen]
    return sorted(chosen + rest[: max(0, N_LAYERS - len(chosen))])


def deepened(config: Any, depth: int) -> Any:
    """Return a configuration with this many layers, whose kinds come in turn; so are the configurations in it."""
    stated = {name: value for name, value in config.to_dict().items() if name not in NOT_ARGUMENTS}
    for name, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            stated[name] = deepened(value, depth)
    names = [
        name for name in (*DEPTHS, "decoder_layers", "num_decoder_layers") if isinstance(vars(config).get(name), int)
    ]
    if names:
        before = vars(config)[names[0]]
        stated |= {
            name: (list(value) * depth)[:depth]
            for name, value in vars(config).items()
            if isinstance(value, (list, tuple)) and len(value) == before and name not in NOT_BY_LAYER
        }
        # Gemma 4 states what differs by the number of the layer.
        by_number = stated.get("per_layer_config") or {}
        repeated = {str(k): by_number[str(k % before)] for k in range(depth) if str(k % before) in by_number}
        stated |= {"per_layer_config": repeated} if by_number else {}
    return type(config)(**stated | dict.fromkeys(names, depth))


def tiny_model(model_type: str, seed: int = 0, depth: int | None = None) -> Any:
    """Return a tiny model of a type for causal language models, with seeded weights in float32, and `depth` layers if given.

    The weights of new models are small, and their biases zero: what an FFN adds would hardly be seen in the logits.
    """
    torch.manual_seed(seed)
    config = tiny_config(model_type)
    if depth is not None:
        config = deepened(config, depth)
    if model_type in PARTS:
        model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
        model = model_class._from_config(config, dtype=torch.float32).eval()
    else:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model
