"""A time limit for one scan that holds inside any library: the worker process ends itself.

Discovery has no worker: there a timer looks, once a second, whether it is still the same file's turn.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from harmonize.errors import Reason, Rejection, Stage

Task = TypeVar("Task")
Result = TypeVar("Result")

HEADER_CPU_S = 60.0
"""Processor time that the header of one file may take while scans are looked for; a slow disk takes none."""

TICK_S = 1.0

EXIT_CODE = 124
"""What `timeout(1)` ends with."""


def within(task: Task, *, function: Callable[[Task], Result], seconds: float) -> Result:
    """Call `function`; if that takes longer, the process is gone, and who started it sees a dead worker.

    Nothing is limited in a process that is nobody's worker.
    """
    if multiprocessing.parent_process() is None:
        return function(task)
    timer = threading.Timer(seconds, os._exit, (EXIT_CODE,))
    timer.daemon = True
    timer.start()
    try:
        return function(task)
    finally:
        timer.cancel()


class TookTooLong(Rejection):
    """A file, or the files of a series, took longer to look at than the time limit allows."""

    def __init__(self) -> None:
        super().__init__(
            Reason.WORKER_DIED, "to look at its headers took longer than the time limit", stage=Stage.DISCOVER
        )


class _Turn:
    """One file's turn: within, where `watched` holds, `TookTooLong` is raised once it takes too long.

    Attributes:
        began: By the monotonic clock; None between two turns.
    """

    began: float | None = None

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.began = None


ONE_TURN = _Turn()


@contextmanager
def watched(seconds: float | None, *, cpu_seconds: float = HEADER_CPU_S) -> Iterator[None]:
    """Watch each `ONE_TURN` that begins within; nothing is watched outside the main thread.

    Args:
        seconds: Of one turn, by the clock on the wall; None for no limit.
        cpu_seconds: Of one turn, of this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: float | None = None
    cpu_then = 0.0

    def look(number: int, frame: FrameType | None) -> None:
        nonlocal seen, cpu_then
        began, cpu = ONE_TURN.began, time.process_time()
        if began is None or began != seen:
            seen, cpu_then = began, cpu
            return
        late = seconds is not None and time.monotonic() - began > seconds
        if late or cpu - cpu_then > cpu_seconds:
            raise TookTooLong

    handler = signal.signal(signal.SIGALRM, look)
    tick = min(TICK_S, cpu_seconds, seconds or TICK_S)
    timer = signal.setitimer(signal.ITIMER_REAL, tick, tick)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
