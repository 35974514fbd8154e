"""Unpacking archives from the network: nothing leaves the target folder, every file is whole."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from harmonize.files import atomic_path


class Damaged(Exception):
    """The archive is cut, its checksums fail, or it wants to write outside its folder."""


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
    try:
        with zipfile.ZipFile(archive) as opened:
            placed = [(info, place(path)) for info, path in _members(opened)]
            targets = [(info, folder / path) for info, path in placed if path is not None]
            for info, target in targets:
                if target.is_file() and target.stat().st_size == info.file_size:
                    continue
                with opened.open(info) as source, atomic_path(target) as temporary, temporary.open("wb") as stream:
                    shutil.copyfileobj(source, stream, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise Damaged(f"{archive.name}: {error}") from error
    return [target for _, target in targets]


def _members(opened: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    for info in opened.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in info.filename:
            raise Damaged(f"{Path(opened.filename or '').name}: holds a path that leaves its folder")
        if not info.is_dir():
            yield info, path
