"""Prune a model in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmrank.errors import OptionError, check_type
from llmrank.execution import launched_processes
from llmrank.execution.work_directory import SHARD_BYTES, WorkDirectory
from llmrank.healing import Distillation
from llmrank.models.costs import Unit
from llmrank.pipeline.defaults import DEFAULT_LENGTH, DEFAULTS
from llmrank.pipeline.pipelines import BasePipeline
from llmrank.pipeline.printed import Printed, PrintedGroup
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.registry import make_recipe
from llmrank.pipeline.report import Report
from llmrank.pipeline.texts import CalibrationText
from llmrank.progress import Progress
from llmrank.prune import BasePruner
from llmrank.prune.masks import Masks
from llmrank.repair import BaseRepair
from llmrank.score import BaseScorer
from llmrank.surgery import checkpoint
from llmrank.surgery.apply import AppliedMasks
from llmrank.surgery.forms import Form

__all__ = ["PrunedModel", "prune_model"]


@dataclass(frozen=True, eq=False, repr=False)
class PrunedModel(Printed):
    """A pruned model with its keep masks and report. Its repr, and what a notebook shows of it, is the table of the report.

    Attributes
    ----------
    model : nn.Module
        The model that was passed in.
    masks : Masks
        Keep masks over the neurons of the dense model.
    report : Report
        The protocol and the outcome.
    application : AppliedMasks
        What :meth:`undo` undoes.
    tokenizer : transformers tokenizer or None
    work : WorkDirectory or None
        The directory with the files of a run with little memory; :meth:`save` deletes it.
    """

    model: nn.Module
    masks: Masks
    report: Report
    application: AppliedMasks
    tokenizer: Any = None
    work: WorkDirectory | None = None

    def __rich__(self) -> PrintedGroup:
        return self.report.table()

    def undo(self) -> nn.Module:
        """Restore the model as it was before, bit for bit, and return it.

        Raises
        ------
        OptionError
            It was pruned for good: the original weights were not kept; or it was restored already.
        MaskError
            Parameters were replaced in between.
        """
        if self.application.is_undone:
            raise OptionError("there is nothing to undo: the model was restored already")
        self.application.undo()
        return self.model

    def save(
        self, directory: str | os.PathLike[str], *, push_to_hub: str | None = None, private: bool | None = None
    ) -> Path:
        """Write a checkpoint with masks and report. If there are several processes, only process 0 writes it.

        Parameters
        ----------
        directory : path-like
            A directory that does not exist yet, or an empty one.
        push_to_hub, private
            See :func:`llmrank.save`.

        Returns
        -------
        Path
            The directory.

        Raises
        ------
        CheckpointError, OptionError
            See :func:`llmrank.save`.
        """
        if self.application.is_undone:
            raise OptionError(
                "undo() has restored the dense model, so there is no pruned model to save; prune it again"
            )
        if launched_processes()[0]:
            return Path(directory)
        shard_bytes = None if self.work is None else SHARD_BYTES
        written = checkpoint.save(
            directory,
            self.model,
            self.tokenizer,
            self.masks,
            self.report.to_dict(),
            shard_bytes=shard_bytes,
            push_to_hub=push_to_hub,
            private=private,
        )
        if self.work is not None:
            self.work.remove()
        return written


def prune_model(
    model: nn.Module,
    tokenizer: Any = None,
    amount: float | int = 0.3,
    *,
    amount_of: Unit = "neurons",
    targets: str | Sequence[str] = "neurons",
    pipeline: str | type[BasePipeline] = DEFAULTS["pipeline"],
    scorer: str | BaseScorer | Sequence[str | BaseScorer] = DEFAULTS["scorer"],
    pruner: str | BasePruner = DEFAULTS["pruner"],
    repair: str | BaseRepair | None = DEFAULTS["repair"],
    calibration: Any = DEFAULTS["calibration"],
    samples: int | None = None,
    sequence_length: int = DEFAULT_LENGTH,
    batch_size: int = 1,
    evaluation: Any = None,
    heal: Distillation | int | None = None,
    form: Form = "compact",
    device: str | torch.device | None = None,
    undoable: bool = False,
    progress: Progress | None = None,
    work_directory: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> PrunedModel:
    """Prune the FFNs of a model: calibrate, rank, choose neurons, remove them and repair the rest.

    Parameters
    ----------
    model : nn.Module
        A transformers model or another module with FFNs. It is changed in place.
    tokenizer : transformers tokenizer, optional
        Not needed if `calibration`, and `evaluation` if given, are tensors.
    amount : float or int
        Share in [0, 1), or number, to remove. Ignored if `pruner` is an object.
    amount_of : str
        What the amount is a share or a number of: neurons, ffn-parameters, ffn-bytes, ffn-flops, parameters, bytes or flops.
        Ignored if `pruner` is an object.
    targets : str or sequence of str
        What is removed: "neurons", "heads" of attentions, the "experts" of a mixture, or several of them, such as
        "neurons,heads". The amount is a share of the heads, and of the neurons in FFNs and experts. Or "blocks", of which
        those are left out that cost least.
    pipeline : str or class
        How the graphs of FFNs are joined: "isolated", "chained" or "residual", or a spec such as ``"residual:beta=0.5"``.
    scorer, pruner, repair : str or object
        Each an object or a spec such as ``"wpr:gamma=0.9"`` (``llmrank components`` lists the names). The repair None or "none"
        repairs nothing. Several scorers, or "auto", are tried, and one is chosen, see :class:`llmrank.score.AutoScorer`.
    calibration : CalibrationText, or a source of one
        By default text that the model writes itself if it can write text, else the built-in text.
    samples, sequence_length, batch_size : int
        See :class:`llmrank.pipeline.CalibrationText`; ignored if `calibration` is one.
    evaluation : EvaluationText, a source of one, or True; optional
        The text that the perplexity before and after is measured on; True is the part of the built-in text that is not used for
        calibration. By default no perplexity is measured.
    heal : Distillation or int, optional
        Let the pruned model learn the predictions of the dense one from this many tokens of the calibration text that the repair
        has not seen, see :func:`llmrank.heal`. A copy of the dense model stays in memory for it.
    form : {"compact", "padded", "zero", "mask"}
        Smaller matrices; the same, filled up with zeros to one width, for programs that expect equal layers; zeros in matrices of
        the same size; or masks of ``torch.nn.utils.prune``.
    device : str or torch.device, optional
        The device that the model is moved to; by default it stays where it is. With a work directory, blocks are brought to the
        device one at a time, and the model stays on the CPU.
    undoable : bool
        Keep the original weights in memory, for :meth:`PrunedModel.undo`.
    progress : callable, optional
        A function such as ``rich.progress.track``; by default no progress is shown. :func:`llmrank.cli.progress.make_progress`
        makes one: bars on a terminal, and lines in a notebook or a log.
    work_directory : path-like, optional
        Run block by block with little memory. What the present block does not need is kept in files of this directory. The run
        makes the directory, and :meth:`PrunedModel.save` deletes it. Load the model on the CPU in the dtype of its checkpoint, so
        that its weights stay on disk.
    resume : bool
        Go on with an earlier, unfinished run in the work directory, at the block where it ended.

    Returns
    -------
    PrunedModel

    Raises
    ------
    LLMRankError, graphs.GraphError
        Bad options, data or models. The weights are unchanged if the error comes before the end of the repair and before any
        mask is applied.
    OSError
        There is no space for the temporary file that keeps the old weights during a repair.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> pruned = prune_model(network, amount=0.25, scorer="wpr:gamma=0.9", repair="none", calibration=torch.rand(16, 4))
    >>> pruned.model[0].weight.shape
    torch.Size([6, 4])
    """
    for name, value in {"amount_of": amount_of, "form": form}.items():
        check_type(name, value, str, "a name")
    if not isinstance(calibration, CalibrationText):
        calibration = CalibrationText(calibration, samples, sequence_length, batch_size)
    recipe = make_recipe(
        pipeline,
        scorer,
        pruner,
        repair,
        amount=amount,
        amount_of=amount_of,
        targets=targets,
        form=form,
        heal=heal,
        calibration=calibration,
        evaluation=evaluation,
    )
    run = PruningRun(
        model,
        tokenizer,
        recipe,
        device,
        progress=progress,
        undoable=undoable,
        work_directory=work_directory,
        resume=resume,
    )
    try:
        run.run()
        if run.masks is None or run.report is None or run.application is None:
            raise RuntimeError("the run has left no masks and no report")
        return PrunedModel(model, run.masks, run.report, run.application, tokenizer, run.work)
    except BaseException:
        if undoable and run.application is not None:  # an interruption may come when everything else is done
            run.undo()
        raise
