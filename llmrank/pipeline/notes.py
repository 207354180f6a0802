"""Notes of a report: sentences that its reader must not miss."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmrank.models import FFNs
from llmrank.pipeline.closeness.candidates import Choice
from llmrank.pipeline.closeness.repair_validation import Validation
from llmrank.prune import BasePruner, record_of_size, round_width
from llmrank.prune.records.units import Target, units_of
from llmrank.repair import BaseRepair
from llmrank.score import BaseScorer

__all__ = ["choice_notes", "expected_widths", "repair_notes", "token_warning"]


def choice_notes(candidates: Sequence[BaseScorer], choice: Choice | None, removed: float | None) -> list[str]:
    """Return a note if a scorer was to be chosen, and could not be; and the warnings of the choice."""
    if choice is not None:
        return choice.warnings(removed)
    if len(candidates) == 1:
        return []
    first = candidates[0].label()
    return [f"nothing could be held out, so no scorer was tried: the first candidate, {first}, ranked; give more text"]


def repair_notes(
    repair: BaseRepair | None, validation: Validation | None, too_few_tokens: str | None, *, repaired: bool = True
) -> list[str]:
    """Return notes if a repair is fitted to too few tokens, does harm, or could not be checked."""
    notes = [] if too_few_tokens is None else [too_few_tokens]
    if validation is not None and not validation.improves:
        notes.append(validation.sentence())
    elif repair is not None and validation is None and not repaired:
        notes.append("nothing was repaired: no FFN has lost neurons, or stands behind what was removed")
    elif repair is not None and validation is None:
        notes.append(
            "nothing could be held out, so the damping of the repair was chosen on the text that it is fitted to, and the repair "
            "was not checked; give more text"
        )
    return notes


def token_warning(
    repair: BaseRepair | None,
    pruner: BasePruner,
    ffns: FFNs,
    tokens: int,
    length: int,
    targets: Sequence[Target] = ("neurons",),
) -> str | None:
    """Return a warning if `tokens`, in sequences of `length` tokens, are too few to fit a repair well; else None.

    An expert is taken to get the share of the tokens that a router sends it if it chooses all experts equally often.
    """
    if repair is None:
        return None
    wanted, kept, routed = 0, 0, ""
    widths = expected_widths(pruner, ffns, targets)
    for name, layer in ffns.layers.items():
        width = widths[name]
        share = layer.token_share
        fewest = math.ceil(repair.tokens_wanted(width) / share)
        if fewest > wanted:
            wanted, kept = fewest, width
            routed = "" if share == 1 else f" of an expert, which gets {float(share):.0%} of them"
    if tokens >= wanted:
        return None
    return (
        f"The repair is fitted to {tokens:,} calibration tokens for {kept:,} neurons{routed or ' of a layer'}, which is few: "
        f"give {wanted:,} or more (--samples {-(-wanted // length)} of {length:,} tokens)."
    )


def expected_widths(pruner: BasePruner, ffns: FFNs, targets: Sequence[Target] = ("neurons",)) -> dict[str, int]:
    """Estimate the neurons that each layer keeps, before there are scores: the mean over layers, or all if that is unknown."""
    of_share = (
        isinstance(pruner.amount, float) and pruner.amount_of == "neurons" and not {"experts", "blocks"} & set(targets)
    )
    if not of_share:
        return dict(ffns.sizes)
    share = 1.0 - pruner.amount
    widths = {
        name: round_width(round(size * share), size, pruner.multiple_for(record_of_size(name, size)), pruner.min_keep)
        for name, size in ffns.sizes.items()
    }
    for units in units_of(ffns.layers.values(), "heads"):
        widths |= units.widths(max(round(units.n_units * share), 1))
    return widths
