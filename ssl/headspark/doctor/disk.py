"""How fast a folder's disk is, what is free there, and the shared memory of the machine."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from harmonize.files import temporary_beside
from headspark.data.memory import GIB, MIB, SHARED_MEMORY, gib
from headspark.doctor.section import Section

CHUNK = 4 * MIB
MOST = 64 * MIB
LONGEST_S = 2.0
"""Neither is written for longer, so that a slow disk does not hold up the rest."""

LITTLE_ROOM = 10 * GIB
LITTLE_SHARED = GIB
SLOW = 50 * MIB
"""Bytes a second; below it decoding waits for the disk."""


def examine_folder(folder: Path) -> Section:
    """Free space, speed and locks of a folder; what is written for that is removed again."""
    found = Section(name="disk")
    shown, free = str(folder.resolve()), shutil.disk_usage(folder).free
    found.facts = {"folder": shown, "free": free, "writes": None, "reads": None, "locks": None}
    probe = temporary_beside(folder.resolve() / "doctor")
    try:
        writes, size = _written(probe)
        reads = _read(probe, size)
    except OSError as error:
        found.text = [f"{shown}: {gib(free)} free"]
        found.findings.append(f"{shown}: cannot be written ({error.strerror}); give --folder another one")
        return found
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    locks = _locks(folder)
    found.facts |= {"writes": round(writes), "reads": round(reads), "locks": locks}
    found.text = [f"{shown}: {gib(free)} free; writes {writes / MIB:.0f} MiB/s, reads {reads / MIB:.0f} MiB/s"]
    if free < LITTLE_ROOM:
        found.findings.append(f"{shown}: {gib(free)} are free; a corpus or a run may take more")
    if min(writes, reads) < SLOW:
        found.findings.append(f"{shown}: slower than {SLOW // MIB} MiB/s; keep the corpus on a local disk if you can")
    if not locks:
        found.findings.append(f"{shown}: this file system has no locks; corpora and runs need them, use a local one")
    return found


def examine_shared_memory() -> Section:
    """Whether processes of the machine can share memory, and how much."""
    found = Section(name="/dev/shm")
    if not SHARED_MEMORY.is_dir():
        found.text, found.facts = ["none"], {"total": None, "free": None}
        found.findings.append(f"no {SHARED_MEMORY}: data.cache shared cannot be used; auto takes ram or disk")
        return found
    usage = shutil.disk_usage(SHARED_MEMORY)
    found.facts = {"total": usage.total, "free": usage.free}
    found.text = [f"{gib(usage.free)} free of {gib(usage.total)}"]
    if usage.free < LITTLE_SHARED:
        found.findings.append(
            f"{SHARED_MEMORY}: {usage.free // MIB} MiB are free, too little for data.cache shared and for "
            "data.worker_kind process; a container gets more with `--shm-size 16g`"
        )
    return found


def _written(probe: Path) -> tuple[float, int]:
    """Bytes a second that reach the disk, and how many were written."""
    content, size, began = os.urandom(CHUNK), 0, time.monotonic()
    with probe.open("xb") as stream:
        while size < MOST and time.monotonic() - began < LONGEST_S:
            size += stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    return size / max(time.monotonic() - began, 1e-9), size


def _read(probe: Path, size: int) -> float:
    """Bytes a second that come from the disk; where the system cannot be asked to forget them, from its memory."""
    with probe.open("rb", buffering=0) as stream:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.monotonic()
        while stream.read(CHUNK) and time.monotonic() - began < LONGEST_S:
            pass
        return min(stream.tell(), size) / max(time.monotonic() - began, 1e-9)


def _locks(folder: Path) -> bool:
    path = temporary_beside(folder.resolve() / "lock")
    try:
        with path.open("x") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
