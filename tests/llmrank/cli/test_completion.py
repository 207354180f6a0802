"""Completion of the command line in a shell: shtab makes a script of the parser, and bash completes with it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import shtab

from llmrank import cli

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def test_bash_completes_commands_options_and_files(tmp_path: Path) -> None:
    script = tmp_path / "llmrank.bash"
    script.write_text(shtab.complete(cli.parser(), shell="bash"), encoding="utf-8")
    (tmp_path / "calibration.txt").touch()
    cases = {
        "llmrank eval": "evaluate",
        "llmrank prune --push": "--push-to-hub",
        "llmrank prune cal": "calibration.txt",
        "llmrank prune MODEL --calibration cal": "calibration.txt",
        "llmrank apply cal": "calibration.txt",
        "llmrank prune MODEL --samples cal": "",
    }
    lines = [f"source {script.name}"]
    for line in cases:
        words = line.split()
        lines.append(
            f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); _shtab_llmrank; echo "${{COMPREPLY[*]}}"'
        )
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert dict(zip(cases, done.stdout.splitlines(), strict=True)) == cases, done.stderr


def test_the_marks_of_files_are_those_of_the_library() -> None:
    assert cli.COMPLETION.items() <= shtab.FILE.items()
