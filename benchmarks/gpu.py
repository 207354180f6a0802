"""All that wants a GPU, in ten minutes on one card: the tests that are skipped without one, and the benchmarks.

Run it as ``python -m benchmarks.gpu --model MODEL`` where PyTorch sees a CUDA device. The results are written to a folder that
bears the card's name, with a page that says what passed and how long it took. What the time does not suffice for is left out,
and the page says so. The most informative parts run first.
"""

from __future__ import annotations

import argparse
import re
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


@dataclass(frozen=True)
class Outcome:
    """How a part of the run ended.

    Attributes
    ----------
    part : str
        "tests", or the name of a benchmark.
    ended : str
        "passed", "failed", "ran out of time" or "no time was left".
    seconds : float
    said : str
        The last lines of what it printed.
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
    begun = perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=seconds, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(part, "ran out of time", round(perf_counter() - begun, 1))
    said = (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip().splitlines()[-LAST_LINES:]
    return Outcome(part, "failed" if done.returncode else "passed", round(perf_counter() - begun, 1), "\n".join(said))


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
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder that holds that of the card")
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(
            "PyTorch sees no CUDA device; run it where torch.cuda.is_available(), or try it with --device cpu --quick"
        )
    card = card_of(options.device)
    folder = options.output / re.sub(r"\W+", "-", card).strip("-").lower()
    folder.mkdir(parents=True, exist_ok=True)
    ends, parts = perf_counter() + 60 * options.minutes, []
    for part, command in commands(options.device, folder, options.model, quick=options.quick).items():
        parts.append(run(part, command, ends - perf_counter()))
        print(parts[-1].part, parts[-1].ended, f"{parts[-1].seconds:.0f} s", flush=True)
        # Written after each part, because a card that was lent may be taken away.
        results = {
            "provenance": provenance(seed=0),
            "card": card,
            "quick": options.quick,
            "parts": [asdict(each) for each in parts],
        }
        write_results(folder / "run.json", results, table)
    if any(part.ended == "failed" for part in parts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
