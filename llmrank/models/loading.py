"""Where models come from: a directory, a hub name, a GGUF file, or the demo models from PyPI."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from llmrank.errors import LLMRankError, ModelSourceError, OptionError

__all__ = [
    "LoadedModel",
    "load_pretrained",
    "model_class_of",
    "parse_device",
    "parse_dtype",
    "read_model",
]

# Classes of transformers that choose a model class by its configuration; the first that knows one is taken.
AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModel")
# Masks that attentions of earlier versions saved among the weights; models compute them now.
OLD_BUFFERS = re.compile(r"\.(attn|attention)\.(masked_)?bias$")
# With this option encoders are made without the layer that only a classifier reads.
NO_POOLER = {"add_pooling_layer": False}
# Their absence says that a model came without a tokenizer; where one is there, its failure is told.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
TRUST = "Read that code, and if you trust it pass --trust-remote-code (trust_remote_code=True in Python)"
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
    *,
    trust_remote_code: bool = False,
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
    trust_remote_code : bool
        Run the Python code that the checkpoint brings along (``auto_map`` in its configuration), and use its classes. Without
        it none of that code is run.

    Returns
    -------
    LoadedModel
        The model in evaluation mode; the tokenizer is None where the checkpoint has none. On the CPU the weights of a
        safetensors checkpoint in its own dtype stay on disk, mapped: a model larger than memory can be ranked.

    Raises
    ------
    ModelSourceError
        Nothing there; transformers cannot read it (the message quotes its reason); a tensor that the model has is missing, of
        another shape, or there is one that it does not have. Heads and poolers that only other classes of the same
        configuration have are left out.

    Warns
    -----
    UserWarning
        There are files of a tokenizer that cannot be loaded, or it is code of the checkpoint that is not trusted.
    """
    target, torch_dtype = parse_device(device), parse_dtype(dtype)
    name = os.fspath(source)
    if name != name.encode(errors="replace").decode():
        raise ModelSourceError(f"the name {name!a} is not valid UTF-8; rename the model's directory or file")
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
    trust = {"trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **trust, **options)
        model_class = model_class_of(config, name, **trust)
        if subclass is not None:
            model_class = subclass(model_class, config)
        model, differences = read_model(model_class, name, config, dtype=torch_dtype, **trust, **options)
    except LLMRankError:
        raise
    except Exception as error:  # readers of damaged files raise nearly anything
        if "trust_remote_code" in str(error):
            raise _needs_code(os.fspath(source)) from error
        raise ModelSourceError(
            f"transformers cannot load {os.fspath(source)}: {_first_line(error)}; check the path or name, or download "
            "the model on a machine with network access and pass its directory"
        ) from error
    if differences:
        raise ModelSourceError(
            f"{os.fspath(source)} is not the {type(model).__name__} that its configuration describes: {differences}; fetch the "
            "checkpoint again, or correct config.json (architectures, sizes)"
        )
    if options:
        _forget_quantiser(model)
        model.name_or_path = os.fspath(source)  # transformers names the directory of the file
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **trust, **options)
    except Exception as error:  # as above; a model without a usable tokenizer can be pruned on token tensors
        tokenizer = None
        if "trust_remote_code" in str(error):
            warnings.warn(
                f"the tokenizer of {os.fspath(source)} is code that comes with it and was not run; the model has none. {TRUST}",
                stacklevel=2,
            )
        elif trust_remote_code or any((path / file).exists() for file in TOKENIZER_FILES):
            warnings.warn(
                f"the tokenizer of {os.fspath(source)} cannot be loaded ({_first_line(error)}), so the model has none; fetch its "
                "files again",
                stacklevel=2,
            )
    return LoadedModel(model.to(target).eval(), tokenizer, os.fspath(source))


