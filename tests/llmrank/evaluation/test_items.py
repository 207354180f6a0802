"""Items: what is right, what is kept, and which files are read."""

from __future__ import annotations

import itertools
import json
import math
import operator
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmrank.errors import CalibrationError, OptionError
from llmrank.evaluation.items import Answers, Item, answer_items, items_of_each_kind, read_items
from tests.llmrank.tiny_models import bigram_model, spelling_tokenizer, tiny_llama
from tests.tables import table

CAT, SAT, ON, MAT, THE, OVER, HILLS = 32, 34, 29, 33, 52, 56, (53, 46)
ITEMS = (
    Item("cats", "the cat", " sat"),
    Item("cats", "the cat sat", " on the"),
    Item("cats", "a cat", " mat"),
    Item("hills", "went over", " hills"),
    # Right as far as the first of two tokens.
    Item("hills", "went over", " hilla"),
)


def knowing(**changes: int) -> Any:
    """Make a model that knows "the cat sat on the mat", and what is over hills; with changes, by the names above."""
    follows = {"CAT": SAT, "SAT": ON, "ON": THE, "THE": MAT, "OVER": HILLS[0]} | changes
    return bigram_model({**{globals()[name]: token for name, token in follows.items()}, HILLS[0]: HILLS[1]}, MAT)


def test_the_tokens_are_those_of_the_words() -> None:
    tokenizer = spelling_tokenizer()
    written = tokenizer("the cat sat on the over hills", add_special_tokens=False)["input_ids"]
    assert written[1:] == [CAT, SAT, ON, THE, OVER, *HILLS]


@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_an_answer_is_right_if_all_of_it_is_written(batch_tokens: int) -> None:
    answers = answer_items(knowing(), spelling_tokenizer(), ITEMS, batch_tokens)
    assert answers.items == ITEMS
    assert answers.right == (True, True, False, True, False)
    shares = answers.accuracy
    assert (shares.all.value, shares.all.count) == (3 / 5, 5)
    assert shares.all.error == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert {kind: (share.value, share.count) for kind, share in shares.kinds.items()} == {
        "cats": (pytest.approx(2 / 3), 3),
        "hills": (1 / 2, 2),
    }


def test_what_is_kept_is_counted_among_what_the_dense_model_knows() -> None:
    tokenizer = spelling_tokenizer()
    dense = answer_items(knowing(), tokenizer, ITEMS)
    # It forgets what a cat does, and learns a wrong thing instead, which the dense model does not know.
    pruned = answer_items(knowing(CAT=MAT), tokenizer, ITEMS)
    assert pruned.right == (False, True, True, True, False)
    assert pruned.accuracy.all.value == dense.accuracy.all.value
    kept = pruned.kept(dense)
    assert kept is not None
    assert (kept.all.value, kept.all.count) == (pytest.approx(2 / 3), 3)
    assert kept.all.error == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 2))
    assert {kind: (share.value, share.count, share.error) for kind, share in kept.kinds.items()} == {
        "cats": (0.5, 2, 0.5),
        "hills": (1.0, 1, None),
    }
    assert dense.kept(dense).all.value == 1.0


def test_nothing_is_kept_of_nothing() -> None:
    items = ITEMS[:2]
    assert Answers(items, (True, True)).kept(Answers(items, (False, None))) is None
    # A kind of which the dense model knows nothing is left out.
    kept = Answers(ITEMS, (True,) * 5).kept(Answers(ITEMS, (False, False, None, True, True)))
    assert list(kept.kinds) == ["hills"]


def test_skipped_items_do_not_count() -> None:
    tokenizer = spelling_tokenizer(across=True)
    joined = Item("joined", "the cat sat on the", " mat")
    asked = Item("asked", "w", "hills")
    answers = answer_items(tiny_llama(), tokenizer, [joined, asked])
    assert (answers.right[0], answers.skipped) == (None, 1)
    assert list(answers.accuracy.kinds) == ["asked"]
    assert answers.accuracy.all.count == 1
    with pytest.raises(CalibrationError, match="none of 1 items can be used: an answer must begin with a new token"):
        answer_items(tiny_llama(), tokenizer, [joined])


