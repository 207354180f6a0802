"""Several sources with shares: the grammar, the numbers of sequences, and the order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmrank
from llmrank.errors import CalibrationError
from llmrank.pipeline import CalibrationText
from llmrank.text import TokenSequences, check_text, tokenise
from llmrank.text.mixed_sources import MixedSources, split_shares, whole_numbers
from llmrank.text.sequences import Request
from llmrank.text.sources import find_source, make_sequences
from tests.llmrank.commands import SHORT, run
from tests.llmrank.plain_pipelines import IsolatedFFNPipeline
from tests.llmrank.tiny_models import spelling_tokenizer, tiny_llama, tokenizer
from tests.tables import table


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two files; the first has the words w4 and w5 alone, the second others."""
    paths = tmp_path / "a.txt", tmp_path / "b.txt"
    paths[0].write_text("w4 w5 " * 200, encoding="utf-8")
    paths[1].write_text("w6 w7 w8 " * 200, encoding="utf-8")
    return paths


def made(source: Any, samples: int = 8, held_out: int = 2, seed: int = 0) -> tuple[TokenSequences, TokenSequences]:
    fitted, rest = make_sequences(source, Request(tokenizer(special=False), samples, 12, held_out, seed=seed))
    assert rest is not None
    return fitted, rest


def n_from_first(sequences: TokenSequences) -> int:
    return int((sequences.ids < 6).all(1).sum())


@table(
    ("written", "entries"),
    [
        ("a.txt:0.5,b.txt:0.5", [("a.txt", 0.5), ("b.txt", 0.5)]),
        ("a.txt:.25, b c.txt:75%", [("a.txt", 0.25), ("b c.txt", 0.75)]),
        (r"C:\a,b.txt:0.5,D:\c.txt:0.5", [(r"C:\a,b.txt", 0.5), (r"D:\c.txt", 0.5)]),
        ("dataset:ns/x,en,train:12.5%,built-in:87.5%", [("dataset:ns/x,en,train", 0.125), ("built-in", 0.875)]),
        ("dataset:ns/x,v:1,train:0.5,lines:500:0.5", [("dataset:ns/x,v:1,train", 0.5), ("lines:500", 0.5)]),
        ("dataset:ns/x,en,train", None),
        (r"C:\a.txt", None),
        ("lines:500", None),
        ("a.txt", None),
    ],
)
def test_a_share_ends_an_entry(written: str, entries: Any) -> None:
    assert split_shares(written) == entries