def model_class_of(config: Any, name: str = "", *, trust_remote_code: bool = False) -> Any:
    """The class for a configuration: trusted code's, else the architecture that it names, else what an auto class knows.

    Raises
    ------
    ModelSourceError
        The architecture is only in the checkpoint's code, which is not trusted.
    """
    architectures = getattr(config, "architectures", None) or ()
    auto_map = getattr(config, "auto_map", None) or {}
    own = {auto: auto_map[auto] for auto in AUTO_CLASSES if auto in auto_map}
    if own and trust_remote_code:
        auto = next((auto for auto in own if own[auto].rpartition(".")[2] in architectures), next(iter(own)))
        code_class: Any = get_class_from_dynamic_module(own[auto], name)
        code_class.register_for_auto_class(auto)  # what is saved again takes its code along
        return code_class
    for architecture in architectures:
        found = getattr(transformers, architecture, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    found = next(filter(None, (_known_class(auto, config) for auto in AUTO_CLASSES[:-1])), transformers.AutoModel)
    # transformers has taken over models under nearly the same names, such as MPTForCausalLM.
    if own and architectures and found.__name__.casefold() not in map(str.casefold, architectures):
        raise _needs_code(name)
    return found


def _known_class(auto: str, config: Any) -> Any:
    mapping = getattr(transformers, auto)._model_mapping
    return mapping.get(type(config), None)


def _needs_code(name: str) -> ModelSourceError:
    return ModelSourceError(
        f"transformers {transformers.__version__} does not know the architecture of {name}; the code that comes with it "
        f"(auto_map in config.json) was not run. {TRUST}"
    )


def read_model(model_class: Any, name: str | None, config: Any, **options: Any) -> tuple[Any, str]:
    """Read a model with ``from_pretrained``, and say in words which tensors of its checkpoint or state do not fit it.

    Parameters
    ----------
    model_class : type
        Of transformers, or one with the same ``from_pretrained``.
    name : str or None
        Directory or hub name; None where `options` hold a ``state_dict``.
    config : transformers configuration
    **options
        Of ``from_pretrained``.

    Returns
    -------
    model : transformers.PreTrainedModel
        Tensors that are missing or of another shape are freshly initialised.
    differences : str
        Which are missing, unexpected or of another shape; empty where everything fits. Masks of attentions that earlier versions
        saved, and heads and poolers that only other classes of the same configuration have, are no difference. An encoder
        whose pooler alone is missing is read without one.

    Raises
    ------
    Exception
        Whatever ``from_pretrained`` raises for damaged files.
    """
    model, info = model_class.from_pretrained(
        name, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    missing = info["missing_keys"]
    if missing and all(key.startswith("pooler.") for key in missing) and _takes(model_class, NO_POOLER):
        # Encoders of sentences are saved without: none is better than one of random weights.
        return read_model(model_class, name, config, **options, **NO_POOLER)
    unexpected = [key for key in info["unexpected_keys"] if not OLD_BUFFERS.search(key)]
    if unexpected:
        unexpected = sorted(set(unexpected) - _keys_of_other_heads(model, unexpected))
    shapes = [f"{key} {tuple(there)}, not {tuple(own)}" for key, there, own in info["mismatched_keys"]]
    kinds = {"missing": info["missing_keys"], "unexpected": unexpected, "of another shape": shapes}
    return model, "; ".join(f"{kind}: {_listed(keys)}" for kind, keys in kinds.items() if keys)


def _takes(model_class: Any, options: Mapping[str, Any]) -> bool:
    """Whether a model class, or one that it derives from, is made with these options."""
    made = [inspect.signature(vars(base)["__init__"]) for base in model_class.__mro__ if "__init__" in vars(base)]
    return any(options.keys() <= signature.parameters.keys() for signature in made[:-1])


def _keys_of_other_heads(model: Any, keys: Iterable[str]) -> set[str]:
    """Those of the keys that transformers' other classes for the same configuration have: a language head, a pooler."""
    others: set[str] = set()
    for auto in (*AUTO_CLASSES, "AutoModelForPreTraining"):
        other = _known_class(auto, model.config)
        if other is not None:
            with torch.device("meta"):
                others |= {key.removeprefix(f"{other.base_model_prefix}.") for key in other(model.config).state_dict()}
    return {key for key in keys if key.removeprefix(f"{model.base_model_prefix}.") in others}


def _listed(names: Iterable[str], most: int = 4) -> str:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _forget_quantiser(model: Any) -> None:
    """A model loaded from GGUF is dequantised, but keeps a quantizer that makes save_pretrained refuse."""
    model.hf_quantizer = None
    for attribute in ("is_quantized", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
