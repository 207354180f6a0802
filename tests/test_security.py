"""The claims of SECURITY.md that no other test holds."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

import llmrank
from graphs.io.exchange.tables import as_cell
from tests.llmrank.commands import refused
from tests.llmrank.tiny_models import LLAMA, tiny_llama


class Harm:
    """A pickle that makes a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    model = tmp_path / "model"
    LlamaConfig(**LLAMA).save_pretrained(model)
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"model.embed_tokens.weight": Harm(harm)}))
    with pytest.raises((llmrank.LLMRankError, OSError)):
        llmrank.load(model)
    assert not harm.exists()
    pickle.loads((model / "pytorch_model.bin").read_bytes())  # noqa: S301 -- it would have done harm
    assert harm.exists()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_what_never_ends_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = llmrank.save(tmp_path / "model", tiny_llama())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "more than 256 MiB" in refused(capsys, "evaluate", model, "--items", "/dev/zero")
    assert "more than 256 MiB" in refused(capsys, "diff", "/dev/zero", model)
    assert "no calibration text at /dev/zero" in refused(
        capsys, "prune", model, "--output", tmp_path / "pruned", "--calibration", "/dev/zero"
    )
    with pytest.raises(SystemExit, match="2"):
        refused(capsys, "prune", model, "--output", tmp_path / "pruned", "--config", "/dev/zero")
    assert "more than 256 MiB" in capsys.readouterr().err
    if sys.platform == "linux":
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 1024


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\t=1", "\r=1"])
def test_no_cell_is_computed(text: str) -> None:
    assert as_cell(text) == f"'{text}"
    assert as_cell(f" {text}") == f" {text}"


def test_nothing_but_a_command_that_says_so_connects(tmp_path: Path) -> None:
    """A run on local files works where every connection fails."""
    program = f"""
import socket
def refuse(*_, **__): raise AssertionError("a connection")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch, llmrank
from tests.llmrank.tiny_models import tiny_llama, token_ids
pruned = llmrank.prune_model(tiny_llama(), None, amount=0.3, calibration=token_ids())
pruned.save({str(tmp_path / "pruned")!r})
llmrank.load({str(tmp_path / "pruned")!r})
"""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
