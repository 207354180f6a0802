"""Scores and masks of the published implementation; these tests need a directory with its golden vectors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from graphs import LayeredGraph
from llmrank.prune import BasePruner, GlobalPruner, LayerRecord, LocalPruner
from llmrank.prune.masks import Masks
from llmrank.score import (
    ActivationScorer,
    BaseScorer,
    ModifiedPageRankScorer,
    NormScorer,
    WandaScorer,
    WeightedPageRankScorer,
)
from tests.pairwise import pairs
from tests.tables import table

DIRECTORY = os.environ.get("LLMRANK_GOLDEN")
CASES = ["dense", "sparse", "dead_column", "wide"]
SCORERS = [
    *("norm", "activation", "wanda", "mpr", "mpr_z0.3"),
    *("wpr_g0_t0.5", "wpr_g0.5_t0.5", "wpr_g0.85_t1", "wpr_g0.9_t0", "wpr_g1_t0.5"),
]
RANKS = [name for name in SCORERS if name.startswith(("mpr", "wpr"))]

pytestmark = pytest.mark.skipif(
    DIRECTORY is None, reason="LLMRANK_GOLDEN does not name a directory with rank_scores.safetensors"
)
every_case = pytest.mark.parametrize("case", CASES)
every_topology = pytest.mark.parametrize("topology", ["chained", "isolated"])


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    assert DIRECTORY is not None
    with safe_open(Path(DIRECTORY) / "rank_scores.safetensors", framework="pt") as file:
        tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return {**tensors, "meta": json.loads(file.metadata()["meta"])}


def make(name: str, **options: Any) -> BaseScorer:
    """Make a scorer from its name in the golden file: mpr_z0.3, wpr_g0.5_t1."""
    kind, *knobs = name.split("_")
    values = {knob[0]: float(knob[1:]) for knob in knobs}
    if kind == "wpr":
        return WeightedPageRankScorer(values["g"], values["t"], **options)
    if kind == "mpr":
        return ModifiedPageRankScorer(values.get("z", 0.0), **options)
    return {"norm": NormScorer(p=1.0), "activation": ActivationScorer(), "wanda": WandaScorer()}[kind]


def groups(golden: dict[str, Any], case: str, topology: str) -> Iterator[range]:
    """Yield the blocks of each graph: all blocks, or the two of one FFN."""
    n_blocks = golden["meta"]["cases"][case]["n_blocks"]
    step = n_blocks if topology == "chained" else 2
    return (range(start, start + step) for start in range(0, n_blocks, step))


def graph_of(golden: dict[str, Any], case: str, blocks: range) -> LayeredGraph:
    return LayeredGraph.from_weights(
        [golden[f"{case}.weight.{i}"] for i in blocks],
        golden[f"{case}.in_activation.{blocks[0]}"],
        [golden[f"{case}.out_activation.{i}"] for i in blocks],
    )


def walked(golden: dict[str, Any], case: str, topology: str, name: str) -> list[torch.Tensor]:
    """Compute the importance of every block with `score`, as `rank` does, with the input activations of the file."""
    scorer, result = make(name), []
    for blocks in groups(golden, case, topology):
        inputs = golden[f"{case}.in_activation.{blocks[0]}"]
        previous = inputs / inputs.sum()
        for i in blocks:
            value = scorer.score(
                previous,
                golden[f"{case}.in_activation.{i}"],
                golden[f"{case}.out_activation.{i}"],
                golden[f"{case}.weight.{i}"].abs(),
            )
            previous = value / value.sum()
            result.append(previous)
    return result


def masks_of(
    golden: dict[str, Any], case: str, topology: str, pruner: BasePruner, scores: list[torch.Tensor]
) -> list[list[int]]:
    """Compute the keep masks of every block; isolated graphs are pruned one by one."""
    kept: list[list[int]] = []
    for blocks in groups(golden, case, topology):
        records = [LayerRecord(f"block {i}", scores[i].double(), weight=golden[f"{case}.weight.{i}"]) for i in blocks]
        masks: Masks = pruner.prune(records)
        kept += [masks[record.name].int().tolist() for record in records]
    return kept


def assert_scores(golden: dict[str, Any], case: str, topology: str, name: str, scores: list[Any]) -> None:
    for i, found in enumerate(scores):
        key = f"{case}.score.{topology}.{name}.{i}"
        np.testing.assert_allclose(np.asarray(found), golden[key].numpy(), rtol=1e-4, atol=1e-12, err_msg=key)


def assert_masks(golden: dict[str, Any], case: str, topology: str, name: str, scores: list[torch.Tensor]) -> None:
    for amount in (0.3, 0.5):
        pruners = {"local": LocalPruner(amount), "global": GlobalPruner(amount, normalize="none")}
        for label, pruner in pruners.items():
            for i, found in enumerate(masks_of(golden, case, topology, pruner, scores)):
                key = f"{case}.kept.{topology}.{name}.{label}.{amount}.{i}"
                assert found == golden[key].tolist(), key


@every_case
@every_topology
@table("name", SCORERS)
def test_score_layer_by_layer(golden: dict[str, Any], case: str, topology: str, name: str) -> None:
    scores = walked(golden, case, topology, name)
    assert_scores(golden, case, topology, name, scores)
    assert_masks(golden, case, topology, name, scores)


@every_case
@every_topology
@table(
    ("solver", "backend", "dtype"),
    pairs(solver=["sweep", "power"], backend=["scipy", "torch"], dtype=["float32", "float64"]),
)
def test_rank_of_the_whole_graph(
    golden: dict[str, Any], case: str, topology: str, solver: str, backend: str, dtype: str
) -> None:
    for name in RANKS:
        scorer = make(name, solver=solver, backend=backend, dtype=dtype)
        scores: list[torch.Tensor] = []
        for blocks in groups(golden, case, topology):
            result = scorer.rank(graph_of(golden, case, blocks), ())
            scores += [torch.from_numpy(vector) for vector in result.scores[1:]]
        assert_scores(golden, case, topology, name, scores)
        assert_masks(golden, case, topology, name, scores)


def test_every_vector_of_the_file_is_compared(golden: dict[str, Any]) -> None:
    assert set(golden["meta"]["cases"]) == set(CASES)
    assert all(case["scorers"] and set(case["scorers"]) == set(SCORERS) for case in golden["meta"]["cases"].values())
    compared = {
        f"{case}.{kind}.{i}"
        for case in CASES
        for i in range(golden["meta"]["cases"][case]["n_blocks"])
        for topology in ("chained", "isolated")
        for name in SCORERS
        for kind in (
            f"score.{topology}.{name}",
            *(f"kept.{topology}.{name}.{p}.{a}" for p in ("local", "global") for a in (0.3, 0.5)),
        )
    }
    assert {key for key in golden if ".score." in key or ".kept." in key} == compared
