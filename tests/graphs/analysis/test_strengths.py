"""Strengths against loops over the dense matrices."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from graphs import GraphError, LayeredGraph
from graphs.analysis.strengths import default_backend, finite_strength, strengths
from graphs.linalg.blocks import DenseBlock
from tests.graphs.cases import Case, cases, random_case
from tests.graphs.forms import every_form, formed
from tests.tables import table


@every_form
@given(case=cases())
def test_strengths_are_sums_of_weights(case: Case, form: str) -> None:
    graph, seen = formed(case, form)
    for layer, size in enumerate(graph.layer_sizes):
        into = [sum(seen.weights[layer - 1][i].tolist()) for i in range(size)] if layer else [0.0] * size
        out = (
            [sum(seen.weights[layer][:, j].tolist()) for j in range(size)]
            if layer < len(graph.blocks)
            else [0.0] * size
        )
        found = strengths(graph, layer)
        np.testing.assert_allclose(found[0], into, rtol=1e-12)
        np.testing.assert_allclose(found[1], out, rtol=1e-12)


@table("form", ["csr", "float32", "bfloat16", "parallel"])
def test_large_blocks_give_the_same_numbers_through_compiled_kernels(form: str) -> None:
    # Compiled kernels are used from 2**18 entries on.
    graph, seen = formed(random_case(4, (700, 600), density=1.0 if form != "csr" else 0.9), form)
    np.testing.assert_allclose(strengths(graph, 1)[0], seen.weights[0].sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(strengths(graph, 0)[1], seen.weights[0].sum(axis=0), rtol=1e-12)


@table("layer", [-1, 2, True, 1.0, "1", None])
def test_layers_out_of_range_are_refused(layer: Any) -> None:
    with pytest.raises(GraphError, match="expected a layer from 0 to 1"):
        strengths(random_case(0, (3, 4)).graph(), layer)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.7e308])
def test_sums_that_are_not_finite_are_refused(bad: float) -> None:
    # The sum of two of the largest floats overflows.
    weight = np.array([[bad, bad], [bad, 1.0]])
    graph = LayeredGraph.from_weights([np.eye(2), weight], [1, 1], [[1, 1], [1, 1]], check_finite=False)
    assert isinstance(graph.blocks[1], DenseBlock)
    engine = default_backend(graph)
    message = "block 2: the edge weights hold NaN or Inf, or their sum overflows"
    operator = engine.operator(graph.blocks[1], 1)
    for compute in (operator.in_strength, operator.out_strength):
        with pytest.raises(GraphError, match=message):
            finite_strength(engine, compute, 2)
    for layer in (1, 2):
        with pytest.raises(GraphError, match=message):
            strengths(graph, layer)
    assert strengths(graph, 0)[1].tolist() == [1.0, 1.0]
