"""The demo: a real LLM, pruned through its graph, before and after side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from llmrank.calibration.forward import progress_step
from llmrank.calibration.logits import has_perplexity
from llmrank.evaluation.perplexity import complete
from llmrank.inspection.figures import what_went_where
from llmrank.pipeline import BasePipeline
from llmrank.surgery import checkpoint
from llmrank.surgery.files import check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_figure", "run"]

PROMPT = "The capital of France is Paris. The capital of Italy is"
FIGURE_FILE = "what_went_where.png"
PARTING = (
    "the pruned model completes the sentence otherwise than the dense one: it has lost what it knew. Removing fewer neurons "
    "(--amount 0.1) or calibrating on more text like what it will read (--samples 64 --calibration FILE) keeps more."
)


def run(pipeline: BasePipeline, output: Path, console: Console, prompt: str = PROMPT) -> Path:
    """Run a pipeline, write checkpoint and report, show what it cost, and write the figure.

    The checkpoint comes first: what can still fail after it is no reason to lose it. A figure that
    cannot be written is a warning.

    Parameters
    ----------
    pipeline : BasePipeline
        Not run yet.
    output : Path
        Absent or empty.
    console : rich Console
    prompt : str
        Completed by both models.

    Returns
    -------
    Path
        The directory written.

    Raises
    ------
    LLMRankError
        As the pipeline and :func:`llmrank.surgery.checkpoint.save`.
    """
    check_output(output)
    talks = pipeline.tokenizer is not None and has_perplexity(pipeline.model)
    said = {"dense": complete(pipeline.model, pipeline.tokenizer, prompt)} if talks else {}
    model = pipeline.run()
    if talks:
        said["pruned"] = complete(model, pipeline.tokenizer, prompt)
    report = pipeline.report
    if report is None:
        raise RuntimeError("the pipeline ran without leaving a report")
    content = {**report.to_dict(), "completions": said}
    with progress_step(pipeline.progress, f"Saving {output}"):
        directory = checkpoint.save(output, model, pipeline.tokenizer, pipeline.masks, content)
    console.print(report.table())
    for name, text in said.items():
        # As Text: what a model says may look like markup.
        console.print(Text.assemble(f"{name:>7}: {prompt}", (text, "bold")), highlight=False)
    if talks and _first_word(said["pruned"]) != _first_word(said["dense"]):
        console.print(Text(f"Warning: {PARTING}", style="bold yellow"))
    figure = directory / FIGURE_FILE
    try:
        draw_figure(pipeline).savefig(figure, dpi=150)
    except OSError as error:
        figure.unlink(missing_ok=True)
        console.print(
            Text(
                f"Warning: {FIGURE_FILE} could not be written ({error}); the checkpoint is complete without it",
                style="bold yellow",
            )
        )
    return directory


def _first_word(text: str) -> str:
    """The first word of a completion without punctuation; empty where there is none."""
    return next(iter(text.split()), "").strip(".,;:!?")


def draw_figure(pipeline: BasePipeline) -> Figure:
    """What went where, see :func:`llmrank.inspection.figures.what_went_where`; of a pipeline that has run."""
    scores: dict[str, Any] = {}
    for entry, rank in zip(pipeline.model_graphs, pipeline.ranks, strict=True):
        scores.update({name: values.numpy() for name, values in entry.importance(rank).items()})
    return what_went_where(scores, pipeline.masks or {})
