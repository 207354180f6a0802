"""Parts that are removed in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llmrank.models import PrunableLayer
from llmrank.pipeline.closeness.removal import losses_in_turn
from llmrank.prune.masks import Masks

PARTS = {name: [PrunableLayer(name, 2, (), ())] for name in "abcd"}
NONE = Masks({name: torch.zeros(2, dtype=torch.bool) for name in PARTS})
ALONE = {"a": 1.0, "b": 1.1, "c": 1.5, "d": 9.0}


class Reference:
    """Stands for the dense model: parts add up, but a and b do the same work."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def outputs(self, masks: Masks) -> str:
        return "".join(name for name in PARTS if not bool(masks[name].any()))

    def distances(self, models: list[str]) -> list[tuple[list[float], list[int]]]:
        (gone,) = models
        self.asked.append(gone)
        return [([sum(ALONE[name] for name in gone) + 5.0 * ({"a", "b"} <= set(gone))], [1])]


def in_turn(count: int, masks: Masks = NONE, **options: Any) -> tuple[dict[str, float], list[str]]:
    reference = Reference()
    return losses_in_turn(reference, PARTS, masks, ALONE, count, **options), reference.asked  # type: ignore[arg-type]


def test_a_part_that_others_have_made_dear_is_passed_over() -> None:
    losses, asked = in_turn(2)
    assert sorted(losses, key=losses.__getitem__) == ["a", "c", "b", "d"]
    assert [losses[name] for name in "acb"] == pytest.approx([1.0, 1.5, 6.1])
    assert asked == ["a", "ab", "ac"]  # d is never measured: its loss alone is a bound


def test_parts_that_do_not_fit_and_parts_that_stay_are_not_removed() -> None:
    def fits(names: Sequence[str]) -> bool:
        return "c" not in names

    losses, _ = in_turn(2, fits=fits)
    assert sorted(losses, key=losses.__getitem__) == ["a", "b", "d", "c"]
    whole = Masks({**NONE, "a": torch.ones(2, dtype=torch.bool)})
    losses, asked = in_turn(1, whole)
    assert losses["a"] == 0.0
    assert asked == ["b"]


def test_all_parts_can_be_asked_for() -> None:
    losses, _ = in_turn(4)
    assert sorted(losses, key=losses.__getitem__) == ["a", "c", "b", "d"]
    assert sum(losses.values()) == pytest.approx(1.0 + 1.5 + 6.1 + 9.0)
