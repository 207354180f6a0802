"""Scorers compared with textbook loops, and the rank method that every subclass of BaseScorer inherits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphs import GraphError, LayeredGraph
from graphs.analysis.flow import gamma_of, is_modified
from graphs.linalg.stacking import StackedBlock
from llmrank.calibration.statistics import LayerStatistics
from llmrank.errors import LLMRankError, OptionError
from llmrank.score import (
    ActivationScorer,
    BaseScorer,
    FLAPScorer,
    ForwardBackwardScorer,
    ModifiedPageRankScorer,
    NormScorer,
    RandomScorer,
    WandaScorer,
    WandaSPScorer,
    WeightedPageRankScorer,
)
from llmrank.score.model_graph import edge_weights
from llmrank.score.topologies import build_graphs
from tests.llmrank import textbook
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_models import mlp, tiny_llama, token_ids
from tests.tables import table

# Two blocks, 3 -> 4 -> 2; column 1 of the first dangles.
FIRST = [[1.0, 0.0, -2.0], [0.5, 0.0, 0.0], [0.0, 0.0, 3.0], [-1.5, 0.0, 1.0]]
SECOND = [[2.0, -1.0, 0.0, 0.5], [0.0, 1.0, 4.0, -0.5]]
INPUTS, HIDDEN, OUTPUTS = [2.0, 1.0, 1.0], [1.0, 4.0, 2.0, 0.5], [3.0, 1.0]
VARIANCE = [0.5, 0.25, 2.0, 0.125]


def statistics(vector: list[float], variance: list[float] | None = None, read: list[float] | None = None) -> Any:
    norm = torch.tensor(vector, dtype=torch.float64)
    spread = torch.tensor(variance if variance is not None else [0.0] * len(vector), dtype=torch.float64)
    return LayerStatistics(norm, norm / 10, spread, 5, norm if read is None else torch.tensor(read).double())


def small_graph() -> LayeredGraph:
    return LayeredGraph.from_weights([torch.tensor(FIRST), torch.tensor(SECOND)], INPUTS, [HIDDEN, OUTPUTS])


LAYERS = (statistics(INPUTS), statistics(HIDDEN, VARIANCE), statistics(OUTPUTS))


def both_ways(gamma: float, theta: float, balance: float, power: int) -> list[list[float]]:
    """Compute the forward-backward scores of all three layers."""
    first, second = ([[w**power for w in map(abs, row)] for row in weight] for weight in (FIRST, SECOND))
    inputs, hidden, outputs = ([a**power for a in layer] for layer in (INPUTS, HIDDEN, OUTPUTS))
    ahead = [textbook.share(inputs)]
    ahead.append(textbook.weighted(first, ahead[0], hidden, gamma, theta))
    ahead.append(textbook.weighted(second, ahead[1], outputs, gamma, theta))
    last = textbook.share(outputs)
    back = textbook.backward(second, last, hidden, gamma, theta)
    behind = [textbook.backward(first, back, inputs, gamma, theta), back, last]
    return [
        textbook.share([r**balance * b ** (1 - balance) for r, b in zip(*pair, strict=True)])
        for pair in zip(ahead, behind, strict=True)
    ]


# gamma, theta, balance, power of weights and activations
BOTH_WAYS = {
    "fbpr": (0.5, 1.0, 0.5, 1),
    "fbpr-mixed": (0.8, 0.25, 0.7, 1),
    "fbpr-back": (0.9, 1.0, 0.0, 1),
    "fbpr-ahead": (0.5, 1.0, 1.0, 1),
    "fbpr-energy": (0.5, 1.0, 0.3, 2),
}


def expected(name: str) -> list[list[float]]:
    """Compute the importance of the hidden and the output layer with the loops."""
    first = textbook.share(INPUTS)
    if name == "norm":
        return [textbook.share(textbook.norm(w, 1)) for w in (FIRST, SECOND)]
    if name == "norm3":
        return [textbook.share(textbook.norm(w, 3)) for w in (FIRST, SECOND)]
    if name == "norm-inf":
        return [textbook.share(textbook.norm(w, math.inf)) for w in (FIRST, SECOND)]
    if name == "activation":
        return [textbook.share(HIDDEN), textbook.share(OUTPUTS)]
    if name == "wanda":
        return [textbook.share(textbook.wanda(FIRST, INPUTS)), textbook.share(textbook.wanda(SECOND, HIDDEN))]
    if name.startswith("wanda-sp"):
        p = float(name[-1]) if name[-1].isdigit() else 1.0
        return [textbook.share(textbook.wanda_sp(SECOND, HIDDEN, p)), textbook.share(OUTPUTS)]
    if name == "flap":
        return [textbook.share(textbook.flap(SECOND, VARIANCE)), textbook.share(OUTPUTS)]
    if name.startswith("fbpr"):
        return both_ways(*BOTH_WAYS[name])[1:]
    if name == "wpr-energy":
        squares = [[[w * w for w in row] for row in weight] for weight in (FIRST, SECOND)]
        hidden = textbook.weighted(squares[0], textbook.share([a * a for a in INPUTS]), [a * a for a in HIDDEN], 0.5, 1)
        return [hidden, textbook.weighted(squares[1], hidden, [a * a for a in OUTPUTS], 0.5, 1)]
    if name == "mpr-energy":
        squares = [[[w * w for w in row] for row in weight] for weight in (FIRST, SECOND)]
        hidden = textbook.modified(squares[0], textbook.share([a * a for a in INPUTS]), [a * a for a in HIDDEN])
        return [hidden, textbook.modified(squares[1], hidden, [a * a for a in OUTPUTS])]
    if name.startswith("mpr"):
        zero = 0.5 if name.endswith("z") else 0.0
        hidden = textbook.modified(FIRST, first, HIDDEN, zero)
        return [hidden, textbook.modified(SECOND, hidden, OUTPUTS, zero)]
    gamma, theta = {"wpr": (0.5, 1.0), "wpr-mixed": (0.8, 0.25), "wpr-graph": (1.0, 0.5), "wpr-none": (0.0, 1.0)}[name]
    hidden = textbook.weighted(FIRST, first, HIDDEN, gamma, theta)
    return [hidden, textbook.weighted(SECOND, hidden, OUTPUTS, gamma, theta)]


SCORERS: dict[str, BaseScorer] = {
    "norm": NormScorer(),
    "norm3": NormScorer(3.0),
    "norm-inf": NormScorer(math.inf),
    "activation": ActivationScorer(),
    "wanda": WandaScorer(),
    "wanda-sp": WandaSPScorer(),
    "wanda-sp2": WandaSPScorer(p=2),
    "flap": FLAPScorer(),
    "wpr": WeightedPageRankScorer(),
    "wpr-mixed": WeightedPageRankScorer(0.8, 0.25),
    "wpr-graph": WeightedPageRankScorer(1.0, 0.5),
    "wpr-none": WeightedPageRankScorer(0.0),
    "mpr": ModifiedPageRankScorer(),
    "mpr-z": ModifiedPageRankScorer(zero_lowest=0.5),
    "wpr-energy": WeightedPageRankScorer(edges="energy"),
    "mpr-energy": ModifiedPageRankScorer(edges="energy"),
    **{
        name: ForwardBackwardScorer(gamma, theta, balance, edges="energy" if power == 2 else "magnitude")
        for name, (gamma, theta, balance, power) in BOTH_WAYS.items()
    },
}


@table("name", SCORERS)
def test_rank_equals_the_textbook(name: str) -> None:
    result = SCORERS[name].rank(small_graph(), LAYERS)
    # Outgoing scorers score the inputs too, by their outgoing edges; the variances of the inputs are zero.
    inputs = {"wanda-sp": textbook.wanda_sp(FIRST, INPUTS), "wanda-sp2": textbook.wanda_sp(FIRST, INPUTS, 2.0)}
    wanted = [0.0, 0.0, 0.0] if name == "flap" else inputs.get(name, INPUTS)
    if name.startswith("fbpr"):
        wanted = both_ways(*BOTH_WAYS[name])[0]
    elif name.endswith("-energy"):
        wanted = [a * a for a in INPUTS]
    np.testing.assert_allclose(result.scores[0], textbook.share(wanted), rtol=1e-6)
    for found, wanted in zip(result.scores[1:], expected(name), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9)
    assert all(scores.sum() == pytest.approx(1.0) for scores in result.scores)
    assert result.converged


def test_values_by_hand() -> None:
    # |W| a of the inputs: 1*2 + 2*1, 0.5*2, 3*1, 1.5*2 + 1*1 = 4, 1, 3, 4, over 12.
    np.testing.assert_allclose(WandaScorer().rank(small_graph(), ()).scores[1], np.array([4, 1, 3, 4]) / 12)
    # r_0 = (1/2, 1/4, 1/4); W r_0 = 1, 1/4, 3/4, 1; times a: 1, 1, 3/2, 1/2, over 4.
    np.testing.assert_allclose(
        ModifiedPageRankScorer().rank(small_graph(), ()).scores[1], np.array([2, 2, 3, 1]) / 8, rtol=1e-6
    )
    # P r_0 with strengths 3, 0, 6: 1/6+1/12, 1/12, 1/8, 1/4+1/24, mass 3/4; teleport a/7.5; N restores 1.
    mixed = np.array([1 / 4, 1 / 12, 1 / 8, 7 / 24]) / 2 + np.array([1.0, 4.0, 2.0, 0.5]) / 15
    np.testing.assert_allclose(
        WeightedPageRankScorer().rank(small_graph(), ()).scores[1], mixed / mixed.sum(), rtol=1e-6
    )


NUMBERS = st.one_of(st.just(0.0), st.floats(0.01, 10.0))


@given(
    weight=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=4),
    previous=st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    gamma=st.floats(0, 1),
    theta=st.floats(0, 1),
    zero=st.floats(0, 1),
    data=st.data(),
)
def test_score_is_the_step_of_the_rank(
    weight: list[list[float]], previous: list[float], gamma: float, theta: float, zero: float, data: st.DataObject
) -> None:
    own = data.draw(st.lists(NUMBERS, min_size=len(weight), max_size=len(weight)))
    graph = LayeredGraph.from_weights([weight], previous, [own])
    r, a, w = (torch.tensor(v, dtype=torch.float64) for v in (textbook.share(previous), own, weight))
    for scorer, by_loop in (
        (
            WeightedPageRankScorer(gamma, theta, dtype="float64"),
            textbook.weighted(weight, r.tolist(), own, gamma, theta),
        ),
        (ModifiedPageRankScorer(zero, dtype="float64"), None),
    ):
        step = scorer.score(r, r, a, w)
        np.testing.assert_allclose(step.numpy(), scorer.rank(graph, ()).scores[1], rtol=1e-9, atol=1e-12)
        if by_loop is not None and sum(own):
            np.testing.assert_allclose(step.numpy(), by_loop, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scorer", [WeightedPageRankScorer(0.7, 0.5), ModifiedPageRankScorer(0.3)])
def test_rank_of_the_base_class_equals_the_scorers_own_rank(scorer: BaseScorer) -> None:
    walk = BaseScorer.rank(scorer, small_graph(), LAYERS)
    for found, wanted in zip(walk.scores, scorer.rank(small_graph(), LAYERS).scores, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", [WeightedPageRankScorer, ModifiedPageRankScorer])
def test_single_and_double_precision_agree(kind: type[Any]) -> None:
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal((n, m)).astype(np.float32) for m, n in ((60, 200), (200, 60), (60, 200))]
    activations = [generator.random(n) + 0.1 for n in (60, 200, 60, 200)]
    graph = LayeredGraph.from_weights([torch.from_numpy(w) for w in weights], activations[0], activations[1:])
    single, double = kind(dtype="float32").rank(graph, ()), kind(dtype="float64").rank(graph, ())
    for a, b in zip(single.scores, double.scores, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)


class Records(BaseScorer):
    """A scorer that keeps the arguments of score(), and scores rows by their number."""

    def __init__(self) -> None:
        self._seen: list[tuple[torch.Tensor, ...]] = []

    def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
        self._seen.append((prev_importance, in_activations, out_activations, weight))
        return torch.arange(1, len(weight) + 1)


def test_rank_passes_importance_inputs_outputs_and_weights_to_score() -> None:
    scorer = Records()
    layers = (statistics(INPUTS, read=[7.0, 8.0, 9.0]), statistics(HIDDEN, read=[1.0, 2.0, 3.0, 4.0]), LAYERS[2])
    result = scorer.rank(small_graph(), layers)
    (prev, read, own, weight), (prev2, read2, own2, weight2) = scorer._seen
    assert prev.tolist() == [0.5, 0.25, 0.25]
    assert read.tolist() == [7.0, 8.0, 9.0]
    assert own.tolist() == HIDDEN
    assert weight.tolist() == [[abs(w) for w in row] for row in FIRST]
    torch.testing.assert_close(prev2, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert read2.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert own2.tolist() == OUTPUTS
    assert weight2.tolist() == [[abs(w) for w in row] for row in SECOND]
    assert {t.dtype for t in (prev, read, own, weight)} == {torch.float32}
    np.testing.assert_allclose(result.scores[2], [1 / 3, 2 / 3])
    # Without statistics, the graph's activations are used as input norms.
    bare = Records()
    bare.rank(small_graph(), ())
    assert bare._seen[0][1].tolist() == INPUTS
    assert bare._seen[1][1].tolist() == HIDDEN


class Gives(BaseScorer):
    """A scorer that returns a value of the test's choice."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
        return self._value if len(weight) == 4 else torch.ones(len(weight))


