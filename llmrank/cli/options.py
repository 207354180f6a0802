"""Options that commands share, and what is made of them: model, scorer, pruner, pipeline."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

from llmrank.calibration.forward import progress_step
from llmrank.calibration.generation import AT_ONCE, GENERATED, writes_text
from llmrank.calibration.text import BUILT_IN, DATASET_PREFIX, check_text
from llmrank.errors import OptionError
from llmrank.models.costs import UNITS
from llmrank.models.loading import DEMO_NAME, LoadedModel, demo_model, parse_device, parse_dtype
from llmrank.pipeline import DEFAULT_LENGTH, DEFAULT_SAMPLES, BasePipeline
from llmrank.pipeline.options import check_options
from llmrank.pipeline.registry import (
    DEFAULTS,
    PIPELINES,
    PRUNERS,
    REPAIRS,
    SCORERS,
    make_pruner,
    make_repair,
    make_scorer,
)
from llmrank.prune.schedule import Schedule
from llmrank.score.model_graph import check_beta
from llmrank.surgery import checkpoint
from llmrank.surgery.forms import FORMS
from llmrank.surgery.repair import BaseRepair

__all__ = [
    "AUTO",
    "calibration_of",
    "check_method",
    "check_numbers",
    "check_place",
    "directory",
    "load",
    "make_parts",
    "make_pipeline",
    "method_options",
    "model_options",
    "repair_of",
    "schedule_of",
    "text_source",
]

# The model's own text where it can write, else the built-in one.
AUTO = "auto"
# The smallest numbers that make sense; a sequence of one token predicts nothing.
LEAST = {
    "samples": 1,
    "sequence_length": 2,
    "batch_size": 1,
    "top": 1,
    "prompts": 0,
    "prompt_length": 1,
    "new_tokens": 1,
    "passages": 1,
    "documents": 1,
    "min_keep": 1,
    "multiple_of": 1,
    "seed": 0,
}
# And the largest: what torch takes for a seed, and more than there is of anything else.
MOST = dict.fromkeys(LEAST, 2**31 - 1) | {"seed": 2**63 - 1}


def model_options(command: argparse.ArgumentParser) -> None:
    """Where and how the model computes."""
    command.add_argument("--device", help="cpu, cuda, cuda:N (cpu)")
    command.add_argument("--dtype", help="auto, float32, bfloat16, float16 (auto: the checkpoint's own)")
    command.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with a checkpoint (auto_map in its config.json); read that code first",
    )
    command.add_argument(
        "--batch-size",
        type=int,
        default=1,
        help=f"sequences in a forward pass; texts are written {AT_ONCE} at once (%(default)s)",
    )


def method_options(command: argparse.ArgumentParser, *, cuts: bool = True) -> None:
    """Options of the pipeline; `cuts` adds those that say how a model is cut."""
    graph = command.add_argument_group("graph and rank")
    graph.add_argument(
        "--pipeline", default=DEFAULTS["pipeline"], help=f"{', '.join(PIPELINES)} (%(default)s; demo: chained)"
    )
    graph.add_argument(
        "--beta",
        type=_number_or_word,
        help="residual: share of the stream that skips an FFN, 0..1, or measured (measured)",
    )
    graph.add_argument(
        "--attention",
        action="store_true",
        default=None,
        help="residual: value and output maps of attentions are edges too",
    )
    graph.add_argument("--scorer", default=DEFAULTS["scorer"], help=f"{', '.join(SCORERS)} (%(default)s)")
    graph.add_argument("--gamma", type=float, help="wpr, fbpr: share of a score that comes through the graph (0.5)")
    graph.add_argument("--theta", type=float, help="wpr, fbpr: share of edge weights against bare edges (1)")
    graph.add_argument("--balance", type=float, help="fbpr: share of the forward rank against the backward one (0.5)")
    graph.add_argument(
        "--edges", help="wpr, mpr, fbpr: magnitude or energy, what an edge weighs: |w|, or w^2 (magnitude)"
    )
    graph.add_argument(
        "--explained",
        type=float,
        help="wpr, mpr, fbpr: how much what a neuron explains of its FFN's output counts in its activation, 0..1 (0)",
    )
    graph.add_argument("--explains", help="explained: energy or variance of an FFN's output (energy)")
    graph.add_argument(
        "--signed", action="store_true", default=None, help="explained: what makes the output smaller goes first"
    )
    graph.add_argument("--zero-lowest", type=float, help="mpr: share of lowest scores that count as zero in a step (0)")
    graph.add_argument("--p", type=float, help="norm, wanda-sp: which norm (1)")
    graph.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the random scorer and of torch, not of what the model writes (%(default)s)",
    )
    budget = command.add_argument_group("budget")
    budget.add_argument(
        "--amount",
        type=_amount,
        default=0.3,
        help="share (0.3) or number (500) to remove; local removes that many of each layer, global of all layers "
        "together, sensitivity of each on average (%(default)s)",
    )
    # What inspection shows needs no pass through the model that prunes it.
    pruners = [name for name, pruner in PRUNERS.items() if cuts or not pruner.needs_sensitivity]
    budget.add_argument("--pruner", default=DEFAULTS["pruner"], help=f"{', '.join(pruners)} (%(default)s)")
    budget.add_argument("--normalize", help="global: auto, zscore, robust, mean or none (auto)")
    budget.add_argument("--min-keep", type=int, help="neurons that every layer keeps at least (1)")
    budget.add_argument("--multiple-of", type=int, help="round kept widths to a multiple, such as 64 (1)")
    if cuts:
        budget.add_argument(
            "--of",
            help=f"what the amount is of: {', '.join(UNITS)}; with ffn- of the FFNs, without of the whole model, and then always "
            "a total (neurons)",
        )
        budget.add_argument(
            "--protect",
            type=_protect,
            help="layers that keep everything, with commas: numbers (0,-1; write --protect=-1,0) or patterns "
            "(model.layers.0,*.decoder.*)",
        )
        budget.add_argument(
            "--per-cost",
            action="store_const",
            const=True,
            help="global: compare what neurons are worth for their parameters (or what --of says)",
        )
        budget.add_argument(
            "--limit",
            type=float,
            help="sensitivity: how many times the median a layer's cut alone may cost before the layer gives less (2)",
        )
        budget.add_argument(
            "--repair",
            default=DEFAULTS["repair"],
            help=f"none, {', '.join(REPAIRS)}: how kept weights make up for removed neurons, without training (%(default)s)",
        )
        budget.add_argument(
            "--damping",
            type=_number_or_word,
            help="lstsq: of the least squares, or auto: chosen on held-out sequences (auto)",
        )
        budget.add_argument(
            "--target",
            help="lstsq: what the maps are fitted to: stream, what brings the residual stream back to the dense model's, or "
            "output, their own outputs, whatever earlier layers lost (stream)",
        )
        budget.add_argument(
            "--reselect",
            action=argparse.BooleanOptionalAction,
            help="lstsq: choose anew which neurons of a layer stay, by what the others do not explain of them; better on "
            "text like that calibrated on, and worse on others (off)",
        )
        budget.add_argument(
            "--steps",
            type=int,
            default=1,
            help="prune in so many steps, each with a pass of the text of its own (%(default)s)",
        )
        budget.add_argument(
            "--growth", default="linear", help="of the amount from step to step: linear, or geometric (%(default)s)"
        )
        budget.add_argument(
            "--repair-steps", action="store_true", help="repair after each step, not only after the last"
        )
        budget.add_argument("--form", default="compact", help=f"{', '.join(FORMS)} (%(default)s)")
        budget.add_argument(
            "--align", default="none", help="none, or pad: fill up to one width so that stock loaders work"
        )
    else:
        command.set_defaults(form="compact", align="none", repair="none", steps=1, growth="linear", repair_steps=False)
        command.set_defaults(**dict.fromkeys(("damping", "target", "reselect", "limit", "protect", "of", "per_cost")))
    data = command.add_argument_group("calibration")
    data.add_argument(
        "--calibration",
        type=calibration_source,
        default=DEFAULTS["calibration"],
        help=f"text file, dataset:NAME[,CONFIG[,SPLIT]], {GENERATED}: what the model writes itself, {BUILT_IN}: Python's "
        f"language reference, or {AUTO}: {GENERATED} where the model can write, else {BUILT_IN} (%(default)s)",
    )
    data.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help="sequences (%(default)s)")
    data.add_argument("--sequence-length", type=int, default=DEFAULT_LENGTH, help="tokens in a sequence (%(default)s)")
    model_options(command)


def _amount(text: str) -> float | int:
    """A count if written as an integer, else a share; out of range is left to the pruner's message."""
    try:
        return int(text) if re.fullmatch("[-+]?[0-9]{1,99}", text.strip()) else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a share such as 0.3 or a number such as 500, got {text!r}"
        ) from None


