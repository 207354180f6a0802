"""The pipelines: runs whose recipes are given as arguments. They differ in how they join the graphs of FFNs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from llmrank.execution import Processes
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.texts import CalibrationText
from llmrank.progress import Progress
from llmrank.prune import BasePruner
from llmrank.repair import BaseRepair
from llmrank.score import BaseScorer
from llmrank.score.pagerank import default_scorer
from llmrank.score.topologies import Topology
from llmrank.surgery.forms import Form

__all__ = ["BasePipeline", "ChainedFFNPipeline", "IsolatedFFNPipeline", "ResidualFFNPipeline"]


DEFAULT_REPAIR = Recipe().repair


class BasePipeline(PruningRun):
    """Base class of pipelines: find FFNs, calibrate, build and rank graphs, choose keep masks, repair, and apply the masks.

    The defaults are those of :class:`llmrank.pipeline.recipe.Recipe`. With a `structure_dict` they are those of the paper: one
    scorer, no repair, the zero form and the built-in text.

    Parameters
    ----------
    model : nn.Module
        Changed in place by :meth:`run`.
    tokenizer : transformers tokenizer or None
        May be None if `calibration`, and `evaluation` if given, are tensors.
    structure_dict : mapping, optional
        A mapping (``path_to_layers``, ``path_to_modules``) that names Linears whose rows are pruned, as in the paper. By default
        the FFNs are found in the model.
    scorer : BaseScorer, optional
        :class:`llmrank.score.AutoScorer` by default, which tries several and takes one.
    pruner : BasePruner, optional
        :class:`LocalPruner` of 30 % by default. A pruner that needs sensitivities is refused with a `structure_dict`.
    device, progress, undoable, work_directory, resume, processes
        As for :class:`llmrank.pipeline.pruning_run.PruningRun`.
    calibration : CalibrationText, or a source as for :class:`CalibrationText`; optional
        The text that statistics are taken on; by default up to 16 sequences of at most 1,024 tokens that the model writes
        itself, or of the built-in text if it writes none.
    form : {"compact", "padded", "zero", "mask"}, optional
        See :func:`llmrank.surgery.apply.apply_masks`. Compact by default; zero with a `structure_dict`, which keeps every width.
    repair : BaseRepair, optional
        How new weights of the output maps make up for the removed neurons, see :mod:`llmrank.repair`; least squares by default.
        None repairs nothing, so that the masks alone make the pruned model. The repair is kept if it brings the model closer to
        the dense one on held-out sequences (see :meth:`llmrank.pipeline.CalibrationText.sequences`), or if none are held out.
    targets : str or sequence of str
        What is removed: "neurons" (the default), in a mixture of experts from every expert; "experts"; "heads" of attentions; or
        several of them, such as "neurons,heads".
    evaluation : EvaluationText, a source as for :class:`EvaluationText`, or True; optional
        The text that the perplexity before and after pruning is measured on; True is the part of the built-in text that is not
        used for calibration. By default no perplexity is measured.

    See :class:`llmrank.pipeline.pruning_run.PruningRun` for its attributes and methods.
    """

    topology: ClassVar[Topology]

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        structure_dict: Mapping[str, Any] | None = None,
        scorer: BaseScorer | None = None,
        pruner: BasePruner | None = None,
        device: str | torch.device | None = None,
        *,
        calibration: Any = None,
        form: Form | None = None,
        repair: BaseRepair | None = DEFAULT_REPAIR,
        targets: str | Sequence[str] = "neurons",
        evaluation: Any = None,
        progress: Progress | None = None,
        undoable: bool = True,
        work_directory: str | os.PathLike[str] | None = None,
        resume: bool = False,
        processes: Processes | None = None,
    ) -> None:
        if structure_dict is not None:
            scorer = default_scorer(whole_ffns=False) if scorer is None else scorer
            repair = None if repair is DEFAULT_REPAIR else repair
            form = "zero" if form is None else form
            calibration = CalibrationText.of(calibration)
        given = {"scorer": scorer, "pruner": pruner, "form": form, "calibration": calibration}
        recipe = Recipe(
            topology=self.topology,
            repair=repair,
            targets=targets,  # type: ignore[arg-type]  # it converts what is no tuple
            evaluation=evaluation,
            structure_dict=structure_dict,
            **{name: value for name, value in given.items() if value is not None},
        )
        super().__init__(
            model,
            tokenizer,
            recipe,
            device,
            progress=progress,
            undoable=undoable,
            work_directory=work_directory,
            resume=resume,
            processes=processes,
        )


class IsolatedFFNPipeline(BasePipeline):
    """Every FFN is a graph of its own. See :class:`BasePipeline`."""

    topology: ClassVar[Topology] = "isolated"


class ChainedFFNPipeline(BasePipeline):
    """Consecutive FFNs of an encoder or decoder are one graph: the output layer of one is the input layer of the next.

    Where the sizes of two consecutive FFNs do not fit, another graph begins. See :class:`BasePipeline`.
    """

    topology: ClassVar[Topology] = "chained"


class ResidualFFNPipeline(BasePipeline):
    """Every FFN is a graph of its own, with the residual stream around it: skip edges lead past the FFN to the next one.

    Node j of the stream in front of an FFN passes a share beta of its importance to node j behind it. The rest of the importance
    behind the FFN comes from the FFN's own scores, see :func:`llmrank.score.rank_graphs.rank_graphs`. A `structure_dict` is
    refused. See :class:`BasePipeline`.

    Parameters
    ----------
    *args, **options
        As for :class:`BasePipeline`.
    beta : "measured" or float
        Share of the importance that skip edges pass on, 0..1. If it is 0, and `attention` is False, PageRanks are those of the
        chained pipeline. "measured" computes the share for each block on the calibration tokens, as a / (a + b), where a sums the
        norms of the hidden states that enter the block, and b the norms of what the block adds
        (:class:`llmrank.calibration.residual.SkipSums`). If a block has several graphs, this share is the product of their betas.
    attention : bool
        Whether the value and output maps of every attention are edges too. They are in a graph of their own in front of the graph
        of the FFN, see :func:`llmrank.models.finding.attention.find_attentions`.
    """

    topology: ClassVar[Topology] = "residual"

    def __init__(
        self, *args: Any, beta: float | Literal["measured"] = "measured", attention: bool = False, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.recipe = replace(self.recipe, beta=beta, attention=attention)
