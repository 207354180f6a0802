"""Token sequences from text in any form."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmrank.errors import CalibrationError
from llmrank.pipeline import CalibrationText, EvaluationText
from llmrank.text import TokenSequences, builtin_texts, check_text, read_text, shared_passages, tokenise
from llmrank.text.base_source import BaseSource
from llmrank.text.generated import Automatic, Generated
from llmrank.text.sequences import Role
from llmrank.text.sources import find_source, named_sources
from tests.llmrank.tiny_models import WORDS, text, tiny_llama, token_ids, tokenizer
from tests.tables import table


def paragraphs(whole: str) -> set[str]:
    return {" ".join(part.split()) for part in whole.split("\n\n")}


def test_builtin_parts_share_no_paragraph() -> None:
    calibration, evaluation = builtin_texts()
    assert not paragraphs(calibration) & paragraphs(evaluation)
    assert min(len(calibration), len(evaluation)) > 50_000
    assert builtin_texts() == (calibration, evaluation)


def test_none_means_the_builtin_text_for_the_role() -> None:
    for source in (None, "built-in"):
        assert read_text(source)[0] == builtin_texts()[0]
        found, description = read_text(source, "evaluation")
        assert found == builtin_texts()[1]
        assert description.endswith("evaluation part")


def test_files_texts_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("one two\nthree", encoding="utf-8")
    for source in (path, str(path)):
        assert read_text(source) == ("one two\nthree", "file words.txt")
    assert read_text("one two") == ("one two", "text given by the caller")
    assert read_text(["one", " ", "two"]) == (["one", "two"], "list of 3 texts")
    assert read_text(("one", "two"))[0] == ["one", "two"]


def test_long_text_is_not_mistaken_for_a_file_name() -> None:
    # It is longer than a file name may be, and has no line break.
    words = "word " * 150
    assert read_text(words)[0] == words


@pytest.mark.parametrize("source", ["missing.txt", "no/such/file"])
def test_missing_paths_raise(source: str, tmp_path: Path) -> None:
    for given in (source, tmp_path / source):
        with pytest.raises(CalibrationError, match="no calibration text at"):
            read_text(given)
    with pytest.raises(CalibrationError, match="no evaluation text at"):
        read_text(tmp_path / source, "evaluation")


def test_the_errors_for_directories_and_unreadable_files_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        CalibrationError, match=r"has no file that ends with \.txt, \.md or \.jsonl; expected some with"
    ):
        read_text(tmp_path, "evaluation")
    path = tmp_path / "text.txt"
    path.write_text("words", encoding="utf-8")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(
        CalibrationError, match=r"cannot read .*Permission denied\); pass a calibration text in UTF-8 that you can"
    ):
        read_text(path)


@table("source", ["", "  \n ", [], [" ", ""]])
def test_empty_texts_raise(source: Any, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="is empty"):
        read_text(source)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(CalibrationError, match=r"file empty\.txt\) is empty"):
        read_text(tmp_path / "empty.txt")


def test_a_binary_file_raises(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(bytes(range(256)))
    with pytest.raises(CalibrationError, match="as UTF-8 text"):
        read_text(tmp_path / "data.txt")


@table("source", [5, b"bytes", {"a", "b"}, ["a", 1]])
def test_other_types_raise(source: Any) -> None:
    with pytest.raises(CalibrationError, match="expected a path, a text, a list of texts"):
        read_text(source)


class Numbers(BaseSource):
    """Numbers in words."""

    name = "numbers"
    usage = "COUNT"
    roles = ("calibration",)

    def check(self, role: Role) -> None:
        if not self.argument.isdigit():
            raise CalibrationError(f"expected {self.syntax()}, got {self} as {role} text")

    def read(self, role: Role) -> tuple[str, str]:
        return " ".join(WORDS[k % len(WORDS)] for k in range(int(self.argument))), f"numbers for {role}"


def test_a_new_source_needs_its_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(named_sources(), "numbers", Numbers)
    data = tokenise("numbers:24", tokenizer(), 2, 8)
    assert (data.source, len(data)) == ("numbers for calibration", 2)
    with pytest.raises(CalibrationError, match="expected numbers:COUNT, got numbers:many as calibration text"):
        check_text("numbers:many")
    with pytest.raises(
        CalibrationError, match="'numbers:24' is no evaluation text; expected a text file, built-in or dataset:"
    ):
        find_source("numbers:24", "evaluation")
    # Without what its usage asks for, the same word is a text.
    assert find_source("numbers") is None
    assert str(find_source("numbers:24")) == "numbers:24"


def test_an_object_may_stand_for_its_name() -> None:
    settings = CalibrationText(Numbers("24"), 2, 8).for_model(None)
    assert settings.sequences(tiny_llama(), tokenizer(), hold_out=False)[0].source == "numbers for calibration"


def test_text_that_a_model_writes_needs_a_model() -> None:
    with pytest.raises(CalibrationError, match="'generated' is written by a model, and none was given"):
        tokenise("generated", tokenizer(), 2, 8)
    assert tokenise("auto", tokenizer(), 1, 8).source.startswith("built-in")
    for source in ("generated", "auto", Generated(), Automatic()):
        with pytest.raises(CalibrationError, match=f"'{source}' is no evaluation text"):
            EvaluationText(source).sequences(tiny_llama(), tokenizer(), 8)


def test_text_is_cut_into_full_sequences() -> None:
    words = text(50)
    data = tokenise(words, tokenizer(special=False), 4, 12)
    assert data.ids.shape == (4, 12)
    assert [WORDS[k] for k in data.ids.flatten()] == words.split()[:48]
    assert bool(data.mask.all())
    assert data.n_tokens == 48
    assert tokenise(words, tokenizer(special=False), 3, 12).ids.shape == (3, 12)
    assert tokenise(words, tokenizer(special=False), 9, 12).ids.shape == (4, 12)


def test_special_tokens_are_in_every_sequence() -> None:
    words = text(50)
    data = tokenise(words, tokenizer(), 4, 12)
    assert data.ids.shape == (4, 12)
    assert data.ids[:, 0].tolist() == [1] * 4
    assert data.ids[:, -1].tolist() == [2] * 4
    assert [WORDS[k] for k in data.ids[:, 1:-1].flatten()] == words.split()[:40]


def test_a_list_gives_one_padded_sequence_for_each_text() -> None:
    # All texts are used; the number of samples only applies to a text that is cut.
    data = tokenise([text(3), text(30), text(5)], tokenizer(), 2, 12)
    assert data.ids.shape == (3, 12)
    assert data.mask.sum(1).tolist() == [5, 12, 7]
    assert data.ids[0, 5:].tolist() == [0] * 7
    assert data.ids[:, 0].tolist() == [1, 1, 1]
    assert [int(data.ids[0, 4]), int(data.ids[1, 11])] == [2, 2]
    assert tokenise([text(3), text(5)], tokenizer(pad=False), 2, 12).mask.sum() == 12


def test_too_little_text_raises() -> None:
    with pytest.raises(CalibrationError, match="too short: 9 tokens, and one sequence takes 10"):
        tokenise(text(9), tokenizer(), 4, 12)
    assert len(tokenise(text(10), tokenizer(), 4, 12)) == 1
    with pytest.raises(CalibrationError, match="leaves no room beside the special tokens"):
        tokenise(text(9), tokenizer(), 4, 2)
    with pytest.raises(CalibrationError, match="fewer than 2 tokens"):
        tokenise(["w4", "w5"], tokenizer(special=False), 4, 8)


@table(("samples", "length"), [(0, 8), (-1, 8), (4, 1), (4, 0)])
def test_numbers_out_of_range_raise(samples: int, length: int) -> None:
    with pytest.raises(CalibrationError, match="at least 1 sample and a sequence length of at least 2"):
        tokenise(token_ids(), None, samples, length)


def test_text_without_tokenizer_raises() -> None:
    with pytest.raises(CalibrationError, match="needs a tokenizer"):
        tokenise("some text", None, 4, 8)


def test_token_tensors_are_used_unchanged() -> None:
    ids = token_ids(4, 20)
    for given in (ids, ids.int(), ids.numpy(), ids.to(torch.uint8)):
        data = tokenise(given, None, 3, 16)
        assert torch.equal(data.ids, ids)
        assert data.ids.dtype == torch.int64
    again = tokenise(tokenise(ids, None, 4, 20), None, 1, 2)
    assert torch.equal(again.ids, ids)


@table(
    "ids",
    [
        torch.ones(8, dtype=torch.int64),
        torch.ones(2, 8, 3, dtype=torch.int64),
        torch.ones(2, 1, dtype=torch.int64),
        torch.ones(0, 8, dtype=torch.int64),
        torch.ones(2, 8, dtype=torch.bool),
        torch.ones(2, 8, dtype=torch.complex64),
        torch.ones(8),
        np.ones(3),
    ],
)
def test_tensors_of_another_form_raise(ids: Any) -> None:
    with pytest.raises(CalibrationError, match=r"expected an integer tensor of shape \(n, length\)"):
        tokenise(ids, None, 4, 8)


def test_provenance_identifies_the_tokens() -> None:
    data = tokenise(token_ids(), None, 4, 24)
    facts = data.provenance()
    content = data.ids.numpy().tobytes() + data.mask.numpy().tobytes()
    assert facts["sha256_of_tokens"] == hashlib.sha256(content).hexdigest()
    assert (facts["sequences"], facts["sequence_length"], facts["tokens"]) == (4, 24, 96)
    masked = TokenSequences.of(data.ids, torch.zeros_like(data.mask), "other")
    assert masked.digest != data.digest


def test_batches_hold_every_sequence_once() -> None:
    data = tokenise(token_ids(5, 8), None, 5, 8)
    parts = list(data.batches(2))
    assert [len(ids) for ids, _ in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([ids for ids, _ in parts]), data.ids)


def tokens(*rows: list[int]) -> TokenSequences:
    return tokenise(torch.tensor(rows), None, 100, 10_000)


def test_overlap_of_texts() -> None:
    first = tokens(list(range(1000)))
    assert shared_passages(first, first) == 1.0
    assert shared_passages(first, tokens(list(range(5000, 6000)))) == 0.0
    # A passage is found at any position of any calibration sequence.
    assert shared_passages(tokens(list(range(7, 107)), list(range(500, 600))), tokens(list(range(17, 81)))) == 1.0
    half = list(range(100, 164)) + list(range(9000, 9064))
    assert shared_passages(first, tokens(half)) == 0.5


def test_overlap_of_short_sequences() -> None:
    """Passages are as long as the sequences allow, so a short text overlaps itself completely."""
    short = tokens(list(range(20)), list(range(100, 120)))
    assert shared_passages(short, short) == 1.0
    assert shared_passages(short, tokens(list(range(20)), list(range(200, 220)))) == 0.5
    assert shared_passages(short, tokens(list(range(1, 21)))) == 0.0
    whole = tokens(list(range(1000)))
    assert shared_passages(whole, tokens(list(range(20)))) == 1.0
    assert shared_passages(tokens(list(range(31))), whole) == 1 / 32
    # One short text does not make the passages of other texts short.
    mixed = TokenSequences.of(torch.arange(80).reshape(2, 40), torch.ones(2, 40, dtype=torch.bool), "")
    mixed.mask[0, 2:] = False
    assert shared_passages(mixed, tokens(list(range(40, 72)))) == 1.0
    assert shared_passages(mixed, tokens([0, 1, *range(500, 530)])) == 0.0
    assert shared_passages(mixed, TokenSequences.of(mixed.ids, torch.zeros_like(mixed.mask), "")) == 0.0


def test_overlap_ignores_padding() -> None:
    ids = torch.tensor([list(range(40)) + [0] * 40])
    mask = torch.tensor([[True] * 40 + [False] * 40])
    padded = TokenSequences.of(ids, mask, "padded")
    assert shared_passages(tokens(list(range(40))), padded) == 1.0


def test_builtin_parts_do_not_overlap() -> None:
    calibration, evaluation = builtin_texts()
    words: dict[str, int] = {}
    ids = [torch.tensor([[words.setdefault(w, len(words)) for w in t.split()]]) for t in (calibration, evaluation)]
    first, second = (tokenise(row, None, 1, row.shape[1]) for row in ids)
    assert shared_passages(first, second) < 0.01


def test_the_error_of_a_failing_tokenizer_is_quoted() -> None:
    def damaged(*_: Any, **__: Any) -> Any:
        raise Exception("WordLevel error: Missing [UNK] token from the vocabulary")

    with pytest.raises(CalibrationError, match=r"tokenizer fails on the text .*Missing .UNK. token"):
        tokenise("one two three", damaged, 1, 2)
