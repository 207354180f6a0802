"""Repairs against textbook loops, and in complete pipelines."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import llmrank
from llmrank import Masks
from llmrank.calibration.collect import collect_statistics
from llmrank.errors import CalibrationError, LLMRankError, MaskError, OptionError, UnsupportedModelError
from llmrank.execution.block_stream import open_stream
from llmrank.execution.recording import recording
from llmrank.models import explicit_ffns, find_ffns
from llmrank.pipeline import CalibrationText
from llmrank.pipeline.registry import make_repair
from llmrank.prune import LocalPruner
from llmrank.repair import BaseRepair, BiasRepair, LeastSquaresRepair, Moments, RepairedMap, repair_ffns
from llmrank.repair.least_squares import DAMPINGS
from llmrank.repair.moments import MomentSums
from llmrank.repair.sequential import substitute
from llmrank.score import NormScorer, WeightedPageRankScorer
from llmrank.surgery.apply import apply_masks
from llmrank.text import tokenise
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.textbook import least_squares
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import (
    STRUCTURE,
    Snapshot,
    family_model,
    features,
    logits,
    mlp,
    named_family,
    text,
    tiny_llama,
    tiny_t5,
    token_ids,
    tokenizer,
)


def data(seed: int, tokens: int, n: int, n_out: int) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(n, n))
    x = random.normal(size=(tokens, n)) @ mixing + random.normal(size=n)
    keep = np.zeros(n, dtype=bool)
    keep[random.permutation(n)[: max(1, n // 2)]] = True
    return x, random.normal(size=(n_out, n)), keep


def tensors(*arrays: Any) -> list[torch.Tensor]:
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.sampled_from([0.0, 1e-3, 0.5]), st.booleans())
def test_least_squares_equals_the_textbook(seed: int, n: int, damping: float, centred: bool) -> None:
    x, weight, keep = data(seed, 40, n, 3)
    bias = np.arange(3.0) if centred else None
    found = LeastSquaresRepair(damping).solve(
        tensors(weight)[0],
        None if bias is None else tensors(bias)[0],
        tensors(keep)[0],
        Moments.of(tensors(x)[0]),
        None,
    )
    start = None if bias is None else bias.tolist()
    wanted_weight, wanted_bias = least_squares(x.tolist(), weight.tolist(), start, keep.tolist(), damping)
    np.testing.assert_allclose(found.weight, wanted_weight, rtol=1e-6, atol=1e-8)
    assert (found.bias is None) == (bias is None)
    if found.bias is not None:
        np.testing.assert_allclose(found.bias, wanted_bias, rtol=1e-6, atol=1e-8)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.sampled_from(["auto", 0.0, 1e-4, 10.0]), st.booleans())
def test_errors_are_those_of_held_out_tokens_and_never_more_than_unrepaired(
    seed: int, n: int, damping: float | str, centred: bool
) -> None:
    x, weight, keep = data(seed, 30, n, 2)
    bias = torch.ones(2).double() if centred else None
    inputs, matrix, kept = tensors(x, weight, keep)
    found = LeastSquaresRepair(damping).solve(matrix, bias, kept, Moments.of(inputs[:20]), Moments.of(inputs[20:]))
    assert found.before is not None
    assert found.after is not None
    held_out = inputs[20:]
    dense = held_out @ matrix.T
    cut = held_out[:, kept] @ matrix[:, kept].T
    new = held_out @ found.weight.T + (0.0 if found.bias is None else found.bias - 1.0)
    energy = dense.square().sum()
    assert found.before == pytest.approx(float((dense - cut).square().sum() / energy), rel=1e-6, abs=1e-9)
    assert found.after == pytest.approx(float((dense - new).square().sum() / energy), rel=1e-6, abs=1e-9)
    assert not found.weight[:, ~kept].any()
    if damping == "auto" and not centred:  # no change of the kept weights is among the choices
        assert found.after <= found.before * (1 + 1e-9) + 1e-9


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.sampled_from([0.0, 1e-3, 0.5]), st.booleans())
def test_the_missing_output_is_fitted_too(seed: int, n: int, damping: float, centred: bool) -> None:
    """The oracle is a regression on the tokens themselves, with the ridge as additional rows."""
    x, weight, keep = data(seed, 40, n, 3)
    lack = np.random.default_rng(seed + 1).normal(size=(40, 3)) + x[:, :1] * [1.0, 0.0, 2.0] + 0.5
    bias = np.arange(3.0) if centred else None
    inputs, missing, matrix, kept = tensors(x, lack, weight, keep)
    moments = Moments.of(inputs, missing)
    found = LeastSquaresRepair(damping).solve(
        matrix, None if bias is None else tensors(bias)[0], kept, moments, moments
    )
    target = x[:, ~keep] @ weight[:, ~keep].T + lack
    regressors = x[:, keep]
    if centred:
        target, regressors = target - target.mean(0), regressors - regressors.mean(0)
    rows = np.concatenate([regressors, np.diag(np.sqrt(damping * np.square(regressors).sum(0)))])
    change = np.linalg.lstsq(rows, np.concatenate([target, np.zeros((keep.sum(), 3))]))[0].T
    np.testing.assert_allclose(found.weight[:, kept], weight[:, keep] + change, rtol=1e-6, atol=1e-7)
    wanted = inputs @ matrix.T + missing
    new = inputs @ found.weight.T
    if bias is not None:
        assert found.bias is not None
        new = new + found.bias - tensors(bias)[0]
        np.testing.assert_allclose((wanted - new).mean(0), np.zeros(3), atol=1e-7)
    energy = wanted.square().sum()
    cut = wanted - inputs[:, kept] @ matrix[:, kept].T
    assert found.before == pytest.approx(float(cut.square().sum() / energy), rel=1e-6, abs=1e-9)
    assert found.after == pytest.approx(float((wanted - new).square().sum() / energy), rel=1e-6, abs=1e-9)
    assert found.after <= found.before * (1 + 1e-9) + 1e-9


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 9),
    st.sampled_from([LeastSquaresRepair(), LeastSquaresRepair(1e-3), BiasRepair()]),
    st.booleans(),
    st.sampled_from(["unknown", "known", "known, without the output"]),
)
def test_removed_neurons_may_count_as_missing_output(
    seed: int, n: int, method: BaseRepair, centred: bool, missing_output: str
) -> None:
    """The moments of the kept neurons alone give the same map as those of all, and so does all that the map should return."""
    x, weight, keep = data(seed, 60, n, 3)
    inputs, matrix, kept, missing = tensors(x, weight, keep, np.random.default_rng(seed).normal(size=(60, 3)))
    bias = torch.ones(3).double() if centred or method.needs_bias else None
    found, follows, has_run = [], missing_output != "unknown", not missing_output.endswith("output")
    for read in (torch.ones_like(kept), kept):
        has_run_now = has_run or read is not kept
        sums = MomentSums(n, matrix.device, 1, keep=None if read is not kept else kept, weight=matrix)
        for part in (slice(40), slice(40, 60)):
            sums.add(inputs[part], None)
            output = 0.0 if has_run_now else inputs[part] @ matrix.T + (0.0 if bias is None else bias)
            sums.end_batch(missing[part] + output if follows else None, has_run=has_run_now)
        assert sums.is_followed == follows
        fit, held_out = sums.moments()
        assert held_out is not None
        fit, held_out = (each.less_output(matrix[:, read], bias) for each in (fit, held_out))
        found.append(method.solve(matrix[:, read], bias, kept[read], fit, held_out))
    of_all, of_kept = found
    np.testing.assert_allclose(of_kept.weight, of_all.weight[:, kept], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose([of_kept.before, of_kept.after], [of_all.before, of_all.after], rtol=1e-6, atol=1e-9)
    assert of_kept.damping == of_all.damping
    if bias is not None:
        np.testing.assert_allclose(of_kept.bias, of_all.bias, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n_outputs", [3, 200], ids=["few outputs", "combinations of many outputs"])
def test_the_output_of_a_map_is_subtracted_from_what_it_should_return(n_outputs: int) -> None:
    x, weight, _ = data(0, 60, 7, n_outputs)
    inputs, matrix, bias = tensors(x, weight, np.arange(float(n_outputs)))
    missing = tensors(np.random.default_rng(0).normal(size=(60, n_outputs)))[0]
    for each in (None, bias):
        wanted = Moments.of(inputs, missing + inputs @ matrix.T + (0.0 if each is None else each))
        assert wanted.missing is not None
        found = replace(wanted, missing=replace(wanted.missing, has_run=False)).less_output(matrix, each).missing
        expected = Moments.of(inputs, missing).missing
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found.total, expected.total)
        torch.testing.assert_close(found.cross, expected.cross)
        assert found.square == pytest.approx(expected.square, rel=1e-9)


class SeesAll(LeastSquaresRepair):
    """Its `solve` was written for moments of all neurons, and counts how many there are."""

    def __init__(self, seen: list[tuple[int, int]]) -> None:
        super().__init__(1.0)
        self._seen = seen

    def solve(self, weight: Any, bias: Any, keep: Any, fit: Moments, held_out: Moments | None) -> RepairedMap:
        self._seen.append((len(fit.total), len(keep)))
        return super().solve(weight, bias, keep, fit, held_out)


class SeesKept(SeesAll):
    reads_removed = False


@pytest.mark.parametrize(
    ("make", "ids"),
    [
        (tiny_llama, [text(40), text(23, seed=1), text(31, seed=2), text(17, seed=3)]),
        (lambda: family_model(named_family("GPT-2")), token_ids(8, 24)),
        (lambda: tiny_mixture("mixtral"), token_ids(8, 24)),
        (tiny_t5, token_ids(8, 24)),
    ],
    ids=["padded", "biases", "experts", "no stream"],
)
def test_a_repair_that_does_not_read_removed_neurons_finds_the_same_maps(make: Any, ids: Any) -> None:
    found, sizes = [], []
    for method in (SeesAll, SeesKept):
        seen: list[tuple[int, int]] = []
        pipeline = IsolatedFFNPipeline(
            make(), tokenizer(), calibration=CalibrationText(ids, 8, 24), repair=method(seen), scorer=NormScorer()
        )
        pipeline.run()
        found.append(pipeline.plan.selection.repaired)
        sizes.append(seen)
        kept = pipeline.masks.widths
    assert sizes[0] == [(size, size) for size in find_ffns(make()).sizes.values()]
    assert sizes[1] == [(width, width) for width in kept.values()]
    assert list(found[0]) == list(found[1])
    for one, other in zip(*(each.values() for each in found), strict=True):
        torch.testing.assert_close(other.weight, one.weight, rtol=1e-3, atol=1e-4)
        assert (one.bias is None) == (other.bias is None)
        if one.bias is not None:
            torch.testing.assert_close(other.bias, one.bias, rtol=1e-3, atol=1e-4)
        assert (one.target, one.damping) == (other.target, other.damping)
        assert other.after == pytest.approx(one.after, rel=1e-3, abs=1e-5)


def test_sums_of_kept_neurons_on_an_apple_gpu_are_on_the_cpu() -> None:
    keep, values = torch.tensor([True, False]), torch.tensor([[1.0, 2.0]])
    sums = MomentSums(2, torch.device("mps"), keep=keep, weight=torch.tensor([[3.0, 4.0]]))
    sums.add(values, None)
    sums.end_batch(None)
    assert sums.moments()[0].missing.total.tolist() == [8.0]


def test_the_stream_as_target_brings_the_end_of_the_stream_closer() -> None:
    """Measured on the tokens that it is fitted to: each map then makes up for some losses of the maps before it."""
    ids = token_ids(8, 48)
    ends = {}
    for name, repair in (
        ("none", None),
        ("output", LeastSquaresRepair(1e-3, "output")),
        ("stream", LeastSquaresRepair(1e-3)),
    ):
        model = tiny_llama()
        with torch.no_grad():
            whole = model.model(input_ids=ids)[0]
            IsolatedFFNPipeline(model, None, calibration=ids, repair=repair, pruner=LocalPruner(0.5)).run()
            ends[name] = float((model.model(input_ids=ids)[0] - whole).square().mean())
    assert ends["stream"] < 0.98 * ends["output"] < 0.98 * ends["none"]


def test_non_finite_numbers_are_detected_in_both_moments() -> None:
    values, lack = torch.ones(3, 2), torch.ones(3, 4)
    assert Moments.of(values, lack).finite
    assert not Moments.of(values * float("inf"), lack).finite
    assert not Moments.of(values, lack * float("nan")).finite
    # The products are computed in float32, where 1e18 * 1e30 overflows and the squares of 1e18 do not.
    assert not Moments.of(values * 1e18, lack * 1e30).finite


def test_bias_takes_up_the_means() -> None:
    x, weight, keep = data(3, 25, 6, 4)
    inputs, matrix, kept = tensors(x, weight, keep)
    found = BiasRepair().solve(matrix, torch.ones(4).double(), kept, Moments.of(inputs), None)
    for i in range(4):
        lost = sum(float(weight[i, j]) * sum(x[:, j]) / len(x) for j in range(6) if not keep[j])
        assert found.bias is not None
        assert float(found.bias[i]) == pytest.approx(1.0 + lost)
    assert torch.equal(found.weight[:, kept], matrix[:, kept])


def test_batches_after_those_to_fit_to_are_held_out() -> None:
    batches = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    for fitted, expected in ((3, (batches[:3], batches[3:])), (None, (batches, None)), (5, (batches, None))):
        sums = MomentSums(3, torch.device("cpu"), fitted)
        for batch in batches:
            sums.add(batch, None)
            sums.end_batch(None)
        for found, values in zip(sums.moments(), expected, strict=True):
            assert (found is None) == (values is None)
            if found is not None and values is not None:
                rows = values.reshape(-1, 3)
                assert found.count == len(rows)
                torch.testing.assert_close(found.total, rows.sum(0))
                torch.testing.assert_close(found.second, rows.T @ rows)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_damping_is_the_best_one_on_held_out_tokens(seed: int, centred: bool) -> None:
    x, weight, keep = data(seed, 24, 10, 3)
    inputs, matrix, kept = tensors(x, weight, keep)
    bias = torch.zeros(3).double() if centred else None
    fit, held_out = Moments.of(inputs[:12]), Moments.of(inputs[12:])
    found = LeastSquaresRepair().solve(matrix, bias, kept, fit, held_out)
    # A bias takes up the means of the tokens to fit to.
    rows = inputs[12:] - (inputs[:12].mean(0) if centred else 0.0)

    def error(weight: torch.Tensor) -> float:
        return float((rows @ (matrix - weight).T).square().sum())

    trials = [LeastSquaresRepair(damping).solve(matrix, bias, kept, fit, None).weight for damping in DAMPINGS[:-1]]
    cut = torch.where(kept, matrix, 0.0)
    best = min(error(weight) for weight in (*trials, cut) if weight is not None)
    assert found.weight is not None
    assert error(found.weight) == pytest.approx(best, rel=1e-6)
    assert found.after == pytest.approx(best / float((inputs[12:] @ matrix.T).square().sum()), rel=1e-6)
    assert found.damping in DAMPINGS


def test_kept_weights_do_not_change_where_every_fit_does_harm() -> None:
    """The fitted change has the wrong sign on the held-out tokens."""
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()
    weight, keep = torch.tensor([[1.0, 2.0, 10.0]]).double(), torch.tensor([True, True, False])
    fit, held_out = (Moments.of(torch.cat([x, sign * x.sum(1, keepdim=True)], dim=1)) for sign in (1.0, -1.0))
    found = LeastSquaresRepair().solve(weight, None, keep, fit, held_out)
    assert found.damping == math.inf
    assert torch.equal(found.weight, torch.tensor([[1.0, 2.0, 0.0]]).double())
    assert found.after == found.before


def test_without_held_out_tokens_the_damping_is_one() -> None:
    x = torch.tensor([[1.0, 1.0]]).double()
    weight, keep = torch.tensor([[0.0, 4.0]]).double(), torch.tensor([True, False])
    found = LeastSquaresRepair().solve(weight, None, keep, Moments.of(x), None)
    torch.testing.assert_close(found.weight, torch.tensor([[2.0, 0.0]]).double())
    assert (found.before, found.after) == (None, None)


def test_a_singular_system_without_damping_takes_the_smallest_solution() -> None:
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)).double()
    inputs = torch.cat([x, x[:, :1], x.sum(1, keepdim=True)], dim=1)  # 2 is 0 again, 3 is 0 + 1
    found = LeastSquaresRepair(0.0).solve(
        torch.tensor([[1.0, 1.0, 1.0, 10.0]]).double(),
        None,
        torch.tensor([True, True, True, False]),
        Moments.of(inputs),
        None,
    )
    torch.testing.assert_close(found.weight, torch.tensor([[6.0, 11.0, 6.0, 0.0]]).double())


def test_unexplained_is_the_residual_of_a_regression_on_the_others() -> None:
    x, _, _ = data(7, 30, 6, 1)
    found = Moments.of(tensors(x)[0]).unexplained()
    ridge = 0.01 * np.square(x).mean(0).mean()
    for j in range(6):
        others = np.delete(x, j, axis=1)
        rows = np.concatenate([others, np.sqrt(ridge * len(x)) * np.eye(5)])
        weights = np.linalg.lstsq(rows, np.concatenate([x[:, j], np.zeros(5)]))[0]
        left = np.square(x[:, j] - others @ weights).mean() + ridge * (1 + np.square(weights).sum())
        assert float(found[j]) == pytest.approx(np.sqrt(left))
    assert Moments.of(torch.zeros(3, 4)).unexplained().tolist() == [0.0] * 4


@pytest.mark.parametrize("target", ["stream", "output"])
@pytest.mark.parametrize("pipeline_class", [IsolatedFFNPipeline, ChainedFFNPipeline])
def test_reselection_ranks_by_the_unexplained_part(pipeline_class: Any, target: str) -> None:
    """With gamma 0 only the activation counts: the neurons with the largest unexplained part are kept, as many as planned."""
    model, ids = tiny_llama(), token_ids(8, 48)
    whole: list[torch.Tensor] = []
    for ffn in find_ffns(model):
        down = ffn.stages[1][0].module
        handle = down.register_forward_pre_hook(lambda _m, inputs: whole.append(inputs[0].detach().flatten(0, -2)))
        logits(model, ids)
        handle.remove()
    expected = [Moments.of(values[: 7 * 48]).unexplained() for values in whole]  # the last sequence is held out
    chosen: list[torch.Tensor] = []

    class Look(LeastSquaresRepair):
        def solve(self, weight: Any, bias: Any, keep: Any, fit: Moments, held_out: Moments | None) -> Any:
            own = fit.unexplained()
            most_left = (expected[len(chosen)] if target == "stream" else own).argsort(descending=True)
            assert set(keep.nonzero().flatten().tolist()) == set(most_left[: keep.sum()].tolist())
            chosen.append(keep)
            return super().solve(weight, bias, keep, fit, held_out)

    def run(repair: BaseRepair | None) -> Masks:
        pipeline = pipeline_class(
            model,
            None,
            scorer=WeightedPageRankScorer(gamma=0.0, dtype="float64"),
            calibration=ids,
            pruner=LocalPruner(0.5),
            repair=repair,
        )
        pipeline.run()
        pipeline.undo()
        masks: Masks = pipeline.masks
        return masks

    planned, masks = run(None), run(Look("auto", target, reselect=True))
    assert [keep.tolist() for keep in masks.values()] == [keep.tolist() for keep in chosen]
    assert masks != planned
    assert masks.kept == planned.kept


@pytest.mark.parametrize("n", [1, 255, 256, 257, 600])
def test_moments_do_not_depend_on_the_bands(n: int) -> None:
    values = torch.randn(7, n, generator=torch.Generator().manual_seed(n)).double()
    found = Moments.of(values)
    assert found.count == 7
    torch.testing.assert_close(found.second, values.T @ values)
    torch.testing.assert_close(found.total, values.sum(0))
    assert torch.equal(found.second, found.second.T)


def half_of_it_twice(model: Any) -> Masks:
    """Make every second hidden neuron the double of the one before it, and masks that remove these."""
    keep = {}
    for ffn in find_ffns(model):
        for linear_map in ffn.stages[0]:
            linear_map.module.weight.data[1::2] = linear_map.module.weight.data[0::2]
            if getattr(linear_map.module, "bias", None) is not None:
                linear_map.module.bias.data[1::2] = linear_map.module.bias.data[0::2]
        (layer,) = ffn.prunable.values()
        keep[layer.name] = torch.arange(layer.size) % 2 == 0
    return Masks(keep)


@pytest.mark.parametrize("family", ["Llama, SmolLM2", "Phi", "Gemma 2", "OPT", "BERT"])
@pytest.mark.parametrize("form", ["compact", "zero", "mask"])
def test_neurons_that_depend_on_kept_ones_cost_nothing(family: str, form: Any) -> None:
    model = family_model(named_family(family)).double()
    masks = half_of_it_twice(model)
    ids = token_ids(5, 24)
    expected = logits(model, ids[:2])
    ffns = find_ffns(model)
    sequences = tokenise(ids, None, 5, 24)
    with recording(model, ffns) as record:
        collect_statistics(model, ffns, sequences)
    _, repaired = repair_ffns(model, ffns, masks, LeastSquaresRepair(0.0), open_stream(model, ffns, sequences, record))
    apply_masks(model, ffns, masks, form, repaired=repaired)
    torch.testing.assert_close(logits(model, ids[:2]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("repair", [LeastSquaresRepair(), BiasRepair()], ids=["lstsq", "bias"])
@pytest.mark.parametrize("family", ["Llama, SmolLM2", "Phi", "GPT-2"])
def test_all_forms_agree_and_are_undone_bit_for_bit(family: str, repair: BaseRepair) -> None:
    ids, found = token_ids(6, 24), {}
    for form in ("compact", "zero", "mask"):
        model = family_model(named_family(family))
        before = Snapshot(model)
        pipeline = IsolatedFFNPipeline(model, None, calibration=ids, form=form, repair=repair)  # type: ignore[arg-type]
        found[form] = logits(pipeline.run(), ids[:2])
        assert pipeline.report is not None
        for entry in pipeline.report.repaired.values():
            assert 0 <= entry["held_out_error_when_repaired"] <= entry["held_out_error_when_cut"] * (1 + 1e-6)
        pipeline.undo()
        before.assert_restored()
    torch.testing.assert_close(found["compact"], found["zero"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["mask"], found["zero"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "repair", "target"),
    [
        ("Llama, SmolLM2", LeastSquaresRepair(), "stream"),
        ("Llama, SmolLM2", LeastSquaresRepair(target="output"), "output"),
        ("Gemma 2", LeastSquaresRepair(), "output"),
        ("BERT", LeastSquaresRepair(), "output"),
    ],
)
def test_reports_hold_the_target_of_each_map(family: str, repair: BaseRepair, target: str) -> None:
    pipeline = IsolatedFFNPipeline(
        family_model(named_family(family)), None, calibration=token_ids(6, 24), repair=repair
    )
    pipeline.run()
    assert pipeline.report is not None
    assert {entry["target"] for entry in pipeline.report.repaired.values()} == {target}


def test_repair_brings_a_model_closer_to_the_dense_one() -> None:
    ids = token_ids(12, 32)
    dense = logits(tiny_llama(), ids)
    missed = []
    for repair in (None, LeastSquaresRepair()):
        model = IsolatedFFNPipeline(tiny_llama(), None, calibration=ids, repair=repair).run()
        missed.append(float((logits(model, ids) - dense).square().mean()))
    assert missed[1] < 0.8 * missed[0]


def test_a_bias_given_to_a_llama_loads_in_stock_transformers(tmp_path: Any) -> None:
    ids = token_ids(4, 24)
    pipeline = IsolatedFFNPipeline(tiny_llama(), None, calibration=ids, repair=BiasRepair())
    model = pipeline.run()
    llmrank.save(tmp_path / "out", model)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.mlp_bias is True
    torch.testing.assert_close(logits(loaded, ids), logits(model, ids))


def test_moments_are_those_of_the_model_as_pruned_so_far() -> None:
    """The second FFN must be fitted to its inputs after the first was pruned, not to those before."""
    model, ids = tiny_llama(), token_ids(4, 24)
    ffns = find_ffns(model)
    sequences = tokenise(ids, None, 4, 24)
    seen: list[Moments] = []

    class Look(BaseRepair):
        def solve(self, weight: Any, bias: Any, keep: Any, fit: Moments, held_out: Moments | None) -> Any:
            seen.append(fit)
            return LeastSquaresRepair(1e-2).solve(weight, bias, keep, fit, held_out)

    masks = Masks({ffn.name: torch.arange(ffn.sizes[1]) % 3 > 0 for ffn in ffns})
    with recording(model, ffns) as record:
        collect_statistics(model, ffns, sequences)
    _, repaired = repair_ffns(model, ffns, masks, Look(), open_stream(model, ffns, sequences, record))
    apply_masks(model, ffns, masks, "zero", repaired=repaired)
    read: list[torch.Tensor] = []
    ffns[1].stages[1][0].module.register_forward_pre_hook(lambda _m, inputs: read.append(inputs[0].detach()))
    masked_up = ffns[1].stages[0]
    with torch.no_grad():  # the removal in the second FFN comes after its inputs: the dense FFN shows them
        fresh = tiny_llama()
        for linear_map, original in zip(masked_up, find_ffns(fresh)[1].stages[0], strict=True):
            linear_map.module.weight.copy_(original.module.weight)
        model(input_ids=ids)
    values = read[0].reshape(-1, ffns[1].sizes[1])
    torch.testing.assert_close(seen[1].second, (values.T @ values).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [tiny_t5, lambda: mlp(6, 12, 10, 3)], ids=["t5", "mlp"])
def test_models_without_one_stack_of_blocks_are_repaired_by_complete_passes(make: Any) -> None:
    model = make()
    calibration = token_ids(6, 24) if hasattr(model, "config") else features(300, 6)
    expected = logits(model, calibration[:4])
    before = Snapshot(model)
    missed = {}
    for name, repair in (("none", None), ("lstsq", LeastSquaresRepair(1e-3))):
        # With so few tokens, a repair of some choices of neurons gains nothing and is not kept, so the scorer is fixed.
        scorer = WeightedPageRankScorer()
        pipeline = IsolatedFFNPipeline(
            model, None, scorer=scorer, pruner=LocalPruner(0.25), calibration=calibration, repair=repair
        )
        missed[name] = float((logits(pipeline.run(), calibration[:4]) - expected).square().mean())
        pipeline.undo()
        before.assert_restored()
    assert missed["lstsq"] < missed["none"]


def test_impossible_repairs_are_refused() -> None:
    model = tiny_llama()
    structure = {"path_to_layers": ["model", "layers"], "path_to_modules": (("mlp", "up_proj"),)}
    with pytest.raises(OptionError, match="structure_dict prunes rows"):
        IsolatedFFNPipeline(model, None, structure, repair=LeastSquaresRepair())
    with pytest.raises(OptionError, match="instance of BaseRepair"):
        IsolatedFFNPipeline(model, None, repair="lstsq")  # type: ignore[arg-type]
    for damping in (-1.0, float("nan"), "much", True):
        with pytest.raises(OptionError, match="damping"):
            LeastSquaresRepair(damping)
    for options, message in (
        ({"damping": np.zeros(2)}, "damping must be 'auto' or a finite number"),
        ({"reselect": np.zeros(2)}, "reselect must be True or False"),
        ({"target": np.zeros(2)}, "unknown target"),
    ):
        with pytest.raises(OptionError, match=message):
            LeastSquaresRepair(**options)
    with pytest.raises(OptionError, match="unknown target 'logits'; expected one of stream, output"):
        LeastSquaresRepair(target="logits")
    weight, keep = torch.ones(1, 2).double(), torch.tensor([True, False])
    with pytest.raises(OptionError, match="output maps with a bias"):
        BiasRepair().solve(weight, None, keep, Moments.of(torch.ones(3, 2)), None)
    with pytest.raises(OptionError, match="unknown repair 'glue'"):
        make_repair("glue")
    assert make_repair("none") is None
    assert isinstance(make_repair("lstsq", damping=0.1), LeastSquaresRepair)


def test_biases_that_a_model_cannot_have_are_refused_before_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmrank.pipeline.stages.calibrate", lambda *_, **__: pytest.fail("began to calibrate"))
    with pytest.raises(UnsupportedModelError, match="down_proj has none, nor can the configuration give"):
        IsolatedFFNPipeline(
            family_model(named_family("Qwen2")), None, calibration=token_ids(2, 16), repair=BiasRepair()
        ).run()


def test_a_failure_during_a_repair_leaves_the_model_unchanged() -> None:
    class Broken(BaseRepair):
        def solve(self, *_: Any, **__: Any) -> Any:
            raise LLMRankError("no")

    model = tiny_llama()
    before = Snapshot(model)
    with pytest.raises(LLMRankError, match="no"):
        IsolatedFFNPipeline(model, None, calibration=token_ids(3, 16), repair=Broken()).run()
    before.assert_restored()


class Boundless(LeastSquaresRepair):
    """A repair whose first map returns infinities."""

    solved = 0

    def solve(self, weight: Any, bias: Any, keep: Any, fit: Moments, held_out: Moments | None) -> RepairedMap:
        self.solved += 1
        found = super().solve(weight, bias, keep, fit, held_out)
        return replace(found, weight=found.weight * math.inf) if self.solved == 1 else found


def test_the_message_for_non_finite_inputs_names_the_map() -> None:
    model = tiny_llama()
    before, ffns = Snapshot(model), find_ffns(model)
    masks = Masks({ffn.name: torch.arange(ffn.sizes[1]) % 3 > 0 for ffn in ffns})
    sequences = tokenise(token_ids(3), None, 3, 24)
    with recording(model, ffns) as record:
        collect_statistics(model, ffns, sequences)
    stream = open_stream(model, ffns, sequences, record)
    with pytest.raises(CalibrationError, match=r"the inputs of model\.layers\.1\.mlp\.down_proj.*are not finite"):
        repair_ffns(model, ffns, masks, Boundless(), stream)
    before.assert_restored()


def test_explicit_ffns_cannot_be_repaired() -> None:
    model = tiny_llama()
    ffns, sequences = explicit_ffns(model, STRUCTURE), tokenise(token_ids(), None, 4, 24)
    masks = Masks({name: torch.arange(layer.size) > 3 for name, layer in ffns.layers.items()})
    with recording(model, ffns) as record:
        collect_statistics(model, ffns, sequences)
    stream = open_stream(model, ffns, sequences, record)
    with pytest.raises(OptionError, match="repair needs whole FFNs"):
        repair_ffns(model, ffns, masks, LeastSquaresRepair(), stream)


def test_repaired_maps_take_no_more_memory_than_the_maps_of_the_model() -> None:
    model = tiny_llama().to(torch.bfloat16)
    pipeline = IsolatedFFNPipeline(
        model, None, calibration=token_ids(), repair=LeastSquaresRepair(reselect=True), form="zero"
    )
    pipeline.run()
    assert {solved.weight.dtype for solved in pipeline.plan.selection.repaired.values()} == {torch.bfloat16}


def test_a_substitute_computes_alone_until_it_is_removed() -> None:
    module, inputs = torch.nn.Linear(3, 2, bias=False), torch.randn(4, 3)
    before = module(inputs)
    new, outer = torch.ones(2, 3), RepairedMap(torch.zeros(2, 3), None, None, 0.0, 0.0)
    seen: list[torch.Tensor] = []
    with ExitStack() as hooks:
        substitute(hooks, module, outer)
        hooks.callback(module.register_forward_hook(lambda _m, _i, output: seen.append(output)).remove)
        with ExitStack() as inner:
            substitute(inner, module, RepairedMap(new, torch.tensor([1.0, 2.0]), None, 0.0, 0.0))
            torch.testing.assert_close(module(inputs), inputs @ new.T + torch.tensor([1.0, 2.0]))
        assert torch.equal(module(inputs), torch.zeros(4, 2))
    assert torch.equal(module(inputs), before)
    assert "forward" not in vars(module)
    assert len(seen) == 2


@pytest.mark.parametrize("form", ["compact", "zero", "mask"])
def test_a_repair_may_be_applied_to_two_models(form: Any) -> None:
    """Neither model shares memory with the other, or with the repair."""
    models = [family_model(named_family("GPT-2")), family_model(named_family("GPT-2"))]
    ffns = find_ffns(models[0])
    sequences = tokenise(token_ids(), None, 4, 24)
    masks = Masks({ffn.name: torch.arange(ffn.sizes[1]) % 3 > 0 for ffn in ffns})
    with recording(models[0], ffns) as record:
        collect_statistics(models[0], ffns, sequences)
    stream = open_stream(models[0], ffns, sequences, record)
    _, repaired = repair_ffns(models[0], ffns, masks, LeastSquaresRepair(), stream)
    for model in models:
        apply_masks(model, find_ffns(model), masks, form, repaired=repaired)
    owners = [{p.data_ptr() for p in model.parameters()} for model in models]
    owners.append({t.data_ptr() for one in repaired.values() for t in (one.weight, one.bias) if t is not None})
    assert len(set.union(*owners)) == sum(map(len, owners))


def test_a_width_that_cannot_be_padded_to_is_refused_before_anything_is_written() -> None:
    model = mlp(6, 12, 10, 3)
    ffns, before = find_ffns(model), Snapshot(model)
    layers = ffns.layers
    assert len({layer.size for layer in layers.values()}) == 2
    masks = Masks({name: torch.arange(layer.size) % 3 > 0 for name, layer in layers.items()})
    maps = {layer.output_maps[0].name: layer.output_maps[0].weight for layer in layers.values()}
    repaired = {name: RepairedMap(torch.zeros_like(weight), None, None, 0.0, 0.0) for name, weight in maps.items()}
    with pytest.raises(MaskError, match="needs layers of one original width"):
        apply_masks(model, ffns, masks, form="padded", repaired=repaired, undoable=False)
    before.assert_restored()


def test_repairs_of_another_model_are_refused() -> None:
    model = tiny_llama()
    before, ffns = Snapshot(model), find_ffns(model)
    masks = Masks({ffn.name: torch.arange(ffn.sizes[1]) > 3 for ffn in ffns})
    fits = RepairedMap(torch.zeros(16, 40).double(), None, None, 0.0, 0.0)
    other = RepairedMap(torch.zeros(16, 39).double(), None, None, 0.0, 0.0)
    name = "model.layers.0.mlp.down_proj"
    for repaired, message in (
        ({name: other}, r"\(16, 39\), the model's map \(16, 40\)"),
        ({"down": fits}, "is not there"),
    ):
        with pytest.raises(MaskError, match=message):
            apply_masks(model, ffns, masks, repaired=repaired)
        before.assert_restored()


def test_moments_are_exact_whatever_precision_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", seen.append)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    Moments.of(torch.ones(3, 2), torch.ones(3, 2))
    assert seen == ["highest", "medium", "highest", "medium"]


def test_errors_of_many_outputs_are_estimated() -> None:
    """The combinations keep a mean square, and the damping is as good as the best one to a per cent."""
    x, weight, keep = data(5, 200, 12, 600)
    inputs, matrix, kept = tensors(x, weight, keep)
    fit, held_out = Moments.of(inputs[:150]), Moments.of(inputs[150:])
    found = LeastSquaresRepair().solve(matrix, None, kept, fit, held_out)
    assert found.weight is not None

    def error(weight: torch.Tensor) -> float:
        return float((inputs[150:] @ (matrix - weight).T).square().sum())

    scale = float((inputs[150:] @ matrix.T).square().sum())
    assert found.after == pytest.approx(error(found.weight) / scale, rel=0.2)
    assert found.before == pytest.approx(error(torch.where(kept, matrix, 0.0)) / scale, rel=0.2)
    trials = [LeastSquaresRepair(damping).solve(matrix, None, kept, fit, None).weight for damping in DAMPINGS[:-1]]
    assert error(found.weight) <= 1.01 * min(error(trial) for trial in trials if trial is not None)
