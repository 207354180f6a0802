"""The pipelines' own contract: options, what stays untouched, evaluation."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import llmrank.pipeline.pruning_run
import llmrank.pipeline.stages
import llmrank.surgery.apply
from graphs import LayeredGraph, RankResult
from llmrank import BasePipeline
from llmrank.errors import CalibrationError, MaskError, OptionError, UnsupportedModelError
from llmrank.evaluation.fidelity import fidelity
from llmrank.evaluation.perplexity import perplexity, unigram_perplexity
from llmrank.models import find_ffns
from llmrank.pipeline import CalibrationText, EvaluationText, notes, stages
from llmrank.pipeline.closeness.sensitivity import layer_sensitivities
from llmrank.prune import GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.repair import BaseRepair, BiasRepair, LeastSquaresRepair, RepairedMap
from llmrank.score import BaseScorer, NormScorer
from llmrank.score.auto import default_candidates
from llmrank.surgery.apply import apply_masks
from llmrank.surgery.equivalence import masked_outputs
from llmrank.text import tokenise
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
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
from tests.llmrank.tiny_separate import tiny_separate
from tests.pairwise import pairwise
from tests.tables import table


def raises(error: type[BaseException]) -> Any:
    """A function that fails."""

    def fail(*_: Any) -> Any:
        raise error

    return fail


topologies = pytest.mark.parametrize("topology", [ChainedFFNPipeline, IsolatedFFNPipeline])


def test_defaults() -> None:
    pipeline = ChainedFFNPipeline(tiny_llama(), None, calibration=token_ids())
    assert pipeline.recipe.scorer == default_candidates()[0]
    assert isinstance(pipeline.recipe.pruner, LocalPruner)
    assert (pipeline.recipe.pruner.amount, pipeline.recipe.form) == (0.3, "compact")
    assert pipeline.report is pipeline.masks is None


@topologies
def test_two_runs_agree_bit_for_bit(topology: type[BasePipeline]) -> None:
    first, second = tiny_llama(), tiny_llama()
    for model in (first, second):
        topology(model, tokenizer(), calibration=CalibrationText(text(200), 4, 32)).run()
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_topology_changes_the_rank_alone() -> None:
    runs = [t(tiny_llama(), None, calibration=token_ids()) for t in (ChainedFFNPipeline, IsolatedFFNPipeline)]
    for run in runs:
        run.run()
    chained, isolated = runs
    assert isinstance(chained.graph, LayeredGraph)
    assert isinstance(chained.rank, RankResult)
    assert [g.layer_sizes for g in isolated.graph] == [(16, 40, 16)] * 2
    assert chained.graph.layer_sizes == (16, 40, 16, 40, 16)
    # The first FFN's hidden layer has the same past in both; the second has not.
    names = list(isolated.masks or {})
    both = [
        {k: v for e, r in zip(run.model_graphs, run.ranks, strict=True) for k, v in e.importance(r).items()}
        for run in runs
    ]
    assert torch.equal(both[0][names[0]], both[1][names[0]])
    assert not torch.equal(both[0][names[1]], both[1][names[1]])


@table(
    ("options", "message"),
    [
        ({"scorer": "wpr"}, r"scorer must be an instance of BaseScorer, got 'wpr'.*make_scorer"),
        ({"scorer": NormScorer}, "scorer must be an instance of BaseScorer"),
        ({"pruner": 0.3}, r"pruner must be an instance of BasePruner, got 0\.3.*make_pruner"),
        ({"form": "sparse"}, "unknown form 'sparse'; expected one of compact, padded, zero, mask"),
        ({"form": "padded", "structure_dict": STRUCTURE}, "form='padded' is refused with structure_dict"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
    ],
)
def test_bad_options_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ChainedFFNPipeline(tiny_llama(), None, calibration=token_ids(), **options)


class Fails(BaseScorer):
    def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
        return torch.full((len(weight),), math.nan)


@topologies
@table(
    ("options", "error"),
    [
        ({"calibration": "too short"}, CalibrationError),
        ({"calibration": "no/such.txt"}, CalibrationError),
        ({"scorer": Fails()}, ValueError),
        ({"pruner": LocalPruner(40)}, OptionError),
    ],
)
def test_failures_leave_the_model_untouched(
    topology: type[BasePipeline], options: dict[str, Any], error: type[Exception]
) -> None:
    model = tiny_llama()
    model.train()
    snapshot = Snapshot(model)
    pipeline = topology(model, tokenizer(), **{"calibration": token_ids(), **options})
    with pytest.raises(error):
        pipeline.run()
    snapshot.assert_restored()
    with pytest.raises(OptionError, match="nothing to undo"):
        pipeline.undo()


def test_nan_in_the_last_map_is_named() -> None:
    model = mlp(4, 6, 3)
    with torch.no_grad():
        model[2].weight[1, 2] = math.nan
    with pytest.raises(UnsupportedModelError, match=r"^2\.weight .* NaN or Inf in 1 of 18 places, first at \[1, 2\]"):
        ChainedFFNPipeline(model, None, calibration=features(20, 4)).run()


def test_an_overflow_in_the_last_map_names_its_output() -> None:
    model = mlp(4, 6, 3)
    with torch.no_grad():
        model[2].weight[1] = model[2].bias[1] = 3e38
    with pytest.raises(CalibrationError, match=r"output of 2\), first at neuron 1, are not finite"):
        ChainedFFNPipeline(model, None, calibration=1e3 * features(20, 4)).run()


def test_evaluation_measures_before_and_after() -> None:
    model, tok = tiny_llama(), tokenizer(special=False)
    dense = copy.deepcopy(model)
    words = text(400)
    pipeline = ChainedFFNPipeline(
        model,
        tok,
        calibration=CalibrationText(words, 2, 50),
        evaluation=EvaluationText(" ".join(words.split()[50:350]), 3),
    )
    pipeline.run()
    assert pipeline.report is not None
    evaluation = pipeline.report.evaluation
    assert evaluation is not None
    _, sequences = stages.evaluate(pipeline.find(), pipeline.recipe, pipeline.execution)
    assert sequences is not None
    assert len(sequences) == 3
    assert evaluation.before == perplexity(dense, sequences)
    assert evaluation.after == perplexity(model, sequences)
    assert evaluation.unigram == unigram_perplexity(sequences)
    # One window of 32 tokens a sequence; the first of three sequences was calibrated on.
    assert evaluation.calibration_overlap == pytest.approx(1 / 3)
    assert any("occur in the calibration text" in sentence for sentence in pipeline.report.warnings())
    assert pipeline.report.to_dict()["evaluation"]["protocol"]["sequences"] == 3


def test_failing_evaluation_after_the_cut_undoes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    honest, calls = perplexity, []

    def second_fails(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(llmrank.pipeline.stages, "perplexity", second_fails)
    pipeline = ChainedFFNPipeline(model, None, calibration=token_ids(), evaluation=token_ids(2, 8, seed=3))
    with pytest.raises(KeyboardInterrupt):
        pipeline.run()
    assert len(calls) == 2
    snapshot.assert_restored()


@topologies
@pytest.mark.parametrize("form", ["compact", "zero", "mask"])
def test_for_good_is_the_same_cut_of_which_nothing_is_kept(
    topology: type[BasePipeline], form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = tiny_llama(), tiny_llama()
    options: dict[str, Any] = {"calibration": token_ids(), "repair": LeastSquaresRepair(reselect=True), "form": form}
    undoable = topology(kept, None, **options)
    undoable.run()
    maps = [module for layer in gone.model.layers for module in (layer.mlp.up_proj, layer.mlp.down_proj)]
    originals = [weakref.ref(module.weight.untyped_storage()) for module in maps]
    alive: list[int] = []
    set_widths = llmrank.surgery.apply.set_widths

    def look(*given: Any) -> None:
        """Once all is cut, but nothing has returned yet."""
        alive.append(sum(original() is not None for original in originals))
        set_widths(*given)

    pipeline = topology(gone, None, undoable=False, **options)
    with monkeypatch.context() as patched:
        patched.setattr(llmrank.surgery.apply, "set_widths", look)
        pipeline.run()
    assert torch.equal(logits(gone, token_ids()), logits(kept, token_ids()))
    assert pipeline.report is not None
    assert undoable.report is not None
    assert pipeline.report.graph == undoable.report.graph
    assert pipeline.report.method == undoable.report.method
    assert pipeline.report.repaired == undoable.report.repaired
    gc.collect()
    assert (pipeline.graph, pipeline.plan.selection.repaired) == ((), {})
    assert pipeline.application is not None
    assert not pipeline.application._restores
    if form == "compact":  # elsewhere the parameters stay, with other numbers in them
        assert alive == [0]
    with pytest.raises(OptionError, match=r"applied for good .*load the model again"):
        pipeline.undo()
    with pytest.raises(OptionError, match="changed its model for good"):
        pipeline.run()


@pytest.mark.parametrize("form", ["compact", "zero", "mask"])
def test_a_repaired_model_computes_what_its_masks_and_maps_say_in_every_form(form: Any) -> None:
    model = tiny_llama()
    options: dict[str, Any] = {"pruner": GlobalPruner(0.4), "repair": LeastSquaresRepair(), "calibration": token_ids()}
    run = ChainedFFNPipeline(model, None, form=form, **options)
    run.run()
    assert run.masks is not None
    again = tiny_llama()
    apply_masks(again, find_ffns(again), run.masks, "zero", repaired=run.plan.selection.repaired)
    torch.testing.assert_close(logits(model, token_ids()), logits(again, token_ids()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["calibrate", "build", "rank", "choose", "repair"])
@pytest.mark.parametrize("repair", [LeastSquaresRepair(reselect=True), BiasRepair()], ids=["lstsq", "bias"])
def test_an_interrupt_behind_a_stage_leaves_the_model_dense(
    stage: str, repair: BaseRepair, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    model.train()
    snapshot = Snapshot(model)
    run = ChainedFFNPipeline(model, None, pruner=GlobalPruner(0.5), calibration=token_ids(), repair=repair)
    honest = getattr(stages, stage)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        honest(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupting:
        interrupting.setattr(stages, stage, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.run()
    snapshot.assert_restored()
    with pytest.raises(OptionError, match="nothing to undo"):
        run.undo()
    run.run()
    run.undo()
    snapshot.assert_restored()


FOR_GOOD: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "GPT-2": (lambda: family_model(named_family("GPT-2")), {}),
    "BERT": (lambda: family_model(named_family("BERT")), {}),
    "T5": (tiny_t5, {}),
    "Phi-3": (lambda: family_model(named_family("Phi-3")), {}),
    "BLOOM": (lambda: family_model(named_family("BLOOM")), {}),
    "half": (lambda: tiny_llama().to(torch.bfloat16), {}),
    "perceptron": (lambda: mlp(6, 12, 12, 3), {"calibration": features(512, 6)}),
}


@pairwise(name=FOR_GOOD, reselect=[True, False], topology=[ChainedFFNPipeline, IsolatedFFNPipeline])
def test_for_good_is_the_same_model_bit_for_bit(name: str, reselect: bool, topology: type[BasePipeline]) -> None:
    make, more = FOR_GOOD[name]
    options: dict[str, Any] = {"calibration": token_ids(), "repair": LeastSquaresRepair(reselect=reselect), **more}
    kept, gone = make(), make()
    topology(kept, None, **options).run()
    topology(gone, None, undoable=False, **options).run()
    wanted = kept.state_dict()
    assert gone.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in gone.state_dict().items())


@topologies
@pytest.mark.parametrize("reselect", [True, False])
def test_for_good_repaired_weights_are_written_over_the_model_s(
    topology: type[BasePipeline], reselect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no second set of them is in memory; but not where a later choice still looks at them."""
    written: list[bool] = []

    def look(model: Any, ffns: Any, masks: Any, sequences: Any, repaired: Any) -> torch.Tensor:
        written.extend(solved.weight is None for solved in repaired.values())
        return masked_outputs(model, ffns, masks, sequences, repaired)

    monkeypatch.setattr(llmrank.pipeline.pruning_run, "masked_outputs", look)
    repair = LeastSquaresRepair(reselect=reselect)
    topology(tiny_llama(), None, calibration=token_ids(), repair=repair, undoable=False).run()
    assert written == [topology is IsolatedFFNPipeline or not reselect] * 2


