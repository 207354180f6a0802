"""The agreement of keep masks against chance."""

from __future__ import annotations

import random

import pytest

from llmrank.inspection.difference import LayerDifference


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
