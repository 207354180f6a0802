"""Sentences that a user must not miss: the notes of a report, and what the command line says of a repair before it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmrank.execution import Execution
from llmrank.models import FFNs
from llmrank.models.forward import fitting_length
from llmrank.pipeline.closeness.candidates import Choice
from llmrank.pipeline.closeness.repair_validation import Validation
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.stages import PreparedModel
from llmrank.prune import record_of_size, round_width
from llmrank.prune.records.units import units_of
from llmrank.repair import BaseRepair
from llmrank.repair.duration import repair_seconds
from llmrank.score import BaseScorer

__all__ = ["choice_notes", "repair_notes", "seconds_of_repair", "warning_of_few_tokens"]


def choice_notes(candidates: Sequence[BaseScorer], choice: Choice | None, removed: float | None) -> list[str]:
    """Return a note if a scorer was to be chosen, and could not be; and the warnings of the choice."""
    if choice is not None:
        return choice.warnings(removed)
    if len(candidates) == 1:
        return []
    first = candidates[0].label()
    return [f"nothing could be held out, so no scorer was tried: the first candidate, {first}, ranked; give more text"]


def repair_notes(
    repair: BaseRepair | None, validation: Validation | None, too_few_tokens: str | None, *, repaired: bool
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


def warning_of_few_tokens(prepared: PreparedModel, recipe: Recipe, tokens: int | None = None) -> str | None:
    """Return a warning if `tokens`, by default those that the recipe asks for, are too few to fit the repair well; else None.

    An expert is taken to get the share of the tokens that a router sends it if it chooses all experts equally often.
    """
    repair, length = recipe.repair, fitting_length(prepared.model, recipe.calibration.sequence_length)
    if repair is None:
        return None
    tokens = recipe.calibration.n_sequences * length if tokens is None else tokens
    wanted, kept, routed = 0, 0, ""
    widths = _expected_widths(prepared.ffns, recipe)
    for name, layer in prepared.ffns.layers.items():
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


def seconds_of_repair(prepared: PreparedModel, recipe: Recipe, execution: Execution) -> float:
    """Estimate the seconds of the repair, without forward passes; see :mod:`llmrank.repair.duration`."""
    if recipe.repair is None:
        return 0.0
    tokens = recipe.calibration.n_sequences * fitting_length(prepared.model, recipe.calibration.sequence_length)
    kept = _expected_widths(prepared.ffns, recipe)
    return repair_seconds(recipe.repair, prepared.ffns, kept, tokens, execution.device)


def _expected_widths(ffns: FFNs, recipe: Recipe) -> dict[str, int]:
    """Estimate the neurons that each layer keeps, before there are scores: the mean over layers, or all if that is unknown."""
    pruner = recipe.pruner
    of_share = isinstance(pruner.amount, float) and pruner.amount_of == "neurons"
    if not of_share or {"experts", "blocks"} & set(recipe.targets):
        return dict(ffns.sizes)
    share = 1.0 - pruner.amount
    widths = {
        name: round_width(round(size * share), size, pruner.multiple_for(record_of_size(name, size)), pruner.min_keep)
        for name, size in ffns.sizes.items()
    }
    for units in units_of(ffns.layers.values(), "heads"):
        widths |= units.widths(max(round(units.n_units * share), 1))
    return widths
