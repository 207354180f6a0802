"""``llmrank export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from tests.llmrank.commands import SHORT, refused, run
from tests.llmrank.tiny_models import write_vocabulary


def test_a_checkpoint_of_uneven_layers_becomes_a_gguf_file(
    checkpoint: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    pruned, output = tmp_path / "pruned", tmp_path / "pruned.gguf"
    arguments = ("--pruner", "global:multiple_of=1", "--repair", "none", "--calibration", corpus, *SHORT)
    assert run("prune", checkpoint, "--output", pruned, *arguments) == 0
    assert "run it elsewhere after llmrank export, or prune with --form padded" in " ".join(
        capsys.readouterr().out.split()
    )
    vocabulary = write_vocabulary(tmp_path / "dense.gguf")
    assert run("export", pruned, "--to", "gguf", "--output", output, "--tokenizer", vocabulary) == 0
    widths = list(json.loads((pruned / "report.json").read_text(encoding="utf-8"))["neurons"]["widths"].values())
    assert len(set(widths)) > 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"{len(widths)} layers of {min(widths)} to {max(widths)} neurons, F32, 0 MB, architecture deci." in said
    assert gguf.GGUFReader(output).fields["deci.feed_forward_length"].contents() == widths
    assert run("export", pruned, "--output", output, "--tokenizer", vocabulary, "--dtype", "bfloat16") == 0
    assert "BF16" in capsys.readouterr().out
    served = tmp_path / "served"
    assert run("export", pruned, "--to", "vllm", "--output", served) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{len(widths)} layers of {min(widths)} to {max(widths)} neurons. Serve it: vllm serve" in said
    assert "SGLang and mlx-lm need multiples of 256" in said
    assert "DeciLMForCausalLM" in (served / "config.json").read_text(encoding="utf-8")
    assert "exists and is not empty" in refused(capsys, "export", pruned, "--to", "vllm", "--output", served)
    refusal = refused(capsys, "export", pruned, "--to", "vllm", "--output", tmp_path / "a", "--tokenizer", vocabulary)
    assert "--tokenizer is for --to gguf" in refusal


def test_the_tokenizer_is_that_of_the_file_that_was_pruned(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "a.gguf"
    assert "name a GGUF file of the dense model with --tokenizer" in refused(
        capsys, "export", checkpoint, "--output", output
    )
    pruned = tmp_path / "pruned"
    pruned.mkdir()
    for file in checkpoint.iterdir():
        (pruned / file.name).write_bytes(file.read_bytes())
    report = {"config": {"model": str(write_vocabulary(tmp_path / "dense.gguf"))}}
    (pruned / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert run("export", pruned, "--output", output, "--quiet") == 0
    assert output.is_file()
    for damaged in ("{", "[]", json.dumps({"config": {"model": None}}), json.dumps({"config": {"model": "no.gguf"}})):
        (pruned / "report.json").write_text(damaged, encoding="utf-8")
        assert "with --tokenizer" in refused(capsys, "export", pruned, "--output", output)


def test_an_output_that_cannot_be_written_is_found_first(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    assert "there is no directory" in refused(capsys, "export", checkpoint, "--output", tmp_path / "no" / "a.gguf")
    assert "is a directory" in refused(capsys, "export", checkpoint, "--output", tmp_path)
    weights = checkpoint / "model.safetensors"
    before = weights.read_bytes()
    assert "is a part of what is read" in refused(capsys, "export", checkpoint, "--output", weights)
    assert weights.read_bytes() == before
    refusal = refused(
        capsys, "export", checkpoint, "--output", tmp_path / "a.gguf", "--tokenizer", tmp_path / "no.gguf"
    )
    assert refusal == f"llmrank: error: --tokenizer: there is no file {tmp_path / 'no.gguf'}"
    dense, again = tmp_path / "dense.gguf", tmp_path / "again.gguf"
    vocabulary = write_vocabulary(tmp_path / "vocabulary.gguf")
    assert run("export", checkpoint, "--output", dense, "--tokenizer", vocabulary, "--quiet") == 0
    assert run("export", dense, "--output", again, "--quiet") == 0
    assert len(gguf.GGUFReader(again).tensors) == len(gguf.GGUFReader(dense).tensors)
