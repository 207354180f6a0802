"""The work of ``llmrank demo``: prune a language model, and show what the model writes before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from graphs.io.replacement import replace_file
from llmrank.evaluation.perplexity import complete
from llmrank.inspection.figures import draw_removed_neurons
from llmrank.models.forward import predicts_next_token
from llmrank.pipeline import BasePipeline
from llmrank.progress import progress_step
from llmrank.surgery import checkpoint
from llmrank.surgery.atomic import check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_figure", "run"]

PROMPT = "The capital of France is Paris. The capital of Italy is"
FIGURE_FILE = "removed_neurons.png"
DIFFERENT_COMPLETION = (
    "the pruned model completes the sentence with another word than the dense model, so it may have lost knowledge. Less is lost "
    "if fewer neurons are removed (--amount 0.1), or if the model is calibrated on more text of the kind that it will read "
    "(--samples 64 --calibration FILE)."
)


def run(
    pipeline: BasePipeline, output: Path, console: Console, config: dict[str, Any] | None = None, prompt: str = PROMPT
) -> dict[str, Any]:
    """Run a pipeline, save the checkpoint and the report, print the results, write a figure, and return the report.

    If the figure cannot be written, a warning is printed.

    Parameters
    ----------
    pipeline : BasePipeline
        A pipeline that has not run yet.
    output : Path
        Directory to write: one that does not exist yet, or an empty one.
    console : rich Console
    config : dict, optional
        The options of the command, for the report.
    prompt : str
        Text that the dense and the pruned model continue, if they can write text.

    Raises
    ------
    LLMRankError
        See :meth:`BasePipeline.run` and :func:`llmrank.surgery.checkpoint.save`.
    """
    check_output(output)
    can_complete = pipeline.tokenizer is not None and predicts_next_token(pipeline.model)
    completions = {"dense": complete(pipeline.model, pipeline.tokenizer, prompt)} if can_complete else {}
    model = pipeline.run()
    if can_complete:
        completions["pruned"] = complete(model, pipeline.tokenizer, prompt)
    report = pipeline.report
    if report is None:
        raise RuntimeError("the pipeline ran without leaving a report")
    report.config = config
    report_content = {**report.to_dict(), "completions": completions}
    with progress_step(pipeline.progress, f"Saving {output}"):
        directory = checkpoint.save(output, model, pipeline.tokenizer, pipeline.masks, report_content)
    console.print(report.table())
    for name, text in completions.items():
        # The text of a model may look like rich's markup; Text shows it unchanged.
        console.print(Text.assemble(f"{name:>7}: {prompt}", (text, "bold")), highlight=False)
    if can_complete and _first_word(completions["pruned"]) != _first_word(completions["dense"]):
        console.print(Text(f"Warning: {DIFFERENT_COMPLETION}", style="bold yellow"))
    figure = directory / FIGURE_FILE
    try:
        with replace_file(figure) as partial:
            draw_figure(pipeline).savefig(partial, dpi=150, format="png")
    except OSError as error:
        warning = f"Warning: {FIGURE_FILE} could not be written ({error}); the checkpoint is complete without it"
        console.print(Text(warning, style="bold yellow"))
    return report_content


def _first_word(text: str) -> str:
    """Return the first word of a text without punctuation around it; empty if there is none."""
    return next(iter(text.split()), "").strip(".,;:!?")


def draw_figure(pipeline: BasePipeline) -> Figure:
    """Draw the scores and the removed neurons of a pipeline that has run."""
    scores = {
        name: values.numpy()
        for model_graph, rank in zip(pipeline.model_graphs, pipeline.ranks, strict=True)
        for name, values in model_graph.importance(rank).items()
    }
    return draw_removed_neurons(scores, pipeline.masks or {})
