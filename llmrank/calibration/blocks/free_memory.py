"""How much memory this process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

__all__ = ["free_memory", "left_by_limits"]

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Files of a control group: its limit, what it takes, and in memory.stat its pages of files, which the system may drop.
VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def free_memory(device: torch.device | None = None) -> int:
    """Return the number of bytes that are free on a device, by default on the CPU.

    On the CPU it is what the machine has available or, if that is less, what the limits of containers leave. A device that does
    not tell is taken to use the memory of the CPU.
    """
    if device is not None and device.type != "cpu":
        measure = getattr(getattr(torch, device.type, None), "mem_get_info", None)
        if measure is not None:
            return int(measure(device)[0])
    return min([int(psutil.virtual_memory().available), *left_by_limits()])


def left_by_limits(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> Iterator[int]:
    """Yield what each memory limit on the control groups of this process leaves, in bytes.

    A process is limited by its own group and by those around it. psutil does not read such limits.

    Parameters
    ----------
    groups : Path
        Where the control groups are mounted: version 2 itself, or the folder ``memory`` of version 1.
    own : Path
        File that names the groups of this process. In a container the path may be that of the machine outside.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (groups / "memory", VERSION_1) if controllers else (groups, VERSION_2)
        place = top / path.strip("/")
        for group in (place, *place.parents):
            yield from _left_in(group, *names)
            if group == top:
                break


def _left_in(group: Path, limit: str, taken: str, droppable: tuple[str, str]) -> Iterator[int]:
    """Yield what the limit of a group leaves, if there is one."""
    try:
        most, now = (int((group / name).read_text(encoding="ascii")) for name in (limit, taken))
        counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no such group or file, or the limit is "max"
        return
    yield max(0, most - now + sum(int(counts.get(name, 0)) for name in droppable))
