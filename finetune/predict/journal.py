"""The journal of a prediction: a line of JSON a series, appended as answers come, so that a stopped run goes on.

A line more names the tables that are written beside it, for no other file there is ours to replace. A line is whole or
it is ignored: a run that is killed while it writes one does that series again. Processes that share the folders write a
file each and read all of them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from finetune.predict.share import ALL, Share
from finetune.raw.places import Place
from harmonize.bounded_files import fits, parse_json
from harmonize.errors import Reason, WrongUse

FORMAT = 1
LONGEST_LINE = 1 << 22
SYNC_S = 1.0
"""Seconds between two writes that are seen onto the disk; what dies with the process alone is lost never."""

RETRYABLE = frozenset({Reason.IO_ERROR, Reason.WORKER_DIED, Reason.MISSING_FILE})
"""What a series is refused for when the disk or the memory was at fault: the next run tries it again."""

TABLES = "tables"
"""Key of a line that names tables; earlier versions wrote none, and pass over it."""

_MAYBE = (str, type(None))
_SHAPE = {
    "place": str, "state": str, "part": int, "parts": int, "series": str, "folder": str, "kind": _MAYBE,
    "probabilities": ([float], type(None)), "decisions": [str], "reason": _MAYBE, "message": _MAYBE,
}  # fmt: skip
_CANDIDATE = {
    "rank": int, "label": _MAYBE, "label_probability": (float, type(None)), "x": float, "y": float, "z": float,
    "size_mm": float, "score": float,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of a series.

    Attributes:
        place: Key of the folder.
        state: Of its files.
        part: The number of the series among those of its folder.
        parts: How many those are.
        series: Its SeriesInstanceUID, or where the files say none, the folder.
        folder: The folder, as people know it.
        kind: ``CT`` or ``MR``; None where it was not answered.
        probabilities: In the order of the labels; None where it was not answered.
        decisions: What was found and done.
        reason: A code of docs/rejections.md; None where it was answered.
        message: Why it was not answered, in one line.
        candidates: Where something is seen, rows as of `finetune.candidates.rows_of`; None where nobody says, as
            journals of earlier versions never do.
    """

    place: str
    state: str
    part: int
    parts: int
    series: str
    folder: str
    kind: str | None = None
    probabilities: tuple[float, ...] | None = None
    decisions: tuple[str, ...] = ()
    reason: str | None = None
    message: str | None = None
    candidates: tuple[dict[str, object], ...] | None = None

    def line(self) -> str:
        """As JSON; without candidates as earlier versions wrote it."""
        fields = asdict(self)
        if self.candidates is None:
            del fields["candidates"]
        return json.dumps(fields)


