"""GGUF files from checkpoints: conversion, quantisation, and llama.cpp as the program that reads them.

A checkpoint whose layers differ is converted by llmrank, as by ``llmrank export``; llama.cpp's converter does not take it.

llama.cpp comes from PyPI as the package ``llama-cpp-python``, which compiles it (a C++ compiler is needed, and some minutes)::

    pip install -e ".[serving]"

Its source archive holds llama.cpp, and so the converter of the same version::

    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
    tar xzf llama_cpp_python-0.3.36.tar.gz
    export LLAMA_CPP=$PWD/llama_cpp_python-0.3.36/vendor/llama.cpp
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.stock import is_uneven
from llmrank import load
from llmrank.integrations.gguf import write_gguf

__all__ = ["CONVERTER", "FORMATS", "LlamaCpp", "Served", "replaced_types", "tensor_types"]

CONVERTER = "convert_hf_to_gguf.py"
# Format of a file -> llama.cpp's number of it. The converter writes the first two; llama.cpp makes the others out of f16.
FORMATS = {"f32": 0, "f16": 1, "q8_0": 7, "q4_k_m": 15}
CONVERTED = {"f32": "float32", "f16": "float16"}
# Levels of llama.cpp's messages: warnings, and the continuation of the message before.
WARNING, CONTINUED = 3, 5
F32_TENSOR = 0
INSTALL = (
    'install it with pip install -e ".[serving]" (it compiles llama.cpp: a C++ compiler is needed, and some minutes)'
)
DOWNLOAD = (
    "pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36; unpack the archive, and name the "
    "vendor/llama.cpp in it with --llama-cpp DIR (or LLAMA_CPP)"
)


class LlamaCpp:
    """The library of llama.cpp, as a Python module, and its converter.

    Parameters
    ----------
    directory : Path or None
        Source of llama.cpp, with the converter.

    Raises
    ------
    SystemExit
        One of the two is missing; the message says how to get it.
    """

    def __init__(self, directory: Path | None) -> None:
        try:
            self.library: Any = import_module("llama_cpp")
        except ImportError as error:
            raise SystemExit(f"this benchmark needs the package llama-cpp-python ({error}); {INSTALL}") from error
        if directory is None or not (directory / CONVERTER).is_file():
            raise SystemExit(f"this benchmark needs {CONVERTER} of llama.cpp, which is not in {directory}; {DOWNLOAD}")
        self.converter = directory / CONVERTER
        self.messages: list[str] = []
        self._level = 0
        # The library keeps no reference to the function that it calls.
        self._callback = self.library.llama_log_callback(self._keep)
        self.library.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _keep(self, level: int, text: bytes, _data: Any) -> None:
        self._level = self._level if level == CONTINUED else level
        if self._level >= WARNING:
            self.messages.append(text.decode(errors="replace"))

    def description(self) -> dict[str, str]:
        """Return the version, and the instructions that llama.cpp was compiled for, in its own words."""
        system = " ".join(self.library.llama_print_system_info().decode().split())
        return {"llama-cpp-python": metadata.version("llama-cpp-python"), "system": system}

    def write(self, checkpoint: Path, output: Path, form: str, dense: Path) -> Path:
        """Write a checkpoint as a GGUF file in one of `FORMATS`. A file that exists is kept.

        Parameters
        ----------
        checkpoint, output : Path
            The name of the output holds the format. What llama.cpp warned of is written beside it, with the ending ``.log``.
        form : str
        dense : Path
            A GGUF file of the dense model. Its tokenizer is copied where layers differ, for then llmrank writes the file.

        Raises
        ------
        SystemExit
            The converter or llama.cpp refused; the message ends with their last words.
        """
        if output.is_file():
            return output
        partial, before = output.with_suffix(".partial"), len(self.messages)
        if form in CONVERTED:
            self._convert(checkpoint, partial, form, dense)
        else:
            source = self.write(checkpoint, output.with_name(output.name.replace(form, "f16")), "f16", dense)
            parameters = self.library.llama_model_quantize_default_params()
            parameters.ftype, parameters.nthread = FORMATS[form], 1
            if self.library.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(parameters)):
                raise SystemExit(f"llama.cpp did not quantise {source} as {form}: {''.join(self.messages[before:])}")
        output.with_suffix(".log").write_text("".join(self.messages[before:]), encoding="utf-8")
        return partial.replace(output)

    def _convert(self, checkpoint: Path, output: Path, form: str, dense: Path) -> None:
        if is_uneven(checkpoint):
            write_gguf(load(checkpoint, dtype=CONVERTED[form]).model, output, dense)
            return
        command = [sys.executable, str(self.converter), str(checkpoint), "--outtype", form, "--outfile", str(output)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode:
            raise SystemExit(f"{CONVERTER} did not convert {checkpoint}: {outcome.stderr[-2000:]}")


def replaced_types(log: str) -> dict[str, int]:
    """Return which types llama.cpp replaced, because rows were no multiple of their blocks, by the log of quantisation.

    Returns
    -------
    dict from str to int
        ``"q4_K to q5_0, rows of 576"`` -> number of tensors.
    """
    pattern = re.compile(r"ncols\s+(\d+) not divisible[^\n]*?for type\s+(\w+)\)[^\n]*?falling back to\s+(\w+)")
    return dict(Counter(f"{old} to {new}, rows of {size}" for size, old, new in pattern.findall(log)))


def tensor_types(path: Path) -> dict[str, dict[str, int]]:
    """Return the types of the matrices of a GGUF file, by the part of the model.

    Returns
    -------
    dict from str to dict from str to int
        Such as ``{"ffn_down": {"Q4_K": 15, "Q6_K": 15}}``.
    """
    from gguf import GGUFReader

    found: dict[str, Counter[str]] = {}
    for tensor in GGUFReader(path).tensors:
        if len(tensor.shape) > 1:
            part = re.sub(r"^blk\.\d+\.|\.weight$", "", tensor.name)
            found.setdefault(part, Counter())[tensor.tensor_type.name] += 1
    return {part: dict(types) for part, types in sorted(found.items())}


class Served:
    """A GGUF file that llama.cpp has loaded. Use it in a ``with`` statement, or call `close`.

    Parameters
    ----------
    llama_cpp : LlamaCpp
    path : Path
    length : int
        Largest number of tokens of a text.
    threads : int
    exact : bool
        Keep keys and values in float32, and compute attention step by step; by default they are kept in float16.

    Raises
    ------
    SystemExit
        llama.cpp cannot load the file.
    """

    def __init__(self, llama_cpp: LlamaCpp, path: Path, length: int, threads: int, *, exact: bool = False) -> None:
        self._library = llama_cpp.library
        before = len(llama_cpp.messages)
        self._model = self._library.llama_model_load_from_file(
            str(path).encode(), self._library.llama_model_default_params()
        )
        if not self._model:
            raise SystemExit(f"llama.cpp does not load {path}: {''.join(llama_cpp.messages[before:])}")
        settings = self._library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = length
        settings.n_threads = settings.n_threads_batch = threads
        if exact:
            settings.type_k = settings.type_v = F32_TENSOR
            settings.flash_attn_type = self._library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = self._library.llama_init_from_model(self._model, settings)
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        self._tokens = int(self._library.llama_vocab_n_tokens(self._vocabulary))

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def tokenise(self, text: str) -> list[int]:
        """Return the tokens of a text, as llama.cpp reads it, without special tokens."""
        content = text.encode()
        tokens = (self._library.llama_token * (len(content) + 1))()
        special, parsed = False, True
        count = self._library.llama_tokenize(
            self._vocabulary, content, len(content), tokens, len(tokens), special, parsed
        )
        return list(tokens[:count])

    def forget(self) -> None:
        """Forget the text so far."""
        contents_too = True
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), contents_too)

    def read(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read tokens after those read before, and return the logits after the last, (vocabulary,), until the next call."""
        tokens = (self._library.llama_token * len(ids))(*ids)
        self._decode(self._library.llama_batch_get_one(tokens, len(ids)))
        return self._rows(self._library.llama_get_logits_ith(self._context, -1), 1).ravel()

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read a text from its beginning and return the logits after every token, (len(ids), vocabulary)."""
        self.forget()
        batch = self._library.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for k, token in enumerate(ids):
            batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.logits[k] = token, k, 1, 1
            batch.seq_id[k][0] = 0
        try:
            self._decode(batch)
        finally:
            self._library.llama_batch_free(batch)
        return np.array(self._rows(self._library.llama_get_logits(self._context), len(ids)))

    def write(self, prompt: Sequence[int], count: int) -> list[int]:
        """Continue a prompt with the likeliest token, `count` times; a token that ends a text does not end it."""
        self.forget()
        written = [int(self.read(prompt).argmax())]
        while len(written) < count:
            written.append(int(self.read(written[-1:]).argmax()))
        return written

    def _decode(self, batch: Any) -> None:
        status = self._library.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status} for {batch.n_tokens} tokens")

    def _rows(self, pointer: Any, count: int) -> npt.NDArray[np.float32]:
        """Return the logits that a pointer of llama.cpp points to, without a copy."""
        logits: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(count, self._tokens))
        return logits
