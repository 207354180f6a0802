"""Trackers: the rows of a sweep are also logged to wandb, trackio or tensorboard, which are imported only if asked for.

A row is one pruning experiment of the sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from llmrank.errors import OptionError

__all__ = ["TRACKERS", "Tracker", "make_tracker", "numbers_of"]

PROJECT = "llmrank"


class Tracker(Protocol):
    """Logs rows. For each row, `start`, `log` and `finish` are called in this order."""

    def start(self, name: str, configuration: Mapping[str, Any]) -> None:
        """Begin a row with its name and settings."""

    def log(self, results: Mapping[str, float]) -> None:
        """Log the results of the row."""

    def finish(self) -> None:
        """End the row."""


class _ByRuns:
    """Logs every row as a run of wandb, or of trackio, which has the same functions."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def start(self, name: str, configuration: Mapping[str, Any]) -> None:
        self._module.init(project=PROJECT, name=name, config=dict(configuration))

    def log(self, results: Mapping[str, float]) -> None:
        self._module.log(dict(results))

    def finish(self) -> None:
        self._module.finish()


class _ByTensorBoard:
    """Logs every row to a directory of its own, as hyperparameters with their results."""

    def __init__(self, module: Any, directory: Path) -> None:
        self._module, self._directory = module, directory
        self._writer: Any = None
        self._configuration: dict[str, Any] = {}

    def start(self, name: str, configuration: Mapping[str, Any]) -> None:
        self._writer = self._module.SummaryWriter(self._directory / name.replace("/", "_").replace(":", "_"))
        plain = (bool, int, float, str)  # the types that TensorBoard takes as hyperparameters
        self._configuration = {key: value for key, value in configuration.items() if isinstance(value, plain)}

    def log(self, results: Mapping[str, float]) -> None:
        self._writer.add_hparams(self._configuration, dict(results), run_name=".")

    def finish(self) -> None:
        self._writer.close()


# The module that each tracker imports.
TRACKERS = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "torch.utils.tensorboard"}


def make_tracker(track: str | Tracker | None, output: Path) -> Tracker | None:
    """Return the tracker of a name. An object that is a tracker already, or None, is returned as it is.

    Raises
    ------
    OptionError
        The name is unknown, or its package is not installed.
    """
    if track is None or not isinstance(track, str):
        return track
    if track not in TRACKERS:
        raise OptionError(f"unknown tracker {track!r}; expected one of {', '.join(TRACKERS)}")
    try:
        module = import_module(TRACKERS[track])
    except ImportError as error:
        raise OptionError(f"tracking by {track} needs its package ({error}); pip install 'llmrank[{track}]'") from error
    return _ByTensorBoard(module, output / track) if track == "tensorboard" else _ByRuns(module)


def numbers_of(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers in nested results, by the names of their levels joined by slashes. Lists and truth values are left out.

    Examples
    --------
    >>> numbers_of({"perplexity": 20.5, "tasks": {"piqa": {"acc": {"value": 0.5}}}, "losses": [1.0]})
    {'perplexity': 20.5, 'tasks/piqa/acc/value': 0.5}
    """
    found: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
    return found
