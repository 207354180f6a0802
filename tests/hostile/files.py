"""Damaged files for everything that reads files: they are refused with a sentence, or what is read is sound."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import llmrank
from graphs import LayeredGraph, load_graph, load_rank, pagerank, save_graph, save_rank
from graphs.io.exchange import read_npz, write_npz
from graphs.io.shards import open_tensors
from llmrank import cli
from llmrank.evaluation.items import read_items
from llmrank.evaluation.logits import Predictor
from llmrank.experiments.sweep_result import SweepResult
from llmrank.healing import Predictions
from llmrank.inspection.difference import read_run
from llmrank.pipeline.ranking import Ranking
from llmrank.prune import GlobalPruner
from llmrank.text import read_text, tokenise
from llmrank.text.generated import Generated
from llmrank.text.sequences import Request
from tests.hostile.contents import rewrite
from tests.hostile.faults import Injector, profiled
from tests.hostile.harness import SAID, Attack, Failed, refusal, run_command
from tests.llmrank.commands import SHORT
from tests.llmrank.tiny_models import text, tiny_llama, token_ids, tokenizer, write_vocabulary

__all__ = ["FILES"]

NUMBERS = (b"-1", b"0", b"1e308", b"NaN", b"-Infinity", b"99999999999999999999", b"null", b'"x"', b"[]", b"{}", b"true")


@dataclass(frozen=True)
class Reader:
    """Something that reads a file or a directory.

    Attributes
    ----------
    name : str
    whole : Path
        What it reads, undamaged.
    read : callable
        ``read(path)`` returns what it has read, and used; or it raises.
    same : callable
        ``same(read)`` is whether that is what was written.
    opens : tuple of str
        Patterns of the files that it opens in a directory.
    has_checksums : bool
        Whether each damage can be seen. If not, what was read from a damaged file may be something else.
    """

    name: str
    whole: Path
    read: Callable[[Path], Any]
    same: Callable[[Any], bool]
    opens: tuple[str, ...] = ("*",)
    has_checksums: bool = True

    def files(self, path: Path) -> list[Path]:
        """Return the files that it opens of a copy of what it reads."""
        if path.is_file():
            return [path]
        return sorted({each for pattern in self.opens for each in path.rglob(pattern) if each.is_file()})


def command(*arguments: Any) -> None:
    """Run a command; raise an OSError with what it says if it refuses, and Failed if it ends otherwise."""
    status, said = run_command(*arguments)
    if status == 2 and "Traceback" not in said:
        raise OSError(said)
    if status != 0:
        raise Failed(f"status {status}: {said[-2000:]}")


def prepare(folder: Path) -> list[Reader]:
    """Write one of each kind of file, and read it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    corpus = folder / "corpus.txt"
    corpus.write_text(text(400), encoding="utf-8")
    model = llmrank.save(folder / "model", tiny_llama(), tokenizer())
    given = [model, "--calibration", corpus, *SHORT]
    readers = [
        *checkpoints(folder, model, given),
        *rankings(folder, model, given),
        *sweeps(folder, [*given, "--evaluate", corpus]),
        *predictions(folder, model, corpus),
        generated(folder),
        *texts(folder),
        *graph_files(folder),
        work_directory(folder, given),
    ]
    for number, reader in enumerate(readers):  # what is whole is read, and is what was written
        place = folder / f"whole-{number}"
        place.mkdir()
        if not reader.same(reader.read(copied(reader, place))):
            raise Failed(f"{reader.name}: what was read is not what was written, and it was not damaged")
    return readers


