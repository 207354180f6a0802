"""The README tells the truth: its code runs from top to bottom, its file tree is the tree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import llmrank
from llmrank.pipeline.registry import PRUNERS, SCORERS
from tests.llmrank.tiny_models import LLAMA, text, tiny_llama, tokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_code_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    llmrank.save("path/to/model", tiny_llama(), tokenizer())
    for name, seed in (("calibration.txt", 0), ("evaluation.txt", 1)):
        Path(name).write_text(text(2000, seed), encoding="utf-8")
    # The built-in text holds no word of the tiny tokenizer, which would leave nothing to calibrate on but [UNK].
    monkeypatch.setattr("llmrank.calibration.text.builtin_texts", lambda: (text(2000, 2), text(2000, 3)))
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, Any] = {}
    try:
        for block in blocks:
            exec(compile(block, "README.md", "exec"), names)
    finally:
        SCORERS.pop("in-strength", None)
        PRUNERS.pop("protect-ends", None)
    assert "@@" not in README
    assert len(blocks) >= 7
    assert names["result"].stop_reason == "exact"
    assert (names["result"].iterations, names["result"].error_bound) == (2, 0.0)
    assert names["ranked"].choice.startswith("there are cycles, but most edges lead on")
    assert names["certified"].stop_reason == "certified"
    assert names["model"].config.intermediate_size == LLAMA["intermediate_size"]  # undone
    assert (tmp_path / "pruned" / "masks.safetensors").is_file()


def test_protected_layers_keep_everything() -> None:
    """The example of a budget does what it says."""
    names: dict[str, Any] = {}
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "ProtectEnds" in b)
    exec(compile(block, "README.md", "exec"), names)
    import torch

    from llmrank.prune import LayerRecord

    masks = names["ProtectEnds"](0.5).prune([LayerRecord(f"{k}", torch.arange(4) / 6) for k in range(3)])
    assert list(masks.widths.values()) == [4, 2, 4]


@pytest.mark.parametrize("package", ["graphs", "llmrank"])
def test_file_tree_names_every_module(package: str) -> None:
    tree = README[README.index("## Files") :]
    inside = (ROOT / package).iterdir()
    modules = {path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").exists()}
    missing = [name for name in modules - {"__init__", "__main__"} if not re.search(rf"\b{name}\b", tree)]
    assert not missing
