"""Mixtures are found by their tensors, computed expert by expert, and refused where that would be something else."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from llmrank.errors import UnsupportedModelError
from llmrank.models import find_ffns
from llmrank.models.experts import by_expert, find_mixtures, route_around
from tests.llmrank.tiny_mixtures import MIXTURES, tiny_mixture
from tests.llmrank.tiny_models import Snapshot
from tests.tables import table

IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@table("name", MIXTURES)
def test_experts_one_by_one_compute_what_the_model_computes(name: str) -> None:
    model = tiny_mixture(name)
    snapshot, expected = Snapshot(model), logits(model)
    mixtures = find_mixtures(model)
    calls: list[int] = []
    for mixture in mixtures.values():
        mixture.experts[3].maps["down"].register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(logits(model), expected, rtol=0.0, atol=0.0)
    assert not calls
    with by_expert(mixtures.values()):
        torch.testing.assert_close(logits(model), expected, rtol=0.0, atol=2e-6)
    assert len(calls) == len(mixtures)
    torch.testing.assert_close(logits(model), expected, rtol=0.0, atol=0.0)
    snapshot.assert_restored()


@table("name", MIXTURES)
def test_a_router_passes_over_removed_experts_until_it_is_restored(name: str) -> None:
    model = tiny_mixture(name)
    expected = logits(model)
    mixtures = find_mixtures(model)
    keep = torch.tensor([True, False, True, True] * 2)
    hooks = ExitStack()
    for mixture in mixtures.values():
        route_around(mixture, keep, hooks)
    calls: list[int] = []
    for mixture in mixtures.values():
        for position in (1, 5):
            mixture.experts[position].maps["down"].register_forward_pre_hook(
                lambda _m, args: calls.append(len(args[0]))
            )
    with by_expert(mixtures.values()):
        assert not torch.allclose(logits(model), expected, atol=1e-3)
    assert not any(calls)
    hooks.close()
    torch.testing.assert_close(logits(model), expected, rtol=0.0, atol=0.0)


def test_top_k_groups_and_tensors_of_the_router() -> None:
    (mixture,) = find_mixtures(tiny_mixture("deepseek_v3")).values()
    assert (mixture.n_experts, mixture.top_k, mixture.n_groups, mixture.min_kept) == (8, 2, 2, 2)
    assert {(part.name, part.axis) for part in mixture.tensors_by_expert} == {
        ("weight", 0),
        ("e_score_correction_bias", 0),
    }
    assert mixture.router_name == "model.layers.1.mlp.gate"


def test_experts_that_compute_something_else_are_refused() -> None:
    model = tiny_mixture("mixtral")
    experts = model.model.layers[0].mlp.experts

    class Doubled(type(experts)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2.0 * super().forward(*args, **kwargs)

    experts.__class__ = Doubled
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.mlp\.experts \(Doubled\) .* computes something else"):
        find_ffns(model)


def test_a_mixture_without_a_router_beside_it_is_refused() -> None:
    model = tiny_mixture("mixtral")
    block = model.model.layers[0].mlp
    block.other = nn.Linear(32, 8)
    with pytest.raises(UnsupportedModelError, match=r"router was not found: .* found \['gate', 'other'\]"):
        find_ffns(model)
