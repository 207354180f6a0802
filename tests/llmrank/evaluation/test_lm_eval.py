"""lm-eval on loaded models, without a network; its last-word accuracy equals that of this package."""

from __future__ import annotations

import json
import math
import os
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llmrank
from llmrank.errors import CalibrationError, LLMRankError, OptionError, UnsupportedModelError
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.last_word import cut_passages, last_word
from llmrank.evaluation.lm_eval import (
    PAGE_LENGTH,
    TASKS,
    LMEvalTasks,
    _estimates,
    find_tasks,
    last_word_documents,
    page_documents,
)
from llmrank.models.loading import LoadedModel
from llmrank.prune import GlobalPruner
from llmrank.text.documents import plain_ids
from tests.llmrank.commands import refused, run
from tests.llmrank.plain_pipelines import ChainedFFNPipeline
from tests.llmrank.tiny_models import (
    TALE,
    Snapshot,
    family_model,
    mlp,
    named_family,
    spelling_tokenizer,
    tiny_llama,
    token_ids,
)


@pytest.fixture
def tale(tmp_path: Path) -> Path:
    """Make passages that end with one of three words, of which the models are taught one."""
    words = TALE.split()
    sentences = [
        f"{' '.join([*words[k:], *words[:k]]).capitalize()} {('mat', 'cat', 'hills')[k % 3]}."
        for k in range(len(words))
    ]
    path = tmp_path / "tale.txt"
    path.write_text("\n\n".join(" ".join(sentences[k : k + 9]) for k in range(12)), encoding="utf-8")
    return path


def test_without_lm_eval_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(OptionError, match=r"pip install 'llmrank\[eval\]'"):
        find_tasks(["llmrank_last_word"])


def test_an_absent_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no directory of tasks"):
        find_tasks(["llmrank_last_word"], directory=tmp_path / "nowhere")


