"""Take a run's folder, hold it against other processes, and give it back as it was unless a step was taken.

Pretraining and fine-tuning share this: both write recipe.yaml, run.json, metrics.jsonl and checkpoints/.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import psutil

from harmonize.bounded_files import fits, parse_json, read_small_json
from harmonize.errors import UserError, WrongUse
from harmonize.files import TEMPORARY, atomic_path
from headspark.config import FULL_DISK

RECIPE, STATE, METRICS, LOCK = "recipe.yaml", "run.json", "metrics.jsonl", ".lock"
CHECKPOINTS, PICTURES = "checkpoints", "pictures"
FOLDERS = (CHECKPOINTS, PICTURES, "tensorboard", "profile")
FINISHED = "finished"
NEW_FOLDER = "give --out a new folder"
_NUMBER = (int, type(None), lambda value: isinstance(value, float))  # finite or not: version 0.1.0 wrote both
LONGEST_LINE = 1 << 20
"""Bytes of a line of metrics.jsonl; ours have some hundred."""


@dataclass(slots=True)
class Claim:
    """A folder that this process alone may write to.

    Attributes:
        folder: Where it lies.
        state: What run.json held, if a run is there that has taken a step; else None: whoever comes may begin again.
        kept: Whether the folder stays as it has become.
    """

    folder: Path
    state: dict[str, Any] | None
    kept: bool = False

    def keep(self) -> None:
        """Let what was written stay: a step was taken, or the run came to its end."""
        self.kept = True


@contextmanager
def claim(folder: Path, *, kind: str, other: str, key: str, more: tuple[str, ...] = ()) -> Iterator[Claim]:
    """Hold the folder of a new run, or of one that is to be taken up.

    Args:
        folder: Where; made if need be.
        kind: What the run is, for people: ``pretraining``.
        other: What else may have written a run.json.
        key: What run.json holds for runs of this kind and no other.
        more: Files that runs of this kind write besides those that all write.

    Raises:
        UserError: With exit code 2: the place cannot be written or holds something else, a finished run, or one that
            another process is writing to.
    """
    try:
        _check_place(folder, (RECIPE, *more))
        _own_state(folder, kind, other, key)
        made = _make(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    lock: TextIO | None = None
    claimed: Claim | None = None
    before = _Before(folder, (RECIPE, STATE, METRICS, *more))
    try:
        lock = _hold(folder)
        state = _own_state(folder, kind, other, key)  # again: whoever held it may have gone on meanwhile
        if state is not None and state["status"] == FINISHED:
            raise WrongUse(f"{folder}: this run is finished; {NEW_FOLDER}")
        before.look()
        claimed = Claim(folder, state if has_taken_a_step(folder) else None)
        try:
            yield claimed
        finally:
            if not claimed.kept:
                before.restore()
    finally:
        if lock is not None:
            before.give_back(lock, kept=claimed is not None and claimed.kept)
        for path in reversed(made):
            with suppress(OSError):  # not empty: it is kept, or somebody else's by now
                path.rmdir()


def read_state(folder: Path) -> dict[str, Any] | None:
    """The content of run.json; None where there is none.

    Raises:
        UserError: With exit code 2: it was not written by headspark.
    """
    path = folder / STATE
    try:
        state = read_small_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        state = None
    if not isinstance(state, dict) or "status" not in state:
        raise WrongUse(f"{path}: damaged, or not headspark's")
    return state


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; what a killed process cut short, and what is no line of ours, is left out.

    Raises:
        UserError: With exit code 2: it is no regular file.
    """
    path = folder / METRICS
    if not os.path.lexists(path):
        return []
    if not path.is_file():
        raise WrongUse(f"{path}: no regular file; remove it, or {NEW_FOLDER}")
    with path.open("rb") as stream:
        return [line for content in stream if (line := _metrics_line(content)) is not None]