class Fails(LeastSquaresRepair):
    """From one map on."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self._left = maps

    def solve(self, *arguments: Any) -> RepairedMap:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        return super().solve(*arguments)


def test_a_repair_for_good_that_fails_half_way_leaves_the_model_as_it_was() -> None:
    model = tiny_llama()
    before = Snapshot(model)
    pipeline = IsolatedFFNPipeline(model, None, calibration=token_ids(), repair=Fails(1), undoable=False)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run()
    before.assert_restored()
    pipeline.recipe = replace(pipeline.recipe, repair=LeastSquaresRepair())
    pipeline.run()
    with pytest.raises(OptionError, match="changed its model for good"):
        pipeline.run()


@pytest.mark.parametrize("undoable", [True, False])
@pytest.mark.parametrize("half", [False, True])
def test_a_repair_that_does_harm_is_dropped_and_said(undoable: bool, half: bool) -> None:
    class Harms(LeastSquaresRepair):
        def solve(self, weight: torch.Tensor, *arguments: Any) -> RepairedMap:
            found = super().solve(weight, *arguments)
            return replace(found, weight=weight.flip(0) * 3.0)

    def run(repair: Any) -> tuple[Any, Any]:
        model = tiny_llama().to(torch.bfloat16 if half else torch.float32)
        pipeline = IsolatedFFNPipeline(model, None, calibration=token_ids(), repair=repair, undoable=undoable)
        pipeline.run()
        return pipeline, model.state_dict()

    (cut, wanted), (harmed, found) = run(None), run(Harms())
    assert harmed.plan.selection.validation.repaired > harmed.plan.selection.validation.cut
    assert harmed.masks == cut.masks
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())
    assert any("so the repair was dropped" in note for note in harmed.report.notes)
    assert harmed.report.to_dict()["repaired"] == {}
    assert cut.plan.selection.validation is None


def test_what_is_held_out_follows_in_the_text_or_is_taken_from_what_was_given() -> None:
    model, words = tiny_llama(), "one two three four five six seven eight nine ten " * 60
    pipeline = IsolatedFFNPipeline(
        model, tokenizer(), calibration=CalibrationText(words, 16, 12), repair=LeastSquaresRepair()
    )
    sequences, further, other = stages.calibration_tokens(pipeline.prepare(), pipeline.recipe, pipeline.execution)
    assert (len(sequences), len(further), other.length) == (16 + 3, 2, 12)
    whole = tokenise(words, tokenizer(), 18, 12)
    assert torch.equal(sequences.ids[[0, 1, -2, -1]], whole.ids[[0, 1, 14, 15]])
    assert torch.equal(further.ids, whole.ids[16:])
    given = IsolatedFFNPipeline(model, None, calibration=CalibrationText(whole.ids, 4), repair=LeastSquaresRepair())
    assert stages.calibration_tokens(given.prepare(), given.recipe, given.execution).held_out is None
    given.run()
    assert given.plan.selection.validation.count == 2 * 11
    assert given.report.held_out == tokenise(whole.ids[16:], None, 2, 12).provenance()
    single = IsolatedFFNPipeline(tiny_llama(), None, calibration=whole.ids[:1], repair=LeastSquaresRepair())
    single.run()
    assert single.plan.selection.validation is None
    assert any("nothing could be held out" in note for note in single.report.notes)


def test_outputs_of_blocks_are_kept_for_the_repair_if_memory_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind every block, 4 sequences of 16 tokens and 2 that are held out, in float32: one byte less is too little."""
    counts, states = [], []
    calibration = CalibrationText(token_ids(6, 16), samples=4, sequence_length=16)
    needed = len(tiny_llama().model.layers) * 6 * 16 * tiny_llama().config.hidden_size * 4
    for spare in (0, needed - 1, needed):
        monkeypatch.setattr("llmrank.pipeline.stages.spare_memory", lambda *_, spare=spare: spare)
        model, calls = tiny_llama(), []
        model.model.layers[1].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        IsolatedFFNPipeline(model, None, calibration=calibration, repair=LeastSquaresRepair()).run()
        counts.append(len(calls))
        states.append(model.state_dict())
    assert counts == [counts[0], counts[0], counts[0] - 6]
    assert all(torch.equal(values, other[name]) for other in states[1:] for name, values in states[0].items())


