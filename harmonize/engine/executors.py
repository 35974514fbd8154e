"""Who runs a function over many scans: local processes here, a cluster's workers in `harmonize.engine.dask_workers`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from harmonize import pool, time_limit
from harmonize.scan import ScanRef

Executor = Callable[[Callable[[ScanRef], Any], Iterable[ScanRef]], Iterator[tuple[ScanRef, Any]]]
"""Yields each reference with what the function made of it, or with `harmonize.pool.Died`; in any order. Local processes
are one; a cluster's scheduler can be another."""


_CRASHES = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})


def local(
    function: Callable[[ScanRef], Any], references: Iterable[ScanRef], *, workers: int
) -> Iterator[tuple[ScanRef, Any]]:
    """Processes of this machine; 0 works in this one."""
    return pool.run(function, references, workers=workers)


def within(
    function: Callable[[ScanRef], Any], references: Iterable[ScanRef], *, run_over: Executor, seconds: float
) -> Iterator[tuple[ScanRef, Any]]:
    """Another executor, whose scans lose their process after so many seconds."""
    return run_over(partial(time_limit.within, function=function, seconds=seconds), references)


def cause_of_death(died: pool.Died) -> str:
    """Why a scan's processes died, in a few words for rejected.parquet."""
    if died.exit_code == time_limit.EXIT_CODE:
        return "it twice took longer than the time limit of a scan"
    if died.exit_code is None:
        return "its workers died, probably for memory or at the time limit of a scan"
    if -died.exit_code in _CRASHES:
        return f"its process crashed twice (exit code {died.exit_code}), probably in a decoder at damaged pixels"
    return f"its process was killed twice (exit code {died.exit_code}), probably for memory"