@table(
    ("written", "message"),
    [
        ("a.txt:0.5,b.txt", "'b.txt' has no share; expected SOURCE:SHARE,SOURCE:SHARE with shares such as 0.5 or 50%"),
        ("a.txt:0.5,", "'' has no share"),
        ("a.txt:0.5,:0.5", "a share has no source"),
        ("a.txt:0.5", r"add up to 1 \(SOURCE:SHARE,.*, got 0.5 in all: a.txt 0.5"),
        ("a.txt,b.txt:0.5", "got 0.5 in all: a.txt,b.txt 0.5"),
        ("a.txt:0.5,b.txt:0.4", "got 0.9 in all: a.txt 0.5, b.txt 0.4"),
        ("a.txt:50%,b.txt:60%", "got 1.1 in all"),
        ("a.txt:1.0,b.txt:0.0", "shares must be above 0"),
        ({"a.txt": 0.5, "b.txt": "half"}, "the share of b.txt must be a number such as 0.5, got 'half'"),
        ({}, "expected sources with shares"),
        ([(["w4"], 0.5), ("b.txt", 0.5)], "cannot mix text of type list with other sources"),
    ],
)
def test_mistakes_in_shares_are_named(written: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        find_source(written)


def test_missing_files_are_found_before_a_model_is_loaded(files: tuple[Path, Path]) -> None:
    check_text(f"{files[0]}:0.5,{files[1]}:0.5")
    for missing in (f"{files[0]}:0.5,absent.txt:0.5", {files[0]: 0.5, "absent": 0.5}):
        with pytest.raises(CalibrationError, match="no calibration text at absent"):
            check_text(missing)


def test_one_source_with_all_of_the_share_is_that_source(files: tuple[Path, Path]) -> None:
    path = files[0]
    for written in (f"{path}:100%", f"{path}:1.0", {path: 1.0}):
        found = find_source(written)
        assert isinstance(found, MixedSources)
        alone, plain = (tokenise(each, tokenizer(), 3, 16) for each in (written, path))
        assert alone.digest == plain.digest
        assert alone.source == plain.source


def test_texts_that_hold_shares_and_files_that_are_called_so_are_no_mixtures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for whole in ("They won 3:0.5, which is odd.", "a:0.5\nb:0.5", "", " "):
        assert find_source(whole) is None
    monkeypatch.chdir(tmp_path)
    Path("a:0.5,b:0.5").write_text("w4", encoding="utf-8")
    assert find_source("a:0.5,b:0.5") is None


def test_mixtures_are_for_calibration(files: tuple[Path, Path]) -> None:
    with pytest.raises(CalibrationError, match="is no evaluation text"):
        check_text({files[0]: 0.5, files[1]: 0.5}, "evaluation")


@given(st.integers(0, 500), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
def test_numbers_are_shares_rounded_up_or_down(total: int, weights: list[float]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    counts = whole_numbers(total, shares)
    assert sum(counts) == total
    assert all(abs(count - total * share) < 1.0 for count, share in zip(counts, shares, strict=True))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_each_source_gives_its_share(files: tuple[Path, Path], share: float) -> None:
    forms = (
        {files[0]: share, str(files[1]): 1.0 - share},
        [(files[0], share), (files[1], 1.0 - share)],
        f"{files[0]}:{share},{files[1]}:{1.0 - share:.2f}",
    )
    mixed = [made(form) for form in forms]
    for fitted, held_out in mixed:
        assert (len(fitted), len(held_out)) == (8, 2)
        assert n_from_first(fitted) == round(8 * share)
        assert abs(n_from_first(held_out) - 2 * share) < 1
    assert len({fitted.digest for fitted, _ in mixed}) == 1


def test_the_seed_decides_the_order_alone(files: tuple[Path, Path]) -> None:
    source = {files[0]: 0.5, files[1]: 0.5}
    first, again, other = (made(source, seed=seed)[0] for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert Counter(map(tuple, first.ids.tolist())) == Counter(map(tuple, other.ids.tolist()))
    # The sequences of one source do not stand together.
    from_first = (first.ids < 6).all(1)
    assert int((from_first[1:] != from_first[:-1]).sum()) > 1


def test_too_few_sequences_and_too_little_text_raise(files: tuple[Path, Path]) -> None:
    with pytest.raises(CalibrationError, match=r"b\.txt has a share of 0.1 and gets none of 4 sequences; ask for more"):
        made({files[0]: 0.9, files[1]: 0.1}, samples=4)
    files[1].write_text("w6 " * 30, encoding="utf-8")
    with pytest.raises(
        CalibrationError, match=r"b\.txt gives 2 sequences of 12 tokens, and its share is 4 of 12; give"
    ):
        made({files[0]: 0.5, files[1]: 0.5}, held_out=0)


def test_thirds_may_be_rounded() -> None:
    mixture = find_source("a.txt:0.33,b.txt:0.33,c.txt:0.33")
    assert isinstance(mixture, MixedSources)
    assert sum(mixture.shares) == pytest.approx(1.0)
    assert str(mixture) == "a.txt:0.3333,b.txt:0.3333,c.txt:0.3333"


def test_a_report_names_sources_shares_and_hashes(files: tuple[Path, Path]) -> None:
    model = tiny_llama()
    source = {files[0]: 0.5, "built-in": 0.25, "generated": 0.25}
    pipeline = IsolatedFFNPipeline(model, tokenizer(), calibration=CalibrationText(source, 8, 16))
    pipeline.run()
    assert pipeline.report is not None
    said = pipeline.report.calibration
    assert [entry["share"] for entry in said["sources"]] == [0.5, 0.25, 0.25]
    assert [entry["sequences"] for entry in said["sources"]] == [4, 2, 2]
    assert said["source"].startswith("4 of file a.txt, 2 of built-in")
    hashes = {entry["sha256_of_tokens"] for entry in said["sources"]} | {said["sha256_of_tokens"]}
    assert len(hashes) == 4


def test_a_mixture_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llmrank.save(tmp_path / "model", tiny_llama(), spelling_tokenizer())
    (tmp_path / "cats.txt").write_text("the cat sat on the mat " * 60, encoding="utf-8")
    (tmp_path / "mats.jsonl").write_text(json.dumps({"text": "a mat " * 200}), encoding="utf-8")
    mixture = f"{tmp_path / 'cats.txt'}:0.75,{tmp_path / 'mats.jsonl'}:0.25"
    command = ("prune", tmp_path / "model", "--output", tmp_path / "pruned")
    assert run(*command, "--calibration", mixture.replace("0.25", "0.5"), *SHORT) == 2
    message = capsys.readouterr().err
    assert "shares must be above 0 and add up to 1" in message
    assert "got 1.25" in message
    length = ("--samples", "4", "--sequence-length", "16")
    assert run(*command, "--calibration", mixture, *length) == 0
    report = json.loads((tmp_path / "pruned" / "report.json").read_text(encoding="utf-8"))
    assert [entry["share"] for entry in report["calibration"]["sources"]] == [0.75, 0.25]
    assert [entry["sequences"] for entry in report["calibration"]["sources"]] == [3, 1]


@pytest.mark.parametrize("written", ["generated:0.5,built-in:0.5", "auto:0.5,built-in:0.5", "generated"])
def test_a_model_on_disk_writes_no_part_of_a_mixture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str
) -> None:
    command = ("prune", "./nowhere", "--output", tmp_path / "pruned", "--low-memory", "--calibration", written)
    assert run(*command) == 2
    assert "the model would be read from disk for every token" in capsys.readouterr().err