@table(
    ("value", "message"),
    [
        ([1.0, math.nan, 1.0, 1.0], "negative or non-finite scores for layer 1"),
        ([1.0, math.inf, 1.0, 1.0], "negative or non-finite scores for layer 1"),
        ([1.0, -1.0, 1.0, 1.0], "negative or non-finite scores for layer 1"),
        ([1.0, 1.0, 1.0], r"scores of shape \(3,\) for layer 1; expected \(4,\)"),
        ([[1.0, 1.0, 1.0, 1.0]], r"scores of shape \(1, 4\) for layer 1"),
        (1.0, r"scores of shape \(\) for layer 1"),
    ],
)
def test_unusable_scores_raise_with_the_layer_name(value: Any, message: str) -> None:
    with pytest.raises(LLMRankError, match=message):
        Gives(value).rank(small_graph(), LAYERS)


def test_scores_of_all_kinds_are_normalised() -> None:
    for value in ([0.0, 0.0, 0.0, 0.0], np.zeros(4), torch.zeros(4)):
        assert Gives(value).rank(small_graph(), ()).scores[1].tolist() == [0.25] * 4
    assert Gives([2, 0, 0, 2]).rank(small_graph(), ()).scores[1].tolist() == [0.5, 0.0, 0.0, 0.5]


