"""How far masks and repaired weights depend on threads, processes, batches, memory and precision, and whether runs repeat.

Run it as ``python -m benchmarks.reproducibility --model A``. Two tiny random models, a Llama and a mixture of experts, and the
given models are pruned by the default settings, calibrated on a short text. Each setting is run in a process (or processes) of
its own, and what came out is compared with another setting, bit for bit and by numbers. Each given model also writes a short
text with every number of threads. Times are not measured, so the machine need not be idle; if it is not, set
OMP_WAIT_POLICY=PASSIVE.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.multiprocessing.spawn import spawn

from benchmarks.provenance import provenance
from benchmarks.result_files import write
from benchmarks.tiny_configs import LENGTH, VOCABULARY, tiny_config
from llmrank import load
from llmrank.pipeline.descriptions import model_source
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.registry import make_recipe
from llmrank.pipeline.texts import CalibrationText
from llmrank.text.generation import generate_text

RESULTS = Path(__file__).parent / "results"
# Tiny models: model types of transformers.
TINY = ("llama", "qwen2_moe")
SAMPLES, TOKENS, AMOUNT = 4, 256, 0.3
TEXT_TOKENS, THREADS = 64, (1, 2, 4)


@dataclass(frozen=True)
class Setting:
    """How a run computes, and the name of the setting that it is compared with."""

    name: str
    compared_with: str = "1 thread"
    threads: int = 1
    batch_size: int = 1
    processes: int = 1
    low_memory: bool = False
    dtype: str = "float32"


SETTINGS = (
    Setting("1 thread"),
    Setting("1 thread, again"),
    Setting("2 threads", threads=2),
    Setting("2 threads, again", "2 threads", threads=2),
    Setting("4 threads", threads=4),
    Setting("2 sequences in a batch", batch_size=2),
    Setting("4 sequences in a batch", batch_size=4),
    Setting("2 processes", processes=2),
    Setting("low memory", low_memory=True),
    Setting("bfloat16", dtype="bfloat16"),
    Setting("bfloat16, 2 threads", "bfloat16", threads=2, dtype="bfloat16"),
    Setting("bfloat16, 4 sequences in a batch", "bfloat16", batch_size=4, dtype="bfloat16"),
)


def loaded(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Return a model and its tokenizer; a tiny model has none."""
    if name not in TINY:
        found = load(name, dtype=dtype)
        return found.model, found.tokenizer
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(name)).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(getattr(torch, dtype)), None


