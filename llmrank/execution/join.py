"""Join the processes that a launcher started, or that the caller has connected already."""

from __future__ import annotations

import atexit
import itertools
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llmrank.errors import OptionError, ProcessError
from llmrank.execution.heartbeat import ARRIVAL, Heartbeat
from llmrank.execution.launched import launched_processes
from llmrank.execution.processes import Processes
from llmrank.execution.several_processes import SeveralProcesses
from llmrank.models.compat import process_store

__all__ = ["join_processes"]

Value = TypeVar("Value")
# Seconds that an exchange may take once all processes have come to it.
EXCHANGE_TIMEOUT = timedelta(seconds=60)
# Seconds after which a process that waits for a connection looks whether another process has failed.
PAUSE = 0.1
# Whether an earlier run in this process has connected the processes; the connection lasts until the end of Python.
_has_connected = False
# Runs of this process. All processes count the same, so the number tells apart what they store in different runs.
RUNS = itertools.count()


@contextmanager
def join_processes(arrival: float = ARRIVAL) -> Iterator[Processes]:
    """Connect this process to the others of its run, and yield the object by which it exchanges values with them.

    At the end, the context waits for the other processes. They are connected by gloo, and for tensors on CUDA devices by NCCL. If
    the caller has not set up torch.distributed, the current CUDA device of each process is, inside the context, the one whose
    number is its own number among the processes on its machine.

    Parameters
    ----------
    arrival : float
        Seconds within which all processes must come here.

    Raises
    ------
    ProcessError
        Another process has failed, or did not come: raised within a minute by an exchange that waits for it, and by the next step
        of a computation. If this process fails, the others are told.
    OptionError
        RANK and WORLD_SIZE do not fit each other, or do not come with the address of process 0.
    """
    if launched_processes()[1] < 2:
        yield Processes()
        return
    sets_up = not dist.is_initialized()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    own_device = (sets_up or _has_connected) and local_rank < torch.cuda.device_count()
    with torch.cuda.device(local_rank) if own_device else nullcontext(), _joined(arrival, sets_up=sets_up) as processes:
        yield processes


@contextmanager
def _joined(arrival: float, *, sets_up: bool) -> Iterator[Processes]:
    store, own = _stores(arrival, sets_up=sets_up)
    # The heartbeat comes first: while the processes connect, one of them may be killed.
    heartbeat = Heartbeat(own, *launched_processes(), arrival)
    try:
        heartbeat.wait_for_all()
        try:
            groups = _run_in_thread(lambda: _connect(store if sets_up else None), heartbeat.check)
        except RuntimeError as error:
            raise ProcessError(f"the processes could not connect: {str(error).splitlines()[0]}", None) from error
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
        global _has_connected
        _has_connected = True
        atexit.register(_disconnect)


def _stores(arrival: float, *, sets_up: bool) -> tuple[Any, Any]:
    """Return the store that the processes of this run share, and a connection to it for the heartbeat alone."""
    # A launcher that starts processes again may keep the store of the first attempt.
    prefix = f"llmrank/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(RUNS)}"
    rank, count = launched_processes()
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if sets_up and (rank >= count or not address or not (port.isdecimal() and int(port) < 1 << 16)):
        raise OptionError(
            f"expected RANK below WORLD_SIZE, and the address of process 0 in MASTER_ADDR and MASTER_PORT; got {rank}, {count}, "
            f"{address!r} and {port!r}; start the processes with torchrun or accelerate, or set the four variables"
        )
    # Process 0 makes the store, unless the launcher has made one.
    makes = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def connect() -> tuple[Any, Any]:
        if sets_up:
            options: dict[str, Any] = {"wait_for_workers": False, "multi_tenant": True, "timeout": EXCHANGE_TIMEOUT}
            options["use_libuv"] = os.environ.get("USE_LIBUV", "0" if os.name == "nt" else "1") == "1"
            store: Any = dist.TCPStore(address, int(port), count, makes, **options)  # type: ignore[attr-defined]
        else:
            store = process_store()
        shared = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        return shared, shared.clone() if hasattr(shared, "clone") else shared

    deadline = time.monotonic() + arrival

    def check() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not come within {arrival:.0f} seconds; start all processes together")

    try:
        return _run_in_thread(connect, check)
    except (RuntimeError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        where = f"{address}:{port}" if sets_up else "its store"
        problem = f"cannot open {where}" if makes else f"cannot reach process 0 at {where}"
        raise ProcessError(f"process {rank} {problem}, so it ended, and nothing was written: {reason}", 0) from error


def _connect(store: Any) -> dict[str, Any]:
    """Connect the processes, by this store if they are not connected yet; return the groups by type of device."""
    if store is not None:
        rank, count = launched_processes()
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=EXCHANGE_TIMEOUT)
    groups = {"cpu": dist.new_group(backend="gloo", timeout=EXCHANGE_TIMEOUT)}
    if torch.cuda.is_available() and dist.is_nccl_available():
        groups["cuda"] = dist.new_group(backend="nccl", timeout=EXCHANGE_TIMEOUT)
    return groups


def _run_in_thread(work: Callable[[], Value], check: Callable[[], None]) -> Value:
    """Return what `work` returns, but do not wait for it longer than until `check` or a signal raises.

    Code of torch waits for the other processes without running Python, so a signal that comes meanwhile would be lost.
    """
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((work(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, name="llmrank-connect", daemon=True).start()
    while True:
        check()
        with suppress(queue.Empty):
            value, error = results.get(timeout=PAUSE)
            if error is not None:
                check()
                raise error
            return value  # type: ignore[no-any-return]


def _disconnect() -> None:
    """Close the connection that :func:`join_processes` opened, at the end of Python: later runs in this process use it too."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dist.is_initialized():
            dist.destroy_process_group()
