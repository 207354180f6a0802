"""The page in a browser: contexts of neurons, the search by token, and what the pruned model predicts worse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models

from llmrank.evaluation.token_losses import LossChanges, loss_changes, token_losses
from llmrank.inspection.inspect_model import Inspection, inspect_model
from llmrank.inspection.meaning.meanings import Meanings, find_meanings
from llmrank.inspection.page import write_page
from llmrank.models import find_ffns
from llmrank.score import WeightedPageRankScorer
from llmrank.surgery.equivalence import as_masked
from tests.browser.test_page import CONTRAST
from tests.llmrank.inspection.test_page import HOSTILE
from tests.llmrank.plain_pipelines import ChainedFFNPipeline
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import VOCABULARY, tiny_llama, token_ids, tokenizer

Open = Callable[..., Any]
Seen = tuple[Inspection, Meanings, LossChanges]


def inspected(model: Any, words: Any) -> Seen:
    pipeline = ChainedFFNPipeline(model, words, calibration=token_ids())
    inspection = inspect_model(pipeline, {"wpr": WeightedPageRankScorer()}, "wpr")
    ffns, sequences = find_ffns(model), inspection.sequences
    before = token_losses(model, sequences)
    with as_masked(ffns, inspection.main.masks["local"]):
        after = token_losses(model, sequences)
    changes = loss_changes(before, after, sequences, words, 5)
    return inspection, find_meanings(model, words, ffns, sequences, 3), changes


@pytest.fixture(scope="module")
def seen() -> Seen:
    return inspected(tiny_llama(), tokenizer())


@pytest.fixture(scope="module")
def path(seen: Seen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(seen[0], tmp_path_factory.mktemp("page") / "index.html", *seen[1:])


def search(page: Any, text: str) -> None:
    page.fill("#token-query", text)
    page.press("#token-query", "Enter")


def found(page: Any, column: int) -> set[str]:
    return set(page.locator(f"#token-lists > div:nth-child({column}) button").all_inner_texts())


def test_a_neuron_shows_its_contexts_and_tokens(visit: Open, path: Path, seen: Seen) -> None:
    page = visit(path).page
    for neuron in (0, 39):
        page.fill("#query", f"1:{neuron}")
        page.press("#query", "Enter")
        meaning = seen[1].of("model.layers.1.mlp", neuron)
        items = page.locator("#neuron .contexts li")
        assert items.count() == len(meaning.contexts) == 3
        for k, each in enumerate(meaning.contexts):
            shown = items.nth(k).locator(".context").text_content()
            assert shown == each.context.before + each.context.token + each.context.after
            assert items.nth(k).locator("mark").text_content() == each.context.token.strip()
            value = float(items.nth(k).locator(".activation").inner_text().replace("\N{MINUS SIGN}", "-"))
            assert value == pytest.approx(each.activation, rel=1e-3)
        tokens = page.locator("#neuron .tokens")
        for k, expected in enumerate((meaning.promoted, meaning.demoted)):
            assert tokens.nth(k).locator(".token").all_text_contents() == [each.token for each in expected]


@pytest.mark.parametrize("token", [4, 17, 40])
def test_the_search_by_token_finds_the_neurons(visit: Open, path: Path, seen: Seen, token: int) -> None:
    meanings, text = seen[1], f" w{token}"
    expected: tuple[set[str], ...] = (set(), set(), set())
    for layer, neuron in meanings:
        meaning, label = meanings.of(layer, neuron), f"{layer.split('.')[2]}:{neuron}"
        for names, tokens in zip(
            expected,
            (
                [each.context.token for each in meaning.contexts],
                *([e.token for e in s] for s in (meaning.promoted, meaning.demoted)),
            ),
            strict=True,
        ):
            if text in tokens:
                names.add(label)
    assert expected[0]
    assert expected[1] | expected[2]
    page = visit(path).page
    search(page, f"w{token}")
    assert tuple(found(page, column) for column in (1, 2, 3)) == expected
    counts = ", ".join(
        f"{title} {len(names)}" for title, names in zip(("fire", "promote", "demote"), expected, strict=True)
    )
    assert page.inner_text("#token-result").startswith(f"Of “w{token}”: {counts.replace('fire', 'fire on')} neurons.")


def test_what_is_found_can_be_opened(visit: Open, path: Path) -> None:
    page = visit(path).page
    search(page, "w4")
    for column in (1, 3):
        button = page.locator(f"#token-lists > div:nth-child({column}) button").last
        button.click()
        assert page.inner_text("#neuron-heading") == f"Neuron {button.inner_text()}"
    # A token of the neuron starts another search.
    token = page.locator("#neuron .tokens .token").first
    token.click()
    assert page.input_value("#token-query") == token.text_content()
    assert page.inner_text("#neuron-heading").split()[1] in found(page, 2)


def test_the_results_follow_the_slider(visit: Open, path: Path) -> None:
    opened = visit(path)
    search(opened.page, "w4")
    counts = []
    for percent in (0, 90):
        opened.amount(percent)
        counts.append(opened.page.locator("#token-lists .state.removed").count())
    assert counts[0] == 0 < counts[1]


def test_a_token_that_nothing_leads_to(visit: Open, path: Path) -> None:
    page = visit(path).page
    search(page, "w")
    assert "is no token of the calibration text" in page.inner_text("#token-result")
    suggestions = page.locator("#token-lists .token").all_inner_texts()
    assert len(suggestions) == 12
    page.locator("#token-lists .token").first.click()
    assert page.inner_text("#token-result").startswith(f"Of “{suggestions[0]}”")
    search(page, "no such word")
    assert page.locator("#token-lists .token").count() == 0


def test_what_the_pruned_model_predicts_worse(visit: Open, path: Path, seen: Seen) -> None:
    changes = seen[2]
    page = visit(path).page
    caption = page.inner_text("#changes-caption")
    assert f"goes from {changes.all.before:.3f} to {changes.all.after:.3f} nats" in caption
    rows = page.eval_on_selector_all(
        "#changes tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    kinds = {name: kind for named in changes.kinds.values() for name, kind in named.items()}
    assert [row[0] for row in rows] == list(kinds)
    for row, kind in zip(rows, kinds.values(), strict=True):
        assert int(row[1]) == kind.change.count
        assert float(row[2]) == pytest.approx(kind.before, abs=0.006)
        assert float(row[4].split(" ± ")[0].replace("\N{MINUS SIGN}", "-")) == pytest.approx(
            kind.change.value, abs=0.006
        )
    items = page.locator("#worst li")
    assert items.count() == len(changes.worst) == 5
    for k, each in enumerate(changes.worst):
        assert items.nth(k).locator("mark").text_content() == each.context.token.strip()
        assert items.nth(k).locator(".token").all_text_contents() == [each.predicted_before, each.predicted_after]
        assert f"{100 * each.before:.1f} % before" in items.nth(k).inner_text() or each.before < 1e-3


def test_a_page_without_meanings_has_no_search(visit: Open, tmp_path: Path, seen: Seen) -> None:
    page = visit(write_page(seen[0], tmp_path / "index.html")).page
    assert page.locator("#token-search, #changes, #neuron .meaning, .of-meanings").count() == 0


def test_experts_are_found_in_their_mixture(visit: Open, tmp_path: Path) -> None:
    inspection, meanings, changes = inspected(tiny_mixture("mixtral"), tokenizer())
    page = visit(write_page(inspection, tmp_path / "index.html", meanings, changes)).page
    # Neuron 2 of the fourth expert.
    page.fill("#query", "1.3:2")
    page.press("#query", "Enter")
    meaning = meanings.of("model.layers.1.mlp.experts.3", 2)
    assert page.locator("#neuron .contexts mark").all_text_contents() == [
        each.context.token.strip() for each in meaning.contexts
    ]
    promoted = page.locator("#neuron .tokens").first.locator(".token")
    assert promoted.all_text_contents() == [each.token for each in meaning.promoted]
    promoted.first.click()
    heading = page.inner_text("#neuron-heading").split(",")[0].split()[1]
    assert heading in found(page, 2) or page.locator("#token-lists > div:nth-child(2) p").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_can_be_read_and_is_never_wider_than_the_window(visit: Open, path: Path, width: int, scheme: str) -> None:
    settings = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "reduced_motion": "reduce"}
    page = visit(path, **settings).page
    search(page, "w4")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []


def test_the_search_works_with_the_keyboard(visit: Open, path: Path) -> None:
    page = visit(path).page
    search(page, "w4")
    page.keyboard.press("Tab")  # to the button of the form
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "found"
    label = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    assert page.inner_text("#neuron-heading") == f"Neuron {label}"
    assert page.get_attribute("#token-result", "role") == "status"


def test_hostile_tokens_are_shown_and_do_nothing(visit: Open, tmp_path: Path) -> None:
    words = {f"w{k}": k for k in range(VOCABULARY - 1)} | {HOSTILE: VOCABULARY - 1}
    hostile = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    inspection, meanings, changes = inspected(tiny_llama(), hostile)
    page = visit(write_page(inspection, tmp_path / "index.html", meanings, changes)).page
    search(page, HOSTILE)
    assert page.locator("script").count() == 3
    assert "alert(1)" in page.inner_text("#token-result")
    assert found(page, 1) | found(page, 2) | found(page, 3)


def test_a_token_of_a_backslash_and_an_n_is_no_line_break(visit: Open, tmp_path: Path) -> None:
    words = {"\\n" if k == 40 else f"w{k}": k for k in range(VOCABULARY)}
    code = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    inspection, meanings, changes = inspected(tiny_llama(), code)
    page = visit(write_page(inspection, tmp_path / "index.html", meanings, changes)).page
    name, neuron = next(place for place in meanings if " \\n" in [each.token for each in meanings.of(*place).promoted])
    label = f"{name.split('.')[2]}:{neuron}"
    page.fill("#query", label)
    page.press("#query", "Enter")
    page.locator("#neuron .tokens").first.get_by_text("\\n", exact=True).click()
    assert label in found(page, 2)
    # Typed, they are a line break.
    search(page, "\\n")
    assert page.inner_text("#token-result").startswith("“↵” is no token")
