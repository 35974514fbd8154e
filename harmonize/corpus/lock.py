"""A lock on a corpus that ends with its process, however that dies: flock, which the kernel gives back."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from harmonize.errors import UserError
from harmonize.terminal import warn

_ONLY_TO_READ = {errno.EROFS, errno.EACCES, errno.EPERM}


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
def undisturbed(path: Path, busy: str) -> Iterator[None]:
    """Hold `path` alone to read what it guards, which may lie where nothing can be written.

    Raises:
        UserError: Somebody holds it.
    """
    with _opened_to_read(path) as stream:
        try:
            if stream is not None:
                _lock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
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


@contextmanager
def _opened_to_read(path: Path) -> Iterator[TextIO | None]:
    """The lock file, made if need be; None where it is not there and cannot be made, so that nobody writes either."""
    stream: TextIO | None = None
    try:
        stream = _opened(path)
    except OSError as error:
        if error.errno not in _ONLY_TO_READ:
            raise
        if path.is_file():
            stream = path.open()
    with stream or nullcontext():
        yield stream


def _lock(stream: TextIO, operation: int) -> None:
    try:
        fcntl.flock(stream, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(f"{stream.name}: this file system has no locks ({error.strerror}); use a local one") from error
