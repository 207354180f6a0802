"""What is found in mixtures of experts, however a model stores them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.tiny_configs import tiny_model
from llmrank import prune_model
from llmrank.errors import OptionError, UnsupportedModelError
from llmrank.models import find_ffns


class SharedExperts(nn.Module):
    """An ordinary gated FFN with the name of a mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 10), nn.Linear(4, 10), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down(torch.relu(self.gate(x)) * self.up(x))
        return output


class WithRouter(SharedExperts):
    """A gated FFN that holds a router and embeddings beside its maps."""

    def __init__(self, n_keys: int = 6) -> None:
        super().__init__()
        self.router, self.embeddings = nn.Linear(4, n_keys, bias=False), nn.Embedding(9, 4)


def test_an_ordinary_ffn_may_be_named_after_experts() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"shared_experts": SharedExperts()}) for _ in "ab"])})
    assert [(ffn.name, ffn.kind) for ffn in find_ffns(model)] == [
        ("layers.0.shared_experts", "gated"),
        ("layers.1.shared_experts", "gated"),
    ]
    model.layers[1].shared_experts.extra = nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(
        UnsupportedModelError, match=r"stores its experts in a way that is not known \(layers.1.shared_experts"
    ):
        find_ffns(model)


def test_a_gated_ffn_may_hold_maps_of_other_sizes() -> None:
    found = find_ffns(nn.ModuleDict({"layers": nn.ModuleList([WithRouter(), WithRouter()])}))
    assert [(ffn.name, ffn.kind, ffn.sizes) for ffn in found] == [
        ("layers.0", "gated", (4, 10, 4)),
        ("layers.1", "gated", (4, 10, 4)),
    ]
    assert [linear_map.name for stage in found[0].stages for linear_map in stage] == [
        "layers.0.gate",
        "layers.0.up",
        "layers.0.down",
    ]


def test_no_gated_ffn_is_found_if_another_map_is_as_wide() -> None:
    with pytest.raises(UnsupportedModelError, match="found no feed-forward network"):
        find_ffns(nn.ModuleDict({"layers": nn.ModuleList([WithRouter(n_keys=10), WithRouter(n_keys=10)])}))


@pytest.mark.parametrize("model_type", ["zaya", "longcat_flash", "hunyuan_v1_moe, one expert"])
def test_experts_of_routers_with_other_rows_lose_neurons_only(model_type: str) -> None:
    model = tiny_model(model_type)
    ffns = find_ffns(model)
    assert any(ffn.is_routed for ffn in ffns)
    ids = torch.randint(4, 99, (3, 16), generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        OptionError, match=r"no expert of model.layers.0.mlp.experts can be removed: its router .* is no matrix"
    ):
        prune_model(model, None, 0.25, targets="experts", repair="none", calibration=ids)
    pruned = prune_model(model, None, 0.25, repair="lstsq", calibration=ids)
    assert pruned.report.neurons["removed"] > 0
