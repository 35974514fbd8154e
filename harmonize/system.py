"""Where headspark can run: looked at before anything is imported that is not there elsewhere."""

from __future__ import annotations

import sys

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
