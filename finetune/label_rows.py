"""Rows of a user's table of labels by the scans of a corpus that they name, and an account of those that say nothing.

A row names its scan by ``scan_id``, by its file, or a patient by ``subject`` (with ``session``, if the table has one),
as the corpus names them or as the raw data did. Ids that harmonize hashed are found where `HARMONIZE_SALT` is what it
was then. A row of a patient is about all scans of that patient. Where several columns name a scan, they have to agree.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.scan_names import Names
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.salt import VARIABLE
from harmonize.sources.tables import ABSENT, columns_of, number_of, read_table

SCAN_COLUMNS = ("scan_id", "scan", "series", "seriesinstanceuid")
FILE_COLUMNS = ("file", "file_name", "filename", "image_file_name", "image", "path")
SUBJECT_COLUMNS = ("subject", "subject_id", "participant_id", "patient", "patient_id", "patientid")
SESSION_COLUMNS = ("session", "session_id")
"""What columns of ids are called, in lower case."""

_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?")
_START = 65536

SHOWN = 5
"""Rows or scans that are named of each fault; the others are counted."""

MISSING = ABSENT - {"none"}
"""How a field says that it is not known; none is what a radiologist writes where nothing was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Rows that say nothing, or scans of which nothing is said.

    Attributes:
        what: And why.
        count: How many.
        named: The first of them: numbers of rows, from 1 and without the header, or ids of scans.
    """

    what: str
    count: int
    named: tuple[str, ...] = ()

    def line(self) -> str:
        """For a person.

        Example:
            >>> Fault(what="rows without a value", count=7, named=("2", "5")).line()
            '7 rows without a value (2, 5 and 5 more)'
        """
        if not self.named:
            return f"{self.count} {self.what}"
        more = self.count - len(self.named)
        return f"{self.count} {self.what} ({', '.join(self.named)}{f' and {more} more' if more else ''})"


@dataclass(slots=True)
class Account:
    """Names of rows and scans by fault."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    damaged: int = 0

    def add(self, what: str, named: Iterable[object]) -> None:
        """Note rows or scans of which something is to be said."""
        self.found[what] += map(str, named)

    def faults(self) -> tuple[Fault, ...]:
        """What there is to say, in order; damaged rows last."""
        kept = [(what, named) for what, named in self.found.items() if named]
        faults = tuple(Fault(what=what, count=len(named), named=tuple(named[:SHOWN])) for what, named in kept)
        return (*faults, Fault(what="damaged rows", count=self.damaged)) if self.damaged else faults


