"""The study of steps: every row runs, and what it says of itself is what it did."""

from __future__ import annotations

import json

import pytest

from benchmarks import schedules
from llmrank.evaluation.perplexity import perplexity
from llmrank.text import TokenSequences, tokenise
from tests.llmrank.tiny_models import Snapshot, tiny_llama, token_ids


def sequences(seed: int) -> TokenSequences:
    return tokenise(token_ids(3, 24, seed), None, 3, 24)


@pytest.mark.parametrize("name", schedules.ROWS)
def test_rows_prune_what_they_say_and_leave_the_model(name: str) -> None:
    model = tiny_llama()
    snapshot = Snapshot(model)
    row = schedules.measure(model, sequences(0), {"valid": sequences(1)}, name, 0.25)
    snapshot.assert_restored()
    _, _, steps, repair, _ = schedules.ROWS[name]
    assert sum(row["widths"]) == 60
    assert len(row["steps"]) == steps
    assert row["steps"][-1]["repaired"] is (repair != "none")
    assert row["valid"] != perplexity(model, sequences(1)).value
    json.dumps(row, allow_nan=False)


def test_the_table_has_a_line_for_each_row() -> None:
    rows = {
        "one": {"valid": 20.0, "steps": [{}], "widths": [30, 30]},
        "two": {"valid": 19.5, "steps": [{}] * 2, "widths": [20, 40]},
    }
    shown = schedules.table({"dense": {"valid": 10.0}, "rows": rows, "protocol": {"amount": 0.25}})
    assert "25% of the hidden neurons removed; dense: 10.00 on valid." in shown
    assert "| one | 20.00 | 1 | 30 |" in shown
    assert "| two | 19.50 | 2 | 20 to 40 |" in shown
