"""A lock on a corpus that ends with its process, however that dies: flock, which the kernel gives back."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harmonize.errors import UserError


@contextmanager
def exclusive(path: Path, busy: str) -> Iterator[None]:
    """Hold `path` alone.

    Args:
        path: The lock file; it stays behind, empty, because removing it would race.
        busy: What the user is told when someone else holds it.

    Raises:
        UserError: Somebody does.
    """
    with _flock(path, fcntl.LOCK_EX | fcntl.LOCK_NB, busy):
        yield


@contextmanager
def shared(path: Path, busy: str) -> Iterator[None]:
    """Hold `path` together with others that share it, against those who want it alone.

    Raises:
        UserError: Somebody holds it alone.
    """
    with _flock(path, fcntl.LOCK_SH | fcntl.LOCK_NB, busy):
        yield


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until `path` is free, then hold it alone."""
    with _flock(path, fcntl.LOCK_EX, ""):
        yield


@contextmanager
def _flock(path: Path, operation: int, busy: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, operation)
        except BlockingIOError as error:
            raise UserError(busy) from error
        except OSError as error:
            raise UserError(f"{path}: this file system has no locks ({error.strerror}); use a local one") from error
        yield
