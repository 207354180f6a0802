"""Where a model is loaded: device maps, their memory, and revisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from llmrank.cli.arguments.shared import _max_memory
from llmrank.models.loading import load_pretrained
from tests.llmrank.commands import SHORT, refused, run

pytestmark = pytest.mark.usefixtures("transformers_log_as_it_was")


def test_a_device_map_prunes_where_the_weights_are_and_refuses_those_on_disk(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("prune", checkpoint, "--calibration", corpus, *SHORT)
    assert run(*common, "--output", tmp_path / "mapped", "--device-map", "auto") == 0
    assert run(*common, "--output", tmp_path / "plain") == 0
    found, expected = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("mapped", "plain")
    )
    assert found.config.intermediate_size == expected.config.intermediate_size
    capsys.readouterr()
    on_disk = ("--device-map", "auto", "--max-memory", "cpu=20KB", "--offload-folder", tmp_path / "offloaded")
    assert run(*common, "--output", tmp_path / "out", *on_disk) == 2
    assert "has no data here (offloaded" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_model_on_disk_is_evaluated(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("evaluate", checkpoint, "--text", corpus, *SHORT)
    on_disk = ("--device-map", "auto", "--max-memory", "cpu=20KB", "--offload-folder", tmp_path / "offloaded")
    said = []
    for more in ((), on_disk):
        assert run(*common, *more) == 0
        said.append(capsys.readouterr().out.split(": ", 1)[1].split(" over ")[0])
    assert said[0] == said[1]


def test_options_of_places_that_do_not_go_together_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("prune", checkpoint, "--output", tmp_path / "out")
    assert "belong to --device-map" in refused(capsys, *common, "--max-memory", "cpu=1GB")
    assert "places the whole model" in refused(capsys, *common, "--device-map", "auto", "--device", "cpu")
    for wrong in ("1GB", "cpu=abc", "gpu=1GB", "0=", "0=1GB,cpu=-1GB", "cpu=1.5"):
        with pytest.raises(SystemExit):
            run(*common, "--device-map", "auto", "--max-memory", wrong)
        said = " ".join(capsys.readouterr().err.split())
        assert "expected DEVICE=SIZE,DEVICE=SIZE such as 0=20GiB,cpu=60GiB" in said
        assert f"got {wrong.rpartition(',')[2]!r}" in said
    assert _max_memory("0=20GiB, cpu=60GB,disk=1000") == {0: 20 * 2**30, "cpu": 60 * 10**9, "disk": 1000}


def test_each_of_two_models_has_a_revision_of_its_own(
    checkpoint: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "llmrank.cli.options.checkpoint.load",
        lambda source, *_, revision, **__: (seen.append((source, revision)), load_pretrained(source))[1],
    )
    common = ("evaluate", checkpoint, "--text", corpus, *SHORT, "--prompts", 0)
    assert run(*common, "--revision", "a", "--against", checkpoint) == 0
    assert run(*common, "--revision", "a", "--against", checkpoint, "--against-revision", "b") == 0
    assert [revision for _, revision in seen] == ["a", None, "a", "b"]
    capsys.readouterr()
    assert "name that model with --against" in refused(capsys, *common, "--against-revision", "b")


def test_a_revision_reaches_every_part(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    for part in ("AutoConfig", "AutoTokenizer", "LlamaForCausalLM"):
        loader = getattr(transformers, part)
        read = loader.from_pretrained

        def reading(*args: Any, read: Any = read, **options: Any) -> Any:
            seen.append(options.pop("revision", None))
            return read(*args, **options)

        monkeypatch.setattr(loader, "from_pretrained", reading)
    load_pretrained(checkpoint, revision="v2")
    assert seen[:3] == ["v2"] * 3  # the tokenizer's loader reads the configuration once more
