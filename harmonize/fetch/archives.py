"""Unpacking archives from the network: nothing leaves the target folder, every file is whole."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from harmonize.files import atomic_path
from harmonize.limits import VARIABLE, max_unpacked

CHUNK_BYTES = 1 << 20
LONGEST_NAME, LONGEST_PATH = 200, 1000
"""Bytes; file systems take 255 and 4096, with the temporary prefix and the folder."""


class Damaged(Exception):
    """The archive is cut, its checksums fail, or its paths are none that can be written in its folder."""


def unpack(archive: Path, folder: Path, *, place: Callable[[PurePosixPath], PurePosixPath | None]) -> list[Path]:
    """Write files of a zip archive; a file that is there with its full size is left alone.

    Args:
        archive: The zip file.
        folder: Where files are written.
        place: Takes a path of the archive, gives the file's path in `folder`; None leaves it out.

    Returns:
        The files, in the archive's order.

    Raises:
        Damaged: See there; nothing of such an archive is written if a path is unsafe.
    """
    with archive.open("rb") as stream:
        with _faults(archive):
            opened = zipfile.ZipFile(stream)
        with opened:
            placed = [(info, place(path)) for info, path in _members(opened, archive)]
            targets = [(info, folder / path) for info, path in placed if path is not None]
            _check_sizes(archive, [info for info, _ in targets])
            for info, target in targets:
                if not (target.is_file() and target.stat().st_size == info.file_size):
                    _write(opened, info, target, archive)
    return [target for _, target in targets]


def _check_sizes(archive: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse an archive that would unpack to far more than it is; zipfile writes no more than a member claims."""
    claimed, allowed = sum(member.file_size for member in members), max_unpacked(archive.stat().st_size)
    if claimed > allowed:
        raise Damaged(
            f"{archive.name}: claims to unpack to {claimed >> 20} MiB, and at most {allowed >> 20} MiB are believed of "
            f"it; {VARIABLE} changes that"
        )


def _write(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, archive: Path) -> None:
    with atomic_path(target) as temporary:
        with temporary.open("wb") as stream:
            for chunk in _chunks(opened, info, archive):
                stream.write(chunk)
            size = stream.tell()
        if size != info.file_size:
            raise Damaged(f"{archive.name}: a file has {size} bytes instead of {info.file_size}")


def _chunks(opened: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> Iterator[bytes]:
    """What a member holds. A generator, so that faults of writing it (a full disk) are none of the archive's."""
    with _faults(archive):
        source = opened.open(info)
    with source:
        while True:
            with _faults(archive):
                chunk = source.read(CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


@contextmanager
def _faults(archive: Path) -> Iterator[None]:
    """Call whatever goes wrong while a zip is read `Damaged`.

    A wrong byte makes `zipfile` and its decompressors raise nearly anything: BadZipFile, zlib.error, LZMAError,
    struct.error, EOFError, OSError (a seek before the start, bzip2), RuntimeError (encrypted), NotImplementedError
    (a method), UnicodeDecodeError (a name), MemoryError ... No list of them would be whole.
    """
    try:
        yield
    except Exception as error:
        raise Damaged(f"{archive.name}: {_line(error)}") from error


def _line(error: Exception) -> str:
    """The fault on one line of printable characters; `zipfile` quotes names and bytes of the archive."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(error)[:200])
    return text or type(error).__name__


def _members(opened: zipfile.ZipFile, archive: Path) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    files: set[PurePosixPath] = set()
    # An empty name would be the folder itself.
    folders = {PurePosixPath()}
    for info in opened.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in info.filename:
            raise Damaged(f"{archive.name}: holds a path that leaves its folder")
        lengths = [len(part.encode()) for part in path.parts]
        if sum(lengths) + len(lengths) > LONGEST_PATH or max(lengths, default=0) > LONGEST_NAME:
            raise Damaged(f"{archive.name}: holds a path that is too long")
        if info.filename.endswith("/"):
            continue
        files.add(path)
        folders.update(path.parents)
        yield info, path
    if files & folders:
        raise Damaged(f"{archive.name}: holds a path that is a file and a folder")
