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

# Seconds that processes may start apart, and that an exchange may take once all have come to it.
START_TIMEOUT, EXCHANGE_TIMEOUT = 300, 60


def launched_processes() -> tuple[int, int]:
    """Return the rank of this process and the number of processes: those connected already, or by the launcher's variables.

    The launchers torchrun and accelerate set RANK and WORLD_SIZE.
    """
    if not dist.is_available():
        return 0, 1
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    return (int(found[0]), int(found[1])) if all(text.isdecimal() for text in found) else (0, 1)


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the other processes, and yield the one that this process is; at the end, wait for the others.

    The context connects the processes by gloo, and for tensors on CUDA devices by NCCL. If it has to set up torch.distributed,
    each process takes the CUDA device with its number on its machine as its own.

    Raises
    ------
    ProcessError
        Another process has failed, within a minute. If this process fails, the others are told.
    """
    if launched_processes()[1] < 2:
        yield Processes()
        return
    is_ours = not dist.is_initialized()
    if is_ours:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local < torch.cuda.device_count():
            torch.cuda.set_device(local)
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
    if is_ours:
        atexit.register(_leave)


def _leave() -> None:
    """Close the connection that :func:`join_processes` opened; later runs of this Python process have used it too."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dist.is_initialized():
            dist.destroy_process_group()
