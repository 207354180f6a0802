"""A pruned model learns the predictions of the dense one, and is never worse than it was."""

from __future__ import annotations

import copy
import gc
import json
import math
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments

import llmrank
from graphs.io.replacement import LOCK, hidden_directory
from llmrank.errors import CalibrationError, CheckpointError, OptionError, ProcessError, UnsupportedModelError
from llmrank.execution.json_files import read_json, write_json
from llmrank.healing import DenseModel, Distillation, Healing, heal_model
from llmrank.healing import training as training_module
from llmrank.healing.student import Student, learning
from llmrank.models import find_ffns
from llmrank.models.forward import predicts_next_token
from llmrank.pipeline import Recipe
from llmrank.text import CalibrationTokens, TokenSequences
from tests.llmrank.tiny_mixtures import MIXTURES, tiny_mixture
from tests.llmrank.tiny_models import Family, Snapshot, disturbed, families, family_model, tiny_llama

LENGTH = 16


def sequences(count: int, seed: int, length: int = LENGTH) -> TokenSequences:
    ids = torch.randint(3, 60, (count, length), generator=torch.Generator().manual_seed(seed))
    return TokenSequences.of(ids, torch.ones_like(ids, dtype=torch.bool), f"random tokens {seed}")


TOKENS = CalibrationTokens(sequences(64, 0), sequences(8, 1), sequences(8, 2))
SETTINGS = Distillation(64 * LENGTH, learning_rate=1e-3, sequences_per_step=4)


@pytest.fixture(scope="module")
def dense() -> Any:
    return tiny_llama().eval()


@pytest.fixture(scope="module")
def pruned(dense: Any) -> Any:
    model = copy.deepcopy(dense)
    llmrank.prune_model(model, None, 0.5, calibration=TOKENS.sequences.ids[:8], scorer="random", repair="none")
    return model


def healed(model: Any, dense: Any, settings: Distillation = SETTINGS, **options: Any) -> tuple[Any, Healing]:
    found = copy.deepcopy(model)
    return found, heal_model(found, DenseModel(dense), options.pop("tokens", TOKENS), settings, **options)


