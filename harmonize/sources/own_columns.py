"""Which columns of a user's own table may stand in a corpus.

A corpus is made to be passed on, so no column that names or describes a single person gets into it: not by its name
(birth dates, hospital numbers), nor by its values (dates, names, long numbers that hardly repeat, texts that hardly
repeat).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from harmonize.raw_tree import printable
from harmonize.sources.personal_words import (
    holds_names,
    is_date,
    is_long_number,
    is_name,
    measured,
    names_people,
    words_of,
)
from harmonize.sources.tables import AGE, SEX, is_absent

MOST_COLUMNS, LONGEST = 256, 64
"""Of a table that are kept, and letters of a value or a column's name."""

TYPED_BY_NAME = frozenset((*AGE, *SEX))
"""Columns that are read for what they are: whoever reads them leaves out all else (`own_table`)."""

SILENT = frozenset({"", "n/a", "nan"})
"""What says that a cell of somebody's own columns is not known, in lower case."""

MISSING_OF_R = "NA"

_HALF = 0.5
"""A column names people where it has more different values than half of the people, and more than half of these values
are one person's alone. So much of a column makes it one of names, too."""

_MOST_NUMBERS = 0.8
"""Of a column's values that are long numbers, where it is one of them."""

_OF_ONE_PERSON, _FEW_TEXTS = 4, 5
"""Images of one person, as a rule, and fewest texts of a column that is looked at so: where nothing says whose images
are, as many images may share each name of somebody, and a class has more."""

HOLDS_NAMES, REPEATS_NAMES = "it holds names", "it repeats names that another column holds"

Rows = Sequence[tuple[str, Mapping[str, str]]]

log = logging.getLogger(__name__)


def impersonal(rows: Rows, where: str, *, told: bool = True) -> list[dict[str, str]]:
    """The values of images' rows without columns that tell people apart, which are named in a warning.

    Args:
        rows: Whose each image is, and its values by column.
        where: Name of the table, for the warning.
        told: Whether the table says whose; else the images' names do, which may be wrong.
    """
    columns = dict.fromkeys(column for _, values in rows for column in values)
    faults = {column: fault for column in columns if (fault := personal(column, rows, told=told))}
    named = [column for column, fault in faults.items() if fault == HOLDS_NAMES or holds_names(column)]
    names = frozenset[str]().union(*(words_of(values.get(column, "")) for _, values in rows for column in named))
    faults |= {
        column: REPEATS_NAMES for column in columns if column not in faults and names and _repeats(column, rows, names)
    }
    if faults:
        # The name of a column may be somebody's, too.
        hidden = {column for column, fault in faults.items() if fault == REPEATS_NAMES and words_of(column) & names}
        called = {column: "one" if column in hidden else printable(column)[:LONGEST] for column in faults}
        shown = "; ".join(f"{called[column]} ({fault})" for column, fault in faults.items())
        log.warning("%s: columns that stay out of the corpus: %s", printable(where), shown)
    kept = {column: _silent(column, rows) for column in columns if column not in faults}
    cells = [{column: value for column, value in values.items() if column in kept} for _, values in rows]
    found = [{column: value for column, value in row.items() if value not in kept[column]} for row in cells]
    # What of an age or sex is left out is a decision of its own.
    free = {column for column in kept if column.casefold() not in TYPED_BY_NAME}
    silent = sum(len((row.keys() - said.keys()) & free) for row, said in zip(cells, found, strict=True))
    if silent:
        log.warning("%s: cells that say nothing (empty, n/a, nan or NA): %d", printable(where), silent)
    return found


def personal(column: str, rows: Rows, *, told: bool = True) -> str:
    """Why a column must stay out of a corpus; empty where it may be kept.

    Args:
        column: Its name.
        rows: Whose each image is, and its values by column.
        told: Whether that is known; else images that seem several people's may be one's.

    Example:
        >>> rows = [(who, {"grade": grade}) for who, grade in (("a", "low"), ("b", "high"), ("c", "low"), ("d", "low"))]
        >>> personal("grade", rows), personal("PatientName", rows)
        ('', 'its name says that it tells people apart')
        >>> personal("grade", rows[:2])
        'nearly every person has another text'
    """
    if column.casefold() in TYPED_BY_NAME:
        return ""
    said = [(who, value) for who, values in rows if not is_absent(value := values.get(column, ""))]
    texts = dict.fromkeys(value for _, value in said)
    of_numbers = all(measured(text) is not None for text in texts)
    if names_people(column, of_numbers=of_numbers):
        return "its name says that it tells people apart"
    if len(column) > LONGEST or not column.isprintable():
        return "its name is too long, or no text"
    if any(is_date(text) for text in texts):
        return "it holds dates"
    if any(len(text) > LONGEST or not text.isprintable() for text in texts):
        return "it holds long texts"
    if sum(map(is_name, texts)) > _HALF * len(texts):
        return HOLDS_NAMES
    long = sum(map(is_long_number, texts)) > _MOST_NUMBERS * len(texts)
    if of_numbers and not long:
        return ""
    what = "number of many digits" if of_numbers else "text"
    if _is_own(said):
        return f"nearly every person has another {what}"
    if not told and _may_be_own(rows, said, fewest=1 if of_numbers else _FEW_TEXTS):
        return f"so few images share each {what} as one person may have; a column subject would say whose they are"
    return ""


def _repeats(column: str, rows: Rows, names: frozenset[str]) -> bool:
    """Whether somebody's name stands in a column too: is its name, or stands in a text that a few images share.

    What many images share is a class, whatever somebody is called: White, Long.
    """
    counts = Counter(values[column] for _, values in rows if column in values)
    own = words_of(column)
    return (len(own) > 0 and own <= names) or any(
        count <= _OF_ONE_PERSON and names & words_of(text) for text, count in counts.items()
    )


def _silent(column: str, rows: Rows) -> frozenset[str]:
    """The texts of a column that say nothing.

    Words such as none and - may be a class (no haemorrhage, no contrast agent). NA is what R writes where it knows
    nothing, unless it is what stands against the only other class.

    Example:
        >>> rows = [("a", {"group": "NA", "grade": "NA"}), ("b", {"group": "AD", "grade": "2"})]
        >>> sorted(_silent("group", rows)), sorted(_silent("grade", rows))
        ([], ['NA'])
    """
    texts = {values[column] for _, values in rows if column in values}
    silent = {text for text in texts if text.casefold() in SILENT}
    others = texts - silent - {MISSING_OF_R}
    is_class = len(others) == 1 and all(measured(text) is None for text in others)
    return frozenset(silent if is_class else silent | (texts & {MISSING_OF_R}))


def _is_own(said: Sequence[tuple[str, str]]) -> bool:
    """Whether values are people's own, by the people that they are said of."""
    owners: dict[str, set[str]] = {}
    for who, value in said:
        owners.setdefault(value, set()).add(who)
    alone = sum(len(whose) == 1 for whose in owners.values())
    return len(owners) > _HALF * len({who for who, _ in said}) and alone > _HALF * len(owners)


def _may_be_own(rows: Rows, said: Sequence[tuple[str, str]], fewest: int) -> bool:
    """Whether values could be people's own where most images count as another person's, since their names differ."""
    counts = Counter(value for _, value in said).values()
    alone = len({who for who, _ in rows}) > _HALF * len(rows)
    return alone and len(counts) >= fewest and median(counts) <= _OF_ONE_PERSON