def checkpoints(folder: Path, model: Path, given: list[Any]) -> list[Reader]:
    """Write pruned checkpoints, and what is made of them."""
    uneven = llmrank.prune_model(
        tiny_llama(), None, pruner=GlobalPruner(0.4), repair=None, calibration=token_ids(6, 16)
    )
    uneven.save(folder / "uneven")
    command("prune", *given, "--output", folder / "pruned")
    vocabulary = write_vocabulary(folder / "vocabulary.gguf")
    command("export", folder / "pruned", "--tokenizer", vocabulary, "--output", folder / "pruned.gguf")
    masks = llmrank.Masks.load(folder / "pruned" / "masks.safetensors")
    report = json.loads((folder / "pruned" / "report.json").read_text(encoding="utf-8"))

    def load(path: Path) -> Any:
        loaded = llmrank.load(path, dtype="float32")
        with torch.no_grad():
            return loaded.model(input_ids=token_ids(1, 8)).logits

    def apply(path: Path) -> Any:
        command("apply", path, model, "--output", path.parent / "applied")
        return llmrank.Masks.load(path.parent / "applied" / "masks.safetensors")

    def serve(path: Path) -> Any:
        command("export", path, "--to", "vllm", "--output", path.parent / "served")
        return load_file(path.parent / "served" / "model.safetensors")

    expected = {name: load(folder / name) for name in ("pruned", "uneven", "pruned.gguf")}
    tensors = load_file(folder / "uneven" / "model.safetensors")
    weights = ("config.json", "generation_config.json", "model*", "tokenizer*", "special_tokens*")
    of_run = ("report.json", "masks.safetensors")
    loaded = [
        Reader(
            name,
            folder / each,
            load,
            lambda found, each=each: torch.equal(found, expected[each]),
            weights,
            has_checksums=False,
        )
        for name, each in (
            ("checkpoint", "pruned"),
            ("checkpoint of several widths", "uneven"),
            ("GGUF", "pruned.gguf"),
        )
    ]
    return [
        *loaded,
        Reader("masks", folder / "pruned" / "masks.safetensors", llmrank.Masks.load, lambda found: found == masks),
        Reader("masks that are applied", folder / "pruned" / "masks.safetensors", apply, lambda found: found == masks),
        Reader(
            "report of a run",
            folder / "pruned",
            read_run,
            lambda found: found.report == report and found.masks == masks,
            of_run,
            has_checksums=False,
        ),
        Reader(
            "report in a difference",
            folder / "pruned",
            lambda path: difference(path, folder / "pruned"),
            lambda found: not found["settings"] and all(layer["kappa"] == 1.0 for layer in found["layers"].values()),
            of_run,
            has_checksums=False,
        ),
        Reader(
            "report with settings",
            folder / "pruned" / "report.json",
            lambda path: parsed("prune", model, "--output", path.parent / "out", "--config", path),
            lambda found: found.samples == 2,
            has_checksums=False,
        ),
        Reader(
            "checkpoint for vLLM",
            folder / "uneven",
            serve,
            lambda found: all(torch.equal(found[name], tensor) for name, tensor in tensors.items()),
            ("config.json", "*_config.json", "model*.safetensors"),
            has_checksums=False,
        ),
    ]


def difference(path: Path, whole: Path) -> Any:
    """Return what ``llmrank diff`` writes of a run and of another."""
    output = path.parent / "difference.json"
    command("diff", path, whole, "--output", output)
    return json.loads(output.read_text(encoding="utf-8"))


