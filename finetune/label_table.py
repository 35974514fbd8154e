"""Labels of a user's own table: what it says of the scans of a corpus, and an account of every row that says nothing.

A row names its scan by ``scan_id``, by its file, or a patient by ``subject`` (with ``session``, if the table has one),
as the corpus names them or as the raw data did. Ids that harmonize hashed are found where `HARMONIZE_SALT` is what it
was then. A row of a patient is about all scans of that patient.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune.scan_names import Names
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.salt import VARIABLE
from harmonize.sources.tables import ABSENT, columns_of, number_of, read_table

Question = Literal["auto", "classification", "regression"]
Kind = Literal["binary", "multiclass", "multilabel", "regression"]

SCAN_COLUMNS = ("scan_id", "scan", "series", "seriesinstanceuid")
FILE_COLUMNS = ("file", "file_name", "filename", "image_file_name", "image", "path")
SUBJECT_COLUMNS = ("subject", "subject_id", "participant_id", "patient", "patient_id", "patientid")
SESSION_COLUMNS = ("session", "session_id")
"""What columns of ids are called, in lower case."""

NO = frozenset({"0", "no", "n", "false", "negative", "absent"})
YES = frozenset({"1", "yes", "y", "true", "positive", "present"})

MOST_CLASSES = 100
FEW_VALUES = 10
"""A column of more whole numbers than this is a quantity, where nobody says what it is."""

SHOWN = 5
"""Rows or scans that are named of each fault; the others are counted."""

MISSING = ABSENT - {"none"}
"""How a field says that it is not known; none is what a radiologist writes where nothing was found."""

TAKEN = frozenset({"scan_id", "subject", "modality", "fold", "target", "series", "folder", "decisions", "warnings"})
"""Columns that tables of predictions have already."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What a table says of the scans of a corpus.

    Attributes:
        name: Of the table, for messages.
        kind: ``binary`` (one label, 0 or 1), ``multiclass`` (one label of several is 1), ``multilabel`` (each is 0 or
            1) or ``regression`` (numbers).
        columns: Of the table.
        labels: What is asked: columns, or a column and one of its classes (``diagnosis: AD``).
        values: Of each scan that has some, by its id, in the order of `labels`.
        faults: Of rows and scans.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]
    faults: tuple[Fault, ...]

    @property
    def sha256(self) -> str:
        """Of what is said, however it is written down."""
        said = [self.kind, self.labels, sorted(self.values.items())]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def lines(self) -> list[str]:
        """For a person: what is asked, and each fault."""
        asked = f"{self.name}: {self.kind}: {', '.join(self.labels)}; {len(self.values)} scans with a label"
        return [asked, *(f"{self.name}: {fault.line()}" for fault in self.faults)]


