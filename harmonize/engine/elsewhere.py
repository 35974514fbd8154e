"""Whether a raw folder that lies elsewhere is the one that scans of its names were made from, or another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from harmonize.corpus import fingerprint
from harmonize.corpus.fingerprint import Fingerprint
from harmonize.corpus.journal import Key, Record
from harmonize.engine.changes import State
from harmonize.engine.raw_scans import key_of
from harmonize.errors import WrongUse
from harmonize.scan import ScanRef
from harmonize.settings import Settings

Compare = Callable[[Callable[[ScanRef], object], list[ScanRef]], Iterable[tuple[ScanRef, object]]]
"""Applies a function to references in the run's processes, and shows how far it is."""

_JUDGED = {State.MOVED, State.TOUCHED, State.CHANGED}


def judge(
    states: Mapping[str, State],
    references: Iterable[ScanRef],
    records: Mapping[Key, Record],
    settings: Settings,
    *,
    out: Path,
    compare: Compare,
) -> dict[str, State]:
    """Compare the contents of scans that were made from a folder of another place with what is here under their names.

    Where most are the same the folder was moved, and the others changed since. Otherwise it is another folder.

    Args:
        states: What `changes.judge` says of each reference, by its key.
        references: The raw scans.
        records: Of the corpus.
        settings: How it is made.
        out: The corpus, for the message.
        compare: Who reads.

    Returns:
        By key: what is to be done about a scan after all.

    Raises:
        WrongUse: It is another folder, and going on would replace what was made from the first.
    """
    there = [
        (ref, then)
        for ref in references
        if states[ref.key] in _JUDGED and (then := _read_elsewhere(ref, records, settings)) is not None
    ]
    if not there:
        return {}
    root = there[0][0].root
    # Names and sizes first: they cost no reading, and two sites seldom have the same.
    others = {ref.key for ref, then in there if states[ref.key] is State.CHANGED and _lacks(ref, then, settings)}
    if 2 * len(others) >= len(there):
        raise _another(root, out, len(others))
    comparable = {ref.key: then for ref, then in there if ref.key not in others and then.content is not None}
    found = {}
    read = partial(fingerprint.sums_of_each, salt=settings.salt)
    for ref, sums in compare(read, [ref for ref, _ in there if ref.key in comparable]):
        same = isinstance(sums, tuple) and fingerprint.is_held_by(comparable[ref.key], sums, settings.salt)
        if same and states[ref.key] is State.CHANGED:
            continue  # a file more, or another row of a table
        found[ref.key] = State.MOVED if same else State.CHANGED
        if isinstance(sums, tuple) and not same:
            others.add(ref.key)
    if 2 * len(others) >= len(there):
        raise _another(root, out, len(others))
    return found


def _read_elsewhere(ref: ScanRef, records: Mapping[Key, Record], settings: Settings) -> Fingerprint | None:
    """What an accepted scan was made from, where that is no file of this raw folder."""
    record = records[key_of(ref, settings)]
    if record.row is None or record.read is None:
        return None
    return record.read if record.read.root != fingerprint.root_hash(ref, settings.salt) else None


def _lacks(ref: ScanRef, then: Fingerprint, settings: Settings) -> bool:
    """Whether a file that the scan was made from is not here, or of another size."""
    return not then.file_hashes() <= fingerprint.look_at_each(ref, settings.salt).file_hashes()


def _another(root: Path, out: Path, count: int) -> WrongUse:
    scans = "1 scan here has the name" if count == 1 else f"{count} scans here have the names"
    return WrongUse(
        f"{root}: {scans} of what {out} has from another folder, but not its content, and would replace it; give "
        "this folder an --out of its own, or give one that holds both folders with a new --out (if it is that folder, "
        "moved and changed since: move it back)"
    )
