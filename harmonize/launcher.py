"""Which launcher (``accelerate launch``, ``torchrun``) started this process, and whether it is still there.

A launcher that is told to end, or killed, may leave its ranks behind: they would go on for days without anybody who
reads what they say, and keep others out of the run's folder.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harmonize.system import end_at_interrupt, end_where_it_cannot_run, loading

with loading():
    import psutil

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent dies."""

PROGRAMS = ("accelerate", "accelerate-launch", "torchrun", "deepspeed")
MODULES = ("accelerate.commands.", "torch.distributed.run", "torch.distributed.launch", "deepspeed.")


@dataclass(frozen=True, slots=True)
class Launcher:
    """The process that started this one as a rank, perhaps with others in between.

    Attributes:
        process: The launcher; psutil tells it from another one that was given its number later.
    """

    process: psutil.Process

    def alive(self) -> bool:
        """Whether it still runs; one that has ended and waits for its own parent to notice does not."""
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:  # it is there, and may not be looked at
            return True


def is_launcher(words: Sequence[str]) -> bool:
    """Whether a command line starts ranks of a training run.

    Only the program counts, not its arguments: a shell or a terminal that was given such a command is none, for it may
    end while the ranks are meant to go on.

    Example:
        >>> is_launcher(["/opt/bin/python3.11", "/opt/bin/accelerate", "launch", "ssl/pretrain.py"])
        True
        >>> is_launcher(["python", "-u", "-m", "torch.distributed.run", "ssl/pretrain.py"])
        True
        >>> is_launcher(["bash", "-c", "accelerate launch ssl/pretrain.py"])
        False
        >>> is_launcher(["python", "ssl/pretrain.py", "--out", "torchrun"])
        False
    """
    if not words:
        return False
    program, *rest = words
    if not Path(program).name.startswith("python"):
        return Path(program).name in PROGRAMS
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        rest = rest[1:]
    if rest[:1] == ["-m"]:
        return len(rest) > 1 and rest[1].startswith(MODULES)
    return bool(rest) and Path(rest[0]).name in PROGRAMS


def end_with_launcher() -> None:
    """Let a launcher that is this process's parent take it along when it ends, as a SIGTERM does; Linux alone has that.

    For a program's first lines: until the run itself watches the launcher, it loads torch, which takes seconds. Where
    no program of ours can run, it ends here; and so it does at Ctrl-C until `run_command` takes over.
    """
    end_where_it_cannot_run()
    end_at_interrupt()
    if LAUNCHER is not None and sys.platform == "linux" and LAUNCHER.process.pid == os.getppid():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _find() -> Launcher | None:
    """The nearest launcher among this process's ancestors."""
    try:
        ancestors = psutil.Process().parents()
    except psutil.Error:  # one of them ended meanwhile, or may not be looked at
        return None
    return next((Launcher(ancestor) for ancestor in ancestors if is_launcher(_words(ancestor))), None)


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


LAUNCHER = _find()
"""Looked for when this module is imported, before anything slow: torch takes seconds to load, and a launcher that ends
meanwhile could not be told from a shell any more."""
