"""Tests against scores of the published implementation, if the directory of its golden vectors is given."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from graphs import LayeredGraph, RankResult, modified_pagerank, weighted_pagerank
from tests.tables import table

DIRECTORY = os.environ.get("LLMRANK_GOLDEN")

pytestmark = pytest.mark.skipif(
    DIRECTORY is None, reason="LLMRANK_GOLDEN does not name a directory with rank_scores.safetensors"
)

# Number of blocks in one graph: all, or the two of one FFN.
STEPS = {"chained": None, "isolated": 2}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    assert DIRECTORY is not None
    with safe_open(Path(DIRECTORY) / "rank_scores.safetensors", framework="numpy") as file:
        tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return {**tensors, "meta": json.loads(file.metadata()["meta"])}


def subgraphs(golden: dict[str, Any], name: str, topology: str) -> Iterator[tuple[int, LayeredGraph]]:
    """The graphs of a case, each with the number of its first block."""
    n_blocks = golden["meta"]["cases"][name]["n_blocks"]
    step = STEPS[topology] or n_blocks
    for start in range(0, n_blocks, step):
        blocks = range(start, start + step)
        weights = [golden[f"{name}.weight.{i}"] for i in blocks]
        activations = [golden[f"{name}.out_activation.{i}"] for i in blocks]
        yield start, LayeredGraph.from_weights(weights, golden[f"{name}.in_activation.{start}"], activations)


def ranked(scorer: str, graph: LayeredGraph, **options: Any) -> RankResult:
    """`scorer` as golden names it: mpr, mpr_z0.3, wpr_g0.5_t1."""
    kind, *knobs = scorer.split("_")
    values = {knob[0]: float(knob[1:]) for knob in knobs}
    if kind == "wpr":
        return weighted_pagerank(graph, values["g"], values["t"], **options)
    return modified_pagerank(graph, zero_lowest=values.get("z", 0.0), **options)


@pytest.mark.parametrize("topology", STEPS)
@pytest.mark.parametrize("name", ["dense", "sparse", "dead_column", "wide"])
@table(("solver", "backend"), itertools.product(["sweep", "power"], ["scipy", "torch", "dense", "auto"]))
def test_scores_of_the_published_implementation(
    golden: dict[str, Any], topology: str, name: str, solver: str, backend: str
) -> None:
    scorers = [scorer for scorer in golden["meta"]["cases"][name]["scorers"] if scorer.startswith(("wpr", "mpr"))]
    assert len(scorers) > 2
    for scorer, (start, graph) in itertools.product(scorers, subgraphs(golden, name, topology)):
        result = ranked(scorer, graph, solver=solver, backend=backend)
        for offset, scores in enumerate(result.scores[1:]):
            key = f"{name}.score.{topology}.{scorer}.{start + offset}"
            np.testing.assert_allclose(scores, golden[key], rtol=1e-4, atol=1e-12, err_msg=key)


def test_every_golden_case_is_compared(golden: dict[str, Any]) -> None:
    assert set(golden["meta"]["cases"]) == {"dense", "sparse", "dead_column", "wide"}
