"""A torch profiler trace of a few steps, with a summary that a person reads first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from harmonize.files import atomic_path, write_text

WARMUP_STEPS = 3
"""Before the profile begins: first steps allocate, tune and fill queues."""

SUMMARY_ROWS = 40


class Stepped(Protocol):
    """What is told about every step."""

    def step(self) -> None:
        """A step has ended."""


class _Idle:
    def step(self) -> None:
        pass


@contextmanager
def profiled(steps: int, folder: Path, say: Callable[[str], object]) -> Iterator[Stepped]:
    """Profile `steps` steps into ``folder/trace.json`` and ``folder/summary.txt``; with 0, nothing."""
    if steps == 0:
        yield _Idle()
        return

    def write(finished: profile) -> None:
        with atomic_path(folder / "trace.json") as temporary:
            finished.export_chrome_trace(str(temporary))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        write_text(folder / "summary.txt", finished.key_averages().table(sort_by=by, row_limit=SUMMARY_ROWS))
        say(f"profile of {steps} steps: {folder / 'summary.txt'}")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    when = schedule(wait=WARMUP_STEPS - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=when, on_trace_ready=write) as profiler:
        yield profiler
