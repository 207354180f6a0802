"""Write a model as a GGUF file that llama.cpp runs, also if its layers differ in width.

llama.cpp's own converter writes one width for all layers. But some of its architectures read from the file how many neurons,
heads and key-value heads every layer has (https://github.com/ggml-org/llama.cpp, ``src/models``). ``deci`` otherwise computes
what ``llama`` computes, and ``openelm`` what ``qwen3`` computes if input and output share their embeddings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from graphs.io.replacement import replace_file
from llmrank.errors import OptionError, UnsupportedModelError, check_type

__all__ = ["GGUFContent", "write_gguf"]

# Model type -> the architectures of llama.cpp that compute the same, for layers of different sizes and for layers of one size.
ARCHITECTURES = {
    "llama": ("deci", "llama"),
    "mistral": ("deci", "llama"),
    "qwen2": ("deci", "llama"),
    "qwen3": ("openelm", "qwen3"),
}
# Rotary embeddings whose frequencies do not depend on the length of the text.
ROPE_TYPES = {"default", "linear", "llama3"}
# dtype of a model -> names of the types of tensors and files in the package gguf.
TYPES = {
    torch.float32: ("F32", "ALL_F32"),
    torch.float16: ("F16", "MOSTLY_F16"),
    torch.bfloat16: ("BF16", "MOSTLY_BF16"),
}
# Shape of a tensor, and a function that makes it.
Tensor: TypeAlias = tuple[tuple[int, ...], Callable[[], npt.NDArray[Any]]]
TOKENIZER = "tokenizer."
TOKENS = "tokenizer.ggml.tokens"


class GGUFContent(NamedTuple):
    """What was written to a GGUF file.

    Attributes
    ----------
    architecture : str
        "deci" or "openelm"; if all layers have the same sizes "llama" or "qwen3", which more programs read.
    dtype : str
        Type of the matrices: "F32", "F16" or "BF16". Vectors are F32.
    widths : tuple of int
        Number of hidden neurons of every layer.
    bytes : int
        Size of the file.
    """

    architecture: str
    dtype: str
    widths: tuple[int, ...]
    bytes: int


def write_gguf(
    model: Any,
    output: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    *,
    vocabulary: Any = None,
    name: str | None = None,
) -> GGUFContent:
    """Write a model of the families Llama, Mistral, Qwen2 and Qwen3, whatever the widths of its layers, as a GGUF file.

    Parameters
    ----------
    model : transformers causal language model
        Compact, in float32, float16 or bfloat16, which becomes the type of the matrices.
    output : path-like
        The file; it is replaced completely or not at all.
    tokenizer : path-like
        A GGUF file whose tokenizer is copied: any file of the dense model, in any quantisation, or one that llama.cpp's
        ``convert_hf_to_gguf.py --vocab-only`` has written.
    vocabulary : transformers tokenizer, optional
        That of the model, which is compared with the one in the file.
    name : str, optional
        Name of the model in the file.

    Returns
    -------
    GGUFContent

    Raises
    ------
    UnsupportedModelError
        No architecture of llama.cpp that takes layers of different sizes computes this model.
    OptionError
        The file with the tokenizer cannot be read, or its tokens are not those of the model.
    OSError
        The disk is full, or the system refuses.

    Notes
    -----
    Cost: one read of the weights and one write. Memory: one tensor.

    The architectures ``deci`` and ``llama`` rotate neighbouring entries of queries and keys, and transformers entries that are
    half a head apart. So the rows of the maps to queries and keys are reordered.
    """
    check_type("model", model, nn.Module, "a torch module (llmrank.load(...).model loads one)")
    # Imported here, because only GGUF files need it.
    import gguf

    _check_kind(model)
    config, layers, (matrix_type, file_type) = model.config, model.model.layers, TYPES[model.dtype]
    head = layers[0].self_attn.head_dim
    sizes = [
        (
            layer.mlp.down_proj.weight.shape[1],
            layer.self_attn.q_proj.weight.shape[0] // head,
            layer.self_attn.k_proj.weight.shape[0] // head,
        )
        for layer in layers
    ]
    is_uniform = len(set(sizes)) == 1
    architecture = ARCHITECTURES[config.model_type][is_uniform]
    _check_parameters(model, architecture)
    tokens = _fields_of_tokenizer(Path(tokenizer))
    _check_tokens(tokens[TOKENS][0], model, vocabulary, tokenizer)
    tensors = _tensors(model, architecture)

    with replace_file(Path(output)) as prepared:
        writer = gguf.GGUFWriter(None, architecture)
        writer.add_name(name or Path(output).stem)
        writer.add_file_type(gguf.LlamaFileType[file_type])
        widths, heads, groups = (values[0] if is_uniform else list(values) for values in zip(*sizes, strict=True))
        writer.add_feed_forward_length(widths)
        writer.add_head_count(heads)
        writer.add_head_count_kv(groups)
        writer.add_block_count(len(layers))
        writer.add_embedding_length(config.hidden_size)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(_rope(config)["rope_theta"])
        writer.add_rope_dimension_count(head)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_vocab_size(len(tokens[TOKENS][0]))
        for key, (value, types) in tokens.items():
            writer.add_key_value(key, value, types[0], *types[1:])
        for key, (shape, _) in tensors.items():
            kind = gguf.GGMLQuantizationType[matrix_type if len(shape) > 1 else "F32"]
            size = torch.Size(shape).numel() * (4 if kind.name == "F32" else 2)
            writer.add_tensor_info(key, shape, np.dtype(np.int8), size, raw_dtype=kind)
        writer.write_header_to_file(prepared)
        try:
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for _, read in tensors.values():
                writer.write_tensor_data(read())
        finally:
            writer.close()
    return GGUFContent(architecture, matrix_type, tuple(width for width, *_ in sizes), Path(output).stat().st_size)


def _check_kind(model: Any) -> None:
    """Raise unless llama.cpp has architectures for this type of model."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in ARCHITECTURES or not hasattr(model, "lm_head"):
        raise UnsupportedModelError(
            f"a GGUF file whose layers differ in width holds causal models of the types {', '.join(ARCHITECTURES)}, not "
            f"{type(model).__name__} ({kind}); prune it with --form padded, and use llama.cpp's convert_hf_to_gguf.py"
        )
    if model.dtype not in TYPES:
        raise UnsupportedModelError(f"a GGUF file holds float32, float16 or bfloat16, not {model.dtype}")


