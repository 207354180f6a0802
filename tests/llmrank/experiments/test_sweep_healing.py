"""Rows of a sweep that are healed."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmrank
from llmrank.errors import OptionError
from llmrank.experiments.sweep_result import method_of


def test_a_healed_row_stands_beside_the_others_and_leaves_the_model_as_it_was(
    checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    options = {"scorers": ["random"], "repairs": ["none"], "calibration": corpus, "evaluation": corpus}
    asked = {**options, "samples": 4, "sequence_length": 16, "output": tmp_path / "runs"}
    result = llmrank.sweep(str(checkpoint), **asked, heals=[0, 64])
    dense, cut, healed = result.rows
    assert (dense["heal"], cut["heal"], healed["heal"]) == (None, 0, 64)
    assert healed["removed"] == cut["removed"]
    assert healed["healing"]["rows"][0]["step"] == 0
    assert {method_of(row) for row in (cut, healed)} == {
        "random, local, isolated, as cut",
        "random, local, isolated, as cut, healed with 64 tokens",
    }
    again = llmrank.sweep(str(checkpoint), **{**asked, "amounts": [0.2]}, heals=[64, 0])
    # The rows that are measured after a healed one are those of the model before.
    alone = llmrank.sweep(str(checkpoint), **{**asked, "amounts": [0.2], "output": tmp_path / "alone"})
    assert again.rows[-1]["losses"] == alone.rows[-1]["losses"]
    # Healing reads more of the corpus, and so more of the evaluation text.
    assert healed["calibration_overlap"] > cut["calibration_overlap"]
    _, sentence = result.warnings()
    assert (
        f"{healed['calibration_overlap']:.1%} of the evaluation passages occur in the text that healed rows" in sentence
    )
    with pytest.raises(OptionError, match="tokens must be an integer"):
        llmrank.sweep(str(checkpoint), **asked, heals=[-1])
