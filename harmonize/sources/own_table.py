"""A user's own table of scans: which row speaks of which image, and what it says of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import WrongUse
from harmonize.raw_tree import RawTree, printable, suffix_of
from harmonize.sources.own_columns import MOST_COLUMNS
from harmonize.sources.tables import AGE, SEX, age_of, columns_of, is_absent, merge, number_of, read_table, sex_of

BY_FILE = ("file", "filename", "file_name", "path", "image", "image_path", "scan")
BY_SUBJECT = ("participant_id", "subject", "subject_id", "patient", "patient_id", "case", "case_id")
SESSION, MODALITY = ("session", "session_id"), ("modality", "contrast")
IDS = (*BY_FILE, *BY_SUBJECT, *SESSION, *MODALITY)
TYPED = (*IDS, *AGE, *SEX)
"""Columns that are read for what they are; their letters may be upper case."""

Key = tuple[str, str]
"""What a row is about: a file and "", or a person and a session."""


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
        says_whose: Whether it says of each image whose it is.
        rows: By file, or by person and session ("" for all of them).
    """

    path: Path
    by_file: bool
    says_whose: bool
    rows: dict[Key, Row]


def read_own_table(path: Path, tree: RawTree, *, option: str = "") -> OwnTable:
    """Read a table that has a column of files or of people.

    Args:
        path: CSV or TSV.
        tree: Gets an account of what in it is of no use.
        option: By which it was given, if one did.

    Raises:
        EmptyTable: There is nothing in it.
        UserError: It has neither column, or cannot be read.
    """
    columns = columns_of(path, option=option)
    typed = {column: column.casefold() for column in columns if column.casefold() in TYPED}
    key = _column(typed, BY_FILE) or _column(typed, BY_SUBJECT)
    if key is None:
        raise WrongUse(
            f"{option} {path}".strip() + ": no column says which scan a row is about; name one of them file (path or "
            "name of the image) or subject"
        )
    others = [column for column in dict.fromkeys(columns) if column and column != key]
    table = read_table(path, (key,), others, option=option, own=True)
    what = f"rows of {printable(path.name)}"
    tree.count(what, "damaged", table.damaged)
    by_file = typed[key] in BY_FILE
    subject = None if not by_file else _column(typed, BY_SUBJECT)
    session = _column(typed, SESSION)
    found: dict[Key, list[Row]] = {}
    kept = [column for column in others if typed.get(column, column) not in IDS][:MOST_COLUMNS]
    for row in table.rows:
        said = row[key].strip()
        if is_absent(said):
            tree.count(what, "they name no scan")
            continue
        when = row[session].strip() if session else ""
        place = (_file_key(said), "") if by_file else (composed(bare(said, "sub-")), composed(bare(when, "ses-")))
        found.setdefault(place, []).append(_typed(row, typed, kept, subject, session))
    tree.count(what, "the same scan stands in an earlier row", sum(len(rows) - 1 for rows in found.values()))
    return OwnTable(
        path=path,
        by_file=by_file,
        says_whose=not by_file or subject is not None,
        rows={place: _merged(rows) for place, rows in found.items()},
    )


def _column(typed: Mapping[str, str], names: Sequence[str]) -> str | None:
    """The first column of a table that goes by one of these names."""
    return next((column for name in names for column, low in typed.items() if low == name), None)


def _typed(
    row: Mapping[str, str], typed: Mapping[str, str], kept: Sequence[str], subject: str | None, session: str | None
) -> Row:
    text = {names: row[column].strip() if (column := _column(typed, names)) else "" for names in (MODALITY, AGE, SEX)}
    (age, notes), (sex, odd_sex) = age_of(text[AGE]), sex_of(text[SEX])
    notes += odd_sex
    values = {}
    for column in kept:
        values[column], decided = _told(typed.get(column, ""), row[column].strip())
        notes += decided
    return Row(
        subject=row[subject].strip() if subject else "",
        session=row[session].strip() if session else "",
        modality="" if is_absent(text[MODALITY]) else text[MODALITY],
        age=age,
        sex=sex,
        values=values,
        notes=tuple(dict.fromkeys(notes)),
    )


def _told(name: str, text: str) -> tuple[str, list[Decision]]:
    """What a column of the corpus's own table says of an image, and what was decided about it.

    An age may be what somebody wants to learn, too: as a number. What is no age or sex is left out of every such
    column, also of a second one: nobody looks at these for what tells people apart.
    """
    if name in AGE:
        age, decided = age_of(text)
        return "" if age is None else text if number_of(text) is not None else f"{age:g}", decided
    if name in SEX:
        sex, decided = sex_of(text)
        return "" if sex is None else text, decided
    return text, []


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


def bare(text: str, prefix: str) -> str:
    """A name without the prefix of BIDS."""
    return text.removeprefix(prefix)


def composed(text: str) -> str:
    """A text whose letters are whole: macOS takes the accents of files' names from their letters."""
    return unicodedata.normalize("NFC", text)


def _file_key(text: str) -> str:
    """A path of the table as images are looked up by: with slashes, without a leading ``./`` and suffix."""
    path = composed(text).replace("\\", "/").removeprefix("./")
    return path[: len(path) - len(suffix_of(path.rpartition("/")[2]))]