def test_a_repair_from_few_tokens_says_how_many_would_do() -> None:
    model = tiny_llama()
    pipeline = IsolatedFFNPipeline(
        model,
        None,
        calibration=CalibrationText(token_ids(8, 48), sequence_length=32),
        repair=LeastSquaresRepair(),
        pruner=LocalPruner(0.5),
    )
    prepared = pipeline.find()
    width = prepared.ffns[0].sizes[1]
    wanted = 4 * width // 2
    assert notes.warning_of_few_tokens(prepared, pipeline.recipe, wanted) is None
    said = notes.warning_of_few_tokens(prepared, pipeline.recipe, wanted - 1)
    assert said is not None
    assert f"give {wanted:,} or more (--samples {-(-wanted // 32)} of 32 tokens)" in said
    pipeline.recipe = replace(pipeline.recipe, pruner=LocalPruner(3))
    assert f"for {width:,} neurons" in str(notes.warning_of_few_tokens(prepared, pipeline.recipe, 1))
    pipeline.recipe = replace(pipeline.recipe, repair=None)
    assert notes.warning_of_few_tokens(prepared, pipeline.recipe, 1) is None


def test_the_duration_of_a_repair_counts_operations_and_measures_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = IsolatedFFNPipeline(
        tiny_llama(),
        None,
        calibration=CalibrationText(token_ids(8, 48), samples=8, sequence_length=32),
        repair=LeastSquaresRepair(damping=1.0),
        pruner=LocalPruner(0.5),
    )
    prepared = pipeline.find()
    monkeypatch.setattr("llmrank.repair.duration._speed", lambda device: 1000.0)
    expected = of_removed = 0.0
    for layer in prepared.ffns.layers.values():
        n, kept, out = layer.size, layer.size // 2, pipeline.model.config.hidden_size
        factor, solution = kept**3 / 3, 2 * kept**2 * out
        moments, errors = 8 * 32 * (kept**2 / 2 + kept * out), 6 * kept**2 * out
        expected += factor + solution + moments + errors
        of_removed += 8 * 32 * (n - kept) * out
    assert notes.seconds_of_repair(prepared, pipeline.recipe, pipeline.execution) == pytest.approx(expected / 1000.0)
    # With the FFN's own output as the target, what removed neurons add to it is computed.
    pipeline.recipe = replace(pipeline.recipe, repair=LeastSquaresRepair(damping=1.0, target="output"))
    longer = (expected + of_removed) / 1000.0
    assert notes.seconds_of_repair(prepared, pipeline.recipe, pipeline.execution) == pytest.approx(longer)
    pipeline.recipe = replace(pipeline.recipe, repair=LeastSquaresRepair())
    assert notes.seconds_of_repair(prepared, pipeline.recipe, pipeline.execution) > expected / 1000.0
    for repair in (BiasRepair(), None):
        pipeline.recipe = replace(pipeline.recipe, repair=repair)
        assert notes.seconds_of_repair(prepared, pipeline.recipe, pipeline.execution) == 0.0


