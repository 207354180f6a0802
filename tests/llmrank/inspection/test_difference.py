"""The agreement of keep masks against chance."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from llmrank import Masks
from llmrank.inspection.difference import LayerDifference, Run, compare_runs


def layer(a: list[bool], b: list[bool]) -> LayerDifference:
    pairs = list(zip(a, b, strict=True))
    counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True))]
    return LayerDifference(len(a), (sum(a), sum(b)), *counts)


def test_kappa_against_its_definition() -> None:
    generator = random.Random(0)
    a, b = ([generator.random() < share for _ in range(50)] for share in (0.7, 0.4))
    agreed = sum(x == y for x, y in zip(a, b, strict=True)) / 50
    # The share of all pairs of an entry of a and an entry of b that are equal.
    chance = sum(x == y for x in a for y in b) / 50**2
    assert layer(a, b).kappa == pytest.approx((agreed - chance) / (1 - chance))
    assert layer(a, b).expected == pytest.approx(sum(x and y for x in a for y in b) / 50)


def test_equal_and_opposite_masks() -> None:
    mask = [True, False, True, False]
    assert layer(mask, mask).kappa == 1
    assert layer(mask, [not each for each in mask]).kappa == -1
    assert layer([True] * 4, [True] * 4).kappa is None
    assert layer([True] * 4, mask).kappa == 0


@pytest.mark.parametrize("targets", [["experts"], ["neurons"]])
def test_chance_says_nothing_of_whole_experts(targets: list[str]) -> None:
    report = {"model": {}, "method": {"targets": targets}, "neurons": {}}
    masks = Masks({"0": torch.ones(4, dtype=torch.bool), "1": torch.zeros(4, dtype=torch.bool)})
    found = compare_runs(*(Run(Path(name), report, masks, {}) for name in ("a", "b")))
    assert [each.expected for each in found.layers.values()] == [4, 0]  # as many as both keep
    assert [note.startswith("experts were removed as wholes") for note in found.notes] == [True] * (
        targets == ["experts"]
    )
