"""Run EleutherAI's lm-eval on a loaded model: lm-eval's tasks, tasks of the user, and two tasks that need only a text file.

lm-eval is an extra (``pip install "llmrank[eval]"``). Its own command line cannot load models that need :func:`llmrank.load`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrank.errors import CalibrationError, LLMRankError, OptionError, is_out_of_memory
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.last_word import cut_passages
from llmrank.evaluation.logits import check_predicts
from llmrank.execution.random_state import restored_random_state
from llmrank.models.forward import evaluation_mode, input_device
from llmrank.text import read_text
from llmrank.text.sources import find_source

__all__ = ["TASKS", "LMEvalTasks", "find_tasks", "last_word_documents", "page_documents"]

TASKS = Path(__file__).parent / "tasks"
# Number of resamples for the standard errors that lm-eval bootstraps. The relative error of such a standard error is about
# 1 / sqrt(2 x 10,000), 0.7 %.
RESAMPLES = 10_000
# A page is one document of the task llmrank_perplexity. All pages except the last have at least this many characters. That is
# about a thousand tokens, of which only the first few are predicted from little context.
PAGE_LENGTH = 4000


@dataclass(frozen=True, eq=False)
class LMEvalTasks:
    """Tasks of lm-eval that can be run on models.

    Attributes
    ----------
    names : tuple of str
    manager : lm_eval.tasks.TaskManager
        Finds and reads the files of the tasks.
    """

    names: tuple[str, ...]
    manager: Any

    def run(
        self, model: Any, tokenizer: Any, limit: int | None = None, batch_size: int = 1
    ) -> dict[str, dict[str, Estimate]]:
        """Run the tasks on a model.

        Parameters
        ----------
        model : transformers causal or encoder-decoder language model
        tokenizer : transformers tokenizer
            A copy is used, because lm-eval may add a padding token.
        limit : int, optional
            Largest number of documents of each task; the first ones are used. By default all.
        batch_size : int
            Number of requests in a forward pass.

        Returns
        -------
        dict from str to dict from str to Estimate
            The metrics of every task, by their names in lm-eval: the metric, and after a comma the filter unless it is ``none``.
            The standard errors are lm-eval's; those that it bootstraps are computed from 10,000 resamples. The count of an
            estimate is the number of documents, 0 for a group of tasks.

        Raises
        ------
        UnsupportedModelError
            The model predicts no next token.
        CalibrationError
            There is no tokenizer, or a task fails, for example because its data cannot be loaded.
        OptionError
            See :func:`llmrank.models.forward.input_device`.
        """
        check_predicts(model, "likelihood for lm-eval")
        if tokenizer is None:
            raise CalibrationError("lm-eval tasks need a tokenizer, and this model came without one; pass one")
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        try:
            with evaluation_mode(model), restored_random_state(input_device(model)), _without_processes():
                outcome = simple_evaluate(
                    model=HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size),
                    tasks=list(self.names),
                    task_manager=self.manager,
                    limit=limit,
                    bootstrap_iters=RESAMPLES,
                    log_samples=False,
                )
        except LLMRankError:
            raise
        except Exception as error:  # tasks may run any code
            if is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CalibrationError(
                f"lm-eval cannot run {', '.join(self.names)}: {reason}; most tasks fetch their data from the hub, but "
                f"{' and '.join(_own_tasks())} need only a text file"
            ) from error
        samples = outcome["n-samples"]
        return {
            name: _estimates(values, samples.get(name, {}).get("effective", 0))
            for name, values in outcome["results"].items()
        }


def find_tasks(
    names: Sequence[str],
    text: str | os.PathLike[str] | None = None,
    passages: int | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> LMEvalTasks:
    """Find lm-eval tasks by name.

    Parameters
    ----------
    names : sequence of str
        Names of tasks. The two tasks of llmrank, ``llmrank_last_word`` and ``llmrank_perplexity``, read `text`; most tasks of
        lm-eval fetch their data from the hub.
    text : path or ``dataset:NAME[,CONFIG[,SPLIT]]``, optional
        The text that the two tasks of llmrank read; by default the built-in text.
    passages : int, optional
        Largest number of passages of ``llmrank_last_word``, see :func:`llmrank.evaluation.last_word.cut_passages`.
    directory : path-like, optional
        Directory of further tasks: YAML files in lm-eval's format. Code that they name is executed.

    Raises
    ------
    OptionError
        lm-eval is not installed, no task is named, or a task or the directory does not exist.

    Notes
    -----
    Cost: lm-eval reads thousands of files to know the names of its tasks, unless `names` holds only the tasks of llmrank.
    """
    if directory is not None and not Path(directory).is_dir():
        raise OptionError(f"no directory of tasks at {directory}; expected one that holds lm-eval's YAML files")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise OptionError(f"tasks need lm-eval ({error}); pip install 'llmrank[eval]'") from error
    own = _own_tasks()
    manager = TaskManager(
        include_path=[str(TASKS), *([] if directory is None else [str(directory)])],
        include_defaults=not set(names) <= set(own),
        # lm-eval passes these values to last_word_documents and page_documents.
        metadata={
            **({} if text is None else {"text": os.fspath(text)}),
            **({} if passages is None else {"passages": passages}),
        },
    )
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown or not names:
        raise OptionError(
            f"unknown lm-eval task {', '.join(unknown) or '(none named)'}; expected a name that `lm_eval ls tasks` lists, one "
            f"of a directory of tasks, or {' or '.join(own)}"
        )
    return LMEvalTasks(tuple(names), manager)


@contextmanager
def _without_processes() -> Iterator[None]:
    """Make lm-eval compute its bootstraps in this process, because its pool of processes can hang.

    lm-eval would fork a pool of workers, and end them by a signal. If this process has a handler for that signal, a worker that
    has not begun yet can miss it. The pool then waits for that worker for ever.
    """
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def _own_tasks() -> list[str]:
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def _estimates(values: dict[str, Any], count: int) -> dict[str, Estimate]:
    """Make estimates from lm-eval's results for one task, such as ``{"acc,none": 0.5, "acc_stderr,none": 0.1}``.

    A key is a metric and, after a comma, lm-eval's filter of the answers. `count` is the number of documents.
    """
    estimates = {}
    for key, value in values.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = values.get(f"{metric}_stderr,{filter_name}")
        estimates[metric if filter_name == "none" else key] = Estimate(
            float(value), float(error) if isinstance(error, (int, float)) else None, count
        )
    return estimates


def last_word_documents(text: str | None = None, passages: int | None = None, **_: Any) -> dict[str, Any]:
    """Load the documents of ``llmrank_last_word``: passages, each a dict of its `context` and its `word`.

    Parameters
    ----------
    text : str, optional
        Path of a text file, or ``dataset:NAME[,CONFIG[,SPLIT]]``; by default the built-in text.
    passages : int, optional
        See :func:`llmrank.evaluation.last_word.cut_passages`.
    **_
        Other arguments that lm-eval passes to loaders.

    Raises
    ------
    CalibrationError
        The text cannot be read, or holds no passage.
    OptionError
        `passages` is below 1.
    """
    content, description = _read(text)
    rows = [{"context": passage.context, "word": passage.word} for passage in cut_passages(content, passages)]
    if not rows:
        raise CalibrationError(f"no passage can be cut from the {description}; give longer paragraphs, or more of them")
    return _dataset(rows)


def page_documents(text: str | None = None, **_: Any) -> dict[str, Any]:
    """Load the documents of ``llmrank_perplexity``: each is a `page` of complete lines.

    A page ends with the line that makes it 4,000 characters long or longer; the last may be shorter. Blank pages are left out.

    Parameters
    ----------
    text, **_
        See :func:`last_word_documents`.

    Raises
    ------
    CalibrationError
        The text cannot be read.
    """
    content = _read(text)[0]
    pages, page = [], ""
    for line in ("\n\n".join(content) if isinstance(content, list) else content).splitlines(keepends=True):
        page += line
        if len(page) >= PAGE_LENGTH:
            pages.append(page)
            page = ""
    return _dataset([{"page": page} for page in [*pages, page] if page.strip()])


def _read(text: str | None) -> tuple[Any, str]:
    """Return a text, or a list of texts, and its description for messages."""
    # read_text would treat a mistyped path, given as a str, as the text itself. It reports a mistyped Path.
    source = text if text is None or find_source(text, "evaluation") else Path(text)
    return read_text(source, "evaluation")


def _dataset(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Make the data set that lm-eval expects from a loader: documents by split."""
    import datasets

    return {"test": datasets.Dataset.from_list(rows)}
