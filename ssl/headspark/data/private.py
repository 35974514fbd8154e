"""Folders and files of this user alone, in places where others may write too: nobody can read or make them up."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from harmonize.files import temporary_beside

_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class NotOurs(PermissionError):
    """A folder that is not this user's alone; `strerror` says why."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EPERM, why)


def folder_name() -> str:
    """Of this user's cache, wherever it lies beside others."""
    return f"headspark-cache-{os.getuid()}"


def own_part(folder: Path) -> Path:
    """Where in a folder that the user named the user's own files go; nothing is made.

    A folder that is new, or the user's and not writable by others, is taken as it is. In one that others may write to,
    or that is another's, it is a folder with the user's number in its name.
    """
    place = Path(os.path.realpath(folder))
    try:
        status = place.stat()
    except OSError:  # not there, or out of reach: `claim` says so
        return place
    ours = status.st_uid == os.getuid() and not status.st_mode & _WRITTEN_BY_OTHERS
    return place if ours else place / folder_name()


def claim(folder: Path) -> None:
    """Make a folder that nobody else may enter, or check that nobody else may write to the one that is there.

    One that is named for this user is closed to others; one that the user named stays as open as it was. Access lists
    need no look of their own: what they grant others is masked by the bits of the group.

    Raises:
        NotOurs: It is a link, no folder, another user's, or others may write to it.
        OSError: It cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise NotOurs("a link, where a folder of your own is wanted")
    if not stat.S_ISDIR(status.st_mode):
        raise NotOurs("no folder")
    if status.st_uid != os.getuid():
        raise NotOurs(f"belongs to another user (number {status.st_uid})")
    if status.st_mode & _WRITTEN_BY_OTHERS:
        raise NotOurs("others may write to it")
    if folder.name == folder_name() and status.st_mode & _OF_OTHERS:
        folder.chmod(0o700)


@contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """Give a stream to a new file of mode 0600; on a clean exit it is on disk as `path`, after an error it is gone."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = temporary_beside(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_own(path: Path) -> BinaryIO:
    """Open a file to read that nobody but this user can have written.

    Raises:
        NotOurs: Another can.
        OSError: It cannot be read, or is a link.
    """
    stream = open(path, "rb", opener=_without_following)  # noqa: SIM115 - the caller closes it
    status = os.fstat(stream.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & _WRITTEN_BY_OTHERS:
        return stream
    stream.close()
    raise NotOurs(f"{path} is not this user's alone")


def _without_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe in its place must not be waited for
