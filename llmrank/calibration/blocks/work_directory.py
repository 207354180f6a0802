"""A directory for a run that keeps little in memory, and that another process can go on with."""

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

# A file of weights that is written with little memory is this large at most, because it may be in memory meanwhile.
SHARD_BYTES = 10**9
# Number of values of a tensor that its digest reads, and the parts of a configuration that do not belong to the model.
N_SAMPLED = 256
UNRELATED = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures")
RUN_FILE, PROGRESS_FILE = "run.json", "progress.json"


class WorkDirectory:
    """Files of a run: tensors that need not be in memory, and how far the run has come.

    Parameters
    ----------
    path : path-like
        Absent; or with `resume`, of an earlier run.
    run : mapping
        What decides the result of the run, in values that JSON can hold.
    resume : bool
        Whether to go on with the earlier run.

    Raises
    ------
    OptionError
        There is an earlier run, and it is not to be resumed; or it had other settings; or there is none to resume; or another
        process is at work in the directory.
    OSError
        The directory cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = Path(path)
        wanted = json.loads(json.dumps(run))
        stated = self.path / RUN_FILE
        if not stated.is_file():
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
        lock = take_lock(self.path, by_process=True)  # this process may go on with a run that it has ended itself
        if lock is None:
            raise OptionError(
                f"another process is at work in {self.path}; wait until it has ended, or choose another --output"
            )
        self._unlock = weakref.finalize(self, os.close, lock)
        if stated.is_file():
            earlier = self._read(RUN_FILE)
            differing = sorted(name for name in {*wanted, *earlier} if wanted.get(name) != earlier.get(name))
            if differing:
                raise OptionError(
                    f"the run in {self.path} had another {', '.join(differing)}; give the options of that run, or delete that "
                    "directory"
                )
        else:
            _write_json(stated, wanted)
        self._progress: dict[str, Any] = self._read(PROGRESS_FILE) if (self.path / PROGRESS_FILE).is_file() else {}

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise OptionError(f"{self.path / name} is damaged; delete {self.path}, and start again") from error
        return dict(found)

    @property
    def has_progress(self) -> bool:
        """Whether some stage has come so far that another process could go on there."""
        return bool(self._progress)

    def file(self, name: str) -> Path:
        """Return the path of a file of the run."""
        return self.path / name

    def progress(self, stage: str) -> Any:
        """Return what was noted for a stage, or None."""
        return self._progress.get(stage)

    def note(self, stage: str, value: Any, files: Iterable[Path] = ()) -> None:
        """Note how far a stage has come, once `files` are on the disk; a process that is killed leaves the last note."""
        for file in files:
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        self._progress[stage] = value
        _write_json(self.path / PROGRESS_FILE, self._progress)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor into a file without a name, and return the copy, which the system reads and writes as memory allows.

        The file is deleted when the copy is not used any more. A tensor of another device than the CPU is returned itself.
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
    """Return a digest of the configuration and of 256 values of every parameter and buffer, evenly spaced.

    It tells models apart without reading them whole. With `complete` it is a digest of all values.

    Raises
    ------
    OptionError
        A parameter holds no data here.
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
