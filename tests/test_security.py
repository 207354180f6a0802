"""The claims of SECURITY.md that no other test holds."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

import llmrank
from graphs.io.exchange.tables import as_cell
from tests.hostile.harness import forget_peak, peak_mebibytes
from tests.llmrank.commands import refused
from tests.llmrank.tiny_models import LLAMA, text, tiny_llama, tokenizer


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
    with pytest.raises(llmrank.LLMRankError, match=r"(?i)weights.only|unpickl|pickle"):
        llmrank.load(model)
    assert not harm.exists()
    pickle.loads((model / "pytorch_model.bin").read_bytes())  # noqa: S301 -- it would have done harm
    assert harm.exists()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_what_never_ends_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = llmrank.save(tmp_path / "model", tiny_llama())
    forget_peak()
    before = peak_mebibytes()
    assert "at most 256 MiB" in refused(capsys, "evaluate", model, "--items", "/dev/zero")
    assert "at most 256 MiB" in refused(capsys, "diff", "/dev/zero", model)
    assert "no calibration text at /dev/zero" in refused(
        capsys, "prune", model, "--output", tmp_path / "pruned", "--calibration", "/dev/zero"
    )
    with pytest.raises(SystemExit, match="2"):
        refused(capsys, "prune", model, "--output", tmp_path / "pruned", "--config", "/dev/zero")
    assert "at most 256 MiB" in capsys.readouterr().err
    assert peak_mebibytes() - before < 1024


@pytest.mark.parametrize("first", "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
def test_no_cell_is_computed(first: str) -> None:
    given = f"{first}1+1"
    assert as_cell(given) == f"'{given}"
    assert as_cell(f" {given}") == f" {given}"


@pytest.mark.slow
def test_local_files_need_no_network(tmp_path: Path) -> None:
    """Commands on local files try no connection, also where a library would hide that it has failed."""
    model = llmrank.save(tmp_path / "model", tiny_llama(), tokenizer())
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(text(200), encoding="utf-8")
    program = f"""
import socket
tried = []
def refuse(*arguments, **_):
    tried.append(arguments)
    raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from llmrank import cli
short = ["--samples", "2", "--sequence-length", "16"]
model, corpus, folder = {str(model)!r}, {str(corpus)!r}, {str(tmp_path)!r}
read = ["--calibration", corpus, *short]
learned = ["--text", corpus, "--tokens", "32", "--sequence-length", "16"]
for line in (
    ["prune", model, "--output", folder + "/pruned", *read],
    ["rank", model, "--output", folder + "/ranking", *read],
    ["apply", folder + "/ranking", model, "--output", folder + "/applied"],
    ["evaluate", folder + "/pruned", "--against", model, "--text", corpus, *short],
    ["heal", folder + "/pruned", "--against", model, "--output", folder + "/healed", *learned],
    ["predict", model, "--output", folder + "/predictions.safetensors", *learned],
    ["sweep", model, "--output", folder + "/swept", "--evaluate", corpus, "--amount", "0.3", "--repair", "none", *read],
    ["inspect", model, "--output", folder + "/seen", *read],
    ["diff", folder + "/pruned", folder + "/applied"],
    ["export", folder + "/pruned", "--to", "vllm", "--output", folder + "/served"],
    ["families", "llama"],
    ["components"],
):
    assert cli.main(line) == 0, line
assert not tried, tried
"""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
