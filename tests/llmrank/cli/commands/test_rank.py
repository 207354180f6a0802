"""``llmrank rank`` and ``llmrank apply``: the result is that of ``llmrank prune``; and runs with little memory."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import llmrank
from llmrank import Masks
from llmrank.calibration.collect import collect_statistics
from llmrank.calibration.statistics.statistics_file import read_statistics, write_statistics
from llmrank.cli import low_memory
from llmrank.errors import OptionError
from llmrank.execution.work_directory import WorkDirectory
from llmrank.models import find_ffns
from llmrank.pipeline.ranking import Ranking
from llmrank.text import tokenise
from tests.devices import FIRST, DeviceTraffic
from tests.llmrank.commands import SHORT, refused, run
from tests.llmrank.rewriting import rewrite_json, rewrite_tensors
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import text, tiny_llama, token_ids, tokenizer

pytestmark = pytest.mark.usefixtures("transformers_log_as_it_was")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in directory.glob("model*.safetensors") for k, v in load_file(path).items()}


def assert_same(one: Path, other: Path) -> None:
    found, expected = weights(one), weights(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert Masks.load(one / "masks.safetensors") == Masks.load(other / "masks.safetensors")


@pytest.mark.parametrize(
    "method",
    [
        ("--amount", 0.4),
        ("--amount", 0.3, "--pruner", "global"),
        ("--amount", 0.3, "--repair", "lstsq"),
        ("--amount", 0.3, "--pruner", "sensitivity", "--amount-of", "parameters"),
    ],
    ids=str,
)
def test_a_ranking_prunes_as_prune_does(
    checkpoint: Path, corpus: Path, tmp_path: Path, method: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("--scorer", "wpr:gamma=0.9", "--pipeline", "chained", "--calibration", corpus, *SHORT)
    assert run("rank", checkpoint, "--output", tmp_path / "scores", *common) == 0
    repair = () if "--repair" in method else ("--repair", "none")
    assert run("prune", checkpoint, "--output", tmp_path / "pruned", *common, *method, *repair) == 0

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was calibrated again")

    monkeypatch.setattr("llmrank.pipeline.stages.collect_statistics", fail)
    assert run("apply", tmp_path / "scores", checkpoint, "--output", tmp_path / "applied", *method, *repair) == 0
    assert_same(tmp_path / "applied", tmp_path / "pruned")
    report = json.loads((tmp_path / "applied" / "report.json").read_text(encoding="utf-8"))
    assert report["method"]["scorer"]["gamma"] == 0.9
    assert report["calibration"]["sequences"] == 2
    masks = tmp_path / "pruned" / "masks.safetensors"
    if "--repair" not in method:
        assert run("apply", masks, checkpoint, "--output", tmp_path / "by-masks") == 0
        assert_same(tmp_path / "by-masks", tmp_path / "pruned")


def test_a_ranking_remembers_the_scorer_that_was_chosen(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    common = ("--scorer", "norm,activation,wpr:gamma=0.9,edges=gate", "--calibration", corpus, *SHORT)
    assert run("rank", checkpoint, "--output", tmp_path / "scores", *common) == 0
    settings = json.loads((tmp_path / "scores" / "ranking.json").read_text(encoding="utf-8"))
    assert settings["scorer"] == settings["choice"]["chosen"]
    assert [trial["scorer"] for trial in settings["choice"]["trials"]] == [
        "norm",
        "activation",
        "wpr:gamma=0.9,edges=gate",
    ]
    assert run("apply", tmp_path / "scores", checkpoint, "--output", tmp_path / "applied") == 0
    assert run("prune", checkpoint, "--output", tmp_path / "pruned", *common, "--amount", 0.3) == 0
    assert_same(tmp_path / "applied", tmp_path / "pruned")
    applied, pruned = (
        json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8")) for name in ("applied", "pruned")
    )
    assert pruned["choice"] == settings["choice"]
    assert applied["choice"] is None
    assert applied["method"]["scorer"] == pruned["method"]["scorer"]
    # A ranking holds all that another choice needs.
    assert run("apply", tmp_path / "scores", checkpoint, "--output", tmp_path / "again", "--scorer", "auto") == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text(encoding="utf-8"))
    assert len(again["choice"]["trials"]) > 3


def test_a_plan_is_what_apply_does(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    common = ("--scorer", "activation", "--targets", "heads,neurons", "--calibration", corpus, *SHORT)
    ranking = tmp_path / "scores"
    assert run("rank", checkpoint, "--output", ranking, *common, "--losses") == 0
    assert f"llmrank plan {ranking}" in " ".join(capsys.readouterr().out.split())

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("losses were measured again")

    monkeypatch.setattr("llmrank.pipeline.stages.measure_loss_curves", fail)
    written, figure = tmp_path / "plan.json", tmp_path / "plan.png"
    amount = ("--amount", 0.15)
    assert run("plan", ranking, checkpoint, *amount, "--output", written, "--figure", figure) == 0
    said, plan = capsys.readouterr().out, json.loads(written.read_text(encoding="utf-8"))
    assert "of the model parameters would be removed, for an expected loss of" in said
    assert figure.stat().st_size > 10_000
    assert plan["targets"] == ["neurons", "heads"]
    assert plan["share"] >= 0.15
    assert plan["loss"] > 0
    losses = [each["loss"] for each in plan["shares"]]
    assert losses == sorted(losses)
    given = (*amount, "--amount-of", "parameters", "--targets", "heads,neurons", "--pruner", "least-loss")
    assert run("apply", ranking, checkpoint, "--output", tmp_path / "applied", *given, "--repair", "none") == 0
    report = json.loads((tmp_path / "applied" / "report.json").read_text(encoding="utf-8"))
    widths = report["neurons"]["widths"]
    numbers = {name: width // (1 if name.endswith("mlp") else 8) for name, width in widths.items()}  # eight in a group
    assert numbers == plan["kept"]
    assert report["loss_curves"]["expected"] == pytest.approx(plan["loss"])
    assert report["reached"]["parameters"]["share"] == pytest.approx(plan["share"])
    # A share of each kind, and positions of protected layers, mean the same to both.
    for number, (pruner, unit) in enumerate((("least-loss", "neurons"), ("least-loss:protect=0", "parameters"))):
        again = ("--amount", 0.2, "--amount-of", unit, "--pruner", pruner)
        assert run("plan", ranking, checkpoint, *again, "--output", written) == 0
        place = tmp_path / f"again {number}"
        further = ("--targets", "neurons,heads", "--repair", "none")
        assert run("apply", ranking, checkpoint, "--output", place, *again, *further) == 0
        widths = json.loads((place / "report.json").read_text(encoding="utf-8"))["neurons"]["widths"]
        numbers = {name: width // (1 if name.endswith("mlp") else 8) for name, width in widths.items()}
        assert numbers == json.loads(written.read_text(encoding="utf-8"))["kept"]
    capsys.readouterr()
    # Other scores remove other neurons, whose losses are not known.
    assert run("apply", ranking, checkpoint, "--output", tmp_path / "other", *given, "--scorer", "norm") == 1
    assert "losses were measured again" in capsys.readouterr().err


def test_a_plan_needs_losses_of_this_model(checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    common = ("--scorer", "activation", "--calibration", corpus, *SHORT)
    for name, more in (("without", ()), ("with", ("--losses",))):
        assert run("rank", checkpoint, "--output", tmp_path / name, *common, *more) == 0
    capsys.readouterr()
    assert "holds no losses; rank the model again" in refused(capsys, "plan", tmp_path / "without", checkpoint)
    ranking = tmp_path / "with"
    assert "use least-loss" in refused(capsys, "plan", ranking, checkpoint, "--pruner", "local")
    assert "at most" in refused(capsys, "plan", ranking, checkpoint, "--amount", 0.99)
    assert "a .png or .svg file" in refused(capsys, "plan", ranking, checkpoint, "--figure", tmp_path / "a.pdf")
    for number, model in enumerate((tiny_llama(num_hidden_layers=4), tiny_llama(seed=1))):
        other = llmrank.save(tmp_path / f"other {number}", model, tokenizer())
        assert "has other weights" in refused(capsys, "plan", ranking, other)
    blocks = ("--targets", "blocks", "--losses", "--output", tmp_path / "blocks", *common)
    assert "--losses measures losses of neurons and heads" in refused(capsys, "rank", checkpoint, *blocks)

    def without(content: dict[str, Any]) -> None:
        content["losses"]["curves"]["together"] = []

    rewrite_json(ranking / "ranking.json", without)
    assert "does not hold what llmrank writes" in refused(capsys, "plan", ranking, checkpoint)


def test_a_ranking_knows_the_sources_of_a_mixture(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    common = ("--calibration", f"{corpus}:0.75,generated:0.25", "--samples", 8, "--sequence-length", 16)
    assert run("prune", checkpoint, "--output", tmp_path / "pruned", *common) == 0
    assert run("rank", checkpoint, "--output", tmp_path / "scores", *common) == 0
    assert run("apply", tmp_path / "scores", checkpoint, "--output", tmp_path / "applied") == 0
    pruned, applied = (
        json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8")) for name in ("pruned", "applied")
    )
    assert [source["share"] for source in pruned["calibration"]["sources"]] == [0.75, 0.25]
    assert applied["calibration"] == pruned["calibration"]
    assert applied["held_out"] == pruned["held_out"]


def test_with_little_memory_the_commands_write_the_same(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    common = ("--calibration", corpus, *SHORT)
    assert run("prune", checkpoint, "--output", tmp_path / "plain", *common) == 0
    assert run("prune", checkpoint, "--output", tmp_path / "low", *common, "--low-memory") == 0
    assert_same(tmp_path / "low", tmp_path / "plain")
    assert run("rank", checkpoint, "--output", tmp_path / "scores", *common, "--low-memory") == 0
    arguments = ("apply", tmp_path / "scores", checkpoint, "--repair", "lstsq", "--low-memory")
    assert run(*arguments, "--output", tmp_path / "applied") == 0
    assert_same(tmp_path / "applied", tmp_path / "plain")
    masks = tmp_path / "plain" / "masks.safetensors"
    assert run("apply", masks, checkpoint, "--output", tmp_path / "masked", "--low-memory") == 0
    assert Masks.load(tmp_path / "masked" / "masks.safetensors") == Masks.load(masks)
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_model_that_does_not_fit_is_pruned_block_by_block(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(low_memory, "free_memory", lambda _device: 1000)
    assert run("prune", checkpoint, "--output", tmp_path / "out", "--calibration", corpus, *SHORT) == 0
    assert "GB of memory are free on cpu: it is pruned block by block, as with --low-memory" in capsys.readouterr().out


@pytest.mark.slow
def test_with_little_memory_a_device_computes(
    checkpoint: Path, corpus: Path, tmp_path: Path, two_devices: DeviceTraffic, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("prune", checkpoint, "--calibration", corpus, *SHORT)
    assert run(*common, "--output", tmp_path / "cpu") == 0
    before = two_devices.copy()
    assert run(*common, "--output", tmp_path / "device", "--low-memory", "--device", FIRST) == 0
    assert two_devices.since(before).transfers
    assert Masks.load(tmp_path / "device" / "masks.safetensors") == Masks.load(tmp_path / "cpu" / "masks.safetensors")
    found, expected = weights(tmp_path / "device"), weights(tmp_path / "cpu")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    report = json.loads((tmp_path / "device" / "report.json").read_text(encoding="utf-8"))
    assert report["model"]["device"] == str(FIRST)
    capsys.readouterr()
    device_map = ("--output", tmp_path / "out", "--low-memory", "--device-map", "auto")
    assert "got --device-map auto; leave one of the two out" in refused(capsys, *common, *device_map)


@pytest.mark.slow
def test_a_model_that_does_not_fit_on_a_device_is_brought_there_by_block(
    checkpoint: Path,
    corpus: Path,
    tmp_path: Path,
    two_devices: DeviceTraffic,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(low_memory, "free_memory", lambda device: 1000 if device == FIRST else 10**9)
    common = ("prune", checkpoint, "--calibration", corpus, *SHORT, "--repair", "none")
    assert run(*common, "--output", tmp_path / "device", "--device", FIRST) == 0
    assert f"are free on {FIRST}: it is pruned block by block" in capsys.readouterr().out
    assert two_devices.transfers
    assert run(*common, "--output", tmp_path / "cpu") == 0
    assert "block by block" not in capsys.readouterr().out
    assert_same(tmp_path / "device", tmp_path / "cpu")


def test_a_killed_run_is_resumed_by_its_name(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("prune", checkpoint, "--output", tmp_path / "out", "--calibration", corpus, *SHORT)
    assert "there is no unfinished run" in refused(capsys, *arguments, "--resume")
    with monkeypatch.context() as killing:

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        killing.setattr("llmrank.pipeline.pruning_run.apply_masks", stop)
        assert run(*arguments, "--low-memory") == 130
    capsys.readouterr()
    assert "has not finished; go on with it (--resume)" in refused(capsys, *arguments, "--low-memory")
    assert run(*arguments, "--resume") == 0
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("command", ["prune", "rank"])
def test_a_run_that_ended_between_its_output_and_its_last_word_is_finished(
    command: str,
    checkpoint: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    arguments = (command, checkpoint, "--output", output, "--calibration", corpus, *SHORT)
    with monkeypatch.context() as killing:

        def stop(_: WorkDirectory) -> None:
            raise KeyboardInterrupt

        killing.setattr(WorkDirectory, "remove", stop)
        assert run(*arguments, "--low-memory") == 130
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    capsys.readouterr()
    assert "go on with it (--resume)" in refused(capsys, *arguments, "--low-memory")
    if command == "prune":
        (output / "report.json").write_text("{", encoding="utf-8")
        assert "report.json cannot be read as a report of llmrank" in refused(capsys, *arguments, "--resume")
        (output / "report.json").write_bytes(before["report.json"])
    other = refused(capsys, *arguments, "--resume", "--batch-size", 3)
    assert "is complete, but its run had other settings: batch-size 1, not 3" in other
    assert run(*arguments, "--resume", "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["report"]["neurons"]["removed"] > 0 if command == "prune" else result["tokens"] > 0
    assert "is complete" in captured.err
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    assert not list(tmp_path.glob("*.unfinished"))


def test_the_files_of_a_run_at_work_are_not_removed(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("prune", checkpoint, "--output", tmp_path / "out", "--calibration", corpus, *SHORT)
    with monkeypatch.context() as killing:
        killing.setattr(WorkDirectory, "remove", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run(*arguments, "--low-memory") == 130
    capsys.readouterr()
    monkeypatch.setattr("llmrank.execution.work_directory.take_lock", lambda *_, **__: None)
    assert "another process is at work" in refused(capsys, *arguments, "--resume")
    assert (tmp_path / "out.unfinished" / "run.json").is_file()


@pytest.mark.parametrize("command", ["prune", "rank"])
def test_a_full_disk_leaves_a_run_to_go_on_with(
    command: str,
    checkpoint: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (command, checkpoint, "--output", tmp_path / "out", "--calibration", corpus, *SHORT)
    with monkeypatch.context() as filling:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        filling.setattr("transformers.PreTrainedModel.save_pretrained", full)
        filling.setattr(Ranking, "save", full)
        assert run(*arguments, "--low-memory") != 0
    assert "The same command with --resume goes on." in capsys.readouterr().out
    assert run(*arguments, "--resume") == 0
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_run_that_never_began_is_no_run(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("prune", checkpoint, "--output", tmp_path / "out", "--calibration", corpus, *SHORT)
    work = tmp_path / "out.unfinished"
    work.mkdir()
    (work / "lock").touch()
    assert "leave --resume out" in refused(capsys, *arguments, "--resume")
    assert run(*arguments, "--low-memory") == 0
    assert not work.exists()
    # What is not a run of llmrank is never to be deleted.
    other = tmp_path / "other.unfinished"
    other.mkdir()
    (other / "mine").touch()
    capsys.readouterr()
    arguments = ("prune", checkpoint, "--output", tmp_path / "other", "--calibration", corpus, *SHORT)
    message = refused(capsys, *arguments, "--low-memory")
    assert "move it away" in message
    assert "delete" not in message


def test_rankings_that_do_not_fit_are_refused(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, pruned = tmp_path / "scores", tmp_path / "pruned"
    assert run("rank", checkpoint, "--output", scores, "--calibration", corpus, *SHORT) == 0
    assert run("apply", scores, checkpoint, "--output", pruned) == 0
    capsys.readouterr()
    output = ("--output", tmp_path / "out")
    assert run("apply", scores, pruned, *output) == 2
    assert "has other weights; give the model that was ranked" in " ".join(capsys.readouterr().err.split())
    assert "holds no ranking" in refused(capsys, "apply", pruned, checkpoint, *output)
    assert "is not a mask file" in refused(capsys, "apply", scores / "scores.safetensors", checkpoint, *output)
    masks = pruned / "masks.safetensors"
    assert "--amount has no effect" in refused(capsys, "apply", masks, checkpoint, *output, "--amount", 0.5)
    residual = ("--pipeline", "residual")
    assert "rank again with --pipeline residual" in refused(capsys, "apply", scores, checkpoint, *output, *residual)
    stream = tmp_path / "stream"
    assert run("rank", checkpoint, "--output", stream, "--calibration", corpus, *SHORT, *residual) == 0
    assert run("apply", stream, checkpoint, *output, "--pipeline", "residual:attention=true") == 2
    assert "a ranking holds no statistics of attentions" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr("llmrank.text.generated.generate_text", None)  # refused before the model writes
    attention = ("rank", checkpoint, *output, "--calibration", "generated", *SHORT)
    attention += ("--pipeline", "residual:attention=true")
    assert run(*attention) == 2
    assert "leave attention=true out" in capsys.readouterr().err
    (scores / "statistics.safetensors").write_bytes(b"damaged")
    assert "holds no complete ranking" in refused(capsys, "apply", scores, checkpoint, *output)
    with pytest.raises(OptionError, match="no complete ranking"):
        Ranking.load(tmp_path)
    assert not (tmp_path / "out").exists()


def test_files_of_another_ranking_and_changed_settings_are_refused(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for place, samples in ((one, 2), (other, 3)):
        texts = ("--calibration", corpus, "--samples", samples, "--sequence-length", 16)
        assert run("rank", checkpoint, "--output", place, *texts) == 0
    for name in ("statistics.safetensors", "tokens.safetensors", "scores.safetensors"):
        mixed = shutil.copytree(one, tmp_path / f"mixed-{name}")
        shutil.copy(other / name, mixed / name)
        with pytest.raises(OptionError, match=f"{name} is damaged, or that of another ranking"):
            Ranking.load(mixed)
    settings = (one / "ranking.json").read_text(encoding="utf-8")
    capsys.readouterr()
    values = json.loads(settings)
    edits = [settings.replace("isolated", "chained"), "[]", "null", "[" * 100_000, settings[:-9], "\udcff"]
    edits += [json.dumps({key: value for key, value in values.items() if key != name}) for name in values]
    for edit in edits:
        (one / "ranking.json").write_bytes(edit.encode(errors="surrogateescape"))
        assert "holds no complete ranking" in refused(capsys, "apply", one, checkpoint, "--output", tmp_path / "out")
        assert "is damaged, or was changed" in refused(capsys, "diff", one, other)


def test_statistics_of_mixtures_are_read_as_they_were_written(tmp_path: Path) -> None:
    model = tiny_mixture("qwen2_moe")
    ffns = find_ffns(model)
    statistics = collect_statistics(model, ffns, tokenise(token_ids(4, 12), None, 4, 12), skips=True)
    write_statistics(tmp_path / "file", statistics)
    found = read_statistics(tmp_path / "file")
    for one, other in zip(found, statistics, strict=True):
        assert one.skip == other.skip
        assert (one.routing is None) == (other.routing is None)
        if one.routing is not None and other.routing is not None:
            assert (one.routing.count, one.routing.weight) == (other.routing.count, other.routing.weight)
            assert torch.equal(one.routing.weighted_norm, other.routing.weighted_norm)
        for layer, expected in zip(one.layers, other.layers, strict=True):
            assert layer.count == expected.count
            for name in ("norm", "mean", "variance", "read_norm"):
                assert torch.equal(getattr(layer, name), getattr(expected, name))
    mixtures = [entry.mixture for entry in found if entry.mixture is not None]
    assert len({id(mixture) for mixture in mixtures}) == 2


def test_masks_of_another_model_are_applied_with_a_warning(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    llmrank.save(other, tiny_llama(seed=5), tokenizer())
    options = ("--calibration", corpus, *SHORT, "--repair", "none")
    assert run("prune", checkpoint, "--output", tmp_path / "pruned", *options) == 0
    masks = tmp_path / "pruned" / "masks.safetensors"
    for model, warns in ((checkpoint, False), (other, True)):
        capsys.readouterr()
        assert run("apply", masks, model, "--output", tmp_path / f"by-masks-{warns}") == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert ("was made for other weights than those of" in shown) is warns


@pytest.fixture(scope="module")
def ranking(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rankings")
    (place / "corpus.txt").write_text(text(200), encoding="utf-8")
    assert run("rank", checkpoint, "--output", place / "whole", "--calibration", place / "corpus.txt", *SHORT) == 0
    return place / "whole"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("files"),
        lambda content: content.pop("weights"),
        lambda content: content.update(files=[]),
        lambda content: content.update(layers=["model.layers.0.mlp"]),
        lambda content: content["layers"].update({"model.layers.0.mlp": "40"}),
        lambda content: content.update(ffns=[3]),
        lambda content: content.update(scorer=None),
    ],
)
def test_settings_that_rank_does_not_write_are_refused(ranking: Path, tmp_path: Path, change: Any) -> None:
    place = shutil.copytree(ranking, tmp_path / "ranking")
    rewrite_json(place / "ranking.json", change)
    with pytest.raises(OptionError, match=r"ranking.json does not hold what llmrank writes .*; rank the model again"):
        Ranking.load(place)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("statistics", lambda meta, _: meta.pop("ffns")),
        ("statistics", lambda meta, _: meta["ffns"][0].update(layers="3")),
        ("statistics", lambda meta, _: meta["ffns"][0]["layers"].__setitem__(0, -1)),
        ("statistics", lambda meta, _: meta["ffns"][1].update(skip="x")),
        ("statistics", lambda _, arrays: arrays.pop("0.1.norm")),
        ("statistics", lambda _, arrays: arrays.update({"0.1.norm": arrays["0.1.norm"][None]})),
        ("statistics", lambda _, arrays: arrays.update({"0.1.mean": arrays["0.1.mean"][:-1]})),
        ("statistics", lambda _, arrays: arrays["0.1.mean"].fill(float("nan"))),
        ("tokens", lambda meta, _: meta.pop("source")),
        ("tokens", lambda meta, _: meta.pop("held_out_source")),
        ("tokens", lambda meta, _: meta.update(held_out=-1)),
        ("tokens", lambda meta, _: meta.update(details=[])),
        ("tokens", lambda _, arrays: arrays.pop("ids")),
        ("tokens", lambda _, arrays: arrays.update(mask=arrays["mask"][:, :-1])),
        ("tokens", lambda _, arrays: arrays.update(mask=~arrays["mask"])),
        ("tokens", lambda _, arrays: arrays.update(ids=arrays["ids"].astype(bool))),
        ("scores", lambda _, arrays: arrays.pop("model.layers.0.mlp")),
    ],
)
def test_contents_that_rank_does_not_write_are_refused(ranking: Path, tmp_path: Path, kind: str, change: Any) -> None:
    place = shutil.copytree(ranking, tmp_path / "ranking")
    rewrite_tensors(place / f"{kind}.safetensors", kind, change)
    with pytest.raises(OptionError, match=f"{kind}.safetensors does not hold what llmrank writes"):
        Ranking.load(place)


def test_statistics_of_other_sizes_are_refused(
    checkpoint: Path, ranking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shutil.copytree(ranking, tmp_path / "ranking")

    def cut(_: Any, arrays: dict[str, Any]) -> None:
        arrays |= {name: array[:-1] for name, array in arrays.items() if name.startswith("0.1.")}

    rewrite_tensors(place / "statistics.safetensors", "statistics", cut)
    Ranking.load(place)
    assert run("apply", place, checkpoint, "--output", tmp_path / "out") == 2
    assert "do not fit the layers that it names" in " ".join(capsys.readouterr().err.split())