def test_a_token_warning_counts_the_tokens_that_reach_an_expert() -> None:
    model = tiny_separate("listed")
    calibration = CalibrationText(token_ids(8, 48), sequence_length=32)
    pipeline = IsolatedFFNPipeline(
        model, None, calibration=calibration, repair=LeastSquaresRepair(), pruner=LocalPruner(0.5)
    )
    prepared = pipeline.find()
    # 4 tokens for each of 12 kept neurons, and 2 of 8 experts get a token.
    assert notes.warning_of_few_tokens(prepared, pipeline.recipe, 4 * 12 * 4) is None
    said = notes.warning_of_few_tokens(prepared, pipeline.recipe, 4 * 12 * 4 - 1)
    assert said is not None
    assert "for 12 neurons of an expert, which gets 25% of them" in said
    assert "give 192 or more" in said


def test_the_validation_is_the_divergence_from_the_dense_model_before_and_after() -> None:
    ids = token_ids(17, 24)
    dense, held_out = tiny_llama(), tokenise(ids[15:], None, 2, 24)
    pipelines = {}
    for name, repair in (("cut", None), ("repaired", LeastSquaresRepair())):
        model = tiny_llama()
        pipelines[name] = IsolatedFFNPipeline(model, None, calibration=ids, repair=repair, pruner=LocalPruner(0.5))
        pipelines[name].run()
        expected = fidelity(dense, model, held_out).divergence
        if name == "cut":
            cut = expected
    found = pipelines["repaired"].plan.selection.validation
    assert found.measure == "divergence"
    assert found.count == expected.count
    assert found.cut == pytest.approx(cut.value, rel=1e-4)
    assert found.repaired == pytest.approx(expected.value, rel=1e-4)
    assert found.error > 0.0


