"""What ``llmrank evaluate`` takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmrank.cli.arguments.shared import (
    TextArgument,
    add_items_option,
    add_model_options,
)
from llmrank.pipeline.defaults import DEFAULT_LENGTH, DEFAULT_SAMPLES

__all__ = ["add_evaluate_options"]


def add_evaluate_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank evaluate``."""
    command.add_argument("model", metavar="MODEL", help="a directory, a hub name, or a .gguf file")
    command.add_argument(
        "--text",
        type=TextArgument,
        help="text file, .jsonl file, directory of such files, or dataset:NAME[,CONFIG[,SPLIT]]; default the built-in text",
    )
    command.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help="number of sequences (%(default)s)")
    command.add_argument(
        "--sequence-length",
        type=int,
        default=DEFAULT_LENGTH,
        help="tokens in a sequence, at most what the model takes (%(default)s)",
    )
    command.add_argument("--batch-size", type=int, default=1, help="sequences in a forward pass (%(default)s)")
    command.add_argument("--output", type=Path, metavar="FILE", help="also write the result, as JSON, to this file")
    _add_dense_options(command)
    words = command.add_argument_group("last words and items")
    words.add_argument(
        "--last-word",
        action="store_true",
        help="measure for how many passages of the text the model writes the last word, in the manner of LAMBADA",
    )
    words.add_argument(
        "--passages", type=int, default=500, help="largest number of passages, spread over the text (%(default)s)"
    )
    add_items_option(words)
    tasks = command.add_argument_group("lm-eval (pip install 'llmrank[eval]')")
    tasks.add_argument(
        "--tasks",
        metavar="NAME[,NAME]",
        help="run tasks of lm-eval; llmrank_last_word (at most --passages) and llmrank_perplexity read --text, without a network",
    )
    tasks.add_argument("--task-dir", type=Path, metavar="DIR", help="directory of further tasks, in lm-eval's format")
    tasks.add_argument("--documents", type=int, help="use only this many documents of each task, the first ones (all)")
    add_model_options(command.add_argument_group("model"))


def _add_dense_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the comparison with the dense model."""
    dense = command.add_argument_group("against the dense model")
    dense.add_argument(
        "--against",
        metavar="DENSE",
        help="compare with the model that MODEL was pruned from: divergence of the next-token distributions, how often both have "
        "the same likeliest token, and how similarly both continue the beginnings of the sequences",
    )
    dense.add_argument(
        "--against-revision", metavar="REVISION", help="branch, tag or commit of DENSE; --revision is that of MODEL"
    )
    dense.add_argument(
        "--prompts",
        type=int,
        default=16,
        help="largest number of beginnings (prompts) to continue; 0 for none (%(default)s)",
    )
    dense.add_argument(
        "--prompt-length",
        type=int,
        default=64,
        help="tokens of a prompt, fewer if the sequences are shorter or the model takes no more (%(default)s)",
    )
    dense.add_argument(
        "--contexts",
        action="store_true",
        help="also show which kinds of tokens MODEL predicts worse than DENSE, and the worst examples with their contexts; costs "
        "a pass of the text for each model",
    )
    dense.add_argument("--new-tokens", type=int, default=32, help="largest number of tokens to write (%(default)s)")
