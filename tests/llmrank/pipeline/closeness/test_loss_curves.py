"""Loss curves against sensitivities that are measured one by one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import llmrank
from llmrank.calibration.collect import collect_statistics
from llmrank.models import find_ffns
from llmrank.pipeline import CalibrationText, Recipe
from llmrank.pipeline.closeness.loss_curves import LossCurves, measure_loss_curves
from llmrank.pipeline.closeness.sensitivity import layer_sensitivities
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.prune import LeastLossPruner, LocalPruner
from llmrank.prune.records.units import find_units
from llmrank.prune.selection import choose_masks
from llmrank.score import ActivationScorer
from llmrank.score.rank_graphs import rank_graphs
from llmrank.score.topologies import build_graphs
from llmrank.text import TokenSequences, tokenise
from tests.llmrank.tiny_models import text, tiny_llama, token_ids

SHARES = (0.1, 0.25, 0.5, 0.75)
CURVES = LossCurves({"a": {2: 0.2, 4: 0.6}, "b": {1: 0.4}}, ((0.5, 0.6), (1.0, 1.6)))


def test_every_loss_is_what_a_layer_alone_costs() -> None:
    model = tiny_llama(num_attention_heads=4, num_key_value_heads=4)
    ffns = find_units(model, find_ffns(model), ("neurons", "heads"))
    sequences = tokenise(token_ids(), None, 8, token_ids().shape[1])
    graphs = build_graphs(ffns, collect_statistics(model, ffns, sequences), "isolated")
    ranks = rank_graphs(ActivationScorer(), graphs)
    curves = measure_loss_curves(model, ffns, graphs, ranks, ("neurons", "heads"), SHARES, sequences)
    # A tenth of four heads is none.
    counts = {name: [10 * n for n in (0.4, 1, 2, 3)] if name.endswith("mlp") else [1, 2, 3] for name in curves}
    assert {name: [*losses] for name, losses in curves.items()} == counts
    for share in (0.25, 0.5, 0.75):
        pruner = LocalPruner(share, multiple_of=1)
        masks = choose_masks(pruner, graphs, ranks, jointly=True, targets=("neurons", "heads"))
        alone = layer_sensitivities(model, ffns, masks, sequences)
        removed = {name: int((~mask).sum()) for name, mask in masks.items()}
        per_unit = {
            name: ffns.layers[name].size // (4 if name.endswith("attn") else ffns.layers[name].size) for name in removed
        }
        for name, loss in alone.items():
            assert curves[name][removed[name] // per_unit[name]] == pytest.approx(loss, rel=1e-5)
        together = layer_sensitivities(model, ffns, masks, sequences, groups={"all": list(ffns.layers.values())})
        expected = (sum(alone.values()), together["all"])
        assert any(pair == pytest.approx(expected, rel=1e-5) for pair in curves.together)
        # What was measured together is expected exactly.
        units = {name: removed[name] // per_unit[name] for name in removed}
        assert curves.expected(units) == pytest.approx(together["all"], rel=1e-5)


def test_expected_losses_go_on_in_straight_lines() -> None:
    assert CURVES.expected({"a": 0, "b": 0}) == 0.0
    assert CURVES.expected({"a": 1}) == pytest.approx(0.12)
    assert CURVES.expected({"a": 2, "b": 1}) == pytest.approx(0.8)
    assert CURVES.expected({"a": 4, "b": 2}) == pytest.approx(1.6 * 1.4)


def test_curves_are_read_as_they_were_written() -> None:
    content = CURVES.to_dict()
    assert LossCurves.of_dict(content) == CURVES
    assert asdict(LossCurves.of_dict(content)) == asdict(CURVES)
    bad: list[Any] = [
        {},
        {**content, "together": []},
        {**content, "alone": {"a": {"one": 0.1}}},
        {**content, "alone": {"a": {"1": -0.1}}},
        {**content, "together": [[0.5]]},
        {**content, "together": [[0.5, float("inf")]]},
    ]
    for each in bad:
        with pytest.raises((TypeError, ValueError, LookupError)):
            LossCurves.of_dict(each)


def test_more_is_never_expected_to_cost_less() -> None:
    curves = LossCurves({"a": {4: 0.6, 8: 0.5, 12: 0.9}}, ((0.6, 0.6), (0.5, 0.7), (0.9, 0.4)))
    expected = [curves.expected({"a": count}) for count in range(20)]
    assert expected == sorted(expected)


def test_losses_are_measured_on_both_kinds_of_held_out_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path
) -> None:
    """However few of the sequences are read."""
    read: list[torch.Tensor] = []

    def spy(sequences: TokenSequences) -> TokenSequences:
        read.append(sequences.ids[:2])
        return sequences.ordered([0, 1])

    monkeypatch.setattr("llmrank.pipeline.closeness.sensitivity.first_sequences", spy)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(text(3000), encoding="utf-8")
    loaded = llmrank.load(checkpoint)
    recipe = Recipe(
        scorer=ActivationScorer(), pruner=LeastLossPruner(), repair=None, calibration=CalibrationText(corpus, 16, 32)
    )
    run = PruningRun(loaded.model, loaded.tokenizer, recipe)
    run.run()
    assert run.plan is not None
    tokens = run.plan.tokens
    assert tokens.held_out is not None
    assert tokens.other is not None
    for ids in read:
        assert torch.equal(ids[0], tokens.held_out.ids[0])
        assert any(torch.equal(ids[1], row) for row in tokens.other.ids)


def test_without_text_that_goes_on_losses_are_measured_on_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def spy(*args: Any, **options: Any) -> LossCurves:
        seen.append(args[6].ids)
        return measure_loss_curves(*args, **options)

    monkeypatch.setattr("llmrank.pipeline.stages.measure_loss_curves", spy)
    ids = token_ids()
    for repair in ("none", "lstsq"):
        options: Any = {"calibration": ids, "scorer": "activation", "repair": repair}
        llmrank.prune_model(tiny_llama(), pruner="least-loss", **options)
        assert torch.equal(seen[-1], ids[-1:])
