"""The tables of the sources: read once, whoever wrote them, with typed fields and an account of what does not fit."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harmonize.errors import UserError
from harmonize.raw_tree import printable

DELIMITERS = (",", ";", "\t", "|")
MAX_AGE = 120.0
"""Years; whoever is older is a slip of the pen."""

ABSENT = frozenset({"", "n/a", "na", "nan", "none", "null", "unknown", "?", "-"})
"""How tables say that they do not know, in lower case."""

_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
_NO_SEX = frozenset({"o", "other", "u"})
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_END = "\x03end of table\x03"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of a table, as text.

    Attributes:
        columns: All that its header names.
        rows: By the columns that were asked for; "" where a row or the table has none.
        damaged: Rows that have more fields than the header, or run over several lines and lack some.
    """

    columns: tuple[str, ...]
    rows: list[dict[str, str]] = field(default_factory=list)
    damaged: int = 0


def read_table(path: Path, needed: Sequence[str], wanted: Iterable[str] = ()) -> Table:
    """Read a CSV table: UTF-8, UTF-16 or Latin-1, parted by commas, semicolons, tabs or bars.

    Args:
        path: The table.
        needed: Columns without which it is another table.
        wanted: Columns that may be absent.

    Raises:
        UserError: It is empty, damaged (a quote that is never closed, NUL bytes), or lacks a needed column.
    """
    text = _text(path)
    limit = csv.field_size_limit(sys.maxsize)
    try:
        return _parse(path, text, needed, tuple(wanted))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV table ({error}); download it again", exit_code=2) from error
    finally:
        csv.field_size_limit(limit)


def merge(rows: Sequence[Mapping[str, object]]) -> tuple[dict[str, object], tuple[str, ...]]:
    """What several rows say of one thing: (fields, names of those that they contradict each other in, set to None).

    Example:
        >>> merge([{"age": 60, "sex": "F"}, {"age": 61, "sex": "F"}])
        ({'age': None, 'sex': 'F'}, ('age',))
    """
    first = rows[0]
    differing = tuple(name for name in first if any(row[name] != first[name] for row in rows[1:]))
    return {name: None if name in differing else value for name, value in first.items()}, differing


def age_of(text: str, notes: list[str]) -> float | None:
    """Years, or None where the table has none; one that makes no sense is noted."""
    if is_absent(text):
        return None
    years = number_of(text)
    if years is None or not 0 <= years <= MAX_AGE:
        notes.append("the table's age makes no sense: left out")
        return None
    return years


def sex_of(text: str, notes: list[str]) -> str | None:
    """``F``, ``M``, or None where the table has neither; what it cannot mean is noted."""
    said = text.strip().casefold()
    if said not in _SEXES and said not in _NO_SEX and not is_absent(text):
        notes.append("the table's sex makes no sense: left out")
    return _SEXES.get(said)


def number_of(text: str) -> float | None:
    """A finite number, or None.

    Example:
        >>> [number_of(text) for text in ("1.0", " 7 ", "nan", "1_0", "two")]
        [1.0, 7.0, None, None, None]
    """
    try:
        # float() knows numerals and underscores that no table means.
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_absent(text: str) -> bool:
    """Whether a field says that it is not known."""
    return text.strip().casefold() in ABSENT


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if not raw.strip():
        raise UserError(f"{path}: empty; download it again", exit_code=2)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if raw.startswith(mark)), None) or _guess(path, raw)
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise UserError(f"{path}: damaged, it is no {encoding}; download it again", exit_code=2) from error
    log.warning("%s is not UTF-8: read as Latin-1", printable(path.name))
    return raw.decode("latin-1")


def _guess(path: Path, raw: bytes) -> str:
    """UTF-8, or UTF-16 where every second byte of the start is a NUL.

    Raises:
        UserError: There are other NULs, as in files that a crash or a full disk left behind.
    """
    start = raw[:2048]
    for first, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
        if len(start) > 3 and start[first::2].count(0) > 0.4 * len(start):
            return encoding
    if 0 in raw:
        raise UserError(f"{path}: damaged, it holds NUL bytes; download it again", exit_code=2)
    return "utf-8"


def _parse(path: Path, text: str, needed: Sequence[str], wanted: Sequence[str]) -> Table:
    if text[:4].lower() == "sep=":  # Excel's own line
        text = text.partition("\n")[2]
    delimiter = max(DELIMITERS, key=lambda each: len(set(needed) & set(_header(text, each))))
    # A last line that must come back alone tells whether a quote was left open.
    lines = itertools.chain(io.StringIO(text, newline=""), ("\n", f"{_END}\n"))
    reader = csv.reader(lines, delimiter=delimiter)
    found = _closed(path, reader)
    columns = tuple(name.strip() for name in next(found, []))
    _check(path, columns, needed, wanted)
    places = [(name, columns.index(name)) for name in (*needed, *wanted) if name in columns]
    absent = dict.fromkeys((name for name in wanted if name not in columns), "")
    rows: list[dict[str, str]] = []
    damaged, line = 0, reader.line_num
    for row in found:
        spans_lines, line = reader.line_num > line + 1, reader.line_num
        if any(row[len(columns) :]) or (spans_lines and len(row) != len(columns)):
            damaged += 1
        else:
            rows.append({name: row[place] if place < len(row) else "" for name, place in places} | absent)
    return Table(columns=columns, rows=rows, damaged=damaged)


def _closed(path: Path, reader: Any) -> Iterator[list[str]]:
    """The rows that are not blank, before the one that `_parse` put at the end.

    Raises:
        UserError: It never comes alone, because a quote was left open.
    """
    line = 0
    for row in reader:
        if row == [_END]:
            return
        if row and row[-1].rstrip("\n").endswith(_END):
            raise UserError(
                f"{path}: a quote that line {line + 1} opens is never closed; repair the table or download it again",
                exit_code=2,
            )
        if any(row):
            yield row
        line = reader.line_num


def _header(text: str, delimiter: str) -> list[str]:
    first = next((line for line in io.StringIO(text[:65536]) if line.strip()), "")
    return [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]


def _check(path: Path, columns: Sequence[str], needed: Sequence[str], wanted: Sequence[str]) -> None:
    lacking = [name for name in needed if name not in columns]
    if lacking:
        raise UserError(f"{path}: no column {', '.join(lacking)}; is it the data set's own table?", exit_code=2)
    twice = [name for name in (*needed, *wanted) if columns.count(name) > 1]
    if twice:
        raise UserError(f"{path}: the column {twice[0]} stands twice; keep one of them", exit_code=2)
