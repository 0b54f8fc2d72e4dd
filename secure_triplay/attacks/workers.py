"""Attacks in processes of their own, one thread each, so that several run at once and figures do not depend on it.

Sums in another order differ in their last bits, and numbers of threads differ from machine to machine; so every
worker has one thread, whatever the number of workers. Attacks share nothing but the study, the seed and a folder.

The standard library's pool is not used: in Python 3.11 it can miss the death of a worker that it started late, and
then waits for ever. Here each worker has a pipe of its own, and the end of a pipe is the end of its worker.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from secure_triplay.errors import RunError

MOST = 4
"""Workers at a time: each holds a model of its own, about 2 GB."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

T = TypeVar("T")
_parent: Connection | None = None


def cores() -> int:
    """As many workers as there are cores for this process, at most MOST."""
    return min(MOST, len(os.sched_getaffinity(0)))


def tell_parent(name: str, done: int, total: int) -> None:
    """From inside a worker: move a progress bar of the process that started it."""
    assert _parent is not None
    _parent.send(("step", (name, done, total)))


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
    found: dict[int, T] = {}
    waiting = list(enumerate(calls))[::-1]
    crew: dict[Connection, SpawnProcess] = {}
    at_work: dict[Connection, int] = {}

    def give(worker: Connection) -> None:
        if waiting:
            at_work[worker], call = waiting.pop()
            with _alive():
                worker.send(call)

    try:
        with _one_thread():
            crew.update(_start(job) for _ in range(min(workers, len(calls))))
        for worker in crew:
            give(worker)
        while len(found) < len(calls):
            for worker in set(crew).intersection(wait(list(crew))):
                with _alive():
                    kind, value = worker.recv()
                if kind == "step":
                    tell(*value)
                elif kind == "error":
                    raise value
                else:
                    found[at_work.pop(worker)] = value
                    give(worker)
    finally:
        for worker, process in crew.items():
            worker.close()
            process.terminate()
            process.join()
    return [found[number] for number in range(len(calls))]


def _start(job: Callable[..., Any]) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, job))
    process.start()
    there.close()
    return here, process


def _serve(parent: Connection, job: Callable[..., Any]) -> None:
    """Body of a worker: a call comes, its result or its error goes, until the parent ends it."""
    import torch

    global _parent
    _parent = parent
    torch.set_num_threads(1)
    while True:
        try:
            call = parent.recv()
        except EOFError:
            return
        try:
            result = ("result", job(*call))
        except Exception as error:
            error.add_note(traceback.format_exc())
            result = ("error", error)
        parent.send(result)


@contextmanager
def _alive() -> Iterator[None]:
    """A pipe that ends meanwhile says that its worker did."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise RunError(
            "a worker process was killed, perhaps for want of memory",
            where="attack suite",
            fix="run it again with --workers 1",
        ) from error


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
