"""Work spread over processes, with results in the order of the items.

The pool is bounded (a few items ahead of the reader), so that 300,000 items cost no memory. Workers are spawned, not
forked (a notebook's kernel has threads), ignore Ctrl-C, which is their parent's to handle, and are killed by the
kernel when their parent ends in whatever way, so that a ``kill -9`` leaves nobody writing.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TypeVar

from .errors import UserError

T = TypeVar("T")
R = TypeVar("R")
DASK_PATIENCE = 20.0  # seconds until a scheduler has to answer
AHEAD = 8  # items under way or waiting to be read, per worker


def cores() -> int:
    """How many cores this process may use: its affinity, and the container's CPU quota where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return count


def map_processes(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield ``function(item)`` for every item, in order, computed by ``workers`` processes.

    With one worker everything runs in this process. ``function`` and the items must be picklable (a module's own
    function, or a ``functools.partial`` of one). An exception of ``function`` is raised here and ends the rest;
    UserError when a worker was killed from outside.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    items = iter(items)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        waiting = deque(pool.submit(function, item) for item in itertools.islice(items, AHEAD * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
    except BrokenProcessPool:
        raise UserError(
            f"one of {workers} worker processes was killed (out of memory?); run it again with fewer workers: what is done is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when process ``parent``, which started it, ends (Linux; nothing elsewhere)."""
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, number)
        if os.getppid() != parent:  # it ended before the call above
            os._exit(1)


def map_dask(function: Callable[[T], R], items: Iterable[T], scheduler: str) -> Iterator[R]:
    """Yield ``function(item)`` for every item, in order, computed by the workers of a dask scheduler (``tcp://host:port``).

    The same rules as :func:`map_processes`. What a worker was at when it was lost is done again by another; UserError
    where the scheduler does not answer, has no workers, or an item took several workers down with it.
    """
    from distributed import Client, KilledWorker

    try:
        client = Client(scheduler, timeout=DASK_PATIENCE, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(f"scheduler {scheduler}: no answer ({error}); give the address that dask-scheduler printed") from None
    with client:
        with contextlib.suppress(TimeoutError):
            client.wait_for_workers(1, timeout=DASK_PATIENCE)
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        if not workers:
            raise UserError(f"scheduler {scheduler}: it has no workers; start some with: dask worker {scheduler}")
        items = iter(items)
        submit = partial(client.submit, function, pure=False)
        waiting = deque(submit(item) for item in itertools.islice(items, AHEAD * workers))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(submit(item) for item in itertools.islice(items, 1))
                yield result
        except KilledWorker as error:
            raise UserError(f"scheduler {scheduler}: {error}; run it again: what is done is kept") from None


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    die_with_parent(parent)
