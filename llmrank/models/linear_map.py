"""Linear maps of PyTorch and transformers, whatever the layout of their weight.

``Conv1D`` (GPT-2 and its relatives) stores its weight as (in, out). Outside of this module every matrix is (out, in).
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = [
    "as_stored",
    "bias_of",
    "in_features",
    "is_linear",
    "is_linear_map",
    "matrix_of",
    "out_features",
    "size_attributes",
]


def is_linear_map(module: nn.Module) -> bool:
    """Whether a module is a linear map of PyTorch or transformers."""
    return isinstance(module, (nn.Linear, Conv1D))


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, quantised or not: by its class, the name of its class, or a packed weight."""
    if isinstance(getattr(module, "qweight", None), torch.Tensor):
        return True
    weight = getattr(module, "weight", None)
    known = is_linear_map(module) or type(module).__name__.lower().startswith("linear")
    return known and isinstance(weight, torch.Tensor)


def matrix_of(module: nn.Module) -> torch.Tensor:
    """Return the (out, in) matrix of a linear map, a detached view of its weight."""
    weight = module.weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{type(module).__name__} has no weight tensor")
    return as_stored(module, weight.detach())


def as_stored(module: nn.Module, matrix: torch.Tensor) -> torch.Tensor:
    """Convert a matrix from (out, in) to the layout of a module's weight, or back. The result is a view."""
    return matrix.T if isinstance(module, Conv1D) else matrix


def out_features(module: nn.Module) -> int:
    """Return the number of outputs of a linear map."""
    return int(matrix_of(module).shape[0])


def in_features(module: nn.Module) -> int:
    """Return the number of inputs of a linear map."""
    return int(matrix_of(module).shape[1])


def bias_of(module: nn.Module) -> torch.Tensor | None:
    """Return the bias of a linear map, or None if it has none."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


def size_attributes(module: nn.Module, n_out: int, n_in: int) -> dict[str, int]:
    """Return the attributes in which a linear map states its sizes, such as ``out_features``, with the values for new sizes."""
    if isinstance(module, Conv1D):
        return {name: size for name, size in (("nf", n_out), ("nx", n_in)) if hasattr(module, name)}
    return {"out_features": n_out, "in_features": n_in}
