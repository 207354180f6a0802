"""A directory for a run that keeps most of its tensors in files; if the run is interrupted, another process can go on with it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphs.io.files import remove_leftovers, replace_file, take_lock
from llmrank.calibration.blocks.states import file_tensor
from llmrank.errors import OptionError

__all__ = ["SHARD_BYTES", "WorkDirectory", "weights_digest"]

# A run that has a work directory splits the weights that it writes into files of at most this size, because all weights of a
# file are in memory while the file is written.
SHARD_BYTES = 10**9
# Number of values of a tensor that a digest reads, and entries of a configuration that may differ for the same model.
N_SAMPLED = 256
UNRELATED = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures")
RUN_FILE, PROGRESS_FILE = "run.json", "progress.json"


class WorkDirectory:
    """The files of a run: tensors that need not be in memory, and a note of how far the run has come.

    Parameters
    ----------
    path : path-like
        A directory that does not exist yet, or is empty. With `resume`, the directory of an earlier run.
    run : mapping
        The settings that decide the result of the run, as values that JSON can hold.
    resume : bool
        Whether to go on with the earlier run.

    Raises
    ------
    OptionError
        The directory holds an earlier run, and `resume` is False or the settings differ; or `resume` is True, and the directory
        holds no run; or another process is at work in the directory.
    OSError
        The directory cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = Path(path)
        settings = json.loads(json.dumps(run))
        run_file = self.path / RUN_FILE
        if not run_file.is_file():
            if resume:
                raise OptionError(f"there is no unfinished run in {self.path} to go on with; leave resume out")
            remove_leftovers(self.path, RUN_FILE)
            if self.path.exists() and any(self.path.iterdir()):
                raise OptionError(
                    f"{self.path} is in the way of the files of this run; delete it, or choose another --output"
                )
            self.path.mkdir(parents=True, exist_ok=True)
        elif not resume:
            raise OptionError(
                f"{self.path} holds a run that has not finished; go on with it (--resume), or delete that directory"
            )
        # by_process=True: this process may still hold the lock from a run of its own that has failed, and go on with that run.
        lock = take_lock(self.path, by_process=True)
        if lock is None:
            raise OptionError(
                f"another process is at work in {self.path}; wait until it has ended, or choose another --output"
            )
        self._unlock = weakref.finalize(self, os.close, lock)
        if run_file.is_file():
            earlier = self._read(RUN_FILE)
            differing = sorted(name for name in {*settings, *earlier} if settings.get(name) != earlier.get(name))
            if differing:
                raise OptionError(
                    f"the run in {self.path} had another {', '.join(differing)}; give the options of that run, or delete that "
                    "directory"
                )
        else:
            _write_json(run_file, settings)
        self._progress: dict[str, Any] = self._read(PROGRESS_FILE) if (self.path / PROGRESS_FILE).is_file() else {}

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise OptionError(f"{self.path / name} is damaged; delete {self.path}, and start again") from error
        return dict(found)

    @property
    def has_progress(self) -> bool:
        """Whether progress of some stage is noted, so that another process can go on from there."""
        return bool(self._progress)

    def file(self, name: str) -> Path:
        """Return the path of a file of the run."""
        return self.path / name

    def progress(self, stage: str) -> Any:
        """Return what :meth:`note` noted for a stage, or None."""
        return self._progress.get(stage)

    def note(self, stage: str, value: Any, files: Iterable[Path] = ()) -> None:
        """Note how far a stage has come, after `files` have reached the disk.

        If the process is killed during the call, the previous note stays.
        """
        for file in files:
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        self._progress[stage] = value
        _write_json(self.path / PROGRESS_FILE, self._progress)

    def copy_to_file(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor into a temporary file, and return the copy, so that the system need not hold its values in memory.

        The file has no name, and vanishes when the copy is not used any more. A tensor on another device than the CPU is
        returned as it is.
        """
        if tensor.device.type != "cpu":
            return tensor
        handle, name = tempfile.mkstemp(prefix="tensor-", dir=self.path)
        os.close(handle)
        copy = file_tensor(Path(name), tensor.shape, tensor.dtype)
        Path(name).unlink()
        return copy.copy_(tensor)

    def remove(self) -> None:
        """Delete the directory."""
        self._unlock()
        shutil.rmtree(self.path, ignore_errors=True)


def weights_digest(model: nn.Module, *, complete: bool = False) -> str:
    """Return a digest of a model, by which it is known again: of its configuration and of values of its parameters and buffers.

    By default, 256 evenly spaced values of each are read, so that most of the weights are not; with `complete`, all values.

    Raises
    ------
    OptionError
        A parameter holds no data: it is offloaded or on the meta device.
    """
    config = getattr(model, "config", None)
    described = {} if config is None else config.to_dict()
    about = {name: value for name, value in described.items() if name not in UNRELATED}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise OptionError(
                f"{name} has no data here (offloaded or on the meta device); load the model completely, or on the CPU with "
                "--low-memory"
            )
        values = tensor.detach().reshape(-1)
        step = 1 if complete else max(1, len(values) // N_SAMPLED)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(values[::step].contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_json(path: Path, value: Any) -> None:
    with replace_file(path) as partial:
        Path(partial).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
