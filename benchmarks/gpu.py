"""All that wants a GPU, in ten minutes on one card: the tests that are skipped without one, and the benchmarks.

Run it as ``python -m benchmarks.gpu --model MODEL`` where PyTorch sees a CUDA device. The results are written to a folder that
bears the card's name, with a page that says what passed and how long it took. A part may take a third of the time; one that
takes longer is stopped, and the page says so. The most informative parts run first.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.provenance import provenance
from benchmarks.result_files import write_results

RESULTS = Path(__file__).parent / "results" / "gpu"
ROOT = Path(__file__).parents[1]
# The benchmarks, and options by which each takes a minute or two.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "ranking": ("--repeats", "5"),
    "crossover": ("--repeats", "5"),
    "compact": ("--rounds", "3", "--amounts", "0.3"),
    "speed": ("--repeats", "1", "--budget", "1"),
}
# The benchmarks that find the device themselves.
FIND_DEVICE = ("compact",)
# The last lines of what a part prints say how it ended.
LAST_LINES = 3
# The share of the time that a part may take, so that one that hangs leaves time for others.
LARGEST_SHARE = 1 / 3


@dataclass(frozen=True)
class Outcome:
    """How a part of the run ended.

    Attributes
    ----------
    part : str
        "tests", or the name of a benchmark.
    ended : str
        "passed", "skipped" (no test found what it needs), "failed", "ran out of time" or "no time was left".
    seconds : float
    said : str
        The last lines of what it printed, without directories of the machine.
    """

    part: str
    ended: str
    seconds: float = 0.0
    said: str = ""


def commands(device: str, folder: Path, model: str | None, *, quick: bool) -> dict[str, list[str]]:
    """Return the command of each part, by its name."""
    found = {"tests": [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]}
    for name, options in BENCHMARKS.items():
        own = ["--quick"] if quick else [*options, "--output", str(folder / f"{name}.json")]
        own += ["--model", model] if model and name != "crossover" else []
        own += [] if name in FIND_DEVICE else ["--device", device]
        found[name] = [sys.executable, "-m", f"benchmarks.{name}", *own]
    return found


def run(part: str, command: Sequence[str], seconds: float) -> Outcome:
    """Run a part for at most this time."""
    if seconds <= 0:
        return Outcome(part, "no time was left")
    begun, pipe = perf_counter(), subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=seconds)
            ended = "failed" if process.returncode else "passed"
        except subprocess.TimeoutExpired:
            os.killpg(
                process.pid, signal.SIGKILL
            )  # also the processes that it has started, which would go on on the card
            out, err = process.communicate()
            ended = "ran out of time"
    if part == "tests" and ended == "passed" and not re.search(r"\d+ passed", out):
        ended = "skipped"
    said = (out if ended in ("passed", "skipped") else out + err).strip().splitlines()[-LAST_LINES:]
    return Outcome(part, ended, round(perf_counter() - begun, 1), without_directories("\n".join(said)))


def without_directories(text: str) -> str:
    """Take the directories of the machine out of a text that is published."""
    for directory, name in ((str(ROOT), "."), (sys.prefix, "ENVIRONMENT"), (str(Path.home()), "~")):
        text = text.replace(directory, name)
    return text


def table(results: dict[str, Any]) -> str:
    """Return how the parts ended, in markdown."""
    machine = results["provenance"]
    versions = f"torch {machine['torch']}, transformers {machine['transformers']}, {machine['date']}"
    lines = [f"{results['card']}, beside {machine['cpu']}, {machine['cores']} cores. {versions}.", ""]
    lines += ["| part | ended | seconds | last line |", "| --- | --- | ---: | --- |"]
    for part in results["parts"]:
        name, measured = part["part"], part["ended"] == "passed" and part["part"] in BENCHMARKS
        last = "" if measured else (part["said"].splitlines() or [""])[-1].replace("|", "\\|")
        there = f"[{name}]({name}.md)" if measured and not results["quick"] else name
        lines.append(f"| {there} | {part['ended']} | {part['seconds']:.0f} | {last} |")
    return "\n".join(lines) + "\n"


def card_of(device: str) -> str:
    """Return the name of a device, by which its results are told from others."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--device", default="cuda", help="a torch device (%(default)s); cpu tries the script")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small random models only, to try the script")
    parser.add_argument("--output", type=Path, help="the folder that holds that of the card (default results/gpu)")
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(
            "PyTorch sees no CUDA device; run it where torch.cuda.is_available(), or try it with --device cpu --quick"
        )
    if options.output is None:
        if options.quick:
            parser.error("--quick tries the script, and is no result; name a folder for it with --output")
        options.output = RESULTS
    # The parts run in the checkout, wherever this was started.
    model = str(Path(options.model).resolve()) if options.model and Path(options.model).exists() else options.model
    card = card_of(options.device)
    folder = options.output.resolve() / re.sub(r"\W+", "-", card).strip("-").lower()
    folder.mkdir(parents=True, exist_ok=True)
    seconds, parts = 60 * options.minutes, []
    ends = perf_counter() + seconds
    for part, command in commands(options.device, folder, model, quick=options.quick).items():
        parts.append(run(part, command, min(ends - perf_counter(), LARGEST_SHARE * seconds)))
        print(parts[-1].part, parts[-1].ended, f"{parts[-1].seconds:.0f} s", flush=True)
        # Written after each part, because a card that was lent may be taken away.
        results = {
            "provenance": provenance(seed=0),
            "card": card,
            "quick": options.quick,
            "parts": [asdict(each) for each in parts],
        }
        write_results(folder / "run.json", results, table)
    if any(part.ended != "passed" for part in parts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
