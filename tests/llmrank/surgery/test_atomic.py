"""Directories of results are written completely or not at all, whatever the target was before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graphs.io.replacement import hidden_directory
from llmrank.errors import CheckpointError
from llmrank.surgery import atomic
from llmrank.surgery.atomic import atomic_directory, check_output


def fill(directory: Path) -> None:
    with atomic_directory(directory) as partial:
        (partial / "summary.json").write_text("{}")
        (partial / "graph").mkdir()
        (partial / "graph" / "nodes.csv").write_text("id\n")


def fail(partial: Path) -> None:
    (partial / "summary.json").write_text("{")
    raise OSError(28, "No space left on device")


def listed(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


FILLED = ["graph", "graph/nodes.csv", "summary.json"]


def test_an_absent_directory_appears_completely(tmp_path: Path) -> None:
    target = tmp_path / "far" / "below"
    with atomic_directory(target) as partial:
        (partial / "summary.json").write_text("{}")
        assert not target.exists()
    assert listed(target) == ["summary.json"]
    assert listed(tmp_path) == ["far", "far/below", "far/below/summary.json"]


def test_an_empty_directory_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seen").mkdir(mode=0o750)
    (tmp_path / "seen").chmod(0o750)
    with atomic_directory(tmp_path / "seen") as partial:
        (partial / "summary.json").write_text("{}")
        assert listed(tmp_path / "seen") == []
    assert listed(tmp_path / "seen") == ["summary.json"]
    assert (tmp_path / "seen").stat().st_mode & 0o777 == 0o750
    # Also behind a link.
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link")
    assert listed(tmp_path / "real") == FILLED
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real", "seen"]


@pytest.fixture(params=["here", "mount", "another owner's"])
def fixed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that cannot be replaced."""
    target = tmp_path / "fixed"
    target.mkdir()
    if request.param == "here":
        monkeypatch.chdir(target)
    elif request.param == "mount":
        monkeypatch.setattr(atomic, "_is_mount", lambda path: path == target)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: target.stat().st_uid + 1)
    return target


