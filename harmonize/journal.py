"""The journal of a corpus: one line of JSON a scan, appended as scans finish; the manifest is made from it.

A line is whole or it is ignored, so a run that is killed while it writes one loses that one scan's line and does the
scan again. When a run ends, the lines are sorted and the shards' files put together, so that neither the order in which
processes finished nor the number of shards shows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from harmonize.files import write_text

SUFFIX = ".jsonl"
SHARD = ".shard-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What became of one raw scan.

    Attributes:
        source: Registry name.
        raw_hash: Names the raw scan.
        row: Its row of metadata.parquet, or None if it was refused.
        rejection: Its row of rejected.parquet, or None if it was accepted.
        labels: Its row of labels.parquet without `accepted`, or None if its source labels nothing.
    """

    source: str
    raw_hash: str
    row: dict[str, Any] | None = None
    rejection: dict[str, str] | None = None
    labels: dict[str, Any] | None = None


Key = tuple[str, str]


def journal_name(source: str, shard: tuple[int, int] | None) -> str:
    """File name of a run's journal.

    Example:
        >>> journal_name("tcia", (0, 4))
        'tcia.shard-0-of-4.jsonl'
    """
    return f"{source}{SUFFIX}" if shard is None else f"{source}{SHARD}{shard[0]}-of-{shard[1]}{SUFFIX}"


@contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """Open a journal to append to; a line that a killed run left unfinished is closed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as raw:
        if raw.tell() > 0:
            raw.seek(-1, os.SEEK_END)
            if raw.read(1) != b"\n":
                raw.write(b"\n")
    with path.open("a", encoding="utf-8") as stream:
        yield stream


def append(stream: TextIO, record: Record) -> None:
    """Write one line and see it onto the disk."""
    stream.write(_line(record))
    stream.flush()
    os.fsync(stream.fileno())


def read(folder: Path) -> dict[Key, Record]:
    """All records of a corpus by source and raw hash; an accepted scan outlives a refusal, a later line an earlier."""
    found: dict[Key, Record] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for record in _records(path):
            key = (record.source, record.raw_hash)
            if key not in found or found[key].row is None or record.row is not None:
                found[key] = record
    return found


def compact(folder: Path, records: dict[Key, Record]) -> None:
    """Leave one sorted journal a source, and no shards."""
    for source in sorted({source for source, _ in records}):
        lines = [_line(records[key]) for key in sorted(records) if key[0] == source]
        write_text(folder / journal_name(source, None), "".join(lines))
    for path in folder.glob(f"*{SHARD}*{SUFFIX}"):
        path.unlink()


def absent_shards(folder: Path) -> list[str]:
    """Shards that have no journal although others of the same array have one: they never began.

    Example:
        >>> absent_shards(Path("no/such/folder"))
        []
    """
    begun: dict[tuple[str, int], set[int]] = {}
    for path in folder.glob(f"*{SHARD}*-of-*{SUFFIX}"):
        source, _, part = path.name.removesuffix(SUFFIX).partition(SHARD)
        index, _, count = part.partition("-of-")
        begun.setdefault((source, int(count)), set()).add(int(index))
    return [
        f"{source} {index}/{count}"
        for (source, count), indices in sorted(begun.items())
        for index in range(count)
        if index not in indices
    ]


def _line(record: Record) -> str:
    # Not dataclasses.asdict: it copies every list, and takes nine tenths of the time of a large merge.
    entry = {name: value for name in Record.__slots__ if (value := getattr(record, name)) is not None}
    return json.dumps(entry, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"


def _records(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                yield Record(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                # Cut by a kill: the scan has no record and is done again.
                continue
