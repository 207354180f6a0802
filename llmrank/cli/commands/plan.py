"""``llmrank plan``: what would be removed where, and what that is expected to cost."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from rich.markup import escape

from graphs.io.replacement import replace_file
from llmrank.cli.options import check_output_file, load
from llmrank.cli.printing import compact_table, print_full_width, short_names
from llmrank.cli.result import CommandResult, write_result
from llmrank.cli.terminal import Terminal
from llmrank.errors import OptionError
from llmrank.execution import Execution
from llmrank.inspection.figures import DPI, FORMATS
from llmrank.inspection.forecast import draw_forecast
from llmrank.models.costs import unit_name
from llmrank.pipeline import stages
from llmrank.pipeline.closeness.loss_curves import LossCurves
from llmrank.pipeline.forecast import Forecast, forecast, forecasts
from llmrank.pipeline.ranking import Ranking
from llmrank.pipeline.recipe import Recipe
from llmrank.pipeline.registry import make_pruner
from llmrank.pipeline.texts import RankedText
from llmrank.prune.records.units import Units, parse_targets

__all__ = ["run_plan"]


def run_plan(options: argparse.Namespace, terminal: Terminal) -> CommandResult:
    """Run ``llmrank plan``."""
    check_output_file(options.output)
    check_output_file(options.figure)
    if options.figure is not None and options.figure.suffix[1:] not in FORMATS:
        raise OptionError(f"--figure draws a .{' or .'.join(FORMATS)} file, got {options.figure}; give it such a name")
    ranking = Ranking.load(options.ranking)
    losses = ranking.settings.get("losses")
    if losses is None:
        raise OptionError(f"{options.ranking} holds no losses; rank the model again with llmrank rank --losses")
    pruner = make_pruner(options.pruner, amount=options.amount, amount_of=options.amount_of)
    if not pruner.shares_measured:
        raise OptionError(
            f"a plan shares out an amount by measured losses, and {options.pruner} does not; use least-loss"
        )
    curves, targets = LossCurves.of_dict(losses["curves"]), parse_targets(losses["targets"])
    recipe = Recipe(pruner=pruner, targets=targets, repair=None, calibration=RankedText(ranking))
    loaded = load(options, terminal, on_cpu=True)
    prepared = stages.find(loaded.model, loaded.tokenizer, recipe, Execution())
    stages.check(prepared, recipe)
    ranking.statistics_of(loaded.model, prepared.ffns)  # raises an error for another model
    chosen, units = forecast(prepared, pruner, targets, curves)
    others = forecasts(prepared, pruner, targets, curves)
    unit = unit_name(pruner.amount_of)
    _print(chosen, others, units, unit, terminal)
    terminal.say(
        f"Prune so with llmrank apply {options.ranking} {options.model} --targets {','.join(targets)} --pruner {options.pruner} "
        f"--amount-of {options.amount_of} --amount {options.amount} --output pruned"
    )
    if options.figure is not None:
        with replace_file(options.figure) as partial:
            figure = draw_forecast(chosen, others, units, unit)
            figure.savefig(partial, dpi=DPI, format=options.figure.suffix[1:])
    content = {
        "model": ranking.settings["model"],
        "targets": list(targets),
        "amount_of": pruner.amount_of,
        **asdict(chosen),
        "units": {each.name: {"kind": each.target, "before": each.n_units} for each in units},
        "shares": [{"amount": each.amount, "share": each.share, "loss": each.loss} for each in others],
    }
    write_result(content, options.output)
    return CommandResult(content)


def _print(
    chosen: Forecast,
    others: list[Forecast],
    units: list[Units],
    unit: str,
    terminal: Terminal,
) -> None:
    table = compact_table("layer", "keeps", "of", "", left="layer")
    names = [each.name for each in units]
    for each, short in zip(units, short_names(names, names), strict=True):
        table.add_row(escape(short), f"{chosen.kept[each.name]:,}", f"{each.n_units:,}", each.counted)
    print_full_width(table, terminal)
    terminal.say(
        f"\n{chosen.share:.1%} of the {unit} would be removed, for an expected loss of {chosen.loss:.3g}. Other amounts:\n"
    )
    table = compact_table("removed", "expected loss")
    for other in others:
        table.add_row(f"{other.share:.1%}", f"{other.loss:.3g}")
    print_full_width(table, terminal)
    terminal.say(
        "\nA loss is the KL divergence from the dense model's predictions in nats a token (of models that predict no tokens, the "
        "squared change of the output as a share of it), as cut: a repair or healing lowers it."
    )
