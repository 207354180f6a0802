"""The table of healing: what a row gains over the repaired model of the same neurons."""

from __future__ import annotations

from typing import Any

from benchmarks import healing


def test_the_table_compares_with_the_repaired_model_of_the_same_neurons() -> None:
    def row(prose: float, other: float, **more: Any) -> dict[str, Any]:
        own, second = ({"losses": [loss, 2 * loss], "counts": [1, 2]} for loss in (prose, other))
        return {**own, "other": second, "items": "11-0", **more}

    rows = {
        "llmrank | own | 65536": row(1.4, 2.7, seconds=200.0),
        "llmrank | own | 4096": row(1.5, 2.9, seconds=20.0),
        "llmrank | built-in | 256": row(1.61, 2.9, seconds=2.0),
        f"llmrank | {healing.REPAIRED}": row(1.6, 3.0),
        f"{healing.PLAIN} | own | 4096": row(1.7, 3.1, seconds=10.0),
        f"llmrank, 128 sequences | {healing.REPAIRED}": row(1.5, 2.9),
        "llmrank, 128 sequences | own | 4096": row(1.3, 2.5, seconds=20.0),
        f"FLAP | {healing.REPAIRED}": row(1.9, 3.2),
        "FLAP | own | 4096": row(1.8, 3.0, seconds=20.0),
    }
    dense = row(1.0, 2.0) | {"items": "11-1"}
    lines = healing.table({"models": {"tiny": {"dense": dense, "rows": rows}}}).splitlines()
    shown = [line.split(" | ")[:3] for line in lines if line.startswith("| ")]
    assert shown[3:] == [
        ["| llmrank, repaired only", "4.95", "20.09"],
        ["| llmrank, own, 4,096", "4.48 (-0.100 ± 0.000)", "18.17 (-0.100 ± 0.000)"],
        ["| llmrank, own, 65,536", "4.06 (-0.200 ± 0.000)", "14.88 (-0.300 ± 0.000)"],
        ["| llmrank, built-in, 256", "5.00 (+0.010 ± 0.000)", "18.17 (-0.100 ± 0.000)"],
        ["| llmrank, 128 sequences, repaired only", "4.48", "18.17"],
        ["| llmrank, 128 sequences, own, 4,096", "3.67 (-0.200 ± 0.000)", "12.18 (-0.400 ± 0.000)"],
        ["| FLAP, repaired only", "6.69", "24.53"],
        ["| FLAP, own, 4,096", "6.05 (-0.100 ± 0.000)", "20.09 (-0.200 ± 0.000)"],
        [f"| {healing.PLAIN}, own, 4,096", "5.47 (+0.100 ± 0.000)", "22.20 (+0.100 ± 0.000)"],
    ]
    assert lines[-1].endswith("| 66.7% ± 33.3% | 10 |")
    assert healing.most_healed(rows) == "llmrank, 128 sequences | own | 4096"


def test_a_forecast_goes_on_with_the_power_of_the_tokens() -> None:
    counts = [100, 100, 100]
    dense = {"losses": [300.0, 310.0, 290.0], "counts": counts}

    def row(above: float) -> dict[str, Any]:
        return {"losses": [loss + above for loss in dense["losses"]], "counts": counts}

    rows = {
        f"llmrank, 128 sequences | own | {tokens}": row(16.0 * tokens**-0.25) for tokens in (65536, 262144, 1048576)
    }
    rows |= {"llmrank | own | 65536": row(1.0), "llmrank, 128 sequences | own | 4096": row(9.0)}
    rows["llmrank, 256 sequences | longer | 524288"] = row(0.1)  # one row has no power
    (sentence,) = healing.forecast(rows, dense)
    assert "to the power of -0.25 ± 0.00, fitted to 3 rows of 128 sequences" in sentence
    assert "16 times as many tokens (16 to 16) close half of what 1,048,576 leave" in sentence
    assert healing.forecast({name: row(1.0) for name in rows}, dense) == []  # nothing falls
    rows["llmrank, 128 sequences | longer | 1048576"] = rows.pop("llmrank, 128 sequences | own | 1048576")
    assert healing.forecast(rows, dense)[0].count("fitted to 3 rows") == 1
    rows["llmrank, 128 sequences | longer | 1048576"]["healing"] = {"text": {"tokens": 262144}}
    (sentence,) = healing.forecast(rows, dense)
    assert "fitted to 2 rows of 128 sequences" in sentence
