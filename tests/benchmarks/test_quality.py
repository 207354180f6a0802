"""Which rows the study of quality has."""

import json
from collections import Counter

from benchmarks import figures
from benchmarks.quality import CONTENDERS, REPAIRS, SCORERS, TOPOLOGIES, settings, table
from benchmarks.result_files import opened
from llmrank.pipeline.registry import PRUNERS
from llmrank.pipeline.registry import REPAIRS as REGISTERED


def test_every_row_is_there_once():
    rows = Counter(setting.key for setting in settings([0.1, 0.3], list(REPAIRS)))
    assert max(rows.values()) == 1
    assert all(f"ffn | {scorer} | isolated | local | 0.3 | none" in rows for scorer in SCORERS)
    assert all(f"ffn | weighted pagerank | isolated | {pruner} | 0.3 | none" in rows for pruner in PRUNERS)
    assert all(f"ffn | weighted pagerank | {topology} | local | 0.3 | none" in rows for topology in TOPOLOGIES)


def test_repairs_are_those_asked_for():
    assert {setting.repair for setting in settings([0.3], ["lstsq"])} == {"lstsq"}
    assert {setting.repair for setting in settings([0.3], list(REPAIRS))} == set(REPAIRS)


def test_contenders_are_known():
    assert set(CONTENDERS) <= set(SCORERS)
    for repairs in CONTENDERS.values():
        assert set(repairs) <= set(REPAIRS)
        assert {pruner for pruners in repairs.values() for pruner in pruners} <= set(PRUNERS)
    assert {name for name, _ in REPAIRS.values()} <= {"none", *REGISTERED}


def test_a_file_goes_on_where_the_protocol_has_become_more(tmp_path):
    path = tmp_path / "quality.json"
    path.write_text(json.dumps({"protocol": {"text": "a", "scorers": {"x": ["x", {"p": 1}]}}, "rows": {"key": {}}}))
    more = {"text": "a", "scorers": {"x": ("x", {"p": 1}), "y": ("y", {})}}
    assert opened(path, more)["rows"] == {"key": {}}
    fewer = opened(path, {"text": "a", "scorers": {"y": ("y", {})}})
    assert fewer["rows"] == {"key": {}}
    assert fewer["protocol"]["scorers"] == {"x": ["x", {"p": 1}], "y": ("y", {})}
    assert "rows" not in opened(path, {**more, "text": "b"})
    assert "rows" not in opened(path, {**more, "scorers": {"x": ("x", {"p": 2})}})


def test_the_table_has_the_best_on_valid_first():
    rows = {
        name: {
            "graph": "ffn",
            "scorer": name,
            "topology": "isolated",
            "pruner": "local",
            "amount": 0.3,
            "repair": "none",
        }
        | {"test": 30.0, "valid": valid}
        for name, valid in (("worse", 50.0), ("better", 40.0))
    }
    text = table({"dense": {"test": 20.0, "valid": 25.0}, "rows": rows})
    assert text.index("better") < text.index("worse")


def test_curves_are_drawn_of_several_amounts(tmp_path):
    key = "ffn | weighted pagerank | isolated | local | {amount} | none"
    rows = {key.format(amount=amount): {"amount": amount, "test": 20.0 + 50 * amount} for amount in (0.1, 0.3)}
    results = {"dense": {"test": 20.0}, "size": {"parameters": 100, "ffn_parameters": 60}, "rows": rows}
    assert figures.quality(results, tmp_path) == [tmp_path / "quality.png"]
    assert (tmp_path / "quality.png").stat().st_size > 10_000
    rows.popitem()
    assert figures.quality(results, tmp_path / "none") == []
