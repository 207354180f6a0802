"""The command line: ``llmrank demo | prune | inspect | evaluate | families``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from graphs import GraphError
from graphs.files import replacing
from llmrank import checkpoint, demo
from llmrank.activations import fitting_length
from llmrank.adapters import FAMILIES
from llmrank.calibration import DATASET_PREFIX, tokenise
from llmrank.config import DEFAULTS, PIPELINES, PRUNERS, SCORERS, make_pruner, make_scorer
from llmrank.errors import CalibrationError, CheckpointError, LLMRankError, OptionError
from llmrank.evaluate import has_perplexity, perplexity, size, unigram_perplexity
from llmrank.hub import DEMO_NAME, LoadedModel, demo_model
from llmrank.pipeline import DEFAULT_LENGTH, DEFAULT_SAMPLES, BasePipeline
from llmrank.report import Evaluation, Report, environment
from llmrank.surgery import FORMS, WIDTHS_KEY

__all__ = ["main"]

# Without --evaluate a pruned model is still looked at: this many sequences tell whether it collapsed.
CHECK_SAMPLES = 2
CHECK_LENGTH = 1024
# The smallest number that makes sense; a sequence of one token predicts nothing.
LEAST = {"samples": 1, "sequence_length": 2, "batch_size": 1}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status (0, 2 for bad input or a system that refuses, 130 if interrupted)."""
    options = parser().parse_args(arguments)
    console = Console(soft_wrap=not sys.stdout.isatty())
    # The library's own log and bars would interleave with ours; its errors arrive as exceptions.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(getattr(options, "seed", 0))
    errors = Console(stderr=True, soft_wrap=True)
    try:
        _check_numbers(options)
        status: int = options.run(options, console)
    except (LLMRankError, GraphError, OSError) as error:
        errors.print(f"llmrank: error: {error}", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        errors.print("llmrank: interrupted; a checkpoint directory is only there if it is complete", highlight=False)
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    root = argparse.ArgumentParser(prog="llmrank", description="Prune language models through the graph of their FFNs.")
    root.add_argument("--version", action="version", version=f"llmrank {environment()['llmrank']}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("demo", help=f"prune {DEMO_NAME} and show what it cost; nothing to prepare")
    command.add_argument("--model", help=f"a model directory, hub name or .gguf file instead of {DEMO_NAME} from PyPI")
    command.add_argument("--output", type=Path, default=Path("llmrank-demo"), help="directory to write (%(default)s)")
    _method_options(command)
    command.set_defaults(run=run_demo, evaluate=True, pipeline="chained")

    command = commands.add_parser("prune", help="prune a model and write a checkpoint")
    command.add_argument("model", metavar="MODEL", help="a directory, a hub name, or a .gguf file")
    command.add_argument("--output", type=Path, required=True, help="directory to write; absent or empty")
    command.add_argument(
        "--evaluate",
        nargs="?",
        const=True,
        default=None,
        type=_text,
        metavar="TEXT",
        help="perplexity before and after, on this text file (or dataset:NAME) or, without one, on the built-in text; "
        "put it last or write --evaluate=TEXT, for it takes the word that follows as TEXT, MODEL too",
    )
    _method_options(command)
    command.set_defaults(run=run_prune)

    command = commands.add_parser("inspect", help="show the graph of a model and where its rank lies")
    command.add_argument("model", metavar="MODEL", nargs="?", help=f"default: {DEMO_NAME}")
    _method_options(command, cuts=False)
    command.set_defaults(run=run_inspect, form="compact", align="none")

    command = commands.add_parser("evaluate", help="perplexity and size of a model, pruned or not")
    command.add_argument("model", metavar="MODEL", help="a directory, a hub name, or a .gguf file")
    command.add_argument(
        "--text", type=_text, help="text file, or dataset:NAME[,CONFIG[,SPLIT]]; default the built-in text"
    )
    command.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help="sequences (%(default)s)")
    command.add_argument(
        "--sequence-length",
        type=int,
        default=DEFAULT_LENGTH,
        help="tokens in a sequence, at most what the model takes (%(default)s)",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    _model_options(command)
    command.set_defaults(run=run_evaluate)

    command = commands.add_parser("families", help="list the model families that are tested")
    command.set_defaults(run=run_families)
    return root


def _model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="cpu, cuda, cuda:N (cpu)")
    command.add_argument("--dtype", help="auto, float32, bfloat16, float16 (auto: the checkpoint's own)")
    command.add_argument("--batch-size", type=int, default=1, help="sequences in a forward pass (%(default)s)")


def _method_options(command: argparse.ArgumentParser, *, cuts: bool = True) -> None:
    """Options of the pipeline; `cuts` adds those that say how a model is cut."""
    graph = command.add_argument_group("graph and rank")
    graph.add_argument(
        "--pipeline", default=DEFAULTS["pipeline"], help=f"{' or '.join(PIPELINES)} (%(default)s; demo: chained)"
    )
    graph.add_argument("--scorer", default=DEFAULTS["scorer"], help=f"{', '.join(SCORERS)} (%(default)s)")
    graph.add_argument("--gamma", type=float, help="wpr: share of a score that comes through the graph (0.5)")
    graph.add_argument("--theta", type=float, help="wpr: share of edge weights against bare edges (1)")
    graph.add_argument("--zero-lowest", type=float, help="mpr: share of lowest scores that count as zero in a step (0)")
    graph.add_argument("--p", type=float, help="norm, wanda-sp: which norm (1)")
    graph.add_argument("--seed", type=int, default=0, help="of the random scorer and of torch (%(default)s)")
    budget = command.add_argument_group("budget")
    budget.add_argument(
        "--amount",
        type=_amount,
        default=0.3,
        help="share (0.3) or number (500) to remove; local removes that many of each layer, global of all layers "
        "together (%(default)s)",
    )
    budget.add_argument("--pruner", default=DEFAULTS["pruner"], help=f"{' or '.join(PRUNERS)} (%(default)s)")
    budget.add_argument("--normalize", help="global: auto, zscore, mean or none (auto)")
    budget.add_argument("--min-keep", type=int, help="neurons that every layer keeps at least (1)")
    budget.add_argument("--multiple-of", type=int, help="round kept widths to a multiple, such as 64 (1)")
    if cuts:
        budget.add_argument("--form", default="compact", help=f"{', '.join(FORMS)} (%(default)s)")
        budget.add_argument(
            "--align", default="none", help="none, or pad: fill up to one width so that stock loaders work"
        )
    data = command.add_argument_group("calibration")
    data.add_argument(
        "--calibration", type=_text, help="text file, or dataset:NAME[,CONFIG[,SPLIT]]; default the built-in text"
    )
    data.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help="sequences (%(default)s)")
    data.add_argument("--sequence-length", type=int, default=DEFAULT_LENGTH, help="tokens in a sequence (%(default)s)")
    _model_options(command)


