"""A lock on a corpus that ends with its process, however that dies: flock, which the kernel gives back."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from harmonize.errors import UserError
from harmonize.terminal import warn


@contextmanager
def exclusive(path: Path, busy: str) -> Iterator[None]:
    """Hold `path` alone.

    Args:
        path: The lock file; it stays behind, empty, because removing it would race.
        busy: What the user is told when someone else holds it.

    Raises:
        UserError: Somebody does.
    """
    with _held(path, fcntl.LOCK_EX, busy):
        yield


@contextmanager
def shared(path: Path, busy: str) -> Iterator[None]:
    """Hold `path` together with others that share it, against those who want it alone.

    Raises:
        UserError: Somebody holds it alone.
    """
    with _held(path, fcntl.LOCK_SH, busy):
        yield


def check_free(path: Path, busy: str, *, alone: bool) -> None:
    """Look whether `path` could be held now, without making or holding anything.

    Args:
        path: The lock file, which need not be there.
        busy: What the user is told when it is taken.
        alone: Whether it is wanted alone, or together with others that share it.

    Raises:
        UserError: It is taken.
    """
    try:
        with path.open() as stream:
            fcntl.flock(stream, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(busy) from error
    except OSError:
        # No lock file yet, or a file system that locks no file opened for reading: taking it will tell.
        return


@contextmanager
def turn(path: Path, *, waiting: str) -> Iterator[None]:
    """Wait until `path` is free, then hold it alone.

    Args:
        path: The lock file.
        waiting: What the user is told, on standard error, if that takes time.
    """
    with _opened(path) as stream:
        try:
            _lock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            warn(waiting)
            _lock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _held(path: Path, operation: int, busy: str) -> Iterator[None]:
    with _opened(path) as stream:
        try:
            _lock(stream, operation | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


def _opened(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _lock(stream: TextIO, operation: int) -> None:
    try:
        fcntl.flock(stream, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(f"{stream.name}: this file system has no locks ({error.strerror}); use a local one") from error
