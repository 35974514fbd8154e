"""The faults that `verify` finds, and which of them a merge mends, because the journal knows better than the tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np

from harmonize.corpus import journal
from harmonize.corpus.layout import FILE_COLUMNS
from harmonize.corpus.reading import Corpus
from harmonize.corpus.target import RECORDS

_TEXTS = (*FILE_COLUMNS, "sha256", "mask_sha256", "brain_mask_sha256", "scan_id", "subject", "unit", "mask_kind")
_NUMBERS = ("shape", "spacing", "foreground_box")


class Where(Enum):
    """Where a fault lies."""

    TABLE = auto()
    """In what a table says, whatever the files are."""
    STRAY = auto()
    """A file that no row names."""
    UNKNOWN = auto()
    """In what another version wrote, which this one does not know."""
    LOST = auto()
    """In a file that no command makes again."""
    ROW = auto()
    """A row and its file do not agree: either may be wrong."""


class Fault(str):
    """One line that says what is wrong with a corpus.

    Attributes:
        where: Where it lies.
        file: The stray file, relative to the corpus.
        row: The row of metadata.parquet that does not agree with its file; or of rejected.parquet, what is unknown.
    """

    __slots__ = ("file", "row", "where")
    where: Where
    file: str
    row: Mapping[str, Any]

    def __new__(cls, text: str, where: Where, *, file: str = "", row: Mapping[str, Any] | None = None) -> Fault:
        """A line about a table, a stray file or a row."""
        made = super().__new__(cls, text)
        made.where, made.file, made.row = where, file, row or {}
        return made


def mended_by_merge(path: Path, faults: Iterable[Fault]) -> set[Fault]:
    """The faults that are gone once the tables are made from the journal again, which takes no scan away.

    Args:
        path: The corpus.
        faults: From `harmonize.corpus.verify.verify`.

    Returns:
        Empty where the journal lacks a scan that the tables have, or says of one what only another version knows, for
        a merge would take that one's row away.

    Raises:
        UserError: The journal names a file that no corpus can have.
    """
    records = journal.read(path / RECORDS)
    corpus = Corpus.open(path)
    if not set(zip(corpus.scans["source"], corpus.scans["raw_hash"], strict=True)) <= records.keys():
        return set()
    rejected = corpus.rejected
    # The journal's lines of such reasons are passed over when it is read.
    forgotten = {
        reason
        for *key, reason in zip(rejected["source"], rejected["raw_hash"], rejected["reason"], strict=True)
        if tuple(key) not in records
    }
    faults = list(faults)
    if any(fault.where is Where.UNKNOWN and fault.row["reason"] in forgotten for fault in faults):
        return set()
    rows = {key: record.row for key, record in records.items() if record.row is not None}
    kept_rows = (row for key, row in rows.items() if records[key].duplicate_of is None)
    named = {row.get(column) for row in kept_rows for column in FILE_COLUMNS}

    def is_mended(fault: Fault) -> bool:
        if fault.where in (Where.TABLE, Where.UNKNOWN):
            return bool(records)
        if fault.where is Where.LOST:
            return False
        if fault.where is Where.STRAY:
            return fault.file in named
        kept = rows.get((fault.row["source"], fault.row["raw_hash"]))
        return kept is not None and _differs(fault.row, kept)

    return {fault for fault in faults if is_mended(fault)}


def _differs(row: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    """Whether a row of the table says of its files what the journal does not."""
    if any(row.get(column) != kept.get(column) for column in _TEXTS):
        return True
    return any(not _alike(row.get(column), kept.get(column)) for column in _NUMBERS)


def _alike(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and bool(np.allclose(one, other))