def test_a_subclass_that_overrides_score_alone_is_ranked_by_it() -> None:
    class Uniform(WeightedPageRankScorer):
        def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
            return torch.ones(len(weight))

    class First(ActivationScorer):
        def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
            return torch.eye(len(weight))[0]

    class Mixin:
        def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
            return torch.eye(len(weight))[0]

    class Mixed(Mixin, ModifiedPageRankScorer):
        pass

    class Last(FLAPScorer):
        def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
            return torch.eye(len(weight))[-1]

    class Tuned(WeightedPageRankScorer):
        def parameters(self) -> dict[str, Any]:
            return {"tuned": True}

    assert Uniform().rank(small_graph(), LAYERS).scores[1].tolist() == [0.25] * 4
    assert First().rank(small_graph(), LAYERS).scores[1].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert First().rank(small_graph(), LAYERS).block_products == 2  # it reads the weights, which its parent does not
    assert Mixed().rank(small_graph(), LAYERS).scores[1].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert Last().rank(small_graph(), ()).scores[1].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert Tuned().rank(small_graph(), ()).solver == "sweep"


def test_base_scorer_asks_for_the_override() -> None:
    with pytest.raises(NotImplementedError, match="must override score"):
        BaseScorer().rank(small_graph(), LAYERS)


