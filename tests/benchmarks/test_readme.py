"""The tables of the README and of the documentation are those of the results."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks import readme
from benchmarks.across import DEFAULT, TEXTS


def row(test: float, valid: float) -> dict[str, Any]:
    return {"test": test, "valid": valid, "repair": "none"}


def test_every_page_says_what_the_results_say() -> None:
    for path, (text, wanted) in readme.current().items():
        assert text == wanted, f"{path}: run python -m benchmarks.readme"


def test_commands_that_no_parser_takes_are_found() -> None:
    def result(command: str) -> dict[str, Any]:
        return {"provenance": {}, "rows": [{"run": {"command": command}}]}

    results = {
        "good": result("python -m benchmarks.speed --output 'a | b.json'"),
        "gone": result("python -m benchmarks.speed --never"),
        "cut": result("python -m benchmarks.speed --output a | b.json"),
        "other": result("make all"),
        "no more": result("python -m benchmarks.nothing"),
        "open": result("python -m benchmarks.speed --output 'a"),
    }
    wrong = readme.unreadable_commands(results)
    assert [line.split(":")[0] for line in wrong] == ["gone", "cut", "other", "no more", "open"]
    assert "unrecognized arguments: --never" in wrong[0]


def timed(
    name: str, build: float, solve: float, target: float = readme.RANKED_TO, reached: bool = True
) -> dict[str, Any]:
    """A row of `speed`."""
    times = {"build_seconds": build, "solve_seconds": solve}
    return {"name": name, "library": name.split()[0], "target": target, "reached": reached, **times}


def test_a_row_names_the_quickest_from_the_weights_and_in_the_call() -> None:
    rows = [timed("llmrank", 0.001, 0.009), timed("networkit", 0.9, 0.011), timed("igraph", 0.1, 0.1)]
    rows += [timed("scipy by hand", 0.004, 0.0045), timed("numpy by hand", 0.5, 0.3)]
    table = readme.libraries({"cases": [{"name": "road", "edges": 248_064, "rows": rows}]})["libraries"]
    cells = ["road-like mesh, 0.25 M edges", "10 ms (9.0 ms)"]
    cells += ["igraph, 200 ms (100 ms); networkit, 911 ms (11 ms)", "**20** (1.2)"]
    cells += ["scipy by hand, 8.5 ms (4.5 ms)", "**0.85** (0.50)"]
    assert table.splitlines()[2:] == [f"| {' | '.join(cells)} |"]


def test_the_readme_compares_with_errors() -> None:
    ((label, ours, other, name),) = readme.GAINS
    start, _, repair = ours.rpartition(" | ")
    peer, _, _ = other.rpartition(" | ")
    quality = {
        "dense": row(10.0, 20.0),
        "rows": {
            f"{start} | 0.3 | {repair}": row(12.0, 22.0),
            f"{peer} | 0.3 | {repair}": row(13.0, 23.0),
        },
    }
    compact = {"cases": [{"rows": [{**readme.FASTER, "width": 1088, "speedup": 1.444, "quartiles": [1.3, 1.5]}]}]}

    rows = [
        timed("llmrank", 0.002, 0.002),
        timed("missed", 0.05, 0.05, reached=False),
        timed("scipy by hand", 0.1, 0.1),
    ]
    rows += [timed("slow", 0.3, 0.4), timed("fast", 0.3, 0.2), timed("fast", 0.05, 0.05, target=1e-4)]
    chain = {"name": "chain", "edges": 7_000_000, "rows": rows}

    def losses(scorer: str, budget: str, text: str, *values: float) -> dict[str, Any]:
        about = {"scorer": scorer, "budget": budget, "text": text, "amount": 0.3, "repair": "none"}
        prose, other = (
            {"losses": [math.log(value) * 10 - 1, math.log(value) * 10 + 1], "counts": [10, 10]} for value in values
        )
        return {**about, **prose, "other": other}

    rows = [losses(*DEFAULT, 13.0, 23.0), losses("wpr", "local", TEXTS[0], 12.0, 20.0)]
    rows += [losses("flap", "local", text, value, 30.0) for text, value in zip(TEXTS, (13.5, 14.0), strict=True)]
    rows.append(losses("activation", "local", TEXTS[1], 16.0, 25.0))
    across = {"models": {"gemma-3-270m": {"dense": losses("", "", "", 9.0, 19.0), "rows": rows}}}
    steps = {
        "llmrank | repaired only": (12.0, 22.0),
        "llmrank | own | 9": (11.8, 21.0),
        "llmrank | own | 10": (11.0, 20.0),
    }
    healing = {
        "dense": {**losses("", "", "", 9.0, 19.0), "items": "11-1"},
        "rows": {name: {**losses("", "", "", *values), "items": "10-1"} for name, values in steps.items()},
    }
    models = {"models": {"gemma-3-270m": healing}}
    lines = readme.gains(quality, compact, {"cases": [chain]}, across, models)["gains"].splitlines()
    kept = "66.7% ± 33.3%"
    before = f"12.00 (+0.087 ± 0.000) and 22.00 (+0.095 ± 0.000); {kept}, repaired only"
    usual = "30% of the hidden neurons removed, as cut, unless a row says otherwise"
    best = "14.00 (+0.074 ± 0.000), FLAP's score; 25.00 (+0.083 ± 0.000), activation"
    assert lines == [
        f"| perplexity on prose and on Python; {usual} | llmrank | best other |",
        "| --- | ---: | ---: |",
        f"| gemma-3-270m, dense 9.00 and 19.00 | 13.00 and 23.00 | {best} |",
        f"| gemma-3-270m, dense 9.00 and 19.00, healed with 10 tokens | 11.00 and 20.00; items {kept} | {before} |",
        f"| {label.format(dense=10.0)} | 12.00 | 13.00, {name} |",
        "| speed of the FFNs, width 1088 instead of 1536, 1024 tokens | 1.44 times the dense FFNs (1.30 to 1.50) | |",
        "| time to build and rank the graph of 4 FFNs, 7 M edges | 4.0 ms | 500 ms (fast) |",
    ]


def test_rows_are_found_by_amount_and_the_better_is_taken_by_valid() -> None:
    taylor = "peer | Torch-Pruning, Taylor |  | {} | {} | none"
    results = {
        "dense": row(10.0, 20.0),
        "rows": {
            taylor.format("local", 0.1): row(11.0, 21.0),
            taylor.format("global", 0.1): row(10.5, 22.0),
            taylor.format("global", 0.3): row(1234.5, 40.0),
            "ffn | wanda-sp (L1) | isolated | global | 0.3 | lstsq": {**row(33.333, 44.0), "repair": "lstsq"},
        },
    }
    tables = readme.quality(results)
    assert tables["as cut"].splitlines() == [
        "| perplexity on test, dense 10.00; removed: | 10% | 20% | 30% | 50% | end of valid (20.00), 30% |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| Torch-Pruning, Taylor, the better budget | 11.00 |  | 1,234 |  | 40.00 |",
    ]
    assert tables["repaired"].splitlines()[2:] == [
        "| Wanda-sp (L1), our global budget |  |  | 33.33 |  | 44.00 |",
    ]


def test_a_column_names_calibration_text_and_evaluation_text() -> None:
    key = "ffn | weighted pagerank | isolated | local | 0.3 | lstsq"
    results = {
        "ways": {
            "one": {"dense": {"other": 1.5}, "rows": {key: {"other": 2.0, "repair": "lstsq"}}},
            "own": {"dense": {"other": 1.5, "third": 4.0}, "rows": {}},
            "not run": {},
        }
    }
    assert readme.domains(results)["out of domain"].splitlines() == [
        "| 30% removed, perplexity, dense 1.50 on other, 4.00 on third | one -> other | own -> other | own -> third |",
        "| --- | ---: | ---: | ---: |",
        "| **`--scorer wpr`**: weighted PageRank, local, least squares | 2.00 |  |  |",
    ]


def test_tables_stand_between_their_marks() -> None:
    text = "a\n<!-- one -->\nold\n<!-- end of one -->\nb\n"
    assert readme.filled(text, {"one": "new"}) == "a\n<!-- one -->\nnew\n<!-- end of one -->\nb\n"
    with pytest.raises(ValueError, match="expected the marks <!-- two --> and"):
        readme.filled(text, {"two": "new"})


def measured(scorer: str, budget: str, *values: float) -> dict[str, Any]:
    """A row with these perplexities on prose and on Python, as `across` writes it."""
    prose, other = ({"losses": [math.log(v) * 10 - 1, math.log(v) * 10 + 1], "counts": [10, 10]} for v in values)
    return {"scorer": scorer, "budget": budget, "amount": 0.5, "repair": "none", **prose, "other": other}


def test_heads_are_compared_with_the_best_of_other_methods_and_with_the_dense_model() -> None:
    auto = DEFAULT[0]
    rows = [measured(auto, "sensitivity", 12.0, 24.0), measured("flap", "local", 14.0, 25.0)]
    rows += [measured("activation", "local", 13.0, 26.0), {**measured(auto, "sensitivity", 9.0, 9.0), "amount": 0.1}]
    rows.append({**measured(auto, "sensitivity", 11.0, 22.0), "repair": "lstsq"})
    rows.append({**measured(auto, "least-loss", 11.0, 22.0), "repair": "lstsq"})
    rows = [{**row, "text": "default"} for row in rows]
    rows += [
        {**rows[0], "text": "alone", "losses": [1.0, 1.0]},
        {**rows[-1], "amount": 0.7},
    ]  # neither shown nor the most as cut
    results = {"models": {"a.Q4_1": {"dense": measured("", "", 10.0, 20.0), "rows": rows}}}
    assert readme.most_heads(results) == (
        "| a, dense 10.00 and 20.00, 50% of the heads instead (sensitivity; others local) | 12.00 and 24.00 | "
        "13.00 (+0.080 ± 0.000), activation; 25.00 (+0.041 ± 0.000), FLAP's score |"
    )
    table = readme.heads(results)["heads"].splitlines()
    assert table[0] == "| nats more than the dense model on prose, on Python | a, 50% | a, 10% | a, 70% |"
    assert table[2] == "| auto, sensitivity | 0.18 ± 0.00, 0.18 ± 0.00 | -0.11 ± 0.00, -0.80 ± 0.00 |  |"
    assert table[-2] == "| auto, sensitivity, repaired | 0.10 ± 0.00, 0.10 ± 0.00 |  |  |"
    assert table[-1] == "| auto, least-loss, repaired | 0.10 ± 0.00, 0.10 ± 0.00 |  | 0.10 ± 0.00, 0.10 ± 0.00 |"


def test_blocks_are_compared_with_the_dense_model() -> None:
    rows = [
        {**measured("", "", 12.0, 24.0), "choice": "in turn"},
        {**measured("", "", 14.0, 25.0), "choice": "neurons"},
    ]
    rows.append({**rows[0], **measured("", "", 11.0, 22.0), "repair": "lstsq"})
    results = {"models": {"a.Q4_1": {"dense": measured("", "", 10.0, 20.0), "rows": rows}}}
    table = readme.blocks(results)["blocks"].splitlines()
    assert table[0] == "| nats more than the dense model on prose, on Python | a, 50%, as cut | a, 50%, repaired |"
    assert table[2] == "| in turn | 0.18 ± 0.00, 0.18 ± 0.00 | 0.10 ± 0.00, 0.10 ± 0.00 |"
    assert "| neurons | 0.34 ± 0.00, 0.22 ± 0.00 |  |" in table
    assert len(table) == 4  # no row of a choice that was not measured
