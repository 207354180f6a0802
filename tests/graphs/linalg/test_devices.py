"""Operators and arithmetic on a simulated device: the numbers of the CPU, without a wait for any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from graphs import GraphError
from graphs.linalg.backends import NumpyArithmetic, TorchArithmetic, make_backend
from graphs.linalg.layer_vectors import DeferredChecks, inner_products, layer_norms, read, subtract
from graphs.linalg.operators import CSROperator, TorchCSROperator
from graphs.linalg.transition import Transition, divide_by_sum
from graphs.linalg.validation import as_block
from tests.devices import FIRST, DeviceTraffic, on_device
from tests.graphs.cases import random_case
from tests.tables import table

RNG = np.random.default_rng(4)
BLOCK = as_block(sparse.random_array((40, 30), density=0.3, random_state=RNG, format="csr"), "block")
X, Y, SEVERAL = RNG.random(30), RNG.random(40), RNG.random((30, 3))
METHODS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "out-strength": lambda w, _: w.out_strength(),
    "in-strength": lambda w, _: w.in_strength(),
    "out-degree": lambda w, _: w.out_degree(),
    "product": lambda w, vector: w.matvec(vector(X)),
    "products": lambda w, vector: w.matvec(vector(SEVERAL)),
    "transposed product": lambda w, vector: w.rmatvec(vector(Y)),
    "mixed product": lambda w, vector: w.mixed_matvec(vector(X), vector(X + 1)),
    "row maxima": lambda w, vector: w.row_maxima(vector(X)),
    "column maxima": lambda w, vector: w.column_maxima(vector(Y)),
}


@table("name", ["torch", "dense"])
@pytest.mark.parametrize("method", METHODS)
def test_operators_keep_their_numbers_on_the_device(method: str, name: str, device_traffic: DeviceTraffic) -> None:
    backend = make_backend(name, FIRST, "float64")
    operator = backend.operator(BLOCK, 2)
    vectors = {id(values): backend.arithmetic.vector(values) for values in (X, Y, SEVERAL)}
    # The first call may build what the operator keeps.
    before = device_traffic.copy()
    found = [METHODS[method](operator, lambda v: vectors.get(id(v), vectors[id(X)] + 1)) for _ in range(2)]
    assert device_traffic.since(before) == DeviceTraffic()
    expected = METHODS[method](CSROperator(BLOCK.to_csr()), np.asarray)
    for result in found:
        assert result.device == FIRST
        np.testing.assert_allclose(result.cpu().numpy(), expected, rtol=1e-13)


@pytest.mark.usefixtures("device_traffic")
def test_column_sums_on_a_device_are_added_in_the_order_of_the_rows() -> None:
    # Numbers of several magnitudes, whose sum depends on the order; a column is empty.
    weights = BLOCK.to_csr().toarray() * np.power(10.0, RNG.integers(-8, 8, (40, 30)))
    weights[:, 3] = 0.0
    csr = sparse.csr_array(weights)
    there = TorchCSROperator(TorchArithmetic(FIRST).csr(csr)).out_strength()
    here = TorchCSROperator(TorchArithmetic("cpu").csr(csr)).out_strength()
    assert torch.equal(there.cpu(), here)
    np.testing.assert_array_equal(here, CSROperator(csr).out_strength())


@pytest.mark.parametrize("kind", [CSROperator, TorchCSROperator])
def test_the_pattern_of_a_mixed_product_is_built_once(kind: Any) -> None:
    arithmetic = TorchArithmetic() if kind is TorchCSROperator else NumpyArithmetic()
    operator: Any = arithmetic.csr_operator(BLOCK)
    vector = arithmetic.vector(X)
    operator.mixed_matvec(vector, vector)
    pattern = operator._pattern
    operator.mixed_matvec(vector, vector)
    assert operator._pattern is pattern is not None
    indices = pattern.col_indices() if kind is TorchCSROperator else pattern.indices
    own = operator._matrix.col_indices() if kind is TorchCSROperator else operator.csr.indices
    # Only the ones are new.
    assert np.shares_memory(np.asarray(indices), np.asarray(own))


def test_several_vectors_cross_in_one_copy(device_traffic: DeviceTraffic) -> None:
    arithmetic = TorchArithmetic(FIRST)
    before = device_traffic.copy()
    vectors = arithmetic.vectors([X, Y, np.ones(1)])
    assert device_traffic.since(before) == DeviceTraffic(transfers=1)
    before = device_traffic.copy()
    back = read([*vectors, vectors[0].sum(), vectors[0].float(), vectors[0][None]])
    assert device_traffic.since(before) == DeviceTraffic(synchronisations=1)
    for found, expected in zip(back, (X, Y, np.ones(1)), strict=False):
        np.testing.assert_array_equal(found, expected)
    assert [array.shape for array in back] == [(30,), (40,), (1,), (), (30,), (1, 30)]
    before = device_traffic.copy()
    halves = [vector * 0.5 for vector in vectors]
    assert list(map(float, read(layer_norms(subtract(vectors, halves))))) == pytest.approx(
        [X.sum() / 2, Y.sum() / 2, 0.5]
    )
    assert device_traffic.since(before) == DeviceTraffic(synchronisations=1)


@pytest.mark.usefixtures("device_traffic")
def test_inner_products_on_a_device_are_those_of_the_cpu() -> None:
    states = [[RNG.random((5, 2)), RNG.random((3, 2))] for _ in range(4)]
    there = inner_products([[on_device(vector) for vector in state] for state in states])
    assert there.device == FIRST
    np.testing.assert_allclose(there.cpu().numpy(), inner_products(states), rtol=1e-13)


def test_checks_on_a_device_wait_for_the_next_reading(device_traffic: DeviceTraffic) -> None:
    def refuse(number: float) -> None:
        raise GraphError(f"got {number}")

    seen: list[float] = []
    checks = DeferredChecks()
    checks.add(np.float64(1.0), seen.append)
    checks.add(torch.tensor(2.0), seen.append)
    assert seen == [1.0, 2.0]
    checks.add(on_device(3.0).sum(), seen.append)
    checks.add(on_device([4.0]).sum() > 3.0, seen.append)
    assert seen == [1.0, 2.0]
    before = device_traffic.copy()
    assert [array.tolist() for array in checks.read([on_device([5.0, 6.0])])] == [[5.0, 6.0]]
    assert seen == [1.0, 2.0, 3.0, 1.0]
    # Nothing waits any more, and nothing is read.
    assert checks.read() == []
    assert device_traffic.since(before) == DeviceTraffic(synchronisations=1, transfers=1)
    checks.add(on_device(7.0).sum(), refuse, "layer 3")
    with pytest.raises(GraphError, match=r"^layer 3: got 7\.0$"):
        checks.read()
    with pytest.raises(GraphError, match=r"^got 8\.0$"):
        checks.add(8.0, refuse)
    assert checks.read() == []


def test_a_transition_and_a_division_wait_for_nothing(device_traffic: DeviceTraffic) -> None:
    case = random_case(2, (6, 7), density=0.5)
    case.weights[0][:, 2] = 0.0
    block = as_block(case.weights[0], "block")
    backend = make_backend("torch", FIRST, "float64")
    operator, vector = backend.operator(block, 2), backend.arithmetic.vector(case.inputs)
    checks, before = DeferredChecks(), device_traffic.copy()
    transition = Transition(operator, 0.5, backend.arithmetic, checks)
    passed, _ = divide_by_sum(transition.apply(operator, vector), backend.arithmetic.zeros((7,)))
    replaced, total = divide_by_sum(passed * 0.0, passed)
    assert device_traffic.since(before) == DeviceTraffic()
    assert transition.has_dangling
    checks.read()
    assert device_traffic.since(before) == DeviceTraffic(synchronisations=1)
    assert transition.has_dangling
    assert float(total) == 0.0
    assert torch.equal(replaced, passed)
    # Without a place to wait, everything is known at once.
    plain = Transition(backend.operator(as_block(np.ones((3, 2)), "full"), 2), 0.5, backend.arithmetic)
    assert not plain.has_dangling
