"""The graph, the statistics, the scores and the repair of experts, against loops over tokens and experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmrank import prune_model
from llmrank.calibration.collect import collect_statistics
from llmrank.errors import OptionError
from llmrank.execution import Execution
from llmrank.models import find_ffns
from llmrank.models.experts import by_expert
from llmrank.pipeline.registry import make_scorer
from llmrank.prune.masks import Masks
from llmrank.repair import LeastSquaresRepair
from llmrank.repair.moments import MomentSums
from llmrank.score import WeightedPageRankScorer
from llmrank.score.model_graph import edge_weights
from llmrank.score.topologies import build_graphs
from llmrank.text import TokenSequences
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import tiny_llama

IDS = torch.randint(3, 64, (4, 20), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS, dtype=torch.bool)
MASK[1, 12:] = False
SEQUENCES = TokenSequences.of(IDS, MASK, "ids")


class Textbook:
    """What goes through one mixture of a Qwen2-MoE, by the formulas of its parts: routing, hidden neurons, outputs."""

    def __init__(self, model: Any, layer: int) -> None:
        block = model.model.layers[layer].mlp
        seen: list[torch.Tensor] = []
        handle = block.register_forward_pre_hook(lambda _block, args: seen.append(args[0].detach()))
        with torch.no_grad():
            model(input_ids=IDS, attention_mask=MASK.long(), use_cache=False)
        handle.remove()
        self.inputs = seen[0][MASK].double()
        experts = block.experts
        gate_up, self.down = experts.gate_up_proj.detach().double(), experts.down_proj.detach().double()
        self.gate, self.up = gate_up[:, :24], gate_up[:, 24:]
        probabilities = torch.softmax(self.inputs @ block.gate.weight.detach().double().T, -1)
        top = torch.topk(probabilities, 2)
        self.weight = torch.zeros_like(probabilities)
        for token in range(len(self.inputs)):
            for expert, value in zip(top.indices[token], top.values[token], strict=True):
                self.weight[token, expert] = value
        self.hidden = [
            torch.nn.functional.silu(self.inputs @ self.gate[e].T) * (self.inputs @ self.up[e].T) for e in range(8)
        ]
        self.outputs = [self.hidden[e] @ self.down[e].T for e in range(8)]
        self.routed = [self.weight[:, e] > 0 for e in range(8)]


@pytest.fixture(scope="module")
def mixture() -> tuple[Any, Any, Any, Textbook]:
    model = tiny_mixture("qwen2_moe")
    ffns = find_ffns(model)
    return model, ffns, collect_statistics(model, ffns, SEQUENCES, Execution(3)), Textbook(model, 1)


def of_layer(ffns: Any, statistics: Any, layer: int) -> list[tuple[Any, Any]]:
    return [(f, s) for f, s in zip(ffns, statistics, strict=True) if f"layers.{layer}." in f.name]


def test_statistics_are_sums_over_the_tokens_of_each_expert(mixture: Any) -> None:
    _, ffns, statistics, book = mixture
    *experts, (shared, shared_entry) = of_layer(ffns, statistics, 1)
    assert shared.name.endswith("shared_expert")
    assert shared_entry.routing is None
    assert len(experts) == 8
    for e, (ffn, entry) in enumerate(experts):
        routed, p = book.routed[e], book.weight[:, e]
        x, f = book.hidden[e], book.outputs[e]
        norms = f.norm(dim=-1)
        assert ffn.name == f"model.layers.1.mlp.experts.{e}"
        assert entry.routing.count == entry.layers[1].count == int(routed.sum())
        expected = [
            (entry.routing.weight, p.sum()),
            (entry.routing.output_norm, norms[routed].sum()),
            (entry.routing.weighted_output_norm, (p * norms).sum()),
            (entry.routing.output_variance, f[routed].var(0, correction=0).sum()),
        ]
        for found, wanted in expected:
            assert found == pytest.approx(float(wanted), rel=1e-4)
        torch.testing.assert_close(entry.routing.weighted_norm, (p[:, None] * x).norm(dim=0), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(entry.layers[1].norm, x[routed].norm(dim=0), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(entry.layers[1].mean, x[routed].mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(entry.mixture.inputs.norm, book.inputs.norm(dim=0), rtol=1e-4, atol=1e-6)


def test_edges_are_weighted_by_use(mixture: Any) -> None:
    _, ffns, statistics, book = mixture
    entry = build_graphs(ffns, statistics, "isolated")[1]
    n_tokens = len(book.inputs)
    into, out, activations = [], [], []
    for e in range(8):
        pi = float(book.weight[:, e].sum()) / n_tokens
        into.append(pi * (book.gate[e].abs() + book.up[e].abs()))
        out.append(book.down[e].abs())
        activations.append((book.hidden[e] * book.weight[:, e, None]).norm(dim=0))
    found_into, found_out = edge_weights(entry.graph, 1), edge_weights(entry.graph, 2)
    torch.testing.assert_close(found_into[:192].double(), torch.cat(into), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found_out[:, :192].double(), torch.cat(out, 1), rtol=1e-4, atol=1e-7)
    found = torch.from_numpy(np.array(entry.graph.activations[1]))[:192].double()
    torch.testing.assert_close(found, torch.cat(activations), rtol=1e-4, atol=1e-6)
    # PageRank by its formula: every source divides its score among its edges by their weights.
    result = WeightedPageRankScorer(gamma=0.6, dtype="float64").rank(entry.graph, entry.statistics)
    start = torch.from_numpy(np.array(entry.graph.activations[0])).double()
    weight, own = found_into.double(), torch.from_numpy(np.array(entry.graph.activations[1])).double()
    passed = torch.zeros(len(own), dtype=torch.float64)
    for source in range(weight.shape[1]):
        passed += weight[:, source] / weight[:, source].sum() * start[source] / start.sum()
    expected = 0.6 * passed + 0.4 * own / own.sum()
    np.testing.assert_allclose(result.scores[1], expected.numpy(), rtol=1e-5)
    importance = entry.importance(result)
    assert list(importance) == [f"model.layers.1.mlp.experts.{e}" for e in range(8)] + [
        "model.layers.1.mlp.shared_expert"
    ]
    np.testing.assert_allclose(importance["model.layers.1.mlp.experts.3"], expected.numpy()[72:96], rtol=1e-5)


def test_scores_of_experts_are_those_of_their_papers(mixture: Any) -> None:
    _, ffns, statistics, book = mixture
    entry = build_graphs(ffns, statistics, "isolated")[1]
    tokens = [torch.nonzero(routed).flatten().tolist() for routed in book.routed]
    norm = [book.outputs[e].norm(dim=-1) for e in range(8)]
    formulas = {
        "frequency": [len(own) for own in tokens],
        "ean": [sum(float(norm[e][t]) for t in own) for e, own in enumerate(tokens)],
        "reap": [
            sum(float(book.weight[t, e]) * float(norm[e][t]) for t in own) / len(own) for e, own in enumerate(tokens)
        ],
        "mone": [len(own) * float(book.outputs[e][own].var(0).sum()) ** 0.5 for e, own in enumerate(tokens)],
    }
    for name, wanted in formulas.items():
        importance = entry.importance(make_scorer(name).rank(entry.graph, entry.statistics))
        found = [float(importance[f"model.layers.1.mlp.experts.{e}"].sum()) for e in range(8)]
        np.testing.assert_allclose(found, np.array(wanted) / sum(wanted), rtol=1e-4)


def test_scores_of_experts_are_for_experts_and_leave_other_graphs_alone() -> None:
    model = tiny_mixture("deepseek_v3")
    with pytest.raises(OptionError, match="does not tell their neurons apart; expected targets='experts'"):
        prune_model(model, None, 0.25, scorer="reap", repair="none", calibration=IDS)
    pruned = prune_model(model, None, 0.25, targets="experts", scorer="reap", repair="none", calibration=IDS)
    assert {mixture.n_experts for mixture in find_ffns(pruned.model).mixtures} == {6}
    with pytest.raises(OptionError, match="has no experts that could be removed"):
        prune_model(tiny_llama(), None, 0.25, targets="experts", scorer="reap", repair="none", calibration=IDS)


def test_an_expert_that_gets_no_token_has_no_edges_and_goes_first() -> None:
    model = tiny_mixture("mixtral")
    model.model.layers[0].mlp.gate.weight.data[5] = 0.0
    model.model.layers[0].input_layernorm.weight.data.fill_(1.0)
    hook = model.model.layers[0].mlp.gate.register_forward_pre_hook(lambda _gate, args: (args[0].abs(),))
    model.model.layers[0].mlp.gate.weight.data[:5].abs_()
    model.model.layers[0].mlp.gate.weight.data[6:].abs_()
    ffns = find_ffns(model)
    statistics = collect_statistics(model, ffns, SEQUENCES)
    assert statistics[5].routing is not None
    assert statistics[5].routing.count == 0
    entry = build_graphs(ffns, statistics, "isolated")[0]
    assert not edge_weights(entry.graph, 1)[5 * 24 : 6 * 24].any()
    scores = entry.importance(WeightedPageRankScorer().rank(entry.graph, entry.statistics))
    assert float(scores["model.layers.0.mlp.experts.5"].sum()) == 0.0
    hook.remove()


def test_least_squares_count_tokens_by_their_squared_routing_weights(mixture: Any) -> None:
    model, ffns, _, book = mixture
    ffn = next(f for f in ffns if f.name == "model.layers.1.mlp.experts.2")
    output_map = ffn.prunable[1].output_maps[0]
    sums = MomentSums(24, torch.device("cpu"), routing=output_map.module.routing)
    handle = output_map.module.register_forward_pre_hook(
        lambda module, args: sums.add(args[0], MASK.reshape(-1)[module.routing.tokens])
    )
    with torch.no_grad(), by_expert(ffns.mixtures):
        model(input_ids=IDS, attention_mask=MASK.long(), use_cache=False)
    handle.remove()
    sums.end_batch(None)
    fit, _ = sums.moments()
    keep = Masks({"expert": [1] * 10 + [0] * 14})["expert"]
    weight = output_map.weight.double()
    solved = LeastSquaresRepair(damping=0.0).solve(weight, None, keep, fit, None)
    routed = book.routed[2]
    p, x = book.weight[routed, 2, None], book.hidden[2][routed]
    target, kept = (p * (x @ weight.T)).numpy(), (p * x[:, :10]).numpy()
    expected = np.linalg.lstsq(kept, target, rcond=None)[0].T
    assert solved.weight is not None
    np.testing.assert_allclose(solved.weight[:, :10].numpy(), expected, rtol=1e-3, atol=1e-4)
    assert not solved.weight[:, 10:].any()
