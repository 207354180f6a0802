"""The shares of a map's output that its inputs explain, tested on the sums alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmrank.calibration.contribution import ExplainedSums
from tests.llmrank import textbook

NUMBERS = st.floats(-10, 10).map(lambda value: round(value, 2))


def explained(weight: torch.Tensor, *batches: torch.Tensor, bias: torch.Tensor | None = None) -> ExplainedSums:
    sums = ExplainedSums(weight, bias)
    for x in batches:
        sums.add_input(x)
        sums.add_output(x @ weight.T + (0.0 if bias is None else bias))
    return sums


@given(x=arrays("float64", (5, 4), elements=NUMBERS), w=arrays("float64", (3, 4), elements=NUMBERS))
def test_shares_equal_the_loop_for_any_batches(x: object, w: object) -> None:
    tokens, weight = torch.tensor(x, dtype=torch.float32), torch.tensor(w, dtype=torch.float32)
    bias = torch.tensor([1.0, -2.0, 0.5])
    found = explained(weight, tokens[:2], tokens[2:], bias=bias).finish()
    again = explained(weight, tokens).finish()
    # If the output is almost zero, the shares are those of rounding errors.
    if float((tokens @ weight.T).square().sum()) > 1.0:
        torch.testing.assert_close(found, again, rtol=1e-3, atol=1e-3)
        wanted = textbook.explained(tokens.double().tolist(), weight.double().tolist())
        torch.testing.assert_close(again, torch.tensor(wanted, dtype=torch.float64), rtol=1e-3, atol=1e-3)
        assert float(again.sum()) == pytest.approx(1.0)


def test_orthogonal_neurons_explain_their_own_contribution() -> None:
    weight = torch.diag(torch.tensor([2.0, 1.0, 0.0]))
    x = torch.tensor([[1.0, 2.0, 9.0], [1.0, -2.0, 9.0]])
    found = explained(weight, x).finish()
    # Both energies are 2 * 4.
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))


def test_a_neuron_that_cancels_others_is_negative() -> None:
    found = explained(torch.tensor([[1.0, -0.5]]), torch.ones(3, 2)).finish()
    torch.testing.assert_close(found, torch.tensor([2.0, -1.0], dtype=torch.float64))


def test_all_shares_are_zero_without_output() -> None:
    found = explained(torch.zeros(2, 3), torch.ones(4, 3)).finish()
    assert found.tolist() == [0.0] * 3


def test_half_precision_is_summed_in_float64() -> None:
    weight, x = torch.ones(1, 2).bfloat16(), torch.ones(1000, 2).bfloat16()
    assert explained(weight, x).finish().tolist() == [0.5, 0.5]


def test_an_output_without_an_input_raises() -> None:
    with pytest.raises(RuntimeError, match="came without its input"):
        ExplainedSums(torch.ones(1, 1), None).add_output(torch.ones(1, 1))
    # Each input belongs to one output.
    sums = explained(torch.ones(1, 1), torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="came without its input"):
        sums.add_output(torch.ones(1, 1))
