"""Masks: their algebra, intact and damaged files, and masks of another model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from graphs.io.tensor_files import write_tensors
from llmrank.errors import MaskError, OptionError
from llmrank.models import find_ffns
from llmrank.prune.masks import Masks
from llmrank.surgery.apply import apply_masks
from llmrank.surgery.forms import FORMS
from tests.llmrank.tiny_models import Snapshot, tiny_llama
from tests.tables import table

SIZES = st.dictionaries(st.text("abc.0", min_size=1, max_size=4), st.integers(0, 6), max_size=4)


@st.composite
def three(draw: st.DrawFn) -> tuple[Masks, Masks, Masks]:
    """Make three masks of the same layers."""
    sizes = draw(SIZES)
    bits = {name: st.lists(st.booleans(), min_size=n, max_size=n) for name, n in sizes.items()}
    first, second, third = (
        Masks({name: torch.tensor(draw(b), dtype=torch.bool) for name, b in bits.items()}) for _ in range(3)
    )
    return first, second, third


@given(three())
def test_algebra(masks: tuple[Masks, Masks, Masks]) -> None:
    a, b, c = masks
    assert ~~a == a
    assert ~(a & b) == ~a | ~b
    assert ~(a | b) == ~a & ~b
    assert a & b == b & a
    assert a | b == b | a
    assert (a & b) & c == a & (b & c)
    assert a & (b | c) == (a & b) | (a & c)
    assert a & (a | b) == a
    full = Masks.full({name: len(mask) for name, mask in a.items()})
    assert a & full == a
    assert a | ~a == full
    assert (a & ~a).kept == 0


@given(three())
def test_counts(masks: tuple[Masks, Masks, Masks]) -> None:
    a, b, _ = masks
    assert a.kept + (~a).kept == a.size
    assert a.kept + b.kept == (a & b).kept + (a | b).kept
    assert a.kept == sum(a.widths.values())
    assert a.removed_share == pytest.approx(1 - a.kept / a.size if a.size else 0.0)
    for name in a:
        assert sorted(a.removed(name) + (~a).removed(name)) == list(range(len(a[name])))


@given(three())
def test_equal_masks_hash_alike(masks: tuple[Masks, Masks, Masks]) -> None:
    a, b, _ = masks
    again = Masks({name: a[name] for name in reversed(list(a))})
    assert again == a
    assert hash(again) == hash(a)
    assert (a == b) == all(torch.equal(a[name], b[name]) for name in a)
    assert a != dict(a)


def test_masks_of_different_layers_do_not_combine() -> None:
    with pytest.raises(MaskError, match="different layers"):
        _ = Masks({"a": [1, 0]}) & Masks({"b": [1, 0]})
    with pytest.raises(MaskError, match="different layers"):
        _ = Masks({"a": [1, 0]}) | Masks({"a": [1, 0, 1]})


def test_later_writes_into_the_source_do_not_reach_the_masks() -> None:
    source = torch.tensor([True, False])
    masks = Masks({"a": source})
    source[0] = False
    assert masks["a"].tolist() == [True, False]


@table("value", [torch.ones(2, 2, dtype=torch.bool), torch.ones(3), [0.5, 1.0], [0, 2], torch.tensor(1), [-1, 1]])
def test_bad_masks_are_refused(value: Any) -> None:
    with pytest.raises(MaskError, match="mask of mlp"):
        Masks({"mlp": value})


def test_what_holds_no_masks_or_is_no_layer_is_refused() -> None:
    for value in ("ab", 5, [True], np.zeros(2)):
        with pytest.raises(OptionError, match="keep must be a mapping from names of layers to keep masks"):
            Masks(value)  # type: ignore[arg-type]
    for name in ("nowhere", 0, ["a"]):
        with pytest.raises(MaskError, match=r"there is no layer .*; the masks are those of mlp"):
            Masks({"mlp": [True, False]}).removed(name)  # type: ignore[arg-type]


@given(three())
def test_files_round_trip(masks: tuple[Masks, Masks, Masks]) -> None:
    # Hypothesis forbids tmp_path, which would be one directory for all examples.
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "masks.safetensors"
        masks[0].save(path)
        again = Masks.load(path)
        assert again == masks[0]
        assert {name: vector.dtype for name, vector in load_file(path).items()} == dict.fromkeys(masks[0], torch.uint8)


@table(
    ("meta", "message"),
    [
        (None, "is not a mask file"),
        (json.dumps({"kind": "graph", "version": 1}), "is not a mask file"),
        (json.dumps({"kind": "mask", "version": 2}), "format version 2, this package reads 1"),
        (json.dumps({"kind": "mask", "version": 1}), "checksum"),
    ],
)
def test_foreign_headers_are_refused(tmp_path: Path, meta: str | None, message: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.tensor([1, 0], dtype=torch.uint8)}, path, None if meta is None else {"meta": meta})
    with pytest.raises(MaskError, match=message):
        Masks.load(path)


@table("array", [np.ones(2), np.ones((2, 2), np.uint8), np.array([3, 1])])
def test_foreign_tensors_are_refused(tmp_path: Path, array: Any) -> None:
    path = tmp_path / "m.safetensors"
    write_tensors(path, {"a": array}, {}, "mask")
    with pytest.raises(MaskError, match="mask of a"):
        Masks.load(path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(MaskError, match="no mask file at"):
            Masks.load(path)
    (tmp_path / "text").write_text("keep everything")
    with pytest.raises(MaskError, match="cannot be read"):
        Masks.load(tmp_path / "text")


@table("form", FORMS)
@table(
    ("sizes", "message"),
    [
        ({"transformer.h.0.mlp": 40, "transformer.h.1.mlp": 40}, "do not fit this model"),
        ({"model.layers.0.mlp": 40}, "1 layer.* without a mask"),
        ({"model.layers.0.mlp": 40, "model.layers.1.mlp": 40, "model.layers.2.mlp": 40}, "1 layer.* not in it"),
        ({"model.layers.0.mlp": 40, "model.layers.1.mlp": 41}, "has 41 entries, the layer 40 neurons"),
    ],
)
def test_masks_of_another_model_are_refused(form: Any, sizes: dict[str, int], message: str) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    with pytest.raises(MaskError, match=message):
        apply_masks(model, find_ffns(model), Masks.full(sizes), form)
    snapshot.assert_restored()


@pytest.mark.parametrize("form", FORMS)
def test_empty_layer_is_refused(form: Any) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    keep = Masks({"model.layers.0.mlp": [1] * 40, "model.layers.1.mlp": [0] * 40})
    with pytest.raises(MaskError, match=r"the mask of model\.layers\.1\.mlp keeps no neuron"):
        apply_masks(model, find_ffns(model), keep, form)
    snapshot.assert_restored()


def test_repr_counts() -> None:
    assert repr(Masks({"a": [1, 0], "b": [1, 1]})) == "Masks(2 layers, 3 of 4 neurons kept)"
    assert not Masks({"a": [1, 0], "b": [1, 1]}).is_uniform
    assert Masks({"a": [1, 0], "b": [0, 1]}).is_uniform