def _protect(text: str) -> list[str | int]:
    """Positions where they are integers, else patterns."""
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    return [int(entry) if re.fullmatch("-?[0-9]{1,9}", entry) else entry for entry in entries]


def _number_or_word(text: str) -> float | str:
    """A number, or a word that what takes it knows (or refuses)."""
    try:
        return float(text)
    except ValueError:
        return text


def directory(value: str) -> Path:
    """A directory to write a model to; tokenizers write to no name that is not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"expected a name in UTF-8, got {value!r}") from None
    return Path(value)


def text_source(value: str) -> str | Path:
    """A path unless it names a dataset or the built-in text: a mistyped path must not pass for a text."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"expected a text file, or {DATASET_PREFIX}NAME, got {value!r}")
    return value if value == BUILT_IN or value.startswith(DATASET_PREFIX) else Path(value)


def calibration_source(value: str) -> str | Path:
    """A text, or what the model writes itself."""
    return value if value in (AUTO, GENERATED) else text_source(value)


def calibration_of(asked: str | Path, model: Any) -> str | Path:
    """The text asked for, of a model that may or may not write one."""
    if asked != AUTO:
        return asked
    return GENERATED if writes_text(model) else BUILT_IN


def check_numbers(options: argparse.Namespace) -> None:
    """Refuse counts that are too small or too large before anything is loaded."""
    for name, least in LEAST.items():
        number = getattr(options, name, None)
        if number is not None and not least <= number <= MOST[name]:
            bound = f"at least {least}" if number < least else f"at most {MOST[name]}"
            raise OptionError(f"--{name.replace('_', '-')} must be {bound}, got {number}")