def full_divergence(dense: Any, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The definition, with all logits in memory."""
    with torch.no_grad():
        p = dense(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].log_softmax(-1)
    q = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].log_softmax(-1)
    return torch.where(mask[:, 1:], (p.exp() * (p - q)).sum(-1), 0.0).sum()


def test_loss_and_gradients_are_those_of_all_logits(dense: Any, pruned: Any) -> None:
    model = copy.deepcopy(pruned)
    ids, mask = sequences(3, 5, 64).ids, torch.ones(3, 64, dtype=torch.bool)
    mask[0, 40:] = False
    with learning(model, Distillation(1)) as stored:
        student = Student(model, DenseModel(dense), stored)
        with torch.no_grad():
            next(student.predictor.bands(ids, mask))
        loss = student(ids, mask, torch.arange(3))["loss"]
        loss.backward()
        gradients = {name: value.grad.clone() for name, value in student.learned().items()}
        model.zero_grad()
        expected = full_divergence(dense, model, ids, mask)
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        for name, value in student.learned().items():
            torch.testing.assert_close(gradients[name], value.grad, rtol=1e-4, atol=1e-5)
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize("learn", ["all", "ffn", "lora"])
def test_a_healed_model_is_closer_and_has_the_same_tensors(dense: Any, pruned: Any, learn: str) -> None:
    settings = Distillation(64 * LENGTH, learn, 1e-2 if learn == "all" else 3e-2, sequences_per_step=4)
    model, healing = healed(pruned, dense, settings)
    assert healing.best.divergence < 0.95 * healing.start.divergence
    assert 0.05 < healing.share_closed < 1.0
    before, after = pruned.state_dict(), model.state_dict()
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    ffns = {name for name in before if ".mlp." in name}
    assert not changed & {"model.embed_tokens.weight", "lm_head.weight"}
    assert changed == ffns if learn == "ffn" else changed > ffns
    assert all(value.requires_grad for value in model.parameters())
    assert [row.step for row in healing.rows] == [0, 4, 8, 12, 16]
    assert healing.rows[-1].tokens == 64 * LENGTH
    assert healing.rows[-1].learning_rate == 0.0


@pytest.mark.parametrize(
    ("method", "calls"), [("_replace_module", 5), ("_replace_module", 17), ("_cast_adapter_dtype", 1)]
)
def test_an_error_while_adapters_are_made_or_merged_leaves_none(
    pruned: Any, method: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = pytest.importorskip("peft.tuners.lora.model").LoraModel
    called = []

    def scarce(self: Any, *arguments: Any, **options: Any) -> None:
        called.append(arguments)
        if len(called) == calls:
            raise MemoryError
        original(self, *arguments, **options)

    original = getattr(lora, method)
    monkeypatch.setattr(lora, method, scarce)
    before = Snapshot(pruned)
    with pytest.raises(MemoryError), learning(pruned, replace(SETTINGS, learn="lora")):
        pass
    assert len(called) == calls
    before.assert_restored()
    assert all(value.requires_grad for value in pruned.parameters())


def heals(dense: Any, amount: float, **options: Any) -> None:
    pruned = copy.deepcopy(dense)
    llmrank.prune_model(pruned, None, amount, calibration=TOKENS.sequences.ids[:8], repair="none", **options)
    model, healing = healed(pruned, dense, replace(SETTINGS, learning_rate=1e-3))
    assert min(row.divergence for row in healing.rows[1:]) < healing.start.divergence
    before, after = ({name: each.shape for name, each in m.state_dict().items()} for m in (pruned, model))
    assert before == after


@pytest.mark.parametrize("family", families(fast=["Llama, SmolLM2", "T5", "BERT"]))
def test_every_family_that_predicts_tokens_can_be_healed(family: Family) -> None:
    model = family_model(family)
    if predicts_next_token(model):
        heals(model, 0.5, scorer="random")
    else:
        with pytest.raises(UnsupportedModelError, match="predicts no next token"):
            DenseModel(model)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("mixtral", "gpt_oss") else pytest.mark.slow, id=name)
        for name in MIXTURES
    ],
)
def test_a_mixture_without_some_experts_can_be_healed(name: str) -> None:
    heals(tiny_mixture(name), 0.5, targets="experts", scorer="frequency")


def test_the_divergence_of_the_ledger_is_that_of_the_definition(dense: Any, pruned: Any) -> None:
    _, healing = healed(pruned, dense)
    ids = TOKENS.held_out.ids if TOKENS.held_out is not None else None
    assert ids is not None
    with torch.no_grad():
        expected = full_divergence(dense, pruned, ids, torch.ones_like(ids, dtype=torch.bool))
    assert healing.start.closeness["own"].divergence.value == pytest.approx(
        float(expected) / (8 * (LENGTH - 1)), rel=1e-5
    )


def test_a_model_that_only_gets_worse_is_left_as_it_was(dense: Any) -> None:
    close = disturbed(dense, 1e-4)
    model, healing = healed(close, dense, Distillation(64 * LENGTH, learning_rate=0.1, sequences_per_step=4))
    assert healing.chosen == 0
    assert healing.rows[-1].divergence > healing.start.divergence
    assert any("as it was before healing" in warning for warning in healing.warnings())
    for name, value in close.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_a_gain_on_one_kind_of_text_does_not_pay_for_harm_on_the_other() -> None:
    from llmrank.healing.ledger import Closeness, LedgerRow, best_row

    def row(step: int, own: float, other: float, spread: float = 0.01) -> LedgerRow:
        kinds = {"own": own, "other": other}
        closeness = {kind: Closeness((value, value + spread), (1.0, 1.0), (1, 1)) for kind, value in kinds.items()}
        return LedgerRow(step, step, 0.0, 0.0, closeness)

    assert best_row([row(0, 1.0, 1.0), row(1, 0.1, 1.2), row(2, 0.8, 0.9)]) == 2
    # The gain is 0.1 on average, but 0.2 in one sequence of each kind and none in the other.
    assert best_row([row(0, 1.0, 1.0, 0.01), row(1, 0.8, 0.8, 0.21)]) == 0


class KilledError(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == self.step:
            raise KilledError


def kill_at(step: int, patch: pytest.MonkeyPatch) -> None:
    trainer = training_module._Trainer
    patch.setattr(
        training_module, "_Trainer", lambda *args, **options: trainer(*args, **{**options, "callbacks": [Kill(step)]})
    )


@pytest.mark.parametrize("step", [0, pytest.param(9, marks=pytest.mark.slow)])
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(
    step: int, dense: Any, pruned: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = healed(pruned, dense)
    with monkeypatch.context() as patch:
        kill_at(step, patch)
        with pytest.raises(KilledError):
            healed(pruned, dense, directory=tmp_path / "state")
    are_tried, divergences = set(), DenseModel.divergences

    def noted(self: DenseModel, *arguments: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():  # a step of the training
            are_tried.add(self._predictor.is_banded)
        return divergences(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(DenseModel, "divergences", noted)
        model, healing = healed(pruned, dense, directory=tmp_path / "state")
    # Inside of a step the trial of the head may be rounded to half precision, and keep all logits of a batch in memory.
    assert are_tried == {True}
    assert [row.closeness for row in healing.rows] == [row.closeness for row in expected.rows]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    with pytest.raises(OptionError, match=r"had another .*learning_rate, .*sequences_per_step.*; give"):
        healed(pruned, dense, Distillation(64 * LENGTH, learning_rate=2e-3), directory=tmp_path / "state")


@pytest.mark.parametrize(("rank", "count", "dead"), [(0, 2, 1), (1, 2, 0), (1, 4, None)])
def test_a_broken_connection_is_no_bug(
    dense: Any, pruned: Any, monkeypatch: pytest.MonkeyPatch, rank: int, count: int, dead: int | None
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise RuntimeError("[third_party/gloo/transport/tcp/pair.cc:553] Connection closed by peer\nat the second line")

    monkeypatch.setattr(training_module._Trainer, "train", breaks)
    monkeypatch.setattr(training_module, "launched_processes", lambda: (rank, count))
    with pytest.raises(ProcessError, match=f"another of the {count} processes .* by peer$") as raised:
        healed(pruned, dense)
    assert raised.value.rank == dead
    # One process alone has no connection that could break.
    monkeypatch.setattr(training_module, "launched_processes", lambda: (0, 1))
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        healed(pruned, dense)


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: File too large"),
        RuntimeError("[enforce fail at inline_container.cc:672]"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_a_full_disk_is_no_bug(
    dense: Any, pruned: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(training_module._Trainer, "train", breaks)
    with pytest.raises(OSError, match=r"cannot write the state of the training to .*state: .*; free some space"):
        healed(pruned, dense, directory=tmp_path / "state")


@pytest.mark.slow
def test_activations_may_be_computed_again() -> None:
    """Gradient checkpointing changes nothing but memory and time, also in a model with dropout."""
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=64, n_positions=64)
    dense = GPT2LMHeadModel(config).eval()
    assert config.resid_pdrop > 0.0
    pruned = disturbed(dense, 0.1)
    _, expected = healed(pruned, dense)
    names = ("activation_checkpointing", "gradient_checkpointing")  # the second was renamed
    name = next(name for name in names if name in TrainingArguments.__dataclass_fields__)
    _, healing = healed(pruned, dense, replace(SETTINGS, trainer={name: True}))
    for row, other in zip(healing.rows, expected.rows, strict=True):
        assert row.closeness["own"].divergences == pytest.approx(other.closeness["own"].divergences, rel=1e-4)


def test_an_interrupt_leaves_the_best_weights(dense: Any, pruned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(pruned)
    kill_at(9, monkeypatch)
    with pytest.raises(KilledError):
        heal_model(model, DenseModel(dense), TOKENS, SETTINGS)
    monkeypatch.undo()
    start = heal_model(model, DenseModel(dense), TOKENS, SETTINGS).start
    _, expected = healed(pruned, dense)
    assert start.closeness == expected.rows[2].closeness  # eight steps


def test_the_state_of_the_optimizer_is_given_back(
    dense: Any, pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is larger than the model, so it may not wait for the collector of cycles."""
    made, trainer = [], training_module._Trainer

    def noted(*values: Any, **options: Any) -> Any:
        made.append(weakref.ref(options["optimizers"][0]))
        return trainer(*values, **options)

    monkeypatch.setattr(training_module, "_Trainer", noted)
    gc.collect()
    gc.disable()
    try:
        healed(pruned, dense, directory=tmp_path / "state")
        assert [each() for each in made] == [None]
    finally:
        gc.enable()


def test_half_precision_learns_in_float32_and_keeps_its_dtype(dense: Any, pruned: Any) -> None:
    half = copy.deepcopy(pruned).bfloat16()
    model, healing = healed(half, copy.deepcopy(dense).bfloat16())
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert healing.best.divergence < healing.start.divergence


def test_removed_neurons_of_the_form_zero_stay_zero(dense: Any) -> None:
    model = copy.deepcopy(dense)
    result = llmrank.prune_model(
        model, None, 0.5, calibration=TOKENS.sequences.ids[:8], scorer="random", repair="none", form="zero"
    )
    heal_model(model, DenseModel(dense), TOKENS, SETTINGS)
    for ffn in find_ffns(model):
        removed = ~result.masks[ffn.name]
        assert removed.any()
        for stage in ffn.stages[0]:
            assert not stage.owner.weight[removed].any()


def test_prune_and_heal_in_one_call_and_undo(dense: Any) -> None:
    model = copy.deepcopy(dense)
    result = llmrank.prune_model(
        model,
        None,
        0.5,
        calibration=sequences(24, 3).ids,
        scorer="random",
        heal=Distillation(24 * LENGTH, learning_rate=1e-3),
        undoable=True,
    )
    healing = result.report.healing
    assert healing is not None
    assert "the repair has seen most of the text" in " ".join(result.report.warnings())
    assert result.report.to_dict()["healing"]["share_closed"] == healing.share_closed
    assert result.report.to_dict()["method"]["heal"]["learn"] == "all"
    assert "Healing" in repr(result)
    result.undo()
    for name, value in dense.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens must be an integer >= 1"),
        ({"learn": "some"}, "all, ffn, lora"),
        ({"learning_rate": 2.0}, "between 0 and 1"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"trainer": None}, "trainer must be a mapping"),
        ({"trainer": {"max_steps": 3}}, "max_steps: expected learn, .* or of .* ddp_backend"),
        ({"trainer": {"push_to_hub": True}}, "push_to_hub: expected"),
        ({"trainer": {"bf16": "no"}}, "bf16 must be true or false, got 'no'"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Distillation(**{"tokens": 1, **options})


def test_what_the_trainer_refuses_is_said(dense: Any, pruned: Any, tmp_path: Path) -> None:
    model, settings = copy.deepcopy(pruned), replace(SETTINGS, trainer={"report_to": "paper"})
    with pytest.raises(OptionError, match=r"the Trainer refuses its arguments .*paper is not"):
        heal_model(model, DenseModel(dense), TOKENS, settings, directory=tmp_path)
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in model.state_dict().items())
    # So the same directory can be named again, with better arguments.
    assert not list(tmp_path.iterdir())


