"""Which folders and images there are to look at, in trees of thousands and in lists, by a header each at most."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.raw.trees import check_raw, fault_of, is_scan_name, raw_folders, scans_in
from harmonize.bounded_files import read_small
from harmonize.dicom import is_dicom_name, take
from harmonize.dicom.elements import looks_like_dicom
from harmonize.errors import Reason, Rejection, Stage, WrongUse
from harmonize.raw_tree import RawTree, suffix_of
from harmonize.sources.dicom_series import read_identity
from harmonize.sources.nifti_image import IMAGE_SUFFIXES, image_of, is_dicom
from harmonize.terminal import printable
from harmonize.time_limit import watched

LONGEST_LIST = 1 << 28
"""Bytes of a list of folders: a million lines of 256."""

LOOKED_AT = 5
"""Files of a folder that are tried for a header that says whose series it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder that holds DICOM files, several where they hold parts of one series; or an image in files of its own.

    Attributes:
        name: For people: relative to the folder that was given, or as a list names it; of what is not there the line.
        root: The folder that was given.
        files: Those that may be DICOM, sorted; or those of the image.
        folders: Of an image, below the folder that was given; None of DICOM files.
        key: Names the place without telling where it is: a hash of where it lies.
        fault: Why it cannot be looked at, or None.
        alone: Whether the files are known to be of one series.
        uid: Its SeriesInstanceUID, where it is known.
        part: The number of the series among those of its folder.
        parts: How many those are.
        state_of_all: Of the files of all of them, where there are several.
    """

    name: str
    root: Path
    key: str
    files: tuple[Path, ...] = ()
    folders: tuple[str, ...] | None = None
    fault: Rejection | None = None
    alone: bool = False
    uid: str = ""
    part: int = 0
    parts: int = 1
    state_of_all: str = ""

    def state(self) -> str:
        """A hash of the names, sizes and times of the folder's files: another one means that they have changed."""
        return self.state_of_all or _hash(part for path in self.files for part in _look(path))


def find_places(paths: Iterable[Path]) -> list[Place]:
    """The folders with files that may be DICOM, and images, each once, in the order of the paths and of names below.

    Folders whose first pictures are of one series are one place. What is neither DICOM nor an image is passed over
    without a word, and so are masks and what `raw_folders` leaves out; a folder of a list that is not there, or holds
    nothing raw, is a place with a fault. One that is not there goes by its line, not by what stands there.

    Args:
        paths: Folders, images (NIfTI and what else nibabel reads), and text files that list either, one a line.

    Raises:
        UserError: A path that is not there or not raw, or a file that is no list.
    """
    seen: set[str] = set()
    places: list[Place] = []
    with watched(None):
        for path in paths:
            for place in _joined(_places_of(path)):
                if place.key not in seen:
                    seen.add(place.key)
                    places.append(place)
    return places