def _amount(text: str) -> float | int:
    """A count if written as an integer, else a share; out of range is left to the pruner's message."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _text(value: str) -> str | Path:
    """A path unless it names a dataset: a mistyped path must not pass for a text."""
    return value if value.startswith(DATASET_PREFIX) else Path(value)


def _check_numbers(options: argparse.Namespace) -> None:
    """Refuse counts that are too small before anything is loaded."""
    for name, least in LEAST.items():
        number = getattr(options, name, least)
        if number < least:
            raise OptionError(f"--{name.replace('_', '-')} must be at least {least}, got {number}")


def _progress(items: Sequence[Any], description: str) -> Iterable[Any]:
    """A bar on standard error, gone when done."""
    return track(items, description, console=Console(stderr=True), transient=True)


def _pipeline(options: argparse.Namespace, loaded: LoadedModel, *, evaluation: Any) -> BasePipeline:
    return PIPELINES.find(options.pipeline)(
        loaded.model,
        loaded.tokenizer,
        None,
        *_parts(options),
        options.device,
        calibration=options.calibration,
        samples=options.samples,
        sequence_length=options.sequence_length,
        batch_size=options.batch_size,
        form=options.form,
        align=options.align,
        evaluation=evaluation,
        progress=_progress,
    )


def _parts(options: argparse.Namespace) -> tuple[Any, Any]:
    """Scorer and pruner; built before the model is loaded, so that bad options cost nothing."""
    PIPELINES.find(options.pipeline)
    scorer = make_scorer(
        options.scorer,
        gamma=options.gamma,
        theta=options.theta,
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
    )
    return scorer, pruner


def _load(options: argparse.Namespace) -> LoadedModel:
    source = options.model
    if source is None:
        with Console(stderr=True).status(f"Fetching {DEMO_NAME} (93 MB, once)"):
            source = demo_model()
    with Console(stderr=True).status(escape(f"Loading {source}")):
        return checkpoint.load(source, options.dtype, options.device)


def run_demo(options: argparse.Namespace, console: Console) -> int:
    """``llmrank demo``."""
    checkpoint.check_output(options.output)
    _parts(options)
    loaded = _load(options)
    directory = demo.run(_pipeline(options, loaded, evaluation=True), options.output, console)
    _say_written(directory, ["report.json", "masks.safetensors", demo.FIGURE_FILE], console)
    _say_how_to_load(directory, loaded.model, console)
    return 0


def run_prune(options: argparse.Namespace, console: Console) -> int:
    """``llmrank prune``."""
    checkpoint.check_output(options.output)
    _parts(options)
    loaded = _load(options)
    pipeline = _pipeline(options, loaded, evaluation=options.evaluate)
    model = pipeline.run()
    report = pipeline.report
    if report is None:
        raise RuntimeError("the pipeline ran without leaving a report")
    if options.evaluate is None:
        _check_collapse(pipeline, report)
    console.print(report.table())
    directory = checkpoint.save(options.output, model, loaded.tokenizer, pipeline.masks, report.to_dict())
    _say_written(directory, ["report.json", "masks.safetensors"], console)
    _say_how_to_load(directory, model, console)
    return 0


def _check_collapse(pipeline: BasePipeline, report: Report) -> None:
    """A look at a few sequences; nobody should find out from users that a model talks nonsense."""
    if pipeline.tokenizer is None or not has_perplexity(pipeline.model):
        return
    length = min(fitting_length(pipeline.model, report.calibration["sequence_length"]), CHECK_LENGTH)
    try:
        texts = tokenise(None, pipeline.tokenizer, CHECK_SAMPLES, length, "evaluation")
        after = perplexity(pipeline.model, texts)
    except CalibrationError as error:
        report.notes.append(f"whether the pruned model has collapsed was not checked: {error}")
        return
    evaluation = Evaluation(texts.provenance(), None, after, unigram_perplexity(texts))
    report.notes += evaluation.warnings()


def _say_written(directory: Path, names: Sequence[str], console: Console) -> None:
    parts = ["the checkpoint", *(name for name in names if (directory / name).is_file())]
    console.print(f"Wrote {directory}: {', '.join(parts[:-1])} and {parts[-1]}.", markup=False)


def _say_how_to_load(directory: Path, model: Any, console: Console) -> None:
    widths = set((getattr(model.config.get_text_config(), WIDTHS_KEY, None) or {}).values())
    if len(widths) > 1:
        console.print(
            "Its layers differ in width: load it with llmrank.load, or prune with --align pad for stock loaders."
        )
        return
    if widths:
        console.print(
            f"Its layers are all {widths.pop()} wide, which its configuration cannot say: load it with llmrank.load. "
            "(--align pad would fill it up to the original width, and save nothing.)",
            markup=False,
        )
        return
    loader = type(model).__name__
    auto = "AutoModelForCausalLM" if "CausalLM" in loader or "LMHead" in loader else loader
    console.print(f'Load it with transformers.{auto}.from_pretrained("{directory}").', markup=False)


def run_inspect(options: argparse.Namespace, console: Console) -> int:
    """``llmrank inspect``."""
    _parts(options)
    loaded = _load(options)
    pipeline = _pipeline(options, loaded, evaluation=None)
    ffns = pipeline.find()
    graphs = pipeline.draw(ffns, pipeline.calibrate(ffns, pipeline.sequences()))
    ranks = pipeline.score(graphs)
    masks = pipeline.choose(graphs, ranks)
    total = sum(entry.graph.capacity for entry in graphs)
    nodes = sum(entry.graph.nodes for entry in graphs)
    table = Table(
        title=escape(
            f"{loaded.source}: {len(ffns)} FFNs, {len(graphs)} graph(s), {nodes:,} nodes, at most {total:,} edges"
        ),
        title_justify="left",
    )
    for heading in (
        "layer",
        "neurons",
        "edges in",
        "density",
        "effective",
        "top 1 % hold",
        "highest",
        f"kept ({options.amount})",
    ):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for entry, rank in zip(graphs, ranks, strict=True):
        for position, layer in entry.prunable.items():
            scores = rank.scores[position].astype(np.float64)
            block = entry.graph.blocks[position - 1]
            best = np.sort(scores)[::-1][: max(1, layer.size // 100)].sum()
            table.add_row(
                escape(layer.name),
                f"{layer.size:,}",
                f"{block.edges:,}",
                f"{block.edges / (block.shape[0] * block.shape[1]):.3f}",
                f"{1.0 / float((scores**2).sum()):,.0f}",
                f"{best:.1%}",
                str(int(scores.argmax())),
                f"{int(masks[layer.name].sum()):,}",
            )
    console.print(table)
    console.print("effective: 1 / sum of squared scores, the number of equal neurons with the same concentration.")
    return 0


def run_evaluate(options: argparse.Namespace, console: Console) -> int:
    """``llmrank evaluate``."""
    _check_file(options.json)
    loaded = _load(options)
    length = fitting_length(loaded.model, options.sequence_length)
    texts = tokenise(options.text, loaded.tokenizer, options.samples, length, "evaluation")
    result = perplexity(loaded.model, texts, options.batch_size, _progress)
    weight = size(loaded.model)
    protocol = {**texts.provenance(), "dtype": str(loaded.model.dtype).removeprefix("torch."), **environment()}
    console.print(
        f"{loaded.source}: perplexity {result.value:.3f} over {result.tokens:,} tokens "
        f"({len(texts)} x {texts.length}, {texts.source}); {weight.parameters:,} parameters, {weight.bytes:,} bytes",
        markup=False,
    )
    if options.json is not None:
        content = {
            "model": loaded.source,
            "perplexity": result.value if np.isfinite(result.value) else str(result.value),
            "tokens": result.tokens,
            "parameters": weight.parameters,
            "bytes": weight.bytes,
            "protocol": protocol,
        }
        with replacing(options.json) as partial:
            partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return 0


def _check_file(path: Path | None) -> None:
    """Raise unless the result can be written there; an evaluation takes too long to find out afterwards."""
    if path is None:
        return
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; expected the path of a file for --json")
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no directory {path.parent}; create it first")


def run_families(_options: argparse.Namespace, console: Console) -> int:
    """``llmrank families``."""
    table = Table(title="Families tested from their configurations; others are tried by geometry", title_justify="left")
    for heading in ("family", "model type", "FFN", "width in the configuration"):
        table.add_column(heading)
    for family in FAMILIES:
        width = family.width or "none: llmrank.load, or --align pad (original width)"
        table.add_row(family.name, family.model_type, family.kind, width)
    console.print(table)
    console.print("Also nn.Sequential MLPs. Mixture-of-experts models and quantised weights are refused.")
    return 0
