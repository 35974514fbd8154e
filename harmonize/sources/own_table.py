"""A user's own table of scans: which rows speak of which image, and what of them may stand in a corpus.

A corpus is made to be passed on, so no column that names or describes a single person gets into it: not by its name
(birth dates, hospital numbers), nor by its values (dates, long numbers that hardly repeat, texts that hardly repeat).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import WrongUse
from harmonize.raw_tree import RawTree, printable, suffix_of
from harmonize.sources.tables import age_of, columns_of, is_absent, merge, number_of, read_table, sex_of

BY_FILE = ("file", "filename", "file_name", "path", "image", "image_path", "scan")
BY_SUBJECT = ("participant_id", "subject", "subject_id", "patient", "patient_id", "case", "case_id")
SESSION, MODALITY, AGE, SEX = ("session", "session_id"), ("modality", "contrast"), ("age",), ("sex", "gender")
IDS = (*BY_FILE, *BY_SUBJECT, *SESSION, *MODALITY)
TYPED = (*IDS, *AGE, *SEX)
"""Columns that are read for what they are; their letters may be upper case."""

MOST_COLUMNS, LONGEST = 256, 64
"""Of a table that are kept, and letters of a value or a column's name."""

PERSONAL = frozenset({
    "name", "names", "firstname", "lastname", "surname", "forename", "initials", "birth", "birthday",
    "birthdate", "birthyear", "dob", "yob", "mrn", "ssn", "phone", "telephone", "fax", "email", "mail",
    "address", "street", "zip", "zipcode", "postcode", "postal", "city", "town", "accession", "uid", "uuid",
    "guid", "date", "dates", "datetime", "timestamp", "insurance", "passport", "physician", "doctor",
    "operator", "comment", "comments", "note", "notes", "remark", "remarks", "patientid", "patientname",
})  # fmt: skip
"""Words in a column's name that say that it tells one person from the others, or is free text."""

_WHOSE = frozenset({
    "patient", "subject", "participant", "person", "hospital", "study", "case", "record", "series", "image",
    "scan", "medical",
})  # fmt: skip
_NUMBERED = frozenset({
    "id", "ids", "identifier", "no", "nr", "num", "number", "code", "key", "uid",
})  # fmt: skip
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*|(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])\d*")
_LONG_NUMBER = 5
"""Digits of a number that may be a hospital's."""

_HALF = 0.5
"""A column names people where it has more different values than half of the people, and more than half of these values
are one person's alone."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the table says of an image.

    Attributes:
        subject: Whose image it is, where the table has a column for that beside the one of files.
        session: Likewise.
        modality: As the table has it, "" where it says nothing.
        age: Years.
        sex: ``F`` or ``M``.
        values: All columns but those of ids and contrasts, as text.
        notes: What was decided.
    """

    subject: str = ""
    session: str = ""
    modality: str = ""
    age: float | None = None
    sex: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[Decision, ...] = ()


@dataclass(slots=True, kw_only=True)
class OwnTable:
    """A table with a row an image, or a row a person.

    Attributes:
        path: The file.
        by_file: Whether its rows name files; else people.
        rows: By file, or by person and session ("" for all of them).
        used: Keys of rows that an image was found for.
    """

    path: Path
    by_file: bool
    rows: dict[tuple[str, str], Row]
    used: set[tuple[str, str]] = field(default_factory=set)

    def of_file(self, names: Sequence[str]) -> Row:
        """The row of an image by the first of its names that the table has."""
        return self._first((name, "") for name in names)

    def of_subject(self, subject: str, session: str | None) -> Row:
        """The row of a person's session, or of the person."""
        person, when = _bare(subject, "sub-"), _bare(session or "", "ses-")
        return self._first(((person, when), (person, "")))

    def _first(self, keys: Iterable[tuple[str, str]]) -> Row:
        for key in keys:
            if key in self.rows:
                self.used.add(key)
                return self.rows[key]
        return Row()


def read_own_table(path: Path, tree: RawTree) -> OwnTable:
    """Read a table that has a column of files or of people.

    Args:
        path: CSV or TSV.
        tree: Gets an account of what in it is of no use.

    Raises:
        UserError: It has neither column, or cannot be read.
    """
    columns = columns_of(path)
    typed = {column: column.casefold() for column in columns if column.casefold() in TYPED}
    key = _column(typed, BY_FILE) or _column(typed, BY_SUBJECT)
    if key is None:
        raise WrongUse(
            f"{path}: no column says which scan a row is about; name one of them file (path or name of the image) or "
            "subject"
        )
    others = [column for column in dict.fromkeys(columns) if column and column != key]
    table = read_table(path, (key,), others)
    what = f"rows of {printable(path.name)}"
    tree.count(what, "damaged", table.damaged)
    by_file = typed[key] in BY_FILE
    subject = None if not by_file else _column(typed, BY_SUBJECT)
    session = _column(typed, SESSION)
    found: dict[tuple[str, str], list[Row]] = {}
    kept = [column for column in others if typed.get(column, column) not in IDS][:MOST_COLUMNS]
    for row in table.rows:
        said = row[key].strip()
        if is_absent(said):
            tree.count(what, "they name no scan")
            continue
        when = row[session].strip() if session else ""
        place = (_file_key(said), "") if by_file else (_bare(said, "sub-"), _bare(when, "ses-"))
        found.setdefault(place, []).append(_typed(row, typed, kept, subject, session))
    tree.count(what, "the same scan stands in an earlier row", sum(len(rows) - 1 for rows in found.values()))
    return OwnTable(path=path, by_file=by_file, rows={place: _merged(rows) for place, rows in found.items()})


