"""Multilayer perceptrons written by hand: a trial run finds their chain, and they are pruned like other FFNs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from llmrank.errors import UnsupportedModelError
from llmrank.models import find_ffns
from llmrank.models.finding.tracing import is_odd_in, linear_chain
from llmrank.prune import GlobalPruner, LocalPruner
from llmrank.repair import LeastSquaresRepair
from tests.llmrank.plain_pipelines import IsolatedFFNPipeline
from tests.llmrank.tiny_models import Snapshot, features, mlp
from tests.tables import table


class Gated(nn.Module):
    """A gated FFN whose up map is registered in front of its gate, or whose up half comes first."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor] = functional.silu, *, fused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.act, self.fused = act, fused
        if fused:
            self.both = nn.Linear(6, 20)
        else:
            self.up, self.gate = nn.Linear(6, 10), nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, gate = self.both(x).chunk(2, -1) if self.fused else (self.up(x), self.gate(x))
        out: torch.Tensor = self.down(self.act(gate) * up)
        return out


class ByHand(nn.Module):
    """Linears that run in another order than they are defined in, with functions between them."""

    def __init__(self, *sizes: int, flatten: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.flatten = flatten
        self.n = len(sizes) - 1
        for k in reversed(range(self.n)):
            self.add_module(f"fc{k}", nn.Linear(sizes[k], sizes[k + 1]))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.flatten(x, 1) if self.flatten else x
        for k in range(self.n - 1):
            x = self.drop(functional.gelu(getattr(self, f"fc{k}")(x)))
        out: torch.Tensor = getattr(self, f"fc{self.n - 1}")(x)
        return out


class Between(nn.Module):
    """Three Linears, with a module of the test's choice between the first two or around the second."""

    def __init__(self, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x))
        out: torch.Tensor = self.third(self.join(hidden, torch.relu(self.second(hidden))))
        return out


class Twice(nn.Module):
    """A linear map that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.middle(torch.relu(self.middle(torch.relu(self.first(x))))))
        out: torch.Tensor = self.last(hidden)
        return out


class Noisy(nn.Sequential):
    """A module that draws a random number in every forward pass, in evaluation mode too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(1)
        out: torch.Tensor = super().forward(x)
        return out


def nested() -> nn.Module:
    torch.manual_seed(1)
    blocks = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in ((6, 12), (12, 10))]
    return nn.Sequential(*blocks, nn.Linear(10, 4))


def linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: ByHand(6, 12, 4), ["fc0", "fc1"]),
        (lambda: ByHand(6, 12, 10, 4), ["fc0", "fc1", "fc2"]),
        (lambda: ByHand(6, 12, 10, 9, 8, 7, 4), ["fc0", "fc1", "fc2", "fc3", "fc4", "fc5"]),
        (nested, ["0.0", "1.0", "2"]),
    ],
    ids=["2", "3", "6", "nested"],
)
@pytest.mark.parametrize("pruner", [LocalPruner(0.4), GlobalPruner(0.4)], ids=["local", "global"])
def test_the_pruned_model_computes_the_part_of_the_kept_neurons(
    make: Callable[[], nn.Module], names: list[str], pruner: LocalPruner | GlobalPruner
) -> None:
    model, x = make().eval(), features(40, 6, seed=3)
    snapshot, n_before = Snapshot(model), sum(p.numel() for p in model.parameters())
    run = IsolatedFFNPipeline(model, None, pruner=pruner, calibration=features(300, 6))
    run.run()
    assert run.masks is not None
    assert list(run.masks) == names[:-1]
    assert run.masks.removed_share == pytest.approx(0.4, abs=0.05)
    smaller, n_after = model(x).detach(), sum(p.numel() for p in model.parameters())
    sizes = [6, *run.masks.widths.values(), 4]
    assert n_after == sum(a * b + b for a, b in pairwise(sizes)) < n_before
    run.undo()
    snapshot.assert_restored()
    # By hand: in the dense model, the columns that read the removed neurons are set to zero.
    with torch.no_grad():
        for name, reader in pairwise(names):
            linears(model)[reader].weight[:, ~run.masks[name]] = 0
        torch.testing.assert_close(smaller, model(x), rtol=1e-5, atol=1e-6)


def test_images_are_accepted_in_their_own_shape() -> None:
    model = ByHand(6, 12, 10, 4, flatten=True).eval()
    run = IsolatedFFNPipeline(model, None, pruner=LocalPruner(0.5), calibration=features(300, 6).reshape(300, 1, 2, 3))
    run.run()
    assert (model.fc0.out_features, model.fc1.in_features, model.fc1.out_features) == (6, 6, 5)
    assert model(features(2, 6).reshape(2, 1, 2, 3)).shape == (2, 4)


