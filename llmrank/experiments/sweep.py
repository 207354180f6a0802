"""Sweeps: many ways to prune models, measured by one protocol.

A row of a sweep is one of these ways on one model, or the dense model.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from graphs import GraphError
from llmrank.errors import LLMRankError, OptionError, is_out_of_memory
from llmrank.evaluation.lm_eval import LMEvalTasks
from llmrank.experiments.identity import COMMIT, identity_of
from llmrank.experiments.model_study import ModelStudy
from llmrank.experiments.settings import RowSettings, SweepSettings
from llmrank.experiments.sweep_folder import IDENTITIES, SweepFolder
from llmrank.experiments.sweep_result import SweepResult
from llmrank.experiments.tracking import Tracker, make_tracker, numbers_of
from llmrank.models.digest import weights_digest
from llmrank.models.loading import LoadedModel
from llmrank.pipeline import DEFAULT_LENGTH, CalibrationText, EvaluationText
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.progress import Progress, progress_step
from llmrank.surgery import checkpoint

__all__ = ["SweepModel", "measure_sweep", "sweep"]


@dataclass(frozen=True)
class SweepModel:
    """A model of a sweep.

    Attributes
    ----------
    name : str
        Name of the model in rows and tables. No other model of the sweep has it.
    load : callable
        Returns the :class:`llmrank.models.loading.LoadedModel`; it is called once, and only if a row is missing.
    identity : str
        A digest of the weights, or of their files, or a commit on the hub. It keeps the rows of this model apart from those of
        another model, or another version, of the same name. Empty if it is not known.
    """

    name: str
    load: Callable[[], LoadedModel]
    identity: str = ""

    @classmethod
    def several(
        cls,
        sources: Sequence[Any],
        load: Callable[..., LoadedModel] = checkpoint.load,
        revision: str | None = None,
    ) -> tuple[SweepModel, ...]:
        """Make models from sources. The name of a directory or file is the last part of its path.

        All weights are read for their identity: those in memory, or the bytes of the files. `revision` is the branch, tag or
        commit of models on the hub.
        """
        found: dict[str, SweepModel] = {}
        for source in sources:
            if not isinstance(source, (str, os.PathLike, LoadedModel)):
                raise OptionError(
                    "a model of a sweep is a path, a name on the hub, or what llmrank.load returns (model and tokenizer), got a "
                    f"{type(source).__name__}"
                )
            text = source.source if isinstance(source, LoadedModel) else os.fspath(source)
            name = base = Path(text).resolve().name if Path(text).exists() else str(text)
            number = 1
            while name in found:
                number += 1
                name = f"{base} ({number})"
            if isinstance(source, LoadedModel):
                identity = f"weights {weights_digest(source.model, complete=True)[:16]}"
                found[name] = cls(name, lambda loaded=source: loaded, identity)  # type: ignore[misc]
            else:
                identity = identity_of(str(text), "model", revision)
                # A model on the hub is loaded at the commit that it is known by, whatever is pushed meanwhile.
                commit = identity.removeprefix(COMMIT) if identity.startswith(COMMIT) else revision
                loading = partial(load, source, revision=commit) if commit else partial(load, source)
                found[name] = cls(name, loading, identity)
        return tuple(found.values())


def sweep(
    models: Any,
    *,
    output: str | os.PathLike[str],
    scorers: Sequence[str] = (DEFAULTS["scorer"],),
    pruners: Sequence[str] = (DEFAULTS["pruner"],),
    pipelines: Sequence[str] = (DEFAULTS["pipeline"],),
    amounts: Sequence[float | int] = (0.3,),
    repairs: Sequence[str] = (DEFAULTS["repair"],),
    amount_of: str = "neurons",
    targets: str = "neurons",
    calibration: Any = DEFAULTS["calibration"],
    samples: int | None = None,
    sequence_length: int = DEFAULT_LENGTH,
    batch_size: int = 1,
    evaluation: Any = None,
    tasks: Sequence[str] = (),
    speed: bool = False,
    heals: Sequence[int] = (0,),
    items: str | os.PathLike[str] | None = None,
    track: str | Tracker | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Prune models by every combination of scorers, pruners, pipelines, amounts, repairs and healings, and measure each.

    Parameters
    ----------
    models : str, path-like, LoadedModel, or sequence of them
        What :func:`llmrank.load` takes or returns. Every model is loaded once, and restored after each row.
    output : path-like
        Directory for the results: a line of ``rows.jsonl`` for every row, as soon as it is measured, and the calibration of every
        model. If it holds rows already, only the missing ones are measured. The lists that make the grid (scorers, pruners,
        pipelines, amounts, repairs, heals) may differ from those of the earlier call.
    scorers, pruners, pipelines, repairs : sequence of str
        Specs such as ``"wpr:gamma=0.9"`` (``llmrank components`` lists the names).
    amounts : sequence of float or int
        Shares in [0, 1), or numbers, to remove.
    amount_of, targets
        See :func:`llmrank.prune_model`.
    calibration, samples, sequence_length, batch_size
        See :func:`llmrank.prune_model`. The text passes through every model once, for all rows: 16 samples by default, also for
        rows that heal. It is a path, a text, a list of texts or the name of a source.
    evaluation : EvaluationText, or a source of one; optional
        The text that perplexity is measured on; by default the part of the built-in text that is not used for calibration.
    tasks : sequence of str
        Tasks of lm-eval, which every model is measured on.
    speed : bool
        Whether to measure how fast every pruned model reads text, in alternation with the dense model.
    heals : sequence of int
        Numbers of tokens to heal with, see :func:`llmrank.heal`; 0 for none.
    items : path-like, optional
        A file of items that every model is asked, or "built-in"; see :func:`llmrank.evaluation.items.read_items`.
    track : {"wandb", "trackio", "tensorboard"} or Tracker, optional
        Where else to log every row that is measured.
    progress : callable, optional
        A function such as ``rich.progress.track``; by default no progress is shown.

    Returns
    -------
    SweepResult
        All rows in `output`, also those that an earlier sweep has measured. A row that fails holds its error instead of results.
        A row with an unexpected error, perhaps a bug, is returned but not written, so that the next call tries it again.

    Raises
    ------
    LLMRankError
        Bad settings, a text that cannot be read, or a directory whose rows had other models, texts or measures. All are raised
        before a model is loaded.
    MemoryError, OSError
        The machine has no memory left, or a file cannot be read or written. The rows measured so far are in `output`, and the
        same call measures the others.

    Notes
    -----
    Cost: for every model one pass of the calibration text; for every row a pass of the evaluation text and, if it repairs, the
    repair, which takes several passes of the calibration text. Ranks are shared by rows of the same scorer and pipeline.

    Examples
    --------
    >>> result = sweep("path/to/model", output="runs", amounts=[0.1, 0.2], repairs=["none"])  # doctest: +SKIP
    >>> [row["perplexity"] for row in result.rows]  # doctest: +SKIP
    """
    if not isinstance(calibration, CalibrationText):
        calibration = CalibrationText(calibration, samples, sequence_length, batch_size)
    settings = SweepSettings(
        scorers,
        pruners,
        pipelines,
        amounts,
        repairs,
        amount_of,
        targets,
        calibration,
        EvaluationText.of(evaluation) or EvaluationText(),
        tasks,
        speed=speed,
        heals=heals,
        items=items,
    )
    chosen = SweepModel.several([models] if isinstance(models, str) or not isinstance(models, Sequence) else models)
    return measure_sweep(chosen, settings, output, track=track, progress=progress)


