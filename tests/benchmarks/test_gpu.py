"""The run on one card: what it starts, how it keeps to its time, and what it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import sleep

import psutil
import pytest
import torch

from benchmarks import gpu


def test_a_part_ends_in_one_of_five_ways() -> None:
    def outcome(code: str, seconds: float = 60.0) -> gpu.Outcome:
        return gpu.run("part", [sys.executable, "-c", code], seconds)

    assert outcome("print('one'); print('two')").said == "one\ntwo"
    failed = outcome("raise SystemExit('a reason')")
    assert (failed.ended, failed.said) == ("failed", "a reason")
    late = outcome("import time; print('measured', flush=True); time.sleep(60)", 2.0)
    assert (late.ended, late.said) == ("ran out of time", "measured")
    assert outcome("", 0.0).ended == "no time was left"
    for said, ended in (("2 skipped, 1234 deselected", "skipped"), ("1 passed, 2 skipped", "passed")):
        assert gpu.run("tests", [sys.executable, "-c", f"print('{said}')"], 60.0).ended == ended


def test_nothing_that_a_part_has_started_outlives_it(tmp_path: Path) -> None:
    child = f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert gpu.run("part", [sys.executable, "-c", parent], 3.0).ended == "ran out of time"
    pid = int((tmp_path / "pid").read_text(encoding="utf-8"))
    for _ in range(100):  # it is dead at once, and gone when its new parent has noticed
        if not is_running(pid):
            break
        sleep(0.1)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_published_lines_name_no_directory_of_the_machine() -> None:
    text = f"{gpu.ROOT}/tests/a.py {sys.prefix}/lib/b.py {Path.home()}/c"
    assert gpu.without_directories(text) == "./tests/a.py ENVIRONMENT/lib/b.py ~/c"


def test_every_command_names_a_benchmark_and_its_options(tmp_path: Path) -> None:
    commands = gpu.commands("cuda", tmp_path, "m.gguf", quick=False)
    assert commands["tests"][-3:] == ["-m", "gpu", "tests"]
    for name, command in list(commands.items())[1:]:
        path = Path(gpu.__file__).with_name(f"{name}.py")
        source = path.read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in command if option.startswith("--"))
        assert ("--device" in command) is (name not in gpu.FIND_DEVICE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_device_is_said_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--output", str(tmp_path)])
    assert "PyTorch sees no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_page_tells_how_each_part_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "tests": [sys.executable, "-c", "print('5 passed')"],
        "speed": [sys.executable, "-c", "raise SystemExit('no | room')"],
    }
    monkeypatch.setattr(gpu, "commands", lambda *_args, **_options: parts)
    with pytest.raises(SystemExit, match="1"):
        gpu.main(["--device", "cpu", "--output", str(tmp_path)])
    page = (tmp_path / "cpu" / "run.md").read_text(encoding="utf-8")
    assert "| tests | passed |" in page
    assert "| 5 passed |" in page
    assert "| speed | failed |" in page
    assert "no \\| room" in page
    assert json.loads((tmp_path / "cpu" / "run.json").read_text(encoding="utf-8"))["card"] == "cpu"
