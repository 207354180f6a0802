"""A version of a model or dataset is known again, and another one is not taken for it."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from llmrank.experiments import identity
from llmrank.experiments.identity import identity_of
from llmrank.experiments.settings import SweepSettings
from llmrank.pipeline import CalibrationText


def test_every_byte_of_the_weights_counts(tmp_path: Path) -> None:
    content = bytearray(6_000_000)
    for name in ("model.safetensors", "README.md"):
        (tmp_path / name).write_bytes(content)
    before = identity_of(str(tmp_path), "model")
    (tmp_path / "README.md").write_bytes(b"other")
    assert identity_of(str(tmp_path), "model") == before
    content[3_000_000] = 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert identity_of(str(tmp_path), "model") != before
    file = str(tmp_path / "model.safetensors")
    assert identity_of(file, "model") == identity_of(file, "dataset") != ""


def test_rows_of_a_dataset_that_have_changed_are_another_text(tmp_path: Path) -> None:
    def described() -> str:
        (identity,) = SweepSettings(calibration=CalibrationText(f"dataset:{tmp_path}")).identities().values()
        return identity

    (tmp_path / "data").mkdir()
    rows = tmp_path / "data" / "train.jsonl"
    rows.write_text('{"text": "one"}\n', encoding="utf-8")
    before = described()
    assert before.startswith("files ")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").touch()
    assert described() == before
    rows.write_text('{"text": "two"}\n', encoding="utf-8")
    assert described() != before


def test_a_name_on_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Api:
        def repo_info(self, name: str, **options: Any) -> Any:
            asked.append((name, options["repo_type"], options["revision"]))
            if name == "org/gone":
                raise ConnectionError("no network")
            return SimpleNamespace(sha="0123456789abcdef" * 2)

    monkeypatch.setattr(identity, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert identity_of("org/name", "model", "v2") == "commit " + "0123456789abcdef" * 2
    assert asked == [("org/name", "model", "v2")]
    # Without a network it is the commit that was downloaded, and without that nothing is known.
    assert identity_of("org/gone", "dataset") == ""
    refs = tmp_path / "datasets--org--gone" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("fedcba98765432100", encoding="utf-8")
    (refs.parent / "snapshots" / "fedcba98765432100").mkdir(parents=True)
    assert identity_of("org/gone", "dataset") == "commit fedcba98765432100"
    assert identity_of("org/gone", "dataset", "v2") == ""
    assert identity_of("org/gone", "model", "a" * 40) == "commit " + "a" * 40


def test_the_stub_has_the_signature_of_the_client() -> None:
    names = inspect.signature(huggingface_hub.HfApi.repo_info).parameters
    assert {"repo_type", "revision", "timeout"} <= set(names)
