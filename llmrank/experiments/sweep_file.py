"""Settings of sweeps in files, and those that have a name."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from llmrank.errors import OptionError
from llmrank.pipeline.specs import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["PRESETS", "arguments_of", "read_sweep_file"]

# The grid of the experiments that the authors of LLM-Rank published with the paper (arXiv 2410.13299, experiments/config.py of
# amazon-science/llm-rank-pruning): its scorers, pruners, tasks, and the share and the calibration text that it takes by default.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "scorer": ["norm", "random", "activation", "wpr", "mpr", "wanda"],
        "pruner": ["local", "global"],
        "pipeline": ["isolated"],
        "amount": [0.3],
        "repair": ["none"],
        "calibration": "dataset:allenai/c4,en,train",
        "samples": 64,
        "sequence_length": 2048,
        "evaluate": "dataset:Salesforce/wikitext,wikitext-2-raw-v1,test",
        "tasks": ["hellaswag", "piqa", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "wikitext"],
    }
}


def read_sweep_file(path: Path) -> dict[str, Any]:
    """Read a TOML or YAML file of settings, which have the names of the command's options.

    Raises
    ------
    OptionError
        The file cannot be read, or does not hold one value or list for each name.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            found = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            found = yaml.safe_load(text)
        else:
            raise OptionError(f"{path} must be a .toml, .yaml or .yml file")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"cannot read {path} ({error}); expected settings in TOML or YAML") from error
    if not isinstance(found, dict):
        raise OptionError(f"{path} holds no settings; expected lines such as scorer = ['wpr', 'mpr']")
    return {str(name).replace("-", "_"): value for name, value in found.items()}


def arguments_of(settings: Mapping[str, Any], known: Iterable[str], place: str) -> list[str]:
    """Return settings as arguments of the command, so that a file and the command line are read by the same rules.

    Raises
    ------
    OptionError
        A name is not among the known ones, or a value is a table.

    Examples
    --------
    >>> arguments_of({"scorer": ["wpr", "mpr"], "amount": 0.3, "speed": True}, ["scorer", "amount", "speed"], "a file")
    ['--scorer=wpr', '--scorer=mpr', '--amount=0.3', '--speed']
    """
    known = list(known)
    arguments = []
    for name, value in settings.items():
        if name not in known:
            raise OptionError(
                f"unknown setting {name!r} in {place}{did_you_mean(name, known)}; expected some of {', '.join(known)}"
            )
        values = value if isinstance(value, list) else [value]
        if any(isinstance(each, (dict, list)) for each in values):
            raise OptionError(f"{name} in {place} must be a value or a list of values, got {value!r}")
        flag = f"--{name.replace('_', '-')}"
        for each in values:
            if isinstance(each, bool):
                arguments += [flag] if each else []
            else:
                arguments.append(str(each) if name == "model" else f"{flag}={each}")
    return arguments
