"""Documents: conversations, JSON lines and directories become tokens with a separator between documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmrank.errors import CalibrationError
from llmrank.text import check_text, read_text, tokenise
from llmrank.text.documents import Documents, joined_ids
from tests.llmrank.tiny_models import WORDS, text, tokenizer
from tests.tables import table

# The role of a message, its words, and an end.
TEMPLATE = "{% for m in messages %}{{ 'w8' if m.role == 'user' else 'w9' }} {{ m.content }} {% endfor %}"
TURNS = [{"role": "user", "content": "w4 w5"}, {"role": "assistant", "content": "w6"}]


def chatting(template: str = TEMPLATE) -> Any:
    spelled = tokenizer(special=False)
    spelled.chat_template = template
    return spelled


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def words(ids: torch.Tensor) -> str:
    return " ".join(WORDS[k] for k in ids.flatten())


def test_conversations_go_through_the_chat_template(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "chat.jsonl", {"messages": TURNS}, "", {"text": "w10 w11", "messages": TURNS[:1]}, {"text": "w12"}
    )
    data = tokenise(path, chatting(), 1, 11)
    assert words(data.ids) == "w8 w4 w5 w9 w6 [EOS] w8 w4 w5 [EOS] w12"
    assert data.source == "file chat.jsonl"


def test_an_end_of_the_template_itself_is_not_repeated(tmp_path: Path) -> None:
    path = lines(tmp_path / "chat.jsonl", {"messages": TURNS}, {"messages": TURNS})
    for end in ("[EOS]", "[EOS] w13"):
        data = tokenise(path, chatting(TEMPLATE + end), 1, len(f"{end} w8 w4 w5 w9 w6 w8".split()) + 4)
        assert words(data.ids).startswith(f"w8 w4 w5 w9 w6 {end} w8 w4 w5")


@pytest.mark.parametrize("length", [7, 5])
def test_a_beginning_of_the_template_itself_is_not_repeated(tmp_path: Path, length: int) -> None:
    """The templates of Llama 3 and Gemma write the BOS token, which the tokenizer adds too."""
    path = lines(tmp_path / "chat.jsonl", *({"messages": TURNS} for _ in range(3)))
    spelled = tokenizer()
    spelled.chat_template = "[BOS] " + TEMPLATE
    data = tokenise(path, spelled, 2, length)
    written = ["w8", "w4", "w5", "w9", "w6", "[EOS]", "[BOS]", "w8", "w4", "w5", "w9", "w6"]
    room = length - 2
    expected = [["[BOS]", *written[start : start + room], "[EOS]"] for start in (0, room)]
    assert words(data.ids).split() == [*expected[0], *expected[1]]


def test_conversations_need_a_chat_template_that_takes_them(tmp_path: Path) -> None:
    path = lines(tmp_path / "chat.jsonl", {"messages": TURNS})
    with pytest.raises(
        CalibrationError, match=r"has no chat template; give documents with a text instead, or set tokenizer"
    ):
        tokenise(path, tokenizer(), 1, 4)
    with pytest.raises(CalibrationError, match=r"refuses a conversation .*roles must alternate.*its first message is"):
        tokenise(path, chatting("{{ raise_exception('roles must alternate') }}"), 1, 4)
    with pytest.raises(CalibrationError, match="become text by the chat template of a model"):
        read_text(path)


@table(
    ("row", "message"),
    [
        ("{'text': 1}", r"line 2 of bad.jsonl is no JSON .*; expected an object with messages or text in every line"),
        (f'{{"text": {"1" * 5000}}}', r"line 2 of bad.jsonl is no JSON \("),
        ("[" * 100_000, r"line 2 of bad.jsonl is no JSON \("),
        ("[1]", r"line 2 of bad.jsonl is no JSON object; expected one with messages or text"),
        ({"body": "w5"}, r"line 2 of bad.jsonl has no messages, text, .*but \['body'\]"),
        ({"text": 5}, "text of line 2 of bad.jsonl does not hold text, but 5"),
        ({"messages": [{"content": "w5"}]}, "messages of line 2 of bad.jsonl: expected a list of objects with role"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, row: Any, message: str) -> None:
    path = lines(tmp_path / "bad.jsonl", {"text": "w4"}, row)
    check_text(path)
    with pytest.raises(CalibrationError, match=message):
        tokenise(path, tokenizer(), 1, 4)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", '{"text": "w4 w5"}\n'), ("a.txt", "w4 w5")):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert words(tokenise(tmp_path / name, tokenizer(special=False), 1, 2).ids) == "w4 w5"


def test_half_of_a_surrogate_pair_is_a_question_mark(tmp_path: Path) -> None:
    path = lines(tmp_path / "bad.jsonl", {"text": "w4 \ud800 w5"}, {"text": "w6"})
    assert words(tokenise(path, tokenizer(special=False), 1, 5).ids) == "w4 [UNK] w5 [EOS] w6"


def test_a_bad_first_line_is_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="line 1 of"):
        check_text(lines(tmp_path / "bad.jsonl", "no"))
    for empty in (lines(tmp_path / "empty.jsonl", " "), lines(tmp_path / "d" / "empty.txt", " ").parent):
        with pytest.raises(CalibrationError, match="is empty"):
            check_text(empty)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff")
    with pytest.raises(CalibrationError, match="as UTF-8 text"):
        check_text(tmp_path / "binary.jsonl")


def test_a_directory_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    lines(tmp_path / "b.md", "w5 w6")
    lines(tmp_path / "a" / "z.txt", "w4")
    lines(tmp_path / "c.JSONL", {"text": "w7"}, {"text": "w8"})
    for name in ("d.py", ".hidden.txt"):
        lines(tmp_path / name, "w63")
    lines(tmp_path / ".git" / "e.txt", "w63")
    (tmp_path / "folder.txt").mkdir()
    data = tokenise(tmp_path, tokenizer(special=False), 1, 8)
    assert words(data.ids) == "w4 [EOS] w5 w6 [EOS] w7 [EOS] w8"
    assert data.source == f"directory {tmp_path.name}"
    assert read_text(str(tmp_path))[0] == ["w4", "w5 w6", "w7", "w8"]


def test_only_the_files_that_are_needed_are_opened(tmp_path: Path) -> None:
    lines(tmp_path / "a.txt", text(20))
    (tmp_path / "b.txt").write_bytes(b"\xff")
    assert len(tokenise(tmp_path, tokenizer(), 2, 10)) == 2
    with pytest.raises(CalibrationError, match=r"b\.txt as UTF-8 text"):
        tokenise(tmp_path, tokenizer(), 3, 10)


def test_separators(tmp_path: Path) -> None:
    documents = Documents(lambda: iter(["w4", " ", "w5 w6", "w7"]))
    spelled = tokenizer()
    assert joined_ids(documents, spelled, 100) == [4, 2, 5, 6, 2, 7]
    assert joined_ids(documents, spelled, 4) == [4, 2, 5, 6]
    spelled.eos_token = None
    assert joined_ids(documents, spelled, 100) == [4, 1, 5, 6, 1, 7]
    spelled.bos_token = None
    spelled.sep_token = "w9"
    assert joined_ids(documents, spelled, 100) == [4, 9, 5, 6, 9, 7]
    spelled.sep_token = None

    class Lines:
        """A tokenizer without any special token: a blank line is its token 99."""

        def __call__(self, words: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [99] if words == "\n\n" else spelled(words, add_special_tokens=False)["input_ids"]}

    assert joined_ids(documents, Lines(), 100) == [4, 99, 5, 6, 99, 7]


def test_a_text_file_has_the_tokens_that_it_always_had(tmp_path: Path) -> None:
    """Committed results name the hash of the tokens of a text file: it is cut as one text, whatever stands in it."""
    path = lines(tmp_path / "my.txt", text(60))
    data = tokenise(path, tokenizer(), 4, 16)
    assert data.digest == "76a965390d51e9442a58d8771512d2c0b0b2c95b4ebacdeb4226ac6de01fe40a"
    plain = torch.tensor(tokenizer()(text(60), add_special_tokens=False)["input_ids"][: 4 * 14]).reshape(4, 14)
    assert torch.equal(data.ids[:, 1:-1], plain)
