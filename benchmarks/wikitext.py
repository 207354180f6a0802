"""WikiText-2 in its tokenised form: the option that names its directory, and token sequences of its files."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from llmrank.pipeline.texts import n_held_out
from llmrank.text import TokenSequences, tokenise

__all__ = ["add_wikitext", "articles_behind", "check_wikitext", "read", "read_and_hold_out"]

# More sequences than any text has: this finds the end of valid.
ALL = 1_000_000


def add_wikitext(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the directory."""
    parser.add_argument(
        "--wikitext", type=Path, default=os.environ.get("LLMRANK_WIKITEXT"), help="directory of WikiText-2"
    )


def check_wikitext(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Stop with an error if the text is missing."""
    if options.wikitext is None or not (options.wikitext / "valid.txt").is_file():
        parser.error(
            "--wikitext DIR (or LLMRANK_WIKITEXT) must name the directory of WikiText-2's valid.txt and test.txt, got "
            f"{options.wikitext}"
        )


def read(path: Path, tokenizer: Any, count: int, length: int, *, last: bool = False) -> TokenSequences:
    """Return the first (or last) sequences of a WikiText file, with ``<unk>`` read as ``unk``."""
    text = path.read_text(encoding="utf-8").replace("<unk>", "unk")
    whole = tokenise(text, tokenizer, ALL if last else count, length)
    first = len(whole) - count if last else 0
    return TokenSequences.of(
        whole.ids[first:], whole.mask[first:], f"WikiText-2 {path.name}, sequences {first} to {first + count - 1}"
    )


def articles_behind(path: Path, tokenizer: Any, tokens: int) -> str:
    """Return the articles of a WikiText file that begin behind this many tokens, with ``<unk>`` read as ``unk``."""
    text = path.read_text(encoding="utf-8").replace("<unk>", "unk")
    articles, read_tokens = re.split(r"(?m)^(?= = [^=])", text), 0
    for number, article in enumerate(articles):
        if read_tokens > tokens:
            return "".join(articles[number:])
        read_tokens += len(tokenizer(article)["input_ids"])
    return ""


def read_and_hold_out(path: Path, tokenizer: Any, count: int, length: int) -> tuple[TokenSequences, TokenSequences]:
    """Return the first sequences of a WikiText file, and the next ones, which are held out from a repair."""
    further = n_held_out(count)
    held_out = read(path, tokenizer, count + further, length).split(count)[1]
    if held_out is None:
        raise SystemExit(f"{path.name} has no more than {count} sequences of {length} tokens; ask for fewer --samples")
    return read(path, tokenizer, count, length), held_out
