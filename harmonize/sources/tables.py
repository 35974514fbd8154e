"""The tables of the sources: read once, whoever wrote them, with typed fields and an account of what does not fit."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import WrongUse
from harmonize.limits import MAX_ROWS
from harmonize.terminal import printable

DELIMITERS = (",", ";", "\t", "|")
MAX_AGE = 120.0
"""Years; whoever is older is a slip of the pen."""

ABSENT = frozenset({"", "n/a", "na", "nan", "none", "null", "unknown", "?", "-"})
"""How tables say that they do not know, in lower case."""

AGE, SEX = ("age",), ("sex", "gender")
"""What columns of these are called, in lower case."""

_AGE = re.compile(
    r"(?P<above>>=?|≥)? ?(?P<number>[0-9]+([.,][0-9]+)?) ?(?P<or_more>\+)?(?:years?|y)?"
    # Of another number of digits the letter may be a sex: 63M.
    r"|(?P<parts>[0-9]{3})(?P<unit>[mwd])",
    re.IGNORECASE,
)
"""An age that is no plain number: DICOM's ``063Y`` and ``011M``, ``63,5``, ``89+`` and ``>89``."""

_A_YEAR = {"m": 12.0, "w": 365.25 / 7, "d": 365.25}
"""How many of each unit are one."""

_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
_NO_SEX = frozenset({"o", "other", "u"})
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
MAX_LINES = 1000
"""No field of a table has so many."""

_NO_TABLES = (
    (b"PK\x03\x04", "an Excel workbook; save it as CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook; save it as CSV"),
    (b"\x1f\x8b", "packed by gzip; unpack it"),
)
"""How files begin that are given for tables, and what they are."""

_END = "\x03end of table\x03"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of a table, as text.

    Attributes:
        columns: All that its header names.
        rows: By the columns that were asked for; "" where a row or the table has none.
        damaged: Rows that hold NUL bytes, have more fields than the header, or open a quote that is not closed.
    """

    columns: tuple[str, ...]
    rows: list[dict[str, str]] = field(default_factory=list)
    damaged: int = 0


class EmptyTable(WrongUse):
    """A table without a letter."""


class _Said(NamedTuple):
    """How a table is spoken of: what it is called, and what to do about one that is damaged, or is another one."""

    name: str
    damaged: str = "download it again"
    other: str = "is it the data set's own table?"

    @classmethod
    def of(cls, path: Path, option: str, needed: Sequence[str], *, own: bool) -> _Said:
        """Of a user's own table where that is said, or an option that it was given by."""
        if not option and not own:
            return cls(str(path))
        return cls(f"{option} {path}".strip(), "save it as CSV again", f"it needs {', '.join(needed)}")


def read_table(
    path: Path, needed: Sequence[str], wanted: Iterable[str] = (), *, option: str = "", own: bool = False
) -> Table:
    """Read a CSV table: UTF-8, UTF-16 or Latin-1, parted by commas, semicolons, tabs or bars, its lines by LF or CR.

    Args:
        path: The table.
        needed: Columns without which it is another table.
        wanted: Columns that may be absent.
        option: By which the user gave a table of their own, for what is said of it; "" for a data set's.
        own: It is a user's own, though no option named it.

    Raises:
        UserError: It is empty, a workbook, in no encoding, lacks a needed column, or has more rows than any such table.
    """
    said = _Said.of(path, option, needed, own=own)
    text = _text(path, said)
    with _any_width(said):
        return _parse(said, text, needed, tuple(wanted))


@contextmanager
def _any_width(said: _Said) -> Iterator[None]:
    """Fields may have any length; what is no table is the user's fault.

    Raises:
        UserError: It is none.
    """
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    except csv.Error as error:
        raise WrongUse(f"{said.name}: not a CSV table ({error}); {said.damaged}") from error
    finally:
        csv.field_size_limit(limit)


def columns_of(path: Path, *, option: str = "") -> tuple[str, ...]:
    """The columns of a user's own table, parted by what parts its header into most.

    Args:
        path: The table.
        option: By which the user gave it, if one did.

    Raises:
        UserError: As `read_table`.
    """
    said = _Said.of(path, option, (), own=True)
    text = _without_sep(_text(path, said))
    with _any_width(said):
        return max((tuple(_header(text, each)) for each in DELIMITERS), key=len)


def merge(rows: Sequence[Mapping[str, object]]) -> tuple[dict[str, object], tuple[str, ...]]:
    """What several rows say of one thing: (fields, names of those that they contradict each other in, set to None).

    Example:
        >>> merge([{"age": 60, "sex": "F"}, {"age": 61, "sex": "F"}])
        ({'age': None, 'sex': 'F'}, ('age',))
    """
    first = rows[0]
    differing = tuple(name for name in first if any(row[name] != first[name] for row in rows[1:]))
    return {name: None if name in differing else value for name, value in first.items()}, differing


def age_of(text: str) -> tuple[float | None, list[Decision]]:
    """Years, or None where the table has none or one that makes no sense; and what was decided about it.

    Example:
        >>> [age_of(text)[0] for text in ("63", "63,5", "063Y", "018M", "89+", ">89")]
        [63.0, 63.5, 63.0, 1.5, 89.0, 89.0]
    """
    if is_absent(text):
        return None, []
    years, is_bound = number_of(text), False
    found = _AGE.fullmatch(text.strip()) if years is None else None
    if found is not None:
        units = _A_YEAR[found["unit"].casefold()] if found["unit"] else 1.0
        years = round(float((found["parts"] or found["number"]).replace(",", ".")) / units, 2)
        is_bound = bool(found["above"] or found["or_more"])
    if years is None or not 0 <= years <= MAX_AGE:
        return None, [DecisionKind.AGE_SENSELESS()]
    return years, [DecisionKind.AGE_IS_BOUND()] if is_bound else []


