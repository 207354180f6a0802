"""Tests of every model family of the package, from finding its FFNs to loading the pruned checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import llmrank
from llmrank.errors import UnsupportedModelError
from llmrank.models import find_ffns
from llmrank.pipeline import BasePipeline
from llmrank.prune import BasePruner, GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.score import BaseScorer, ForwardBackwardScorer, WeightedPageRankScorer
from llmrank.surgery.apply import apply_masks
from tests.llmrank.families import Family
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
from tests.llmrank.tiny_models import MIXED, Snapshot, auto_class, every_family, family_model, logits, token_ids
from tests.tables import table

CALIBRATION = token_ids(3, 16)
PROBE = token_ids(2, 12, seed=1)


def pipeline(
    model: Any, pruner: BasePruner, topology: type[BasePipeline] = ChainedFFNPipeline, **options: Any
) -> BasePipeline:
    return topology(model, None, pruner=pruner, calibration=CALIBRATION, **options)


def uneven_model(family: Family) -> Any:
    """Make a model whose first FFN relies on few neurons, so that a global budget gives unequal widths."""
    model = family_model(family)
    with torch.no_grad():
        for producer in find_ffns(model)[0].stages[0]:
            producer.weight[:6] *= 8.0
    return model


def loaded_quietly(family: Family, directory: Path) -> Any:
    """Load a directory with the loader of transformers."""
    model, info = auto_class(family).from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model


@every_family
def test_found_by_geometry(family: Family) -> None:
    model = family_model(family)
    ffns = find_ffns(model)
    assert {ffn.kind for ffn in ffns} == {family.kind}
    # Two blocks; an encoder-decoder has two stacks of them.
    assert len(ffns) == (4 if family.model_type == "t5" else 2)
    assert len({ffn.stack for ffn in ffns}) == (2 if family.model_type == "t5" else 1)
    assert {ffn.sizes for ffn in ffns} == {(16, 64 if family.model_type == "bloom" else 40, 16)}


# Every family meets both topologies and all pruners, but only in three of the six pairs, and masks of torch in one of them: the
# pruned form does not depend on the origin of the scores.
@every_family
@table(
    ("topology", "pruner", "forms"),
    [
        (ChainedFFNPipeline, LocalPruner(0.3), ("zero", "mask", "compact")),
        (IsolatedFFNPipeline, GlobalPruner(0.3), ("zero", "compact")),
        (IsolatedFFNPipeline, SensitivityPruner(0.3, limit=0.5), ("zero", "compact")),
    ],
)
def test_three_forms_compute_the_same(
    family: Family, topology: type[BasePipeline], pruner: BasePruner, forms: tuple[str, ...]
) -> None:
    model = family_model(family)
    dense, snapshot = logits(model, PROBE), Snapshot(model)
    outputs = {}
    for form in forms:
        run = pipeline(model, pruner, topology, form=form)
        assert run.run() is model
        assert run.masks is not None
        assert run.report is not None
        outputs[form] = logits(model, PROBE)
        neurons = run.report.neurons
        n = run.masks.size
        assert neurons["removed"] == n - run.masks.kept
        if isinstance(pruner, LocalPruner):
            assert all(len(mask) - int(mask.sum()) == round(0.3 * len(mask)) for mask in run.masks.values())
        elif isinstance(pruner, GlobalPruner):
            assert neurons["removed"] == -(-3 * n // 10)
        else:
            assert neurons["removed"] == round(0.3 * n)
            assert all(value > 0 for value in run.report.sensitivities.values())
        if form == "compact":
            before, after = run.report.before, run.report.after
            assert before.parameters - after.parameters == removed_parameters(run)
            assert before.ffn_parameters - after.ffn_parameters == removed_parameters(run)
            assert {ffn.name: ffn.sizes[1] for ffn in find_ffns(model)} == run.masks.widths
        else:
            assert run.report.after.parameters == run.report.before.parameters
        run.undo()
        snapshot.assert_restored()
    if "mask" in outputs:
        torch.testing.assert_close(outputs["zero"], outputs["mask"], rtol=0, atol=0)
    torch.testing.assert_close(outputs["compact"], outputs["zero"], rtol=1e-5, atol=1e-5)
    assert (outputs["zero"] - dense).abs().max() > 1e-3


def removed_parameters(run: BasePipeline) -> int:
    """Count the removed rows of every input map with their biases, and the removed columns of every output map."""
    assert run.masks is not None
    total = 0
    for entry in run.model_graphs:
        for layer in (place.layer for place in entry.prunable):
            removed = len(run.masks.removed(layer.name))
            for producer in layer.input_maps:
                bias = getattr(producer.module, "bias", None)
                total += removed * (producer.in_features + (bias is not None))
            for consumer in layer.output_maps:
                total += removed * consumer.size
    return total


@every_family
@table("scorer", [ForwardBackwardScorer(), WeightedPageRankScorer(edges="energy")])
def test_every_scorer_ranks_hidden_neurons(family: Family, scorer: BaseScorer) -> None:
    model = family_model(family)
    run = pipeline(model, LocalPruner(0.3), scorer=scorer)
    run.run()
    assert run.masks is not None
    assert set(run.masks) == {ffn.name for ffn in find_ffns(model)}
    for entry, rank in zip(run.model_graphs, run.ranks, strict=True):
        assert not rank.degenerate
        for name, scores in entry.importance(rank).items():
            assert float(scores.min()) >= 0
            assert float(scores.sum()) == pytest.approx(1)
            kept = scores[run.masks[name]]
            assert float(kept.min()) >= float(scores[~run.masks[name]].max())


@every_family
def test_the_residual_stream_and_attentions_are_part_of_the_graph(family: Family) -> None:
    model = family_model(family)
    if family.model_type == "t5":
        with pytest.raises(UnsupportedModelError, match="decoder attends to two streams"):
            pipeline(model, LocalPruner(0.3), ResidualFFNPipeline, attention=True).run()
        pipeline(model, LocalPruner(0.3), ResidualFFNPipeline).run()
        return
    run = pipeline(model, LocalPruner(0.3), ResidualFFNPipeline, attention=True)
    if family.model_type in MIXED:
        with pytest.raises(UnsupportedModelError, match="leave attention, or heads, out"):
            run.run()
        pipeline(model, LocalPruner(0.3), ResidualFFNPipeline).run()
        return
    run.run()
    attentions, ffns = run.model_graphs[::2], run.model_graphs[1::2]
    # There are four heads of size four, whether they share values or not.
    assert [entry.graph.layer_sizes for entry in attentions] == [(16, 16, 16)] * 2
    assert [[place.position for place in entry.prunable] for entry in (*attentions, *ffns)] == [[], [], [1], [1]]
    assert [entry.follows for entry in run.model_graphs] == [False, True, True, True]
    assert all(0 < entry.skip < 1 for entry in run.model_graphs)


@every_family
def test_uniform_widths_load_in_stock_transformers(family: Family, tmp_path: Path) -> None:
    model = family_model(family)
    run = pipeline(model, LocalPruner(0.3))
    run.run()
    wanted = logits(model, PROBE)
    llmrank.save(tmp_path / "out", model, masks=run.masks)
    vectors = load_file(tmp_path / "out" / "masks.safetensors")
    assert set(vectors) == {ffn.name for ffn in find_ffns(model)}
    assert all(vector.dtype == torch.uint8 for vector in vectors.values())
    assert llmrank.Masks(vectors) == run.masks
    if family.width_attribute is None:
        # The configuration cannot express this width, so only this package's loader can build the model.
        with pytest.raises(RuntimeError, match="mismatched"):
            auto_class(family).from_pretrained(tmp_path / "out")
        again = llmrank.load(tmp_path / "out").model
    else:
        again = loaded_quietly(family, tmp_path / "out")
        assert getattr(again.config, family.width_attribute) == 28
    assert run.masks is not None
    masked = family_model(family)
    apply_masks(masked, find_ffns(masked), run.masks, "zero")
    for expected in (wanted, logits(masked, PROBE)):
        torch.testing.assert_close(logits(again, PROBE), expected, rtol=1e-5, atol=1e-5)
    if again.can_generate():
        prompt = PROBE[:1, :4]
        tokens = again.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False)
        assert tokens.shape[1] > 1


@every_family
def test_widths_by_layer_load_here_and_raise_in_transformers(family: Family, tmp_path: Path) -> None:
    model = uneven_model(family)
    run = pipeline(model, GlobalPruner(0.25, normalize="none"))
    run.run()
    assert run.masks is not None
    assert not run.masks.is_uniform
    wanted = logits(model, PROBE)
    llmrank.save(tmp_path / "out", model, masks=run.masks)
    loaded = llmrank.load(tmp_path / "out")
    assert type(loaded.model).__name__ == type(model).__name__
    assert {ffn.name: ffn.sizes[1] for ffn in find_ffns(loaded.model)} == run.masks.widths
    torch.testing.assert_close(logits(loaded.model, PROBE), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="mismatched"):
        auto_class(family).from_pretrained(tmp_path / "out")


@every_family
def test_padded_widths_load_in_stock_transformers(family: Family, tmp_path: Path) -> None:
    model = uneven_model(family)
    run = pipeline(model, GlobalPruner(0.25, normalize="none"), form="padded")
    run.run()
    assert run.masks is not None
    assert run.application is not None
    assert not run.masks.is_uniform
    widest = max(run.masks.widths.values())
    assert set(run.application.widths.values()) == {64 if family.width_attribute is None else widest}
    wanted = logits(model, PROBE)
    llmrank.save(tmp_path / "out", model, masks=run.masks)
    torch.testing.assert_close(logits(loaded_quietly(family, tmp_path / "out"), PROBE), wanted, rtol=1e-4, atol=1e-4)
    unpadded = uneven_model(family)
    pipeline(unpadded, GlobalPruner(0.25, normalize="none")).run()
    torch.testing.assert_close(logits(unpadded, PROBE), wanted, rtol=1e-5, atol=1e-5)
