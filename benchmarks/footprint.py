"""The cost of a run of ``llmrank prune`` with its defaults: work in forward passes, time, and memory beside the model.

Run it as ``python -m benchmarks.footprint --wikitext DIR`` on an idle machine. DIR holds WikiText-2, the evaluation text. The
model writes the calibration text itself, as by default. The unit is one pass of the calibration tokens through the dense model
and two of the evaluation tokens, before and after pruning. The sums include writing, which is also given by itself. Work is
counted in multiply-adds of the linear maps, the head included. Only the seconds include attention's products and the algebra
of the repair. Memory is the growth of the process beyond the model and the compiled kernels of the rank, which a process loads
once. A plain pass of one sequence is given for comparison. A command measures one row and adds it to the file, because memory
that a process has freed but not returned would hide what the next row takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.domains import OWN_TEXT
from benchmarks.measure import clock
from benchmarks.quality import RESULTS
from benchmarks.ranking import peak_growth, statistics_for
from benchmarks.result_files import opened, write_results
from benchmarks.wikitext import add_wikitext, check_wikitext, read
from llmrank.cli.demo_models import demo_model
from llmrank.evaluation.perplexity import perplexity
from llmrank.models import FFNs, find_ffns
from llmrank.models.forward import evaluation_mode, model_inputs
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.pipeline.registry import make_recipe
from llmrank.pipeline.texts import CalibrationText
from llmrank.score.pagerank import default_scorer
from llmrank.score.topologies import build_graphs
from llmrank.surgery import checkpoint
from llmrank.text import TokenSequences
from llmrank.text.generation import generate_text

# The time of a dense pass is the median of this many.
PASSES = 5
MEGABYTE = 1e6


@contextmanager
def counting() -> Iterator[list[int]]:
    """Count the multiply-adds of the linear maps that run inside, one number a call; not those of ``Conv1D`` (GPT-2)."""
    work: list[int] = []
    linear = nn.functional.linear

    def counted(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        work.append(values[..., 0].numel() * weight.numel())
        return linear(values, weight, bias)

    # A hook would also count a map whose forward function is replaced for a while, see BlockStream.
    with patch.object(nn.functional, "linear", counted):
        yield work


@torch.no_grad()
def plain_pass(model: Any, sequences: TokenSequences) -> None:
    """Pass the first sequence through the dense model."""
    (batch, *_) = sequences.batches(1)
    inputs, *_ = model_inputs(model, *batch)
    with evaluation_mode(model):
        model(**inputs)


def dense_pass(model: Any, sequences: TokenSequences) -> tuple[float, int]:
    """Measure the seconds (median) and multiply-adds of a pass of one sequence through the dense model."""
    with counting() as work:
        plain_pass(model, sequences)
    return median(clock(lambda: plain_pass(model, sequences))[0] for _ in range(PASSES)), sum(work)


def load_kernels(model: nn.Module) -> int | None:
    """Rank one FFN, which loads all that a process loads once; return the bytes by which the process grew."""
    ffns = FFNs(find_ffns(model)[:1])
    scorer = default_scorer()
    (graph,) = build_graphs(ffns, statistics_for(ffns), "isolated")
    return peak_growth(lambda: scorer.rank(graph.graph, graph.statistics))


def measure(
    model: Any, tokenizer: Any, write_text: Callable[[], TokenSequences], texts: TokenSequences, amount: float
) -> dict[str, Any]:
    """Write the calibration text, prune as the command line does by default, and evaluate before and after."""
    pass_seconds, multiply_adds = dense_pass(model, texts)
    pass_memory = peak_growth(lambda: plain_pass(model, texts))
    parts: dict[str, Any] = {}

    def part(name: str, action: Callable[[], Any]) -> None:
        with counting() as work:
            begun = perf_counter()
            grown = peak_growth(action)
            seconds = perf_counter() - begun
        parts[name] = {"seconds": seconds, "passes": sum(work) / multiply_adds, "peak_memory": grown}

    written: list[TokenSequences] = []
    part("write", lambda: written.append(write_text()))
    (calibration,) = written
    recipe = make_recipe(amount=amount, calibration=CalibrationText(calibration.ids))
    run = PruningRun(model, tokenizer, recipe, undoable=False)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    part("evaluate before", lambda: perplexity(model, texts))
    part("prune", run.run)
    part("evaluate after", lambda: perplexity(model, texts))
    assert run.masks is not None
    assert run.report is not None
    widest = max(run.masks.widths.values())
    choice_seconds = run.report.seconds.get("choose", 0.0)
    passes = len(calibration) + 2 * len(texts)
    return {
        "sequences": {"calibration": len(calibration), "evaluation": len(texts)},
        "dense_pass_seconds": pass_seconds,
        "parts": parts,
        "choice_seconds": choice_seconds,
        "work": sum(entry["passes"] for entry in parts.values()) / passes,
        "time": sum(entry["seconds"] for entry in parts.values()) / (passes * pass_seconds),
        "model": weights,
        "pass_memory": pass_memory,
        "hidden_states": calibration.ids.numel() * model.config.hidden_size * next(model.parameters()).element_size(),
        "second_moments": widest**2 * torch.float64.itemsize,
    }


def megabytes(size: int | None) -> str:
    """Format a number of bytes for a table."""
    return "not known" if size is None else f"{size / MEGABYTE:,.0f} MB"


def table(results: dict[str, Any]) -> str:
    """Return the results in markdown."""
    rows = list(results["rows"].values())
    heads = (
        "calibration, evaluation|work|time|write s|prune s (choose s)|evaluate s|a pass|to write|to prune|to evaluate|states|"
        "moments"
    )
    lines = [
        "`llmrank prune` with its defaults; one pass of calibration and two of evaluation are 1.0, writing what is calibrated on",
        "comes on top (in brackets: without it). Memory: the most beside the model",
        f"({megabytes(rows[0]['model'])}) and the rank's compiled kernels ({megabytes(results['kernels'])}, loaded once a",
        "process); a pass: of one sequence through the model; states: of all calibration tokens in front of one block; moments:",
        "one layer's matrix of second moments, float64.",
        "",
        f"| {heads.replace('|', ' | ')} |",
        "| --- |" + " ---: |" * heads.count("|"),
    ]
    for row in rows:
        parts, sequences = row["parts"], row["sequences"]
        written, evaluations = parts["write"], [parts["evaluate before"], parts["evaluate after"]]
        passes = sequences["calibration"] + 2 * sequences["evaluation"]
        work = row["work"], row["work"] - written["passes"] / passes
        time = row["time"], row["time"] - written["seconds"] / (passes * row["dense_pass_seconds"])
        pruning = f"{parts['prune']['seconds']:.0f} ({row.get('choice_seconds', 0.0):.0f})"
        evaluating = sum(part["seconds"] for part in evaluations)
        evaluating_peak = max(part["peak_memory"] or 0 for part in evaluations) or None
        peaks = written["peak_memory"], parts["prune"]["peak_memory"], evaluating_peak
        cells = [
            f"{sequences['calibration']}, {sequences['evaluation']}",
            *(f"{total:.2f} ({without:.2f})" for total, without in (work, time)),
            f"{written['seconds']:.0f}",
            pruning,
            f"{evaluating:.0f}",
            *map(megabytes, (row["pass_memory"], *peaks, row["hidden_states"], row["second_moments"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_wikitext(parser)
    parser.add_argument("--model", help="directory, hub name or .gguf file; default the demo model")
    parser.add_argument("--amount", type=float, default=0.3, help="share to remove (%(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences (%(default)s)")
    parser.add_argument("--evaluate", type=int, default=16, help="evaluation sequences (%(default)s)")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=RESULTS / "footprint.json")
    options = parser.parse_args()
    check_wikitext(parser, options)
    source = options.model or demo_model()
    tokenizer, length = checkpoint.load(source, dtype="float32").tokenizer, options.sequence_length
    texts = read(options.wikitext / "test.txt", tokenizer, options.evaluate, length)
    own = {**OWN_TEXT, "sequence_length": length}
    protocol = {
        "model": Path(source).name,
        "amount": options.amount,
        "calibration": own,
        "evaluation": texts.provenance(),
    }
    results = opened(options.output, protocol)
    rows = results.setdefault("rows", {})
    if str(options.samples) not in rows:
        # This model is pruned without undo, as on the command line.
        model = checkpoint.load(source, dtype="float32").model
        grown = load_kernels(model)
        results.setdefault("kernels", grown)
        write_text = partial(generate_text, model, tokenizer, options.samples, length)
        rows[str(options.samples)] = measure(model, tokenizer, write_text, texts, options.amount)
        write_results(options.output, results, table)
    print(table(results))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
