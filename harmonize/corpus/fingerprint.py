"""What a scan was made from: a salted fingerprint of its raw files and of the table rows that went in.

It is kept in the journal beside the scan's record, so that the next run sees whether the record still speaks of what
lies in the raw folder. Nothing in it can be read back: names, sizes, values and contents are hashed with the salt.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from isal import isal_zlib

from harmonize import sources
from harmonize.identity import salted_hash
from harmonize.scan import ScanRef

GONE = -1
"""Size and time of a file that is not there, or that may not be looked at."""

NOT_WHAT_WAS_READ = frozenset({"decisions"})
"""Keys of a reference's `meta` that are this program's own words: another version may put them otherwise."""

CHUNK_BYTES = 1 << 20

_CHARACTERS = 4
"""Of a file's hash, base64: 24 bits tell a file of a scan from its others, and keep the journal of DICOM short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a scan's raw data were when they were read; every text is a salted hash.

    Attributes:
        files: Of the files' names and sizes, and of the reason if discovery rejected the scan.
        each: Of the name and size of each file, four characters a file, sorted: tells whether files are gone.
        said: Of what discovery said of the scan: ids, rows of tables.
        times: Of the files' modification times; empty for what discovery rejected, which no file is read for.
        root: Of the raw folder's place.
        content: Of the files' contents; None where it is not known, or was not the same throughout.
        partial: Some file could not be read, and the scan was made without it.
    """

    files: str
    each: str
    said: str
    times: str
    root: str
    content: str | None = None
    partial: bool = False

    def file_hashes(self) -> frozenset[str]:
        """`each`, taken apart."""
        return frozenset(self.each[at : at + _CHARACTERS] for at in range(0, len(self.each), _CHARACTERS))


def look(ref: ScanRef, salt: str) -> Fingerprint:
    """The fingerprint of a raw scan as it lies there now, without `each` and `content`: no file is opened."""
    return _seen(ref, salt, *_listed(_inputs(ref), ref.root))


def look_at_each(ref: ScanRef, salt: str) -> Fingerprint:
    """As `look`, with `each`, which costs more than all the rest."""
    names, times = _listed(_inputs(ref), ref.root)
    there = (name for name, time_ns in zip(names, times, strict=True) if time_ns != GONE)
    return replace(_seen(ref, salt, names, times), each="".join(sorted(_short_hash(salt, name) for name in there)))


def read(ref: ScanRef, before: Fingerprint, salt: str) -> Fingerprint:
    """`before` with the content of the files; without it where a file changed since, or cannot be read.

    Args:
        ref: The raw scan.
        before: What `look_at_each` gave before the scan was loaded.
        salt: Of the corpus.
    """
    try:
        sums = [_checksum(path) for path in _inputs(ref)]
    except FileNotFoundError:
        return before
    except OSError:
        return replace(before, partial=True)
    if look(ref, salt) != replace(before, each="", content=None, partial=False):
        return before
    return replace(before, content=_content(sums, salt))


def look_and_read(ref: ScanRef, *, salt: str) -> Fingerprint:
    """The fingerprint of a raw scan as it lies there now, with its content."""
    return read(ref, look_at_each(ref, salt), salt)


def sums_of_each(ref: ScanRef, *, salt: str) -> tuple[tuple[str, int], ...] | None:
    """What `Fingerprint.each` says of each file of a raw scan, with its checksum; None where one cannot be read."""
    # Listed once: a mask may be added meanwhile.
    paths = _inputs(ref)
    names, _ = _listed(paths, ref.root)
    try:
        return tuple((_short_hash(salt, name), _checksum(path)) for name, path in zip(names, paths, strict=True))
    except OSError:
        return None


def is_held_by(then: Fingerprint, sums: Sequence[tuple[str, int]], salt: str) -> bool:
    """Whether the files of `sums` are those of `then` with the same content, and perhaps more."""
    return _content([found for name, found in sums if name in then.file_hashes()], salt) == then.content


def root_hash(ref: ScanRef, salt: str) -> str:
    """What `Fingerprint.root` says of where a raw scan lies."""
    return salted_hash(salt, "root", _resolved(str(ref.root.absolute())))


def _seen(ref: ScanRef, salt: str, names: Sequence[str], times: Sequence[int]) -> Fingerprint:
    said = [
        [ref.subject, ref.session, ref.public_id, ref.modality],
        # A path is one of the files.
        _plain({key: value for key, value in ref.meta.items() if _is_said(key, value)}, ref.root),
    ]
    reason = "" if ref.rejection is None else ref.rejection.reason.value
    return Fingerprint(
        files=salted_hash(salt, "files", reason, *names),
        each="",
        said=salted_hash(salt, "said", json.dumps(said, sort_keys=True, default=str)),
        times="" if ref.rejection is not None else salted_hash(salt, "times", json.dumps(times)),
        root=root_hash(ref, salt),
    )


def _inputs(ref: ScanRef) -> tuple[Path, ...]:
    try:
        return sources.inputs(ref)
    except OSError:
        # A folder that may not be looked into: once it may, there are more files, and the fingerprint is another.
        return ref.paths


def _is_said(key: str, value: object) -> bool:
    return key not in NOT_WHAT_WAS_READ and not isinstance(value, Path)


def _short_hash(salt: str, name: str) -> str:
    return base64.b64encode(bytes.fromhex(salted_hash(salt, "file", name)[:6])).decode("ascii")


def _listed(paths: Sequence[Path], root: Path) -> tuple[list[str], list[int]]:
    """Name and size of each file in one text, and the files' times."""
    names, times = [], []
    for path in paths:
        size, time_ns = GONE, GONE
        with suppress(OSError):
            # Not the Path's own: it takes twice as long, and there may be millions.
            found = os.stat(os.fspath(path))  # noqa: PTH116
            size, time_ns = found.st_size, found.st_mtime_ns
        names.append(f"{_name(path, root)} {size}")
        times.append(time_ns)
    return names, times


def _content(sums: Sequence[int], salt: str) -> str:
    return salted_hash(salt, "content", json.dumps(sums))


def _checksum(path: Path) -> int:
    # Against changes, not against forgers: a CRC costs a tenth of a cryptographic hash, and the sizes agree already.
    found = 0
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            found = isal_zlib.crc32(chunk, found)
    return found


def _name(path: Path, root: Path) -> str:
    """Relative to the root, so that a raw folder may move; string work, because there may be millions."""
    return os.fspath(path).removeprefix(os.fspath(root)).removeprefix(os.sep)


def _plain(value: object, root: Path) -> object:
    """Table values as JSON has them, without those that say nothing."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, root) for key, entry in value.items() if entry not in (None, "", ())}
    if isinstance(value, tuple | list):
        return [_plain(entry, root) for entry in value]
    return _name(value, root) if isinstance(value, Path) else value


@lru_cache(maxsize=64)
def _resolved(root: str) -> str:
    return os.path.realpath(root)