def read_list(path: Path) -> dict[int, str]:
    """The lines of a list of folders by their numbers; blank ones and those that begin with # are left out.

    Raises:
        UserError: It is no such list; what it says is not repeated, for it may be a table of patients.
    """
    try:
        with path.open("rb") as stream:
            if is_dicom_name(path.name) or looks_like_dicom(stream):
                raise WrongUse(f"{path}: a file; give the folder that holds it, or a list of folders as text")
        text = read_small(path, limit=LONGEST_LIST).decode("utf-8-sig")
    except OSError as error:
        raise WrongUse(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WrongUse(f"{path}: no text; give a folder, or a list of folders as text, one a line") from error
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    found = {number: line for number, line in lines if line and not line.startswith("#")}
    if not found or "\0" in text:
        raise WrongUse(f"{path}: lists no folder; write one a line")
    if not any(os.path.exists(_path_of(line)) for line in found.values()):  # noqa: PTH110 a long line is none either
        raise WrongUse(f"{path}: no line of it is a folder or an image that is there; give a list of these, one a line")
    return found


def _path_of(line: str) -> str:
    return os.path.expanduser(line)  # noqa: PTH111 pathlib's raises where a line begins with ~ and names nobody


def _places_of(path: Path) -> Iterator[Place]:
    check_raw(path)
    if path.is_file() and is_scan_name(path.name):
        yield _image(image_of(path), path.parent, path.name, ())
    elif path.is_file():
        for number, line in read_list(path).items():
            yield from _listed(line, f"{path.name}, line {number}")
    else:
        yield from _tree(_checked(path), path.resolve().name)


def _checked(path: Path) -> Path:
    if not path.is_dir():
        raise WrongUse(f"{path}: no such folder; give that of a series, of many, an image, or a list of these as text")
    return path


def _listed(line: str, where: str) -> Iterator[Place]:
    """The places below a folder of a list; one that is not there goes by where it stands."""
    path = Path(_path_of(line))
    if not os.path.exists(path):  # noqa: PTH110 a name that is too long is none either
        missing = Rejection(Reason.MISSING_FILE, "no such folder", stage=Stage.DISCOVER)
        yield Place(name=printable(where), root=path, key=_key(path), fault=missing)
        return
    fault = fault_of(path)
    if fault is not None:
        yield Place(name=printable(line), root=path, key=_key(path), fault=fault)
        return
    found = path.is_file() and is_scan_name(path.name)
    if found:
        yield _image(image_of(path), path.parent, line, ())
    if path.is_dir():
        for place in _tree(path, line):
            found = True
            yield place
    if not found:
        reason, message = Reason.NOT_AN_IMAGE, "the folder holds no DICOM pictures"
        if not path.is_dir():
            reason, message = Reason.MISSING_FILE, "no such folder"
        fault = Rejection(reason, message, stage=Stage.DISCOVER)
        yield Place(name=printable(line), root=path, key=_key(path), fault=fault)


def _tree(root: Path, name: str) -> Iterator[Place]:
    """A place for each folder of a tree that holds files which may be DICOM."""
    tree = RawTree(root, is_dicom_name)
    for folder, folders in raw_folders(tree):
        unread = len(tree.unread)
        for image in scans_in(folder):
            yield _image(image, root, folder.key(image[0].name), folders)
        names = [one for one in folder.names if suffix_of(one) not in IMAGE_SUFFIXES or is_dicom(folder.path / one)]
        files = [path for one in names if take(path := folder.path / one, tree)]
        files += [path for path, _ in tree.unread[unread:]]  # to be refused by name
        del tree.unread[unread:]
        if files:
            yield Place(
                name=printable(folder.relative or name), root=root, key=_key(folder.path), files=tuple(sorted(files))
            )
    for path, fault in tree.unread:
        yield Place(name=printable(path.relative_to(root).as_posix()), root=path, key=_key(path), fault=fault)


def _image(files: tuple[Path, ...], root: Path, name: str, folders: tuple[str, ...]) -> Place:
    return Place(name=printable(name), root=root, key=_key(files[0]), files=files, folders=folders, alone=True)


def _joined(places: Iterable[Place]) -> list[Place]:
    """Places whose first pictures are of one patient, study and series become one, where the first of them stands."""
    joined: list[Place] = []
    at: dict[tuple[str, ...], int] = {}
    for place in places:
        series = None if place.folders is not None else _series_of(place.files)
        if series is None or series not in at:
            if series is not None:
                at[series] = len(joined)
            joined.append(place)
            continue
        first = joined[at[series]]
        root = Path(os.path.commonpath([first.root, place.root]))
        files = tuple(sorted({*first.files, *place.files}))
        joined[at[series]] = replace(first, root=root, files=files)
    return joined


def _series_of(files: Sequence[Path]) -> tuple[str, ...] | None:
    return next((found for path in files[:LOOKED_AT] if (found := read_identity(path)) is not None), None)


def _key(folder: Path) -> str:
    return _hash([os.path.realpath(folder)])


def _look(path: Path) -> tuple[str, ...]:
    try:
        found = path.stat()
    except OSError:
        return str(path), "gone"
    return str(path.name), str(found.st_size), str(found.st_mtime_ns)


def _hash(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]
