"""Directories of results: whole or not at all, whatever was there before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmrank.errors import CheckpointError
from llmrank.output import check_output, whole_directory


def fill(directory: Path) -> None:
    with whole_directory(directory) as partial:
        (partial / "summary.json").write_text("{}")
        (partial / "graph").mkdir()
        (partial / "graph" / "nodes.csv").write_text("id\n")


def fail(partial: Path) -> None:
    (partial / "summary.json").write_text("{")
    raise OSError(28, "No space left on device")


def listed(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


FILLED = ["graph", "graph/nodes.csv", "summary.json"]


def test_an_absent_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "far" / "below"
    with whole_directory(target) as partial:
        (partial / "summary.json").write_text("{}")
        assert not target.exists()
    assert listed(target) == ["summary.json"]
    assert listed(tmp_path) == ["far", "far/below", "far/below/summary.json"]


def test_an_empty_directory_is_filled_and_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seen").mkdir()
    before = (tmp_path / "seen").stat().st_ino
    fill(tmp_path / "seen")
    assert listed(tmp_path / "seen") == FILLED
    assert (tmp_path / "seen").stat().st_ino == before
    # Where the shell stands,
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fill(Path())
    assert listed(tmp_path / "here") == FILLED
    # and behind a link.
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link")
    assert listed(tmp_path / "real") == FILLED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link", "real", "seen"]


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "seen"
    if there:
        target.mkdir()
    with pytest.raises(OSError, match="No space"), whole_directory(target) as partial:
        fail(partial)
    assert listed(tmp_path) == (["seen"] if there else [])


def test_a_failure_at_the_last_moment_leaves_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seen").mkdir()
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if Path(target) == tmp_path / "seen" / "summary.json":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"):
        fill(tmp_path / "seen")
    assert listed(tmp_path) == ["seen"]


def test_what_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lost").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="a link to a place that is not there"):
        check_output(tmp_path / "lost")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        check_output(tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(CheckpointError, match="is not empty"), whole_directory(tmp_path / "full"):
        pytest.fail("began to write")
    assert listed(tmp_path) == ["file", "full", "full/mine", "lost"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_an_empty_directory_of_ones_own_in_a_closed_place_can_be_filled(tmp_path: Path) -> None:
    (tmp_path / "closed" / "mine").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o500)
    try:
        fill(tmp_path / "closed" / "mine")
        assert listed(tmp_path / "closed" / "mine") == FILLED
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_permissions_are_those_of_ordinary_directories(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    fill(tmp_path / "seen")
    assert (tmp_path / "seen").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