def test_models_that_answered_other_items_are_not_compared() -> None:
    with pytest.raises(OptionError, match="got 2 for this model and 1 for the dense one"):
        Answers(ITEMS[:2], (True, True)).kept(Answers(ITEMS[:1], (True,)))


def test_a_few_of_each_kind_are_the_first_of_each() -> None:
    assert items_of_each_kind(ITEMS, 1) == (ITEMS[0], ITEMS[3])
    assert items_of_each_kind(ITEMS, 9) == ITEMS


def test_items_are_read_from_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    lines = [json.dumps({**vars(item), "from": "me"}) for item in ITEMS]
    path.write_text("\ufeff" + "\r\n\n".join(lines) + "\n\n", encoding="utf-8")
    assert read_items(path) == ITEMS
    # A line separator inside a text ends no line.
    path.write_text(
        json.dumps({"kind": "k", "prompt": "a\u2028b", "answer": "c"}, ensure_ascii=False), encoding="utf-8"
    )
    assert read_items(path) == (Item("k", "a\u2028b", "c"),)


GOOD = json.dumps(vars(ITEMS[0]))


@table(
    ("content", "message"),
    [
        (
            "",
            "holds no items; expected a JSON object with the texts kind, prompt, answer, none of them empty, in every line",
        ),
        ("\n \n", "holds no items"),
        (
            f"{GOOD}\n{{",
            "line 2 of own.jsonl: expected a JSON object with the texts kind, prompt, answer, none of them empty, got {",
        ),
        (f"\n{GOOD}\nRome", "line 3 of own.jsonl: expected a JSON object .* got Rome; correct or delete that line"),
        ('{"kind": "fact", "prompt": "Two"}', "line 1 of own.jsonl: .* got {.kind.: .fact., .prompt.: .Two.}"),
        ('{"kind": "fact", "prompt": "Two", "answer": ""}', "line 1 .* none of them empty"),
        ('{"kind": "fact", "prompt": "Two", "answer": 2}', "line 1 of own.jsonl: expected"),
        ('["fact", "Two", " and"]', "line 1 of own.jsonl: expected"),
        ("[" * 100_000, r"line 1 of own.jsonl: expected .* got \[{80}\.\.\.;"),
    ],
)
def test_lines_of_another_form_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        read_items("own.jsonl")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes("déjà".encode("latin-1"))
    for path in (tmp_path / "absent.jsonl", tmp_path, latin):
        with pytest.raises(OptionError, match=f"cannot read items from {path} .*; pass a file of JSON lines in UTF-8"):
            read_items(path)


def test_the_built_in_items_are_a_balanced_mixture_of_different_questions() -> None:
    items = read_items()
    kinds = Counter(item.kind for item in items)
    assert set(kinds) == {"fact", "last word", "arithmetic", "code"}
    assert sum(kinds.values()) >= 400
    assert len(set(kinds.values())) == 1
    assert len({item.prompt for item in items}) == len(items)
    for item in items:
        # A space belongs to the answer, where tokenizers put it.
        assert item.prompt == item.prompt.rstrip()
        assert item.answer.strip()
        assert item.answer == item.answer.rstrip()


def test_built_in_arithmetic_is_right() -> None:
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
    asked = [item.prompt + item.answer for item in read_items() if item.kind == "arithmetic"]
    sums = [re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+),", text) for text in asked]
    for a, sign, b, result in (each for found in sums for each in found):
        assert signs[sign](int(a), int(b)) == int(result)
        assert sign != "/" or int(a) % int(b) == 0
    sequences = [[int(n) for n in text.rstrip(",").split(", ")] for text in asked if re.fullmatch("[0-9, ]+", text)]
    for numbers in sequences:
        assert len({after - before for before, after in itertools.pairwise(numbers)}) == 1
    assert [len(found) for found in sums].count(3) + len(sequences) > 90


def test_names_in_built_in_code_occur_before() -> None:
    for item in read_items():
        assert item.kind != "code" or re.search(rf"\b{item.answer.strip()}\b", item.prompt)
