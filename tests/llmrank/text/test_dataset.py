"""Datasets as calibration text: one file of many is read, and the rows that are taken depend on the seed."""

from __future__ import annotations

import builtins
import gzip
import importlib.machinery
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmrank.errors import CalibrationError
from llmrank.text import check_text, read_text, tokenise
from llmrank.text.sequences import Request
from llmrank.text.sources import make_sequences
from tests.llmrank.tiny_models import WORDS, text, tokenizer
from tests.tables import table

N_FILES, N_ROWS = 8, 1500
# The first word of a row tells its file, the next two its place there.
MARKS = WORDS[-N_FILES:]
BODIES = [f"{WORDS[4 + row // 40]} {WORDS[4 + row % 40]}" + f" {WORDS[44]}" * 18 for row in range(N_ROWS)]


@pytest.fixture
def fake_package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("datasets")
    module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


class Rows(list[Any]):
    """Rows of a dataset, and the arguments with which they were shuffled."""

    shuffled: dict[str, int]

    def shuffle(self, **arguments: int) -> Rows:
        self.shuffled = arguments
        return self


def test_a_text_is_checked_without_fetching_a_dataset(tmp_path: Path, fake_package: types.ModuleType) -> None:
    check_text("dataset:nobody/has-this,en,train")
    check_text("built-in", "evaluation")
    for bad in ("dataset: ,en", "dataset:a,en,train,more"):
        for action in (check_text, read_text):
            with pytest.raises(CalibrationError, match=rf"expected dataset:NAME\[,CONFIG\[,SPLIT\]\], got '{bad}' as"):
                action(bad)
    with pytest.raises(CalibrationError, match="no evaluation text at"):
        check_text(tmp_path / "absent", "evaluation")