def of_corpus(
    corpus: Corpus, wanted: Sequence[str], naming: str, without: Sequence[str] = ()
) -> tuple[str, tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The table that a corpus has of its scans.

    Args:
        corpus: The corpus.
        wanted: Columns; none are needed where there is one alone.
        naming: How the caller's user names columns, for messages.
        without: Columns that are not meant, unless they are named.

    Returns:
        Its name, the columns, and their texts by scan.

    Raises:
        WrongUse: It has none, or not these columns.
    """
    table = corpus.table
    if not len(table):
        raise WrongUse(f"{corpus.path}: has no table of its own; give labels.csv with --labels")
    columns = asked([str(name) for name in table.columns], wanted, str(corpus.path), naming, without)
    scan_ids = map(str, table.index.get_level_values("scan_id"))
    rows = zip(*(table[name] for name in columns), strict=True)
    found = {
        scan_id: tuple("" if text is None else plain(str(text)) for text in row)
        for scan_id, row in zip(scan_ids, rows, strict=True)
    }
    return corpus.path.name, columns, found


def of_file(
    path: Path,
    corpus: Corpus,
    wanted: Sequence[str],
    account: Account,
    naming: str,
    without: Sequence[str] = (),
    *,
    as_then: bool = False,
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The table of a file.

    Args:
        path: Of a CSV table.
        corpus: Whose scans it is about.
        wanted: As for `of_corpus`, likewise `naming` and `without`.
        account: Takes the rows that say nothing.
        naming: See there.
        without: See there.
        as_then: Read it as the first version did that read such tables, for runs that began with what that made of it:
            no decimal commas, values that differ in letter case contradict each other, and of several columns that name
            scans the first counts.

    Returns:
        The columns, and their texts by scan.

    Raises:
        UserError: It is no such table, or is about none of the scans.
    """
    try:
        # A table's index often has no name.
        header = tuple(name for name in columns_of(path, option="--labels") if name)
        table = read_table(path, header, option="--labels")
        comma = not as_then and _has_decimal_commas(path, header)
    except OSError as error:
        raise WrongUse(f"--labels {path}: cannot be read ({error.strerror})") from error
    keys = {
        role: [name for name in header if name.casefold() in names]
        for role, names in (
            ("scan", (*SCAN_COLUMNS, *FILE_COLUMNS)),
            ("subject", SUBJECT_COLUMNS),
            ("session", SESSION_COLUMNS),
        )
    }
    ids = [name for names in keys.values() for name in names]
    if not keys["scan"] and not keys["subject"]:
        raise WrongUse(f"--labels {path}: no column names the scan; call it scan_id, file or subject")
    columns = asked([name for name in header if name not in ids], wanted, f"--labels {path}", naming, without)
    names = Names(corpus)
    said: dict[str, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
    unknown, at_odds = [], []
    for number, row in enumerate(table.rows, start=1):
        session = row[keys["session"][0]] if keys["session"] else ""
        each = [names.of_scan(row[key]) for key in keys["scan"] if row[key].strip()]
        each += [names.of_subject(row[key], session) for key in keys["subject"] if row[key].strip()]
        found = [scans for scans in each if scans]
        scans = sorted(set(found[0]).intersection(*found[1:])) if found else []
        if not found:
            unknown.append(number)
        elif not scans:
            at_odds.append(number)
        for scan_id in found[0] if found and as_then else scans:
            said[scan_id].append((number, tuple(plain(row[name], comma=comma) for name in columns)))
    if not said:
        if at_odds:
            raise UserError(
                f"--labels {path}: in {len(at_odds)} of its {len(table.rows)} rows the columns {', '.join(ids)} name "
                "different scans, and the others are about none; mend the columns, or leave all but one out"
            )
        raise UserError(
            f"--labels {path}: none of its {len(table.rows)} rows is about a scan of {corpus.path} (looked in "
            f"{', '.join(ids)}); use the ids of its metadata.parquet, or set {VARIABLE} to that of harmonize"
        )
    account.damaged = table.damaged
    account.add("rows that no scan of the corpus belongs to", unknown)
    counts = "of which the first one's counts, as when this run began" if as_then else "none of which counts"
    account.add(f"rows whose columns ({', '.join(ids)}) name different scans, {counts}", at_odds)
    account.add("scans whose id another scan has too", sorted(names.doubles & said.keys()))
    texts, repeated, contradicting = {}, set(), set()
    for scan_id, rows in sorted(said.items()):
        numbers = [number for number, _ in rows]
        different = {row if as_then else tuple(text.casefold() for text in row) for _, row in rows}
        if len(different) > 1:
            contradicting.update(numbers)
        elif scan_id not in names.doubles:
            repeated.update(numbers[1:])
            texts[scan_id] = rows[0][1]
    account.add("rows that say of a scan what another row says", sorted(repeated))
    account.add("rows that contradict each other about a scan, none of which counts", sorted(contradicting))
    return columns, texts


def asked(
    there: Sequence[str], wanted: Sequence[str], where: str, naming: str, without: Sequence[str]
) -> tuple[str, ...]:
    """The columns to learn.

    Args:
        there: All but those of ids.
        wanted: Those that were named.
        where: The table, for messages.
        naming: How the caller's user names columns.
        without: Columns that are not meant, unless they are named.

    Raises:
        WrongUse: One is not there, or which is meant has to be said.
    """
    lacking = [name for name in wanted if name not in there]
    if lacking:
        raise WrongUse(f"{where}: no column {', '.join(lacking)}; there is {', '.join(there)}")
    if wanted:
        return tuple(dict.fromkeys(wanted))
    there = [name for name in there if name not in without]
    if len(there) != 1:
        raise WrongUse(
            f"{where}: {len(there)} columns could be labels ({', '.join(there)}); name those to learn with "
            + naming.format(there[0] if there else "NAME")
        )
    return tuple(there)


def plain(text: str, *, comma: bool = False) -> str:
    """A field without spaces around it; numbers are written in one way.

    Args:
        text: The field.
        comma: Whether the table writes decimal commas.

    Example:
        >>> [plain(" AD "), plain("1.0"), plain("0.5"), plain("0,5"), plain("0,5", comma=True)]
        ['AD', '1', '0.5', '0,5', '0.5']
    """
    text = text.strip()
    if comma and _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    number = number_of(text)
    return str(int(number)) if number is not None and number.is_integer() else text


def _has_decimal_commas(path: Path, header: Sequence[str]) -> bool:
    """Whether a comma within a number is a decimal one: where semicolons part the fields, as where commas are."""
    with path.open("rb") as file:
        start = file.read(_START).replace(b"\0", b"").decode("latin-1")  # UTF-16, as far as it is ASCII
    lines = (line for line in io.StringIO(start) if line.strip() and line[:4].lower() != "sep=")
    line = next(lines, "")
    parts = {mark: sum(bool(name.strip()) for name in next(csv.reader([line], delimiter=mark), [])) for mark in ",;"}
    return parts[";"] == len(header) > parts[","]
