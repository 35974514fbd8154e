"""Signals that ask a run to stop: noted at once, obeyed between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_INTERRUPTED = 75
"""Exit code of a run that wrote a checkpoint because it was asked to stop: EX_TEMPFAIL, start it again."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What SLURM sends before the time is up, what `--signal=USR1@120` makes of it, and Ctrl-C."""


@dataclass(slots=True)
class Interrupt:
    """Whether a signal came, and which."""

    name: str | None = None


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Note `SIGNALS` instead of dying of them; the former handlers come back afterwards.

    Begin this before data workers are forked, so that a signal to the whole process group leaves them alive.
    """
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.name = signal.Signals(number).name

    former = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
