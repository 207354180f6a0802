"""Whether a checkpoint is one that stock servers load: what vLLM reads of it, checked without vLLM.

vLLM builds a model from ``config.json`` alone, by the name of its architecture, and then loads tensors by their names. So the
configuration must state one width for all layers, hold every field that vLLM reads, and name no code of its own; and the
tensors must have the shapes that it states.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from llmrank.surgery.widths import WIDTHS_KEY

__all__ = ["ARCHITECTURES", "Architecture", "Stock", "is_uneven", "read_stock"]

MOST_GPUS = 8
COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class Architecture:
    """What vLLM reads of an architecture.

    Attributes
    ----------
    width : str
        The field with the width of an FFN, or of an expert.
    fields : tuple of str
        The other fields that must be there.
    inward, outward : tuple of str
        Last names of the linear maps whose rows, and whose columns, are the hidden neurons.
    experts : tuple of str
        The fields of which one has the number of experts; versions of transformers differ.
    """

    width: str
    fields: tuple[str, ...] = COMMON
    inward: tuple[str, ...] = ("gate_proj", "up_proj")
    outward: tuple[str, ...] = ("down_proj",)
    experts: tuple[str, ...] = ()


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("intermediate_size"),
    "MixtralForCausalLM": Architecture(
        "intermediate_size",
        (*COMMON, "num_experts_per_tok"),
        ("w1", "w3"),
        ("w2",),
        ("num_local_experts",),
    ),
    "Qwen3MoeForCausalLM": Architecture(
        "moe_intermediate_size",
        (*COMMON, "num_experts_per_tok", "norm_topk_prob", "head_dim"),
        experts=("num_experts", "num_local_experts"),
    ),
}


@dataclass(frozen=True)
class Stock:
    """What a stock server learns from a checkpoint.

    Attributes
    ----------
    architecture : str
    width : int
        Of every FFN, or of every expert.
    experts : int
        Number of experts in a layer; 0 where there are none.
    parallel : list of int
        Numbers of GPUs, up to `MOST_GPUS`, among which vLLM can split width and heads.
    problems : list of str
        Why a stock server would not load the checkpoint, or would load it wrongly; empty if it is stock.
    """

    architecture: str
    width: int
    experts: int
    parallel: list[int]
    problems: list[str]


def is_uneven(directory: Path) -> bool:
    """Whether the layers of a checkpoint have different sizes, which only llmrank's loader reads."""
    return WIDTHS_KEY in json.loads((directory / "config.json").read_text(encoding="utf-8"))


def read_stock(directory: Path) -> Stock:
    """Read the configuration and the shapes of a checkpoint as vLLM does.

    Parameters
    ----------
    directory : Path
        With ``config.json`` and safetensors.

    Raises
    ------
    SystemExit
        The architecture is none of `ARCHITECTURES`.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    name = next(iter(config.get("architectures") or ["none"]))
    if name not in ARCHITECTURES:
        raise SystemExit(f"{directory} has the architecture {name}; expected one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    problems = [
        f"config.json has no {field}" for field in (architecture.width, *architecture.fields) if field not in config
    ]
    experts = next((config[field] for field in architecture.experts if field in config), 0)
    if architecture.experts and not experts:
        problems.append(f"config.json has no {' or '.join(architecture.experts)}")
    uneven = is_uneven(directory)
    if uneven:
        problems.append("layers have different widths, which only llmrank loads; use --form padded")
    if "auto_map" in config:
        problems.append("config.json names code of its own")
    if config.get("hidden_act", "silu") != "silu":
        problems.append(f"vLLM computes this architecture with silu only, not {config['hidden_act']}")
    if "rope_theta" not in config and "rope_theta" not in (config.get("rope_parameters") or {}):
        problems.append("config.json has no rope_theta, neither by itself nor in rope_parameters")
    width = config.get(architecture.width)
    problems += [] if uneven else _misfits(directory, architecture, width)
    parallel = [] if problems else [n for n in range(1, MOST_GPUS + 1) if _splits(config, width, n)]
    return Stock(name, width, experts, parallel, problems)


def _splits(config: dict[str, Any], width: int, n: int) -> bool:
    """Return whether vLLM can split the model among n GPUs; it repeats key and value heads where there are fewer."""
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    return width % n == 0 and heads % n == 0 and (shared % n == 0 or n % shared == 0)


def _misfits(directory: Path, architecture: Architecture, width: Any) -> list[str]:
    """Return which tensors do not have the width that the configuration states."""
    found, seen = [], 0
    for path in sorted(directory.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                last = name.removesuffix(".weight").rsplit(".", 1)[-1]
                axis = 0 if last in architecture.inward else 1 if last in architecture.outward else None
                if axis is not None:
                    seen += 1
                    size = file.get_slice(name).get_shape()[axis]
                    if size != width:
                        found.append(f"{name} has {size} hidden neurons where config.json states {width}")
    return found if seen else [f"no tensor is named {' or '.join((*architecture.inward, *architecture.outward))}"]