@dataclass(slots=True)
class _Account:
    """Names of rows and scans by fault."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    damaged: int = 0

    def add(self, what: str, named: Iterable[object]) -> None:
        self.found[what] += map(str, named)

    def faults(self) -> tuple[Fault, ...]:
        kept = [(what, named) for what, named in self.found.items() if named]
        faults = tuple(Fault(what=what, count=len(named), named=tuple(named[:SHOWN])) for what, named in kept)
        return (*faults, Fault(what="damaged rows", count=self.damaged)) if self.damaged else faults


def read_labels(
    path: Path | None,
    corpus: Corpus,
    *,
    columns: Sequence[str] = (),
    question: Question = "auto",
    positive: str = "",
    naming: str = "--task.columns '[{}]'",
    without: Sequence[str] = (),
) -> Labels:
    """Read a table of labels.

    Args:
        path: A CSV table; None takes the table that the corpus itself has.
        corpus: Whose scans it is about.
        columns: Those to learn; none are needed where there is one alone beside those of ids.
        question: What the columns are; ``auto`` looks at their values: two of them are a binary label, text or a few
            whole numbers are classes, other numbers are quantities, several columns of 0 and 1 are labels each.
        positive: Of a column with two values, the one that counts as 1; empty: that which means yes, else the second
            of the two in their order.
        naming: How the caller's user names columns, for messages.
        without: Columns that are no labels, unless they are named.

    Raises:
        WrongUse: It is no such table, or its values cannot be what the question says.
        UserError: No row is about a scan of the corpus.
    """
    account = _Account()
    if path is None:
        name, columns, texts = _of_corpus(corpus, columns, naming, without)
    else:
        name = path.name
        columns, texts = _of_file(path, corpus, columns, account, naming, without)
    for column in columns:
        if column.strip().casefold() in TAKEN or column.startswith("target: "):
            raise WrongUse(f"{name}: a label cannot be called {column!r}; rename the column")
    empty = [scan_id for scan_id, row in texts.items() if any(text.strip().casefold() in MISSING for text in row)]
    account.add("scans whose row lacks a value", empty)
    texts = {scan_id: row for scan_id, row in texts.items() if scan_id not in set(empty)}
    account.add("scans of the corpus without a row", sorted(set(corpus.scans["scan_id"]) - texts.keys() - set(empty)))
    if not texts:
        raise UserError(f"{name}: no scan of {corpus.path} has a value in {', '.join(columns)}")
    kind = _kind_of(texts, columns, question, name)
    if kind == "regression":
        numbers = {scan_id: [number_of(text.strip()) for text in row] for scan_id, row in texts.items()}
        values = {
            scan_id: tuple(value for value in row if value is not None)
            for scan_id, row in numbers.items()
            if None not in row
        }
        account.add("scans whose value is no number", sorted(numbers.keys() - values.keys()))
        if not values:
            raise WrongUse(f"{name}: no value of {', '.join(columns)} is a number; ask for classification")
        labels = tuple(columns)
    else:
        labels, values = _classified(texts, columns, kind, positive, name)
    return Labels(name=name, kind=kind, columns=tuple(columns), labels=labels, values=values, faults=account.faults())


def read_column(path: Path | None, corpus: Corpus, column: str, *, naming: str) -> dict[str, str]:
    """What a column of a table says of the scans of a corpus, by their ids, where it says something.

    Args:
        path: A CSV table; None takes the table that the corpus itself has.
        corpus: Whose scans it is about.
        column: Of the table.
        naming: How the caller's user names columns, for messages.
    """
    own = (column,)
    texts = _of_corpus(corpus, own, naming)[2] if path is None else _of_file(path, corpus, own, _Account(), naming)[1]
    return {scan_id: text for scan_id, (text,) in texts.items() if text.casefold() not in MISSING}


def _of_corpus(
    corpus: Corpus, wanted: Sequence[str], naming: str, without: Sequence[str] = ()
) -> tuple[str, tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The table that a corpus has of its scans: name, columns, texts by scan."""
    table = corpus.table
    if not len(table):
        raise WrongUse(f"{corpus.path}: has no table of its own; give labels.csv with --labels")
    columns = _asked([str(name) for name in table.columns], wanted, str(corpus.path), naming, without)
    scan_ids = map(str, table.index.get_level_values("scan_id"))
    rows = zip(*(table[name] for name in columns), strict=True)
    found = {
        scan_id: tuple("" if text is None else _plain(str(text)) for text in row)
        for scan_id, row in zip(scan_ids, rows, strict=True)
    }
    return corpus.path.name, columns, found


