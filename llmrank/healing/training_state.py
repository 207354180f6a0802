"""What a directory keeps of a training that may go on: it is read here, and refused if it is damaged or another training's."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import TrainerState

from graphs.io.replacement import LOCK, remove_leftovers, take_lock
from llmrank.bounded_files import read_bounded
from llmrank.errors import LLMRankError, OptionError, is_out_of_memory
from llmrank.healing.ledger import LedgerRow, best_row

__all__ = [
    "BEST",
    "LEDGER",
    "SETTINGS",
    "last_checkpoint",
    "locked",
    "refused_if_damaged",
    "rows_in",
]

# The rows so far, the weights of the best of them, and what tells this training from others.
LEDGER, BEST, SETTINGS = "ledger.json", "best.safetensors", "settings.json"


def _check_directory(directory: Path, run: Any) -> None:
    """Refuse a directory that holds anything but the state of this training; what a killed process has left there is removed."""
    for name in (SETTINGS, BEST, LEDGER):
        remove_leftovers(directory, name)
    path = directory / SETTINGS
    if path.is_file():
        with refused_if_damaged(directory):
            noted = json.loads(read_bounded(path))
        if noted != run:
            raise OptionError(
                f"{directory} keeps the state of a training of other models, or with other settings or another text; name "
                "another directory"
            )
    elif {each.name for each in directory.iterdir()} - {LOCK}:
        raise OptionError(f"{directory} holds other files; name a directory that is absent or empty")


@contextmanager
def locked(directory: Path, run: Any) -> Iterator[None]:
    """Check a directory, and keep other trainings out of it within the context, where the file system has locks.

    Raises
    ------
    OptionError
        Another training is at work in the directory; or the directory holds something else than the state of this training.
    """
    lock, is_ours = None, False
    try:
        if not (directory / LOCK).exists():
            _check_directory(directory, run)  # before anything is written to it
        lock = take_lock(directory)
        if lock is None:
            raise OptionError(
                f"another training is at work in {directory}; wait until it has ended, or name another directory"
            )
        _check_directory(directory, run)  # another training may have begun and ended before the directory was locked
        is_ours = True
        yield
    finally:
        if is_ours:
            with suppress(OSError):
                (directory / LOCK).unlink()
        if lock is not None:
            os.close(lock)


@contextmanager
def refused_if_damaged(directory: Path) -> Iterator[None]:
    """Inside, any error of reading the state of a training is an OptionError, unless the system or the memory is its reason."""
    try:
        yield
    except Exception as error:  # whatever the readers of the Trainer may raise
        # torch calls a cut file an invalid argument of the system.
        is_of_file = isinstance(error, FileNotFoundError) or getattr(error, "errno", None) == errno.EINVAL
        if (isinstance(error, (OSError, LLMRankError)) and not is_of_file) or is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise OptionError(
            f"{directory} keeps a state of a training that is damaged ({type(error).__name__}: {reason}); name another "
            "directory, or delete it and begin again"
        ) from error


def last_checkpoint(work: Path) -> str | None:
    """Return the last complete state of the Trainer, which writes its own file last; None if there is none."""
    states = {
        path.parent.name.removeprefix("checkpoint-"): path for path in work.glob("checkpoint-*/trainer_state.json")
    }
    steps = {int(name): path for name, path in states.items() if name.isdecimal()}
    for step, path in sorted(steps.items(), reverse=True):
        with refused_if_damaged(work):
            try:
                state = json.loads(read_bounded(path))
            except ValueError:  # it is cut: the process was killed while the Trainer wrote it
                continue
            if TrainerState(**state).global_step != step:
                raise ValueError(f"{path} is not of step {step}")
        return str(path.parent)
    return None


def rows_in(directory: Path, kinds: list[str], parameters: dict[str, torch.Tensor]) -> list[LedgerRow]:
    """Return the rows in the ledger of a directory; none if it has none.

    It is refused if they are not of these kinds of held-out text, or if the best weights, which are not read completely, do not
    have the shapes of these parameters.
    """
    ledger, best = directory / LEDGER, directory / BEST
    with refused_if_damaged(directory):
        rows = [LedgerRow.of_dict(row) for row in json.loads(read_bounded(ledger))] if ledger.is_file() else []
        for row in rows:
            if [*row.closeness] != kinds:
                raise ValueError(f"a row of {LEDGER} has other texts than {', '.join(kinds)}")
            if not math.isfinite(row.step + row.tokens + row.seconds + row.learning_rate + row.divergence):
                raise ValueError(f"a row of {LEDGER} has numbers that are not finite")
        if rows:
            best_row(rows)  # which compares all of their numbers
        if rows or best.is_file():  # the weights are written before the row
            with safe_open(best, "pt") as file:
                for name, value in parameters.items():
                    if file.get_slice(name).get_shape() != [*value.shape]:
                        raise ValueError(f"{name} has another shape in {BEST}")
    return rows