def test_a_repair_for_good_that_fails_at_first_has_changed_nothing() -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    pipeline = IsolatedFFNPipeline(model, None, calibration=token_ids(), repair=Fails(0), undoable=False)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run()
    snapshot.assert_restored()
    pipeline.recipe = replace(pipeline.recipe, repair=LeastSquaresRepair())
    pipeline.run()


def test_widths_that_cannot_be_padded_are_refused_before_anything_is_repaired() -> None:
    model = mlp(6, 12, 10, 3)
    snapshot = Snapshot(model)
    options: dict[str, Any] = {"calibration": features(512, 6), "repair": LeastSquaresRepair(), "form": "padded"}
    with pytest.raises(MaskError, match="needs layers of one original width"):
        IsolatedFFNPipeline(model, None, undoable=False, **options).run()
    snapshot.assert_restored()


def test_what_fails_for_good_is_not_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmrank.pipeline.pruning_run, "check_equivalence", raises(KeyboardInterrupt))
    model = tiny_llama()
    with pytest.raises(KeyboardInterrupt):
        IsolatedFFNPipeline(model, None, calibration=token_ids(), undoable=False).run()
    assert model.config.intermediate_size == 28


def test_a_cut_for_good_that_fails_half_way_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmrank.surgery.apply, "set_widths", raises(KeyboardInterrupt))
    pipeline = IsolatedFFNPipeline(tiny_llama(), None, calibration=token_ids(), undoable=False)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run()
    with pytest.raises(OptionError, match="changed its model for good"):
        pipeline.run()