def measure_sweep(
    models: Sequence[SweepModel],
    settings: SweepSettings,
    output: str | os.PathLike[str],
    *,
    loading: Mapping[str, Any] | None = None,
    track: str | Tracker | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Measure the rows of a sweep that are missing in its directory.

    Parameters
    ----------
    models : sequence of SweepModel
    settings : SweepSettings
    output, track, progress
        See :func:`sweep`, also for the exceptions.
    loading : mapping, optional
        Options of loading that change the results, such as the dtype, in values that JSON can hold.

    Returns
    -------
    SweepResult
    """
    if not models:
        raise OptionError("a sweep needs one or more models; name some")
    tasks = settings.check()
    loaded_with = {name: value for name, value in (loading or {}).items() if value is not None}
    identities = {**{f"model {model.name}": model.identity for model in models}, **settings.identities(progress)}
    names = [model.name for model in models]
    described = {"models": names, **settings.describe(), "loading": loaded_with, IDENTITIES: identities}
    tracker = make_tracker(track, Path(output))
    run = _Run(settings, tasks, SweepFolder(output, described), tracker, progress)
    # These rows are not written to the disk, so the same sweep tries them again.
    failed = [row for number, model in enumerate(models) for row in run.measure(model, number)]
    return SweepResult([*run.folder.rows, *failed], run.folder.path)


@dataclass(frozen=True)
class _Run:
    """Measures the missing rows of a sweep."""

    settings: SweepSettings
    tasks: LMEvalTasks | None
    folder: SweepFolder
    tracker: Tracker | None
    progress: Progress | None

    def measure(self, model: SweepModel, number: int) -> list[dict[str, Any]]:
        """Measure the missing rows of one model, and write them. Return rows with errors that must be tried again.

        These are the row of the dense model, if it cannot be measured, and rows with an error that llmrank does not expect.
        """
        rows = self.settings.rows()
        missing = [row for row in rows if self._find_row(model, row) is None]
        dense = self._find_row(model, None)
        if dense is not None and not missing:
            return []
        try:
            with progress_step(self.progress, f"Loading {model.name}"):
                loaded = model.load()
            torch.manual_seed(self.settings.calibration.seed)
            study = ModelStudy(loaded, self.settings, self.tasks, self.folder.calibration(number), self.progress)
            if dense is None:
                measured = study.measure(None, None, self._stages_of(f"{model.name}, dense"))
        except Exception as error:
            return [{"model": model.name, **self.settings.describe_row(None), **_error_result(error)}]
        about = study.describe()
        self.folder.check_same_inputs(model.name, about)
        if dense is None:
            dense = self._add(model, None, measured, about)
        failed = []
        for position, row in enumerate(missing, start=1):
            name = f"{model.name}, row {position} of {len(missing)} ({row.label()})"
            try:
                results = study.measure(row, dense, self._stages_of(name))
            except Exception as error:
                results = _error_result(error)
            if results.get("unexpected"):
                failed.append({"model": model.name, **self.settings.describe_row(row), **results, **about})
            else:
                self._add(model, row, results, about)
        return failed

    def _stages_of(self, name: str) -> Progress | None:
        """Return the progress of the stages of a row, whose name stands before that of each stage."""
        progress = self.progress
        return None if progress is None else lambda items, stage: progress(items, f"{name}: {stage}")

    def _find_row(self, model: SweepModel, row: RowSettings | None) -> dict[str, Any] | None:
        return self.folder.find({"model": model.name, **self.settings.describe_row(row)})

    def _add(
        self, model: SweepModel, row: RowSettings | None, results: dict[str, Any], about: dict[str, Any]
    ) -> dict[str, Any]:
        """Write a measured row to the folder, log it by the tracker, and return it."""
        own = {"model": model.name, **self.settings.describe_row(row)}
        added = {"row": len(self.folder.rows), **own, **(about | results)}
        self.folder.append(added)
        if self.tracker is not None:
            try:
                names = ("model", "scorer", "pruner", "pipeline", "amount", "repair", "heal")
                self.tracker.start("_".join(str(own[name]) for name in names if own[name]), own | about)
                self.tracker.log(numbers_of(results))
                self.tracker.finish()
            except Exception as error:  # the tracker's library or its network may fail in any way
                warnings.warn(
                    f"row {added['row']} is in {self.folder.path}, but could not be tracked ({type(error).__name__}: {error})",
                    stacklevel=2,
                )
        return added


def _error_result(error: Exception) -> dict[str, Any]:
    """Return an error as the result of a row. Raise errors of memory and files again, so that a later sweep measures the row."""
    if is_out_of_memory(error) or isinstance(error, OSError):
        raise error
    expected = isinstance(error, (LLMRankError, GraphError))
    return {"error": str(error) if expected else f"{type(error).__name__}: {error}", "unexpected": not expected}
