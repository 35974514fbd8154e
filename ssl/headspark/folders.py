"""Replace a folder of ours as a whole, and nothing else: whose it is, is known before the first byte is written."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from harmonize.errors import UserError, WrongUse
from harmonize.files import TEMPORARY, fsync, process_of_temporary, target_of_temporary, temporary_beside
from headspark.folder_kind import seen_at

_EXCHANGE = 2
_HERE = -100  # AT_FDCWD
_SHOWN = 3


@contextmanager
def replaced(folder: Path, *, names: Collection[str], is_ours: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """Give an empty folder to fill; on a clean exit it stands at `folder`, on an error everything is as it was.

    Args:
        folder: A new folder, an empty one, or one that this command wrote earlier.
        names: The only files that it may hold, as patterns of `fnmatch` a step: ``nyul/*.npy`` lie in a folder below.
        is_ours: Whether a folder with no other files was written by this command; may raise `OSError`.
        what: What the command writes, for its messages: "encoder".

    Raises:
        UserError: With exit code 2: the folder holds, or is, something else. With exit code 1: it cannot be written.
    """
    refuse_foreign(folder, names=names, is_ours=is_ours, what=what)
    temporary = temporary_beside(folder)
    made = [parent for parent in (folder.parent, *folder.parent.parents) if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_temporaries(folder, names)
        temporary.mkdir()
    except OSError as error:
        _remove_empty(made)
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    try:
        yield temporary
        for path in temporary.rglob("*"):
            fsync(path)
        fsync(temporary)
        refuse_foreign(folder, names=names, is_ours=is_ours, what=what)  # writing took a while
        _put(temporary, folder)
        fsync(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)  # of this process, made above
        _remove_empty(made)
        if isinstance(error, OSError):
            left = "what was there is intact" if folder.exists() else "nothing was written"
            raise UserError(f"{folder}: {error.strerror or error}; {left}: make room and try again") from error
        raise


def refuse_foreign(folder: Path, *, names: Collection[str], is_ours: Callable[[Path], bool], what: str) -> None:
    """Refuse to replace anything that this command did not write.

    Raises:
        UserError: As `replaced`.
    """
    if folder.is_symlink():
        raise _wrong(f"{folder}: a link; name the folder that the {what} shall stand in, not a link to it")
    resolved, here = folder.resolve(), Path.cwd()
    if resolved == here or resolved in here.parents or folder.name in ("", ".."):
        raise _wrong(f"{folder}: the folder that this command runs in, or one above it; give the {what} a new folder")
    if not os.path.lexists(folder):
        blocked = next((parent for parent in folder.parents if os.path.lexists(parent) and not parent.is_dir()), None)
        if blocked is not None:
            raise _wrong(f"{folder}: {blocked} is no folder; give the {what} a new folder")
        return
    if not folder.is_dir():
        raise _wrong(f"{folder}: {seen_at(folder)}, where a folder is wanted; give the {what} a new folder")
    try:
        entries = sorted(folder.iterdir())
        foreign = [path.name for path in entries if not _fits(path, names)]
        if not entries or (not foreign and is_ours(folder)):
            return
    except OSError as error:
        raise WrongUse(f"{folder}: cannot be read: {error.strerror}") from error
    shown = f" ({', '.join(foreign[:_SHOWN])}{' ...' if len(foreign) > _SHOWN else ''})" if foreign else ""
    raise _wrong(
        f"{folder}: no {what} that this command wrote, but {seen_at(folder)}; what it did not write{shown} is never "
        "replaced or removed: give a new folder"
    )


def _fits(path: Path, names: Collection[str]) -> bool:
    """Whether a file, or all that a folder holds, is of these names; links never are."""
    if path.is_symlink():
        return False
    if path.is_file():
        return any("/" not in name and fnmatchcase(path.name, name) for name in names)
    steps = [name.split("/", 1) for name in names if "/" in name]
    below = [rest for first, rest in steps if fnmatchcase(path.name, first)]
    return bool(below) and path.is_dir() and all(_fits(entry, below) for entry in path.iterdir())


def _put(temporary: Path, folder: Path) -> None:
    """Put a folder in the place of another in one step where the system can, and remove that one."""
    if not folder.exists() or not any(folder.iterdir()):
        temporary.rename(folder)
    elif _exchange(temporary, folder):
        shutil.rmtree(temporary)
    else:  # a file system that cannot: for a moment there is neither, and an error brings the old one back
        old = temporary_beside(folder.with_name(f"{folder.name}.old"))
        folder.rename(old)
        try:
            temporary.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders; False where the system or the file system cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return swap is not None and swap(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _remove_temporaries(folder: Path, names: Collection[str]) -> None:
    """Remove what killed commands left beside `folder`: by our name for it, of no living process, with our files."""
    for path in folder.parent.glob(f"{TEMPORARY}*-{glob.escape(folder.name)}"):
        process = process_of_temporary(path.name)
        if process is None or target_of_temporary(path.name) != folder.name or _lives(process):
            continue
        if path.is_symlink() or not path.is_dir():
            continue
        if all(_fits(entry, names) for entry in path.iterdir()):
            shutil.rmtree(path)


def remove_half_written(folder: Path) -> None:
    """Remove the files that killed commands left half written in `folder`: by our names, of no living process."""
    for path in folder.glob(f"{TEMPORARY}*"):
        process = process_of_temporary(path.name)
        if process is not None and not _lives(process) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if process == os.getpid():  # a container numbers its processes alike every time
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _remove_empty(folders: list[Path]) -> None:
    for path in folders:
        try:
            path.rmdir()
        except OSError:  # was never made, or somebody else uses it by now
            return


def _wrong(message: str) -> UserError:
    return WrongUse(message)
