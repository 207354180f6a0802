"""Meanings of neurons: contexts in words, tables in files, and the data of the page."""

from __future__ import annotations

import base64
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmrank.calibration.statistics.top_activations import collect_top_activations
from llmrank.errors import OptionError
from llmrank.evaluation.token_losses import loss_changes, token_losses
from llmrank.inspection.inspect_model import Inspection, inspect_model
from llmrank.inspection.meaning.logit_lens import logit_lens
from llmrank.inspection.meaning.meaning_files import write_meanings_csv, write_meanings_json
from llmrank.inspection.meaning.meanings import Meanings, find_meanings
from llmrank.inspection.page.meaning_data import meanings_data
from llmrank.inspection.page.page_data import payload
from llmrank.inspection.page.rendering import render
from llmrank.models import find_ffns
from llmrank.score import WeightedPageRankScorer
from tests.llmrank.plain_pipelines import ChainedFFNPipeline
from tests.llmrank.tiny_mixtures import tiny_mixture
from tests.llmrank.tiny_models import padded_sequences, tiny_llama, token_ids, tokenizer

LAYER = "model.layers.1.mlp"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


@pytest.fixture(scope="module")
def meanings(model: Any) -> Meanings:
    return find_meanings(model, tokenizer(), find_ffns(model), padded_sequences(), 3)


def test_a_meaning_is_what_the_parts_say(model: Any, meanings: Meanings) -> None:
    ffns, sequences = find_ffns(model), padded_sequences()
    top = collect_top_activations(model, ffns, sequences, 3)
    tokens = torch.arange(64) > 3  # without special tokens
    lens = logit_lens(model, ffns, 3, tokens=tokens)[LAYER]
    for neuron in (0, 39):
        meaning = meanings.of(LAYER, neuron)
        assert [each.activation for each in meaning.contexts] == top.activations[LAYER][neuron].tolist()
        ids = sequences.ids.flatten()[top.positions[LAYER][neuron]].tolist()
        assert [each.context.token for each in meaning.contexts] == [f" w{token}" for token in ids]
        assert [each.token for each in meaning.promoted] == [f" w{token}" for token in lens.promoted[neuron].tolist()]
        assert [each.logit for each in meaning.demoted] == lens.demoted_logits[neuron].tolist()


def test_chosen_neurons_have_the_same_meaning(model: Any, meanings: Meanings) -> None:
    chosen = {LAYER: [5, 2]}
    some = find_meanings(model, tokenizer(), find_ffns(model), padded_sequences(), 3, neurons=chosen)
    assert list(some) == [(LAYER, 5), (LAYER, 2)]
    for layer, neuron in some:
        one, other = some.of(layer, neuron), meanings.of(layer, neuron)
        assert one.contexts == other.contexts
        assert [each.token for each in one.promoted] == [each.token for each in other.promoted]
    assert len(list(meanings)) == 80
    with pytest.raises(OptionError, match="no prunable layer nowhere"):
        find_meanings(model, tokenizer(), find_ffns(model), padded_sequences(), neurons={"nowhere": [0]})
    for neuron in (-1, 40):
        with pytest.raises(
            OptionError, match=rf"neurons of {LAYER} must be integers from 0 to 39, got \[0, {neuron}\]"
        ):
            find_meanings(model, tokenizer(), find_ffns(model), padded_sequences(), neurons={LAYER: [0, neuron]})


def test_a_model_without_a_head_has_contexts_alone() -> None:
    body = tiny_llama().model
    found = find_meanings(body, tokenizer(), find_ffns(body), padded_sequences(), 2)
    assert "predicts no next token, so it has no logit lens" in str(found.without_lens)
    meaning = found.of("layers.0.mlp", 1)
    assert len(meaning.contexts) == 2
    assert meaning.promoted == meaning.demoted == ()


