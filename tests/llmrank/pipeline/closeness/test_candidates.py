"""The choice among candidate scorers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from llmrank.errors import OptionError
from llmrank.pipeline import CalibrationText, stages
from llmrank.pipeline.closeness import distance
from llmrank.pipeline.closeness.candidates import PIECE, Choice, Trial, choose, pieces, tokens_of_a_trial
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.pipeline.registry import make_scorer
from llmrank.prune import GlobalPruner, LocalPruner, SensitivityPruner
from llmrank.score import ActivationScorer, AutoScorer, BaseScorer, NormScorer, RandomScorer, WeightedPageRankScorer
from llmrank.score.auto import default_candidates
from llmrank.score.pagerank import default_scorer
from llmrank.text import TokenSequences, tokenise
from tests.llmrank.plain_pipelines import IsolatedFFNPipeline
from tests.llmrank.tiny_models import features, mlp, text, tiny_llama, token_ids, tokenizer, whole_sequences

FOUR = [10, 10, 10, 10]


def level(mean: float, spread: float = 0.0) -> tuple[list[float], list[int]]:
    """Distances of four sequences with this mean; `spread` moves two of them up and two down."""
    return [10 * (mean + sign * spread) for sign in (1, -1, 1, -1)], FOUR


def test_both_kinds_of_text_count_by_ratios() -> None:
    # b is 10 % farther on held-out tokens, and 3 times as close elsewhere; c is 3 times as close elsewhere, but 6 times as far.
    held_out = {"a": level(0.40), "b": level(0.44), "c": level(2.4)}
    other = {"a": level(3.0), "b": level(1.0), "c": level(1.0)}
    chosen, trials = choose(held_out, other)
    assert chosen == "b"
    assert [trial.behind for trial in trials] == pytest.approx([(3 / 1.1) ** 0.5 - 1, 0.0, (2.4 / 0.44) ** 0.5 - 1])
    assert choose(held_out, None)[0] == "a"


def test_the_first_candidate_that_is_behind_by_less_than_an_error_is_taken() -> None:
    noisy = {"a": level(0.42, 0.05), "b": level(0.40, -0.05)}  # behind by 5 %, with an error of 14 %
    chosen, trials = choose(noisy, None)
    assert chosen == "a"
    # The differences of the four sequences lie 0.1 above and below their mean, 0.02.
    assert trials[0].behind == pytest.approx(0.42 / 0.40 - 1)
    assert trials[0].error == pytest.approx(0.42 / 0.40 * (0.1 / 3**0.5) / 0.42)
    assert choose({"a": level(0.41), "b": level(0.40)}, None)[0] == "b"
    # If the first is clearly behind, the next one that is level with the closest is taken.
    three = {"first": level(0.9), **noisy}
    assert choose(three, None)[0] == "a"
    assert choose({**three, "a": level(0.9)}, None)[0] == "b"


def test_errors_of_two_texts_add_up_as_squares() -> None:
    held_out = {"a": level(0.40, 0.05), "b": level(0.40)}
    other = {"a": level(3.0, 0.5), "b": level(2.0)}
    trial = choose(held_out, other)[1][0]
    relative = [0.05 / 3**0.5 / 0.40, 0.5 / 3**0.5 / 3.0]
    assert trial.error == pytest.approx(1.5**0.5 * (relative[0] ** 2 + relative[1] ** 2) ** 0.5 / 2)


def test_where_nothing_differs_the_order_decides() -> None:
    same = {"first": level(0.4, 0.1), "second": level(0.4, -0.1)}
    assert choose(same, same)[0] == "first"
    assert choose(dict(reversed(same.items())), same)[0] == "second"


def test_a_cut_that_breaks_the_model_is_never_chosen() -> None:
    broken = ([float("inf")] * 4, FOUR)
    assert choose({"a": broken, "b": level(0.4)}, {"a": level(1.0), "b": level(2.0)})[0] == "b"


def test_pieces_keep_the_start_token_and_leave_padding_out() -> None:
    ids = torch.cat([torch.full((2, 1), 1), token_ids(2, 2 * PIECE)], dim=1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, PIECE:] = False
    cut = pieces(TokenSequences.of(ids, mask, "text"), 10_000)
    assert cut.ids.shape == (3, PIECE)
    assert bool((cut.ids[:, 0] == 1).all())
    assert cut.ids[1, 1:].tolist() == ids[0, PIECE : 2 * PIECE - 1].tolist()
    assert pieces(TokenSequences.of(ids, mask, "text"), PIECE).ids.shape == (8, PIECE // 8)


def test_pieces_of_short_sequences_and_of_features() -> None:
    assert pieces(whole_sequences(token_ids(5, 24)), 72).ids.shape == (8, 9)
    assert pieces(tokenise(features(300, 6), None, 4, 6), 100).ids.shape == (100, 6)


def test_trials_read_no_more_than_the_calibration() -> None:
    for candidates in (2, 5, 9):
        assert 2 * (candidates + 1) * tokens_of_a_trial(16 * 1024, candidates) <= 16 * 1024
    # With fewer they could tell nothing apart.
    assert tokens_of_a_trial(256, 5) == 512


def test_an_error_that_is_not_known_keeps_the_first() -> None:
    single = {"a": ([5.0], [10]), "b": ([4.0], [10])}
    chosen, trials = choose(single, None)
    assert chosen == "a"
    assert trials[0].error is None
    assert trials[0].behind == pytest.approx(0.25)


def test_a_word_that_begins_a_single_sequence_is_no_start_token() -> None:
    held_out, calibration = whole_sequences(token_ids(1, 48, seed=1)), whole_sequences(token_ids(3, 48))
    found = pieces(held_out, 48, calibration)
    assert torch.equal(found.ids.flatten(), held_out.ids[0])


class Worst(BaseScorer):
    """Keeps the neurons that the activation removes."""

    def rank(self, graph: Any, statistics: Any) -> Any:
        rank = ActivationScorer().rank(graph, statistics)
        scores = [1.0 / (layer + 1e-9) for layer in rank.scores]
        return replace(rank, scores=tuple(layer / layer.sum() for layer in scores))


@pytest.mark.parametrize("pruner", [LocalPruner(0.5), GlobalPruner(0.5), SensitivityPruner(0.5)])
@pytest.mark.parametrize("order", [1, -1])
def test_a_pipeline_takes_the_better_one_and_reports_it(
    pruner: Any, order: int, caplog: pytest.LogCaptureFixture
) -> None:
    # The neurons are very unequal, so that a cut of the wrong ones shows.
    model = tiny_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[::2] *= 20.0
    candidates = [Worst(), ActivationScorer()][::order]
    calibration = CalibrationText(text(24 * 30), 16, 24)
    options: dict[str, Any] = {"calibration": calibration, "pruner": pruner, "scorer": AutoScorer(*candidates)}
    pipeline = IsolatedFFNPipeline(model, tokenizer(), **options)
    with caplog.at_level("INFO", "llmrank"):
        pipeline.run()
    assert "chose activation by divergence" in caplog.text
    assert all(f"candidate {each.label()}: " in caplog.text for each in candidates)
    report = pipeline.report
    assert report is not None
    assert report.choice is not None
    assert report.choice["chosen"] == "activation"
    assert report.method["scorer"]["name"] == "ActivationScorer"
    assert [trial["scorer"] for trial in report.choice["trials"]] == [each.label() for each in candidates]
    assert report.choice["other_tokens"] > 0
    assert Choice.of_dict(report.choice).to_dict() == report.choice
    assert "activation was chosen" in repr(report)
    expected = IsolatedFFNPipeline(
        pipeline.undo(), tokenizer(), calibration=calibration, pruner=pruner, scorer=ActivationScorer()
    )
    expected.run()
    assert pipeline.masks == expected.masks


@pytest.mark.parametrize(
    ("held_out", "other", "words"),
    [
        (0.4, 0.8, []),
        (1.2, 0.8, ["are 1.20 nats (KL divergence) from the dense model's, and at most 0.57 is usual if 30%"]),
        (0.4, 1.2, ["the built-in text, are 1.20 nats"]),
        (1.2, None, ["--pruner sensitivity"]),
    ],
)
def test_a_cut_that_costs_too_much_is_warned_of(held_out: float, other: float | None, words: list[str]) -> None:
    choice = Choice(
        "a", "divergence", 1024, 1024, (Trial("a", held_out, other, 0.0, None), Trial("b", 9.0, 9.0, 0.1, 0.1))
    )
    found = choice.warnings(0.3)
    assert len(found) == len(words)
    assert all(word in warning for word, warning in zip(words, found, strict=True))


def test_without_held_out_tokens_the_first_candidate_ranks_and_the_report_says_so() -> None:
    scorer = AutoScorer(NormScorer(), ActivationScorer())
    pipeline = IsolatedFFNPipeline(tiny_llama(), None, calibration=token_ids(1, 24), scorer=scorer)
    pipeline.run()
    report = pipeline.report
    assert report is not None
    assert report.choice is None
    assert report.method["scorer"]["name"] == "NormScorer"
    assert any("no scorer was tried" in note for note in report.notes)


def test_modules_that_predict_no_tokens_are_compared_by_their_outputs() -> None:
    pipeline = IsolatedFFNPipeline(
        mlp(6, 32, 4), None, calibration=features(900, 6), scorer=AutoScorer(RandomScorer(), ActivationScorer())
    )
    pipeline.run()
    choice = pipeline.plan.selection.ranked.choice
    assert (choice.measure, choice.other_tokens) == ("squared error", 0)


@pytest.mark.parametrize("order", [1, -1])
def test_a_candidate_that_breaks_the_model_does_not_end_the_run(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One candidate removes the neurons without which the predictions are NaN."""
    model = tiny_llama()
    scorers = [Worst(), ActivationScorer()][::order]
    compare = distance.divergences
    n_calls = 0

    def breaking(log_p: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        nonlocal n_calls
        n_calls += 1
        is_worst = n_calls % 2 == (1 if order == 1 else 0)
        return compare(log_p, torch.full_like(logits, torch.nan) if is_worst else logits)

    monkeypatch.setattr(distance, "divergences", breaking)
    calibration = CalibrationText(text(24 * 30), 16, 24)
    pipeline = IsolatedFFNPipeline(model, tokenizer(), calibration=calibration, scorer=AutoScorer(*scorers))
    pipeline.run()
    assert pipeline.plan.selection.ranked.choice.chosen == "activation"
    assert "inf" in json.dumps(pipeline.report.to_dict()["choice"])


def test_the_model_is_unchanged_by_trials() -> None:
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pipeline = IsolatedFFNPipeline(
        model, tokenizer(), calibration=CalibrationText(text(300), 8, 24), scorer=AutoScorer()
    )
    prepared, recipe, execution = pipeline.prepare(), pipeline.recipe, pipeline.execution
    tokens = stages.calibration_tokens(prepared, recipe, execution)
    graphs = stages.build(prepared, recipe, stages.calibrate(prepared, recipe, tokens, execution))
    assert stages.choose_scorer(prepared, recipe, graphs, tokens, execution) is not None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_first_default_candidate_is_what_pipelines_rank_by() -> None:
    assert isinstance(make_scorer(DEFAULTS["scorer"]), AutoScorer)
    assert default_candidates()[0] == default_scorer() == WeightedPageRankScorer(gamma=0.15, edges="gate")


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ((AutoScorer(),), "expected scorers such as wpr to choose from"),
        (("activation",), "expected scorers such as wpr to choose from, got 'activation'"),
        ((WeightedPageRankScorer(), WeightedPageRankScorer()), "expected different scorers"),
    ],
)
def test_bad_candidates_are_refused(candidates: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AutoScorer(*candidates)


def test_a_choice_cannot_rank_without_a_model() -> None:
    with pytest.raises(OptionError, match=r"run a pipeline .*or rank by one of wpr:gamma"):
        AutoScorer().rank(None, ())


def test_a_choice_is_refused_with_named_linears() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    structure = {"path_to_layers": "", "path_to_modules": ["0"]}
    with pytest.raises(OptionError, match="a choice of scorers tries cuts of whole FFNs"):
        IsolatedFFNPipeline(model, None, structure, AutoScorer(), calibration=torch.rand(8, 4))