def check_method(options: argparse.Namespace) -> tuple[Any, Any]:
    """Refuse what is wrong whatever the model, before one is loaded; returns scorer and pruner."""
    scorer, pruner = make_parts(options)
    form, align, repair = options.form, options.align, repair_of(options)
    check_options(None, scorer, pruner, form, align, repair, schedule_of(options), {})
    check_place(options)
    if options.calibration not in (AUTO, GENERATED):
        check_text(options.calibration)
    evaluation = getattr(options, "evaluate", None)
    if evaluation is not None and evaluation is not True:
        check_text(evaluation, "evaluation")
    return scorer, pruner


def check_place(options: argparse.Namespace) -> None:
    """Refuse a device that is not there, and a dtype that nobody knows."""
    parse_device(options.device)
    parse_dtype(options.dtype)


def make_pipeline(
    options: argparse.Namespace, loaded: LoadedModel, *, evaluation: Any, undoable: bool = True
) -> BasePipeline:
    """The pipeline of a loaded model."""
    return PIPELINES.find(options.pipeline)(
        loaded.model,
        loaded.tokenizer,
        None,
        *make_parts(options),
        options.device,
        **_topology_options(options),
        repair=repair_of(options),
        schedule=schedule_of(options),
        calibration=calibration_of(options.calibration, loaded.model),
        samples=options.samples,
        sequence_length=options.sequence_length,
        batch_size=options.batch_size,
        form=options.form,
        align=options.align,
        evaluation=evaluation,
        progress=options.progress,
        undoable=undoable,
    )


def make_parts(options: argparse.Namespace) -> tuple[Any, Any]:
    """Scorer and pruner."""
    _topology_options(options)
    scorer = make_scorer(
        options.scorer,
        gamma=options.gamma,
        theta=options.theta,
        balance=options.balance,
        edges=options.edges,
        explained=options.explained,
        explains=options.explains,
        signed=options.signed,
        zero_lowest=options.zero_lowest,
        p=options.p,
        seed=options.seed if options.scorer == "random" else None,
    )
    pruner = make_pruner(
        options.pruner,
        amount=options.amount,
        normalize=options.normalize,
        min_keep=options.min_keep,
        multiple_of=options.multiple_of,
        limit=options.limit,
        protect=options.protect,
        of=options.of,
        per_cost=options.per_cost,
    )
    return scorer, pruner


def _topology_options(options: argparse.Namespace) -> dict[str, Any]:
    """What was set of the options that only some pipelines have."""
    given = {name: getattr(options, name) for name in ("beta", "attention") if getattr(options, name) is not None}
    accepted = inspect.signature(PIPELINES.find(options.pipeline)).parameters
    foreign = [name for name in given if name not in accepted]
    if foreign:
        raise OptionError(
            f"pipeline {options.pipeline!r} does not take {', '.join(foreign)}; it belongs to the residual pipeline"
        )
    if given.get("beta", "measured") != "measured":
        check_beta(given["beta"])
    return given


def repair_of(options: argparse.Namespace) -> BaseRepair | None:
    """The repair asked for; None for none."""
    reselect = DEFAULTS["reselect"] if options.repair == "lstsq" and options.reselect is None else options.reselect
    return make_repair(options.repair, damping=options.damping, target=options.target, reselect=reselect)


def schedule_of(options: argparse.Namespace) -> Schedule:
    """The schedule asked for; it has to fit the amount and the repair."""
    schedule = Schedule(options.steps, options.growth, "each" if options.repair_steps else "last")
    schedule.check(options.amount, repairs=repair_of(options) is not None)
    return schedule


def load(options: argparse.Namespace) -> LoadedModel:
    """The model named, or the demo model."""
    source = options.model
    if source is None:
        with progress_step(options.progress, f"Fetching {DEMO_NAME} (93 MB, once)"):
            source = demo_model()
    with progress_step(options.progress, f"Loading {source}"):
        return checkpoint.load(source, options.dtype, options.device, trust_remote_code=options.trust_remote_code)
