"""Random checkpoints of given shapes, and what pruning them costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from benchmarks import large


def test_a_checkpoint_of_a_shape_is_pruned_and_measured(tmp_path: Path) -> None:
    large.make_checkpoint(tmp_path / "tiny", "tiny")
    model, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "tiny", output_loading_info=True)
    assert not any(info.values())
    assert model.config.intermediate_size == 192
    row = large.measure(tmp_path / "tiny", "block by block", "lstsq", 4, 16)
    assert row["seconds"] == pytest.approx(sum(stage["seconds"] for stage in row["stages"].values()))
    assert {"calibrate", "rank", "repair", "apply", "save"} <= row["stages"].keys()
    assert 0 < row["written_bytes"] < row["read_bytes"]
    assert row["peak_bytes"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]
    row["stages"]["calibrate"]["seconds"], row["seconds"] = 2.0, 5.0
    line = large.table({"rows": {"tiny | block by block | lstsq": row}}).splitlines()[-1]
    assert line.startswith("| tiny | block by block | lstsq | 0.00 GB |")
    assert line.endswith("| 5 | 2.5 |")
