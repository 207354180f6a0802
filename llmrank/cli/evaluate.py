"""``llmrank evaluate`` and ``llmrank families``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from graphs.files import replacing
from llmrank.activations import fitting_length
from llmrank.adapters import FAMILIES
from llmrank.calibration import tokenise
from llmrank.cli.options import load, progress
from llmrank.errors import CheckpointError
from llmrank.evaluate import perplexity, size
from llmrank.report import environment

__all__ = ["run_evaluate", "run_families"]


def run_evaluate(options: argparse.Namespace, console: Console) -> int:
    """``llmrank evaluate``."""
    _check_file(options.json)
    loaded = load(options)
    length = fitting_length(loaded.model, options.sequence_length)
    texts = tokenise(options.text, loaded.tokenizer, options.samples, length, "evaluation")
    result = perplexity(loaded.model, texts, options.batch_size, progress)
    weight = size(loaded.model)
    protocol = {**texts.provenance(), "dtype": str(loaded.model.dtype).removeprefix("torch."), **environment()}
    console.print(
        f"{loaded.source}: perplexity {result.value:.3f} over {result.tokens:,} tokens "
        f"({len(texts)} x {texts.length}, {texts.source}); {weight.parameters:,} parameters, {weight.bytes:,} bytes",
        markup=False,
    )
    if options.json is not None:
        content = {
            "model": loaded.source,
            "perplexity": result.value if np.isfinite(result.value) else str(result.value),
            "tokens": result.tokens,
            "parameters": weight.parameters,
            "bytes": weight.bytes,
            "protocol": protocol,
        }
        with replacing(options.json) as partial:
            partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return 0


def _check_file(path: Path | None) -> None:
    """Raise unless the result can be written there; an evaluation takes too long to find out afterwards."""
    if path is None:
        return
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; expected the path of a file for --json")
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no directory {path.parent}; create it first")


def run_families(_options: argparse.Namespace, console: Console) -> int:
    """``llmrank families``."""
    table = Table(title="Families tested from their configurations; others are tried by geometry", title_justify="left")
    for heading in ("family", "model type", "FFN", "width in the configuration"):
        table.add_column(heading)
    for family in FAMILIES:
        width = family.width or "none: llmrank.load, or --align pad (original width)"
        table.add_row(family.name, family.model_type, family.kind, width)
    console.print(table)
    console.print("Also nn.Sequential MLPs. Mixture-of-experts models and quantised weights are refused.")
    return 0
