"""The report: strict JSON, and the warnings that a reader must not miss."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from llmrank import Report, prune_model
from llmrank.evaluation.before_and_after import Evaluation
from llmrank.evaluation.perplexity import Perplexity
from llmrank.pipeline.closeness.repair_validation import Validation
from llmrank.pipeline.descriptions import environment, model_source
from llmrank.prune import GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.score import BaseScorer
from tests.llmrank.plain_pipelines import ChainedFFNPipeline, IsolatedFFNPipeline
from tests.llmrank.tiny_models import STRUCTURE, features, mlp, tiny_llama, token_ids
from tests.tables import table


def strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def some_report(**options: Any) -> Report:
    pipeline = ChainedFFNPipeline(tiny_llama(), None, calibration=token_ids(), **options)
    pipeline.run()
    assert pipeline.report is not None
    return pipeline.report


def printed(report: Report) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(report.table())
    # Titles and long sentences wrap where the table ends.
    return " ".join(captured.get().split())


PROTOCOL = {"source": "test", "sequences": 2, "sequence_length": 8, "tokens": 16}


def test_report_holds_the_protocol_and_the_outcome() -> None:
    report = some_report(pruner=GlobalPruner(0.25, min_keep=2))
    plain = report.to_dict()
    assert plain["format"] == 1
    assert plain["model"]["class"] == "LlamaForCausalLM"
    assert plain["model"]["kinds"] == ["gated"]
    assert plain["method"]["pipeline"] == "chained"
    assert plain["method"]["scorer"]["name"] == "WeightedPageRankScorer"
    assert (plain["method"]["scorer"]["gamma"], plain["method"]["scorer"]["edges"]) == (0.15, "gate")
    assert plain["method"]["pruner"]["name"] == "GlobalPruner"
    assert plain["method"]["pruner"]["min_keep"] == 2
    assert plain["method"]["form"] == "compact"
    assert plain["neurons"]["before"] == 80
    assert plain["neurons"]["removed"] == 20
    assert plain["neurons"]["amount_asked"] == plain["neurons"]["share_reached"] == 0.25
    assert sum(plain["neurons"]["widths"].values()) == 60
    assert plain["graph"]["nodes"] == 3 * 16 + 2 * 40
    assert plain["graph"]["edges_at_most"] == 4 * 16 * 40
    assert plain["graph"]["converged"]
    assert plain["calibration"]["tokens"] == 96
    assert plain["before"]["ffn_parameters"] - plain["after"]["ffn_parameters"] == 3 * 16 * 20
    assert {"find", "calibrate", "rank", "prune", "apply"} <= set(plain["seconds"])
    assert plain["sensitivities"] == {}
    assert plain["evaluation"] is None
    assert plain["warnings"] == []
    assert {"torch", "transformers", "python"} <= set(environment())


def test_report_holds_the_sensitivities(tmp_path: Path) -> None:
    report = some_report(pruner=SensitivityPruner(0.25, limit=1.5))
    report.save(tmp_path / "report.json")
    plain = strict((tmp_path / "report.json").read_text())
    assert plain["method"]["pruner"] == {
        "name": "SensitivityPruner",
        "amount": 0.25,
        "min_keep": 1,
        "multiple_of": "auto",
        "limit": 1.5,
        "protect": [],
        "amount_of": "neurons",
    }
    assert list(plain["sensitivities"]) == list(plain["neurons"]["widths"])
    assert all(value > 0 for value in plain["sensitivities"].values())
    assert plain["neurons"]["removed"] == 20
    assert plain["seconds"]["measure"] > 0


def test_file_is_strict_json_and_round_trips(tmp_path: Path) -> None:
    report = some_report()
    report.evaluation = Evaluation(PROTOCOL, Perplexity(10.0, 14), Perplexity(math.inf, 14), math.nan, 0.5)
    report.notes.append("a note")
    report.save(tmp_path / "report.json")
    found = strict((tmp_path / "report.json").read_text())
    assert found == report.to_dict()
    assert found["evaluation"]["after"] == {"value": "inf", "tokens": 14}
    assert found["evaluation"]["unigram"] == "nan"
    assert found["evaluation"]["collapsed"] is True
    assert found["warnings"] == report.warnings()
    assert found["warnings"][0] == "a note"


def test_settings_of_any_type_become_text(tmp_path: Path) -> None:
    class Odd(BaseScorer):
        def __init__(self) -> None:
            self.table = torch.ones(2)
            self.device = torch.device("cpu")
            self.shares = (0.1, math.nan, {1: None})

        def score(self, prev_importance: Any, in_activations: Any, out_activations: Any, weight: Any) -> Any:
            return out_activations

    report = some_report(scorer=Odd())
    report.save(tmp_path / "report.json")
    scorer = strict((tmp_path / "report.json").read_text())["method"]["scorer"]
    assert scorer["device"] == "device(type='cpu')"
    assert scorer["shares"] == [0.1, "nan", {"1": None}]
    assert isinstance(scorer["table"], str)


def test_explicit_structure_is_reported(tmp_path: Path) -> None:
    report = some_report(structure_dict=STRUCTURE)
    report.save(tmp_path / "report.json")
    assert strict((tmp_path / "report.json").read_text())["method"]["structure_dict"]["path_to_modules"] == [
        ["mlp", "up_proj"],
        ["mlp", "down_proj"],
    ]


@table(
    ("after", "unigram", "collapsed"),
    [(10.0, 20.0, False), (20.0, 20.0, True), (30.0, 20.0, True), (math.inf, 20.0, True), (math.nan, 20.0, True)],
)
def test_collapse_is_judged_against_token_frequencies(after: float, unigram: float, collapsed: bool) -> None:
    evaluation = Evaluation(PROTOCOL, Perplexity(9.0, 14), Perplexity(after, 14), unigram)
    assert evaluation.collapsed is collapsed
    assert any("has collapsed" in sentence for sentence in evaluation.warnings()) is collapsed
    assert Evaluation(PROTOCOL, Perplexity(9.0, 14), None, unigram).collapsed is False
    assert Evaluation(PROTOCOL, Perplexity(9.0, 14), Perplexity(after, 14)).collapsed is not math.isfinite(after)
    assert Evaluation(PROTOCOL, Perplexity(90.0, 14), Perplexity(after, 14), unigram).collapsed is False


@pytest.mark.parametrize("after", [math.inf, math.nan])
def test_the_warning_of_a_collapse_names_only_what_was_measured(after: float) -> None:
    (sentence,) = Evaluation(PROTOCOL, None, Perplexity(after, 14)).warnings()
    assert f"its perplexity is {after}; prune less" in sentence
    assert "token frequencies" not in sentence


@pytest.mark.parametrize(
    ("measure", "counted"),
    [
        ("divergence", "KL divergence from the dense model's predictions on 40 held-out tokens: "),
        ("squared error", "squared distance from 40 outputs of the dense model on held-out tokens: "),
    ],
)
def test_the_sentence_of_a_validation_says_what_is_counted(measure: Any, counted: str) -> None:
    assert Validation(measure, 40, 2.0, 1.0, None).sentence().startswith(counted)


def test_overlap_with_the_calibration_text_is_a_warning() -> None:
    evaluation = Evaluation(PROTOCOL, Perplexity(9.0, 14), Perplexity(10.0, 14), 20.0, 0.25)
    (sentence,) = evaluation.warnings()
    assert sentence.startswith("25.0% of the evaluation passages occur in the calibration text")
    report = some_report()
    report.evaluation = evaluation
    assert report.warnings() == [sentence]
    assert sentence[:40] in printed(report)


@table(
    ("name", "source"),
    [
        ("/data/models/small", "small"),
        ("../models/small", "small"),
        ("org/small", "org/small"),
        ("", "LlamaForCausalLM"),
    ],
)
def test_the_source_of_a_model_is_no_local_path_even_if_that_is_gone(name: str, source: str) -> None:
    model = tiny_llama()
    model.name_or_path = name
    assert model_source(model) == source


def test_degenerate_layers_are_notes() -> None:
    model = mlp(4, 6, 2)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    pipeline = ChainedFFNPipeline(model, None, calibration=features(20, 4))
    pipeline.run()
    assert pipeline.report is not None
    assert any(note.startswith("0: ") and "sum to zero" in note for note in pipeline.report.notes)


def test_table_shows_before_and_after() -> None:
    report = some_report(pruner=LocalPruner(0.5))
    report.evaluation = Evaluation(PROTOCOL, Perplexity(9.0, 14), Perplexity(10.0, 14), 20.0)
    shown = printed(report)
    for part in ("50.0% of the hidden neurons removed", "3,840", "1,920", "-50.0%", "9.00", "10.00", "+11.1%"):
        assert part in shown
    assert "widths 20" in shown
    assert "Warning" not in shown


def test_isolated_report_counts_all_graphs() -> None:
    pipeline = IsolatedFFNPipeline(tiny_llama(), None, calibration=token_ids())
    pipeline.run()
    assert pipeline.report is not None
    assert pipeline.report.graph["graphs"] == 2
    assert pipeline.report.graph["nodes"] == 2 * (16 + 40 + 16)


def test_a_table_shows_itself_in_a_session_and_in_a_notebook() -> None:
    report = some_report()
    for shown in (report, report.table(), prune_model(tiny_llama(), calibration=token_ids(), repair="none")):
        text, bundle = repr(shown), shown._repr_mimebundle_([], [])
        for printed_text in (text, bundle["text/html"], bundle["text/plain"]):
            assert "hidden neurons" in printed_text
            assert "widths 28; calibrated on" in printed_text
        assert "\x1b" not in text
        assert bundle["text/html"].startswith("<pre")
