"""How many processes a launcher has started. This is asked before torch is imported."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["launched_processes"]


def launched_processes() -> tuple[int, int]:
    """Return the rank of this process, and the number of processes.

    If the processes are not connected yet, both numbers come from the environment variables RANK and WORLD_SIZE, which the
    launchers torchrun and accelerate set.
    """
    dist: Any = sys.modules.get("torch.distributed")  # it has connected no processes if nobody has imported it
    if dist is not None:
        if not dist.is_available():
            return 0, 1
        if dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    return (int(found[0]), int(found[1])) if all(text.isdecimal() for text in found) else (0, 1)
