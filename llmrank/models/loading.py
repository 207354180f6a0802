"""Load a model through transformers: from a directory, a hub name or a GGUF file."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from llmrank.errors import LLMRankError, ModelSourceError, OptionError, check_type
from llmrank.models.compat import gguf_read_once, known_model_class

__all__ = [
    "DTYPES",
    "LoadedModel",
    "load_pretrained",
    "model_class_of",
    "parse_device",
    "parse_dtype",
    "read_model",
]

# Classes of transformers that choose a model class by a configuration; the first that knows the configuration is used.
AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModel")
# Attention masks that earlier versions of transformers saved among the weights.
OLD_BUFFERS = re.compile(r"\.(attn|attention)\.(masked_)?bias$")
# An option that builds an encoder without its pooler, which only classifiers read.
NO_POOLER = {"add_pooling_layer": False}
# If a directory holds one of these files, but no tokenizer can be loaded, there is a warning.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
# Advice that ends messages about code in a checkpoint.
TRUST = "Read that code, and if you trust it pass --trust-remote-code (trust_remote_code=True in Python)"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its tokenizer or None, and its source (a path or a hub name)."""

    model: Any
    tokenizer: Any
    source: str


def parse_device(device: str | torch.device | None) -> torch.device:
    """Return a torch device that works on this machine; None is the CPU.

    Raises
    ------
    OptionError
        The device is unknown, not available on this machine, or "meta".
    """
    try:
        parsed = torch.device("cpu" if device is None else device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"device {str(device)!r} cannot be used here ({reason}); expected 'cpu', or 'cuda' / 'cuda:N' on a machine "
            "with that GPU and a CUDA build of torch"
        ) from error
    if parsed.type == "meta":
        raise OptionError("device 'meta' holds no weights; expected 'cpu' or 'cuda'")
    return parsed


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    """Return a torch dtype by its name, or "auto" (the dtype of the checkpoint) for None and "auto".

    Raises
    ------
    OptionError
        The name is unknown.
    """
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load_pretrained(
    source: str | os.PathLike[str],
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    choose_class: Any = None,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    placement: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer through transformers.

    Parameters
    ----------
    source : str or path-like
        A directory with a transformers checkpoint, a ``.gguf`` file (dequantised on loading), or a name on the hub.
    dtype : str or torch.dtype, optional
        By default the dtype of the checkpoint, and float32 for GGUF files.
    device : str or torch.device, optional
        The CPU by default.
    choose_class : callable, optional
        ``choose_class(model_class, configuration)`` returns the class to instantiate. Checkpoints whose FFNs differ in width need
        it.
    trust_remote_code : bool
        Whether to run the Python code in the checkpoint (``auto_map`` in its configuration) and use its classes.
    revision : str, optional
        Branch, tag or commit of a model on the hub.
    placement : mapping, optional
        Where the parts of the model are: ``device_map``, ``max_memory`` and ``offload_folder`` of ``from_pretrained``. `device`
        must be None then.

    Returns
    -------
    LoadedModel
        The model in evaluation mode; the tokenizer is None if the checkpoint has none that can be loaded. On the CPU, the weights
        of a safetensors checkpoint in its own dtype stay memory-mapped on disk, so that a model larger than memory can be ranked.

    Raises
    ------
    ModelSourceError
        The source does not exist, transformers cannot read it (the message quotes the reason), it needs code that is not
        trusted, or its tensors are not those of the model, see :func:`read_model`.
    OptionError
        The dtype or the device is unknown or not available.

    Warns
    -----
    UserWarning
        The weights were dequantised; or the tokenizer is code that is not trusted, or cannot be loaded.
    """
    if placement is not None:
        check_type("placement", placement, Mapping, "a mapping, or None")
    if placement and device is not None:
        raise OptionError(
            f"a device map places the whole model, and device={str(device)!r} does too; leave one of them out"
        )
    target, torch_dtype = parse_device(device), parse_dtype(dtype)
    source = os.fsdecode(source)
    _check_source(source)
    name = source
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    is_gguf = source.endswith(".gguf")
    if is_gguf:
        # For transformers, the directory of the file is the name of the model.
        path = Path(source)
        name = str(path.parent)
        options["gguf_file"] = path.name
        if torch_dtype == "auto":
            torch_dtype = torch.float32
    with gguf_read_once() if is_gguf else nullcontext():
        try:
            config = transformers.AutoConfig.from_pretrained(name, **options)
            _check_size(source, config)
            model_class = model_class_of(config, name, trust_remote_code=trust_remote_code, revision=revision)
            if choose_class is not None:
                model_class = choose_class(model_class, config)
            dequantising = _dequantising_option(config)
            all_options = {**options, **dequantising, **(placement or {})}
            model, differences = read_model(model_class, name, config, dtype=torch_dtype, **all_options)
        except LLMRankError:
            raise
        except Exception as error:  # readers of damaged files raise nearly anything
            raise _loading_error(source, error) from error
        tokenizer, problem = _load_tokenizer(source, name, options)
    if differences:
        raise ModelSourceError(
            f"{source} is not the {type(model).__name__} that its configuration describes: {differences}; fetch the "
            "checkpoint again, or correct config.json (architectures, sizes)"
        )
    if is_gguf:
        _forget_quantiser(model)
        model.name_or_path = source  # transformers sets it to the directory of the file
    problems = [_dequantised_sentence(source, method, model.dtype) for method in dequantising.values()]
    for sentence in filter(None, [*problems, problem]):
        warnings.warn(sentence, stacklevel=2)
    return LoadedModel((model if placement else model.to(target)).eval(), tokenizer, source)


def _dequantising_option(config: Any) -> dict[str, Any]:
    """Return the option with which transformers dequantises a checkpoint on loading.

    It is empty if the checkpoint is not quantised, or if transformers cannot dequantise it. Weights that stay quantised are
    refused later, see :func:`llmrank.models.checks.check_not_quantised`.
    """
    # Imported here, because this import takes half a second.
    from transformers.quantizers.auto import AutoQuantizationConfig

    settings = getattr(config, "quantization_config", None)
    if not isinstance(settings, dict):
        return {}
    try:
        method: Any = AutoQuantizationConfig.from_dict(settings)
    except (ValueError, TypeError, ImportError):  # a method that this version of transformers does not know
        return {}
    if not hasattr(method, "dequantize"):
        return {}
    method.dequantize = True
    return {"quantization_config": method}


def _dequantised_sentence(source: str, method: Any, dtype: torch.dtype) -> str:
    kind = getattr(method.quant_method, "value", method.quant_method)  # some methods keep it as text
    return (
        f"the weights of {source} are quantised ({kind}) and were dequantised to {str(dtype).removeprefix('torch.')} on loading, "
        "so each takes more memory in what is written; quantise the pruned model again"
    )


def _check_source(source: str) -> None:
    """Raise a ModelSourceError unless a source is a directory or file with a model, or can be a hub name."""
    if source != source.encode(errors="replace").decode():
        raise ModelSourceError(f"the name {source!a} is not valid UTF-8; rename the model's directory or file")
    path = Path(source)
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ModelSourceError(f"no GGUF file at {source}; expected a path to an existing .gguf file")
    elif (path / "adapter_config.json").is_file():
        raise ModelSourceError(
            f"{source} holds adapters of peft, not a whole model; expected a checkpoint: merge them into their base model with "
            "peft.AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload(), save that with save_pretrained, and prune it"
        )
    elif path.exists() and not (path / "config.json").is_file():
        raise ModelSourceError(
            f"{source} has no config.json; expected a directory written by save_pretrained, a .gguf file or a hub name"
        )
    elif not path.exists() and (source.count("/") > 1 or source.startswith((".", "/", "~"))):
        raise ModelSourceError(
            f"no model at {source}: there is no such directory, and a hub name has the form OWNER/NAME; expected a "
            "directory, a .gguf file or a hub name"
        )


def _check_size(source: str, config: Any) -> None:
    """Raise a ModelSourceError if local files are too small for the blocks that they claim to hold, which take long to make."""
    path = Path(source)
    if not path.exists():  # a model on the hub
        return
    files = path.iterdir() if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    for part in (config.get_text_config(), *(getattr(config, name, None) for name in config.sub_configs)):
        blocks, width = getattr(part, "num_hidden_layers", None), getattr(part, "hidden_size", None)
        if not (isinstance(blocks, int) and isinstance(width, int)):
            continue
        if size < blocks * width**2 // 8:  # a block holds at least its width squared numbers, of a bit or more each
            raise ModelSourceError(
                f"{path} claims {blocks:,} blocks of width {width:,}, but has only {size:,} bytes; fetch it again"
            )


def _load_tokenizer(source: str, name: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the tokenizer or None, and a warning.

    The warning is "" if the tokenizer could be loaded, or if nothing hints that the source has one.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(name, **options), ""
    except Exception as error:  # readers of damaged files raise nearly anything
        if "trust_remote_code" in str(error):
            return None, (
                f"the tokenizer of {source} is code in the checkpoint, which was not run, so the model has no tokenizer. {TRUST}"
            )
        path = Path(source)
        may_be_code = options["trust_remote_code"] and not path.is_dir()
        if may_be_code or any((path / file).exists() for file in TOKENIZER_FILES):
            return None, (
                f"the tokenizer of {source} cannot be loaded ({_first_line(error)}), so the model has none; fetch its files again"
            )
        return None, ""


def model_class_of(config: Any, name: str = "", *, trust_remote_code: bool = False, revision: str | None = None) -> Any:
    """Return the model class for a configuration.

    If the code in the checkpoint (in `name`, a directory or hub name, at `revision`) is trusted, it is the class in that code.
    Otherwise it is the class of transformers that the configuration names; else the class that one of AUTO_CLASSES chooses; else
    ``AutoModel`` itself.

    Raises
    ------
    ModelSourceError
        The architecture is only in the checkpoint's code, which is not trusted.
    """
    architectures = getattr(config, "architectures", None) or ()
    auto_map = getattr(config, "auto_map", None) or {}
    in_code = {auto: auto_map[auto] for auto in AUTO_CLASSES if auto in auto_map}
    if in_code and trust_remote_code:
        named = (auto for auto in in_code if in_code[auto].rpartition(".")[2] in architectures)
        auto = next(named, next(iter(in_code)))
        code_class: Any = get_class_from_dynamic_module(in_code[auto], name, revision=revision)
        code_class.register_for_auto_class(auto)  # a saved copy then includes the code
        return code_class
    for architecture in architectures:
        named_class = getattr(transformers, architecture, None)
        if isinstance(named_class, type) and issubclass(named_class, transformers.PreTrainedModel):
            return named_class
    known_class = next(
        filter(None, (known_model_class(auto, config) for auto in AUTO_CLASSES[:-1])),
        transformers.AutoModel,
    )
    # transformers spells some names with other capitals than checkpoints do: MptForCausalLM, not MPTForCausalLM.
    if in_code and architectures and known_class.__name__.casefold() not in map(str.casefold, architectures):
        raise _untrusted_code_error(name)
    return known_class


def _loading_error(source: str, error: Exception) -> ModelSourceError:
    if "trust_remote_code" in str(error):
        return _untrusted_code_error(source)
    return ModelSourceError(
        f"transformers cannot load {source}: {_first_line(error)}; check the path or name and the files, or "
        "download the model on a machine with network access and pass its directory"
    )


def _untrusted_code_error(name: str) -> ModelSourceError:
    return ModelSourceError(
        f"transformers {transformers.__version__} does not know the architecture of {name}, and the code in the checkpoint "
        f"(auto_map in config.json) was not run. {TRUST}"
    )


def read_model(model_class: Any, name: str | None, config: Any, **options: Any) -> tuple[Any, str]:
    """Read a model with ``from_pretrained``, and report in words which tensors of the checkpoint do not fit it.

    Parameters
    ----------
    model_class : type
        A class of transformers, or one with the same ``from_pretrained``.
    name : str or None
        Directory or hub name; None if `options` contain a ``state_dict``.
    config : transformers configuration
    **options
        Passed on to ``from_pretrained``.

    Returns
    -------
    model : transformers.PreTrainedModel
        Tensors that are missing or have another shape are newly initialised.
    differences : str
        The tensors that are missing, unexpected or of another shape; empty if all fit. Two kinds of unexpected tensors do not
        count: attention masks that earlier versions of transformers saved, and heads and poolers that only other classes of the
        same configuration have. An encoder that lacks only the tensors of its pooler is read without a pooler.

    Raises
    ------
    Exception
        Any error of ``from_pretrained``, for example for damaged files.
    """
    # From version 5.25 on, transformers would take forward functions from the hub, which differ from machine to machine.
    options = {"use_kernels": False, **options}
    model, info = model_class.from_pretrained(
        name, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    missing = info["missing_keys"]
    if missing and all(key.startswith("pooler.") for key in missing) and _accepts(model_class, NO_POOLER):
        # It is better to have no pooler than one with random weights.
        return read_model(model_class, name, config, **options, **NO_POOLER)
    unexpected = {key for key in info["unexpected_keys"] if not OLD_BUFFERS.search(key)}
    if unexpected:
        unexpected -= _keys_of_other_heads(model, unexpected)
    shapes = [f"{key} {tuple(saved)}, not {tuple(own)}" for key, saved, own in info["mismatched_keys"]]
    differences = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return model, "; ".join(f"{problem}: {_listed(keys)}" for problem, keys in differences.items() if keys)


def _accepts(model_class: Any, options: Mapping[str, Any]) -> bool:
    """Whether the constructor of a model class or of a base class has these parameters."""
    constructors = [vars(base)["__init__"] for base in model_class.__mro__ if "__init__" in vars(base)]
    return any(options.keys() <= inspect.signature(constructor).parameters.keys() for constructor in constructors)


def _keys_of_other_heads(model: Any, keys: Iterable[str]) -> set[str]:
    """Return those keys that belong to other model classes of the same configuration (a language head, a pooler)."""
    keys_of_others: set[str] = set()
    for auto in (*AUTO_CLASSES, "AutoModelForPreTraining"):
        other = known_model_class(auto, model.config)
        if other is not None:
            with torch.device("meta"):
                keys_of_others |= {
                    key.removeprefix(f"{other.base_model_prefix}.") for key in other(model.config).state_dict()
                }
    return {key for key in keys if key.removeprefix(f"{model.base_model_prefix}.") in keys_of_others}


def _listed(names: Iterable[str], most: int = 4) -> str:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _forget_quantiser(model: Any) -> None:
    """Remove the quantiser that transformers leaves on a model from a GGUF file; save_pretrained would fail with it."""
    model.hf_quantizer = None
    for attribute in ("is_quantized", "quantization_method"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