def test_the_dense_model_reads_what_is_held_out_once(dense: Any, pruned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    with_hook = copy.deepcopy(dense)
    with_hook.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    counts = []
    for measurements in (1, 4):
        monkeypatch.setattr(training_module, "MEASUREMENTS", measurements)
        calls.clear()
        _, healing = healed(pruned, with_hook)
        assert len(healing.rows) == measurements + 1
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_a_step_does_not_read_what_a_measurement_has_kept(dense: Any) -> None:
    """Its predictions may be rounded otherwise, and a training that goes on has not kept them."""
    calls: list[int] = []
    with_hook = copy.deepcopy(dense)
    with_hook.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    teacher, batch = DenseModel(with_hook), next(TOKENS.sequences.batches(2))
    counts = []
    for comes_again in (True, True, False):
        calls.clear()
        assert list(teacher.divergences(*batch, torch.arange(2), comes_again=comes_again))
        counts.append(len(calls))
    assert counts[1] == 0 < counts[2] == 1


def test_running_out_of_memory_is_not_said_of_the_arguments(
    dense: Any, pruned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(training_module, "_optimizer", full)
    with pytest.raises(torch.OutOfMemoryError):
        healed(pruned, dense, replace(SETTINGS, trainer={"logging_steps": 1}))


@pytest.mark.parametrize(
    ("count", "asked", "steps", "per_step"),
    [(3, 64, 16, 4), (64, 64, 32, 2), pytest.param(20, 200, 13, 16, marks=pytest.mark.slow)],
)
def test_the_model_learns_from_as_many_tokens_as_the_ledger_says(
    dense: Any, pruned: Any, monkeypatch: pytest.MonkeyPatch, count: int, asked: int, steps: int, per_step: int
) -> None:
    """A text that is too short is read again, also in the middle of a step."""
    seen: list[int] = []
    forward = Student.forward

    def counted(self: Student, input_ids: torch.Tensor, attention_mask: torch.Tensor, rows: torch.Tensor) -> Any:
        seen.extend(rows.tolist())
        return forward(self, input_ids, attention_mask, rows)

    monkeypatch.setattr(Student, "forward", counted)
    settings = Distillation(asked * LENGTH, learning_rate=1e-3, sequences_per_step=per_step)
    _, healing = healed(pruned, dense, settings, tokens=TOKENS._replace(sequences=sequences(count, 0)))
    assert healing.rows[-1].step == steps
    assert len(seen) * LENGTH == healing.rows[-1].tokens
    assert set(seen) == set(range(count))


@pytest.fixture(scope="module")
def interrupted(dense: Any, pruned: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a training that was killed."""
    directory: Path = tmp_path_factory.mktemp("interrupted") / "state"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(9, patch)
        with pytest.raises(KilledError):
            healed(pruned, dense, directory=directory)
    return directory


def test_a_state_that_was_not_completely_written_is_passed_over(
    dense: Any, pruned: Any, interrupted: Path, tmp_path: Path
) -> None:
    state = shutil.copytree(interrupted, tmp_path / "state")
    (state / "checkpoint-12").mkdir()
    model, _ = healed(pruned, dense, directory=state)
    whole, _ = healed(pruned, dense)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def write(content: Any) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(content), encoding="utf-8") and None


def change_first_row(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        noted = read_json(path)
        noted["stages"]["ledger"][0] |= changes
        write_json(path, noted, allow_nan=True)

    return change


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("run.json", cut),
        ("progress.json", cut),
        ("progress.json", write({"stages": {}, "files": {}})),
        ("progress.json", lambda path: write_json(path, {"stages": {"ledger": {}}, "files": {}})),
        ("progress.json", lambda path: write_json(path, {"stages": {"ledger": [[]]}, "files": {}})),
        ("progress.json", lambda path: write_json(path, {"stages": {"state": "first"}, "files": {}})),
        ("progress.json", lambda path: write_json(path, {"stages": {"state": 4}, "files": {}})),
        ("progress.json", change_first_row(closeness={})),
        ("progress.json", change_first_row(step="first")),
        ("progress.json", change_first_row(colour="red")),
        ("progress.json", change_first_row(seconds=float("nan"))),
        ("best-8.safetensors", cut),
        ("best-8.safetensors", Path.unlink),
        ("best-8.safetensors", lambda path: save_file({"weight": torch.ones(3)}, path)),
        ("checkpoint-8", shutil.rmtree),
        ("checkpoint-8/trainer_state.json", write({"global_step": 4})),
        ("checkpoint-8/model.safetensors", cut),
        ("checkpoint-8/optimizer.pt", cut),
        ("checkpoint-8/scheduler.pt", cut),
        ("checkpoint-8/rng_state.pth", Path.unlink),
    ],
)
def test_a_damaged_state_is_refused(
    name: str, damage: Callable[[Path], None], interrupted: Path, dense: Any, pruned: Any, tmp_path: Path
) -> None:
    state, model = shutil.copytree(interrupted, tmp_path / "state"), copy.deepcopy(pruned)
    damage(state / name)
    with pytest.raises(
        OptionError, match=r"(damaged|does not hold|not as the run left it).*; delete .*state, and start again"
    ):
        heal_model(model, DenseModel(dense), TOKENS, SETTINGS, directory=state)
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_a_training_that_was_killed_while_it_wrote_goes_on(
    interrupted: Path, dense: Any, pruned: Any, tmp_path: Path
) -> None:
    """A state counts only when it is complete; every other file is prepared in a hidden directory."""
    state = shutil.copytree(interrupted, tmp_path / "state")
    shutil.copytree(state / "checkpoint-8", state / "checkpoint-12")
    for path in (state / "checkpoint-12").iterdir():
        cut(path)
    # The process had not removed what it had replaced.
    shutil.copytree(state / "checkpoint-8", state / "checkpoint-4")
    shutil.copy(state / "best-8.safetensors", state / "best-4.safetensors")
    for name in ("run.json", "progress.json", "best-12.safetensors"):
        with hidden_directory(state, name) as alive:
            left = alive.name.replace(".partial", "x.partial")
        (state / left).mkdir()
    model, healing = healed(pruned, dense, directory=state)
    whole, _ = healed(pruned, dense)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())
    left_there = {"run.json", "progress.json", "checkpoint-16", f"best-{healing.best.step}.safetensors", LOCK}
    assert {path.name for path in state.iterdir()} == left_there


def test_a_training_that_was_killed_before_it_wrote_anything_can_begin_again(
    dense: Any, pruned: Any, tmp_path: Path
) -> None:
    with hidden_directory(tmp_path, "run.json") as alive:
        left = alive.name.replace(".partial", "x.partial")
    (tmp_path / left).mkdir()
    healed(pruned, dense, directory=tmp_path)
    assert not (tmp_path / left).exists()


def test_one_process_uses_one_gpu(dense: Any, pruned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer would spread the student over all GPUs, and not the teacher."""
    found: list[int] = []
    trainer = training_module._Trainer

    def made(*values: Any, **options: Any) -> Any:
        found.append(options["args"]._n_gpu)
        return trainer(*values, **options)

    def several(*values: Any, **options: Any) -> TrainingArguments:
        arguments = TrainingArguments(*values, **options)
        arguments._n_gpu = 2
        return arguments

    monkeypatch.setattr(training_module, "TrainingArguments", several)
    monkeypatch.setattr(training_module, "_Trainer", made)
    healed(pruned, dense)
    assert found == [1]


def test_the_rate_follows_the_number_of_steps() -> None:
    text = sequences(2, 0, 1024)
    assert [Distillation(n).schedule(text).steps for n in (1024, 65_536)] == [1, 32]
    many = Distillation(10_000_000)
    assert many.schedule(text).steps == pytest.approx(250, abs=3)
    assert many.rate(64) == many.rate(400) == 0.001
    assert many.rate(16) == pytest.approx(0.0005)
    assert Distillation(1, learning_rate=0.1).rate(1) == 0.1


@pytest.mark.slow
def test_the_size_of_the_weights_does_not_matter(dense: Any, pruned: Any) -> None:
    """Gates and up maps of a hundredth of the size, behind norms of a hundred times, compute the same and learn the same."""
    scaled, teacher = copy.deepcopy(pruned), copy.deepcopy(dense)
    for model in (scaled, teacher):
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.data *= 100.0
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight.data /= 100.0
    _, expected = healed(pruned, dense, replace(SETTINGS, learning_rate=1e-2))
    _, healing = healed(scaled, teacher, replace(SETTINGS, learning_rate=1e-2))
    assert healing.share_closed > 0.0
    assert healing.share_closed == pytest.approx(expected.share_closed, rel=0.05)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
@pytest.mark.parametrize("processes", [1, 3])
def test_batches_and_processes_do_not_change_how_much_is_learned(batch_size: int, processes: int) -> None:
    text = sequences(64, 0, 512)
    schedule = Distillation(64 * 512).schedule(text, batch_size, processes)
    assert schedule.per_step == schedule.at_once * schedule.passes * processes
    assert 4 <= schedule.per_step <= 6  # 2,048 tokens, rounded up to what all processes compute
    assert 64 <= schedule.steps * schedule.per_step < 64 + schedule.per_step


def test_padding_is_no_token_to_learn_from() -> None:
    half = sequences(8, 0, 512)
    half.mask[:, 256:] = False
    assert Distillation(4096).schedule(half).per_step * Distillation(4096).schedule(half).steps == 16


def test_what_cannot_be_healed_is_refused(dense: Any, pruned: Any) -> None:
    alone = CalibrationTokens(sequences(1, 4), None)
    with pytest.raises(CalibrationError, match="give more text"):
        healed(pruned, dense, tokens=alone)
    with pytest.raises(UnsupportedModelError, match="predicts no next token"):
        DenseModel(torch.nn.Linear(2, 2))
    broken = copy.deepcopy(pruned)
    broken.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="broken before"):
        healed(broken, dense)
    smaller = copy.deepcopy(pruned)
    smaller.resize_token_embeddings(32)
    with pytest.raises(OptionError, match="predicts 64 tokens and the other model 32"):
        healed(smaller, dense)
    masked = copy.deepcopy(dense)
    ids = TOKENS.sequences.ids[:8]
    llmrank.prune_model(masked, None, 0.5, calibration=ids, scorer="random", repair="none", form="mask")
    with pytest.raises(OptionError, match="form mask"):
        heal_model(masked, DenseModel(dense), TOKENS, replace(SETTINGS, learn="lora"))
    with pytest.raises(OptionError, match="form mask"):
        Recipe(form="mask", heal=Distillation(1, "lora"))
    elsewhere = copy.deepcopy(pruned)
    elsewhere.model.layers[0].to("meta")
    with pytest.raises(OptionError, match="without --device-map"):
        healed(elsewhere, dense)


def test_modes_and_random_states_are_as_before(dense: Any, pruned: Any) -> None:
    model = copy.deepcopy(pruned).eval()
    state = torch.get_rng_state()
    names = ("activation_checkpointing", "gradient_checkpointing")
    name = next(name for name in names if name in TrainingArguments.__dataclass_fields__)
    heal_model(model, DenseModel(dense), TOKENS, replace(SETTINGS, trainer={name: True}))
    assert not any(module.training for module in model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("learn", "rate"), [("all", 1e-4), pytest.param("lora", 3e-2, marks=pytest.mark.slow)])
def test_what_is_measured_in_half_precision_is_what_is_stored(dense: Any, pruned: Any, learn: str, rate: float) -> None:
    other = copy.deepcopy(dense).bfloat16()
    settings = replace(SETTINGS, learn=learn, learning_rate=rate)
    model, healing = healed(copy.deepcopy(pruned).bfloat16(), other, settings)
    assert healing.chosen > 0
    again = heal_model(model, DenseModel(other), TOKENS, SETTINGS).start
    assert again.closeness["own"].divergences == pytest.approx(healing.best.closeness["own"].divergences, rel=1e-5)


def test_a_directory_of_which_no_weights_can_be_written_is_refused(dense: Any, pruned: Any, tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match=r"udc80' is not valid UTF-8"):
        healed(pruned, dense, directory=tmp_path / "\udc80")
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_the_trainer_have_names() -> None:
    with pytest.raises(OptionError, match=r"^0: expected "):
        replace(SETTINGS, trainer={0: math.nan})


def test_a_state_of_another_model_is_refused(dense: Any, pruned: Any, tmp_path: Any) -> None:
    healed(pruned, dense, directory=tmp_path / "state")
    other = copy.deepcopy(pruned)
    other.model.layers[0].mlp.up_proj.weight.data *= 1.5
    with pytest.raises(OptionError, match="had another pruned model;"):
        healed(other, dense, directory=tmp_path / "state")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_two_trainings_in_one_directory_are_refused(dense: Any, pruned: Any, tmp_path: Path) -> None:
    """The second one would read the weights of the first, or the first those of the second."""
    script = (
        "import sys; from graphs.io.replacement import Path, take_lock; take_lock(Path(sys.argv[1]), by_process=True)"
    )

    def other(more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", f"{script}{more}", str(tmp_path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with other("; print('locked', flush=True); input()") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(OptionError, match="another process is at work in"):
            healed(pruned, dense, directory=tmp_path)
        process.communicate("\n")
    # The lock that a killed process has left does not count, and it is given back after an error and at the end.
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    for killed in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if killed:
                kill_at(9, patch)
            with pytest.raises(KilledError) if killed else nullcontext():
                healed(pruned, dense, directory=tmp_path)
        with other(" or sys.exit('locked')") as process:
            assert process.wait() == 0


def test_a_directory_of_other_files_is_left_as_it_is(dense: Any, pruned: Any, tmp_path: Path) -> None:
    for name in ("notes", LOCK):
        (tmp_path / name).write_text("mine", encoding="utf-8")
        with pytest.raises(OptionError, match="is no run of llmrank; choose another directory, or move it away"):
            healed(pruned, dense, directory=tmp_path)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {
        "notes": "mine",
        LOCK: "mine",
    }


def test_a_bad_text_is_refused_before_the_model_is_pruned(dense: Any) -> None:
    model = copy.deepcopy(dense)
    ids = TOKENS.sequences.ids[:1]
    with pytest.raises(CalibrationError, match="one sequence"):
        llmrank.prune_model(model, None, 0.5, calibration=ids, scorer="random", repair="none", heal=64)
    for name, value in dense.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