def test_a_directory_that_cannot_be_replaced_is_filled(fixed: Path) -> None:
    before = fixed.stat().st_ino
    with atomic_directory(fixed) as partial:
        (partial / "summary.json").write_text("{}")
        assert not (fixed / "summary.json").exists()
    assert fixed.stat().st_ino == before
    assert listed(fixed.parent) == ["fixed", "fixed/summary.json"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("moved", [0, 1, 2])
def test_entries_that_a_killed_process_moved_are_removed(fixed: Path, moved: int) -> None:
    """A forked process ends after so many renames."""
    steps: list[Path] = []
    pid, rename = os.fork(), Path.rename
    if pid == 0:

        def killed(self: Path, target: Path) -> None:
            if moved:
                rename(self, target)
                steps.append(target)
            if len(steps) == moved:
                os._exit(9)

        Path.rename = killed  # type: ignore[assignment, method-assign]
        fill(fixed)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    part = [[], ["graph", "graph/nodes.csv"], FILLED][moved]
    assert [name for name in listed(fixed) if not name.startswith(".")] == part
    # Files that a user has added since are kept; and so is a complete directory.
    (fixed / "mine").write_text("")
    with pytest.raises(CheckpointError, match="is not empty"):
        check_output(fixed)
    assert listed(fixed) == sorted([*(FILLED if moved == 2 else []), "mine"])
    if moved < 2:
        (fixed / "mine").unlink()
        fill(fixed)
        assert listed(fixed) == FILLED


@pytest.mark.parametrize("name", ["..", "", "../mine", "{place}/mine", "theirs/../../mine", 5, None])
def test_a_list_of_a_stranger_deletes_nothing_elsewhere(tmp_path: Path, name: Any) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    (theirs := tmp_path / "theirs").mkdir()
    with hidden_directory(theirs, atomic.NAME_INSIDE) as alive:
        made = alive.with_name(alive.name.replace(".partial", "x.partial"))
        (made / atomic.CONTENT / "left").mkdir(parents=True)
    names = name.format(place=tmp_path) if isinstance(name, str) else name
    (made / atomic.JOURNAL).write_text(json.dumps([names]), encoding="utf-8")
    check_output(theirs)
    assert listed(tmp_path) == ["mine", "mine/thesis.txt", "theirs"]
    for journal in ("5", "{}", '"ab"', "[[]]"):
        (made / atomic.CONTENT / "left").mkdir(parents=True)
        (made / atomic.JOURNAL).write_text(journal, encoding="utf-8")
        check_output(theirs)
    assert listed(tmp_path) == ["mine", "mine/thesis.txt", "theirs"]


def test_a_mount_is_detected(tmp_path: Path) -> None:
    assert atomic._is_mount(Path("/proc").resolve())
    assert not atomic._is_mount(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_mount_from_the_same_file_system_is_filled(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "a place").mkdir()
    code = (
        "import sys; from llmrank.surgery.atomic import atomic_directory\n"
        "with atomic_directory(sys.argv[1]) as partial: (partial / 'summary.json').write_text('{}')"
    )
    script = 'mount --bind "$1" "$2" || exit 77; shift; exec "$0" -c "$2" "$1"'
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable, tmp_path / "from", tmp_path / "a place", code],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode in (1, 77) and "Traceback" not in run.stderr:
        pytest.skip("may not mount")
    assert run.returncode == 0, run.stderr
    assert listed(tmp_path) == ["a place", "from", "from/summary.json"]


@pytest.mark.parametrize("there", [True, False])
def test_another_process_may_be_faster(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "seen"
    if there:
        target.mkdir()
    with pytest.raises(CheckpointError, match=r"another process also wrote to .*seen;"):
        overtaken(target)
    assert listed(tmp_path) == ["seen", "seen/theirs"]


def test_another_process_may_fill_a_directory_that_cannot_be_replaced(fixed: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another process also wrote to .*fixed;"):
        overtaken(fixed)
    assert listed(fixed) == ["theirs"]


def overtaken(target: Path) -> None:
    with atomic_directory(target):
        target.mkdir(exist_ok=True)
        (target / "theirs").write_text("")


def test_only_leftovers_of_dead_processes_of_this_machine_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target := tmp_path / "seen").mkdir()
    with hidden_directory(tmp_path, "seen") as alive:
        left = [alive.name]
        fill(target)
        for machine, stays in (
            ("0.1", True),
            (alive.name.split(".")[2] + ".1", False),
            ("0." + alive.name.split(".")[3], False),
        ):
            (tmp_path / f".seen.{machine}.abc.partial").mkdir()
            left += [f".seen.{machine}.abc.partial"] * stays
        (tmp_path / ".seen.partial").write_text("a user's")
        (tmp_path / ".other.partial").mkdir()
        with pytest.raises(CheckpointError, match="is not empty"):
            check_output(target)
        assert {path.name for path in tmp_path.iterdir()} == {"seen", ".seen.partial", ".other.partial", *left}
        assert alive.is_dir()


@pytest.mark.skipif(sys.platform == "darwin", reason="names there are UTF-8")
def test_a_path_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a.udcff.b' is not valid UTF-8"):
        check_output(tmp_path / "a\udcff" / "b")
    (tmp_path / "real\udcff").mkdir()
    (tmp_path / "link").symlink_to("real\udcff")
    with pytest.raises(CheckpointError, match=r"link' is not valid UTF-8"):
        check_output(tmp_path / "link")


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_leaves_the_target_unchanged(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "seen"
    if there:
        target.mkdir()
    with pytest.raises(OSError, match="No space"), atomic_directory(target) as partial:
        fail(partial)
    assert listed(tmp_path) == (["seen"] if there else [])


def test_a_failure_of_the_last_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).name in ("seen", "summary.json"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    (tmp_path / "seen").mkdir()
    for there in (True, False):
        with pytest.raises(OSError, match="Input/output"):
            fill(tmp_path / "seen")
        assert listed(tmp_path) == ["seen"] * there
        if there:
            monkeypatch.chdir(tmp_path / "seen")
            with pytest.raises(OSError, match="Input/output"):
                fill(Path())
            assert listed(tmp_path) == ["seen"]
            monkeypatch.chdir(tmp_path)
            (tmp_path / "seen").rmdir()


def test_targets_that_cannot_be_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lost").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="a link to a place that does not exist"):
        check_output(tmp_path / "lost")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        check_output(tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(CheckpointError, match="is not empty"), atomic_directory(tmp_path / "full"):
        pytest.fail("began to write")
    assert listed(tmp_path) == ["file", "full", "full/mine", "lost"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_an_own_empty_directory_in_a_read_only_place_can_be_filled(tmp_path: Path) -> None:
    (tmp_path / "closed" / "mine").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o500)
    try:
        fill(tmp_path / "closed" / "mine")
        assert listed(tmp_path / "closed" / "mine") == FILLED
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_permissions_are_those_of_ordinary_directories(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    (tmp_path / "ordinary" / "file").write_text("")
    with atomic_directory(tmp_path / "seen") as partial:
        (partial / "graph").mkdir()
        (partial / "graph" / "private").touch(mode=0o600)
    for path, like in (("seen", "ordinary"), ("seen/graph", "ordinary"), ("seen/graph/private", "ordinary/file")):
        assert (tmp_path / path).stat().st_mode == (tmp_path / like).stat().st_mode
