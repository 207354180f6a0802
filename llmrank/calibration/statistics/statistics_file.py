"""Write statistics to files and read them, so that they need not be collected again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from graphs.io.tensor_files import read_tensors, write_tensors
from llmrank.calibration.statistics.ffn_statistics import (
    FFNStatistics,
    LayerStatistics,
    MixtureStatistics,
    RoutingStatistics,
)
from llmrank.errors import OptionError
from llmrank.file_contents import NUMBER, check_fields, refused_unless_sound

__all__ = ["read_statistics", "write_statistics"]

KIND = "statistics"
# The attributes of LayerStatistics that are tensors, and those of RoutingStatistics that are numbers.
TENSORS = ("norm", "mean", "variance", "read_norm")
NUMBERS = ("count", "weight", "output_norm", "weighted_output_norm", "output_variance")


def write_statistics(path: str | os.PathLike[str], statistics: Sequence[FFNStatistics]) -> None:
    """Write statistics to a safetensors file.

    Parameters
    ----------
    path : path-like
        Replaced completely on success, not changed on failure.
    statistics : sequence of FFNStatistics
        Statistics without those of attentions, which cannot be written because they refer to modules of a model.

    Raises
    ------
    OptionError
        The statistics contain those of an attention.
    OSError
        The disk is full, or the system refuses.
    """
    if any(entry.attention is not None for entry in statistics):
        raise OptionError("statistics of attentions cannot be written to a file; leave attention out")
    tensors: dict[str, Any] = {}
    described, mixtures = [], dict.fromkeys(id(entry.mixture) for entry in statistics if entry.mixture is not None)
    mixture_numbers = {mixture: number for number, mixture in enumerate(mixtures)}
    for k, entry in enumerate(statistics):
        about: dict[str, Any] = {"skip": entry.skip}
        about["layers"] = [_add_layer(tensors, f"{k}.{n}", layer) for n, layer in enumerate(entry.layers)]
        if entry.routing is not None:
            about["routing"] = {name: getattr(entry.routing, name) for name in NUMBERS}
            tensors[f"{k}.weighted_norm"] = entry.routing.weighted_norm.numpy()
        if entry.mixture is not None:
            about["mixture"] = mixture_numbers[id(entry.mixture)]
            name = f"mixture.{about['mixture']}"
            sides = (("inputs", entry.mixture.inputs), ("outputs", entry.mixture.outputs))
            about["mixture_counts"] = [_add_layer(tensors, f"{name}.{side}", layer) for side, layer in sides]
        described.append(about)
    write_tensors(path, tensors, {"ffns": described}, KIND)


def read_statistics(path: str | os.PathLike[str]) -> tuple[FFNStatistics, ...]:
    """Read what :func:`write_statistics` has written.

    Raises
    ------
    graphs.GraphError
        The file is missing, damaged, or of another kind.
    OptionError
        Its checksum is right, and it does not hold statistics that fit each other.
    """
    meta, tensors = read_tensors(path, KIND)
    with refused_unless_sound(path, "measure the statistics again"):
        return _statistics_of(meta, tensors)


def _statistics_of(meta: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> tuple[FFNStatistics, ...]:
    """Return the statistics in the content of a file."""
    check_fields(meta, {"ffns": list})
    found, mixtures = [], {}
    for k, about in enumerate(meta["ffns"]):
        routing = mixture = None
        check_fields(about, {"skip": (*NUMBER, type(None)), "layers": list}, {"mixture": int, "mixture_counts": list})
        if "routing" in about:
            check_fields(about["routing"], {"count": int, **dict.fromkeys(NUMBERS[1:], NUMBER)})
            routing = RoutingStatistics(**about["routing"], weighted_norm=_vector(tensors, f"{k}.weighted_norm"))
        if "mixture" in about:
            number = about["mixture"]
            if number not in mixtures:
                sides = zip(("inputs", "outputs"), about["mixture_counts"], strict=True)
                mixtures[number] = MixtureStatistics(
                    *(_layer_of(tensors, f"mixture.{number}.{side}", count) for side, count in sides)
                )
            mixture = mixtures[number]
        layers = tuple(_layer_of(tensors, f"{k}.{n}", count) for n, count in enumerate(about["layers"]))
        found.append(FFNStatistics(layers, about["skip"], None, routing, mixture))
    return tuple(found)


def _add_layer(tensors: dict[str, Any], name: str, layer: LayerStatistics) -> int:
    """Add the tensors of a layer's statistics to `tensors`, and return their number of tokens."""
    tensors |= {f"{name}.{each}": getattr(layer, each).numpy() for each in TENSORS}
    return layer.count


def _layer_of(tensors: Mapping[str, np.ndarray[Any, Any]], name: str, count: int) -> LayerStatistics:
    """Return the statistics of a layer that :func:`_add_layer` has added."""
    if type(count) is not int or count < 0:
        raise ValueError(f"the number of tokens of {name} must be an integer >= 0, got {count!r}")
    norm, mean, variance, read_norm = (_vector(tensors, f"{name}.{each}") for each in TENSORS)
    if not len(norm) == len(mean) == len(variance) == len(read_norm):
        raise ValueError(f"the vectors of {name} differ in length")
    return LayerStatistics(norm, mean, variance, count, read_norm)


def _vector(tensors: Mapping[str, np.ndarray[Any, Any]], name: str) -> torch.Tensor:
    """Return a vector of statistics; they are finite, because others are refused when they are measured."""
    array = tensors[name]
    if array.ndim != 1 or array.dtype != np.float64 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a vector of finite float64, got {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array)
