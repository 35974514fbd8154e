"""Signals that ask a run to stop: noted at once, obeyed between two steps; and a launcher that has gone, likewise."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harmonize.errors import EXIT_INTERRUPTED
from harmonize.launcher import LAUNCHER, Launcher
from harmonize.terminal import warn
from headspark.run.output_streams import lasting_streams

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What SLURM sends before the time is up, what `--signal=USR1@120` makes of it, Ctrl-C, a terminal that hangs up, and
Ctrl-\\; torchrun hands the last two on to its ranks."""

GRACE_S = 10.0
"""How long a start that was asked to stop may take to end: a rank may wait for one that has ended already."""

WATCH_S = 0.5
"""Seconds between two looks at the launcher."""

_innermost: Interrupt | None = None
"""Who is told of a signal now."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop where nothing is left to save. No `Exception`, so nobody swallows it."""


class Interrupt:
    """Whether a run was asked to stop, and by what.

    Attributes:
        name: Of the signal; ``launcher`` where that has ended; None as long as nobody asked.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._process, self._starting, self._raised = os.getpid(), True, False
        self._last_resort: threading.Timer | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    def begin(self) -> None:
        """From now on there is work to save: a request is noted, and obeyed by whoever asks this object."""
        self._starting = False

    def check(self) -> None:
        """End the work here if that was asked for.

        Raises:
            Interrupted: It was.
        """
        if self:
            raise Interrupted

    def note(self, name: str) -> None:
        """Take a request; while a run starts, which may take an hour, it ends here.

        Raises:
            Interrupted: The run has not begun.
        """
        self.name = self.name or name
        if self._starting and not self._raised and os.getpid() == self._process:  # not in a forked worker
            self._raised = True
            self._last_resort = threading.Timer(GRACE_S, os._exit, (EXIT_INTERRUPTED,))
            self._last_resort.daemon = True
            self._last_resort.start()
            raise Interrupted

    def close(self) -> None:
        """End the watch over a start that was asked to stop."""
        if self._last_resort is not None:
            self._last_resort.cancel()


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Note `SIGNALS` instead of dying of them, and the end of the launcher; the former handlers come back afterwards.

    Where one of these lies within another, as a fold's in that of a cross-validation, the outer one is told in the end:
    work that was about to be finished anyhow says nothing of it.

    A signal that is ignored (as SIGHUP under ``nohup``) stays so. Begin this before data workers are forked, so that a
    signal to the whole process group leaves them alive.

    Raises:
        Interrupted: A request came before `Interrupt.begin`.
    """
    global _innermost
    interrupt, outer = Interrupt(), _innermost

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.note(signal.Signals(number).name)

    taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, note) for number in taken}
    _innermost = interrupt
    ended = threading.Event()
    if LAUNCHER is not None:
        threading.Thread(target=_watch, args=(LAUNCHER, ended), name="launcher", daemon=True).start()
    try:
        with lasting_streams():
            if LAUNCHER is not None and not LAUNCHER.alive():  # it ended while torch was loaded
                interrupt.note("launcher")
            yield interrupt
    except Exception as error:
        if interrupt._starting and interrupt:  # another rank obeyed first, and this one could not do without it
            raise Interrupted from error
        raise
    finally:
        ended.set()
        interrupt.close()
        _innermost = outer
        if outer is not None:
            outer.name = outer.name or interrupt.name
        for number, handler in former.items():
            signal.signal(number, handler)


def say_nothing_to_save(out: object) -> int:
    """Tell the user how a start ended that was asked to stop; gives the exit code."""
    warn(f"{out}: stopped before the first step; give the same command again")
    return EXIT_INTERRUPTED


def _watch(launcher: Launcher, ended: threading.Event) -> None:
    """Make of the launcher's end what a SIGTERM to this process makes of it."""
    while not ended.wait(WATCH_S):
        if not launcher.alive():
            # To the main thread, whose system calls it interrupts.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            return