def test_evaluation_of_an_encoder_is_refused_before_anything() -> None:
    model = family_model(named_family("BERT"))
    snapshot = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match="predicts no next token"):
        ChainedFFNPipeline(model, None, calibration=token_ids(), evaluation=token_ids()).run()
    snapshot.assert_restored()


def test_progress_sees_every_batch_and_graph() -> None:
    seen: dict[str, int] = {}

    def progress(items: Any, description: str) -> Any:
        seen[description] = len(items)
        return items

    pipeline = IsolatedFFNPipeline(
        tiny_llama(), None, calibration=CalibrationText(token_ids(4), batch_size=3), progress=progress
    )
    pipeline.run()
    steps = {"Finding FFNs": 1, "Calibrating": 2, "Ranking": 2, "Applying the masks": 1, "Checking the pruned model": 1}
    assert seen == steps
    IsolatedFFNPipeline(
        tiny_llama(),
        None,
        pruner=SensitivityPruner(),
        calibration=CalibrationText(token_ids(4), batch_size=2),
        progress=progress,
    ).run()
    assert seen == {**steps, "Measuring sensitivities": 4}


def test_without_progress_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    texts = {"calibration": token_ids(4), "evaluation": token_ids(2)}
    IsolatedFFNPipeline(tiny_llama(), None, pruner=SensitivityPruner(), repair=LeastSquaresRepair(), **texts).run()
    assert capfd.readouterr() == ("", "")


