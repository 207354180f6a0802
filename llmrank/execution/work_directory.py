"""A directory for a run that keeps most of its tensors in files; if the run is interrupted, another process can go on with it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from graphs import GraphError
from graphs.io.replacement import LOCK, hidden_directory, remove_leftovers, take_lock
from llmrank.errors import OptionError
from llmrank.execution.json_files import file_checksum, read_json, write_json
from llmrank.execution.states import file_tensor, state_file
from llmrank.file_contents import check_fields, refused_unless_sound

__all__ = [
    "ADVICE",
    "PROGRESS_FILE",
    "SAVING",
    "SHARD_BYTES",
    "WorkDirectory",
    "check_free",
    "holds_run",
    "read_progress",
    "read_run",
]

# A run that has a work directory splits the weights that it writes into files of at most this size, because all weights of a
# file are in memory while the file is written.
SHARD_BYTES = 10**9
RUN_FILE, PROGRESS_FILE = "run.json", "progress.json"
# What a user can do about a file that the run cannot go on with.
ADVICE = "delete {}, and start again"
# The stage in which a run writes its result, which appears whole or not at all. Its note holds the settings of the command.
SAVING = "saving"


def holds_run(path: Path) -> bool:
    """Whether a directory holds the files of a run; one that was made for a run which never began counts as empty."""
    return (path / RUN_FILE).is_file()


def check_free(path: Path) -> None:
    """Raise an OptionError if a directory holds something else than a run; what a killed process has left there is removed."""
    remove_leftovers(path, RUN_FILE)
    remove_leftovers(path.parent, path.name)
    is_free = not path.exists() or (path.is_dir() and {each.name for each in path.iterdir()} <= {LOCK})
    if not holds_run(path) and not is_free:
        raise OptionError(
            f"{path} is in the way of the files of this run, and is no run of llmrank; choose another directory, or move it away"
        )


def read_run(path: Path) -> dict[str, Any]:
    """Return the settings of the run in a directory.

    Raises
    ------
    OptionError
        The file is damaged.
    """
    return _read(path / RUN_FILE)


def read_progress(path: Path) -> dict[str, Any]:
    """Return how far each stage of the run in a directory has come; empty if none has begun.

    Raises
    ------
    OptionError
        The file is damaged.
    """
    return dict(_read_notes(path).get("stages", {}))


def _read_notes(path: Path) -> dict[str, Any]:
    """Return what :meth:`WorkDirectory.note` has written last."""
    if not (path / PROGRESS_FILE).is_file():
        return {}
    noted = _read(path / PROGRESS_FILE)
    with refused_unless_sound(path / PROGRESS_FILE, ADVICE.format(path)):
        check_fields(noted, {"stages": dict, "files": dict})
        check_fields(noted["stages"], {}, {SAVING: dict})
        check_fields(noted["files"], dict.fromkeys(noted["files"], str))
    return noted


class WorkDirectory:
    """The files of a run: tensors that need not be in memory, and a note of how far the run has come.

    Parameters
    ----------
    path : path-like
        A directory that does not exist yet, or is empty. With `resume`, the directory of an earlier run; the files that its
        progress relies on are read and compared with their checksums.
    run : mapping
        The settings that decide the result of the run, as values that JSON can hold.
    resume : bool
        Whether to go on with the earlier run.

    Raises
    ------
    OptionError
        The directory holds an earlier run, and `resume` is False or the settings differ; or `resume` is True, and the directory
        holds no run; or a file of the run is missing, or is not as the run left it; or another process is at work in the
        directory.
    OSError
        The directory cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = Path(path)
        settings = json.loads(json.dumps(run))
        run_file, is_new = self.path / RUN_FILE, False
        if not holds_run(self.path):
            if resume:
                raise OptionError(f"there is no unfinished run in {self.path} to go on with; leave resume out")
            check_free(self.path)
            is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
        elif not resume:
            raise OptionError(
                f"{self.path} holds a run that has not finished; go on with it (--resume), or delete that directory"
            )
        # by_process=True: this process may still hold the lock from a run of its own that has failed, and go on with that run.
        lock = take_lock(self.path, by_process=True)
        if lock is None:
            raise OptionError(
                f"another process is at work in {self.path}; wait until it has ended, or choose another directory"
            )
        self._unlock = weakref.finalize(self, os.close, lock)
        remove_leftovers(self.path, RUN_FILE)  # of a process that was interrupted when it had written the file
        if run_file.is_file():
            earlier = read_run(self.path)
            differing = sorted(name for name in {*settings, *earlier} if settings.get(name) != earlier.get(name))
            if differing:
                raise OptionError(
                    f"the run in {self.path} had another {', '.join(differing)}; give the options of that run, or delete that "
                    "directory"
                )
        else:
            try:
                write_json(run_file, settings)
            except BaseException:
                if is_new:
                    self.remove()
                raise
        noted = _read_notes(self.path)
        self._progress: dict[str, Any] = noted.get("stages", {})
        # The checksums of the files that the progress relies on, by their paths in the directory.
        self._files: dict[str, str] = noted.get("files", {})
        for name, known in self._files.items():
            file = self.path / name
            if not file.is_file() or file_checksum(file) != known:
                raise OptionError(
                    f"{file} is missing, or is not as the run left it, so the run cannot go on; delete {self.path}, and start "
                    "again"
                )

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

    def blocks_done(self, stage: str, n_blocks: int, sides: Mapping[str, str]) -> dict[str, int] | None:
        """Return what was noted for a stage that goes through the blocks of a model; None if nothing was.

        Parameters
        ----------
        stage : str
        n_blocks : int
            Number of blocks of the model.
        sides : mapping from str to str
            For every field of the note that holds a side, the name of the states (see :class:`llmrank.execution.states.States`).

        Returns
        -------
        dict
            The number of "blocks" that were passed, and the sides. The progress relies on the files of these sides.

        Raises
        ------
        OptionError
            The note says something else.
        """
        done = self.progress(stage)
        if done is None:
            return None
        with refused_unless_sound(self.path / PROGRESS_FILE, ADVICE.format(self.path)):
            check_fields(done, dict.fromkeys(("blocks", *sides), int))
            if not 0 < done["blocks"] <= n_blocks or not all(done[name] in (0, 1) for name in sides):
                raise ValueError(f"{done} is no progress through {n_blocks} blocks")
            lost = [name for name in sides if not self.keeps(state_file(self.file(sides[name]), done[name]))]
            if lost and done["blocks"] < n_blocks:
                raise ValueError(f"it does not rely on the {sides[lost[0]]} in front of block {done['blocks']}")
        return dict(done)

    def keep(self, file: Path) -> None:
        """Have the next note rely on a file, which is on the disk when this returns. Cost: the file is read."""
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
        self._files[self._name(file)] = file_checksum(file)

    def keeps(self, file: Path) -> bool:
        """Whether the progress relies on a file."""
        return self._name(file) in self._files

    def note(self, stage: str, value: Any, files: Iterable[Path] = (), unneeded: Iterable[Path] = ()) -> None:
        """Note how far a stage has come.

        If the process is killed during the call, the previous note stays.

        Parameters
        ----------
        stage : str
        value : value for JSON
            What :meth:`progress` will return.
        files : iterable of Path
            Files that a process which goes on from here reads, see :meth:`keep`.
        unneeded : iterable of Path
            Files that it does not read any more.
        """
        for file in unneeded:
            self._files.pop(self._name(file), None)
        for file in files:
            self.keep(file)
        self._progress[stage] = value
        write_json(self.path / PROGRESS_FILE, {"stages": self._progress, "files": self._files}, allow_nan=True)

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

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def close(self) -> None:
        """Let other processes work in the directory, which stays."""
        self._unlock()

    def remove(self) -> None:
        """Delete the directory. It is moved away first; if the process is killed meanwhile, :func:`check_free` removes it."""
        self._unlock()
        with contextlib.suppress(OSError), hidden_directory(self.path.parent, self.path.name) as hidden:
            self.path.rename(hidden / self.path.name)
        shutil.rmtree(self.path, ignore_errors=True)  # a mount point, say, cannot be moved


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except GraphError as error:
        raise OptionError(f"{error}; {ADVICE.format(path.parent)}") from error
