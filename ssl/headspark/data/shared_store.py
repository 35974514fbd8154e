"""One copy of the decoded scans for all ranks of a node, in one file of the shared memory that has no name for long.

The file is unlinked as soon as every rank has it open, before the first scan is decoded: whatever ends the ranks, kill
-9 included, the system takes the memory back with the last of them. What a kill in that short moment leaves is removed
by the next start of ours; a lock that ends with its process tells whether somebody still uses it.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.errors import UserError
from harmonize.progress import Progress
from headspark.data.decoders import SCANS, Decoder, Part

SUFFIX = ".voxels"
_NAME = re.compile(rf"(headspark-[0-9a-f]{{16}})(-[0-9a-f]{{16}})?{re.escape(SUFFIX)}")
_ENTRY_OF_0_1 = re.compile(r"(\.tmp-\d+-)?[0-9a-f]{64}(\.scale|\.[0-9a-f]{64})?\.npy")
_ALIGNED = 64
_TRIES = 5


class SharedStore:
    """Decoded scans in memory that all ranks of a node share.

    Args:
        scans: Of the cohort, the same on every rank.
        path: Where the file appears for a moment: a name that nobody else can know beforehand.
        local_rank: This process's number on this node.
        wait: Returns when all ranks have called it.
        say: Told about memory that ended runs left.
        decoder: How scans are read.

    Raises:
        UserError: There is not enough shared memory, or none.
    """

    def __init__(
        self,
        scans: Sequence[Any],
        path: Path,
        *,
        local_rank: int,
        wait: Callable[[], object],
        say: Callable[[str], object],
        decoder: Decoder[Any, Any] = SCANS,
    ) -> None:
        self._scans, self._decoder = scans, decoder
        self._places, size = _layout([decoder.parts(scan) for scan in scans])
        held = -1
        try:
            if local_rank == 0:
                sweep(path, say)
                held = _create(path, size)
            wait()
            self._memory = _map(path, size)
            wait()
        except OSError as error:
            fault = error.strerror or error
            raise UserError(
                f"shared memory {path}: {fault}, {size / 2**30:.1f} GiB are wanted; set data.cache disk or ram"
            ) from error
        finally:
            if held >= 0:
                path.unlink(missing_ok=True)
                os.close(held)

    def fill(self, local_rank: int, local_ranks: int) -> None:
        """Decode this rank's share; wait for all of them before reading."""
        mine = range(local_rank, len(self._scans), local_ranks)
        with Progress("cache in shared memory", total=len(mine)) as progress:
            for number in mine:
                arrays = self._decoder.decode(self._scans[number], row_major=True)
                for place, array in zip(self._arrays(number), arrays, strict=True):
                    place[...] = array
                progress.advance()

    def __getitem__(self, scan: int) -> Any:
        """Scan number `scan`; its arrays are views of the shared memory."""
        return self._decoder.assemble(self._scans[scan], self._arrays(scan))

    def _arrays(self, scan: int) -> list[NDArray[Any]]:
        parts = self._decoder.parts(self._scans[scan])
        return [
            np.frombuffer(self._memory, part.dtype, math.prod(part.shape), at).reshape(part.shape)
            for part, at in zip(parts, self._places[scan], strict=True)
        ]


def sweep(path: Path, say: Callable[[str], object]) -> None:
    """Remove what ended runs of this user left beside `path`, and nothing that anybody uses.

    Args:
        path: As for `SharedStore`. Version 0.1.0 kept a folder of the first part of that name; nobody else can be
            using this run's own, for its lock is held.
        say: Told what was removed, and which folders of version 0.1.0 are left.
    """
    for found in sorted(path.parent.glob(f"headspark-*{SUFFIX}")):
        if _NAME.fullmatch(found.name) and _is_ours(found) and _is_left(found):
            size = found.stat().st_size
            found.unlink(missing_ok=True)
            say(f"{found}: {size / 2**20:.0f} MiB that a killed run left are free again")
    own = _NAME.fullmatch(path.name)
    for found in sorted(path.parent.glob("headspark-*")):
        if not _NAME.fullmatch(f"{found.name}{SUFFIX}") or found.is_symlink() or not found.is_dir():
            continue
        if not _is_ours(found) or not _holds_only_scans(found):
            continue
        if own is not None and found.name == own[1]:
            shutil.rmtree(found, ignore_errors=True)
            say(f"{found}: what a killed run of version 0.1.0 left is free again")
        else:
            say(f"{found}: left by a run of version 0.1.0; remove it if that run has ended")


def _layout(parts_of: Sequence[Sequence[Part]]) -> tuple[list[list[int]], int]:
    """Where each part of each scan begins, and the size of it all, in bytes."""
    places: list[list[int]] = []
    at = 0
    for parts in parts_of:
        places.append([])
        for part in parts:
            places[-1].append(at)
            at += _aligned(part.nbytes)
    return places, max(at, _ALIGNED)


def _create(path: Path, size: int) -> int:
    """Make the file with all of its memory reserved: a page that is missing later would kill the process."""
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:  # else another start took it for a leftover before it was locked
                os.posix_fallocate(descriptor, 0, size)
                return descriptor
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OSError(f"{path} vanishes as soon as it is made")


def _map(path: Path, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # held by the map, too: it keeps a copy of the descriptor
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid() or status.st_size != size:
            raise OSError(f"{path} is another run's")
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _is_left(path: Path) -> bool:
    """Whether no process has a file of ours open: each of them holds a lock that ends with it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _holds_only_scans(folder: Path) -> bool:
    return all(
        path.is_dir() if path.parent == folder else _ENTRY_OF_0_1.fullmatch(path.name) for path in folder.rglob("*")
    )


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
