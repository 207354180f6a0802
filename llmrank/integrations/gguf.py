"""Write a model as a GGUF file that llama.cpp runs, also if its layers differ in width.

llama.cpp's own converter writes one width for all layers. But some of its architectures read from the file how many neurons,
heads and key-value heads every layer has (https://github.com/ggml-org/llama.cpp, ``src/models``). ``deci`` otherwise computes
what ``llama`` computes, and ``openelm`` what ``qwen3`` computes if input and output share their embeddings.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from graphs.io.replacement import replace_file
from llmrank.errors import OptionError, UnsupportedModelError, check_type
from llmrank.models.checks import check_not_wrapped
from llmrank.models.compat import rotary_frequencies
from llmrank.models.families import has_sliding_window

__all__ = ["ARCHITECTURES", "GGUFContent", "write_gguf"]

# Model type -> the architectures of llama.cpp that compute the same: for layers of different sizes, and for layers of one size.
ARCHITECTURES = {
    "llama": ("deci", "llama"),
    "mistral": ("deci", "llama"),
    "qwen2": ("deci", "qwen2"),
    "qwen3": ("openelm", "qwen3"),
}
UNEVEN = {uneven for uneven, _ in ARCHITECTURES.values()}
# These rotate neighbouring entries of a head, and the others entries that are half a head apart, as transformers does.
ROTATE_NEIGHBOURS = ("deci", "llama")
WEIGHTS = r"(token_embd|output_norm|blk\.\d+\.(attn_norm|attn_output|ffn_norm|ffn_gate|ffn_down|ffn_up))\.weight"
# The tensors that llama.cpp reads of an architecture; it refuses a file with others.
TENSORS = {
    "deci": rf"{WEIGHTS}|output\.weight|blk\.\d+\.(attn_[qkv]\.(weight|bias)|(attn_output|ffn_gate|ffn_down|ffn_up)\.bias)",
    "qwen2": rf"{WEIGHTS}|output\.weight|blk\.\d+\.attn_[qkv]\.(weight|bias)",
    "qwen3": rf"{WEIGHTS}|output\.weight|blk\.\d+\.(attn_[qkv]\.(weight|bias)|attn_[qk]_norm\.weight)",
    "openelm": rf"{WEIGHTS}|blk\.\d+\.(attn_qkv|attn_[qk]_norm)\.weight",
}
TENSORS["llama"] = TENSORS["deci"]
# Rotary embeddings that differ from the usual ones by fixed factors of their frequencies.
SCALED_ROPE = ("linear", "llama3")
# dtype of a model -> names of the types of tensors and files in the package gguf.
TYPES = {
    torch.float32: ("F32", "ALL_F32"),
    torch.float16: ("F16", "MOSTLY_F16"),
    torch.bfloat16: ("BF16", "MOSTLY_BF16"),
}
TOKENIZER = "tokenizer."
TOKENS = "tokenizer.ggml.tokens"
# Parameters of a model that make up a tensor, one below the other, by its name.
Parts = dict[str, list[torch.Tensor]]


class GGUFContent(NamedTuple):
    """What was written to a GGUF file.

    Attributes
    ----------
    architecture : str
        "deci" or "openelm"; if all layers have the same sizes "llama", "qwen2" or "qwen3", which more programs read.
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
        No architecture of llama.cpp computes this model; or it is wrapped, masked, offloaded, or of another dtype.
    OptionError
        The file with the tokenizer cannot be read, its tokens are not those of the model, or it is the output.
    OSError
        The disk is full, or the system refuses.

    Notes
    -----
    Cost: one read of the weights and one write. Memory: one tensor.
    """
    check_type("model", model, nn.Module, "a torch module (llmrank.load(...).model loads one)")
    for what, path in {"output": output, "tokenizer": tokenizer}.items():
        check_type(what, path, (str, os.PathLike), "a path")
    if Path(output).exists() and Path(tokenizer).exists() and Path(output).samefile(tokenizer):
        raise OptionError(f"{output} holds the tokenizer; name another file for the output")
    # Imported here, because only GGUF files need it.
    import gguf

    _check_model(model)
    layers, (matrix_type, file_type) = model.model.layers, TYPES[model.dtype]
    head = layers[0].self_attn.head_dim
    sizes = [
        (
            layer.mlp.down_proj.weight.shape[1],
            layer.self_attn.q_proj.weight.shape[0] // head,
            layer.self_attn.k_proj.weight.shape[0] // head,
        )
        for layer in layers
    ]
    architecture, parts = _architecture(model, is_uniform=len(set(sizes)) == 1)
    fields = _fields_of_tokenizer(Path(tokenizer))
    tokens = fields[TOKENS][0]
    _check_tokens(tokens, model, vocabulary, tokenizer)
    reads = {key: partial(_array, model, architecture, key, values) for key, values in parts.items()}
    shapes = {key: (sum(map(len, values)), *values[0].shape[1:]) for key, values in parts.items()}
    factors = _rope_factors(model.config)
    if factors is not None:
        shapes["rope_freqs.weight"], reads["rope_freqs.weight"] = tuple(factors.shape), partial(factors.numpy)

    with replace_file(Path(output)) as prepared:
        writer = gguf.GGUFWriter(None, architecture)
        writer.add_name(name or Path(output).stem)
        writer.add_file_type(gguf.LlamaFileType[file_type])
        writer.add_vocab_size(len(tokens))
        _add_sizes(writer, model.config, head, sizes)
        for key, (value, types) in fields.items():
            writer.add_key_value(key, value, types[0], *types[1:])
        for key, shape in shapes.items():
            kind = gguf.GGMLQuantizationType[matrix_type if len(shape) > 1 else "F32"]
            size = torch.Size(shape).numel() * (4 if kind.name == "F32" else 2)
            writer.add_tensor_info(key, shape, np.dtype(np.int8), size, raw_dtype=kind)
        writer.write_header_to_file(prepared)
        try:
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for read in reads.values():
                writer.write_tensor_data(read())
        finally:
            writer.close()
    return GGUFContent(architecture, matrix_type, tuple(width for width, *_ in sizes), Path(output).stat().st_size)


def _add_sizes(writer: Any, config: Any, head: int, sizes: list[tuple[int, int, int]]) -> None:
    """Write what llama.cpp must know of the model: widths, heads and key-value heads of all layers, and what they share."""
    states_layers = writer.arch in UNEVEN
    widths, heads, groups = (list(each) if states_layers else each[0] for each in zip(*sizes, strict=True))
    writer.add_feed_forward_length(widths)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_block_count(len(sizes))
    writer.add_embedding_length(config.hidden_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)


def _check_model(model: Any) -> None:
    """Raise unless llama.cpp has an architecture for this kind of model, and its tensors can be written."""
    check_not_wrapped(model)
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if config is None or kind not in ARCHITECTURES or not hasattr(model, "lm_head"):
        raise UnsupportedModelError(
            f"no architecture of llama.cpp takes layers of different sizes and computes a {type(model).__name__} ({kind}); "
            f"expected a causal model of the types {', '.join(ARCHITECTURES)}. Give other models layers of one width, and use "
            "llama.cpp's convert_hf_to_gguf.py"
        )
    rope, parameters = _rope(config)["rope_type"], dict(model.named_parameters())
    unusual = {
        f"the activation function {config.hidden_act}": config.hidden_act not in ("silu", "swish"),
        "a sliding window of attention": has_sliding_window(config.to_dict()),
        f"rotary embeddings of the type {rope}": rope not in ("default", *(() if kind == "qwen3" else SCALED_ROPE)),
    }
    found = [what for what, is_there in unusual.items() if is_there]
    if found:
        raise UnsupportedModelError(f"llama.cpp cannot compute this model with layers of any size: it has {found[0]}")
    if model.dtype not in TYPES:
        raise UnsupportedModelError(f"the model is in {model.dtype}; load it in float32, float16 or bfloat16")
    if any(name.endswith("weight_orig") for name in parameters):
        raise UnsupportedModelError("the weights of the model are masked; prune it in the compact form")
    if any(each.is_meta for each in parameters.values()):
        raise UnsupportedModelError(
            "tensors of the model have no data here (offloaded); load it completely into memory"
        )


def _architecture(model: Any, *, is_uniform: bool) -> tuple[str, Parts]:
    """Return the architecture of llama.cpp that has a place for all parameters of the model, and its tensors."""
    # Imported here, because only GGUF files need it.
    import gguf

    # This map has the names of all the families.
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, model.config.num_hidden_layers)
    uneven, even = ARCHITECTURES[model.config.model_type]
    for architecture in (even, uneven) if is_uniform else (uneven,):
        parts: Parts = {}
        odd: list[str] = []
        for name, value in model.named_parameters():
            key = names.get_name(name, try_suffixes=(".weight", ".bias")) or ""
            if architecture == "openelm":  # queries, keys and values come from one matrix
                key = re.sub(r"attn_[qkv]\.", "attn_qkv.", key)
            if re.fullmatch(TENSORS[architecture], key):
                parts.setdefault(key, []).append(value)
            else:
                odd.append(name)
        if not odd:
            return architecture, parts
    raise UnsupportedModelError(f"llama.cpp's architecture {uneven} has no place for {odd[0]} of the model")


def _array(model: Any, architecture: str, key: str, parts: list[torch.Tensor]) -> npt.NDArray[Any]:
    """Make a tensor of the file from parameters of the model."""
    data = torch.cat([part.detach().cpu() for part in parts])
    data = data.to(model.dtype if data.ndim > 1 else torch.float32)
    if architecture in ROTATE_NEIGHBOURS and re.search(r"attn_[qk]\.", key):  # from two halves of a head to pairs
        half = model.model.layers[0].self_attn.head_dim // 2
        data = data.reshape(-1, 2, half, *data.shape[1:]).transpose(1, 2).reshape(data.shape)
    # numpy has no bfloat16.
    array: npt.NDArray[Any] = data.view(torch.int16).numpy() if data.dtype == torch.bfloat16 else data.numpy()
    return array


def _rope(config: Any) -> dict[str, Any]:
    """Return the parameters of the rotary embeddings."""
    return {"rope_type": "default", **(config.rope_parameters or {})}


def _rope_factors(config: Any) -> torch.Tensor | None:
    """Return what the frequencies of the rotary embeddings are divided by, in float32; None if they are the usual ones."""
    rope = _rope(config)
    if rope["rope_type"] == "default":
        return None
    # Not those that the model holds: they are rounded if the model was cast.
    frequencies = rotary_frequencies(config)
    n = 2 * len(frequencies)
    usual: torch.Tensor = rope["rope_theta"] ** -(torch.arange(0, n, 2, dtype=torch.float32) / n)
    return usual / frequencies


def _fields_of_tokenizer(path: Path) -> dict[str, tuple[Any, list[Any]]]:
    """Read the fields of a GGUF file that describe its tokenizer: value, and types."""
    # Imported here, because only GGUF files need it.
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = {key: field for key, field in reader.fields.items() if key.startswith(TOKENIZER)}
        found = {key: (field.contents(), field.types) for key, field in fields.items()}
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise OptionError(f"{path} cannot be read as a GGUF file with a tokenizer: {error}") from error
    tokens = found.get(TOKENS, (None,))[0]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise OptionError(f"{path} holds no tokenizer; name a GGUF file of the dense model")
    # An empty array, such as that of no merges, cannot be written.
    return {key: (value, types) for key, (value, types) in found.items() if not isinstance(value, list) or value}


def _check_tokens(tokens: list[str], model: Any, vocabulary: Any, path: Any) -> None:
    """Raise an OptionError unless the tokens are as many as the model knows, and those of its tokenizer."""
    rows = len(model.get_input_embeddings().weight)
    if len(tokens) != rows:
        raise OptionError(
            f"{path} has {len(tokens):,} tokens and the model {rows:,}; name a GGUF file of its dense model"
        )
    if not hasattr(vocabulary, "get_added_vocab"):
        return
    # The converter writes added tokens otherwise unless they are special.
    added = vocabulary.get_added_vocab().keys() - set(vocabulary.all_special_tokens)
    there = dict(enumerate(tokens))
    for token, number in vocabulary.get_vocab().items():
        if token not in added and there.get(number) != token:
            raise OptionError(
                f"token {number} is {there.get(number)!r} in {path} and {token!r} in the model's tokenizer; name a GGUF file of "
                "its dense model"
            )
