"""Join the processes that a launcher started, or that the caller has connected already."""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from llmrank.calibration.processes.heartbeat import Heartbeat
from llmrank.calibration.processes.processes import Processes
from llmrank.calibration.processes.several import SeveralProcesses

__all__ = ["join_processes", "launched_processes"]

# Seconds that a process waits for the others at the start; and seconds that an exchange may take once all have come to it.
START_TIMEOUT, EXCHANGE_TIMEOUT = 300, 60


def launched_processes() -> tuple[int, int]:
    """Return the rank of this process, and the number of processes.

    If the processes are not connected yet, both numbers come from the environment variables RANK and WORLD_SIZE, which the
    launchers torchrun and accelerate set.
    """
    if not dist.is_available():
        return 0, 1
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    return (int(found[0]), int(found[1])) if all(text.isdecimal() for text in found) else (0, 1)


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Connect this process to the others of its run, and yield the object by which it exchanges values with them.

    At the end, the context waits for the other processes. They are connected by gloo, and for tensors on CUDA devices by NCCL. If
    torch.distributed is not set up yet, each process also chooses the CUDA device whose number is its own number among the
    processes on its machine.

    Raises
    ------
    ProcessError
        Another process has failed; it is raised within a minute. If this process fails, the others are told.
    """
    if launched_processes()[1] < 2:
        yield Processes()
        return
    sets_up = not dist.is_initialized()
    if sets_up:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank < torch.cuda.device_count():
            torch.cuda.set_device(local_rank)
        dist.init_process_group("gloo", timeout=timedelta(seconds=START_TIMEOUT))
    timeout = timedelta(seconds=EXCHANGE_TIMEOUT)
    groups = {"cpu": dist.new_group(backend="gloo", timeout=timeout)}
    if torch.cuda.is_available() and dist.is_nccl_available():
        groups["cuda"] = dist.new_group(backend="nccl", timeout=timeout)
    default_store = dist.distributed_c10d._get_default_store()
    store = dist.PrefixStore(f"llmrank/{groups['cpu'].group_name}", default_store)  # type: ignore[attr-defined]
    heartbeat = Heartbeat(store.clone() if hasattr(store, "clone") else store, dist.get_rank(), dist.get_world_size())
    try:
        processes = SeveralProcesses(groups, store, heartbeat)
        yield processes
        processes.end()
    except BaseException as error:
        cause = heartbeat.cause_of(error)
        heartbeat.report(cause or error)
        if cause is not None and cause is not error:
            raise cause from error
        raise
    finally:
        heartbeat.stop()
    for group in groups.values():
        dist.destroy_process_group(group)
    if sets_up:
        atexit.register(_disconnect)


def _disconnect() -> None:
    """Close the connection that :func:`join_processes` opened, at the end of Python: later runs in this process use it too."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dist.is_initialized():
            dist.destroy_process_group()
