"""A check of the options of a pipeline, before any work is done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from llmrank.errors import OptionError, check_type
from llmrank.models.costs import unit_name
from llmrank.prune import BasePruner
from llmrank.prune.schedule import check_steps
from llmrank.repair import BaseRepair
from llmrank.score import AutoScorer, BaseScorer
from llmrank.surgery.forms import FORMS, Form
from llmrank.surgery.widths import ALIGNMENTS, Align

__all__ = ["check_kinds", "check_options"]


def check_kinds(model: Any, progress: Any, work_directory: Any) -> None:
    """Raise an OptionError if one of these options of :class:`llmrank.pipeline.BasePipeline` is of another type."""
    check_type("model", model, nn.Module, "a torch module (llmrank.load(...).model loads one)")
    if progress is not None and not callable(progress):
        raise OptionError(f"progress must be a function such as rich.progress.track, or None, got {progress!r}")
    if work_directory is not None:
        check_type("work_directory", work_directory, (str, os.PathLike), "a path")


def check_options(
    structure_dict: Mapping[str, Any] | None,
    scorer: BaseScorer | None,
    pruner: BasePruner | None,
    form: Form | None,
    align: Align,
    repair: BaseRepair | None,
    steps: int,
    *,
    by_block: bool = False,
    undoable: bool = True,
) -> None:
    """Raise unless these options of :class:`llmrank.pipeline.BasePipeline` are of the right kind and go together.

    Raises
    ------
    OptionError
        An option is unknown, of the wrong kind or out of range, or two do not go together.
    """
    for name, value, base in (("scorer", scorer, BaseScorer), ("pruner", pruner, BasePruner)):
        if value is not None and not isinstance(value, base):
            raise OptionError(
                f"{name} must be an instance of {base.__name__}, got {value!r}; make_{name} of llmrank.pipeline.registry "
                "makes one by its name"
            )
    if form is not None and form not in FORMS:
        raise OptionError(f"unknown form {form!r}; expected one of {', '.join(FORMS)}")
    if align not in ALIGNMENTS:
        raise OptionError(f"unknown align {align!r}; expected one of {', '.join(ALIGNMENTS)}")
    if align == "pad" and form not in (None, "compact"):
        raise OptionError(f"align='pad' is for the compact form; form={form!r} keeps every width anyway")
    if repair is not None and not isinstance(repair, BaseRepair):
        raise OptionError(
            f"repair must be an instance of BaseRepair, got {repair!r}; make_repair of llmrank.pipeline.registry "
            "makes one by its name"
        )
    if repair is not None and structure_dict is not None:
        raise OptionError("repair needs whole FFNs, and structure_dict prunes rows of Linears; leave one of them out")
    if structure_dict is not None and isinstance(scorer, AutoScorer):
        raise OptionError(
            "a choice of scorers tries cuts of whole FFNs, and structure_dict prunes rows of Linears; give one scorer with it, "
            "such as WeightedPageRankScorer()"
        )
    if structure_dict is not None and pruner is not None and pruner.needs_sensitivity:
        raise OptionError(
            f"{type(pruner).__name__} needs the sensitivities of whole FFNs, and structure_dict prunes rows of Linears; "
            "use LocalPruner or GlobalPruner with it"
        )
    if structure_dict is not None and pruner is not None and pruner.amount_of != "neurons":
        raise OptionError(
            "structure_dict zeroes rows of Linears, which makes nothing smaller: an amount of "
            f"{unit_name(pruner.amount_of)} means nothing there; use amount_of='neurons' with it"
        )
    check_steps(steps)
    if by_block and (structure_dict is not None or undoable or steps != 1 or form not in (None, "compact")):
        raise OptionError(
            "a run with little memory takes no structure_dict, prunes in one step into the compact form, and cannot be undone; "
            "leave structure_dict, steps and form out, and pass undoable=False"
        )
    if structure_dict is not None and (form == "compact" or align == "pad"):
        raise OptionError(
            "form='compact' and align='pad' are refused with structure_dict, which keeps every width; use form 'zero' or 'mask' "
            "and align 'none'"
        )
