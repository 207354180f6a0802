"""Changes of what a file holds, with a checksum that is right again, so that what stands behind its comparison is reached."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from graphs.io.tensor_files import write_tensors
from llmrank.execution.json_files import checked_json, write_json
from tests.llmrank.rewriting import note_checksum

__all__ = ["rewrite"]

VALUES = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    0.5,
    10**20,
    1e308,
    float("nan"),
    "",
    "x",
    "0",
    [],
    {},
    [1, 2],
    {"a": {"b": 1}},
)
DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool")
# The files that hold the checksums of others.
MANIFESTS = ("ranking.json", "progress.json")


def rewrite(path: Path, rng: random.Random) -> str:
    """Change one entry of the content of a file, and return how; empty if its format is not known, and nothing changed."""
    way = ""
    if path.suffix == ".json":
        way = _json(path, rng)
    elif path.suffix == ".jsonl":
        way = _lines(path, rng)
    elif path.suffix == ".safetensors":
        way = _tensors(path, rng)
    elif path.suffix == ".npz":
        way = _npz(path, rng)
    if way and path.name not in MANIFESTS:
        note_checksum(path)
    return way


def change(content: Any, rng: random.Random) -> str:
    """Change one entry of nested lists and dicts in place, and return how."""
    places: list[Any] = [each for each in nested(content) if each]
    if not places:
        return ""
    place = rng.choice(places)
    key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    way = rng.choice(["drop", "replace", "replace", "rename", "double", "wrap"])
    before = place.pop(key)
    if way == "drop":
        return f"dropped {key}"
    if way == "double" and isinstance(before, (list, str)):
        after = before + before
    elif way == "rename" and isinstance(place, dict):
        place[f"{key}x"] = before
        return f"renamed {key}"
    else:
        after = [before] if way == "wrap" else rng.choice(VALUES)
    if isinstance(place, dict):
        place[key] = after
    else:
        place.insert(key, after)
    return f"set {key} to {str(after)[:40]}"


def nested(content: Any) -> list[Any]:
    """Return all lists and dicts in a content, itself too."""
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list) else None
    return [] if inside is None else [content, *(place for each in inside for place in nested(each))]


def changed_array(array: Any, rng: random.Random) -> tuple[str, Any]:
    """Return an array of another shape, dtype or content, and how it was changed."""
    way = rng.choice(["shorter", "longer", "flat", "axis", "transposed", "dtype", "empty", "filled", "negated"])
    if way == "shorter":
        return way, array[:-1] if array.ndim else array
    if way == "longer":
        return way, np.concatenate([array, array[:1]]) if array.ndim else array
    if way in ("flat", "axis", "transposed"):
        return way, array.ravel() if way == "flat" else array[None] if way == "axis" else array.T
    if way == "dtype":
        dtype = rng.choice(DTYPES)
        with np.errstate(all="ignore"):
            return dtype, array.astype(dtype)
    if way == "empty":
        return way, array[:0] if array.ndim else array
    if way == "filled":
        value = rng.choice([-1, 0, 100, float("nan"), float("inf")] if array.dtype.kind == "f" else [0, 1, 100])
        return f"filled with {value}", np.full_like(array, value)
    return way, ~array if array.dtype == bool else np.negative(array)


def change_arrays(arrays: dict[str, Any], rng: random.Random) -> str:
    """Change one of several arrays in place, and return how."""
    name = rng.choice(sorted(arrays))
    way = rng.choice(["drop", "rename", "change", "change", "change"])
    if way == "change":
        how, arrays[name] = changed_array(arrays[name], rng)
        return f"{how} {name}"
    array = arrays.pop(name)
    if way == "rename":
        arrays[f"{name}x"] = array
    return f"{way} {name}"


def _json(path: Path, rng: random.Random) -> str:
    content = json.loads(path.read_bytes())
    is_checked = isinstance(content, dict) and content.pop("crc32", None) is not None
    way = change(content, rng)
    if is_checked:
        write_json(path, content, allow_nan=True)
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return way


def _lines(path: Path, rng: random.Random) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    number = rng.randrange(len(lines))
    content = json.loads(lines[number])
    is_checked = content.pop("crc32", None) is not None
    way = change(content, rng)
    lines[number] = checked_json(content, allow_nan=True) if is_checked else json.dumps(content)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"in line {number + 1} {way}" if way else ""


def _tensors(path: Path, rng: random.Random) -> str:
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, TypeError):
        return ""
    meta = json.loads(header.get("meta", "null"))
    if meta is None:
        way = change_arrays(arrays, rng) if arrays else ""
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, header or None)
        return way
    kind, version = meta.pop("kind"), meta.pop("version")
    is_meta = bool(meta) and rng.random() < 0.5
    way = change(meta, rng) if is_meta else change_arrays(arrays, rng) if arrays else ""
    write_tensors(path, arrays, meta, kind, version)
    return way


def _npz(path: Path, rng: random.Random) -> str:
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(arrays.pop("meta").tobytes())
    way = change(meta, rng) if rng.random() < 0.5 else change_arrays(arrays, rng)
    with path.open("wb") as file:
        np.savez(file, meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8), **arrays)
    return way
