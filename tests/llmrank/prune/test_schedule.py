"""Pruning in steps against repeated pruning of compact models; the model is restored after every failure."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llmrank.errors import OptionError
from llmrank.models import find_ffns
from llmrank.pipeline import BasePipeline, stages
from llmrank.prune import BasePruner, GlobalPruner, LayerRecord, LocalPruner, SensitivityPruner
from llmrank.prune.masks import Masks
from llmrank.prune.records.layer_record import record_of_size
from llmrank.prune.schedule import amounts_after_steps, describe_steps
from llmrank.prune.selection import Reselection
from llmrank.repair import BaseRepair, BiasRepair, LeastSquaresRepair
from llmrank.score import BaseScorer, ModifiedPageRankScorer, RandomScorer, WandaSPScorer, WeightedPageRankScorer
from llmrank.surgery.apply import apply_masks, temporarily_masked
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_models import STRUCTURE, Snapshot, features, logits, mlp, tiny_llama, tiny_t5, token_ids
from tests.pairwise import pairwise
from tests.tables import table

CALIBRATION = token_ids(5, 16)
topologies = pytest.mark.parametrize("topology", [ChainedFFNPipeline, IsolatedFFNPipeline])


def model_of(seed: int = 0) -> Any:
    return tiny_llama(seed, num_hidden_layers=3)


def ran(topology: type[BasePipeline], model: Any, *arguments: Any, **options: Any) -> BasePipeline:
    pipeline = topology(model, None, *arguments, **{"calibration": CALIBRATION, **options})
    pipeline.run()
    return pipeline


def masks_of(pipeline: BasePipeline) -> Masks:
    assert pipeline.masks is not None
    return pipeline.masks


def lifted(outer: Masks, inner: Masks) -> Masks:
    """Translate the masks of a compact model into masks of the model that it was made from."""
    found = {}
    for name, mask in outer.items():
        kept = mask.nonzero().flatten()
        found[name] = torch.zeros_like(mask)
        found[name][kept[inner[name]]] = True
    return Masks(found)


# --- amounts


def test_amounts_by_hand() -> None:
    assert amounts_after_steps(0.3, 1) == [0.3]
    assert amounts_after_steps(0.4, 4) == [0.1, 0.2, pytest.approx(0.3), 0.4]
    assert amounts_after_steps(9, 4) == [2, 4, 7, 9]
    assert amounts_after_steps(1, 3) == [0, 1, 1]


@table(
    ("steps", "message"),
    [
        (0, "steps must be an integer >= 1, got 0"),
        (2.0, "steps must be an integer >= 1"),
        (True, "steps must be an integer >= 1"),
        (None, "steps must be an integer >= 1, got None"),
        (1001, "steps must be at most 1000, got 1001: each runs the calibration text"),
        (10**14, "steps must be at most 1000"),
    ],
)
def test_a_bad_number_of_steps_is_refused(steps: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        IsolatedFFNPipeline(model_of(), None, steps=steps)


def test_steps_are_described_with_their_cost() -> None:
    told = "2 steps, to 5, 10 of the hidden neurons: 2 passes of the calibration text to rank by"
    assert describe_steps(2, 10, "neurons", repairs=False) == told
    assert describe_steps(2, 10, "neurons", repairs=True) == f"{told}, and a repair after the last"


# --- removed neurons


@pairwise(
    topology=[ChainedFFNPipeline, IsolatedFFNPipeline],
    scorer=[WeightedPageRankScorer(), ModifiedPageRankScorer(), WandaSPScorer()],
    pruner=[
        LocalPruner,
        GlobalPruner,
        lambda n: GlobalPruner(n, normalize="robust"),
        lambda n: GlobalPruner(n, 3, normalize="mean"),
    ],
)
def test_steps_are_compact_models_pruned_again(topology: type[BasePipeline], scorer: BaseScorer, pruner: Any) -> None:
    """Each step separately: make the model compact, calibrate it and prune it."""
    number, layers = (24, 3) if pruner is not LocalPruner else (8, 1)
    found = masks_of(ran(topology, model_of(), scorer=scorer, pruner=pruner(number), steps=3))
    small, wanted, gone = model_of(), None, 0
    for amount in amounts_after_steps(number, 3):
        run = ran(topology, small, scorer=scorer, pruner=pruner(amount - gone))
        wanted = masks_of(run) if wanted is None else lifted(wanted, masks_of(run))
        gone = amount
    assert wanted is not None
    assert found == wanted
    assert found.size - found.kept == number * 3 / layers


@topologies
@pytest.mark.parametrize(
    "pruner",
    [
        LocalPruner(0.4, multiple_of=8),
        GlobalPruner(0.4, multiple_of=8),
        SensitivityPruner(0.4, limit=0.5),
        LocalPruner(0.2, amount_of="bytes"),
        GlobalPruner(0.2, amount_of="flops", protect=1),
    ],
    ids=["local", "global", "sensitivity", "bytes", "flops"],
)
def test_removed_neurons_do_not_come_back_and_the_last_step_reaches_the_amount(
    topology: type[BasePipeline], pruner: BasePruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Masks] = []
    choose = stages.choose

    def watched(*arguments: Any) -> Masks:
        steps.append(choose(*arguments))
        return steps[-1]

    monkeypatch.setattr(stages, "choose", watched)
    monkeypatch.setattr(stages, "close_decisions", lambda *_: None)  # which chooses once more
    run = ran(topology, model_of(), pruner=pruner, steps=4)
    assert len(steps) == 4
    for before, after in itertools.pairwise(steps):
        assert (before & after) == after
        assert after.kept < before.kept or (pruner.multiple_of == 8 and after.kept == before.kept)
    assert run.masks == steps[-1]
    once = masks_of(ran(topology, model_of(), pruner=pruner))
    if isinstance(pruner, GlobalPruner):
        # Later steps may remove neurons from other layers, so rounded widths need not have the same sum.
        assert pruner.multiple_of == 8 or masks_of(run).kept == once.kept
    else:
        assert masks_of(run).widths == once.widths
    if pruner.multiple_of == 8:
        assert {width % 8 for mask in steps for width in mask.widths.values()} == {0}


@pytest.mark.parametrize("amount", [0.1, 0.3, 0.5])
def test_rounded_widths_do_not_depend_on_the_number_of_steps(amount: float) -> None:
    scores = torch.rand(1536, generator=torch.Generator().manual_seed(0))
    once = LocalPruner(amount).prune([LayerRecord("mlp", scores)])
    for steps in (2, 8, 10, 50):
        present = None
        for step in amounts_after_steps(amount, steps):
            record = LayerRecord("mlp", scores, present=present)
            present = LocalPruner(amount).with_amount(step).prune([record])["mlp"]
        assert present is not None
        assert torch.equal(present, once["mlp"])


def test_rounding_brings_no_neuron_back() -> None:
    """Of 20 neurons 9 are removed: 12 would be the nearest multiple of 4 to 10, but only 11 are left, so it is 8."""
    present = torch.arange(20) >= 9
    for pruner in (LocalPruner(10, multiple_of=4), GlobalPruner(10, multiple_of=4)):
        record = LayerRecord("mlp", torch.arange(20.0).flip(0) / 190, present=present)
        keep = pruner.prune([record])["mlp"]
        assert int(keep.sum()) == 8, type(pruner).__name__
        assert not bool(keep[:9].any())
    few = LayerRecord("mlp", torch.arange(20.0) / 190, present=torch.arange(20) >= 17)
    assert LocalPruner(17, min_keep=3, multiple_of=4).prune([few]).kept == 3


@pytest.mark.parametrize("pruner", [LocalPruner, GlobalPruner, SensitivityPruner])
def test_neurons_of_protected_layers_stay_removed(pruner: type[BasePruner]) -> None:
    present = torch.tensor([True, False, True, True])
    layers = [LayerRecord("a", torch.ones(4) / 4, sensitivity=1.0, present=present), record_of_size("b", 4)]
    assert torch.equal(pruner(0.0, protect="a").prune(layers)["a"], present)


def test_removed_neurons_do_not_count_in_the_normalisation() -> None:
    scores = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.6, 0.7, 0.8], dtype=torch.float64)
    other = LayerRecord("b", torch.tensor([0.1, 0.4, 0.5, 0.6], dtype=torch.float64))
    for normalize in ("zscore", "robust", "mean", "none"):
        pruner = GlobalPruner(5, normalize=normalize)  # type: ignore[arg-type]
        found = pruner.prune([LayerRecord("a", scores, present=scores > 0), other])
        pruner.amount = 2
        alone = pruner.prune([LayerRecord("a", scores[3:]), other])
        assert found["a"].tolist() == [False] * 3 + alone["a"].tolist(), normalize
        assert torch.equal(found["b"], alone["b"])


def test_pruners_of_third_parties_work_in_steps_too() -> None:
    class Shares(BasePruner):
        def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
            for layer in layer_list:
                layer.pruning_mask = layer.importance

    class Marks(BasePruner):
        def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
            for layer in layer_list:
                count = round(self.amount * layer.out_features)
                layer.pruning_mask = layer.importance >= layer.importance.sort().values[count]

    wanted = masks_of(ran(IsolatedFFNPipeline, model_of(), pruner=LocalPruner(0.4), steps=3))
    for pruner in (Shares, Marks):
        assert masks_of(ran(IsolatedFFNPipeline, model_of(), pruner=pruner(0.4), steps=3)) == wanted


def test_scores_that_ignore_earlier_steps_bring_no_neuron_back() -> None:
    run = ran(IsolatedFFNPipeline, model_of(), scorer=RandomScorer(seed=3), pruner=GlobalPruner(0.5), steps=5)
    assert masks_of(run).kept == 60


@topologies
def test_listed_linears_are_pruned_in_steps(topology: type[BasePipeline]) -> None:
    model = model_of()
    snapshot = Snapshot(model)
    run = ran(topology, model, STRUCTURE, pruner=LocalPruner(0.5), steps=2)
    assert set(masks_of(run).widths.values()) == {20, 8}
    run.undo()
    snapshot.assert_restored()


def test_models_of_other_kinds_are_pruned_in_steps() -> None:
    for model, calibration in ((tiny_t5(), token_ids()), (mlp(4, 12, 8, 3), features(300, 4))):
        snapshot = Snapshot(model)
        run = ran(ChainedFFNPipeline, model, pruner=GlobalPruner(0.5), steps=3, calibration=calibration)
        assert masks_of(run).kept == masks_of(run).size // 2
        run.undo()
        snapshot.assert_restored()


# --- later steps


@pytest.mark.parametrize("repair", [None, BiasRepair(), LeastSquaresRepair(reselect=True)])
def test_later_steps_calibrate_on_the_model_as_pruned_so_far(
    repair: BaseRepair | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    dense = copy.deepcopy(model)
    seen: list[torch.Tensor] = []
    kept: list[Masks] = []

    build, mend = stages.build, stages.repair

    def watched_build(prepared: Any, *arguments: Any) -> Any:
        seen.append(logits(prepared.model, CALIBRATION))
        return build(prepared, *arguments)

    def watched_repair(*arguments: Any, **options: Any) -> Any:
        found = mend(*arguments, **options)
        kept.append(found[0])
        return found

    with monkeypatch.context() as watching:
        watching.setattr(stages, "build", watched_build)
        watching.setattr(stages, "repair", watched_repair)
        run = ran(IsolatedFFNPipeline, model, pruner=LocalPruner(0.5), repair=repair, steps=2)
    final = logits(run.undo(), CALIBRATION)
    assert torch.equal(seen[0], logits(dense, CALIBRATION))
    assert torch.equal(final, seen[0])
    ran(IsolatedFFNPipeline, dense, pruner=LocalPruner(0.25), form="zero")
    torch.testing.assert_close(seen[1], logits(dense, CALIBRATION), rtol=1e-4, atol=1e-4)
    assert (seen[1] - seen[0]).abs().max() > 1e-2
    assert len(kept) == (repair is not None)


def test_the_repair_starts_from_the_dense_model() -> None:
    """It ignores the steps before: it is the repair of the final masks."""
    run = ran(
        IsolatedFFNPipeline,
        model_of(),
        pruner=LocalPruner(0.5),
        repair=LeastSquaresRepair(0.01),
        steps=3,
    )

    class Given(LocalPruner):
        def extract_scores(self, layer_list: Sequence[LayerRecord]) -> None:
            for layer in layer_list:
                layer.pruning_mask = masks_of(run)[layer.name]

    once = ran(IsolatedFFNPipeline, model_of(), pruner=Given(0.5), repair=LeastSquaresRepair(0.01))
    assert once.masks == run.masks
    for name, solved in once.plan.selection.repaired.items():
        assert torch.equal(run.plan.selection.repaired[name].weight, solved.weight)


def test_reselection_chooses_among_the_remaining_neurons() -> None:
    run = ran(IsolatedFFNPipeline, model_of(), pruner=LocalPruner(0.25))
    first = run.model_graphs[0]
    (name,) = (place.layer.name for place in first.prunable)
    among = Masks({n: torch.arange(40) < 20 for n in masks_of(run)})
    choose = Reselection(run.recipe.scorer, run.model_graphs, among)
    keep = choose(name, torch.arange(40) < 10, torch.arange(40, dtype=torch.float64))
    assert int(keep.sum()) == 10
    assert not bool(keep[20:].any())


def test_graphs_and_sensitivities_are_those_of_the_dense_model() -> None:
    model = model_of()
    run = ran(ChainedFFNPipeline, model, pruner=SensitivityPruner(0.5), steps=3)
    once = ran(ChainedFFNPipeline, model_of(), pruner=SensitivityPruner(0.5))
    assert run.plan.selection.sensitivities == once.plan.selection.sensitivities
    for a, b in zip(run.ranks[0].scores, once.ranks[0].scores, strict=True):
        assert (a == b).all()
    assert torch.equal(run.model_graphs[0].statistics[1].norm, once.model_graphs[0].statistics[1].norm)


# --- transaction and report


@pytest.mark.parametrize("form", ["compact", "zero", "mask"])
def test_forms_agree_and_are_undone(form: Any) -> None:
    model = model_of()
    snapshot = Snapshot(model)
    options = {"pruner": GlobalPruner(0.4), "repair": LeastSquaresRepair(), "steps": 2}
    run = ran(ChainedFFNPipeline, model, form=form, **options)
    found = logits(model, CALIBRATION)
    run.undo()
    snapshot.assert_restored()
    again = model_of()
    apply_masks(again, find_ffns(again), masks_of(run), "zero", repaired=run.plan.selection.repaired)
    torch.testing.assert_close(found, logits(again, CALIBRATION), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        *itertools.product(("calibrate", "build", "rank", "choose"), (1, 2, 3)),
        ("repair", 1),
    ],
)
@pytest.mark.parametrize("repair", [LeastSquaresRepair(reselect=True), BiasRepair()], ids=["lstsq", "bias"])
def test_an_exception_in_a_step_leaves_the_model_dense(
    stage: str, step: int, repair: BaseRepair, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    model.train()
    snapshot = Snapshot(model)
    pipeline = ChainedFFNPipeline(
        model,
        None,
        pruner=GlobalPruner(0.5),
        calibration=CALIBRATION,
        repair=repair,
        steps=3,
    )
    honest, calls = getattr(stages, stage), []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(stage)
        found = honest(*arguments, **options)
        if len(calls) < step:
            return found
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupting:
        interrupting.setattr(stages, stage, interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run()
    assert len(calls) == step
    snapshot.assert_restored()
    with pytest.raises(OptionError, match="nothing to undo"):
        pipeline.undo()
    pipeline.run()
    pipeline.undo()
    snapshot.assert_restored()


def test_a_trial_zeroes_neurons_and_restores_them() -> None:
    model = model_of()
    snapshot = Snapshot(model)
    ffns = find_ffns(model)
    masks = Masks({ffn.name: torch.arange(40) > 3 for ffn in ffns})
    with temporarily_masked(model, ffns, masks):
        for layer in model.model.layers:
            assert not bool(layer.mlp.up_proj.weight[:4].any())
            assert not bool(layer.mlp.down_proj.weight[:, :4].any())
            assert bool(layer.mlp.gate_proj.weight[4:].all())
    snapshot.assert_restored()
    with pytest.raises(KeyboardInterrupt), temporarily_masked(model, ffns, masks):
        raise KeyboardInterrupt
    snapshot.assert_restored()
    with temporarily_masked(model, ffns, None):
        snapshot.assert_restored()


def test_the_report_shows_each_step_and_its_cost() -> None:
    run = ran(IsolatedFFNPipeline, model_of(), pruner=LocalPruner(0.5), repair=LeastSquaresRepair(), steps=2)
    assert run.report is not None
    plain = run.report.to_dict()
    assert plain["method"]["steps"] == 2
    first, second = plain["steps"]
    assert (first["amount"], first["removed"], first["repaired"]) == (0.25, 30, False)
    assert (second["amount"], second["removed"], second["repaired"]) == (0.5, 60, True)
    assert {"calibrate", "rank", "prune"} <= set(first["seconds"])
    assert "repair" in second["seconds"]
    for stage in ("calibrate", "rank", "prune"):
        both = first["seconds"][stage] + second["seconds"][stage]
        assert 0 < both <= plain["seconds"][stage] * (1 + 1e-9)
    # A second run starts its timings anew.
    run.undo()
    run.run()
    assert len(run.report.to_dict()["steps"]) == 2
