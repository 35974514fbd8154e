"""The journal of a corpus: one line of JSON a scan, appended as scans finish; the manifest is made from it.

A line is whole or it is ignored, so a run that is killed while it writes one loses that one scan's line and does the
scan again. When a run ends, the lines are sorted and the shards' files put together, so that neither the order in which
processes finished nor the number of shards shows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from harmonize.corpus.fingerprint import Fingerprint
from harmonize.corpus.named_files import check_row
from harmonize.errors import Reason, Rejection, Stage
from harmonize.files import naming, write_text

SUFFIX = ".jsonl"
_OF_LABELS = ("source", "subject", "scan_id")
_OF_A_ROW = (*_OF_LABELS, "raw_hash", "image_file_name", "sha256")
SHARD = ".shard-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What became of one raw scan; where neither row nor rejection says it, the labels of one, of a published corpus.

    Attributes:
        source: Registry name.
        raw_hash: Names the raw scan.
        row: Its row of metadata.parquet, or None if it was rejected.
        rejection: Why it was rejected, or None if it was accepted.
        labels: Its row of labels.parquet without `accepted`, or None if its source labels nothing.
        read: What it was made from; None in a journal of version 0.1.0, which did not note it.
        duplicate_of: Scan id of the one with the same voxels that was kept, so that this one's files were removed.
        attempt: How often it had been done before since the journal was last compacted: a later outcome replaces an
            earlier one, wherever the two lines stand.
    """

    source: str
    raw_hash: str
    row: dict[str, Any] | None = None
    rejection: Rejection | None = None
    labels: dict[str, Any] | None = None
    read: Fingerprint | None = None
    duplicate_of: str | None = None
    attempt: int = 0

    def __post_init__(self) -> None:
        if self.row is not None:
            check_row(self.row, where=f"records/{self.source}{SUFFIX}")


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
    with naming(path):
        stream = path.open("a", encoding="utf-8")
    try:
        yield stream
    finally:
        # The file's own end tries once more to write what could not be written.
        with naming(path):
            stream.close()


def append(stream: TextIO, *records: Record) -> None:
    """Write a line each and see them onto the disk."""
    lines = [_line(record) for record in records]
    with naming(Path(stream.name)):
        stream.writelines(lines)
        stream.flush()
        os.fsync(stream.fileno())


def read(folder: Path) -> dict[Key, Record]:
    """All records of a corpus by source and raw hash.

    Of several of one scan the latest attempt stands; of those of one attempt an accepted outlives a rejected one, and
    a later line an earlier.
    """
    found: dict[Key, Record] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for record in _records(path):
            key = (record.source, record.raw_hash)
            there = found.get(key)
            if there is None or (record.attempt, record.row is not None or there.row is None) >= (there.attempt, True):
                found[key] = record
    return found


def sources_in(folder: Path) -> set[str]:
    """The sources that have a journal."""
    return {path.name.removesuffix(SUFFIX).partition(SHARD)[0] for path in folder.glob(f"*{SUFFIX}")}


def compact(folder: Path, records: dict[Key, Record], *, whole: str | None = None) -> None:
    """Leave one sorted journal a source, and no shards.

    Of an array that lacks a shard still, the journals of the others stay as empty files: they have begun.

    Args:
        folder: The journals'.
        records: Of all of them.
        whole: A source of which one run did all, so that none of its shards is waited for.
    """
    by_source: dict[str, list[Record]] = {source: [] for source in sources_in(folder)}
    for key in sorted(records):
        by_source.setdefault(key[0], []).append(records[key])
    for source, of_source in sorted(by_source.items()):
        write_whole(folder, source, of_source)
    waiting = {source for source, _, missing in _arrays(folder) if missing} - {whole}
    for path in folder.glob(f"*{SHARD}*{SUFFIX}"):
        if path.name.partition(SHARD)[0] in waiting:
            write_text(path, "")
        else:
            path.unlink()


def write_whole(folder: Path, source: str, records: Iterable[Record]) -> None:
    """Write the journal of one source from its records, in their order."""
    lines = (_line(record if record.attempt == 0 else replace(record, attempt=0)) for record in records)
    write_text(folder / journal_name(source, None), "".join(lines))


def absent_shards(folder: Path) -> list[str]:
    """Shards that have no journal although others of the same array have one: they never began.

    Example:
        >>> absent_shards(Path("no/such/folder"))
        []
    """
    return [f"{source} {index}/{count}" for source, count, missing in _arrays(folder) for index in missing]


