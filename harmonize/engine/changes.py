"""Whether a scan must be done: what the journal says of it against what lies in the raw folder now."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from pathlib import Path

from harmonize import identity
from harmonize.corpus import FILE_COLUMNS, fingerprint
from harmonize.corpus.fingerprint import Fingerprint
from harmonize.corpus.journal import Key, Record
from harmonize.errors import Reason
from harmonize.scan import ScanRef
from harmonize.settings import Settings

RETRYABLE = {Reason.IO_ERROR, Reason.MISSING_FILE, Reason.WORKER_DIED}
"""Rejections that say nothing about the scan itself: the next run tries these again."""


class State(Enum):
    """What is to be done about a scan."""

    DONE = auto()
    """Nothing: its record speaks of what lies there now."""
    MISSING = auto()
    """There is no outcome yet, or one that is to be tried again."""
    CHANGED = auto()
    """Its files, or its rows of the tables, are others than those it was made from."""
    TOUCHED = auto()
    """Only times differ: its contents are to be compared."""
    SHRUNK = auto()
    """Some of its raw files are gone: what was made from all of them stays, until a `retry`."""
    UNRECORDED = auto()
    """Version 0.1.0 made it, and did not note from what: it stays."""
    MOVED = auto()
    """Nothing, but its raw folder lies elsewhere now; `elsewhere` tells whether it is that folder."""


def judge(
    ref: ScanRef, record: Record | None, out: Path, settings: Settings, *, retry: bool, duplicate: bool
) -> tuple[State, Fingerprint | None]:
    """The state of a raw scan, and its fingerprint as it lies there now where that had to be looked at.

    Args:
        ref: The raw scan.
        record: What the journal says of it.
        out: The corpus.
        settings: How it is made.
        retry: Try all again that was rejected, or made from files of which some are gone.
        duplicate: The journal says that another scan with the same voxels is kept, so this one has no files.
    """
    if record is None or (record.row is None and _is_tried_again(record, retry=retry)):
        return State.MISSING, None
    if record.row is not None and not duplicate and not has_files(record, out):
        return State.MISSING, None
    now, then = fingerprint.look(ref, settings.salt), record.read
    if then is None:
        return State.UNRECORDED, fingerprint.look_at_each(ref, settings.salt)
    if then.partial:
        return State.MISSING, None
    if now.said != then.said:
        return State.CHANGED, now
    if now.files != then.files:
        if record.row is None or retry:
            return State.CHANGED, now
        there = fingerprint.look_at_each(ref, settings.salt).file_hashes()
        return (State.SHRUNK if there < then.file_hashes() else State.CHANGED), now
    if now.times != then.times:
        return (State.CHANGED if then.content is None else State.TOUCHED), now
    if now.root == then.root:
        return State.DONE, now
    # Nobody noted what was in a rejected file, and another folder may have another one of its name, size and time.
    return (State.MISSING if record.row is None and now.times else State.MOVED), now


def has_files(record: Record, out: Path) -> bool:
    """Whether all files that an accepted scan's row names are there."""
    return all((out / name).is_file() for name in file_names(record))


def file_names(record: Record) -> list[str]:
    """The files of an accepted scan, relative to the corpus; none of a rejected one."""
    return [] if record.row is None else [name for column in FILE_COLUMNS if (name := record.row.get(column))]


def is_retryable(record: Record) -> bool:
    """Whether a record is a rejection that says nothing about the scan itself."""
    return record.rejection is not None and record.rejection.reason in RETRYABLE


def no_longer_found(records: dict[Key, Record], references: Iterable[ScanRef], settings: Settings) -> list[Key]:
    """Records of scans that the raw folder had, and that a look at all of it no longer finds.

    Other raw folders of the same source are left alone, and so is what does not say which one it came from.
    """
    found, roots = set(), set()
    for ref in references:
        found.add((ref.source, identity.raw_hash(ref, settings.salt)))
        roots.add((ref.source, fingerprint.root_hash(ref, settings.salt)))
    return [
        key
        for key, record in records.items()
        if key not in found and record.read is not None and (record.source, record.read.root) in roots
    ]


def superseded(
    gone: Iterable[Key], records: dict[Key, Record], references: Iterable[ScanRef], settings: Settings
) -> set[Key]:
    """Of the accepted scans that are no longer found, those whose data accepted scans of other names hold now.

    A run of slices that grew has a new name and all files of the old one; what was one scan by mistake is several; a
    file that was renamed gives the same voxels.
    """
    old = {key: records[key] for key in gone if records[key].row is not None}
    if not old:
        return set()
    files = {key: record.read.file_hashes() for key, record in old.items() if record.read is not None}
    wanted = frozenset().union(*files.values())
    held: set[str] = set()
    voxels = set()
    for ref in references:
        record = records.get((ref.source, identity.raw_hash(ref, settings.salt)))
        if record is None or record.row is None or record.read is None:
            continue
        voxels.add((record.source, record.row["sha256"]))
        held |= record.read.file_hashes() & wanted
    found = {key for key, hashes in files.items() if hashes and hashes <= held}
    same = {key for key, record in old.items() if record.row and (record.source, record.row["sha256"]) in voxels}
    return found | same


def parted(
    shrunk: Iterable[ScanRef], others: Iterable[ScanRef], records: dict[Key, Record], settings: Settings
) -> list[ScanRef]:
    """Of the scans that lack files, those whose lacking files are of other scans now: one has become several.

    An earlier version may have taken several volumes of a series for one.

    Args:
        shrunk: Scans whose records speak of more files than are there.
        others: Scans without an outcome yet.
        records: Of the corpus.
        settings: How it is made.
    """
    lacking = {}
    for ref in shrunk:
        read = records[ref.source, identity.raw_hash(ref, settings.salt)].read
        there = fingerprint.look_at_each(ref, settings.salt).file_hashes()
        lacking[ref.key] = (ref, read.file_hashes() - there if read is not None else frozenset())
    if not lacking:
        return []
    wanted = frozenset().union(*(hashes for _, hashes in lacking.values()))
    held: set[str] = set()
    for ref in others:
        held |= fingerprint.look_at_each(ref, settings.salt).file_hashes() & wanted
    return [ref for ref, hashes in lacking.values() if hashes and hashes <= held]


def _is_tried_again(record: Record, *, retry: bool) -> bool:
    if retry or record.rejection is None or is_retryable(record):
        return True
    # Rejected for a name that another scan had, which is not there any more: it was never looked at itself.
    return record.rejection.reason is Reason.DUPLICATE and record.read is None
