"""The folder of a sweep: its settings, one line for every measured row, and the calibration of every model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphs import GraphError
from llmrank.errors import OptionError
from llmrank.execution.json_files import checked_json, parse_checked_json
from llmrank.execution.work_directory import RUN_FILE, WorkDirectory, holds_run, read_run
from llmrank.file_contents import NUMBER, check_fields, refused_unless_sound

__all__ = ["IDENTITIES", "ROWS", "SweepFolder", "read_rows"]

ROWS = "rows.jsonl"
# Largest number of characters that a message shows of the value of a setting.
LONGEST = 80
# What a user can do about a bad line.
ADVICE = "remove that line, or choose another --output"
# The setting that holds what models and datasets are known by, see llmrank.experiments.identity.
IDENTITIES = "identities"
# The fields of a row: of every row, and of one that has results. What JSON lacks, such as infinity, is written as text.
NUMBER_OR_TEXT, NOTHING = (*NUMBER, str), type(None)
TEXT = {"sha256_of_tokens": str, "sequences": int}
FIELDS = {"row": int, "model": str, "weights": str, "calibration": TEXT, "evaluation": TEXT}
OPTIONAL = {"heal": (int, NOTHING), "versions": dict, "calibration_overlap": NUMBER}
SHARE = {"value": NUMBER, "error": (*NUMBER, NOTHING)}
RESULTS = {
    **dict.fromkeys(("losses", "counts"), list),
    **dict.fromkeys(("parameters", "bytes"), int),
    "perplexity": NUMBER_OR_TEXT,
    "removed": NUMBER,
}
OPTIONAL_RESULTS = {
    "difference": {"value": NUMBER_OR_TEXT, "error": (*NUMBER_OR_TEXT, NOTHING)},
    "items": {"right": list, "accuracy": {"all": SHARE}},
    "tasks": dict,
    "speed": {"ratio": NUMBER},
}


class SweepFolder:
    """A folder that a sweep writes to. A later sweep with the same settings can go on in it, or add rows.

    A row is one pruning experiment: one line of JSON, which is on the disk when :meth:`append` returns. A process that is killed
    while it writes a line leaves an incomplete last line. The next process removes that line.

    Parameters
    ----------
    path : path-like
        A folder that does not exist yet, an empty one, or that of an earlier sweep with the same settings.
    settings : mapping
        What all rows have in common, in values that JSON can hold.

    Attributes
    ----------
    rows : list of dict
        The rows that this process and earlier ones have measured.

    Raises
    ------
    OptionError
        The folder is that of a sweep with other settings, it holds something else, or another process is at work in it.
    OSError
        The folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        resume = holds_run(self.path)
        if resume:
            try:
                earlier = read_run(self.path)
            except OptionError as error:
                raise OptionError(f"{self.path / RUN_FILE} is damaged; choose another --output") from error
            with refused_unless_sound(self.path / RUN_FILE, "choose another --output"):
                check_fields(earlier, {}, {IDENTITIES: dict})
                _check_same(self.path, earlier, json.loads(json.dumps(settings)))
            settings = earlier  # which may know less of the identities
        # A work directory locks the folder, as long as the object lives, so that no other process writes to it.
        self._directory = WorkDirectory(self.path, settings, resume=resume)
        self.rows: list[dict[str, Any]] = []
        file = self.path / ROWS
        if file.is_file():
            content = file.read_bytes()
            complete_lines = content[: content.rfind(b"\n") + 1]
            if len(complete_lines) < len(content):
                os.truncate(file, len(complete_lines))
            self.rows = read_rows(self.path)

    def find(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the row with these settings if it has been measured, else None."""
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def check_same_inputs(self, model: str, about: Mapping[str, Any]) -> None:
        """Raise an OptionError if rows of this model were measured on other weights or texts, whatever its name says."""
        digests = _digests(about)
        for row in self.rows:
            differing = [name for name, value in _digests(row).items() if value != digests[name]]
            if row["model"] == model and differing:
                raise OptionError(
                    f"row {row['row']} in {self.path} was measured with another {' and '.join(differing)} of {model}, which has "
                    "changed since; choose another --output"
                )

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        line = checked_json(row) + "\n"
        with (self.path / ROWS).open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def calibration(self, number: int) -> Path:
        """Return the directory for the calibration of the model with this number."""
        return self.path / f"calibration-{number}"


def read_rows(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the rows that a sweep has measured so far.

    Raises
    ------
    OptionError
        The directory has no file of rows, or a line is damaged.
    """
    file = Path(directory) / ROWS
    if not file.is_file():
        raise OptionError(f"there is no {ROWS} in {directory}; expected the folder of a sweep (llmrank sweep --output)")
    lines = file.read_bytes().split(b"\n")[:-1]  # what follows the last line end is not complete
    try:
        return [_row(line, f"line {number} of {file}") for number, line in enumerate(lines, start=1)]
    except GraphError as error:
        raise OptionError(f"{error}; {ADVICE}") from error


def _row(line: bytes, name: str) -> dict[str, Any]:
    """Return the row in a line."""
    row = parse_checked_json(line, name)
    with refused_unless_sound(name, ADVICE):
        is_pruned = row.get("scorer") is not None
        names = ("scorer", "pruner", "pipeline", "repair")
        method = (
            {**dict.fromkeys(names, str), "amount": NUMBER} if is_pruned else dict.fromkeys((*names, "amount"), NOTHING)
        )
        check_fields(row, FIELDS | method, OPTIONAL)
        check_fields(row.get("versions", {}), dict.fromkeys(row.get("versions", ()), str))
        if "error" in row and is_pruned:
            check_fields(row, {"error": str, "unexpected": bool})
        else:
            _check_results(row)
    return row


def _check_results(row: Mapping[str, Any]) -> None:
    """Raise an error of any type that is not an OptionError unless the results of a row are sound."""
    check_fields(row, RESULTS, OPTIONAL_RESULTS)
    losses, counts = row["losses"], row["counts"]
    if not len(losses) == len(counts) == row["evaluation"]["sequences"] or not all(type(n) is int for n in counts):
        raise ValueError(f"there are {len(losses)} losses and {len(counts)} counts of tokens")
    metrics = [each for found in row.get("tasks", {}).values() for each in found.values()]
    for metric in metrics:
        check_fields(metric, {"value": NUMBER_OR_TEXT})
    difference = row.get("difference", {"value": 0.0, "error": None})
    error = 0.0 if difference["error"] is None else difference["error"]
    values = (row["perplexity"], *losses, difference["value"], error)
    for number in (*values, *(metric["value"] for metric in metrics)):
        float(number)
    kept = row.get("items", {}).get("kept")
    if kept is not None:
        check_fields(kept, {"all": SHARE})


def _check_same(path: Path, earlier: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise an OptionError if settings differ. Identities that one side does not know, without a network, are not compared."""
    earlier, wanted = ({**settings} for settings in (earlier, wanted))
    before, now = earlier.pop(IDENTITIES, {}), wanted.pop(IDENTITIES, {})
    known = [name for name in before if before[name] and now.get(name)]
    earlier, wanted = earlier | {name: before[name] for name in known}, wanted | {name: now[name] for name in known}
    differing = sorted(name for name in {*wanted, *earlier} if wanted.get(name) != earlier.get(name))
    if differing:
        described = "; ".join(
            f"{name}: {_short(earlier.get(name))} there, {_short(wanted.get(name))} here" for name in differing
        )
        raise OptionError(
            f"{path} holds a sweep with other settings ({described}); give the settings of that sweep, or choose another --output"
        )


def _short(value: Any) -> str:
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _digests(about: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells the weights and texts of a row apart from others."""
    texts = {f"{name} text": about[name]["sha256_of_tokens"] for name in ("calibration", "evaluation")}
    return {"set of weights": about["weights"], **texts}
