"""Tiny mixtures whose experts are modules: two of transformers, and one as code that comes with checkpoints has it."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

__all__ = ["SEPARATE", "ListedMixtral", "SparseBlock", "tiny_separate"]

BASE: dict[str, Any] = {"vocab_size": 64, "num_experts": 8, "pad_token_id": 0, "decoder_start_token_id": 2}
MIXTRAL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "head_dim": 8,
}


class Expert(nn.Module):
    """A gated FFN."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))
        return output


class SparseBlock(nn.Module):
    """A router and a list of experts, which get their tokens sorted by expert."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.experts = nn.ModuleList([Expert(config) for _ in range(config.num_local_experts)])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.view(-1, hidden_states.shape[-1])
        weights, chosen = self.gate(tokens).softmax(-1).topk(self.top_k, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).flatten()
        order = chosen.flatten().argsort(descending=True)
        output = torch.zeros_like(tokens)
        for k, expert in enumerate(self.experts):
            own = order[chosen.flatten()[order] == k]
            if len(own):
                output.index_add_(0, own // self.top_k, expert(x=tokens[own // self.top_k]) * weights[own, None])
        return output.view(hidden_states.shape)


class SharedBlock(SparseBlock):
    """A sparse block with an expert that gets every token, which returns the router's logits too."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.shared_experts = Expert(config)

    def forward(self, hidden_states: torch.Tensor) -> Any:
        return super().forward(hidden_states) + self.shared_experts(hidden_states), self.gate(hidden_states)


class FirstOutput(nn.Module):
    """The block of a transformer layer whose sparse block returns more than hidden states."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.moe = block

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.moe(hidden_states)[0]
        return output


class ListedMixtral(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Mixtral with a list of experts in each block."""

    config_class = transformers.MixtralConfig
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(llama_config(config))
        self.config = config
        for layer in self.model.layers:
            layer.mlp = SparseBlock(config)


class SharedMixtral(ListedMixtral):
    """The same with a shared expert, and blocks that return a tuple."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = FirstOutput(SharedBlock(config))


def llama_config(config: Any) -> Any:
    fields = {name: value for name, value in config.to_dict().items() if name in MIXTRAL or name == "rms_norm_eps"}
    return transformers.LlamaConfig(**fields, rope_parameters=config.rope_parameters)


def _listed() -> Any:
    return ListedMixtral(transformers.MixtralConfig(**MIXTRAL))


def _shared() -> Any:
    return SharedMixtral(transformers.MixtralConfig(**MIXTRAL))


def _switch() -> Any:
    return transformers.SwitchTransformersForConditionalGeneration(
        transformers.SwitchTransformersConfig(
            **BASE,
            d_model=32,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
        )
    )


def _nllb() -> Any:
    return transformers.NllbMoeForConditionalGeneration(
        transformers.NllbMoeConfig(
            **BASE,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            max_position_embeddings=64,
            encoder_sparse_step=2,
            decoder_sparse_step=2,
        )
    )


SEPARATE = {"listed": _listed, "shared": _shared, "switch_transformers": _switch}
OTHERS = {"nllb_moe": _nllb}


def tiny_separate(name: str, seed: int = 0) -> Any:
    """Build a model with seeded weights, large enough that every FFN can be seen in the logits."""
    torch.manual_seed(seed)
    model = (SEPARATE | OTHERS)[name]().eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0.0, 0.2)
    return model