@pytest.mark.parametrize("load", [last_word_documents, page_documents])
def test_texts_that_cannot_be_read_are_refused(load: Any, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no evaluation text at .*missing"):
        load(str(tmp_path / "missing"))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(LLMRankError, match="empty"):
        load(str(tmp_path / "empty.txt"))


def test_a_text_without_passages_holds_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Too short.")
    with pytest.raises(CalibrationError, match="no passage"):
        last_word_documents(str(path))


# Warnings of datasets are ignored here and below.
@pytest.mark.filterwarnings("default")
def test_documents_are_the_passages_and_pages_of_a_text(tale: Path) -> None:
    pytest.importorskip("datasets")
    text = tale.read_text(encoding="utf-8")
    (rows,) = last_word_documents(str(tale), 3, more="of lm-eval's").values()
    assert [(row["context"], row["word"]) for row in rows] == [(p.context, p.word) for p in cut_passages(text, 3)]
    pages = page_documents(str(tale), more="of lm-eval's")["test"]["page"]
    assert "".join(pages) == text
    assert len(pages) > 1
    assert all(PAGE_LENGTH <= len(page) < PAGE_LENGTH + 1000 for page in pages[:-1])


def test_models_that_predict_nothing_and_models_without_a_tokenizer_are_refused() -> None:
    tasks = LMEvalTasks(("x",), None)
    for model in (family_model(named_family("BERT")), mlp(4, 6, 2)):
        with pytest.raises(UnsupportedModelError, match="no likelihood for lm-eval"):
            tasks.run(model, spelling_tokenizer())
    with pytest.raises(CalibrationError, match="without one"):
        tasks.run(tiny_llama(), None)


def test_metrics_have_the_name_of_their_filter_and_an_error_if_there_is_one() -> None:
    values = {"acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A", "alias": "x"}
    assert _estimates(values, 3) == {"acc": Estimate(0.5, 0.1, 3), "em,strict": Estimate(1.0, None, 3)}


@pytest.mark.slow  # lm-eval takes seconds to import and to begin each run
class TestWithLMEval:
    """Skipped where it is not installed."""

    # Warnings of lm-eval and of its imports are ignored.
    pytestmark = [pytest.mark.filterwarnings("default")]

    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("lm_eval.tasks")

    @pytest.mark.parametrize("batch_size", [1, 4])
    @pytest.mark.parametrize("name", ["Llama, SmolLM2", "GPT-2", "OPT", "BLOOM"])
    def test_last_words_agree_with_ours(self, tale: Path, name: str, batch_size: int) -> None:
        """On the same passages, with contexts longer than the model takes among them."""
        model = family_model(named_family(name))
        tokenizer = spelling_tokenizer()
        passages = cut_passages(tale.read_text(encoding="utf-8"))
        teach(model, plain_ids(tokenizer, " mat"))
        ours = last_word(model, tokenizer, passages, 1024)
        theirs = find_tasks(["llmrank_last_word"], tale).run(model, tokenizer, batch_size=batch_size)
        assert ours.skipped == 0
        assert max(len(plain_ids(tokenizer, passage.context)) for passage in passages) > 64
        found = theirs["llmrank_last_word"]["acc"]
        assert (found.value, found.count) == (ours.accuracy.value, ours.accuracy.count)
        assert found.error == pytest.approx(ours.accuracy.error)
        assert 0.1 < found.value < 0.9

    def test_a_bos_token_is_read_by_both(self, tale: Path) -> None:
        model, tokenizer = tiny_llama(max_position_embeddings=1024), spelling_tokenizer(front=True)
        passages = cut_passages(tale.read_text(encoding="utf-8"), 5)
        teach(model, plain_ids(tokenizer, " mat"))
        theirs = find_tasks(["llmrank_last_word"], tale, 5).run(model, tokenizer)["llmrank_last_word"]
        assert theirs["acc"].value == last_word(model, tokenizer, passages).accuracy.value
        assert theirs["acc"].count == 5
        assert theirs["perplexity"].value == pytest.approx(
            math.exp(-sum(log_likelihood(model, tokenizer, p.context, p.word) for p in passages) / 5), rel=1e-4
        )

    def test_perplexity_of_a_file_by_word_and_byte(self, tale: Path) -> None:
        """Pages are read whole, behind one end-of-text token."""
        model, tokenizer = tiny_llama(max_position_embeddings=4096), spelling_tokenizer()
        text = tale.read_text(encoding="utf-8")
        pages = page_documents(str(tale))["test"]["page"]
        assert len(pages) > 1
        total, words = 0.0, 0
        for page in pages:
            words += len(re.split(r"\s+", page))
            ids = torch.tensor([[tokenizer.bos_token_id, *plain_ids(tokenizer, page)]])
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            total += float(logs.gather(1, ids[0, 1:, None]).sum())
        found = find_tasks(["llmrank_perplexity"], tale).run(model, tokenizer)["llmrank_perplexity"]
        size = len(text.encode())
        assert found["byte_perplexity"].value == pytest.approx(math.exp(-total / size), rel=1e-4)
        assert found["bits_per_byte"].value == pytest.approx(-total / size / math.log(2), rel=1e-4)
        assert found["word_perplexity"].value == pytest.approx(math.exp(-total / words), rel=1e-4)
        assert found["word_perplexity"].count == len(pages)
        limited = find_tasks(["llmrank_perplexity"], tale).run(model, tokenizer, limit=1)["llmrank_perplexity"]
        assert limited["word_perplexity"].count == 1

    def test_widths_that_differ_by_layer_run_too(self, tale: Path, tmp_path: Path) -> None:
        """Stock loaders refuse such a checkpoint, so that it can only be passed as a model."""
        model = tiny_llama(max_position_embeddings=512)
        pipeline = ChainedFFNPipeline(model, None, pruner=GlobalPruner(25), calibration=token_ids())
        pipeline.run()
        assert pipeline.masks is not None
        assert not pipeline.masks.is_uniform
        saved = llmrank.save(tmp_path / "pruned", model, spelling_tokenizer(), pipeline.masks)
        result = tmp_path / "result.json"
        given = ("--text", tale, "--samples", 2, "--sequence-length", 16, "--last-word", "--output", result)
        assert run("evaluate", saved, *given, "--tasks", "llmrank_last_word, llmrank_perplexity", "--documents", 3) == 0
        found = json.loads(result.read_text(encoding="utf-8"))["tasks"]
        assert set(found) == {"llmrank_last_word", "llmrank_perplexity"}
        assert found["llmrank_last_word"]["acc"]["count"] == 3

    def test_tasks_of_the_user_s(self, tale: Path, tmp_path: Path) -> None:
        directory = tmp_path / "mine"
        directory.mkdir()
        (directory / "mine.yaml").write_text(
            f"include: {TASKS / 'llmrank_last_word.yaml'}\ntask: mine\nmetadata: {{version: 2.0}}\n", encoding="utf-8"
        )
        tokenizer = spelling_tokenizer()
        model = tiny_llama(max_position_embeddings=512)
        found = find_tasks(["mine"], tale, directory=directory).run(model, tokenizer)
        assert found["mine"]["acc"].value == last_word(model, tokenizer, cut_passages(tale.read_text())).accuracy.value

    def test_nothing_is_left_behind(self, tale: Path) -> None:
        model, tokenizer = tiny_llama(attention_dropout=0.5), spelling_tokenizer()
        tokenizer.pad_token = None
        model.train()
        snapshot = Snapshot(model)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        find_tasks(["llmrank_last_word"], tale, 3).run(model, tokenizer)
        assert tokenizer.pad_token is None
        assert model.training
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
        snapshot.assert_restored()

    @pytest.mark.parametrize("given", [None, ""])
    def test_errors_are_bootstrapped_in_this_process(
        self, tale: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
    ) -> None:
        """A pool of processes can wait for ever where signals are handled."""
        monkeypatch.setattr("multiprocessing.Pool", pytest.fail)
        monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
        if given is not None:
            monkeypatch.setenv("DISABLE_MULTIPROC", given)
        model, tokenizer = tiny_llama(max_position_embeddings=1024), spelling_tokenizer()
        found = find_tasks(["llmrank_last_word"], tale).run(model, tokenizer)["llmrank_last_word"]["perplexity"]
        logs = [log_likelihood(model, tokenizer, p.context, p.word) for p in cut_passages(tale.read_text())]
        resamples = np.random.default_rng(0).choice(logs, size=(10_000, len(logs)))
        assert found.error == pytest.approx(np.exp(-resamples.mean(1)).std(), rel=0.05)
        assert os.environ.get("DISABLE_MULTIPROC") == given

    @pytest.mark.parametrize("names", [[], ["llmrank_lastword"]])
    def test_unknown_tasks_are_refused(self, names: list[str]) -> None:
        with pytest.raises(OptionError, match=r"unknown lm-eval task .* llmrank_last_word or llmrank_perplexity"):
            find_tasks(names)

    def test_unknown_tasks_are_refused_before_a_model_is_loaded(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "unknown lm-eval task" in refused(capsys, "evaluate", "./nowhere", "--tasks", ",")

    def test_a_task_that_cannot_run_says_why(self, tmp_path: Path) -> None:
        (tmp_path / "far.yaml").write_text(
            "task: far\ndataset_path: nobody/nowhere\ntest_split: test\noutput_type: loglikelihood\n"
            'doc_to_text: "{{a}}"\ndoc_to_target: "{{b}}"\n',
            encoding="utf-8",
        )
        with pytest.raises(CalibrationError, match=r"lm-eval cannot run far: .*hub"):
            find_tasks(["far"], directory=tmp_path).run(tiny_llama(), spelling_tokenizer())

    def test_a_text_without_passages_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "short.txt"
        path.write_text("Too short.")
        with pytest.raises(CalibrationError, match="no passage"):
            find_tasks(["llmrank_last_word"], path).run(tiny_llama(), spelling_tokenizer())

    def test_every_row_of_a_sweep_runs_the_tasks(self, tale: Path, tmp_path: Path) -> None:
        loaded = LoadedModel(tiny_llama(), spelling_tokenizer(), "tiny")
        result = llmrank.sweep(
            loaded,
            output=tmp_path / "runs",
            amounts=[0.5],
            repairs=["none"],
            calibration=tale,
            evaluation=tale,
            samples=2,
            sequence_length=32,
            tasks=["llmrank_perplexity"],
        )
        expected = find_tasks(["llmrank_perplexity"], tale).run(loaded.model, loaded.tokenizer)["llmrank_perplexity"]
        dense, pruned = [row["tasks"]["llmrank_perplexity"] for row in result.rows]
        assert dense == {name: vars(each) for name, each in expected.items()}
        assert pruned.keys() == dense.keys()
        assert pruned["word_perplexity"]["value"] != dense["word_perplexity"]["value"]
        assert result.table().columns[-1].header == "llmrank_perplexity"


def teach(model: Any, word: list[int]) -> None:
    """Make the only token of a word the likeliest after anything."""
    (token,) = word
    bias = torch.zeros(64)
    bias[token] = 100.0
    model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, output: output + bias)


@torch.no_grad()
def log_likelihood(model: Any, tokenizer: Any, context: str, word: str) -> float:
    """Return the log-likelihood of a word's tokens, one by one."""
    ids, total = [tokenizer.bos_token_id, *plain_ids(tokenizer, context)], 0.0
    for token in plain_ids(tokenizer, f" {word}"):
        total += float(model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token])
        ids.append(token)
    return total