def sex_of(text: str) -> tuple[str | None, list[Decision]]:
    """``F``, ``M``, or None where the table has neither; and what was decided where it can mean nothing."""
    said = text.strip().casefold()
    if said in _SEXES or said in _NO_SEX or is_absent(text):
        return _SEXES.get(said), []
    return None, [DecisionKind.SEX_SENSELESS()]


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


def _text(path: Path, said: _Said) -> str:
    raw = path.read_bytes()
    no_table = next((what for start, what in _NO_TABLES if raw.startswith(start)), None)
    if no_table:
        raise WrongUse(f"{said.name}: is {no_table}")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if raw.startswith(mark)), None) or _guess(raw)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise WrongUse(f"{said.name}: damaged, it is no {encoding}; {said.damaged}") from error
        log.warning("%s is not UTF-8: read as Latin-1", printable(path.name))
        text = raw.decode("latin-1")
    if not text.strip():
        raise EmptyTable(f"{said.name}: empty; {said.damaged}")
    return text


def _guess(raw: bytes) -> str:
    """UTF-8, or UTF-16 where every second byte of the start is a NUL."""
    start = raw[:2048]
    for first, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
        if len(start) > 3 and start[first::2].count(0) > 0.4 * len(start) > 4 * start[1 - first :: 2].count(0):
            return encoding
    return "utf-8"


def _parse(said: _Said, text: str, needed: Sequence[str], wanted: Sequence[str]) -> Table:
    text = _without_sep(text)
    delimiter = max(DELIMITERS, key=lambda each: len(set(needed) & set(_header(text, each))))
    found = _rows(text if text.endswith(("\n", "\r")) else f"{text}\n", delimiter)
    columns = tuple(name.strip() for name in next(found, None) or ())
    _check(said, columns, needed, wanted)
    places = [(name, columns.index(name)) for name in (*needed, *wanted) if name in columns]
    absent = dict.fromkeys((name for name in wanted if name not in columns), "")
    rows: list[dict[str, str]] = []
    damaged, has_nul = 0, "\0" in text
    for row in found:
        if row is None or any(row[len(columns) :]) or (has_nul and any("\0" in cell for cell in row)):
            damaged += 1
        elif len(rows) >= MAX_ROWS:
            raise WrongUse(f"{said.name}: more than {MAX_ROWS} rows; {said.other}")
        else:
            rows.append({name: row[place] if place < len(row) else "" for name, place in places} | absent)
    return Table(columns=columns, rows=rows, damaged=damaged)


def _without_sep(text: str) -> str:
    """The table without Excel's own line."""
    return text[len(_lines(text[:64])[0]) :] if text[:4].lower() == "sep=" else text


def _lines(text: str) -> list[str]:
    """The lines with their ends, which may be LF, CR or both: old programs for the Mac write CR alone."""
    return list(io.StringIO(text, newline=""))


def _rows(text: str, delimiter: str) -> Iterator[list[str] | None]:
    """The rows that are not blank; None for a line that opens a quote which is not closed where it should be.

    Such a quote swallows the lines after it up to the next one, or the rest of the table: what comes after the line
    is read again.
    """
    lines = _lines(text)
    width: int | None = None
    start = 0
    while start < len(lines):
        feed = _Feed(lines, start)
        start = len(lines)
        for row in csv.reader(feed, delimiter=delimiter):
            if row == [_END]:
                return
            is_open = bool(row) and row[-1].rstrip("\n").endswith(_END)
            own = lines[feed.start : feed.place]
            if is_open or (len(own) > 1 and width is not None and not _is_one_row(own, delimiter, width)):
                start = feed.start + 1
                yield None
                break
            feed.start = feed.place
            if any(row):
                width = width or len(row)
                yield row


def _is_one_row(lines: list[str], delimiter: str, width: int) -> bool:
    """Whether quotes close only where a field ends, as they do in a row that is meant to have several lines."""
    try:
        ((*row,),) = csv.reader(lines, delimiter=delimiter, strict=True)
    except (csv.Error, ValueError):
        return False
    return len(row) == width


class _Feed:
    """Lines for a csv reader; where a row runs over too many, or at the end, one that must come back alone.

    Args:
        lines: The table's.
        start: Index of the first; the caller sets it on after each row.
    """

    def __init__(self, lines: Sequence[str], start: int) -> None:
        self.lines, self.start, self.place = lines, start, start
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._ended:
            raise StopIteration
        if self.place == len(self.lines) or self.place - self.start >= MAX_LINES:
            self._ended = True
            return f"{_END}\n"
        self.place += 1
        return self.lines[self.place - 1]


def _header(text: str, delimiter: str) -> list[str]:
    first = next((line for line in _lines(text[:65536]) if line.strip()), "")
    return [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]


def _check(said: _Said, columns: Sequence[str], needed: Sequence[str], wanted: Sequence[str]) -> None:
    lacking = [name for name in needed if name not in columns]
    if lacking:
        raise WrongUse(f"{said.name}: no column {', '.join(lacking)}; {said.other}")
    twice = [name for name in (*needed, *wanted) if columns.count(name) > 1]
    if twice:
        raise WrongUse(f"{said.name}: the column {twice[0]} stands twice; keep one of them")
