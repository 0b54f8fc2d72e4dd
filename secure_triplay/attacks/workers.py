"""Attacks in processes of their own, one thread each, so that several run at once and figures do not depend on it.

Sums in another order differ in their last bits, and numbers of threads differ from machine to machine; so every
worker has one thread, whatever the number of workers. Attacks share nothing but the study, the seed and a folder.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from secure_triplay.errors import RunError

MOST = 4
"""Workers at a time: each holds a model of its own, about 2 GB."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

T = TypeVar("T")
_steps: Connection | None = None


def cores() -> int:
    """As many workers as there are cores for this process, at most MOST."""
    return min(MOST, len(os.sched_getaffinity(0)))


def tell_parent(name: str, done: int, total: int) -> None:
    """From inside a worker: move a progress bar of the process that started it.

    So short a message goes into the pipe in one piece, so that workers need no lock that one could die with.
    """
    assert _steps is not None
    _steps.send((name, done, total))


def in_workers(
    job: Callable[..., T],
    calls: Sequence[tuple[Any, ...]],
    *,
    workers: int,
    tell: Callable[[str, int, int], None],
) -> list[T]:
    """`job(*call)` for each call, in so many processes at a time -> what they returned, in the order of calls.

    The first error ends all of them and is raised. Raises RunError where a worker was killed.
    """
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    reader, writer = context.Pipe(duplex=False)
    listener = threading.Thread(target=_listen, args=(reader, tell), daemon=True)
    listener.start()
    with _one_thread(), ProcessPoolExecutor(workers, context, _begin, (writer,)) as pool:
        try:
            futures = [pool.submit(job, *call) for call in calls]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            mine = set(multiprocessing.active_children()) - others
            for each in mine:
                each.terminate()
            for each in mine:
                each.join()
            if isinstance(error, BrokenProcessPool):
                raise RunError(
                    "a worker process was killed, perhaps for want of memory",
                    where="attack suite",
                    fix="run it again with --workers 1",
                ) from error
            raise
        finally:
            writer.close()


def _begin(steps: Connection) -> None:
    import torch

    global _steps
    _steps = steps
    torch.set_num_threads(1)


def _listen(steps: Connection, tell: Callable[[str, int, int], None]) -> None:
    """Until the last worker, and this process, have closed their ends."""
    try:
        while True:
            tell(*steps.recv())
    except EOFError:
        steps.close()


@contextmanager
def _one_thread() -> Iterator[None]:
    """What a process that is started meanwhile reads of the environment."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
