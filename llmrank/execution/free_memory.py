"""How much memory a model takes, and how much this process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from torch import nn

from llmrank.execution.execution import Execution

__all__ = ["bytes_of", "free_memory", "left_by_limits", "spare_memory"]

# Share of the free memory that may be taken to save time.
SPARE = 0.25

# Linux limits the memory of containers by control groups: where they are mounted, and the file that names those of this process.
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# For each version of control groups: the file with the memory limit of a group, the file with the memory that the group uses,
# and the entries of its file memory.stat that count cached pages of files, which the system may drop.
VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def bytes_of(model: nn.Module) -> int | None:
    """Return how many bytes the tensors of a model take, or None if some are not in memory.

    >>> bytes_of(nn.Linear(2, 3))
    36
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        return None
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def free_memory(device: torch.device | None = None) -> int:
    """Return the number of bytes that are free on a device, by default on the CPU.

    On the CPU, this is the memory that the machine has available or, if that is less, the memory that the limits of containers
    leave. A device that does not report its free memory is taken to use the memory of the CPU.
    """
    if device is not None and device.type != "cpu":
        measure = getattr(getattr(torch, device.type, None), "mem_get_info", None)
        if measure is not None:
            return int(measure(device)[0])
    return min([int(psutil.virtual_memory().available), *left_by_limits()])


def spare_memory(model: nn.Module, execution: Execution) -> int:
    """Return how many bytes this process may take to save time, where the model computes.

    It is 0 if weights or hidden states are in files, or not all parts of the model compute on one device.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if execution.work is not None or execution.device is not None or len(devices) > 1:
        return 0
    device = devices.pop()
    sharing = execution.processes.count if device.type == "cpu" else 1
    return int(SPARE * free_memory(device) / sharing)


def left_by_limits(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> Iterator[int]:
    """Yield for each memory limit on this process how many bytes the limit leaves.

    A process is limited by its own control group and by all groups that contain this group. psutil does not read such limits.

    Parameters
    ----------
    groups : Path
        Directory where the control groups are mounted. Groups of version 2 are directly in it, and groups of version 1 are in
        its folder ``memory``.
    own : Path
        File that names the groups of this process. In a container, the groups may be named by their paths on the machine
        outside; groups that do not exist here are skipped.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:  # NUMBER:CONTROLLERS:PATH, where version 2 leaves the controllers empty
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (groups / "memory", VERSION_1) if controllers else (groups, VERSION_2)
        place = top / path.strip("/")
        for group in (place, *place.parents):
            yield from _left_in(group, *names)
            if group == top:
                break


def _left_in(group: Path, limit_file: str, usage_file: str, droppable: tuple[str, str]) -> Iterator[int]:
    """Yield how many bytes the memory limit of a group leaves; yield nothing if the group has no limit."""
    try:
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in (limit_file, usage_file))
        counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no such group or file, or the limit is "max"
        return
    yield max(0, limit - used + sum(int(counts.get(name, 0)) for name in droppable))