def test_repair_brings_a_deep_mlp_closer_to_its_dense_outputs() -> None:
    x, given = features(400, 6, seed=5), features(2000, 6)
    missed = {}
    for repair in (None, LeastSquaresRepair()):
        model = ByHand(6, 24, 24, 24, 4).eval()
        dense = model(x).detach()
        IsolatedFFNPipeline(model, None, pruner=LocalPruner(0.3), calibration=given, repair=repair).run()
        missed[repair is None] = float((model(x).detach() - dense).square().mean())
    assert missed[False] < 0.5 * missed[True]


def test_the_model_and_the_random_state_are_not_changed() -> None:
    model = ByHand(6, 12, 4).train()
    model.drop.eval()
    snapshot, state = Snapshot(model), torch.get_rng_state()
    assert [ffn.sizes for ffn in find_ffns(model)] == [(6, 12, 4)]
    snapshot.assert_restored()
    assert torch.equal(state, torch.get_rng_state())
    assert (model.training, model.fc0.training, model.drop.training) == (True, True, False)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_modules_that_draw_random_numbers_do_not_change_the_random_state() -> None:
    model = Noisy(*mlp(6, 12, 4))
    state = torch.get_rng_state()
    assert linear_chain(model, linears(model)) == ("0", "2")
    assert torch.equal(state, torch.get_rng_state())
    assert [ffn.sizes for ffn in find_ffns(model)] == [(6, 12, 4)]
    assert torch.equal(state, torch.get_rng_state())


def test_the_largest_chain_that_runs_is_found() -> None:
    model = nn.ModuleDict({"tower": nn.ModuleDict({"net": ByHand(6, 12, 4)}), "other": ByHand(5, 7, 3)})
    assert [(ffn.name, ffn.sizes) for ffn in find_ffns(model)] == [("tower.net", (6, 12, 4)), ("other", (5, 7, 3))]


@table(
    "make",
    [
        lambda: Between(lambda hidden, out: hidden + out),
        lambda: Between(lambda hidden, out: out.softmax(dim=-1)),
        lambda: Between(lambda hidden, out: functional.layer_norm(out, (8,))),
        lambda: Between(lambda hidden, out: out.flip(-1)),
        lambda: Between(lambda hidden, out: out[..., [1, 0, *range(2, 8)]]),
        lambda: Between(lambda hidden, out: out * hidden.mean()),
        Twice,
    ],
)
def test_hidden_layers_with_another_reader_are_no_chain(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert linear_chain(model, linears(model)) is None
    with pytest.raises(UnsupportedModelError, match="no feed-forward network"):
        find_ffns(model)


def test_linears_without_functions_between_are_a_chain() -> None:
    model = Between(lambda hidden, out: out)
    assert linear_chain(model, linears(model)) == ("first", "second", "third")


def test_linears_without_data_are_not_run() -> None:
    with torch.device("meta"):
        model = ByHand(6, 12, 4)
    assert linear_chain(model, linears(model)) is None
    assert linear_chain(mlp(3, 4), {"0": mlp(3, 4)[0]}) is None


@table("fused", [False, True])
@table("act", [functional.silu, functional.gelu, functional.relu, torch.sigmoid])
def test_the_gate_comes_first_wherever_it_is_registered(act: Callable[..., torch.Tensor], fused: bool) -> None:
    (ffn,) = find_ffns(Gated(act, fused=fused))
    gate, up = ffn.stages[0]
    assert (gate.name, gate.start, up.start) == (("both", 10, 0) if fused else ("gate", 0, 0))


def test_the_registered_order_stays_where_a_trial_run_does_not_tell_the_gate() -> None:
    (ffn,) = find_ffns(Gated(torch.tanh))  # the product is odd in both
    assert [linear_map.name for linear_map in ffn.stages[0]] == ["up", "gate"]


def test_a_map_whose_module_does_not_run_is_not_odd() -> None:
    class Fails(Gated):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError(x.shape)

    module = Fails()
    assert not is_odd_in(module, module.up, slice(0, 10), module.down)


def test_pruning_keeps_the_neurons_of_an_ffn_whose_up_half_comes_first() -> None:
    module = Gated(fused=True)
    x = features(8, 6)
    with torch.no_grad():
        module.both.weight[[3, 13]] = 0.0
        module.both.bias[[3, 13]] = 0.0
        before = module(x)
    IsolatedFFNPipeline(module, None, pruner=LocalPruner(1), calibration=x).run()
    assert module.down.in_features == 9
    torch.testing.assert_close(module(x), before)
