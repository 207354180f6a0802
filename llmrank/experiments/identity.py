"""What a model or a dataset is known by, so that rows measured on one version of it are never mixed with those of another."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, snapshot_download

__all__ = ["COMMIT", "identity_of"]

# Endings of the files that a model is loaded from: weights, configuration, tokenizer and code.
OF_MODELS = (".safetensors", ".bin", ".gguf", ".json", ".model", ".txt", ".jinja", ".py")
CHUNK = 1 << 22
# How the identity of a repository on the hub begins; its commit follows.
COMMIT = "commit "
# Seconds to wait for the hub.
PATIENCE = 10.0


def identity_of(source: str, kind: Literal["model", "dataset"], revision: str | None = None) -> str:
    """Return a digest of the files at a path, or the commit of a repository on the hub; "" if neither is known.

    Parameters
    ----------
    source : str
        A path, or a name on the hub.
    kind : {"model", "dataset"}
        Of a model's directory, the weights, the configuration, the tokenizer and the code are read; of a dataset's, all files.
    revision : str, optional
        Branch, tag or commit on the hub.

    Notes
    -----
    Cost: all bytes of the files are read; or one request, and without a network the commit that was downloaded last.
    """
    path = Path(source)
    if path.is_file():
        return f"files {_digest(path.parent, [path])}"
    if path.is_dir():
        files = path.iterdir() if kind == "model" else path.rglob("*")
        # Hidden files are those of caches and of version control.
        shown = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        return f"files {_digest(path, [file for file in shown if kind == 'dataset' or file.suffix in OF_MODELS])}"
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return f"{COMMIT}{revision}"
    try:
        commit = HfApi().repo_info(source, repo_type=kind, revision=revision, timeout=PATIENCE).sha
    except Exception:  # no network, no such repository, or no access: loading it reports what is wrong
        try:  # the folder of what was downloaded last is named by its commit
            commit = Path(snapshot_download(source, repo_type=kind, revision=revision, local_files_only=True)).name
        except (OSError, ValueError):  # nothing was, or the text is no name
            return ""
    return f"{COMMIT}{commit}"


def _digest(folder: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.is_file():
            digest.update(f"\0{file.relative_to(folder)} {file.stat().st_size}\0".encode(errors="surrogateescape"))
            with file.open("rb") as opened:
                while chunk := opened.read(CHUNK):
                    digest.update(chunk)
    return digest.hexdigest()[:16]
