"""What torch and transformers do not promise, such as private names and registries.

Where a version changes one of these things, the change belongs here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "experts_computed_by",
    "gated_hidden",
    "gguf_read_once",
    "is_dispatched",
    "known_model_class",
    "process_store",
    "rotary_frequencies",
    "show_no_progress_bars",
    "tree_leaves",
    "tree_map_only",
    "use_one_gpu",
    "write_count",
]

# Each use of experts_computed_by registers a function with transformers under a new number.
_numbers = count()


def is_dispatched(owner: nn.Module) -> bool:
    """Whether transformers lets one choose the function that computes these experts."""
    return all(hasattr(owner, flag) for flag in ("is_transposed", "is_concatenated", "has_bias", "has_gate", "config"))


@contextmanager
def experts_computed_by(compute: Callable[..., Any], configs: Iterable[Any]) -> Iterator[None]:
    """Let a function compute the dispatched experts of modules with these configurations within the context.

    The public ``model.set_experts_implementation`` needs the complete model.

    Parameters
    ----------
    compute : callable
        Gets the module that holds the tensors of the experts, and the arguments of that module's forward function.
    configs : iterable of transformers configurations
    """
    # Imported here, because this import takes a second.
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    name = f"llmrank-{next(_numbers)}"
    with ExitStack() as cleanup:
        ALL_EXPERTS_FUNCTIONS[name] = compute
        cleanup.callback(ALL_EXPERTS_FUNCTIONS.pop, name)
        for config in configs:
            cleanup.callback(setattr, config, "_experts_implementation_internal", config._experts_implementation)
            config._experts_implementation_internal = name
        yield


def gated_hidden(owner: Any, gate: torch.Tensor, up: torch.Tensor, *, interleaved: bool) -> torch.Tensor:
    """Return the activations of an expert's hidden neurons, joined from gate and up as the module of all experts joins them.

    Some modules clamp or scale the two, in a method that takes both in one tensor, in the order in which they are stored.
    """
    if not hasattr(owner, "_apply_gate"):
        joined: torch.Tensor = owner.act_fn(gate) * up
        return joined
    both = torch.stack([gate, up], -1).flatten(-2) if interleaved else torch.cat([gate, up], -1)
    hidden: torch.Tensor = owner._apply_gate(both)
    return hidden


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """Let transformers read a GGUF file once within the context.

    By itself it reads the file for the configuration, for the weights and for the tokenizer, each time with the complete
    vocabulary, and makes the same map of names for every module: nearly half of the time of loading SmolLM2-135M.
    """
    import gguf
    from transformers.utils import import_utils

    # On Python 3.10 early versions of transformers 5 find the package, but not its version.
    getattr(import_utils, "PACKAGE_DISTRIBUTION_MAPPING", {}).setdefault("gguf", ["gguf"])
    package: Any = gguf
    reader, name_map = package.GGUFReader, package.get_tensor_name_map
    package.GGUFReader, package.get_tensor_name_map = cache(reader), cache(name_map)
    try:
        yield
    finally:
        package.GGUFReader, package.get_tensor_name_map = reader, name_map


def known_model_class(auto: str, config: Any) -> Any:
    """Return the model class that an auto class, such as "AutoModelForCausalLM", chooses for a configuration, or None."""
    import transformers

    known: Mapping[type, Any] = getattr(transformers, auto)._model_mapping
    return known.get(type(config), None)


def process_store() -> Any:
    """Return the store of keys and values by which torch.distributed has connected the processes."""
    return torch.distributed.distributed_c10d._get_default_store()


def rotary_frequencies(config: Any) -> torch.Tensor:
    """Return the frequencies of the rotary embeddings, (head / 2,) float32, of a type other than "default"."""
    # Imported here, because this import takes half a second.
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found: torch.Tensor
    found, _ = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, torch.device("cpu"))
    return found


def show_no_progress_bars() -> None:
    """Turn off the progress bars of transformers in this process, also that of its GGUF reader, which ignores the setting."""
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    gguf_reader.tqdm = logging.tqdm  # type: ignore[attr-defined]


def use_one_gpu(arguments: Any) -> None:
    """Keep a process of transformers' Trainer on one GPU; it would spread a model over all of them by ``DataParallel``."""
    arguments._n_gpu = min(1, arguments.n_gpu)


def write_count(values: torch.Tensor) -> int | None:
    """Return how often a tensor was written to in place, or None if torch does not count (inference tensors)."""
    return None if values.is_inference() else values._version
