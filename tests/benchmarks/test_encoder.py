"""Sentence embeddings before and after: the measures by textbook loops, and a whole run on a tiny encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks import encoder
from benchmarks.encoder import REPAIRS, SCORERS, Corpus, Setting, Study, agreement, main, sentences, settings
from llmrank.models import find_ffns
from llmrank.surgery import checkpoint
from llmrank.surgery.apply import apply_masks
from llmrank.text import tokenise
from tests.llmrank.tiny_models import Snapshot, family_config, named_family, text, tokenizer


def tiny_encoder() -> Any:
    torch.manual_seed(0)
    model = transformers.BertModel(family_config(named_family("BERT")), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


TEXTS = [text(n, seed=n) for n in (9, 20, 3, 14, 8, 31, 12, 10)]


def test_sentences_are_those_of_the_lines() -> None:
    raw = (
        " \n = Title of a heading that would be long enough to count = \n"
        " It is 1 @,@ 000 years old and well @-@ known , so . No . \n A <unk> of the same kind as that one . \n"
        " It is 1 @,@ 000 years old and well @-@ known , so . And a last sentence that is without a stop \n"
    )
    first = "It is 1,000 years old and well-known , so ."
    second, third = "A unk of the same kind as that one .", "And a last sentence that is without a stop ."
    assert sentences(raw, 3) == [first, second, third]
    assert sentences(raw, 2) == [first, second]
    assert sentences(raw, 1) == [first]
    with pytest.raises(ValueError, match="3 sentences of 8 to 40 words, expected 4"):
        sentences(raw, 4)


def test_embeddings_are_means_over_a_sentence_by_itself(monkeypatch: Any) -> None:
    monkeypatch.setattr(encoder, "BATCH", 3)
    model, words = tiny_encoder(), tokenizer()
    found = Corpus(TEXTS, words).embeddings(model)
    for sentence, embedding in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([words(sentence)["input_ids"]])).last_hidden_state[0]
        mean = sum(states) / len(states)
        assert torch.allclose(embedding.float(), mean / mean.square().sum().sqrt(), atol=1e-5)


def test_agreement_by_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    before, noise = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    before, after = (e / e.norm(dim=1, keepdim=True) for e in (before, before + 0.7 * noise))
    pairs = [(i, j) for i in range(7) for j in range(i)]

    def ranks(embeddings: torch.Tensor) -> list[int]:
        values = [float(embeddings[i] @ embeddings[j]) for i, j in pairs]
        return [sum(other < value for other in values) for value in values]

    def nearest(embeddings: torch.Tensor, i: int) -> int:
        return max((j for j in range(7) if j != i), key=lambda j: float(embeddings[i] @ embeddings[j]))

    n, differences = len(pairs), zip(ranks(before), ranks(after), strict=True)
    found = agreement(before, after)
    # Without ties Spearman's correlation is one less the squared differences of the ranks.
    assert found["spearman"] == pytest.approx(1 - 6 * sum((a - b) ** 2 for a, b in differences) / (n * (n * n - 1)))
    assert found["cosine"] == pytest.approx(sum(float(a @ b) for a, b in zip(before, after, strict=True)) / 7)
    same = sum(nearest(before, i) == nearest(after, i) for i in range(7))
    assert 0 < same < 7
    assert found["neighbour"] == pytest.approx(same / 7)


def test_nothing_lost_is_all_kept() -> None:
    dense = Corpus(TEXTS, tokenizer()).embeddings(tiny_encoder())
    assert agreement(dense, dense) == pytest.approx({"cosine": 1.0, "spearman": 1.0, "neighbour": 1.0})


def test_every_budget_is_compared_without_repair_only() -> None:
    found = list(settings([0.1, 0.3], ["none", "bias"]))
    assert len(found) == len({row.key for row in found}) == 2 * len(SCORERS) * (3 + 1)
    assert {row.budget for row in found if row.repair == "bias"} == {"local"}


@pytest.fixture(scope="module")
def study() -> Study:
    words = tokenizer()
    return Study(tiny_encoder(), words, tokenise(TEXTS, words, len(TEXTS), 40), Corpus(TEXTS, words))


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("budget", ["local", "global", "sensitivity"])
def test_every_row_is_of_the_model_that_its_masks_leave(study: Study, scorer: str, budget: str) -> None:
    before = Snapshot(study.model)
    setting = Setting(scorer, budget, 0.25, "none")
    masks, choose = study.masks(setting)
    row = study.row(setting, masks, choose)
    before.assert_restored()
    assert row["removed"] == pytest.approx(0.25)
    zeroed = apply_masks(study.model, find_ffns(study.model), masks, "zero")
    expected = agreement(study.dense, study.corpus.embeddings(study.model))
    zeroed.undo()
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert row["cosine"] < 0.9999


def test_repairs_bring_the_embeddings_nearer(study: Study) -> None:
    before = Snapshot(study.model)
    cosine = {}
    for repair in REPAIRS:
        setting = Setting("activation", "local", 0.25, repair)
        cosine[repair] = study.row(setting, *study.masks(setting))["cosine"]
    before.assert_restored()
    assert cosine["none"] < cosine["bias"] < cosine["lstsq"]


def test_a_run_resumes(tmp_path: Path, capsys: Any) -> None:
    model = checkpoint.save(tmp_path / "model", tiny_encoder(), tokenizer())
    for name, seed in (("valid", 0), ("test", 1)):
        lines = [f" {text(10, seed=10 * seed + k)} . \n" for k in range(8)]
        (tmp_path / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    shared = ["--wikitext", str(tmp_path), "--model", str(model), "--samples", "8", "--sentences", "6"]
    shared += ["--amounts", "0.5", "--output", str(tmp_path / "encoder.json")]
    main([*shared, "--only", "norm*local*none"])
    first = json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))
    assert list(first["rows"]) == ["norm (L1) | local | 0.5 | none"]
    capsys.readouterr()
    main([*shared, "--only", "norm*none"])
    shown = capsys.readouterr().out
    assert "resuming with 1 rows" in shown
    second = json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))
    assert {row["budget"] for row in second["rows"].values()} == {"local", "global", "sensitivity"}
    assert second["rows"].items() >= first["rows"].items()
    lines = (tmp_path / "encoder.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| norm (L1) |") for line in lines) == 3