@pytest.mark.parametrize("topology", [ChainedFFNPipeline, IsolatedFFNPipeline])
def test_random_scores_depend_on_the_layer_name_alone(topology: Any) -> None:
    found = {}
    for seed in (0, 1):
        pipeline = topology(tiny_llama(), None, scorer=RandomScorer(seed), calibration=token_ids())
        pipeline.run()
        found[seed] = {k: v for e, r in zip(pipeline.model_graphs, pipeline.ranks, strict=True)
                       for k, v in e.importance(r).items()}  # fmt: skip
    chained = ChainedFFNPipeline(tiny_llama(), None, scorer=RandomScorer(0), calibration=token_ids())
    chained.run()
    for name, scores in chained.model_graphs[0].importance(chained.ranks[0]).items():
        assert torch.equal(scores, found[0][name])
        assert not torch.equal(scores, found[1][name])
    first, second = found[0].values()
    assert not torch.equal(first, second)


def test_random_score_continues_one_sequence() -> None:
    weight = torch.ones(6, 2)
    scorer, again = RandomScorer(3), RandomScorer(3)
    draws = [scorer.score(weight[0], weight[0], weight[:, 0], weight) for _ in range(2)]
    assert not torch.equal(*draws)
    assert torch.equal(draws[0], again.score(weight[0], weight[0], weight[:, 0], weight))
    assert all(bool(((d >= 0) & (d < 1)).all()) for d in draws)


