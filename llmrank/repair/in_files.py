"""Repaired maps in files, for a run with --low-memory: if the run ends early, another process can go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from graphs.io.tensor_files import read_tensors, write_tensors
from llmrank.errors import OptionError
from llmrank.execution.work_directory import WorkDirectory
from llmrank.file_contents import NUMBER, check_fields, refused_unless_sound
from llmrank.models import LinearMap, PrunableLayer
from llmrank.models.experts import ExpertMap
from llmrank.repair.base_repair import RepairedMap

__all__ = ["RepairsInFiles"]

KIND = "repair"
# The attributes of a repaired map that are numbers.
NUMBERS = ("damping", "before", "after")


class RepairsInFiles:
    """Writes repaired weights into the model, and keeps every repaired map in a file.

    Before a weight is changed, the model gets a copy of it that is in a file too, so that little memory is needed.
    :meth:`restore` gives the model its old weights back.

    Parameters
    ----------
    work : WorkDirectory
    """

    def __init__(self, work: WorkDirectory) -> None:
        self._work = work
        self._advice = f"delete {work.path}, and start again"
        # The old values of parameters, by the id of the parameter.
        self._old: dict[int, tuple[Any, torch.Tensor]] = {}

    def save(
        self, layer: str, keep: torch.Tensor, repaired: RepairedMap, unexplained: torch.Tensor | None = None
    ) -> None:
        """Write the keep mask of a layer, its repaired map, and the values by which the mask was chosen anew to a file."""
        tensors = {"keep": keep, "weight": repaired.weight, "bias": repaired.bias, "unexplained": unexplained}
        # numpy has no bfloat16, so every tensor is written as bytes, with its dtype and shape.
        arrays = {name: _bytes(tensor) for name, tensor in tensors.items() if tensor is not None}
        numbers = {name: getattr(repaired, name) for name in (*NUMBERS, "target")}
        shapes = {name: [str(t.dtype)[6:], *t.shape] for name, t in tensors.items() if t is not None}
        write_tensors(self._file(layer), arrays, {"shapes": shapes, **numbers}, KIND)
        self._work.keep(self._file(layer))

    def load(self, layer: PrunableLayer) -> tuple[torch.Tensor, RepairedMap, torch.Tensor | None] | None:
        """Return the mask, the map and the values that :meth:`save` has written for a layer; None if it is an expert without.

        Raises
        ------
        OptionError
            The file is missing, or does not fit the layer.
        """
        path = self._file(layer.name)
        if not self._work.keeps(path):
            if layer.mixture is None:
                raise OptionError(f"the run in {self._work.path} has lost {path.name}; {self._advice}")
            return None  # no token reached this expert
        meta, arrays = read_tensors(path, KIND)
        with refused_unless_sound(path, self._advice):
            numbers = dict.fromkeys(NUMBERS, (*NUMBER, type(None)))
            check_fields(meta, {"shapes": {"keep": list, "weight": list}, "target": str, **numbers})
            found = {name: _tensor(arrays[name], *shape) for name, shape in meta.pop("shapes").items()}
            repaired = RepairedMap(found.get("weight"), found.get("bias"), **meta)
            self._check_fits(layer, found)
        return found["keep"], repaired, found.get("unexplained")

    @staticmethod
    def _check_fits(layer: PrunableLayer, found: Mapping[str, torch.Tensor]) -> None:
        """Raise a ValueError unless tensors fit a layer: copied into the model, others might be spread over it."""
        (output_map,) = layer.output_maps
        rows, size = output_map.weight.shape
        fitting = {"keep": (layer.size,), "weight": (rows, size), "bias": (rows,), "unexplained": (layer.size,)}
        for name, tensor in found.items():
            if tensor.shape != fitting[name]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, and {layer.name} needs {fitting[name]}")
        if found["keep"].dtype != torch.bool:
            raise ValueError(f"keep is of {found['keep'].dtype}, not of booleans")

    def write(self, output_map: LinearMap, repaired: RepairedMap) -> RepairedMap:
        """Write the repaired weight, but not the bias, into the model.

        Returns
        -------
        RepairedMap
            `repaired` with None as its weight: the model holds the weight now.
        """
        if repaired.weight is None:
            return repaired
        module = output_map.module
        name = module.weight_part.name if isinstance(module, ExpertMap) else "weight"
        parameter: Any = output_map.owner._parameters[name]
        if id(parameter) not in self._old:
            self._old[id(parameter)] = parameter, parameter.data
            parameter.data = self._work.copy_to_file(parameter.data)
        output_map.weight.copy_(repaired.weight)
        return replace(repaired, weight=None)

    def restore(self) -> None:
        """Give the model its old weights back. After an interrupt, a second call restores the rest."""
        for key, (parameter, old) in list(self._old.items()):
            parameter.data = old
            del self._old[key]

    def close(self) -> None:
        """Forget the old weights."""
        self._old.clear()

    def _file(self, layer: str) -> Any:
        return self._work.file(f"repair-{layer}.safetensors")


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _tensor(content: Any, dtype: str, *shape: int) -> torch.Tensor:
    """Return the tensor that :func:`_bytes` has written."""
    known = getattr(torch, dtype)
    if not isinstance(known, torch.dtype) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"expected a dtype and a shape, got {dtype!r} and {shape}")
    return torch.from_numpy(content).view(known).view(shape)
