"""A digest of a model, by which it is known again."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from llmrank.errors import OptionError

__all__ = ["weights_digest"]

# Number of values of a tensor that a digest reads, and entries of a configuration that may differ for the same model.
N_SAMPLED = 256
UNRELATED = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures")


def weights_digest(model: nn.Module, *, complete: bool = False) -> str:
    """Return a digest of a model, by which it is known again: of its configuration and of values of its parameters and buffers.

    By default, 256 evenly spaced values of each are read, so that most of the weights are not; with `complete`, all values.

    Raises
    ------
    OptionError
        A parameter holds no data: it is offloaded or on the meta device.
    """
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    described = {} if to_dict is None else to_dict()
    about = {name: value for name, value in described.items() if name not in UNRELATED}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise OptionError(
                f"{name} has no data here (offloaded or on the meta device); load the model completely, or on the CPU with "
                "--low-memory"
            )
        values = tensor.detach().reshape(-1)
        step = 1 if complete else max(1, len(values) // N_SAMPLED)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(values[::step].contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