@topologies
def test_sensitivities_are_those_of_the_even_cut_and_shift_the_budget(topology: type[BasePipeline]) -> None:
    model = tiny_llama(num_hidden_layers=4)
    with torch.no_grad():
        for k in (0, 1, 3):
            model.model.layers[k].mlp.down_proj.weight *= 0.1
    snapshot = Snapshot(model)
    calibration = token_ids(4, 16)
    even = topology(model, None, calibration=calibration, pruner=LocalPruner(0.25))
    even.run()
    even.undo()
    assert even.plan.selection.sensitivities == {}
    assert even.masks is not None
    pipeline = topology(model, None, calibration=calibration, pruner=SensitivityPruner(0.25))
    pipeline.run()
    masks = pipeline.masks
    assert masks is not None
    pipeline.undo()
    snapshot.assert_restored()
    expected = layer_sensitivities(model, find_ffns(model), even.masks, pipeline.plan.tokens.sequences)
    assert pipeline.plan.selection.sensitivities == expected
    spared = max(expected, key=lambda name: expected[name])
    assert spared == "model.layers.2.mlp"
    assert masks.widths[spared] > 30
    assert max(width for name, width in masks.widths.items() if name != spared) < 30
    assert masks.size - masks.kept == 40
    # Within a layer the same go first.
    assert all(bool((masks[name] & ~even.masks[name] == 0).all()) for name in masks if name != spared)


def test_sensitivities_decide_the_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_position(*arguments: Any) -> dict[str, float]:
        return {name: float(k) for k, name in enumerate(measure(*arguments))}

    measure = stages.measure_sensitivities
    monkeypatch.setattr(stages, "measure_sensitivities", by_position)
    pipeline = IsolatedFFNPipeline(
        tiny_llama(), None, calibration=token_ids(), pruner=SensitivityPruner(0.5, limit=0.5)
    )
    pipeline.run()
    assert pipeline.masks is not None
    # 1 is four times half the median of 0 and 1: a quarter of 20, and the rest from the other.
    assert list(pipeline.masks.widths.values()) == [5, 35]


def test_sensitivities_of_models_of_other_kinds() -> None:
    for model, calibration in ((tiny_t5(), token_ids()), (mlp(4, 12, 3), features(300, 4))):
        pipeline = ChainedFFNPipeline(model, None, calibration=calibration, pruner=SensitivityPruner(0.25))
        pipeline.run()
        assert pipeline.masks is not None
        assert pipeline.masks.size - pipeline.masks.kept == pipeline.masks.size // 4
        assert set(pipeline.plan.selection.sensitivities) == set(pipeline.masks)


def test_sensitivities_of_listed_linears_are_refused_at_construction() -> None:
    with pytest.raises(OptionError, match=r"SensitivityPruner needs the sensitivities of whole FFNs.*use LocalPruner"):
        ChainedFFNPipeline(tiny_llama(), None, STRUCTURE, pruner=SensitivityPruner(), calibration=token_ids())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@topologies
@pytest.mark.parametrize("form", ["compact", "zero", "mask"])
def test_gpu_keeps_the_same_neurons(topology: type[BasePipeline], form: Any) -> None:
    here = topology(tiny_llama(), None, calibration=token_ids(), form=form)
    there = topology(tiny_llama(), None, None, None, None, "cuda", calibration=token_ids(), form=form)
    here.run()
    there.run()
    assert here.masks == there.masks
    assert {p.device.type for p in there.model.parameters()} == {"cuda"}
    ids = token_ids(2, 8, seed=4)
    with torch.no_grad():
        cpu = here.model(input_ids=ids).logits
        gpu = there.model(input_ids=ids.cuda()).logits.cpu()
    torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-3)
    there.undo()
