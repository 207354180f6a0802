"""Damaged files for everything that reads files: they are refused with a sentence, or what is read is sound."""

from __future__ import annotations

import json
import random
import shutil
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import llmrank
from graphs import LayeredGraph, load_graph, load_rank, pagerank, save_graph, save_rank
from llmrank.evaluation.items import read_items
from llmrank.experiments.sweep_result import SweepResult
from llmrank.healing import Predictions
from llmrank.inspection.difference import read_run
from llmrank.pipeline.ranking import Ranking
from llmrank.prune import GlobalPruner
from llmrank.text import read_text
from tests.hostile.faults import Injector, profiled
from tests.hostile.harness import SAID, Attack, Fell, refusal, run_command
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
        ``read(path)`` returns what it has read, or raises.
    sound : callable
        ``sound(read)`` is whether that is what was written, or cannot be told from it.
    """

    name: str
    whole: Path
    read: Callable[[Path], Any]
    sound: Callable[[Any], bool] = lambda _: True


def command(*arguments: Any) -> None:
    """Run a command; raise an OSError with what it says if it refuses, and Fell if it ends otherwise."""
    status, said = run_command(*arguments)
    if status == 2 and "Traceback" not in said:
        raise OSError(said)
    if status != 0:
        raise Fell(f"status {status}: {said[-2000:]}")


def computes(loaded: Any) -> bool:
    """Whether a model that was loaded computes; its numbers may be others, because a checkpoint has no checksums."""
    with torch.no_grad():
        return bool(loaded.model(input_ids=token_ids(1, 8)).logits.shape == (1, 8, 64))


def prepare(folder: Path) -> list[Reader]:
    """Write one of each kind of file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    corpus = folder / "corpus.txt"
    corpus.write_text(text(400), encoding="utf-8")
    model = llmrank.save(folder / "model", tiny_llama(), tokenizer())
    given = [model, "--calibration", corpus, *SHORT]
    uneven = llmrank.prune_model(
        tiny_llama(), None, pruner=GlobalPruner(0.4), repair=None, calibration=token_ids(6, 16)
    )
    uneven.save(folder / "uneven")
    command("prune", *given, "--output", folder / "pruned")
    command("rank", *given, "--output", folder / "ranking")
    command("sweep", *given, "--evaluate", corpus, "--amount", "0.2,0.4", "--output", folder / "sweep")
    short = ["--text", corpus, "--tokens", 64, "--sequence-length", 16]
    command("predict", model, *short, "--output", folder / "seen.safetensors")
    masks = llmrank.Masks.load(folder / "pruned" / "masks.safetensors")
    graph = LayeredGraph.from_weights(
        [[[1.0, 2.0], [0.5, 0.0], [3.0, 1.0]], [[1.0, 0.5, 0.25]]], [1, 2], [[1, 1, 2], [3]]
    )
    save_graph(graph, folder / "graph.safetensors")
    rank = pagerank(graph)
    save_rank(rank, folder / "rank.safetensors")
    (folder / "items.jsonl").write_text(
        "\n".join(json.dumps({"kind": "fact", "prompt": f"w{k} is", "answer": " w5"}) for k in range(8)), "utf-8"
    )
    chats = [json.dumps({"messages": [{"role": "user", "content": text(20)}]}) for _ in range(5)]
    (folder / "chats.jsonl").write_text("\n".join(chats), "utf-8")

    def same_masks(found: Any) -> bool:
        return all(torch.equal(found[name], mask) for name, mask in masks.items()) and found.keys() == masks.keys()

    def same_graph(found: LayeredGraph) -> bool:
        return (found.to_scipy() != graph.to_scipy()).nnz == 0 and all(
            map(np.array_equal, found.activations, graph.activations)
        )

    statistics = Ranking.load(folder / "ranking").statistics

    def same_ranking(found: Ranking) -> bool:
        return repr(found.statistics) == repr(statistics)

    readers = [
        Reader("checkpoint", folder / "pruned", lambda path: llmrank.load(path, dtype="float32"), computes),
        Reader(
            "checkpoint of several widths",
            folder / "uneven",
            lambda path: llmrank.load(path, dtype="float32"),
            computes,
        ),
        Reader("masks", folder / "pruned" / "masks.safetensors", llmrank.Masks.load, same_masks),
        Reader("ranking", folder / "ranking", Ranking.load, same_ranking),
        Reader("sweep", folder / "sweep", lambda path: SweepResult.load(path).table()),
        Reader("graph", folder / "graph.safetensors", load_graph, same_graph),
        Reader(
            "rank", folder / "rank.safetensors", load_rank, lambda found: np.array_equal(found.stacked, rank.stacked)
        ),
        Reader("predictions", folder / "seen.safetensors", Predictions.read),
        Reader("report of a run", folder / "pruned", read_run),
        Reader("items", folder / "items.jsonl", read_items),
        Reader("chats", folder / "chats.jsonl", lambda path: read_text(str(path))),
    ]
    vocabulary = write_vocabulary(folder / "vocabulary.gguf")
    command("export", folder / "pruned", "--tokenizer", vocabulary, "--output", folder / "pruned.gguf")
    readers.append(Reader("GGUF", folder / "pruned.gguf", lambda path: llmrank.load(path, dtype="float32"), computes))
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

    readers.append(Reader("work directory", work, resume, same_weights))
    return readers


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


def case(readers: list[Reader], rng: random.Random, folder: Path) -> str:
    """Read one damaged file."""
    reader = rng.choice(readers)
    path = folder / reader.whole.name
    if reader.whole.is_dir():
        shutil.copytree(reader.whole, path)
        files = sorted(each for each in path.rglob("*") if each.is_file())
    else:
        shutil.copy(reader.whole, path)
        files = [path]
    damaged = rng.choice(files)
    way = damage(damaged, rng)
    what = f"{reader.name}: {way} {damaged.relative_to(folder)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = reader.read(path)
    except SAID as error:
        return refusal(error)
    except Fell as fell:
        raise Fell(f"{what}: {fell}") from fell
    except Exception as error:
        raise Fell(f"{what}: {type(error).__name__}: {error}") from error
    if not reader.sound(found):
        raise Fell(f"{what}: what was read is not what was written")
    return "read"


FILES = Attack("files", "damaged files of every kind that is read", prepare, case)
