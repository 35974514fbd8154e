"""Predictions as files: a row a series in CSV, JSON or parquet; beside it, a row for each series without an answer."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.candidates import COLUMNS
from finetune.predict.journal import Row, tables_beside
from harmonize.decisions import unusual
from harmonize.errors import WrongUse
from harmonize.files import atomic_path, write_json

SERIES = "SeriesInstanceUID"
"""The first column: the UID, or the folder where the files say none."""

COLUMNS_OF_FAILED = (SERIES, "folder", "reason", "message")

FAILED, JOURNAL, CANDIDATES = ".failed.csv", ".journal.jsonl", ".candidates.csv"


LONGEST_HEAD = 1 << 16
_JSON_BEGINS = '[\n  {\n    "series": '


def companion(out: Path, ending: str) -> Path:
    """A file beside the predictions.

    Example:
        >>> companion(Path("a/p.csv"), FAILED).name
        'p.failed.csv'
    """
    return out.with_name(out.stem + ending)


def check_out(out: Path, labels: Sequence[str]) -> None:
    """Refuse a place for predictions before anything is computed.

    Args:
        out: The file.
        labels: Columns.

    Raises:
        UserError: No known ending, a folder, or somebody else's file there or beside it.
    """
    if out.suffix.lower() not in WRITERS:
        raise WrongUse(f"--out {out}: its ending says nothing; give one of {', '.join(sorted(WRITERS))}")
    if out.is_dir():
        raise WrongUse(f"--out {out}: a folder; give a file in it")
    journal = companion(out, JOURNAL)
    tables = tables_beside(journal) if journal.is_file() else set()
    for path in (out, companion(out, FAILED), companion(out, CANDIDATES)):
        if not os.path.lexists(path) or path.name in tables:
            continue
        what = "is there" if path == out else f"{path.name} is there"
        if not journal.exists():
            raise WrongUse(
                f"--out {out}: {what}, but not {journal.name}, which `finetune predict` leaves beside its files; give "
                "another file, or move this one away"
            )
        if tables or not _looks_ours(path, labels):
            raise WrongUse(
                f"--out {out}: {what}, but {journal.name} does not say that `finetune predict` wrote it; give another "
                "file, or move this one away"
            )


def tables_of(out: Path, rows: Sequence[Row]) -> set[str]:
    """The names of the files that `write_tables` writes."""
    failed = any(row.probabilities is None for row in rows)
    where = any(row.candidates is not None for row in rows if row.probabilities is not None)
    beside = [ending for ending, is_due in ((FAILED, failed), (CANDIDATES, where)) if is_due]
    return {out.name, *(companion(out, ending).name for ending in beside)}


def write_tables(out: Path, rows: Sequence[Row], labels: Sequence[str]) -> int:
    """Write the answered series to `out`, the others and all candidates beside it; gives how many those are.

    Args:
        out: The file.
        rows: What became of each series.
        labels: Columns.
    """
    rows = _with_names_of_their_own(rows)
    answered = [row for row in rows if row.probabilities is not None]
    failed = [row for row in rows if row.probabilities is None]
    WRITERS[out.suffix.lower()](out, answered, labels)
    _write_candidates(companion(out, CANDIDATES), answered)
    beside = companion(out, FAILED)
    if failed:
        _write_csv(beside, COLUMNS_OF_FAILED, [(row.series, row.folder, row.reason, row.message) for row in failed])
    else:
        beside.unlink(missing_ok=True)
    return len(failed)


def _looks_ours(path: Path, labels: Sequence[str]) -> bool:
    """Whether a file begins as a table of ours: of versions whose journals name none, nothing else tells it."""
    columns = {FAILED: COLUMNS_OF_FAILED, CANDIDATES: (SERIES, *COLUMNS)}
    kind = next((ending for ending in columns if path.name.endswith(ending)), "")
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_schema(path).names[: 1 + len(labels)] == [SERIES, *labels]
        with path.open(encoding="utf-8", newline="") as stream:
            if path.suffix.lower() == ".json":
                return stream.read(len(_JSON_BEGINS)) in (_JSON_BEGINS, "[]\n")
            return next(csv.reader([stream.readline(LONGEST_HEAD)]), []) == list(columns.get(kind, (SERIES, *labels)))
    except (OSError, ValueError, csv.Error, pa.ArrowInvalid):
        return False


def _with_names_of_their_own(rows: Sequence[Row]) -> list[Row]:
    """Rows of one name are numbered, as series of one UID in a folder are."""
    seen: Counter[str] = Counter()
    found = []
    for row in rows:
        seen[row.series] += 1
        number = seen[row.series]
        found.append(row if number == 1 else replace(row, series=f"{row.series} ({number})"))
    return found


def _write_candidates(path: Path, rows: Sequence[Row]) -> None:
    """A row a candidate, where any model says where it sees something."""
    if all(row.candidates is None for row in rows):
        path.unlink(missing_ok=True)
        return
    found = [(row.series, *one.values()) for row in rows for one in row.candidates or ()]
    _write_csv(path, (SERIES, *COLUMNS), found)


def _csv(out: Path, rows: Sequence[Row], labels: Sequence[str]) -> None:
    _write_csv(out, (SERIES, *labels), [(row.series, *(row.probabilities or ())) for row in rows])


def _write_csv(out: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with (
        atomic_path(out) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _json(out: Path, rows: Sequence[Row], labels: Sequence[str]) -> None:
    write_json(out, [object_of(row, labels) for row in rows])


def object_of(row: Row, labels: Sequence[str]) -> dict[str, object]:
    """An answered series as an object, as `finetune predict` prints it."""
    said = dict(zip(labels, row.probabilities or (), strict=True))
    decisions = list(row.decisions)
    return {"series": row.series, **said, "decisions": decisions, "warnings": unusual(decisions)}


def _parquet(out: Path, rows: Sequence[Row], labels: Sequence[str]) -> None:
    columns: dict[str, pa.Array] = {SERIES: pa.array([row.series for row in rows], pa.string())}
    for number, label in enumerate(labels):
        columns[label] = pa.array([(row.probabilities or ())[number] for row in rows], pa.float64())
    columns["folder"] = pa.array([row.folder for row in rows], pa.string())
    columns["modality"] = pa.array([row.kind for row in rows], pa.string())
    columns["decisions"] = pa.array([list(row.decisions) for row in rows], pa.list_(pa.string()))
    columns["warnings"] = pa.array([unusual(list(row.decisions)) for row in rows], pa.list_(pa.string()))
    with atomic_path(out) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


WRITERS: dict[str, Callable[[Path, Sequence[Row], Sequence[str]], None]] = {
    ".csv": _csv,
    ".json": _json,
    ".parquet": _parquet,
}
