"""What a pipeline accepts, checked before it does anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrank.errors import OptionError
from llmrank.models.costs import unit_name
from llmrank.prune import BasePruner
from llmrank.prune.schedule import Schedule
from llmrank.score import BaseScorer
from llmrank.surgery.forms import FORMS, Form
from llmrank.surgery.repair import BaseRepair
from llmrank.surgery.widths import ALIGNMENTS, Align

__all__ = ["DEFAULT_LENGTH", "DEFAULT_SAMPLES", "check_options"]

DEFAULT_SAMPLES = 16
DEFAULT_LENGTH = 1024


def check_options(
    structure_dict: Mapping[str, Any] | None,
    scorer: BaseScorer | None,
    pruner: BasePruner | None,
    form: Form | None,
    align: Align,
    repair: BaseRepair | None,
    schedule: Schedule | None,
    counts: Mapping[str, int],
) -> None:
    """Raise unless the options of a pipeline are of the right kind and go together.

    Parameters
    ----------
    structure_dict, scorer, pruner, form, align, repair, schedule
        As for :class:`llmrank.pipeline.BasePipeline`.
    counts : mapping from str to int
        The options that count something, by name.

    Raises
    ------
    OptionError
        The message says which, and what to do.
    """
    for name, value, base in (("scorer", scorer, BaseScorer), ("pruner", pruner, BasePruner)):
        if value is not None and not isinstance(value, base):
            raise OptionError(
                f"{name} must be an instance of {base.__name__}, got {value!r}; by name they are made by "
                f"llmrank.pipeline.registry.make_{name}"
            )
    if form is not None and form not in FORMS:
        raise OptionError(f"unknown form {form!r}; expected one of {', '.join(FORMS)}")
    if align not in ALIGNMENTS:
        raise OptionError(f"unknown align {align!r}; expected one of {', '.join(ALIGNMENTS)}")
    if align == "pad" and form not in (None, "compact"):
        raise OptionError(f"align='pad' is for the compact form; form={form!r} keeps every width anyway")
    for name, number in counts.items():
        if not isinstance(number, int) or number < 1:
            raise OptionError(f"{name} must be an integer >= 1, got {number!r}")
    if repair is not None and not isinstance(repair, BaseRepair):
        raise OptionError(
            f"repair must be an instance of BaseRepair, got {repair!r}; make_repair of llmrank.pipeline.registry "
            "makes one by its name"
        )
    if repair is not None and structure_dict is not None:
        raise OptionError("repair needs whole FFNs, and structure_dict prunes rows of Linears; leave one of them out")
    if structure_dict is not None and pruner is not None and pruner.needs_sensitivity:
        raise OptionError(
            f"{type(pruner).__name__} needs the sensitivities of whole FFNs, and structure_dict prunes rows of Linears; "
            "use LocalPruner or GlobalPruner with it"
        )
    if structure_dict is not None and pruner is not None and pruner.of != "neurons":
        raise OptionError(
            f"structure_dict zeroes rows of Linears, which makes nothing smaller: an amount of {unit_name(pruner.of)} means "
            "nothing there; use of='neurons' with it"
        )
    if schedule is not None and not isinstance(schedule, Schedule):
        raise OptionError(f"schedule must be a Schedule, got {schedule!r}; four steps are Schedule(4)")
    if structure_dict is not None and scorer is not None and scorer.needs_explained:
        raise OptionError(
            f"{type(scorer).__name__} needs hidden neurons between two maps, and structure_dict prunes rows of Linears; "
            "leave it out, or use another scorer"
        )
    if structure_dict is not None and form == "compact":
        raise OptionError("form='compact' is refused with structure_dict; use 'zero' or 'mask'")