def parsed(*arguments: Any) -> Any:
    """Parse the arguments of a command; raise an OSError with what it says if it refuses."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return cli.parser([str(arguments[0])]).parse_args([str(each) for each in arguments])
    except SystemExit as ended:
        raise OSError(said.getvalue()) from ended


def rankings(folder: Path, model: Path, given: list[Any]) -> list[Reader]:
    """Write a ranking."""
    command("rank", *given, "--losses", "--output", folder / "ranking")
    whole = Ranking.load(folder / "ranking")
    command("apply", folder / "ranking", model, "--output", folder / "by ranking")
    masks = llmrank.Masks.load(folder / "by ranking" / "masks.safetensors")

    def same_ranking(found: Ranking) -> bool:
        return (
            repr(found.statistics) == repr(whole.statistics)
            and found.sequences.digest == whole.sequences.digest
            and found.settings == whole.settings
            and all(torch.equal(found.scores[name], scores) for name, scores in whole.scores.items())
        )

    def apply(path: Path) -> Any:
        command("apply", path, model, "--repair", "lstsq", "--output", path.parent / "applied")
        return llmrank.Masks.load(path.parent / "applied" / "masks.safetensors")

    def plan(path: Path) -> Any:
        output = path.parent / "plan.json"
        command("plan", path, model, "--output", output)
        return json.loads(output.read_text(encoding="utf-8"))

    planned = plan(folder / "ranking")
    return [
        Reader("ranking that is planned by", folder / "ranking", plan, lambda found: found == planned),
        Reader("ranking", folder / "ranking", Ranking.load, same_ranking),
        Reader("ranking that is applied", folder / "ranking", apply, lambda found: found == masks),
        Reader(
            "ranking in a difference",
            folder / "ranking",
            lambda path: difference(path, folder / "ranking"),
            lambda found: not found["settings"] and set(found["correlations"].values()) == {1.0},
        ),
    ]


def sweeps(folder: Path, given: list[Any]) -> list[Reader]:
    """Write the directory of a sweep."""
    command("sweep", *given, "--amount", "0.2,0.4", "--output", folder / "sweep")
    rows = SweepResult.load(folder / "sweep").rows

    def show(path: Path) -> Any:
        result = SweepResult.load(path)
        result.table()
        result.warnings()
        result.errors()
        return result.rows

    def go_on(path: Path) -> Any:
        command("sweep", *given, "--amount", "0.2,0.4,0.5", "--output", path)
        return SweepResult.load(path).rows

    def same_rows(found: Any) -> bool:
        # A line that is cut off was not measured. A row that is measured again differs in its seconds.
        left = [{**row, "seconds": 0.0} for row in found[: len(rows)]]
        return left == [{**row, "seconds": 0.0} for row in rows[: len(left)]]

    return [
        Reader("sweep", folder / "sweep", show, same_rows, ("rows.jsonl",)),
        Reader("sweep that goes on", folder / "sweep", go_on, same_rows),
    ]


def predictions(folder: Path, model: Path, corpus: Path) -> list[Reader]:
    """Write the predictions of a model, for a model that was pruned."""
    short = ["--text", corpus, "--tokens", 64, "--sequence-length", 16]
    command("predict", model, *short, "--output", folder / "seen.safetensors")
    whole, pruned = Predictions.read(folder / "seen.safetensors"), tiny_llama()

    def learn(path: Path) -> Any:
        found = Predictions.read(path)
        found.check(pruned, found.tokens)
        part = found.tokens.sequences
        rows = torch.arange(len(part))
        with torch.no_grad():
            bands = Predictor(pruned).bands(part.ids, part.mask)
            for divergence, (logits, _, _) in zip(found.divergences(part.ids, part.mask, rows), bands, strict=True):
                divergence(logits)
        return found

    def same(found: Predictions) -> bool:
        names = ("top_ids", "top_log_p", "drawn_ids", "entropy")
        return all(torch.equal(getattr(found, name), getattr(whole, name)) for name in names)

    def predict(path: Path) -> Any:
        command("predict", model, *short, "--pruned", path, "--output", path.parent / "seen.safetensors")
        return Predictions.read(path.parent / "seen.safetensors")

    copy = shutil.copytree(folder / "pruned", folder / "beside" / "pruned")
    beside = predict(copy).identity()
    return [
        Reader("predictions", folder / "seen.safetensors", learn, same),
        Reader(
            "report of a calibration",
            folder / "pruned",
            predict,
            lambda found: found.identity() == beside,
            ("report.json",),
            has_checksums=False,
        ),
    ]


def generated(folder: Path) -> Reader:
    """Let a model write a text, which is kept in a cache; one that is damaged is written again."""
    request = Request(tokenizer(), 3, 16, 1, model=tiny_llama())

    def read(path: Path) -> Any:
        before = os.environ.get("LLMRANK_CACHE")
        os.environ["LLMRANK_CACHE"] = str(path)
        try:
            return Generated().sequences(request)[0].digest
        finally:
            del os.environ["LLMRANK_CACHE"]
            if before is not None:
                os.environ["LLMRANK_CACHE"] = before

    digest = read(folder / "cache")
    return Reader("text that a model wrote", folder / "cache", read, lambda found: found == digest)


def texts(folder: Path) -> list[Reader]:
    """Write texts that users write."""
    lines = [json.dumps({"kind": "fact", "prompt": f"w{k} is", "answer": " w5"}) for k in range(8)]
    (folder / "items.jsonl").write_text("\n".join(lines), "utf-8")
    chats = [json.dumps({"messages": [{"role": "user", "content": text(20)}]}) for _ in range(5)]
    (folder / "chats.jsonl").write_text("\n".join(chats), "utf-8")
    lines = [json.dumps({"text": text(20, seed=k)}) for k in range(5)]
    (folder / "documents.jsonl").write_text("\n".join(lines), "utf-8")
    speaker = tokenizer()
    speaker.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"

    def read_chats(path: Path) -> Any:
        return tokenise(path, speaker, 4, 8).digest

    items, chat = read_items(folder / "items.jsonl"), read_chats(folder / "chats.jsonl")
    documents = read_text(str(folder / "documents.jsonl"))
    return [
        Reader("items", folder / "items.jsonl", read_items, lambda found: found == items, has_checksums=False),
        Reader("chats", folder / "chats.jsonl", read_chats, lambda found: found == chat, has_checksums=False),
        Reader(
            "documents",
            folder / "documents.jsonl",
            lambda path: read_text(str(path)),
            lambda found: found == documents,
            has_checksums=False,
        ),
    ]


def graph_files(folder: Path) -> list[Reader]:
    """Write a graph, its rank, and weights that stay on disk."""
    graph = LayeredGraph.from_weights(
        [[[1.0, 2.0], [0.5, 0.0], [3.0, 1.0]], [[1.0, 0.5, 0.25]]], [1, 2], [[1, 1, 2], [3]]
    )
    save_graph(graph, folder / "graph.safetensors")
    write_npz(graph, folder / "graph.npz")
    rank = pagerank(graph)
    save_rank(rank, folder / "rank.safetensors")
    weights = load_file(folder / "model" / "model.safetensors")

    def same_graph(found: LayeredGraph) -> bool:
        return (found.to_scipy() != graph.to_scipy()).nnz == 0 and all(
            map(np.array_equal, found.activations, graph.activations)
        )

    return [
        Reader("graph", folder / "graph.safetensors", load_graph, same_graph),
        Reader("graph in npz", folder / "graph.npz", read_npz, same_graph),
        Reader(
            "rank", folder / "rank.safetensors", load_rank, lambda found: np.array_equal(found.stacked, rank.stacked)
        ),
        Reader(
            "weights on disk",
            folder / "model" / "model.safetensors",
            lambda path: {name: tensor.float().sum() for name, tensor in open_tensors(path).items()},
            lambda found: all(found[name] == tensor.sum() for name, tensor in weights.items()),
            has_checksums=False,
        ),
    ]


def work_directory(folder: Path, given: list[Any]) -> Reader:
    """Leave the work directory of a run that was interrupted."""
    work = interrupted(folder, given)
    expected = load_file(folder / "by block" / "model.safetensors")

    def resume(path: Path) -> Any:
        output = path.parent / "resumed"
        moved = path.parent / f"{output.name}{work.name.removeprefix('stopped')}"
        shutil.move(path, moved)
        command("prune", *given, "--low-memory", "--resume", "--output", output)
        return load_file(output / "model.safetensors")

    def same_weights(found: Any) -> bool:
        return all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    return Reader("work directory", work, resume, same_weights, ("*.json", "*.safetensors", "*states*"))


def interrupted(folder: Path, given: list[Any]) -> Path:
    """Return the work directory of a run with little memory that was interrupted in its repair."""
    counter = Injector()
    with profiled(counter):
        command("prune", *given, "--low-memory", "--output", folder / "by block")
    before = set(folder.iterdir())
    with profiled(Injector(int(0.8 * counter.calls), OSError)):
        run_command("prune", *given, "--low-memory", "--output", folder / "stopped")
    (work,) = (path for path in set(folder.iterdir()) - before if path.is_dir())
    return work


def damage(path: Path, rng: random.Random) -> str:
    """Damage one file, and return how."""
    data = bytearray(path.read_bytes())
    ways = ["cut", "flip", "zeros", "longer", "empty", "random", "header", "numbers", "gone", "directory", "swap"]
    way = rng.choice(ways)
    place = rng.randrange(len(data) + 1)
    if way == "cut":
        del data[place:]
    elif way == "flip":
        for _ in range(rng.choice([1, 1, 8])):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == "zeros":
        data[place : place + 64] = bytes(min(64, len(data) - place))
    elif way == "longer":
        data += rng.randbytes(rng.randint(1, 64))
    elif way == "empty":
        data.clear()
    elif way == "random":
        data = bytearray(rng.randbytes(rng.randint(1, 256)))
    elif way == "header" and len(data) > 8:  # the length of a header of safetensors
        data[:8] = struct.pack("<Q", rng.choice([0, 1, len(data), 2**31, 2**40, 2**63, 2**64 - 1]))
    elif way == "numbers":
        digits = [k for k, byte in enumerate(data[:100_000]) if 48 <= byte <= 57]
        for _ in range(rng.choice([1, 1, 3])):
            if digits:
                start = rng.choice(digits)
                data[start : start + 1] = rng.choice(NUMBERS)
    elif way == "swap" and len(data) > 2:
        other = rng.randrange(len(data))
        data[place : place + 16], data[other : other + 16] = data[other : other + 16], data[place : place + 16]
    elif way in ("gone", "directory"):
        path.unlink()
        if way == "directory":
            path.mkdir()
        return way
    path.write_bytes(bytes(data))
    return way


def copied(reader: Reader, folder: Path) -> Path:
    """Copy what is read into a folder."""
    path = folder / reader.whole.name
    if reader.whole.is_dir():
        shutil.copytree(reader.whole, path)
    else:
        shutil.copy(reader.whole, path)
    return path


def case(readers: list[Reader], rng: random.Random, folder: Path) -> str:
    """Read one damaged file."""
    reader = rng.choice(readers)
    path = copied(reader, folder)
    damaged = rng.choice(reader.files(path))
    # Where a checksum is wrong, what stands behind its comparison is never reached.
    rewritten = rewrite(damaged, rng) if rng.random() < 0.4 else ""
    way = rewritten or damage(damaged, rng)
    what = f"{reader.name}: {way} {damaged.relative_to(folder)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = reader.read(path)
    except SAID as error:
        return refusal(error)
    except Failed as failed:
        raise Failed(f"{what}: {failed}") from failed
    except Exception as error:
        raise Failed(f"{what}: {type(error).__name__}: {error}") from error
    if rewritten:
        return "read what was rewritten"
    if reader.has_checksums and not reader.same(found):
        raise Failed(f"{what}: what was read is not what was written")
    return "read"


FILES = Attack("files", "damaged files of every kind that is read", prepare, case)