def text_for(name: str, batch_size: int) -> CalibrationText:
    """Return the calibration text: the built-in one, or random tokens for a tiny model."""
    if name not in TINY:
        return CalibrationText("built-in", SAMPLES, TOKENS, batch_size)
    ids = torch.randint(3, VOCABULARY, (2 * SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    return CalibrationText(ids, sequence_length=LENGTH, batch_size=batch_size)


def prune(rank: int, name: str, setting: Setting, port: int, folder: Path) -> None:
    """Prune a model in this process, and let process 0 write what came out."""
    torch.set_num_threads(setting.threads)
    if setting.processes > 1:
        launched = {"RANK": rank, "WORLD_SIZE": setting.processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {key: str(value) for key, value in launched.items()}
    model, tokenizer = loaded(name, setting.dtype)
    recipe = make_recipe(amount=AMOUNT, calibration=text_for(name, setting.batch_size))
    run = PruningRun(
        model, tokenizer, recipe, undoable=False, work_directory=folder / "work" if setting.low_memory else None
    )
    run.run()
    if rank or run.masks is None or run.report is None:
        return
    outcome = {
        "source": f"tiny {name}" if name in TINY else model_source(model),
        "masks": dict(run.masks),
        # Of every isolated graph, layer 1 holds the neurons.
        "scores": torch.cat([torch.from_numpy(each.scores[1]).double() for each in run.ranks]),
        "weights": model.state_dict(),
        "scorer": run.report.choice and run.report.choice["chosen"],
        "close": run.report.neurons["close_decisions"],
    }
    torch.save(outcome, folder / "outcome.pt")


def write_text(_rank: int, name: str, threads: int, _port: int, folder: Path) -> None:
    """Let a model write calibration text in this process."""
    torch.set_num_threads(threads)
    model, tokenizer = loaded(name)
    torch.save(generate_text(model, tokenizer, SAMPLES, TEXT_TOKENS).ids, folder / "outcome.pt")


def outcome_of(action: Callable[..., None], arguments: tuple[Any, ...], threads: int = 1, processes: int = 1) -> Any:
    """Call ``action(rank, *arguments, port, folder)`` in new processes, and return what process 0 wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as directory:
        spawn(action, (*arguments, port, Path(directory)), nprocs=processes)
        return torch.load(Path(directory) / "outcome.pt", weights_only=True)


def compared(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Compare what two runs left: differing masks (in neurons), and the largest relative differences of scores and weights."""
    masks, other_masks = found["masks"], expected["masks"]
    weights, other_weights = found["weights"], expected["weights"]
    differing = sum(int((masks[name] != mask).sum()) for name, mask in other_masks.items())
    score_change = (found["scores"] - expected["scores"]).abs() / expected["scores"].abs().clamp_min(1e-300)
    changes = None
    if not differing:
        pairs = [(weights[name].double(), value.double()) for name, value in other_weights.items()]
        changes = max(float((one - two).norm() / two.norm().clamp_min(1e-300)) for one, two in pairs)
    return {
        "neurons": len(expected["scores"]),
        "masks_differ": differing,
        "scores_differ": float(score_change.max()),
        "weights_differ": changes,
        "same_scorer": found["scorer"] == expected["scorer"],
        "same_bits": not differing and all(torch.equal(weights[name], value) for name, value in other_weights.items()),
    }


def study(name: str) -> list[dict[str, Any]]:
    """Prune a model in every setting, and compare."""
    outcomes: dict[str, Any] = {}
    rows = []
    for setting in SETTINGS:
        found = outcome_of(prune, (name, setting), setting.threads, setting.processes)
        outcomes[setting.name] = found
        row = {"model": found["source"], **asdict(setting), "close_decisions": found["close"]}
        if setting.name != setting.compared_with:
            row |= compared(found, outcomes[setting.compared_with])
        rows.append(row)
        print(row, flush=True)
    return rows


def texts(name: str) -> dict[str, Any]:
    """Let a model write a text with each number of threads, and count the tokens that differ from those of one thread."""
    one, *others = (outcome_of(write_text, (name, threads), threads) for threads in THREADS)
    differing = {f"{n} threads": int((ids != one).sum()) for n, ids in zip(THREADS[1:], others, strict=True)}
    found = {"model": Path(name).name, "tokens": one.numel(), "differing": differing}
    print(found, flush=True)
    return found


def table(results: dict[str, Any]) -> str:
    """The results in markdown."""
    machine = results["provenance"]
    versions = f"{machine['cpu']} ({machine['vector_instructions']}), torch {machine['torch']}, {machine['blas']}"
    explained = (
        "Each run against another one: neurons whose masks differ, the largest relative difference of a neuron's score, and the "
        "largest Frobenius norm of a difference between weights, as a share of theirs (if the masks are the same). Close: "
        "neurons whose masks would differ if round-off moved every score against them."
    )
    lines = [
        f"{versions}. {explained}",
        "",
        "| model | run | compared with | bit for bit | masks | scores | weights | close |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        if "same_bits" not in row:
            continue
        changes = "" if row["weights_differ"] is None else f"{row['weights_differ']:.1e}"
        bits = "yes" if row["same_bits"] else "no" if row["same_scorer"] else "no, another scorer was chosen"
        lines.append(
            f"| {row['model']} | {row['name']} | {row['compared_with']} | {bits} | {row['masks_differ']} of "
            f"{row['neurons']:,} | {row['scores_differ']:.1e} | {changes} | {row['close_decisions']['neurons']} |"
        )
    lines += [
        "",
        "| text that a model writes | tokens | differ with 2 threads | with 4 |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['model']} | {row['tokens']} | {' | '.join(map(str, row['differing'].values()))} |"
        for row in results["texts"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", default=[], help="a model to prune beside the tiny ones; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="the tiny Llama alone, printed and not written")
    options = parser.parse_args()
    names = TINY[:1] if options.quick else (*TINY, *options.model)
    protocol = {"samples": SAMPLES, "tokens": TOKENS, "amount": AMOUNT}
    results: dict[str, Any] = {"provenance": provenance(), "protocol": protocol, "rows": [], "texts": []}
    for name in names:
        results["rows"] += study(name)
        results["texts"] += [] if name in TINY else [texts(name)]
        if not options.quick:
            write(RESULTS / "reproducibility.json", results)
            write(RESULTS / "reproducibility.md", table(results))


if __name__ == "__main__":
    main()
