"""The work of ``llmrank demo``: prune a language model, and show what the model writes before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from llmrank.cli.terminal import Terminal
from llmrank.errors import UnsupportedModelError
from llmrank.evaluation.items import Answers, answer_items, items_of_each_kind, read_items
from llmrank.evaluation.perplexity import complete
from llmrank.inspection.figures import draw_removed_neurons, save_figure
from llmrank.models.forward import predicts_next_token
from llmrank.pipeline.plan import Plan
from llmrank.pipeline.pruning_run import PruningRun
from llmrank.surgery import checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_figure", "run_and_show"]

# Text that the dense and the pruned model continue, if they can write text.
PROMPT = "The capital of France is Paris. The capital of Italy is"
# Number of items of each kind that both models are asked: 80 in all cost about 20 s of one core for both models.
ITEMS_OF_EACH_KIND = 20
FIGURE = "removed_neurons"
FIGURE_FILE = f"{FIGURE}.png"
DIFFERENT_COMPLETION = (
    "the pruned model completes the sentence with another word than the dense model, so it may have lost knowledge. Less is lost "
    "if fewer neurons are removed (--amount 0.1), or if the model is calibrated on more text of the kind that it will read "
    "(--samples 64 --calibration FILE)."
)


def run_and_show(run: PruningRun, output: Path, terminal: Terminal, config: dict[str, Any]) -> dict[str, Any]:
    """Carry out a run, save the checkpoint and the report, print the results, write a figure, and return the report.

    If the figure cannot be written, a warning is printed.

    Parameters
    ----------
    run : PruningRun
        One that has not begun, and can be undone.
    output : Path
        Directory to write: one that does not exist yet, or an empty one.
    terminal : Terminal
    config : dict
        The options of the command, for the report.

    Raises
    ------
    LLMRankError
        See :meth:`llmrank.pipeline.pruning_run.PruningRun.run` and :func:`llmrank.surgery.checkpoint.save`.
    """
    can_complete = run.tokenizer is not None and predicts_next_token(run.model)
    completions = {"dense": complete(run.model, run.tokenizer, PROMPT)} if can_complete else {}
    dense_answers = _answers(run.model, run.tokenizer, terminal)
    model = run.run()
    answers = None if dense_answers is None else _answers(model, run.tokenizer, terminal)
    if can_complete:
        completions["pruned"] = complete(model, run.tokenizer, PROMPT)
    report, plan = run.report, run.plan
    if report is None or plan is None:
        raise RuntimeError("the run has left no report")
    report.config = config
    report_content = {**report.to_dict(), "completions": completions}
    with terminal.step(f"Saving {output}"):
        directory = checkpoint.save(output, model, run.tokenizer, run.masks, report_content)
    terminal.print(report.table())
    for name, text in completions.items():
        # The text of a model may look like rich's markup; Text shows it unchanged.
        terminal.print(Text.assemble(f"{name:>7}: {PROMPT}", (text, "bold")), highlight=False)
    kept = answers.kept(dense_answers) if answers and dense_answers else None
    if kept is not None:
        error = "" if kept.all.error is None else f" ± {kept.all.error:.0%}"
        kinds = ", ".join(f"{kind} {share.value:.0%}" for kind, share in kept.kinds.items())
        terminal.say(
            f"The pruned model answers {kept.all.value:.0%}{error} of the {kept.all.count} items that the dense model answers "
            f"right ({kinds}); llmrank evaluate --items built-in asks more."
        )
    if can_complete and _first_word(completions["pruned"]) != _first_word(completions["dense"]):
        terminal.warn(DIFFERENT_COMPLETION)
    try:
        save_figure(draw_figure(plan), directory, FIGURE, ["png"])
    except OSError as error:
        terminal.warn(f"{FIGURE_FILE} could not be written ({error}); the checkpoint is complete without it")
    return report_content


def _answers(model: Any, tokenizer: Any, terminal: Terminal) -> Answers | None:
    """Ask a model some of the built-in items; None if it cannot be asked."""
    try:
        items = items_of_each_kind(read_items(), ITEMS_OF_EACH_KIND)
        return answer_items(model, tokenizer, items, progress=terminal.progress)
    except UnsupportedModelError:  # it does not continue a text
        return None


def _first_word(text: str) -> str:
    """Return the first word of a text without punctuation around it; empty if there is none."""
    return next(iter(text.split()), "").strip(".,;:!?")


def draw_figure(plan: Plan) -> Figure:
    """Draw the scores and the removed neurons of a plan that holds its graphs."""
    return draw_removed_neurons(plan.selection.ranked.importance(), plan.selection.masks)
