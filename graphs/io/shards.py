"""Weights that stay on disk: tensors of safetensors files, mapped into memory and read when they are multiplied.

A graph of such weights may be larger than memory, as long as its blocks stay dense: their CSR form would be kept in memory.
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
    """Map the tensors of one or many safetensors files from disk, by name.

    Parameters
    ----------
    source : path, or iterable of paths
        Files or directories. All ``*.safetensors`` files of a directory (the shards of a checkpoint) are mapped.

    Returns
    -------
    mapping from str to torch.Tensor
        On the CPU, in the dtype of the file. A tensor is read from disk when it is used.

    Raises
    ------
    GraphError
        A file does not exist or is damaged, a directory has no such files, no path is given, or a name occurs in two files.

    Notes
    -----
    Build graphs from these tensors with ``check_finite=False``, because this check would read all files once more. The files must
    not change while a graph refers to them.

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
    path_of: dict[str, Path] = {}
    for path in _files(source):
        for name, tensor in _map_tensors(path).items():
            if name in tensors:
                raise GraphError(
                    f"{path} and {path_of[name]} both hold a tensor {name!r}; expected the shards of one checkpoint: pass "
                    "its files only"
                )
            tensors[name], path_of[name] = tensor, path
    return MappingProxyType(tensors)


def _map_tensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise GraphError(f"{path} cannot be read ({error}); expected a safetensors file: write it again") from error


def _files(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    paths = [Path(source)] if isinstance(source, (str, os.PathLike)) else [Path(path) for path in source]
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            shards = sorted(path.glob("*.safetensors"))
            if not shards:
                raise GraphError(f"no *.safetensors file in {path}; expected a checkpoint in that format")
            files += shards
        elif path.is_file():
            files.append(path)
        else:
            raise GraphError(f"no file or directory {path}; expected safetensors files")
    if not files:
        raise GraphError("expected at least one safetensors file, got none")
    return files
