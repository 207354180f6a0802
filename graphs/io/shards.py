"""Weights that stay on disk: tensors of safetensors files, mapped and read when they are multiplied.

A graph built from them takes no memory of its own for its edges: the system's page cache holds what was
read last and gives it up when others need room, so that a graph larger than memory can be ranked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open

from graphs.errors import GraphError

__all__ = ["open_tensors"]


def open_tensors(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Mapping[str, Any]:
    """The tensors of one or many safetensors files by name, mapped from disk.

    Parameters
    ----------
    source : path, or iterable of paths
        Files, or a directory, of which all ``*.safetensors`` files are taken (the shards of a checkpoint).

    Returns
    -------
    mapping from str to torch.Tensor
        On the CPU, in the dtype of the file. Nothing is read until a tensor is.

    Raises
    ------
    GraphError
        No such file, none in the directory, a damaged one, or a name that two files give.

    Notes
    -----
    Build graphs from them with ``check_finite=False``: the ranks refuse NaN at the first product, and a check
    of its own would read the whole disk once more. Files must not be changed while a graph refers to them.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"up": torch.eye(2)}, f"{folder}/model-00001-of-00002.safetensors")
    ...     save_file({"down": torch.ones(2, 2)}, f"{folder}/model-00002-of-00002.safetensors")
    ...     print(sorted(open_tensors(folder)))
    ['down', 'up']
    """
    tensors: dict[str, Any] = {}
    owner: dict[str, Path] = {}
    for path in _files(source):
        for name, tensor in _mapped(path).items():
            if name in tensors:
                raise GraphError(
                    f"{path} and {owner[name]} both hold a tensor {name!r}; expected shards of one checkpoint: pass the files "
                    "of one alone"
                )
            tensors[name], owner[name] = tensor, path
    return MappingProxyType(tensors)


def _mapped(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise GraphError(f"{path} cannot be read ({error}); expected a safetensors file: write it again") from error


def _files(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    given = [Path(source)] if isinstance(source, (str, os.PathLike)) else [Path(path) for path in source]
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            shards = sorted(path.glob("*.safetensors"))
            if not shards:
                raise GraphError(f"no *.safetensors file in {path}; expected a checkpoint in that format")
            found += shards
        elif path.is_file():
            found.append(path)
        else:
            raise GraphError(f"no file or directory {path}; expected safetensors files")
    if not found:
        raise GraphError("expected at least one safetensors file, got none")
    return found
