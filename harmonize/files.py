"""Write files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harmonize.errors import UserError

TEMPORARY = ".tmp-"
_TEMPORARY_NAME = re.compile(
    # Version 0.1.0 had the number of the process alone.
    rf"{re.escape(TEMPORARY)}(?P<process>[0-9]+)-(?:[0-9a-f]{{16}}-)?(?P<target>.+)",
    re.DOTALL,
)

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Errors that whatever is written next would meet too."""

_NO_FOLDERS = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EISDIR, errno.EACCES})
"""How shares (CIFS, FUSE, 9p) say that they see no folder onto a disk; so does one that may be written to, not read."""

_OF_ONE_FILE = frozenset({errno.EFBIG, errno.EIO})
_OF_WRITING = frozenset({errno.EFBIG})
"""What no reading can meet: whoever makes a file may read others meanwhile."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit it is fsynced and renamed to `path`.

    The temporary name keeps the suffixes, because NIfTI writers look at them. After an error it is removed.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a" / "b.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with naming(path, _OF_WRITING):
            yield temporary
        with naming(path):
            fsync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def fsync(path: Path) -> None:
    """See a file, or the names in a folder, onto the disk; a folder only where its file system can do that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDERS or not path.is_dir():
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary, naming(path):
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically; the same value gives the same bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def temporary_beside(path: Path) -> Path:
    """A new name beside `path` for what is to become it.

    Processes of several nodes may have the same number, and nobody else must know the name beforehand: part of it is
    random. The number tells whether who writes there still lives.
    """
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}-{path.name}")


def process_of_temporary(name: str) -> int | None:
    """The number of the process that gave a name of `temporary_beside`; None for any other name."""
    found = _TEMPORARY_NAME.fullmatch(name)
    return None if found is None else int(found["process"])


def target_of_temporary(name: str) -> str | None:
    """The file that a name of `temporary_beside` stands for; None for any other name.

    Example:
        >>> target_of_temporary(".tmp-4711-0123456789abcdef-metadata.parquet")
        'metadata.parquet'
        >>> target_of_temporary(".tmp-notes.txt") is None
        True
    """
    found = _TEMPORARY_NAME.fullmatch(name)
    return None if found is None else found["target"]


def no_room(folder: Path, error: OSError) -> UserError:
    """What to say when a folder's disk is full, or can only be read; `error` is one of `NO_ROOM`."""
    return UserError(
        f"{folder}: {os.strerror(error.errno or 0)}; {_remedy(error)} and run the same command again, it goes on from "
        "here"
    )


def _remedy(error: OSError) -> str:
    return "mount it so that it may be written to" if error.errno == errno.EROFS else "make room"


def cure(error: OSError) -> str:
    """What to do about a failure to write, as the end of a line; nothing where that is not known."""
    if error.errno == errno.EFBIG:
        return "; raise the limit on a file's size (ulimit -f) and give the same command again"
    return f"; {_remedy(error)} and give the same command again" if error.errno in NO_ROOM else ""


@contextmanager
def naming(path: Path, errors: Collection[int] = _OF_ONE_FILE) -> Iterator[None]:
    """Let a failure to write name its file: an error of one that is open already has no name.

    That of a full disk stays as it is, for whoever is told of it is told of the folder.

    Args:
        path: The file.
        errors: Numbers of the errors that can only be of this file; by default nothing else is read or written inside.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in errors:
            error.filename = str(path)
        raise


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Say in one line that a folder's disk is full, whichever write meets it.

    Raises:
        UserError: It is, or it can only be read.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise no_room(folder, error) from error


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
