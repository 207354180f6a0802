"""The README's tables are those of the results."""

from __future__ import annotations

import pytest

from benchmarks import readme


def row(test: float, valid: float) -> dict[str, float]:
    return {"test": test, "valid": valid, "repair": "none"}


def test_the_readme_says_what_the_results_say() -> None:
    text, wanted = readme.current()
    assert text == wanted, "run python -m benchmarks.readme"


def test_rows_are_found_by_amount_and_the_better_is_taken_by_valid() -> None:
    taylor = "peer | Torch-Pruning, Taylor |  | {} | {} | none"
    results = {
        "dense": row(10.0, 20.0),
        "rows": {
            taylor.format("local", 0.1): row(11.0, 21.0),
            taylor.format("global", 0.1): row(10.5, 22.0),
            taylor.format("global", 0.3): row(1234.5, 40.0),
            "ffn | flap | isolated | global | 0.3 | bias": {**row(33.333, 44.0), "repair": "bias", "validation": {}},
            "ffn | flap | isolated | global | 0.3 | lstsq": {**row(30.0, 40.0), "repair": "lstsq"},
        },
    }
    tables = readme.quality(results, {"rows": {}})
    assert tables["as cut"].splitlines() == [
        "| perplexity on test, dense 10.00; removed: | 10% | 20% | 30% | 50% | end of valid (20.00), 30% |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| Torch-Pruning, Taylor, the better budget | 11.00 |  | 1,234 |  | 40.00 |",
    ]
    assert tables["repaired"].splitlines()[2:] == [
        "| FLAP's score, global |  |  | 30.00 † |  | 40.00 † |",
        "| FLAP, global, with its bias |  |  | 33.33 |  | 44.00 |",
    ]


def test_out_of_domain_a_place_is_what_was_calibrated_on_and_what_was_evaluated_on() -> None:
    key = "ffn | weighted pagerank | isolated | local | 0.3 | lstsq"
    results = {
        "ways": {
            "one": {"dense": {"other": 1.5}, "rows": {key: {"other": 2.0, "repair": "lstsq", "validation": {}}}},
            "own": {"dense": {"other": 1.5, "third": 4.0}, "rows": {}},
            "not run": {},
        }
    }
    assert readme.domains(results)["out of domain"].splitlines() == [
        "| 30% removed, perplexity, dense 1.50 on other, 4.00 on third | one -> other | own -> other | own -> third |",
        "| --- | ---: | ---: | ---: |",
        "| **as by default**: weighted PageRank, local, least squares | 2.00 |  |  |",
    ]


def test_tables_stand_between_their_marks() -> None:
    text = "a\n<!-- one -->\nold\n<!-- end of one -->\nb\n"
    assert readme.filled(text, {"one": "new"}) == "a\n<!-- one -->\nnew\n<!-- end of one -->\nb\n"
    with pytest.raises(ValueError, match="expected the marks <!-- two --> and"):
        readme.filled(text, {"two": "new"})
