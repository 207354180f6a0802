"""Write a checkpoint whose layers differ in width as a ``DeciLMForCausalLM``, which vLLM, SGLang and mlx-lm load.

In this architecture ``block_configs`` states the sizes of every layer (NVIDIA's Llama-Nemotron models have it); otherwise it is a
Llama. transformers has no configuration class for it, so one is written into the checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llmrank.bounded_files import read_bounded
from llmrank.errors import CheckpointError, UnsupportedModelError
from llmrank.file_contents import check_fields, refused_unless_sound
from llmrank.models.families import has_sliding_window
from llmrank.surgery.atomic import atomic_directory, check_output
from llmrank.surgery.widths import WIDTHS_KEY

__all__ = ["write_decilm"]

MODEL_TYPES = ("llama", "mistral", "qwen2")
# SGLang and mlx-lm know a width by a factor of the hidden size, and round it up to a multiple of this.
MULTIPLE = 256
CODE = "configuration_layers.py"
CONFIGURATION = '''"""The configuration of a Llama whose layers differ in width."""

from transformers import LlamaConfig


class Entries(dict):
    """A dict whose entries are attributes."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return Entries(self[name]) if isinstance(self[name], dict) else self[name]


class LayersConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **settings):
        super().__init__(**settings)
        self.block_configs = [Entries(each) for each in block_configs]
'''


def write_decilm(checkpoint: str | os.PathLike[str], output: str | os.PathLike[str]) -> tuple[int, ...]:
    """Write a checkpoint of the families Llama, Mistral and Qwen2 with the configuration of a ``DeciLMForCausalLM``.

    Parameters
    ----------
    checkpoint : path-like
        A directory that llmrank has written, compact. Its other files are copied as they are.
    output : path-like
        A directory that does not exist yet, or an empty one; it appears completely or not at all.

    Returns
    -------
    tuple of int
        Number of hidden neurons of every layer. vLLM loads any. SGLang and mlx-lm load multiples of 256, and no biases.

    Raises
    ------
    CheckpointError
        The checkpoint has no configuration or no weights in safetensors; or the output cannot be written.
    UnsupportedModelError
        A ``DeciLMForCausalLM`` does not compute what this model computes.
    OptionError
        A file of the checkpoint does not hold what it should.
    OSError
        The disk is full, or another error of the system.
    """
    source = Path(checkpoint)
    check_output(output)
    with refused_unless_sound(source, "expected a complete checkpoint of compact form"):
        config = _read_configuration(source)
        _check(config)
        widths, heads = _sizes(source, config)
        text = json.dumps(_configuration(config | heads, widths), indent=2, sort_keys=True) + "\n"
        with atomic_directory(output) as partial:
            for path in source.iterdir():
                if path.is_file() and path.name != "config.json" and path.suffix != ".py":
                    _copy_without_code(path, partial / path.name)
            (partial / CODE).write_text(CONFIGURATION, encoding="utf-8")
            (partial / "config.json").write_text(text, encoding="utf-8")
    return widths


def _read_configuration(source: Path) -> dict[str, Any]:
    """Read the configuration of a checkpoint."""
    try:
        config: dict[str, Any] = json.loads(read_bounded(source / "config.json"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} has no configuration that can be read: {error}") from error
    numbers = dict.fromkeys(("hidden_size", "num_attention_heads", "num_hidden_layers"), int)
    check_fields(config, numbers, {"head_dim": (int, type(None)), "num_key_value_heads": (int, type(None))})
    return config


def _copy_without_code(source: Path, target: Path) -> None:
    """Copy a file, but not the code that a configuration names: who serves the output trusts the code that is written here."""
    settings = json.loads(read_bounded(source)) if source.name.endswith("_config.json") else None
    if isinstance(settings, dict) and settings.pop("auto_map", None) is not None:
        target.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    else:
        shutil.copyfile(source, target)


def _check(config: dict[str, Any]) -> None:
    """Raise unless a DeciLMForCausalLM computes what a model of this configuration computes."""
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise UnsupportedModelError(
            f"DeciLMForCausalLM holds models of the types {', '.join(MODEL_TYPES)}, not {kind}; prune it with --form padded"
        )
    slides = has_sliding_window(config)
    if slides or "quantization_config" in config:
        what = "a sliding window of attention" if slides else "quantised weights"
        raise UnsupportedModelError(f"DeciLMForCausalLM does not compute this model: it has {what}")


def _sizes(checkpoint: Path, config: dict[str, Any]) -> tuple[tuple[int, ...], dict[str, int]]:
    """Return the widths of the FFNs, and the fields that state the heads, by the shapes of the maps."""
    shapes: dict[str, list[int]] = {}
    try:
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); expected a file of safetensors") from error
    # Of a number that is wrong and large, not all names are made.
    layers = [f"model.layers.{layer}" for layer in range(min(config["num_hidden_layers"], len(shapes) + 1))]
    read = {}
    for part in ("mlp.down_proj", "self_attn.o_proj", "self_attn.k_proj"):
        absent = [layer for layer in layers if f"{layer}.{part}.weight" not in shapes]
        if absent:
            raise CheckpointError(
                f"{checkpoint} has no {absent[0]}.{part}.weight in its files of safetensors; expected a complete checkpoint of "
                "compact form"
            )
        read[part] = tuple(shapes[f"{layer}.{part}.weight"][part != "self_attn.k_proj"] for layer in layers)
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    widths, queries, keys = read.values()
    if size < 1 or any(number % size for number in (*queries, *keys)):
        raise CheckpointError(
            f"{checkpoint} has heads of {size} numbers by its configuration, and other ones by its tensors"
        )
    if len(set(queries)) > 1 or len(set(keys)) > 1:
        raise UnsupportedModelError(
            "a DeciLMForCausalLM has as many heads in every layer, and these layers have different numbers; prune heads with "
            "--pruner local, or export to gguf"
        )
    # A configuration that lists widths states the heads of the dense model.
    fields = {"num_attention_heads": queries[0] // size, "num_key_value_heads": keys[0] // size, "head_dim": size}
    return widths, fields


def _configuration(config: dict[str, Any], widths: tuple[int, ...]) -> dict[str, Any]:
    """Return the configuration of a DeciLMForCausalLM."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    attention = {
        "no_op": False,
        "replace_with_linear": False,
        "n_heads_in_group": heads // (config.get("num_key_value_heads") or heads),
    }
    if any(width % MULTIPLE for width in widths):
        ffns: list[dict[str, Any]] = [{"intermediate_size": width} for width in widths]
    else:  # the factor of a width that is rounded up to the width itself
        ffns = [{"ffn_mult": round(1.5 * (width - MULTIPLE // 2) / hidden, 6)} for width in widths]
    kept = {key: value for key, value in config.items() if key not in (WIDTHS_KEY, "layer_types", "sliding_window")}
    rope = {"rope_type": "default", **(config.get("rope_parameters") or {})}
    # Programs with transformers 4 read these two.
    older: dict[str, Any] = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if rope["rope_type"] != "default":
        older["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        **kept,
        **older,
        **({"qkv_bias": True} if config["model_type"] == "qwen2" else {}),
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{Path(CODE).stem}.LayersConfig"},
        "model_type": "nemotron-nas",
        "intermediate_size": max(widths),
        "block_configs": [{"attention": attention, "ffn": {"no_op": False, **ffn}} for ffn in ffns],
    }
