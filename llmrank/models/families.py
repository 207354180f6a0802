"""Configuration attributes that describe FFNs, and what was measured of every model type (FFNs are found without both)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from llmrank.models.configured import can_be_stated

__all__ = [
    "BIAS_ATTRIBUTES",
    "OTHER_TARGETS",
    "WIDTH_ATTRIBUTES",
    "MeasuredFamilies",
    "bias_attribute",
    "has_sliding_window",
    "measured_families",
    "text_config",
]

# What else is removed from the tiny models than neurons, each from a model of its own.
OTHER_TARGETS = ("experts", "heads", "blocks")
# Configuration attributes that say whether the maps of the FFNs have biases.
BIAS_ATTRIBUTES = ("mlp_bias",)
# Configuration attributes that hold the number of hidden neurons.
WIDTH_ATTRIBUTES = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size")


@dataclass(frozen=True)
class MeasuredFamilies:
    """What became of a tiny model of every model type, as ``python -m benchmarks.families`` measured it.

    Attributes
    ----------
    transformers : str
        The version of transformers.
    neuron_share, expert_share, head_share : float
        The shares of the neurons, of the experts and of the heads that were removed.
    blocks : str
        How many blocks of how many were left out, such as "2 of 5".
    rows : dict from str to dict
        For each model type: the ``outcome`` when neurons were removed; those when ``experts`` ("" if the type has none),
        ``heads`` and ``blocks`` were removed; and the ``reason`` if one of them is not "stock". "stock" says that transformers
        without llmrank loads the pruned checkpoint.
    """

    transformers: str
    neuron_share: float
    expert_share: float
    head_share: float
    blocks: str
    rows: dict[str, dict[str, str]]


def measured_families() -> MeasuredFamilies:
    """Return what was measured of every model type."""
    found = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
    shares = found["neurons"], found["experts"], found["heads"], found["blocks"]
    return MeasuredFamilies(found["transformers"], *shares, found["rows"])


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