def unmerged_shards(folder: Path) -> list[str]:
    """The names of shards' journals that hold what no merge has taken in yet."""
    return sorted(path.name for path in folder.glob(f"*{SHARD}*{SUFFIX}") if path.stat().st_size > 0)


def rejected_row(source: str, raw_hash: str, rejection: Rejection) -> dict[str, str]:
    """The row of rejected.parquet of one scan."""
    return {
        "source": source,
        "raw_hash": raw_hash,
        "stage": rejection.stage.value,
        "reason": rejection.reason.value,
        "message": rejection.message,
    }


def rejection_of(row: dict[str, Any]) -> Rejection | None:
    """The rejection of a row of rejected.parquet; None where this version knows no such reason or stage.

    Example:
        >>> rejection_of({"stage": "load", "reason": "empty", "message": "an empty file"}).reason
        <Reason.EMPTY: 'empty'>
    """
    try:
        reason, stage = Reason(row["reason"]), Stage(row["stage"])
    except (ValueError, TypeError, LookupError):
        return None
    message = row.get("message")
    return Rejection(reason, message, stage=stage) if isinstance(message, str) else None


def _arrays(folder: Path) -> list[tuple[str, int, list[int]]]:
    """Each array that has a journal: source, how many shards, and those that never began.

    Where one array of a source is whole, others of it need not be: it did all of their scans.
    """
    begun: dict[str, dict[int, set[int]]] = {}
    for path in folder.glob(f"*{SHARD}*-of-*{SUFFIX}"):
        source, _, part = path.name.removesuffix(SUFFIX).partition(SHARD)
        index, _, count = part.partition("-of-")
        begun.setdefault(source, {}).setdefault(int(count), set()).add(int(index))
    found = []
    for source, arrays in sorted(begun.items()):
        missing = {count: [at for at in range(count) if at not in there] for count, there in sorted(arrays.items())}
        is_done = not all(missing.values())
        found += [(source, count, [] if is_done else indices) for count, indices in missing.items()]
    return found


def _line(record: Record) -> str:
    # Not dataclasses.asdict: it copies every list, and takes nine tenths of the time of a large merge.
    entry = {name: value for name in Record.__slots__ if (value := getattr(record, name)) is not None}
    if record.rejection is not None:
        entry["rejection"] = rejected_row(record.source, record.raw_hash, record.rejection)
    if record.read is not None:
        entry["read"] = {name: value for name in Fingerprint.__slots__ if (value := getattr(record.read, name))}
    return _encoded(entry) + "\n"


def _encoded(entry: Any) -> str:
    return json.dumps(entry, ensure_ascii=False, sort_keys=True, allow_nan=False)


def _finite(text: str) -> float:
    """A number of a line.

    Raises:
        ValueError: It is none that could be written again.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} in a journal")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _records(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                entry = _DECODER.decode(line)
                if "\\u" in line:
                    _encoded(entry).encode()  # ValueError for half of a surrogate pair, which no file can hold
                read, row = entry.pop("read", None), entry.pop("rejection", None)
                rejection = None if row is None else rejection_of(row)
                if row is not None and rejection is None:
                    continue
                record = Record(**entry, rejection=rejection, read=None if read is None else _fingerprint(read))
            except (ValueError, TypeError, AttributeError, RecursionError):
                # Cut by a kill: the scan has no record and is done again.
                continue
            if _is_whole(record):
                yield record


def _is_whole(record: Record) -> bool:
    """Whether what the tables are sorted and put together by is text; what else is wrong, their types tell."""
    return (
        isinstance(record.source, str)
        and isinstance(record.raw_hash, str)
        and type(record.attempt) is int
        and _names_of(record.row, _OF_A_ROW)
        and _names_of(record.labels, _OF_LABELS)
    )


def _names_of(part: Any, names: tuple[str, ...]) -> bool:
    return part is None or (isinstance(part, dict) and all(isinstance(part.get(name, ""), str) for name in names))


def _fingerprint(entry: dict[str, Any]) -> Fingerprint:
    known = {"files": "", "each": "", "said": "", "times": "", "root": ""} | entry
    return Fingerprint(**{name: known[name] for name in Fingerprint.__slots__ if name in known})
