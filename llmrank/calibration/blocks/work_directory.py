"""A directory for a run that keeps little in memory, and that another process can go on with."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphs.io.files import replace_file
from llmrank.calibration.blocks.states import file_tensor
from llmrank.errors import OptionError

__all__ = ["SHARD_BYTES", "WorkDirectory", "weights_digest"]

# A file of weights that is written with little memory is this large at most, because it may be in memory meanwhile.
SHARD_BYTES = 10**9
WEIGHT_BYTES = 64
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
        There is an earlier run, and it is not to be resumed; or it had other settings; or there is none to resume.
    OSError
        The directory cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = Path(path)
        wanted = json.loads(json.dumps(run))
        stated = self.path / RUN_FILE
        if stated.is_file():
            if not resume:
                raise OptionError(
                    f"{self.path} holds a run that has not finished; go on with it (--resume), or delete that directory"
                )
            earlier = json.loads(stated.read_text(encoding="utf-8"))
            differing = sorted(name for name in {*wanted, *earlier} if wanted.get(name) != earlier.get(name))
            if differing:
                raise OptionError(
                    f"the run in {self.path} had another {', '.join(differing)}; give the options of that run, or delete that "
                    "directory"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise OptionError(
                f"{self.path} is in the way of the files of this run; delete it, or choose another --output"
            )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            _write_json(stated, wanted)
        self._progress: dict[str, Any] = {}
        if (self.path / PROGRESS_FILE).is_file():
            self._progress = json.loads((self.path / PROGRESS_FILE).read_text(encoding="utf-8"))

    def file(self, name: str) -> Path:
        """Return the path of a file of the run."""
        return self.path / name

    def progress(self, stage: str) -> Any:
        """Return what was noted for a stage, or None."""
        return self._progress.get(stage)

    def note(self, stage: str, value: Any) -> None:
        """Note how far a stage has come; a process that is killed leaves the last note."""
        self._progress[stage] = value
        _write_json(self.path / PROGRESS_FILE, self._progress)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor into a file without a name, and return the copy, which the system reads and writes as memory allows.

        The file is deleted when the copy is not used any more. A tensor of another device than the CPU is returned itself.
        """
        if tensor.device.type != "cpu":
            return tensor
        path = self.file("tensor")
        copy = file_tensor(path, tensor.shape, tensor.dtype)
        path.unlink()
        return copy.copy_(tensor)

    def remove(self) -> None:
        """Delete the directory."""
        shutil.rmtree(self.path, ignore_errors=True)


def weights_digest(model: nn.Module) -> str:
    """Return a digest of the first 64 bytes of every parameter, which tells models apart without reading them whole."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        first = parameter.detach().flatten()[:WEIGHT_BYTES].contiguous().cpu().view(torch.uint8)[:WEIGHT_BYTES]
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + first.numpy().tobytes())
    return digest.hexdigest()


def _write_json(path: Path, value: Any) -> None:
    with replace_file(path) as partial:
        Path(partial).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