def _metrics_line(content: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl with a step, and numbers where a card or a curve takes them; None for anything else."""
    try:
        line = parse_json(content) if len(content) <= LONGEST_LINE else None
    except ValueError:
        return None
    if not isinstance(line, dict) or not fits(line.get("step"), int):
        return None
    numbers = (line.get(name) for name in ("loss", "val_loss", "lr", "samples_per_second"))
    return line if all(fits(value, _NUMBER) for value in numbers) else None


def has_taken_a_step(folder: Path) -> bool:
    """Whether a run there has done anything that would be lost."""
    if any((folder / CHECKPOINTS).glob("step_*")):
        return True
    return any(line.get("step", 0) >= 1 for line in read_metrics(folder))


@dataclass(slots=True)
class _Before:
    """What a run's folder held before this process wrote to it; only names that runs use are looked at."""

    folder: Path
    names: tuple[str, ...]
    lock: bytes | None = None
    files: dict[str, bytes | None] = field(default_factory=dict)
    inside: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.lock = _read(self.folder / LOCK)

    def look(self) -> None:
        """Note the small files, and the names in the folders."""
        self.files = {name: _read(self.folder / name) for name in self.names}
        self.inside = {path for name in FOLDERS for path in _tree(self.folder / name)}

    def restore(self) -> None:
        """Put them back, and remove what has come since."""
        for name, content in self.files.items():
            if content is None:
                (self.folder / name).unlink(missing_ok=True)
            elif content != _read(self.folder / name):
                with atomic_path(self.folder / name) as temporary:
                    temporary.write_bytes(content)
        new = [path for name in FOLDERS for path in _tree(self.folder / name) if path not in self.inside]
        for path in sorted(new, reverse=True):  # what lies in a folder comes before it
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def give_back(self, lock: TextIO, *, kept: bool) -> None:
        """Let the folder go; the lock file of a run stays behind, empty."""
        if self.lock is None and not kept:
            (self.folder / LOCK).unlink()  # whoever opened it meanwhile sees that it has gone
        else:
            lock.seek(0)
            lock.truncate()
            lock.write("" if kept or self.lock is None else self.lock.decode("utf-8", "replace"))
        lock.close()


def _tree(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")] if folder.is_dir() else []


def _read(path: Path) -> bytes | None:
    try:
        if not path.is_file() and not stat.S_ISDIR(path.stat().st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _check_place(folder: Path, without_state: tuple[str, ...]) -> None:
    """Refuse what can be no run's folder, before anything is made.

    Args:
        folder: Where.
        without_state: What a start may have written before run.json, when it was killed.
    """
    if folder.is_symlink() and not folder.exists():
        raise WrongUse(f"{folder}: a link to {folder.readlink()}, which is not there; {NEW_FOLDER}")
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise WrongUse(f"{path}: a file, not a folder; {NEW_FOLDER}")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = {name for name in names if not name.startswith(TEMPORARY)} - {LOCK, *without_state}
    if STATE not in names and foreign:
        raise WrongUse(f"{folder}: not empty and no run; {NEW_FOLDER}")


def _own_state(folder: Path, kind: str, other: str, key: str) -> dict[str, Any] | None:
    try:
        state = read_state(folder)
    except UserError as error:
        raise WrongUse(f"{error}; {NEW_FOLDER}") from error
    if state is not None and key not in state:
        raise WrongUse(f"{folder}: holds a run of {other}, not of {kind}; {NEW_FOLDER}")
    return state


def _make(folder: Path) -> list[Path]:
    """Make a folder; gives those that were not there, the outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise
    return missing[::-1]


def _unwritable(folder: Path, error: OSError) -> Exception:
    if error.errno in FULL_DISK:
        return error
    return WrongUse(f"{folder}: cannot be written ({error.strerror}); {NEW_FOLDER}")


def _hold(folder: Path) -> TextIO:
    """Lock the folder; POSIX record locks end with the process and do not pass to forked data workers."""
    path = folder / LOCK
    while True:
        try:
            stream = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(stream)
            stream.close()
            raise WrongUse(
                f"{folder}: another process is writing to this run ({holder}); wait for it or end it, or {NEW_FOLDER}",
            ) from error
        except OSError as error:
            stream.close()
            raise UserError(f"{path}: this file system has no locks ({error.strerror}); {NEW_FOLDER}") from error
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
                break
        stream.close()  # its last holder has just removed it
    stream.seek(0)
    stream.truncate()
    stream.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": _started()}) + "\n")
    stream.flush()
    return stream


def _started() -> str:
    """When this process began, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(psutil.Process().create_time()))


def _holder(stream: TextIO) -> str:
    """Who holds a lock, as it wrote itself down."""
    stream.seek(0)
    try:
        found = json.loads(stream.read())
        return f"process {found['pid']} on {found['host']}, started {found['started']}"
    except (ValueError, KeyError, TypeError, OSError):  # an older version's, or not written yet
        return "it did not say which"