@pytest.mark.parametrize("scorer", [WandaSPScorer(), FLAPScorer()])
def test_outgoing_scorers_need_statistics(scorer: BaseScorer) -> None:
    with pytest.raises(OptionError, match="needs the statistics of all 3 layers"):
        scorer.rank(small_graph(), ())


@table("make", [NormScorer, WandaSPScorer])
@table("p", [0.5, 0, -1, math.nan, "1", None])
def test_a_norm_order_below_one_raises(make: Any, p: Any) -> None:
    with pytest.raises(OptionError, match="p must be a number >= 1"):
        make(p=p)


@table("value", [-0.1, 1.1, math.nan, math.inf, "0.5", None])
def test_shares_out_of_range_raise(value: Any) -> None:
    for option, make in (
        ("gamma", WeightedPageRankScorer),
        ("theta", WeightedPageRankScorer),
        ("gamma", ForwardBackwardScorer),
        ("theta", ForwardBackwardScorer),
        ("balance", ForwardBackwardScorer),
        ("zero_lowest", ModifiedPageRankScorer),
    ):
        with pytest.raises(OptionError, match=rf"{option} must be a number in \[0, 1\]"):
            make(**{option: value})


@table("make", [WeightedPageRankScorer, ModifiedPageRankScorer])
@table("option", ["solver", "backend", "dtype", "edges"])
def test_unknown_choices_raise_at_construction(make: Any, option: str) -> None:
    with pytest.raises(OptionError, match=rf"unknown {option} 'jacobi'; expected one of"):
        make(**{option: "jacobi"})
    with pytest.raises(OptionError, match=rf"unknown {option} array"):
        make(**{option: np.array([])})
    with pytest.raises(OptionError, match="device must be the name of a device, or None"):
        make(device=np.array([]))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ForwardBackwardScorer, {"backend": "jacobi"}, "unknown backend 'jacobi'"),
        (ForwardBackwardScorer, {"edges": "signed"}, "unknown edges 'signed'; expected one of magnitude, energy, gate"),
        (ForwardBackwardScorer, {"device": 0}, "device must be the name of a device, or None"),
    ],
)
def test_unknown_options_raise(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make(**options)


@pytest.mark.parametrize("scorer", [WeightedPageRankScorer(edges="energy"), ModifiedPageRankScorer(edges="energy")])
def test_energies_of_parallel_edges_are_squared_one_by_one(scorer: BaseScorer) -> None:
    other = [[0.5, 1.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.25], [1.0, 1.0, 1.0]]
    graph = LayeredGraph.from_weights([(torch.tensor(FIRST), torch.tensor(other))], INPUTS, [HIDDEN])
    squares = [[a * a + b * b for a, b in zip(*rows, strict=True)] for rows in zip(FIRST, other, strict=True)]
    inputs, hidden = [a * a for a in INPUTS], [a * a for a in HIDDEN]
    if isinstance(scorer, WeightedPageRankScorer):
        wanted = textbook.weighted(squares, textbook.share(inputs), hidden, 0.5, 1.0)
    else:
        wanted = textbook.modified(squares, textbook.share(inputs), hidden)
    np.testing.assert_allclose(scorer.rank(graph, ()).scores[1], wanted, rtol=1e-5)


def test_gate_edges_are_the_squares_of_the_first_of_parallel_edges() -> None:
    other = [[0.5, 1.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.25], [1.0, 1.0, 1.0]]
    weights = [(torch.tensor(FIRST), torch.tensor(other)), torch.tensor(SECOND)]
    graph = LayeredGraph.from_weights(weights, INPUTS, [HIDDEN, OUTPUTS])
    first, second = ([[a * a for a in row] for row in rows] for rows in (FIRST, SECOND))
    inputs, hidden, outputs = ([a * a for a in vector] for vector in (INPUTS, HIDDEN, OUTPUTS))
    into_hidden = textbook.weighted(first, textbook.share(inputs), hidden, 0.2, 1.0)
    result = WeightedPageRankScorer(gamma=0.2, edges="gate").rank(graph, ())
    np.testing.assert_allclose(result.scores[1], into_hidden, rtol=1e-5)
    np.testing.assert_allclose(result.scores[2], textbook.weighted(second, into_hidden, outputs, 0.2, 1.0), rtol=1e-5)
    # Without parallel edges, gate edges are energies.
    plain = small_graph()
    for gate, energy in zip(
        WeightedPageRankScorer(edges="gate").rank(plain, ()).scores,
        WeightedPageRankScorer(edges="energy").rank(plain, ()).scores,
        strict=True,
    ):
        np.testing.assert_array_equal(gate, energy)


def test_a_rank_of_energies_has_a_method_name_of_its_own() -> None:
    graph = small_graph()
    for scorer, method in (
        (WeightedPageRankScorer(edges="gate"), "weighted pagerank of gate energies"),
        (WeightedPageRankScorer(edges="energy"), "weighted pagerank of energies"),
        (ModifiedPageRankScorer(edges="energy"), "modified pagerank of energies"),
    ):
        rank = scorer.rank(graph, ())
        assert (rank.method, gamma_of(rank), is_modified(rank)) == (method, None, False)
        # The rank is explained by the graph with squared weights, and there by its plain name.
        squared, explained = scorer.explained(graph, rank)
        assert squared.block(1).toarray().tolist() == graph.squared().block(1).toarray().tolist()
        assert (gamma_of(explained), is_modified(explained)) == ((None, True) if "modified" in method else (0.5, False))
    assert gamma_of(ForwardBackwardScorer().rank(small_graph(), ())) is None


def test_the_forward_backward_rank_costs_the_sum_of_both_ranks() -> None:
    graph = LayeredGraph.from_weights([torch.tensor(FIRST), torch.tensor(SECOND)], INPUTS, [HIDDEN, OUTPUTS])
    there, back = (WeightedPageRankScorer().rank(each, ()) for each in (graph, graph.reversed()))
    assert there.step_products
    found = ForwardBackwardScorer().rank(graph, ())
    assert found.step_products == there.step_products + back.step_products


def test_a_layer_without_a_node_in_both_ranks_is_uniform_and_reported() -> None:
    # The inputs reach only node 0, and the outputs depend only on node 1.
    graph = LayeredGraph.from_weights([[[1.0], [0.0]], [[0.0, 1.0]]], [1], [[1, 1], [1]])
    result = ForwardBackwardScorer(gamma=1.0).rank(graph, ())
    assert result.scores[1].tolist() == [0.5, 0.5]
    # No score arrives at the last layer, and in the backward rank none at the first.
    assert [entry.layer for entry in result.degenerate] == [2, 0, 1]
    assert "no node has a positive score in both ranks" in result.degenerate[-1].reason


def test_degenerate_layers_have_their_numbers_in_the_graph() -> None:
    graph = LayeredGraph.from_weights(
        [np.ones((3, 2)), np.ones((2, 3)), np.zeros((2, 2))], np.ones(2), [np.ones(3), np.ones(2), np.ones(2)]
    )
    result = ForwardBackwardScorer(gamma=1.0).rank(graph, ())
    # No score arrives at layer 3, and in the backward rank none at layer 2.
    assert [entry.layer for entry in result.degenerate] == [3, 2]


@table("seed", [-1, 0.5, None, 2**63, 10**23])
def test_a_bad_seed_raises(seed: Any) -> None:
    with pytest.raises(OptionError, match="seed must be an integer from 0 to"):
        RandomScorer(seed)


def test_parameters_are_the_public_attributes() -> None:
    assert WeightedPageRankScorer(gamma=0.7).parameters() == {
        "gamma": 0.7,
        "theta": 1.0,
        "solver": "sweep",
        "backend": "auto",
        "device": None,
        "dtype": "float32",
        "edges": "magnitude",
    }
    assert RandomScorer(4).parameters() == {"seed": 4}
    assert Records().parameters() == {}


def test_every_scorer_that_reads_a_nan_weight_raises() -> None:
    weight = torch.tensor(FIRST)
    weight[2, 0] = math.nan
    graph = LayeredGraph.from_weights([weight, SECOND], INPUTS, [HIDDEN, OUTPUTS], check_finite=False)
    for scorer in (NormScorer(), WandaScorer()):
        with pytest.raises(LLMRankError, match="negative or non-finite"):
            scorer.rank(graph, LAYERS)
    for scorer in (
        WeightedPageRankScorer(),
        ModifiedPageRankScorer(),
        ForwardBackwardScorer(),
        WeightedPageRankScorer(edges="energy"),
    ):
        with pytest.raises(GraphError, match="NaN or Inf"):
            scorer.rank(graph, LAYERS)


def test_edge_weights_are_float32_or_wider_and_non_negative() -> None:
    half = torch.tensor(FIRST, dtype=torch.float16)
    graph = LayeredGraph.from_weights([(half, half)], INPUTS, [HIDDEN])
    weight = edge_weights(graph, 1)
    assert weight.dtype == torch.float32
    assert weight.tolist() == [[2 * abs(w) for w in row] for row in FIRST]
    assert torch.equal(edge_weights(graph.with_csr(), 1).float(), weight)


def test_edge_weights_of_a_stack_have_its_scales() -> None:
    first = torch.tensor(FIRST, dtype=torch.bfloat16)
    for axis in (0, 1):
        block = StackedBlock.from_weights([(first, first), first, first.double()], [0.5, 0.0, 2.0], axis)
        graph = LayeredGraph.from_weights([block], np.ones(block.shape[1]), [np.ones(block.shape[0])])
        expected = torch.cat([first.abs().double(), 0.0 * first.double(), 2.0 * first.abs().double()], dim=axis)
        assert torch.equal(edge_weights(graph, 1), expected)


def test_an_unknown_topology_raises() -> None:
    with pytest.raises(OptionError, match="expected one of isolated, chained, residual"):
        build_graphs((), (), "star")  # type: ignore[arg-type]


def test_a_custom_scorer_only_needs_a_subclass_to_prune_a_model() -> None:
    class LastOnes(BaseScorer):
        def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
            return torch.arange(len(weight), 0, -1)

    model = mlp(4, 10, 3)
    kept = model[0].weight.detach()[:7].clone()
    ChainedFFNPipeline(model, None, scorer=LastOnes(), calibration=torch.randn(20, 4)).run()
    assert torch.equal(model[0].weight, kept)


def test_a_layer_without_scores_is_uniform_and_reported() -> None:
    graph = LayeredGraph.from_weights([np.zeros((3, 2)), np.ones((2, 3))], np.ones(2), [np.ones(3), np.ones(2)])
    result = WandaScorer().rank(graph, ())
    assert result.scores[1].tolist() == pytest.approx([1 / 3] * 3)
    assert [entry.layer for entry in result.degenerate] == [1]


@table("scorer", [NormScorer(), ActivationScorer(), WandaSPScorer(), FLAPScorer()])
def test_every_scorer_reports_layers_without_scores(scorer: BaseScorer) -> None:
    zero = LayeredGraph.from_weights([np.zeros((4, 3)), np.zeros((2, 4))], [0] * 3, [[0] * 4, [0] * 2])
    result = scorer.rank(zero, (statistics([0] * 3), statistics([0] * 4), statistics([0] * 2)))
    assert [entry.layer for entry in result.degenerate] == [0, 1, 2]
    assert [vector.tolist() for vector in result.scores] == [pytest.approx([1 / n] * n) for n in (3, 4, 2)]


def test_only_scorers_that_read_the_weights_count_products() -> None:
    for scorer, products in ((ActivationScorer(), 0), (RandomScorer(), 0), (NormScorer(), 2), (WandaSPScorer(), 2)):
        assert scorer.rank(small_graph(), LAYERS).block_products == products


def test_random_scorers_of_one_seed_are_equal() -> None:
    assert RandomScorer(0) == RandomScorer(0) != RandomScorer(1)
