"""Run one function over many tasks in local processes; a process that dies takes only its own task with it."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import Generic, TypeVar, cast

from threadpoolctl import threadpool_limits

from harmonize.control_groups import core_limit

Task = TypeVar("Task")
Result = TypeVar("Result")

ATTEMPTS = 2
"""A task whose process dies is tried once more: the kernel may have killed it for its neighbour's memory."""

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""One thread a process; and glibc keeps the large buffers of a scan for the next one. Given back and faulted in again,
they cost a third of the processor time, and the peak is the same."""


@dataclass(frozen=True, slots=True)
class Died:
    """What a task gives whose processes were killed.

    Attributes:
        exit_code: Of the last one; negative is a signal's number.
    """

    exit_code: int | None


def run(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    workers: int,
    more: Callable[[Result], Iterable[Task]] = lambda result: (),
) -> Iterator[tuple[Task, Result | Died]]:
    """Yield every task with its result, in the order in which they finish.

    Args:
        function: Picklable (a module's function, or a `functools.partial` of one).
        tasks: Picklable.
        workers: Processes, each with one thread; 0 runs in this process, in order.
        more: Further tasks that a result brings; they are done after those that wait.

    Raises:
        Exception: Whatever `function` raises ends the whole run; the other processes are stopped.
    """
    if workers == 0:
        # One thread here too: sums of floats may depend on how many share them.
        with threadpool_limits(limits=1):
            left = deque(tasks)
            while left:
                task = left.popleft()
                result = function(task)
                left.extend(more(result))
                yield task, result
        return
    with _Workers(function, more) as pool:
        yield from pool.work_through(deque((task, 1) for task in tasks), workers)


def cores() -> int:
    """The processor cores that this process may use: those that it is bound to, or what its job has the time of."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = core_limit()
    return bound if limit is None else min(bound, max(math.ceil(limit), 1))


class _Workers(Generic[Task, Result]):
    """The processes, each with the task that it is at."""

    def __init__(self, function: Callable[[Task], Result], more: Callable[[Result], Iterable[Task]]) -> None:
        self._function, self._more = function, more
        self._processes: dict[Connection, tuple[SpawnProcess, Task, int]] = {}

    def __enter__(self) -> _Workers[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        for process, _task, _attempt in self._processes.values():
            process.kill()
            process.join()

    def work_through(self, waiting: deque[tuple[Task, int]], workers: int) -> Iterator[tuple[Task, Result | Died]]:
        while waiting or self._processes:
            while waiting and len(self._processes) < workers:
                self._start(*waiting.popleft())
            for ready in cast(list[Connection], wait(list(self._processes))):
                process, task, attempt = self._processes[ready]
                try:
                    error, result = ready.recv()
                except (EOFError, ConnectionResetError):
                    del self._processes[ready]
                    process.join()
                    if attempt < ATTEMPTS:
                        waiting.append((task, attempt + 1))
                    else:
                        yield task, Died(process.exitcode)
                    continue
                if error is not None:
                    raise error
                waiting.extend((further, 1) for further in self._more(result))
                if waiting:
                    self._give(ready, process, *waiting.popleft())
                else:
                    del self._processes[ready]
                    ready.close()
                    process.join()
                yield task, result

    def _start(self, task: Task, attempt: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        with _worker_environment(), signals_held(), _main_left_out((self._function, task)):
            process.start()
        theirs.close()
        self._give(ours, process, task, attempt)

    def _give(self, connection: Connection, process: SpawnProcess, task: Task, attempt: int) -> None:
        self._processes[connection] = (process, task, attempt)
        try:
            connection.send(task)
        except (BrokenPipeError, ConnectionResetError):
            # It died between two tasks: the next look at its connection finds that out.
            return


def _serve(connection: Connection, function: Callable[[Task], Result]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            answer: tuple[BaseException | None, Result | None] = (None, function(task))
        except Exception as error:
            # Not swallowed: the parent raises it.
            answer = (error, None)
        connection.send(answer)


def _end_with_parent() -> None:
    """A parent that is killed with -9 cannot stop its children, so they watch it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def signals_held() -> Iterator[None]:
    """Start a process that never sees Ctrl-C, which reaches the whole group: the parent decides what becomes of it."""
    # The tracker starts with the first process, and lets signals through again when it does.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_left_out(sent: object) -> Iterator[None]:
    """Start a process that imports what it is sent, and not also the script of this one, which may load far more.

    Where what is sent is of that script, it is imported as ever.
    """
    main = sys.modules["__main__"]
    if b"__main__" not in pickle.dumps(sent):
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _worker_environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