class Journal:
    """What is known of each series, on disk as soon as it is known.

    Args:
        stream: To append to; None: nowhere.
        read: Gives what stands on the disk, by place.
    """

    def __init__(self, stream: TextIO | None = None, read: Callable[[], dict[str, list[Row]]] = dict) -> None:
        self._file, self._read, self._rows, self._synced = stream, read, read(), time.monotonic()

    def add(self, row: Row) -> None:
        """Take in what became of a series."""
        self._rows.setdefault(row.place, []).append(row)
        if self._file is None:
            return
        self._file.write(row.line() + "\n")
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_S:
            self.sync()

    def add_tables(self, names: Collection[str]) -> None:
        """Say which files beside the journal are written now."""
        if self._file is not None:
            self._file.write(json.dumps({TABLES: sorted(names)}) + "\n")
            self.sync()

    def sync(self) -> None:
        """See what was written onto the disk."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def read(self) -> None:
        """Take in what other processes have written meanwhile."""
        self.sync()
        self._rows = self._read()

    def of(self, place: Place) -> dict[int, Row]:
        """What stands about a place as it is now, by the number of the series; what may be better now does not."""
        if place.key not in self._rows:
            return {}
        state = place.state()
        latest = {row.part: row for row in self._rows[place.key] if row.state == state}
        return {part: row for part, row in latest.items() if row.reason not in RETRYABLE}

    def rows(self, place: Place) -> list[Row]:
        """The latest outcome of each series of a place, in their order."""
        rows = self._rows.get(place.key, [])
        if not rows:
            return []
        # Of several processes' rows the last to be read need not be the latest.
        states = {row.state for row in rows}
        state = now if len(states) > 1 and (now := place.state()) in states else rows[-1].state
        own = sorted((row for row in rows if row.state == state), key=lambda row: row.reason not in RETRYABLE)
        latest = {row.part: row for row in own}
        return [latest[part] for part in sorted(latest)]

    def is_through(self, place: Place) -> bool:
        """Whether it is known what became of each series of a place as it is now; what may be better next time too."""
        rows = self.rows(place)
        return bool(rows) and len(rows) == rows[0].parts and rows[0].state == place.state()

    def elsewhere(self, places: Iterable[Place]) -> int:
        """How many series stand here of folders that are not among these."""
        asked = {place.key for place in places}
        return sum(rows[-1].parts for key, rows in self._rows.items() if key not in asked)


@contextmanager
def journal_at(path: Path, facts: Mapping[str, Any], share: Share = ALL) -> Iterator[Journal]:
    """Hold a journal, and append to it: to the whole of it alone, or to this process's part of it.

    Args:
        path: The file; made if need be. A part lies beside it.
        facts: What the answers follow from: models, labels, precision.
        share: This process's part of the folders.

    Raises:
        UserError: Somebody else is writing there, it holds answers of other models, or it is no journal of ours.
    """
    head = {"format": FORMAT, **facts}
    with ExitStack() as stack:
        stream = stack.enter_context(_held(path, fcntl.LOCK_EX if share == ALL else fcntl.LOCK_SH))
        own = path
        if share != ALL:
            own = path.with_name(f"{path.stem}.{share.index}-of-{share.count}{path.suffix}")
            stream = stack.enter_context(_held(own, fcntl.LOCK_EX))
        if _read(own, head) is None:
            stream.truncate(0)
            stream.write(json.dumps(head) + "\n")
        elif not ends_with_line(own):
            stream.write("\n")
        stream.flush()
        journal = Journal(stream, partial(_read_all, path, head))
        try:
            yield journal
        finally:
            stream.flush()
            journal.sync()


def tables_beside(path: Path) -> set[str]:
    """The names of the files beside a journal that it, or a part of it, says were written."""
    found: set[str] = set()
    for one in _with_parts(path):
        with one.open("rb") as lines:
            for content in lines:
                line: Any = _line(content) if TABLES.encode() in content else None
                if fits(line, {TABLES: [str]}):
                    found.update(line[TABLES])
    return found


@contextmanager
def _held(path: Path, lock: int) -> Iterator[TextIO]:
    """Open a file to append to, made if need be, under a lock.

    Raises:
        UserError: It cannot be written, or another process has a lock that forbids this one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise WrongUse(f"{path}: cannot be written ({error.strerror}); give --out another place") from error
    with stream:
        try:
            fcntl.flock(stream, lock | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise WrongUse(f"{path}: another process is writing to it; wait for it, or give another --out") from error
        yield stream


def _read_all(path: Path, head: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of a journal and of all its parts, by place."""
    found: dict[str, list[Row]] = {}
    for one in _with_parts(path):
        for place, rows in (_read(one, head) or {}).items():
            found.setdefault(place, []).extend(rows)
    return found


def _with_parts(path: Path) -> list[Path]:
    part = re.compile(re.escape(path.stem) + r"\.\d+-of-\d+" + re.escape(path.suffix))
    return [path, *sorted(other for other in path.parent.iterdir() if part.fullmatch(other.name))]


def _read(path: Path, head: Mapping[str, Any]) -> dict[str, list[Row]] | None:
    """The rows by place; None for an empty journal, or one whose first line was never finished."""
    rows: dict[str, list[Row]] = {}
    with path.open("rb") as lines:
        first = lines.readline(LONGEST_LINE)
        if not first.endswith(b"\n") and not lines.read(1) and len(first) < LONGEST_LINE:
            if first and not json.dumps(head).startswith(first.decode("utf-8", "replace")):
                raise _foreign(path)
            return None
        begun = _line(first)
        if not isinstance(begun, dict) or begun.get("format") != FORMAT:
            raise _foreign(path)
        if begun != json.loads(json.dumps(head)):
            raise WrongUse(
                f"{path}: holds answers of other models, weights or precision; give another --out, or delete it to "
                "begin again"
            )
        for content in lines:
            row = _row(content, len(begun["labels"]))
            if row is not None:
                rows.setdefault(row.place, []).append(row)
    return rows


def _row(content: bytes, labels: int) -> Row | None:
    line = _line(content)
    if not fits(line, _SHAPE) or line.keys() - {"candidates"} != _SHAPE.keys():
        return None
    found = line.get("candidates", ())
    if not fits(found, ([_CANDIDATE], tuple)) or any(one.keys() != _CANDIDATE.keys() for one in found):
        return None
    if "candidates" in line:
        line["candidates"] = tuple(found)
    values = line["probabilities"]
    if values is None:
        return Row(**{**line, "decisions": tuple(line["decisions"])}) if line["reason"] else None
    if len(values) != labels or not all(math.isfinite(value) for value in values):
        return None
    return Row(**{**line, "probabilities": tuple(values), "decisions": tuple(line["decisions"])})


def _line(content: bytes) -> Any:
    if len(content) > LONGEST_LINE:
        return None
    try:
        return parse_json(content)
    except ValueError:
        return None


def ends_with_line(path: Path) -> bool:
    """Whether a file is empty or its last line is whole: else a process died while it wrote it."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        return size == 0 or os.pread(stream.fileno(), 1, size - 1) == b"\n"


def _foreign(path: Path) -> WrongUse:
    return WrongUse(f"{path}: was not written by `finetune predict`; give another --out")
