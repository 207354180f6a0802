"""Upload of a checkpoint to the Hugging Face hub."""

from __future__ import annotations

import shlex
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from llmrank.errors import CheckpointError, OptionError

__all__ = ["check_hub", "push", "upload_command"]


def check_hub(name: str) -> str:
    """Raise unless a checkpoint can probably be uploaded to a repository: its name is valid, and the hub knows the user.

    Cost: one request to the hub.

    Parameters
    ----------
    name : str
        ``NAME`` or ``OWNER/NAME``.

    Returns
    -------
    str
        The name with the owner, who is the user if none is named.

    Raises
    ------
    OptionError
        The name is not valid for a repository, the hub cannot be reached, or the user is not logged in.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise OptionError(
            f"{name!r} is no name of a repository on the hub: {error}; expected NAME or OWNER/NAME"
        ) from error
    try:
        user = HfApi().whoami()["name"]
    except Exception as error:  # an error of the network library or of the hub, or a missing token
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise OptionError(
            f"nothing can be uploaded to {name}: {reason}; log in (hf auth login, or set HF_TOKEN), or save without the hub"
        ) from error
    return name if "/" in name else f"{user}/{name}"


def push(directory: Path, name: str, private: bool | None = None) -> str:
    """Upload a directory as a model, in one commit, and return the address of the repository.

    Parameters
    ----------
    directory : Path
    name : str
        ``NAME`` or ``OWNER/NAME``; the repository is made if it does not exist.
    private : bool, optional
        Whether a new repository is private. By default it is public, unless its organisation makes new repositories private.

    Raises
    ------
    CheckpointError
        The hub refuses, or cannot be reached. The directory is not changed.
    """
    try:
        repository = HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().upload_folder(
            repo_id=repository.repo_id, folder_path=directory, commit_message="Upload a model pruned by llmrank"
        )
    except Exception as error:  # an error of the network library or of the hub
        raise CheckpointError(
            f"{directory} is complete, but it could not be uploaded to {name}: {error}; try again with "
            f"{upload_command(directory, name, private)}"
        ) from error
    return str(repository)


def upload_command(directory: Path, name: str, private: bool | None = None) -> str:
    """Return the shell command that uploads a directory to a repository, as :func:`push` does."""
    flag = "" if private is None else " --private" if private else " --no-private"
    return f"hf upload {shlex.quote(name)} {shlex.quote(str(directory))}{flag}"
