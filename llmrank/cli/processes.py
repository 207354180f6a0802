"""Which commands and options run in several processes."""

from __future__ import annotations

import argparse
import os

from llmrank.errors import OptionError
from llmrank.execution.launched import launched_processes

__all__ = ["check_processes"]


def check_processes(options: argparse.Namespace) -> None:
    """Check, before any work, that the command can run in as many processes as a launcher has started.

    Raises
    ------
    OptionError
        Several processes were started, and the command or an option works only in one.
    """
    count = launched_processes()[1]
    if count == 1:
        return
    if options.command not in ("prune", "heal"):
        raise OptionError(
            f"{count} processes were started, and llmrank {options.command} runs in one; start it without a launcher "
            "(torchrun, accelerate): only llmrank prune and llmrank heal divide their work"
        )
    if options.command == "prune" and (options.low_memory or options.resume):
        raise OptionError(
            f"--low-memory and --resume keep the files of a run in one place, and {count} processes were started; start one "
            "process, or leave them out"
        )
    if options.device_map is not None:
        raise OptionError(
            f"--device-map places one model over the devices, and {count} processes were started, each with a model; start one "
            "process, or leave it out"
        )
    # Imported here, because this takes seconds.
    import torch

    from llmrank.models.loading import parse_device

    device = parse_device(options.device)
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if device.type == "cuda" and (":" in options.device or n_local > torch.cuda.device_count()):
        raise OptionError(
            f"each of {n_local} processes on this machine needs a GPU of its own, got --device {options.device} and "
            f"{torch.cuda.device_count()} GPUs; write --device cuda, and start at most as many processes as there are GPUs"
        )
