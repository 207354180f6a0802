"""Descriptions of a model, its graphs, its neurons and the machine, as values for a report."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphs import RankResult
from llmrank.models import FFNs
from llmrank.models.forward import input_device
from llmrank.prune import BasePruner
from llmrank.prune.masks import Masks
from llmrank.score.model_graph import ModelGraph
from llmrank.version import __version__

__all__ = [
    "describe_graphs",
    "describe_model",
    "describe_neurons",
    "dtype_name",
    "environment",
    "model_source",
]


def environment() -> dict[str, str]:
    """Return the versions of packages, and the facts of the machine, that can change results."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "numpy", "scipy", "safetensors")}
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {
        **versions,
        "llmrank": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "blas": blas.group(1) if blas else "unknown",
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def describe_model(model: nn.Module, ffns: FFNs) -> dict[str, Any]:
    """Describe a model and what was found in it."""
    attentions = [ffn.name for ffn in ffns.attentions]
    return {
        "source": model_source(model),
        "class": type(model).__name__,
        "ffns": len(ffns) - len(attentions),
        **({"attentions": attentions} if attentions else {}),
        "kinds": sorted({ffn.kind for ffn in ffns}),
        "device": str(input_device(model)),
        "dtype": dtype_name(model),
    }


def describe_graphs(model_graphs: Sequence[ModelGraph], ranks: Sequence[RankResult]) -> dict[str, Any]:
    """Describe the sizes of the graphs, and how they were ranked."""
    graphs = [entry.graph for entry in model_graphs]
    return {
        "graphs": len(graphs),
        "layers": sum(len(graph.layer_sizes) for graph in graphs),
        "nodes": sum(graph.n_nodes for graph in graphs),
        "edges_at_most": sum(graph.capacity for graph in graphs),
        "solver": ranks[0].solver,
        "backend": ranks[0].backend,
        "iterations": max(rank.iterations for rank in ranks),
        "converged": all(rank.converged for rank in ranks),
        "error_bound": max(rank.error_bound for rank in ranks),
    }


def describe_neurons(masks: Masks, pruner: BasePruner, ffns: FFNs) -> dict[str, Any]:
    """Describe how many neurons there are, how many were to be removed, and how many are removed; heads are counted apart."""
    heads = {ffn.name: ffn.heads for ffn in ffns.attentions if ffn.heads is not None}
    of_ffns = Masks({name: mask for name, mask in masks.items() if name not in heads})
    n_heads = sum(each.n_heads for each in heads.values())
    n_kept = sum(each.counts(masks.widths[name])[0] for name, each in heads.items())
    of_heads = {"before": n_heads, "removed": n_heads - n_kept}
    left_out = [block.name for block in masks.left_out(ffns.layers.values())]
    of_blocks: dict[str, Any] = {"before": len(ffns.blocks), "removed": len(left_out), "left_out": left_out}
    unit = "rows of the listed Linears" if ffns.explicit else "hidden neurons"
    counts: dict[str, Any]
    if ffns.blocks:
        unit, counts = "blocks", of_blocks
    elif of_ffns:
        counts = {"before": of_ffns.size, "removed": of_ffns.size - of_ffns.kept}
    else:
        unit, counts = "heads", of_heads
    return {
        "unit": unit,
        **counts,
        **({"heads": of_heads} if heads and of_ffns else {}),
        "amount_asked": pruner.amount,
        "amount_of": pruner.amount_of,
        "share_reached": counts["removed"] / counts["before"],
        "widths": masks.widths,
    }


def dtype_name(model: nn.Module) -> str:
    """Return the dtype of a model's first parameter, such as ``float32``."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def model_source(model: nn.Module) -> str:
    """Return a model's hub name, the last part of its path (reports should name no local folders), or its class."""
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    is_path = Path(name).exists() or Path(name).is_absolute() or name.startswith(".")
    return Path(name).name if is_path else name
