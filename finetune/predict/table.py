"""Predictions as files: a row a series in CSV, JSON or parquet; beside it, a row for each series without an answer."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.candidates import COLUMNS
from finetune.predict.journal import Row
from harmonize.decisions import unusual
from harmonize.errors import WrongUse
from harmonize.files import atomic_path, write_json

SERIES = "SeriesInstanceUID"
"""The first column: the UID, or the folder where the files say none."""

FAILED, JOURNAL, CANDIDATES = ".failed.csv", ".journal.jsonl", ".candidates.csv"


def companion(out: Path, ending: str) -> Path:
    """A file beside the predictions.

    Example:
        >>> companion(Path("a/p.csv"), FAILED).name
        'p.failed.csv'
    """
    return out.with_name(out.stem + ending)


def check_out(out: Path) -> None:
    """Refuse a place for predictions before anything is computed.

    Raises:
        UserError: No known ending, a folder, or somebody else's file.
    """
    if out.suffix.lower() not in WRITERS:
        raise WrongUse(f"--out {out}: its ending says nothing; give one of {', '.join(sorted(WRITERS))}")
    if out.is_dir():
        raise WrongUse(f"--out {out}: a folder; give a file in it")
    if out.exists() and not companion(out, JOURNAL).exists():
        raise WrongUse(
            f"--out {out}: is there, but not {companion(out, JOURNAL).name}, which `finetune predict` leaves beside "
            "its files; give another file, or remove this one"
        )


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
        columns = (SERIES, "folder", "reason", "message")
        _write_csv(beside, columns, [(row.series, row.folder, row.reason, row.message) for row in failed])
    else:
        beside.unlink(missing_ok=True)
    return len(failed)


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
