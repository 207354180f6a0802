"""What was measured of every model type of transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["OTHER_TARGETS", "MeasuredFamilies", "measured_families"]

# What else is removed from the tiny models than neurons, each from a model of its own.
OTHER_TARGETS = ("experts", "heads", "blocks")


@dataclass(frozen=True)
class MeasuredFamilies:
    """What became of a tiny model of every model type, as ``python -m benchmarks.families`` measured it.

    Attributes
    ----------
    transformers : str
        The version of transformers.
    neuron_share, expert_share, head_share : float
        The shares of the neurons, of the experts and of the heads that were removed.
    blocks : str
        How many blocks of how many were left out, such as "2 of 5".
    rows : dict from str to dict
        For each model type: the ``outcome`` when neurons were removed; those when ``experts`` ("" if the type has none),
        ``heads`` and ``blocks`` were removed; and the ``reason`` if one of them is not "stock". "stock" says that transformers
        without llmrank loads the pruned checkpoint.
    """

    transformers: str
    neuron_share: float
    expert_share: float
    head_share: float
    blocks: str
    rows: dict[str, dict[str, str]]


def measured_families() -> MeasuredFamilies:
    """Return what was measured of every model type."""
    found = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
    shares = found["neurons"], found["experts"], found["heads"], found["blocks"]
    return MeasuredFamilies(found["transformers"], *shares, found["rows"])