def impersonal(rows: Sequence[tuple[str, Mapping[str, str]]], where: str) -> list[dict[str, str]]:
    """The values of images' rows without columns that tell people apart, which are named in a warning.

    Args:
        rows: Whose each image is, and its values by column.
        where: Name of the table, for the warning.
    """
    columns = dict.fromkeys(column for _, values in rows for column in values)
    faults = {column: fault for column in columns if (fault := personal(column, rows))}
    if faults:
        shown = "; ".join(f"{printable(column)[:LONGEST]} ({fault})" for column, fault in faults.items())
        log.warning("%s: columns that stay out of the corpus: %s", printable(where), shown)
    return [
        {column: value for column, value in values.items() if column not in faults and not is_absent(value)}
        for _, values in rows
    ]


def personal(column: str, rows: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """Why a column must stay out of a corpus; empty where it may be kept.

    Example:
        >>> rows = [(who, {"grade": grade}) for who, grade in (("a", "low"), ("b", "high"), ("c", "low"), ("d", "low"))]
        >>> personal("grade", rows), personal("PatientName", rows)
        ('', 'its name says that it tells people apart')
        >>> personal("grade", rows[:2])
        'nearly every person has another text'
    """
    if column.casefold() in (*AGE, *SEX):
        return ""
    words = {word.casefold() for word in _WORDS.findall(column)}
    if words & PERSONAL or (words & _WHOSE and words & _NUMBERED):
        return "its name says that it tells people apart"
    if len(column) > LONGEST or not column.isprintable():
        return "its name is too long, or no text"
    people: dict[str, set[str]] = {}
    for subject, values in rows:
        if not is_absent(values.get(column, "")):
            people.setdefault(values[column], set()).add(subject)
    if any(_DATE.fullmatch(value) for value in people):
        return "it holds dates"
    if any(len(value) > LONGEST or not value.isprintable() for value in people):
        return "it holds long texts"
    numbers = [number_of(value) for value in people]
    count = len(set().union(*people.values()))
    alone = sum(len(whose) == 1 for whose in people.values())
    many = len(people) > _HALF * count and alone > _HALF * len(people)
    if None in numbers:
        return "nearly every person has another text" if many else ""
    # Measurements differ in their number of digits; hospital numbers do not.
    long = all(value.isdecimal() and len(value) >= _LONG_NUMBER for value in people)
    return (
        "nearly every person has another number of many digits"
        if long and many and len(set(map(len, people))) == 1
        else ""
    )


def _column(typed: Mapping[str, str], names: Sequence[str]) -> str | None:
    """The first column of a table that goes by one of these names."""
    return next((column for name in names for column, low in typed.items() if low == name), None)


def _typed(
    row: Mapping[str, str], typed: Mapping[str, str], kept: Sequence[str], subject: str | None, session: str | None
) -> Row:
    text = {names: row[column].strip() if (column := _column(typed, names)) else "" for names in (MODALITY, AGE, SEX)}
    (age, odd_age), (sex, odd_sex) = age_of(text[AGE]), sex_of(text[SEX])
    senseless = {_column(typed, names) for names, value in ((AGE, age), (SEX, sex)) if value is None}
    return Row(
        subject=row[subject].strip() if subject else "",
        session=row[session].strip() if session else "",
        modality="" if is_absent(text[MODALITY]) else text[MODALITY],
        age=age,
        sex=sex,
        # An age may be what somebody wants to learn, too; one that makes no sense is none there either.
        values={column: "" if column in senseless else row[column].strip() for column in kept},
        notes=(*odd_age, *odd_sex),
    )


def _merged(rows: Sequence[Row]) -> Row:
    """What several rows say of one scan, without what they contradict each other in."""
    if len(rows) == 1:
        return rows[0]
    first = rows[0]
    said, differing = merge([{name: getattr(row, name) for name in ("subject", "session", "modality", "age", "sex")}
                             for row in rows])  # fmt: skip
    values, odd = merge([row.values for row in rows])
    notes = [note for row in rows for note in row.notes]
    notes += [DecisionKind.TABLE_CONTRADICTS(name=name) for name in differing]
    if odd:
        notes.append(DecisionKind.TABLE_CONTRADICTS(name=f"values of {len(odd)} columns"))
    return Row(
        subject=cast(str, said["subject"] or first.subject),
        session=cast(str, said["session"] or first.session),
        modality=cast(str, said["modality"] or ""),
        age=cast(float | None, said["age"]),
        sex=cast(str | None, said["sex"]),
        values={name: cast(str, value) for name, value in values.items() if value is not None},
        notes=tuple(dict.fromkeys(notes)),
    )


def _bare(text: str, prefix: str) -> str:
    return text.removeprefix(prefix)


def _file_key(text: str) -> str:
    """A path of the table as images are looked up by: with slashes, without a leading ``./`` and suffix."""
    path = text.replace("\\", "/").removeprefix("./")
    return path[: len(path) - len(suffix_of(path.rpartition("/")[2]))]
