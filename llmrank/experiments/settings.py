"""The settings of a sweep: the grid of its rows, and what all rows have in common.

A row is one pruning experiment. A spec is the name of a component with its options, such as ``wpr:gamma=0.9``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any

from llmrank.errors import OptionError, check_type
from llmrank.evaluation.items import Item, describe_items, read_items
from llmrank.evaluation.lm_eval import LMEvalTasks, find_tasks
from llmrank.experiments.identity import identity_of
from llmrank.healing import Distillation
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.pipeline.registry import PIPELINES, make_pruner, make_repair, make_scorer
from llmrank.pipeline.texts import CalibrationText, EvaluationText
from llmrank.progress import Progress
from llmrank.prune.records.units import parse_targets
from llmrank.prune.selection import check_several
from llmrank.text import check_text
from llmrank.text.base_source import BaseSource
from llmrank.text.mixed_sources import MixedSources
from llmrank.text.sequences import Role
from llmrank.text.sources import find_source, open_text
from llmrank.text.text_files import TextFiles

__all__ = ["RowSettings", "SweepSettings"]


@dataclass(frozen=True)
class RowSettings:
    """How the model of one row is pruned.

    Attributes
    ----------
    pipeline, scorer, pruner, repair : str
        Specs, see :mod:`llmrank.pipeline.registry`.
    amount : float or int
        Share or number to remove.
    heal : int
        Number of tokens that the pruned model is healed with.
    """

    pipeline: str
    scorer: str
    pruner: str
    amount: float | int
    repair: str
    heal: int = 0

    def label(self) -> str:
        """Return the settings in one line."""
        healed = f" healed with {self.heal:,} tokens" if self.heal else ""
        return f"{self.pipeline} {self.scorer} {self.pruner} {self.amount} {self.repair}{healed}"


@dataclass(frozen=True)
class SweepSettings:
    """The grid of a sweep, and what all its rows have in common.

    Parameters
    ----------
    scorers, pruners, pipelines, repairs : sequence of str
        Specs. There is a row for every combination of a scorer, a pruner, a pipeline, a repair, an amount and a healing. The
        repair "none" repairs nothing.
    amounts : sequence of float or int
        Shares in [0, 1), or numbers, to remove.
    amount_of, targets : str
        See :func:`llmrank.prune_model`.
    calibration : CalibrationText
        The text that statistics are taken on.
    evaluation : EvaluationText
        The text that perplexity is measured on.
    tasks : sequence of str
        Tasks of lm-eval.
    task_dir : path-like, optional
        Directory of further tasks.
    documents : int, optional
        Largest number of documents of each task.
    speed : bool
        Whether to measure the speed of every model.
    heals : sequence of int
        Numbers of tokens to heal with, 0 for none. A copy of the dense model stays in memory for it.
    items : path-like, optional
        A file of items that every model is asked, or "built-in".
    """

    scorers: Sequence[str] = (DEFAULTS["scorer"],)
    pruners: Sequence[str] = (DEFAULTS["pruner"],)
    pipelines: Sequence[str] = (DEFAULTS["pipeline"],)
    amounts: Sequence[float | int] = (0.3,)
    repairs: Sequence[str] = (DEFAULTS["repair"],)
    amount_of: str = "neurons"
    targets: str = "neurons"
    calibration: CalibrationText = field(default_factory=lambda: CalibrationText(DEFAULTS["calibration"]))
    evaluation: EvaluationText = field(default_factory=EvaluationText)
    tasks: Sequence[str] = ()
    task_dir: Any = None
    documents: int | None = None
    speed: bool = False
    heals: Sequence[int] = (0,)
    items: str | os.PathLike[str] | None = None

    def rows(self) -> list[RowSettings]:
        """Return the rows of the grid. The row of the dense model is not one of them."""
        axes = (self.pipelines, self.scorers, self.pruners, self.amounts, self.repairs, self.heals)
        return [RowSettings(*row) for row in dict.fromkeys(product(*axes))]

    def check(self) -> LMEvalTasks | None:
        """Check the settings as far as that is possible without a model; return the tasks, or None if there are none.

        Raises
        ------
        LLMRankError
            A list of the grid is empty; a component, text or task is unknown; or an amount is out of range for every model.
        """
        for name in ("scorers", "pruners", "pipelines", "amounts", "repairs", "heals", "tasks"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence) or not (values or name == "tasks"):
                number = "values" if name == "tasks" else "one or more values"
                raise OptionError(f"{name} must be a list of {number}, got {values!r}")
            if name not in ("amounts", "heals") and not all(isinstance(value, str) for value in values):
                raise OptionError(
                    f"{name} must be specs such as 'wpr:gamma=0.9', because rows are written to a file, got {values!r}; give a "
                    "component of your own a name with llmrank.pipeline.registry"
                )
        for scorer in self.scorers:
            make_scorer(scorer)
        for pruner, amount in product(self.pruners, self.amounts):
            check_several(make_pruner(pruner, amount=amount, amount_of=self.amount_of), parse_targets(self.targets))
        for repair in self.repairs:
            make_repair(repair)
        for tokens in self.heals:
            if tokens != 0:
                Distillation(tokens)
        for pipeline in self.pipelines:
            if PIPELINES.options(pipeline)[1].get("attention"):
                raise OptionError(
                    "a sweep keeps its statistics in a file, and statistics of attentions cannot be kept in one; leave "
                    f"attention=true out of {pipeline!r}"
                )
        check_type(
            "items", self.items, (str, os.PathLike, NoneType), "the path of a file of items, 'built-in', or None"
        )
        self.asked_items  # noqa: B018 - reads the file, so that a bad one is refused now
        check_text(self.calibration.source)
        check_text(self.evaluation.source, "evaluation")
        if not self.tasks:
            if self.task_dir is not None or self.documents is not None:
                raise OptionError(
                    "a directory or number of documents is for lm-eval's tasks; name some tasks, or leave it out"
                )
            return None
        text = self.evaluation.source
        # lm-eval passes a path, or the name of a source, on to the tasks of llmrank.
        is_path_or_name = isinstance(text, Path) or (isinstance(text, str) and "\n" not in text)
        own_tasks = any(task.startswith("llmrank_") for task in self.tasks)
        if text is not None and not is_path_or_name and own_tasks:
            raise OptionError(
                "the tasks of llmrank read the evaluation text from a file; pass its path instead of the text"
            )
        return find_tasks(self.tasks, text if is_path_or_name else None, None, self.task_dir)

    @cached_property
    def asked_items(self) -> tuple[Item, ...]:
        """The items that every model is asked; see :func:`llmrank.evaluation.items.read_items`."""
        return () if self.items is None else read_items(self.items)

    def describe(self) -> dict[str, Any]:
        """Return what all rows have in common, in values that JSON can hold; a text is described by its digest."""
        calibration, evaluation = vars(self.calibration), vars(self.evaluation)
        return {
            **{name: getattr(self, name) for name in ("amount_of", "targets", "documents", "speed")},
            "tasks": list(self.tasks),
            "items": describe_items(self.asked_items) if self.asked_items else None,
            "task_dir": None if self.task_dir is None else str(self.task_dir),
            "calibration": _describe_text(self.calibration.source, "calibration"),
            **{name: value for name, value in calibration.items() if name != "source"},
            "samples": self.calibration.n_sequences,
            "evaluation": _describe_text(self.evaluation.source, "evaluation"),
            "evaluation_samples": evaluation["samples"],
        }

    def identities(self, progress: Progress | None = None) -> dict[str, str]:
        """Return what each dataset that texts are read from is known by, see :mod:`llmrank.experiments.identity`."""
        sources = find_source(self.calibration.source), find_source(self.evaluation.source, "evaluation")
        places = list(dict.fromkeys(place for source in sources for place in _places(source)))
        steps = progress(places, "Reading what the datasets are") if progress and places else places
        return {f"dataset {place}": identity_of(place, "dataset") for place in steps}

    def describe_row(self, row: RowSettings | None) -> dict[str, Any]:
        """Return the settings of a row in values that JSON can hold.

        For the dense model (`row` is None) all of them are None, except the seed.
        """
        own = dict.fromkeys(RowSettings.__dataclass_fields__) if row is None else asdict(row)
        others = {"targets": self.targets, "amount_of": self.amount_of}
        return {**own, **(dict.fromkeys(others) if row is None else others), "seed": self.calibration.seed}


def _places(source: BaseSource | None) -> list[str]:
    """Return where a source reads rows that may change while it keeps its name."""
    if isinstance(source, MixedSources):
        return [place for each in source.sources for place in _places(each)]
    place = None if source is None else source.place()
    return [] if place is None else [place]


def _describe_text(source: Any, role: Role) -> str:
    """Return the name of a source; for a text that has no such name, a description and a digest; for a mixture, all of these."""
    named = find_source(source, role)
    if isinstance(named, MixedSources):
        entries = zip(named.sources, named.shares, strict=True)
        return ", ".join(f"{_describe_text(entry, role)}: {share:.4}" for entry, share in entries)
    if named is not None and not isinstance(named, TextFiles):
        return str(named)
    text, description = open_text(source, role)
    digest = hashlib.sha256()
    for number, document in enumerate([text] if isinstance(text, str) else text):
        content = document if isinstance(document, str) else json.dumps(document)
        digest.update(("\0" * min(number, 1) + content).encode(errors="surrogatepass"))
    return f"{description}, sha256 {digest.hexdigest()[:16]}"
