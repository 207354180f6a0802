"""Attack for some minutes, and print a table of what was tried and what failed.

``python -m tests.hostile --minutes 60`` divides an hour among the attacks. ``--only files --case 17`` repeats a case.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # read when the library is imported; nobody need be asked for made-up names
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.provenance import provenance
from tests.hostile.harness import Attack, Tally, all_attacks, run_named


def table(attacks: Sequence[Attack], tallies: Sequence[Tally]) -> str:
    """Return the tallies in markdown."""
    lines = [
        "| attack | cases | failed | longest, s | memory, MiB | ended with |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for attack, tally in zip(attacks, tallies, strict=True):
        ended = "; ".join(f"{count:,} times {outcome}" for outcome, count in sorted(tally.outcomes.items()))
        counted = f"{tally.cases:,} | {len(tally.failed)} | {tally.longest:.1f} | {tally.mebibytes:.0f}"
        lines.append(f"| {attack.name}: {attack.about} | {counted} | {ended} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the attacks; the exit status is 1 if something failed."""
    every = all_attacks()
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all attacks together (%(default)s)")
    parser.add_argument("--only", default=",".join(every), help="attacks, with commas (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="attacks at the same time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this case alone")
    parser.add_argument("--output", type=Path, help="file for the table, in markdown")
    options = parser.parse_args(arguments)
    chosen = [every[name] for name in options.only.split(",")]
    seconds = 60.0 * options.minutes * options.processes / sum(attack.weight for attack in chosen)
    first, most = options.case or 0, None if options.case is None else 1
    # The longest begin first. Each attack has a new process: one may leave threads behind, which no fork of another survives.
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
        running = {
            attack.name: pool.apply_async(run_named, (attack.name, seconds * attack.weight, options.seed, first, most))
            for attack in sorted(chosen, key=lambda attack: -attack.weight)
        }
        tallies = [running[attack.name].get() for attack in chosen]
    made_by = provenance()
    versions = ", ".join(f"{name} {made_by[name]}" for name in ("llmrank", "python", "torch", "transformers", "scipy"))
    machine = f"{made_by['date']}, {made_by['cpu']}, {made_by['cores']} cores; {versions}."
    head = f"{options.minutes:g} minutes, {options.processes} at a time, seed {options.seed}, {machine}"
    shown = f"{head}\n\n{table(chosen, tallies)}"
    print(shown)
    if options.output is not None:
        options.output.write_text(shown + "\n", encoding="utf-8")
    return int(any(tally.failed for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
