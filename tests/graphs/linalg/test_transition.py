"""Tests of the steps across one block against explicit matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from graphs import GraphError
from graphs.linalg.backends import NumpyArithmetic
from graphs.linalg.operators import CSROperator
from graphs.linalg.transition import Transition, modified_step, normalise, weighted_step
from tests.graphs.cases import SHARES, Array, transition_matrix
from tests.graphs.linalg.test_blocks import MATRICES


def make(weight: Array, theta: float) -> tuple[CSROperator, Transition]:
    operator = CSROperator(sparse.csr_array(np.abs(weight)))
    return operator, Transition(operator, theta, NumpyArithmetic())


@given(MATRICES, SHARES, st.integers(0, 99))
def test_apply_is_the_product_with_p(weight: Array, theta: float, seed: int) -> None:
    operator, transition = make(weight, theta)
    rank = np.random.default_rng(seed).random(weight.shape[1])
    expected = transition_matrix(weight, theta) @ rank
    np.testing.assert_allclose(transition.apply(operator, rank), expected, rtol=1e-12, atol=1e-15)


@given(MATRICES, SHARES)
def test_p_is_column_stochastic_except_for_dangling_columns(weight: Array, theta: float) -> None:
    operator, transition = make(weight, theta)
    columns = [transition.apply(operator, unit).sum() for unit in np.eye(weight.shape[1])]
    np.testing.assert_allclose(columns, weight.any(axis=0), rtol=1e-12)
    assert transition.has_dangling == (not weight.any(axis=0).all())


def test_applying_leaves_the_rank_alone() -> None:
    operator, transition = make(np.ones((2, 2)), 0.5)
    rank = np.array([0.25, 0.75])
    transition.apply(operator, rank)
    np.testing.assert_array_equal(rank, [0.25, 0.75])


def test_strengths_that_overflow_are_refused() -> None:
    with np.errstate(over="ignore"), pytest.raises(GraphError, match="out-strengths are not finite"):
        make(np.full((2, 2), 1.5e308), 1.0)


@given(arrays(np.float64, st.integers(1, 6), elements=st.floats(0, 1e6)))
def test_normalise_has_mass_one(vector: Array) -> None:
    result = normalise(vector)
    assert result.vector.sum() == pytest.approx(1.0, abs=1e-14)
    assert result.fallback == ("" if vector.sum() > 0 else "uniform")


def test_a_zero_vector_normalises_to_the_fallback_then_to_uniform() -> None:
    zero = np.zeros(2)
    found = normalise(zero, np.array([1.0, 3.0]))
    assert found.fallback == "activation"
    np.testing.assert_array_equal(found.vector, [0.25, 0.75])
    assert normalise(zero, zero).fallback == "uniform"
    np.testing.assert_array_equal(normalise(zero, zero).vector, [0.5, 0.5])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_normalise_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(
        GraphError, match=r"NaN or Inf: edge weights or activations.*check both, or use dtype='float64'"
    ):
        normalise(np.array([1.0, bad]))


def test_steps_by_hand() -> None:
    passed, activation = np.array([0.5, 0.25]), np.array([1.0, 3.0])
    # 0.8 (1/2, 1/4) + 0.2 (1/4, 3/4) = (0.45, 0.35), over 0.8.
    np.testing.assert_allclose(weighted_step(passed, activation, 0.8).vector, [0.5625, 0.4375])
    # (1/2, 3/4) over 5/4.
    np.testing.assert_allclose(modified_step(passed, activation).vector, [0.4, 0.6])
    # A layer of zero activations counts as uniform.
    np.testing.assert_allclose(modified_step(passed, np.zeros(2)).vector, [2 / 3, 1 / 3])
    np.testing.assert_allclose(weighted_step(passed, np.zeros(2), 0.0).vector, [0.5, 0.5])
