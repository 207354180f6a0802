"""Calibration text that a model writes, and the automatic choice between it and the built-in text."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from graphs import GraphError
from graphs.io.tensor_files import read_tensors, write_tensors
from llmrank.cache import cache_directory
from llmrank.errors import CalibrationError, LLMRankError, OptionError
from llmrank.file_contents import refused_unless_sound
from llmrank.models.digest import weights_digest
from llmrank.models.forward import check_ids, fitting_length, input_device
from llmrank.progress import progress_step
from llmrank.text.base_source import BaseSource
from llmrank.text.built_in import BuiltInText
from llmrank.text.generation import (
    LONGEST_TEXT,
    TEXTS_AT_ONCE,
    can_write_text,
    end_tokens,
    first_token,
    generate_text,
)
from llmrank.text.sequences import Request, Role, TokenSequences
from llmrank.text.tokenisation import special_ids

__all__ = ["Automatic", "Generated"]

# The directory in the cache for texts written before; what its files are called in messages; and the version of the way in which
# texts are written, which changes whenever a model would write another text.
DIRECTORY, KIND, VERSION = "generated", "generated text", 1


class Generated(BaseSource):
    """Text that the model writes itself.

    The text is kept in the directory ``generated`` of the cache (``LLMRANK_CACHE``), and read from there when the same model is
    to write with the same settings again.
    """

    name: ClassVar[str] = "generated"
    roles: ClassVar[tuple[Role, ...]] = ("calibration",)

    def sequences(self, request: Request) -> tuple[TokenSequences, TokenSequences | None]:
        """See :meth:`BaseSource.sequences`."""
        if request.model is None:
            raise CalibrationError(
                f"the text {self.name!r} is written by a model, and none was given; pass a text or a file"
            )
        path = _cache_file(request)
        if path is None:
            return _write(request).split(request.samples)
        sequences = _read_cached(path, request)
        if sequences is None:
            sequences = _write(request)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(path, {"ids": sequences.ids.numpy()}, {"source": sequences.source}, KIND, VERSION)
            except (OSError, GraphError):  # without space or permission, the text is used but not kept
                return sequences.split(request.samples)
        return replace(sequences, details={"kept_in": f"{DIRECTORY}/{path.name}"}).split(request.samples)


def _write(request: Request) -> TokenSequences:
    """Let the model write all sequences of a request, those to hold out last."""
    count = request.samples + request.held_out
    return generate_text(
        request.model, request.tokenizer, count, request.length, request.seed, progress=request.progress
    )


def _cache_file(request: Request) -> Path | None:
    """Return the file that keeps the text of a request; its name is a digest of all that decides the text.

    Return None if the model cannot write text, or if some of its weights are offloaded: then no digest of all weights can be
    computed, by which the model would be known again.
    """
    if not can_write_text(request.model):
        return None
    try:
        weights = weights_digest(request.model, complete=True)
    except OptionError:
        return None
    settings = {
        "version": VERSION,
        "weights": weights,
        "device": input_device(request.model).type,
        "special": [first_token(request.model), end_tokens(request.model), sorted(special_ids(request.tokenizer))],
        "sequences": [request.samples + request.held_out, request.length, LONGEST_TEXT, TEXTS_AT_ONCE],
        "seed": request.seed,
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    return cache_directory() / DIRECTORY / f"{digest[:32]}.safetensors"


def _read_cached(path: Path, request: Request) -> TokenSequences | None:
    """Return the text in a file, and show by the progress that it is read; None if there is no file, or if it is damaged."""
    if not path.is_file():
        return None
    reading = progress_step(request.progress, f"Reading the text that the model wrote before, {path}")
    with suppress(GraphError, LLMRankError), reading, refused_unless_sound(path, "it is written again"):
        meta, tensors = read_tensors(path, KIND, VERSION)
        ids = tensors["ids"]
        shape = request.samples + request.held_out, fitting_length(request.model, request.length)
        found = TokenSequences.of_file(ids, np.ones_like(ids, dtype=bool), meta["source"])
        if ids.dtype.kind != "i" or ids.shape != shape:
            raise ValueError(f"expected token ids of shape {shape}, got {ids.dtype} of shape {ids.shape}")
        check_ids(request.model, found.ids)
        return found
    return None


class Automatic(BaseSource):
    """Generated if the model can write text, else built-in."""

    name: ClassVar[str] = "auto"
    roles: ClassVar[tuple[Role, ...]] = ("calibration",)

    def for_model(self, model: Any) -> BaseSource:
        """See :meth:`BaseSource.for_model`."""
        return Generated() if model is not None and can_write_text(model) else BuiltInText()

    def sequences(self, request: Request) -> tuple[TokenSequences, TokenSequences | None]:
        """See :meth:`BaseSource.sequences`."""
        return self.for_model(request.model).sequences(request)
