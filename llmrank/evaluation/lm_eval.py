"""EleutherAI's lm-eval on a model at hand: its own tasks, tasks of the user's, and two that need nothing but a text file.

lm-eval is an extra (``pip install "llmrank[eval]"``) and is imported when asked for. Its own command line takes checkpoints that
stock transformers loads; here it is given the model object, so that those which need :func:`llmrank.load` run as well.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmrank.calibration.forward import evaluation_mode, input_device
from llmrank.calibration.logits import check_predicts
from llmrank.calibration.text import DATASET_PREFIX, read_text
from llmrank.errors import CalibrationError, LLMRankError, OptionError, out_of_memory
from llmrank.evaluation.estimate import Estimate
from llmrank.evaluation.last_word import cut_passages

__all__ = ["TASKS", "HarnessTasks", "find_tasks", "last_word_documents", "page_documents"]

TASKS = Path(__file__).parent / "tasks"
# Characters of a page at least: some hundreds of tokens, so that few are read with little in front of them.
PAGE = 4000


@dataclass(frozen=True, eq=False)
class HarnessTasks:
    """Tasks of lm-eval that were found.

    Attributes
    ----------
    names : tuple of str
    manager : lm_eval.tasks.TaskManager
        Knows where they are.
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
            Copied: lm-eval may give it a padding token.
        limit : int, optional
            Documents of each task, the first ones; all by default.
        batch_size : int
            Requests in a forward pass.

        Returns
        -------
        dict from str to dict from str to Estimate
            Task -> metric -> value. The metric is lm-eval's name for it, with the filter's behind a comma unless that is
            ``none``; the error is lm-eval's, None where it has none; the count is of documents (0 for a group of tasks).

        Raises
        ------
        UnsupportedModelError
            The model has no next-token prediction.
        CalibrationError
            A task's data cannot be had, or there is no tokenizer.
        """
        check_predicts(model, "likelihood for lm-eval")
        if tokenizer is None:
            raise CalibrationError("lm-eval tasks need a tokenizer, and this model came without one")
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        try:
            with evaluation_mode(model), _generators_as_they_were(input_device(model)):
                outcome = simple_evaluate(
                    model=HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size),
                    tasks=list(self.names),
                    task_manager=self.manager,
                    limit=limit,
                    log_samples=False,
                )
        except LLMRankError:
            raise
        except Exception as error:  # tasks run code and fetch data of many makers
            if out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CalibrationError(
                f"lm-eval cannot run {', '.join(self.names)}: {reason}; most tasks fetch their data from the hub, "
                f"{' and '.join(_own())} need only a text file"
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
) -> HarnessTasks:
    """Find lm-eval tasks by name.

    Parameters
    ----------
    names : sequence of str
        ``llmrank_last_word`` and ``llmrank_perplexity`` read `text`; most of lm-eval's own fetch their data from the hub.
    text : path or ``dataset:NAME[,CONFIG[,SPLIT]]``, optional
        Of the two tasks; the built-in text by default.
    passages : int, optional
        For ``llmrank_last_word``: see :func:`llmrank.evaluation.last_word.cut_passages`.
    directory : path-like, optional
        Of further tasks: YAML files in lm-eval's format. Code that they name is run.

    Returns
    -------
    HarnessTasks

    Raises
    ------
    OptionError
        lm-eval is not installed, or a task or the directory is not there.

    Notes
    -----
    Cost: lm-eval reads some thousand files to know the names of its tasks, unless only the two are asked for.
    """
    if directory is not None and not Path(directory).is_dir():
        raise OptionError(f"no directory of tasks at {directory}; expected one that holds lm-eval's YAML files")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise OptionError(f"tasks need lm-eval ({error}); pip install 'llmrank[eval]'") from error
    own = _own()
    manager = TaskManager(
        include_path=[str(TASKS), *([] if directory is None else [str(directory)])],
        include_defaults=not set(names) <= set(own),
        # All tasks are handed these; the two of ours take them.
        metadata={
            **({} if text is None else {"text": os.fspath(text)}),
            **({} if passages is None else {"passages": passages}),
        },
    )
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown or not names:
        raise OptionError(
            f"unknown lm-eval task {', '.join(unknown) or '(none named)'}; expected names that `lm_eval ls tasks` lists, those "
            f"of a directory of tasks, or {' or '.join(own)}"
        )
    return HarnessTasks(tuple(names), manager)


@contextmanager
def _generators_as_they_were(device: torch.device) -> Iterator[None]:
    """lm-eval seeds all random generators of the process, which makes it repeatable; afterwards they go on as if it had not."""
    plain, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(of_numpy)  # noqa: NPY002


def _own() -> list[str]:
    """The tasks that come with this package."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def _estimates(values: dict[str, Any], count: int) -> dict[str, Estimate]:
    found = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        found[metric if kind == "none" else key] = Estimate(
            float(value), float(error) if isinstance(error, (int, float)) else None, count
        )
    return found


def last_word_documents(text: str | None = None, passages: int | None = None, **_: Any) -> dict[str, Any]:
    """The data of ``llmrank_last_word``: a passage a document, with its `context` and `word`.

    Parameters
    ----------
    text : str, optional
        Path of a text file, or ``dataset:NAME[,CONFIG[,SPLIT]]``; the built-in text by default.
    passages : int, optional
        See :func:`llmrank.evaluation.last_word.cut_passages`.
    **_
        What else lm-eval hands to loaders.

    Raises
    ------
    CalibrationError
        The text cannot be read, or holds no passage.
    """
    content, description = _read(text)
    rows = [{"context": passage.context, "word": passage.word} for passage in cut_passages(content, passages)]
    if not rows:
        raise CalibrationError(f"no passage to ask the last word of in the {description}; give a longer text")
    return _dataset(rows)


def page_documents(text: str | None = None, **_: Any) -> dict[str, Any]:
    """The data of ``llmrank_perplexity``: a `page` a document, whole lines of 4,000 characters or a little more.

    Parameters
    ----------
    text : str, optional
        As for :func:`last_word_documents`.
    **_
        What else lm-eval hands to loaders.

    Raises
    ------
    CalibrationError
        The text cannot be read.
    """
    content, _description = _read(text)
    pages, page = [], ""
    for line in ("\n\n".join(content) if isinstance(content, list) else content).splitlines(keepends=True):
        page += line
        if len(page) >= PAGE:
            pages.append(page)
            page = ""
    return _dataset([{"page": page} for page in [*pages, page] if page.strip()])


def _read(text: str | None) -> tuple[Any, str]:
    # A mistyped path must not pass for a text.
    source = text if text is None or text.startswith(DATASET_PREFIX) else Path(text)
    return read_text(source, "evaluation")


def _dataset(rows: list[dict[str, str]]) -> dict[str, Any]:
    import datasets

    return {"test": datasets.Dataset.from_list(rows)}
