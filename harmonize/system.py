"""A program's first lines: whether headspark can run here, and what Ctrl-C does while its libraries load.

Nothing is imported here that is not there elsewhere.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
"""Older ones cannot run headspark; newer ones may lack wheels of a library."""
WRONG_SYSTEM = 2
"""Exit code of a program that cannot run here, and that did nothing."""


def refusal(platform: str, version: tuple[int, ...]) -> str | None:
    """Why headspark cannot run on a system, in one line; None where it can.

    Args:
        platform: As `sys.platform` names it.
        version: Of Python.

    Example:
        >>> refusal("darwin", (3, 12, 1)) is None
        True
        >>> refusal("win32", (3, 12, 1))
        'Windows: headspark needs Linux or macOS, whose locks it uses; install it in WSL 2 (`wsl --install`)'
        >>> refusal("linux", (3, 10, 4))
        'Python 3.10: headspark needs Python 3.11 or newer; install one, and headspark with it'
    """
    if version[:2] < OLDEST_PYTHON:
        wanted, found = (".".join(map(str, numbers[:2])) for numbers in (OLDEST_PYTHON, version))
        return f"Python {found}: headspark needs Python {wanted} or newer; install one, and headspark with it"
    if platform == "win32":
        return "Windows: headspark needs Linux or macOS, whose locks it uses; install it in WSL 2 (`wsl --install`)"
    return None


def end_where_it_cannot_run() -> None:
    """End a program with one line where it cannot run; the first thing that a console script does."""
    why = refusal(sys.platform, sys.version_info[:3])
    if why is not None:
        sys.stderr.write(f"error: {why}\n")
        sys.exit(WRONG_SYSTEM)


STOPPED = "error: stopped; give the same command again"
EXIT_STOPPED = 75
"""`harmonize.errors.EXIT_INTERRUPTED`, which an older Python cannot import."""


@contextmanager
def loading() -> Iterator[None]:
    """End a program with one line where Ctrl-C comes while it imports what it needs.

    For modules that a console script imports, and that others may import, too: it is an exception that ends it.

    Raises:
        SystemExit: Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"{STOPPED}\n")
        sys.exit(EXIT_STOPPED)


def end_at_interrupt() -> None:
    """From now on Ctrl-C ends this process with one line, at once: libraries that load make other errors of it.

    For the program itself alone, before it has anything to tidy up; `interrupt_again` ends that.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def interrupt_again() -> None:
    """From now on Ctrl-C is an exception again, as Python has it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    with suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(EXIT_STOPPED)
