"""Configuration attributes that describe FFNs; FFNs are found without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from llmrank.models.configured import can_be_stated

__all__ = [
    "BIAS_ATTRIBUTES",
    "WIDTH_ATTRIBUTES",
    "bias_attribute",
    "has_sliding_window",
    "text_config",
]

# Configuration attributes that say whether the maps of the FFNs have biases.
BIAS_ATTRIBUTES = ("mlp_bias",)
# Configuration attributes that hold the number of hidden neurons.
WIDTH_ATTRIBUTES = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size")


def has_sliding_window(config: Mapping[str, Any]) -> bool:
    """Tell whether some attention of a model sees fewer tokens than the model takes, by its configuration as a mapping."""
    # Mistral states a window that all layers have; other families list the kinds of their layers.
    window = config.get("sliding_window") if config.get("model_type") == "mistral" else None
    return "sliding_attention" in (config.get("layer_types") or ()) or (
        window is not None and window < config["max_position_embeddings"]
    )


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the language model, or None for a module without one."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def bias_attribute(model: nn.Module) -> str:
    """Return the configuration attribute that must become True if the maps of the FFNs are given biases.

    It is the first of BIAS_ATTRIBUTES that is False and can become True; some configurations do not allow that: in InternLM3 all
    maps must have biases, or none. The result is "" if there is none.
    """
    absent = (name for name in BIAS_ATTRIBUTES if getattr(text_config(model), name, None) is False)
    return next((name for name in absent if can_be_stated(model, {name: True})), "")
