"""The difference between two pruned checkpoints, or two rankings, of one model: neurons, scores, settings and outcomes.

A ranking is a directory with the statistics and scores of a model, by which it is pruned later. A and B are the two that are
compared.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from graphs.analysis.measures import rank_correlation
from llmrank.errors import CheckpointError, MaskError, OptionError
from llmrank.file_contents import check_fields, refused_unless_sound
from llmrank.pipeline.ranking import SETTINGS, Ranking
from llmrank.prune.masks import Masks
from llmrank.surgery.checkpoint import MASKS_FILE, REPORT_FILE, read_report

__all__ = ["LayerDifference", "Run", "RunDifference", "compare_runs", "read_run"]

# The parts of a report that say what was pruned, how, and by what text: their names here, and the keys that lead to them.
COMPARED: Mapping[str, tuple[str, ...]] = {
    "model": ("model",),
    "method": ("method",),
    "calibration": ("calibration",),
    "held_out": ("held_out",),
    "execution": ("execution",),
    "evaluation": ("evaluation", "protocol"),
}
# The facts of a report that are compared as numbers: their names, and the keys that lead to them.
OUTCOMES: Mapping[str, tuple[str, ...]] = {
    "removed": ("neurons", "removed"),
    "share removed": ("neurons", "share_reached"),
    "parameters": ("after", "parameters"),
    "FFN parameters": ("after", "ffn_parameters"),
    "bytes": ("after", "bytes"),
    "perplexity of the dense model": ("evaluation", "before", "value"),
    "perplexity": ("evaluation", "after", "value"),
    "divergence as cut": ("validation", "cut"),
    "divergence repaired": ("validation", "repaired"),
}


@dataclass(frozen=True, eq=False)
class Run:
    """What is known of a pruned checkpoint or of a ranking, without the weights.

    Attributes
    ----------
    path : Path
        The file or directory that it was read from.
    report : mapping
        The content of ``report.json``; for a ranking, its settings under the same keys.
    masks : Masks or None
        None if there is no ``masks.safetensors`` beside the report.
    scores : mapping from str to (n,) float64 tensor
        Scores of the neurons by layer, if this is a ranking; else empty.
    """

    path: Path
    report: Mapping[str, Any]
    masks: Masks | None
    scores: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LayerDifference:
    """Which neurons of a layer two runs keep.

    Attributes
    ----------
    size : int
        Number of neurons of the dense layer.
    widths : tuple of int
        Numbers of neurons that A and B keep.
    both, only_a, only_b : int
        Numbers of neurons that both keep, that only A keeps, and that only B keeps.
    """

    size: int
    widths: tuple[int, int]
    both: int
    only_a: int
    only_b: int

    @property
    def expected(self) -> float:
        """Number of neurons that both would keep by chance: A's width times B's, over the size."""
        return self.widths[0] * self.widths[1] / self.size

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa of the keep masks: 1 if they are equal, 0 if they agree as by chance; None if both keep all, or none.

        Source: J. Cohen, "A coefficient of agreement for nominal scales", 1960.
        """
        a, b = (width / self.size for width in self.widths)
        chance = a * b + (1 - a) * (1 - b)
        agreed = 1 - (self.only_a + self.only_b) / self.size
        return (agreed - chance) / (1 - chance) if chance < 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain Python values, as JSON needs them."""
        return {**asdict(self), "widths": list(self.widths), "expected_both": self.expected, "kappa": self.kappa}


@dataclass(frozen=True)
class RunDifference:
    """How two pruned checkpoints, or rankings, of one model differ.

    Attributes
    ----------
    layers : dict from str to LayerDifference
        By prunable layer; empty if a run has no masks.
    widths : dict from str to tuple of (int or None)
        Number of neurons that A and B keep in each layer, as their reports state it; None if a report lacks the layer.
    correlations : dict from str to float
        Spearman's correlation of the scores of each layer; empty if a run has no scores. NaN where all scores are equal.
    settings : dict from str to tuple
        Settings of A and B that differ, by their path in the report such as ``method.scorer.name``. A setting that a report lacks
        is None.
    outcomes : dict from str to tuple
        Numbers of removed neurons, sizes, perplexities and divergences of A and B. A number that a report lacks is None.
    notes : tuple of str
        What could not be compared, as sentences.
    """

    layers: dict[str, LayerDifference]
    widths: dict[str, tuple[int | None, int | None]]
    correlations: dict[str, float]
    settings: dict[str, tuple[Any, Any]]
    outcomes: dict[str, tuple[Any, Any]]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain Python values, as JSON needs them."""
        return {
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
            "widths": {name: list(pair) for name, pair in self.widths.items()},
            "correlations": {name: value if isfinite(value) else None for name, value in self.correlations.items()},
            "settings": {name: list(pair) for name, pair in self.settings.items()},
            "outcomes": {name: list(pair) for name, pair in self.outcomes.items()},
            "notes": list(self.notes),
        }


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read what is known of a run from a pruned checkpoint, from its ``report.json``, or from a directory of ``llmrank rank``.

    Weights are not read.

    Raises
    ------
    CheckpointError
        There is neither a report nor a ranking, or the report is damaged.
    OptionError
        The ranking is damaged, or the report has other fields than those that llmrank writes.
    MaskError
        The masks are damaged.
    """
    place = Path(path)
    if (place / SETTINGS).is_file():
        return _read_ranking(place)
    report_path = place / REPORT_FILE if place.is_dir() else place
    if not report_path.exists():
        raise CheckpointError(
            f"{place} has no report; expected a directory that llmrank prune or llmrank rank has written, or a {REPORT_FILE}"
        )
    report = read_report(report_path)
    if not all(isinstance(report.get(key), dict) for key in ("model", "method", "neurons")):
        raise CheckpointError(f"{report_path} is no report of llmrank prune: it states no model, method and neurons")
    with refused_unless_sound(report_path, "expected a report of llmrank prune"):
        check_fields(report["neurons"], {}, {"widths": dict})
        widths = report["neurons"].get("widths", {})
        check_fields(widths, dict.fromkeys(widths, int))
        check_fields(report["method"], {}, {"targets": (list, str, type(None))})
        _flat(report)  # which fails where it is nested too deeply to be compared
    path_of_masks = report_path.parent / MASKS_FILE
    masks = Masks.load(path_of_masks) if path_of_masks.is_file() else None
    empty = [name for name, mask in (masks or {}).items() if not len(mask)]
    if empty:
        raise MaskError(f"{path_of_masks} has no neuron of {empty[0]}; expected masks that llmrank has written")
    return Run(place, report, masks, {})


def _read_ranking(place: Path) -> Run:
    ranking = Ranking.load(place)
    settings, scores = ranking.settings, ranking.scores
    report = {
        "model": {"source": settings["model"], "weights": settings["weights"]},
        "method": {name: settings[name] for name in ("pipeline", "scorer")},
        "calibration": settings.get("calibration"),
        "neurons": {"before": sum(map(len, scores.values()))},
    }
    # The file of scores is sorted by name, but the settings list the layers in the order of the model.
    return Run(place, report, None, {name: scores[name] for name in settings["layers"] if name in scores})


def compare_runs(a: Run, b: Run) -> RunDifference:
    """Compare two pruned checkpoints, or rankings, of one model.

    Raises
    ------
    OptionError
        The two are of different models: their classes, their dense sizes or their layers differ.
    """
    _check_same_model(a, b)
    notes, layers = [], {}
    if a.masks is not None and b.masks is not None:
        # The file of masks is sorted by name, but the report lists the layers in the order of the model.
        names = a.report["neurons"].get("widths", a.masks)
        ordered = names if set(names) == set(a.masks) else a.masks
        layers = {name: _compare_masks(a.masks[name], b.masks[name]) for name in ordered}
        if any("experts" in (_value(run.report, ("method", "targets")) or ()) for run in (a, b)):
            notes.append("experts were removed as wholes, so their numbers by chance and kappas say nothing")
    elif a.masks is not None or b.masks is not None or not (a.scores and b.scores):
        without = " and ".join(str(run.path) for run in (a, b) if run.masks is None)
        notes.append(f"no {MASKS_FILE} with {without}, so single neurons are not compared")
    both_scores = set(a.scores) & set(b.scores)
    widths = [run.report["neurons"].get("widths", {}) for run in (a, b)]
    settings = [_flat({name: _value(run.report, keys) for name, keys in COMPARED.items()}) for run in (a, b)]
    outcomes = {name: (_value(a.report, keys), _value(b.report, keys)) for name, keys in OUTCOMES.items()}
    if not _counts_the_same(a, b):
        outcomes = {name: pair for name, pair in outcomes.items() if OUTCOMES[name][0] != "neurons"}
    return RunDifference(
        layers,
        {name: (widths[0].get(name), widths[1].get(name)) for name in {**widths[0], **widths[1]}},
        {name: rank_correlation(a.scores[name], b.scores[name]) for name in a.scores if name in both_scores},
        {
            name: (settings[0].get(name), settings[1].get(name))
            for name in {**settings[0], **settings[1]}
            if settings[0].get(name) != settings[1].get(name)
        },
        {name: pair for name, pair in outcomes.items() if pair != (None, None)},
        tuple(notes),
    )


def _check_same_model(a: Run, b: Run) -> None:
    """Raise an OptionError if A and B state different facts of the dense model. Its path may differ."""

    def refuse(difference: str) -> None:
        raise OptionError(
            f"{a.path} and {b.path} are of different models: {difference}; expected two that were made from one dense model"
        )

    for what, keys in (
        ("class", ("model", "class")),
        ("digest of the weights", ("model", "weights")),
        ("number of parameters before pruning", ("before", "parameters")),
        *([("number of neurons before pruning", ("neurons", "before"))] if _counts_the_same(a, b) else []),
    ):
        one, other = _value(a.report, keys), _value(b.report, keys)
        if None not in (one, other) and one != other:
            refuse(f"the {what} is {one} and {other}")
    sizes = [{name: len(each) for name, each in (run.masks or run.scores).items()} for run in (a, b)]
    differing = sorted({name for name, _ in set(sizes[0].items()) ^ set(sizes[1].items())})
    if all(sizes) and differing:
        refuse(f"{len(differing)} layers differ in name or size, such as {differing[0]}")


def _counts_the_same(a: Run, b: Run) -> bool:
    """Whether both runs count the same units, such as neurons or blocks."""
    return bool(_value(a.report, ("neurons", "unit")) == _value(b.report, ("neurons", "unit")))


def _compare_masks(a: torch.Tensor, b: torch.Tensor) -> LayerDifference:
    return LayerDifference(
        len(a), (int(a.sum()), int(b.sum())), int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum())
    )


def _value(report: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Return an entry of nested dicts, or None if one of them lacks it."""
    found: Any = report
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict, whose keys are the nested keys joined by points."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