def test_the_error_for_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError("no module named datasets")
        return honest(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(CalibrationError, match=r"pip install 'llmrank\[datasets\]'"):
        read_text("dataset:wikitext")


@table(
    ("name", "arguments"),
    [
        ("wikitext", ("wikitext", None, "train")),
        ("wikitext,wikitext-2-raw-v1", ("wikitext", "wikitext-2-raw-v1", "train")),
        ("wikitext,wikitext-2-raw-v1,test", ("wikitext", "wikitext-2-raw-v1", "test")),
        ("ns/data,,validation", ("ns/data", None, "validation")),
    ],
)
@table("column", ["text", "content", "document"])
def test_names_and_columns(fake_package: types.ModuleType, name: str, arguments: tuple[Any, ...], column: str) -> None:
    asked: list[Any] = []
    rows = Rows([{"id": "1", column: "w4 w5"}, {"id": "2", column: " "}, {"id": "3", column: "w6"}])

    def load(name: str, config: str | None, split: str, streaming: bool = False) -> Rows:
        asked.append((name, config, split, streaming))
        return rows

    fake_package.load_dataset = load  # type: ignore[attr-defined]
    assert read_text(f"dataset:{name}") == (["w4 w5", "w6"], f"dataset:{name}")
    assert asked == [(*arguments, True)]
    assert rows.shuffled == {"seed": 0, "buffer_size": 1000, "max_buffer_input_shards": 1}


def test_the_description_names_no_local_folder(fake_package: types.ModuleType) -> None:
    fake_package.load_dataset = lambda *_, **__: Rows([{"text": "w4"}])  # type: ignore[attr-defined]
    assert read_text("dataset:/home/me/rows,,test")[1] == "dataset:./rows,,test"


def test_datasets_that_do_not_load_raise(fake_package: types.ModuleType) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("nothing there\nsecond line")

    fake_package.load_dataset = missing  # type: ignore[attr-defined]
    with pytest.raises(CalibrationError, match="cannot load dataset 'x', split 'train': nothing there;"):
        read_text("dataset:x")
    fake_package.load_dataset = lambda *_, **__: Rows()  # type: ignore[attr-defined]
    with pytest.raises(CalibrationError, match=r"dataset:x\) is empty"):
        read_text("dataset:x")


@table(
    ("row", "message"),
    [
        ({"label": "a"}, r"dataset 'x' has no messages, text, content or document, but \['label'\]"),
        ({"text": None}, "text of dataset 'x' does not hold text, but None; save the text you want to a file"),
        ({"text": ["b"]}, r"text of dataset 'x' does not hold text, but \['b'\]; save the text"),
        ({"messages": "hello"}, "messages of dataset 'x': expected a list of objects with role and content"),
    ],
)
def test_rows_that_are_no_text_raise(fake_package: types.ModuleType, row: dict[str, Any], message: str) -> None:
    fake_package.load_dataset = lambda *_, **__: Rows([{"text": "a"}, row])  # type: ignore[attr-defined]
    with pytest.raises(CalibrationError, match=message):
        read_text("dataset:x")


@pytest.mark.parametrize("late", [False, True])
def test_a_dataset_that_cannot_be_streamed_is_loaded(fake_package: types.ModuleType, late: bool) -> None:
    rows = Rows({"text": text(30, seed)} for seed in range(9))

    class Refusing(Rows):
        def __iter__(self) -> Iterator[Any]:
            raise NotImplementedError("TAR archives are not streamed")

    def load(*_: Any, streaming: bool = False, **__: Any) -> Rows:
        if streaming and not late:
            raise NotImplementedError("TAR archives are not streamed")
        return Refusing() if streaming else rows

    fake_package.load_dataset = load  # type: ignore[attr-defined]
    assert len(tokenise("dataset:x", tokenizer(), 4, 12)) == 4
    assert rows.shuffled == {"seed": 0}


@pytest.mark.parametrize("split", ["train[:10%]", "train+test"])
def test_parts_and_unions_of_splits_are_not_streamed(fake_package: types.ModuleType, split: str) -> None:
    rows = Rows([{"text": "w4"}])

    def load(*_: Any, split: str, streaming: bool = False) -> Rows:
        if streaming:
            raise ValueError(f"Bad split: {split}")
        return rows

    fake_package.load_dataset = load  # type: ignore[attr-defined]
    assert read_text(f"dataset:x,,{split}") == (["w4"], f"dataset:x,,{split}")
    assert rows.shuffled == {"seed": 0}


def test_a_lost_connection_does_not_download_the_whole_dataset(fake_package: types.ModuleType) -> None:
    asked: list[bool] = []

    def load(*_: Any, streaming: bool = False, **__: Any) -> Rows:
        asked.append(streaming)
        if streaming:
            raise ConnectionError("the hub does not answer")
        return Rows([{"text": "w4"}])

    fake_package.load_dataset = load  # type: ignore[attr-defined]
    with pytest.raises(CalibrationError, match="cannot load dataset 'x', split 'train': the hub does not answer;"):
        read_text("dataset:x")
    assert asked == [True]


# --- with the package itself


@pytest.fixture
def many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of files like that of a large dataset; every row of file k begins with word k."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "many"
    folder.mkdir()
    for k in range(N_FILES):
        rows = (json.dumps({"text": f"{MARKS[k]} {BODIES[row]}", "id": row}) for row in range(N_ROWS))
        (folder / f"part-{k}.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode(), compresslevel=1))
    return folder


def request(seed: int = 0, samples: int = 6) -> Request:
    return Request(tokenizer(special=False), samples, 64, 2, seed=seed)


def test_one_file_of_many_is_read(many_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: set[str] = set()
    honest = builtins.open

    def watch(file: Any, *args: Any, **kwargs: Any) -> Any:
        if "part-" in str(file) and "r" in str(args[0] if args else kwargs.get("mode", "r")):
            opened.add(Path(str(file)).name)
        return honest(file, *args, **kwargs)

    # fsspec, through which datasets reads, opens local files with the built-in function.
    monkeypatch.setattr(builtins, "open", watch)
    sequences, held_out = make_sequences(f"dataset:{many_files}", request())
    assert held_out is not None
    assert (len(sequences), len(held_out)) == (6, 2)
    words = {WORDS[k] for part in (sequences, held_out) for k in part.ids.flatten()} & {*MARKS}
    assert len(words) == 1
    # The package looks into the first file besides, to know the columns.
    read = f"part-{MARKS.index(words.pop())}.jsonl.gz"
    assert opened <= {read, "part-0.jsonl.gz"}


def test_the_seed_decides_the_rows(many_files: Path) -> None:
    digests = [make_sequences(f"dataset:{many_files}", request(seed))[0].digest for seed in (0, 0, 1, 2)]
    assert digests[0] == digests[1]
    assert len({*digests}) == 3


def test_rows_are_whole_documents_with_an_end_between_them(many_files: Path) -> None:
    sequences, _ = make_sequences(f"dataset:{many_files}", request())
    # A row has 21 words, so every 22nd token is the EOS token.
    tokens = sequences.ids.flatten()
    assert tokens[21::22].eq(2).all()
    assert int(tokens.eq(2).sum()) == len(tokens[21::22])
    # They are not the first rows of their file in its order.
    rows = [" ".join(WORDS[k] for k in tokens[start + 1 : start + 21]) for start in range(0, 6 * 64 - 22, 22)]
    assert rows != BODIES[: len(rows)]
    assert {*rows} <= {*BODIES}
