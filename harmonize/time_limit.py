"""A time limit for one scan that holds inside any library: the worker process ends itself."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

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