def test_no_token_in_a_table_is_a_formula(meanings: Meanings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, neuron = next(iter(meanings))
    found = meanings.of(layer, neuron)
    first = replace(
        found.contexts[0], context=replace(found.contexts[0].context, before="=before", token="@token", after="+after")
    )
    hostile = replace(found, contexts=(first,), promoted=(replace(found.promoted[0], token="-1+1"),))
    monkeypatch.setattr(Meanings, "of", lambda *_: hostile)
    write_meanings_csv(meanings, tmp_path / "contexts.csv")
    with (tmp_path / "contexts.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert [row["before_1"], row["token_1"], row["after_1"]] == ["'=before", "'@token", "'+after"]
    assert row["promoted_1"] == "'-1+1"


def test_files_hold_a_row_for_each_neuron(meanings: Meanings, tmp_path: Path) -> None:
    write_meanings_csv(meanings, tmp_path / "contexts.csv")
    write_meanings_json(meanings, tmp_path / "contexts.json")
    with (tmp_path / "contexts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    objects = json.loads((tmp_path / "contexts.json").read_text(encoding="utf-8"))
    assert len(rows) == len(objects) == 80
    for (layer, neuron), row, entry in zip(meanings, rows, objects, strict=True):
        meaning = meanings.of(layer, neuron)
        assert (row["layer"], int(row["neuron"])) == (entry["layer"], entry["neuron"]) == (layer, neuron)
        assert float(row["activation_1"]) == pytest.approx(meaning.contexts[0].activation, rel=1e-5)
        context = meaning.contexts[2].context
        assert [row[f"{name}_3"] for name in ("before", "token", "after")] == [
            context.before,
            context.token,
            context.after,
        ]
        assert (row["promoted_2"], row["demoted_1"]) == (meaning.promoted[1].token, meaning.demoted[0].token)
        assert entry["contexts"][2]["context"]["token"] == context.token
        assert entry["demoted"][0]["logit"] == meaning.demoted[0].logit


def array(entry: dict[str, str]) -> Any:
    return np.frombuffer(base64.b64decode(entry["data"]), np.dtype(entry["dtype"]))


def inspected(model: Any) -> tuple[Inspection, Meanings]:
    pipeline = ChainedFFNPipeline(model, None, calibration=token_ids())
    inspection = inspect_model(pipeline, {"wpr": WeightedPageRankScorer()}, "wpr")
    return inspection, find_meanings(model, tokenizer(), find_ffns(model), inspection.sequences, 3)


def check_data(inspection: Inspection, meanings: Meanings, data: dict[str, Any], held: int) -> None:
    k, tokens, text = data["k"], data["tokens"], array(data["text"])
    assert [tokens[index] for index in text] == [f" w{int(token)}" for token in inspection.sequences.ids.flatten()]
    activations, positions = array(data["activations"]).reshape(-1, k), array(data["positions"]).reshape(-1, k)
    promoted, demoted = array(data["promoted"]).reshape(-1, k), array(data["demoted"]).reshape(-1, k)
    assert data["held"] == [min(held, layer.size) for layer in inspection.layers.values()]
    row = 0
    for number, (name, layer) in enumerate(inspection.layers.items()):
        highest = sorted(np.argsort(-inspection.main.importance[name], kind="stable")[:held].tolist())
        if data["neurons"] is not None:
            start = sum(data["held"][:number])
            assert array(data["neurons"])[start : start + data["held"][number]].tolist() == highest
        for neuron in highest:
            part = layer.part_of(neuron)
            meaning = meanings.of(part.layer.name, neuron - part.start)
            assert [
                (float(value), tokens[text[at]])
                for value, at in zip(activations[row], positions[row], strict=True)
                if value
            ] == [(each.activation, each.context.token) for each in meaning.contexts]
            assert [tokens[index] for index in promoted[row]] == [each.token for each in meaning.promoted]
            assert [tokens[index] for index in demoted[row]] == [each.token for each in meaning.demoted]
            row += 1
    assert row == len(activations)


@pytest.mark.parametrize("build", [tiny_llama, lambda: tiny_mixture("qwen2_moe")])
def test_the_page_holds_all_neurons(build: Any) -> None:
    inspection, meanings = inspected(build())
    data, note = meanings_data(inspection, meanings)
    assert (data["neurons"], note) == (None, None)
    check_data(inspection, meanings, data, 10**6)


def test_a_small_page_holds_the_highest_neurons() -> None:
    inspection, meanings = inspected(tiny_llama())
    data, note = meanings_data(inspection, meanings, limit=1000)
    assert (
        note
        == f"To keep the page small, it has only the contexts of the {data['held'][0]} highest neurons of each layer."
    )
    check_data(inspection, meanings, data, data["held"][0])


def test_losses_that_are_not_finite_are_left_out_of_the_page() -> None:
    """JSON has no NaN, and the rest of the page has taken minutes."""
    model, broken = tiny_llama(), tiny_llama()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    inspection, _ = inspected(model)
    losses = [token_losses(each, inspection.sequences) for each in (model, broken)]
    content = payload(inspection, None, loss_changes(losses[0], losses[1], inspection.sequences, tokenizer()))
    assert content["changes"] is None
    assert "losses of the masked model are not finite" in content["notes"][-1]
    assert "are not finite" in render(content)