def _of_file(
    path: Path, corpus: Corpus, wanted: Sequence[str], account: _Account, naming: str, without: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Columns, and their texts by scan."""
    try:
        header = columns_of(path)
        table = read_table(path, header, own=True)
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
    columns = _asked([name for name in header if name not in ids], wanted, f"--labels {path}", naming, without)
    names = Names(corpus)
    said: dict[str, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
    unknown = []
    for number, row in enumerate(table.rows, start=1):
        scans = next((found for key in keys["scan"] if (found := names.of_scan(row[key]))), ())
        if not scans and keys["subject"]:
            session = row[keys["session"][0]] if keys["session"] else ""
            scans = next((found for key in keys["subject"] if (found := names.of_subject(row[key], session))), ())
        if not scans:
            unknown.append(number)
        for scan_id in scans:
            said[scan_id].append((number, tuple(_plain(row[name]) for name in columns)))
    if not said:
        raise UserError(
            f"--labels {path}: none of its {len(table.rows)} rows is about a scan of {corpus.path} (looked in "
            f"{', '.join(ids)}); use the ids of its metadata.parquet, or set {VARIABLE} to that of harmonize"
        )
    account.damaged = table.damaged
    account.add("rows that no scan of the corpus belongs to", unknown)
    account.add("scans whose id another scan has too", sorted(names.doubles & said.keys()))
    texts, repeated, contradicting = {}, set(), set()
    for scan_id, rows in sorted(said.items()):
        numbers, different = [number for number, _ in rows], {row for _, row in rows}
        if len(different) > 1:
            contradicting.update(numbers)
        elif scan_id not in names.doubles:
            repeated.update(numbers[1:])
            texts[scan_id] = rows[0][1]
    account.add("rows that say of a scan what another row says", sorted(repeated))
    account.add("rows that contradict each other about a scan, none of which counts", sorted(contradicting))
    return columns, texts


def _asked(
    there: Sequence[str], wanted: Sequence[str], where: str, naming: str, without: Sequence[str]
) -> tuple[str, ...]:
    """The columns to learn."""
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


def _plain(text: str) -> str:
    """A field without spaces around it; whole numbers are written in one way.

    Example:
        >>> [_plain(" AD "), _plain("1.0"), _plain("0.5")]
        ['AD', '1', '0.5']
    """
    number = number_of(text.strip())
    return str(int(number)) if number is not None and number.is_integer() else text.strip()


def _kind_of(texts: Mapping[str, tuple[str, ...]], columns: Sequence[str], question: Question, name: str) -> Kind:
    values = [sorted({row[place] for row in texts.values()}) for place in range(len(columns))]
    if question == "regression":
        return "regression"
    if len(columns) > 1:
        if all({text.casefold() for text in each} <= NO | YES for each in values):
            return "multilabel"
        numbers = all(number_of(text) is not None for each in values for text in each)
        if question == "auto" and numbers:
            return "regression"
        raise WrongUse(f"{name}: several columns are labels of 0 and 1 each; {', '.join(columns)} have other values")
    (own,) = values
    numbers_of = [number_of(text) for text in own]
    quantity = all(n is not None for n in numbers_of) and (
        len(own) > FEW_VALUES or any(n is not None and not n.is_integer() for n in numbers_of)
    )
    if question == "auto" and quantity:
        return "regression"
    if len(own) < 2:
        raise WrongUse(f"{name}: all scans of the corpus have the same {columns[0]}; there is nothing to learn")
    if len(own) > MOST_CLASSES:
        raise WrongUse(f"{name}: {columns[0]} has {len(own)} different values; ask for regression, or for fewer")
    return "binary" if len(own) == 2 else "multiclass"


def _classified(
    texts: Mapping[str, tuple[str, ...]], columns: Sequence[str], kind: Kind, positive: str, name: str
) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Names of labels, and 0 or 1 of each by scan."""
    if kind == "multilabel":
        found = {scan_id: tuple(float(text.casefold() in YES) for text in row) for scan_id, row in texts.items()}
        return tuple(columns), found
    (column,) = columns
    classes = sorted({row[0] for row in texts.values()}, key=_order)
    if positive and (positive not in classes or kind != "binary"):
        raise WrongUse(f"task.positive {positive!r}: {column} of {name} has {', '.join(classes)}")
    if kind == "multiclass":
        return tuple(f"{column}: {one}" for one in classes), {
            scan_id: tuple(float(one == row[0]) for one in classes) for scan_id, row in texts.items()
        }
    plain = classes[0].casefold() in NO | YES and classes[1].casefold() in NO | YES
    chosen = positive or next((one for one in classes if plain and one.casefold() in YES), classes[1])
    label = column if plain and not positive else f"{column}: {chosen}"
    return (label,), {scan_id: (float(row[0] == chosen),) for scan_id, row in texts.items()}


def _order(text: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words."""
    number = number_of(text)
    return number is None, number or 0.0, text