def _check_parameters(model: Any, architecture: str) -> None:
    """Raise unless an architecture of llama.cpp computes what the model computes."""
    config, parameters = model.config, dict(model.named_parameters())
    rope, is_openelm = _rope(config)["rope_type"], architecture == "openelm"
    unusual = {
        f"the activation function {config.hidden_act}": config.hidden_act not in ("silu", "swish"),
        "a sliding window of attention": "sliding_attention" in (getattr(config, "layer_types", None) or ())
        or (config.model_type == "mistral" and config.sliding_window is not None),
        f"rotary embeddings of the type {rope}": rope
        not in ({"default"} if config.model_type == "qwen3" else ROPE_TYPES),
        "biases": is_openelm and any(name.endswith(".bias") for name in parameters),
        "an output matrix of its own": is_openelm and "lm_head.weight" in parameters,
        "masked weights; prune it compactly": any(name.endswith("weight_orig") for name in parameters),
        "tensors without data (offloaded or on the meta device)": any(each.is_meta for each in parameters.values()),
    }
    found = [what for what, is_there in unusual.items() if is_there]
    if found:
        raise UnsupportedModelError(
            f"llama.cpp's architecture {architecture} does not compute this model: it has {', and '.join(found)}"
        )


def _rope(config: Any) -> dict[str, Any]:
    """Return the parameters of the rotary embeddings."""
    return {"rope_type": "default", **(config.rope_parameters or {})}


def _fields_of_tokenizer(path: Path) -> dict[str, tuple[Any, list[Any]]]:
    """Read the fields of a GGUF file that describe its tokenizer: value, and types."""
    # Imported here, because only GGUF files need it.
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise OptionError(f"{path} cannot be read as a GGUF file with a tokenizer: {error}") from error
    found = {key: (field.contents(), field.types) for key, field in reader.fields.items() if key.startswith(TOKENIZER)}
    if TOKENS not in found:
        raise OptionError(f"{path} holds no tokenizer; name a GGUF file of the dense model")
    return found


def _check_tokens(tokens: list[str], model: Any, vocabulary: Any, path: Any) -> None:
    """Raise an OptionError unless the tokens are as many as the model knows, and those of its tokenizer."""
    rows = len(model.get_input_embeddings().weight)
    if len(tokens) != rows:
        raise OptionError(
            f"{path} has {len(tokens):,} tokens and the model {rows:,}; name a GGUF file of its dense model"
        )
    if vocabulary is None:
        return
    there = dict(enumerate(tokens))
    added = vocabulary.get_added_vocab()  # the converter writes some of these otherwise
    for token, number in vocabulary.get_vocab().items():
        if token not in added and there.get(number) != token:
            raise OptionError(
                f"token {number} is {there.get(number)!r} in {path} and {token!r} in the model's tokenizer; name a GGUF file of "
                "its dense model"
            )


def _tensors(model: Any, architecture: str) -> dict[str, Tensor]:
    """Return the tensors of the file by their names."""
    # Imported here, because only GGUF files need it.
    import gguf

    head = model.model.layers[0].self_attn.head_dim
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, model.config.num_hidden_layers)
    parts: dict[str, list[torch.Tensor]] = {}
    for name, value in model.named_parameters():
        key = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if key is None:
            raise UnsupportedModelError(f"the model cannot be written as GGUF: llama.cpp has no place for {name}")
        if architecture == "openelm":  # queries, keys and values come from one matrix
            key = re.sub(r"attn_[qkv]\.", "attn_qkv.", key)
        parts.setdefault(key, []).append(value)

    def read(key: str) -> npt.NDArray[Any]:
        data = torch.cat([value.detach().cpu() for value in parts[key]])
        data = data.to(model.dtype if data.ndim > 1 else torch.float32)
        if architecture in ("deci", "llama") and re.search(r"attn_[qk]\.", key):  # from two halves of a head to pairs
            data = data.reshape(-1, 2, head // 2, *data.shape[1:]).transpose(1, 2).reshape(data.shape)
        # numpy has no bfloat16.
        return data.view(torch.int16).numpy() if data.dtype == torch.bfloat16 else data.numpy()

    found: dict[str, Tensor] = {}
    for key, values in parts.items():
        found[key] = (sum(map(len, values)), *values[0].shape[1:]), partial(read, key)
    usual = _rope(model.config)["rope_theta"] ** -(torch.arange(0, head, 2, dtype=torch.float32) / head)
    factors = usual / model.model.rotary_emb.inv_freq.float().cpu()
    if not torch.allclose(factors, torch.ones_like(factors), rtol=1e-5):
        found["rope_freqs.weight"] = tuple(factors.shape), factors.numpy
    return found
