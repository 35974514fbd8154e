"""The records of a corpus while a run adds to them, and the tables that are made from them at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from harmonize import corpus as layout
from harmonize.corpus import journal
from harmonize.corpus.journal import Key, Record
from harmonize.decisions import Decision
from harmonize.engine import duplicates
from harmonize.engine.changes import file_names, has_files, is_retryable
from harmonize.identity import salted_hash


class Ledger:
    """What is known of each scan, on disk as soon as it is known.

    Args:
        out: The corpus.
        stream: The run's journal, open to append to.

    Attributes:
        records: By source and raw hash, of all runs.
    """

    def __init__(self, out: Path, stream: TextIO) -> None:
        self.records = journal.read(out / layout.RECORDS)
        self._out, self._stream = out, stream
        self._owners: Counter[str] | None = None

    def add(self, record: Record) -> Record:
        """Take in the outcome of a scan; gives what stands now.

        A scan that was accepted before outlives a failure to read it again. Otherwise the new outcome stands, and files
        of the old one that it does not name are removed.
        """
        return self.add_all([record])[0]

    def add_all(self, records: Iterable[Record]) -> list[Record]:
        """As `add`, of several scans, which are seen onto the disk at once."""
        standing, new = [], {}
        for record in records:
            key = (record.source, record.raw_hash)
            old = self.records.get(key)
            if old is not None:
                if is_retryable(record) and old.row is not None and has_files(old, self._out):
                    standing.append(old)
                    continue
                record = replace(record, attempt=old.attempt + 1)
                # Before the line is written: were the run killed in between, the scan would be found without its files.
                self._remove(old, record)
            standing.append(record)
            new[key] = record
        if new:
            # Memory first: a stop between the two would leave a scan in the journal that the tables, made of memory,
            # lack.
            self.records |= new
            journal.append(self._stream, *new.values())
        return standing

    def note(self, records: Iterable[Record]) -> None:
        """Take in more about scans whose outcome stays."""
        noted = list(records)
        if noted:
            self.records |= {(record.source, record.raw_hash): record for record in noted}
            journal.append(self._stream, *noted)

    def drop(self, keys: Iterable[Key]) -> None:
        """Forget scans and remove their files; the journal forgets them when it is compacted."""
        for key in keys:
            self._remove(self.records[key], None)
            del self.records[key]

    def _remove(self, old: Record, new: Record | None) -> None:
        names = set(file_names(old))
        if new is not None:
            names -= set(file_names(new))
        if not names:
            return
        if self._owners is None:
            self._owners = Counter(name for record in self.records.values() for name in file_names(record))
        for name in names:
            # Two scans of one name may both stand in an old journal; the file is the other one's then.
            if self._owners[name] <= 1:
                (self._out / name).unlink(missing_ok=True)
            self._owners[name] -= 1


def restore_journal(out: Path) -> None:
    """Give a corpus without a journal, such as one from the Hub, a journal of what its tables hold."""
    folder = out / layout.RECORDS
    absent = set(layout.Corpus.open(out).info["sources"]) - journal.sources_in(folder)
    if not absent or not (out / layout.SCANS).is_file():
        return
    accepted, rejected = layout.table_rows(out)
    labels = {_scan_of(entry): entry for entry in layout.stored_label_rows(out)}
    for source in sorted(absent):
        found = [
            Record(source=source, raw_hash=row["raw_hash"], row=row, labels=_said(labels.pop(_scan_of(row), None)))
            for row in accepted
            if row["source"] == source
        ]
        found += [
            Record(source=source, raw_hash=row["raw_hash"], rejection=rejection)
            for row in rejected
            if row["source"] == source and (rejection := journal.rejection_of(row)) is not None
        ]
        # No table says which of the rejected scans these are; but the folds are dealt by them.
        found += [
            Record(source=source, raw_hash=salted_hash("", "labels", *scan), labels=_said(entry))
            for scan, entry in labels.items()
            if entry["source"] == source
        ]
        if found:
            journal.write_whole(folder, source, sorted(found, key=lambda record: record.raw_hash))


def _scan_of(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Which scan a row of the tables is about."""
    return entry["source"], entry["subject"], entry["scan_id"]


def _said(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a row of labels.parquet says whatever became of the scan."""
    return None if entry is None else {name: value for name, value in entry.items() if name != "accepted"}


def _is_label_alone(record: Record) -> bool:
    return record.row is None and record.rejection is None


def write_tables(
    out: Path, records: dict[Key, Record], *, whole: str | None = None
) -> tuple[dict[Key, str | None], dict[Key, list[Decision]]]:
    """Compact the journal, write the tables, and remove the files of scans that are another's voxels again.

    Args:
        out: The corpus.
        records: Of all of its scans.
        whole: A source of which one run did all.

    Returns:
        By scan: the code of its rejection, or None where it is accepted; and what was decided about scans in view of
        others.
    """
    # The copy that most is known of may have no files, in a corpus of an earlier version whose raw folder is gone.
    found = duplicates.find(records, is_there=lambda record: has_files(record, out))
    accepted, rejected, labels = [], [], []
    standing: dict[Key, Record] = {}
    spoken_for = {_scan_of(each.labels) for each in records.values() if each.labels and not _is_label_alone(each)}
    for key, record in records.items():
        if _is_label_alone(record) and record.labels and _scan_of(record.labels) in spoken_for:
            continue
        kept = found.kept.get(key)
        rejection = record.rejection
        of = None
        if kept is not None and kept.row is not None:
            rejection = duplicates.rejection(record, kept, found.of(key))
            of = kept.row["scan_id"]
        elif record.duplicate_of is not None and not has_files(record, out):
            rejection, of = duplicates.lost_rejection(record), record.duplicate_of
        standing[key] = replace(record, duplicate_of=of)
        if rejection is not None:
            rejected.append(journal.rejected_row(record.source, record.raw_hash, rejection))
        elif record.row is not None:
            contradictions = found.contradictions.get(key)
            row = record.row
            accepted.append(row if contradictions is None else duplicates.without_contradictions(row, contradictions))
        if record.labels is not None:
            labels.append(record.labels | ({"labels": None} if found.of(key).labels else {}))
    journal.compact(out / layout.RECORDS, standing, whole=whole)
    layout.write_manifest(out, accepted, rejected, labels)
    named = {row.get(column) for row in accepted for column in layout.FILE_COLUMNS}
    for key in found.kept:
        for name in file_names(records[key]):
            if name not in named:
                (out / name).unlink(missing_ok=True)
    outcomes: dict[Key, str | None] = {(row["source"], row["raw_hash"]): None for row in accepted}
    outcomes |= {(row["source"], row["raw_hash"]): row["reason"] for row in rejected}
    return outcomes, {key: contradictions.decisions() for key, contradictions in found.contradictions.items()}
