"""What ``llmrank export`` takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmrank.cli.arguments.shared import add_model_options

__all__ = ["add_export_options"]


def add_export_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``llmrank export``."""
    command.add_argument("model", metavar="CHECKPOINT", help="the directory of a pruned checkpoint")
    group = command.add_argument_group("model and output")
    group.add_argument(
        "--to",
        choices=["gguf", "vllm"],
        default="gguf",
        help="gguf: a file that llama.cpp runs; vllm: a directory that vLLM, SGLang and mlx-lm load (%(default)s)",
    )
    group.add_argument("--output", type=Path, required=True, help="file or directory to write")
    group.add_argument(
        "--tokenizer",
        type=Path,
        metavar="GGUF",
        help="for gguf: a GGUF file whose tokenizer is copied, any file of the dense model, in any quantisation (by default the "
        "file that CHECKPOINT was pruned from)",
    )
    add_model_options(group)
