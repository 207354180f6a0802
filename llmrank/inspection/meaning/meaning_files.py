"""Tables of the meanings of neurons, in files: one row, or one object, for each neuron."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphs.io.exchange.tables import as_cell
from graphs.io.replacement import replace_file
from llmrank.inspection.meaning.meanings import Meanings, NeuronMeaning

__all__ = ["write_meanings_csv", "write_meanings_json"]


def write_meanings_csv(meanings: Meanings, path: str | os.PathLike[str]) -> None:
    """Write a row for each neuron: its layer and index, its contexts, and the tokens that it promotes and demotes.

    Names of columns end with a number: 1 is the strongest context or token, 2 the second strongest. The file is UTF-8, and texts
    keep their spaces and line breaks; an apostrophe stands before one that a spreadsheet would compute. An existing file is
    replaced on success, and left as it is on failure.

    Parameters
    ----------
    meanings : Meanings
    path : path-like
        File to write.

    Raises
    ------
    GraphError
        The directory does not exist, or the path is no regular file.
    OSError
        The system cannot write the file.
    """
    k = next(iter(meanings.top.activations.values())).shape[1]
    names = ["activation", "before", "token", "after", "promoted", "demoted"]
    with replace_file(Path(path)) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["layer", "neuron", *(f"{name}_{n}" for n in range(1, k + 1) for name in names)])
        writer.writeheader()
        for layer, neuron, meaning in _rows(meanings):
            row: dict[str, Any] = {"layer": as_cell(layer), "neuron": neuron}
            for n, each in enumerate(meaning.contexts, start=1):
                row[f"activation_{n}"] = f"{each.activation:.6g}"
                row |= {f"{name}_{n}": as_cell(text) for name, text in asdict(each.context).items()}
            for side, tokens in (("promoted", meaning.promoted), ("demoted", meaning.demoted)):
                row |= {f"{side}_{n}": as_cell(each.token) for n, each in enumerate(tokens, start=1)}
            writer.writerow(row)


def write_meanings_json(meanings: Meanings, path: str | os.PathLike[str]) -> None:
    """Write a list with an object for each neuron, one a line; see :class:`llmrank.inspection.meaning.meanings.NeuronMeaning`.

    Parameters
    ----------
    meanings : Meanings
    path : path-like
        File to write; see :func:`write_meanings_csv`, also for the exceptions.
    """
    with replace_file(Path(path)) as partial, partial.open("w", encoding="utf-8") as file:
        separator = "[\n"
        for layer, neuron, meaning in _rows(meanings):
            file.write(separator + json.dumps({"layer": layer, "neuron": neuron, **asdict(meaning)}, allow_nan=False))
            separator = ",\n"
        file.write("\n]\n")


def _rows(meanings: Meanings) -> Iterator[tuple[str, int, NeuronMeaning]]:
    for layer, neuron in meanings:
        yield layer, neuron, meanings.of(layer, neuron)
