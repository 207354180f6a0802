"""The residual topology: ranks along a stream with skip edges, compared with loops over the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from graphs import pagerank
from graphs.structures.digraph import BlockDigraph, EdgeBlock
from llmrank.calibration.collect import collect_statistics
from llmrank.errors import OptionError, StructureError
from llmrank.execution import Execution
from llmrank.models import find_ffns
from llmrank.pipeline import CalibrationText, Recipe, stages
from llmrank.pipeline.plan import rank_model
from llmrank.prune import GlobalPruner, LocalPruner
from llmrank.prune.selection import Reselection
from llmrank.repair import LeastSquaresRepair
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
from llmrank.score.rank_graphs import rank_graphs
from llmrank.score.topologies import build_graphs
from llmrank.text import tokenise
from tests.llmrank import textbook
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from tests.llmrank.tiny_models import Snapshot, logits, mlp, repeated, tiny_llama, tiny_t5, token_ids
from tests.tables import table

IDS = token_ids()
EXACT = WeightedPageRankScorer(dtype="float64")


def ranked(scorer: BaseScorer = EXACT, layers: int = 3, **options: Any) -> Any:
    """Rank the residual graphs of a model, and prune nothing."""
    model, execution = tiny_llama(num_hidden_layers=layers), Execution()
    recipe = Recipe("residual", scorer, repair=None, calibration=CalibrationText(IDS), **options)
    prepared = stages.find(model, None, recipe, execution)
    tokens = stages.calibration_tokens(prepared, recipe, execution)
    found = rank_model(prepared, recipe, stages.calibrate(prepared, recipe, tokens, execution), tokens, execution)
    return SimpleNamespace(model=model, attention=recipe.attention, model_graphs=found.graphs, ranks=found.ranks)


def importance(pipeline: Any) -> dict[str, torch.Tensor]:
    pairs = zip(pipeline.model_graphs, pipeline.ranks, strict=True)
    return {name: scores for entry, rank in pairs for name, scores in entry.importance(rank).items()}


def by_hand(pipeline: Any, beta: float, gamma: float = 0.5) -> dict[str, list[float]]:
    """Compute the ranks with loops: past and through attention and FFN, block by block."""
    model, activations = pipeline.model, [list(map(list, e.graph.activations)) for e in pipeline.model_graphs]
    units: list[tuple[str, Any, Any]] = []
    for k, block in enumerate(model.model.layers):
        if pipeline.attention:
            value = repeated(block.self_attn.v_proj.weight).abs()
            units.append(("", value, block.self_attn.o_proj.weight.abs()))
        up = block.mlp.gate_proj.weight.abs() + block.mlp.up_proj.weight.abs()
        units.append((f"model.layers.{k}.mlp", up, block.mlp.down_proj.weight.abs()))
    stream = textbook.share(activations[0][0])
    found = {}
    for (name, first, second), (_, middle, last) in zip(units, activations, strict=True):
        hidden = textbook.weighted(first.double().tolist(), stream, middle, gamma, 1.0)
        behind = textbook.weighted(second.double().tolist(), hidden, last, gamma, 1.0)
        stream = [beta * x + (1 - beta) * s for x, s in zip(stream, behind, strict=True)]
        if name:
            found[name] = hidden
    return found


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_ranks_equal_loops_over_the_model(beta: float, attention: bool) -> None:
    pipeline = ranked(beta=beta, attention=attention)
    found, wanted = importance(pipeline), by_hand(pipeline, beta)
    assert list(found) == list(wanted)
    for name, scores in found.items():
        np.testing.assert_allclose(scores, wanted[name], rtol=1e-6)
    assert [len(entry.prunable) for entry in pipeline.model_graphs] == ([0, 1] if attention else [1]) * 3


def test_forward_backward_ranks_follow_the_stream_too() -> None:
    scorer, beta = ForwardBackwardScorer(dtype="float64"), 0.6
    pipeline = ranked(scorer, beta=beta)
    stream: Any = None
    for entry, rank in zip(pipeline.model_graphs, pipeline.ranks, strict=True):
        graph = entry.graph if stream is None else entry.graph.with_activations(0, stream)
        wanted = scorer.rank(graph, entry.statistics).scores
        for found, scores in zip(rank.scores, wanted, strict=True):
            np.testing.assert_allclose(found, scores, rtol=1e-12)
        stream = beta * (wanted[0] if stream is None else stream) + (1 - beta) * wanted[-1]


@pytest.mark.parametrize(
    "scorer",
    [EXACT, ModifiedPageRankScorer(dtype="float64"), WeightedPageRankScorer(dtype="float64", edges="energy")],
    ids=["weighted", "modified", "energy"],
)
def test_without_skip_edges_the_ranks_are_those_of_the_chain(scorer: BaseScorer) -> None:
    residual = ranked(scorer, beta=0)
    chained = ChainedFFNPipeline(tiny_llama(num_hidden_layers=3), None, scorer=scorer, calibration=IDS)
    chained.run()
    for name, scores in importance(chained).items():
        torch.testing.assert_close(importance(residual)[name], scores, rtol=1e-9, atol=0)
    assert residual.model_graphs[1].statistics[0] is residual.model_graphs[0].statistics[-1]


def test_ranks_with_gamma_one_are_a_random_walk_with_skip_edges() -> None:
    """With gamma 1 and no dangling node, scores flow through a digraph in shares of its blocks and skip edges."""
    beta = 0.4
    pipeline = ranked(WeightedPageRankScorer(1.0, dtype="float64"), beta=beta)
    chain = [block for entry in pipeline.model_graphs for block in entry.graph.blocks]
    identity = build_identity(16)
    edges = []
    for k in range(3):
        edges.append(EdgeBlock(2 * k, 2 * k + 1, chain[2 * k], share=1 - beta))
        edges.append(EdgeBlock(2 * k + 1, 2 * k + 2, chain[2 * k + 1], share=1.0))
        edges.append(EdgeBlock(2 * k, 2 * k + 2, identity, share=beta))
    digraph = BlockDigraph((16, 40, 16, 40, 16, 40, 16), tuple(edges), tuple("abcdefg"))
    teleport = np.zeros(digraph.n_nodes)
    teleport[:16] = pipeline.ranks[0].scores[0]
    # The walk starts in the first layer, and hardly any of it stops on the way.
    result = pagerank(digraph, gamma=1 - 1e-12, teleport=teleport)
    for k in range(3):
        scores = result.scores[2 * k + 1]
        np.testing.assert_allclose(pipeline.ranks[k].scores[1], scores / scores.sum(), rtol=1e-6)


def build_identity(size: int) -> Any:
    from graphs import LayeredGraph

    return LayeredGraph.from_weights([np.eye(size)], np.ones(size), [np.ones(size)]).with_csr().blocks[0]


def test_the_skip_share_of_a_block_is_divided_among_its_graphs() -> None:
    plain, both = ranked(), ranked(attention=True)
    skips = [entry.skip for entry in plain.model_graphs]
    assert all(0 < skip < 1 for skip in skips)
    assert len(set(skips)) == 3
    for k, skip in enumerate(skips):
        first, second = both.model_graphs[2 * k : 2 * k + 2]
        assert first.skip == second.skip
        assert first.skip * second.skip == pytest.approx(skip)


@pytest.mark.parametrize(
    "scorer", [NormScorer(), ActivationScorer(), WandaScorer(), WandaSPScorer(), FLAPScorer(), RandomScorer()]
)
def test_scorers_of_single_layers_do_not_depend_on_the_topology(scorer: BaseScorer) -> None:
    isolated = IsolatedFFNPipeline(tiny_llama(num_hidden_layers=3), None, scorer=scorer, calibration=IDS)
    isolated.run()
    for name, scores in importance(ranked(scorer, attention=True)).items():
        torch.testing.assert_close(scores, importance(isolated)[name], rtol=1e-12, atol=0)


def test_encoder_and_decoder_have_separate_streams() -> None:
    pipeline = ResidualFFNPipeline(tiny_t5(), None, calibration=IDS)
    pipeline.run()
    assert [entry.follows for entry in pipeline.model_graphs] == [False, True, False, True]


@pytest.mark.parametrize("pruner", [LocalPruner(0.3), GlobalPruner(0.3)])
@pytest.mark.parametrize("scorer", [EXACT, ForwardBackwardScorer(edges="energy")])
def test_the_residual_pipeline_prunes_reports_and_restores(pruner: Any, scorer: BaseScorer) -> None:
    model = tiny_llama()
    before, dense = Snapshot(model), logits(model, IDS)
    pipeline = ResidualFFNPipeline(
        model,
        None,
        None,
        scorer,
        pruner,
        "cpu",
        calibration=IDS,
        attention=True,
        repair=LeastSquaresRepair(reselect=True),
    )
    pipeline.run()
    assert pipeline.masks is not None
    assert pipeline.masks.removed_share == pytest.approx(0.3)
    assert not torch.equal(logits(model, IDS), dense)
    method = (pipeline.report or pytest.fail("no report")).to_dict()["method"]
    assert (method["pipeline"], method["attention"], len(method["beta"])) == ("residual", True, 4)
    pipeline.undo()
    before.assert_restored()


def test_a_second_selection_depends_on_changes_upstream() -> None:
    pipeline = ranked(beta=0.5)
    places = [entry.prunable[0] for entry in pipeline.model_graphs[:2]]
    again = Reselection(EXACT, pipeline.model_graphs)
    keep = torch.arange(40) < 25
    changed = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    again(places[0].layer.name, keep, changed)
    found = again(places[1].layer.name, keep, changed.flip(0))
    graphs = list(pipeline.model_graphs)
    graphs[0], graphs[1] = graphs[0].with_norms(places[0], changed), graphs[1].with_norms(places[1], changed.flip(0))
    scores = rank_graphs(EXACT, graphs)[1].scores[1]
    kept = sorted(range(40), key=lambda k: -scores[k])[:25]
    assert found.nonzero().flatten().tolist() == sorted(kept)


@table("beta", [-0.1, 1.1, float("nan"), "much", None, True])
def test_betas_out_of_range_raise(beta: Any) -> None:
    with pytest.raises(OptionError, match=r"beta must be a number in \[0, 1\], or measured, got"):
        ResidualFFNPipeline(tiny_llama(), None, calibration=IDS, beta=beta)


def test_models_without_a_residual_stream_raise() -> None:
    structure = {"path_to_layers": ["model", "layers"], "path_to_modules": (("mlp", "up_proj"),)}
    with pytest.raises(OptionError, match="a residual stream skips whole FFNs"):
        ResidualFFNPipeline(tiny_llama(), None, structure, calibration=IDS)
    for beta in ("measured", 0.5):
        with pytest.raises(StructureError, match="lies in no repeating stack"):
            ResidualFFNPipeline(mlp(4, 6, 4), None, calibration=torch.rand(8, 4), beta=beta).run()


def test_build_graphs_checks_its_arguments() -> None:
    model = tiny_llama()
    ffns = find_ffns(model)
    statistics = collect_statistics(model, ffns, tokenise(IDS, None, 8, 24))
    with pytest.raises(OptionError, match="set beta, or collect statistics with skips=True"):
        build_graphs(ffns, statistics, "residual")
    with pytest.raises(OptionError, match="the chained topology has none"):
        build_graphs(ffns, statistics, "chained", 0.5)
    assert [entry.skip for entry in build_graphs(ffns, statistics, "residual", 0.5)] == [0.5, 0.5]
