"""Labels of a user's own table: what it asks of the scans of a corpus, and what it says of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from finetune.label_rows import MISSING, Account, Fault, of_corpus, of_file
from finetune.label_spelling import NO, YES, one_spelling
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.sources.tables import number_of

Question = Literal["auto", "classification", "regression"]
Kind = Literal["binary", "multiclass", "multilabel", "regression"]

MOST_CLASSES = 100
FEW_VALUES = 10
"""A column of more whole numbers than this is a quantity, where nobody says what it is."""

TAKEN = frozenset({"scan_id", "subject", "modality", "fold", "target", "series", "folder", "decisions", "warnings"})
"""Columns that tables of predictions have already."""


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


def read_labels(
    path: Path | None,
    corpus: Corpus,
    *,
    columns: Sequence[str] = (),
    question: Question = "auto",
    positive: str = "",
    naming: str = "--task.columns '[{}]'",
    without: Sequence[str] = (),
    begun: str = "",
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
        begun: `Labels.sha256` of what the table said to a run that goes on; it is read as it was then, if that is what
            it said.

    Raises:
        WrongUse: It is no such table, or its values cannot be what the question says.
        UserError: No row is about a scan of the corpus.
    """
    read = partial(_read, path, corpus, columns, question=question, positive=positive, naming=naming, without=without)
    fault: UserError | None = None
    found: Labels | None = None
    try:
        found = read()
    except UserError as error:
        fault = error
    if begun and (found is None or found.sha256 != begun):
        with suppress(UserError):
            before = read(as_then=True)
            found = before if before.sha256 == begun else found
    if found is None:
        assert fault is not None, "one of the two is"
        raise fault
    return found


def _read(
    path: Path | None,
    corpus: Corpus,
    columns: Sequence[str],
    *,
    question: Question,
    positive: str,
    naming: str,
    without: Sequence[str],
    as_then: bool = False,
) -> Labels:
    """`read_labels`, of today or as the first version did it that read such tables."""
    account = Account()
    if path is None:
        name, columns, texts = of_corpus(corpus, columns, naming, without)
    else:
        name = path.name
        columns, texts = of_file(path, corpus, columns, account, naming, without, as_then=as_then)
    for column in columns:
        if column.strip().casefold() in TAKEN or column.startswith("target: "):
            raise WrongUse(f"{name}: a label cannot be called {column!r}; rename the column")
    empty = [scan_id for scan_id, row in texts.items() if any(text.strip().casefold() in MISSING for text in row)]
    account.add("scans whose row lacks a value", empty)
    texts = {scan_id: row for scan_id, row in texts.items() if scan_id not in set(empty)}
    account.add("scans of the corpus without a row", sorted(set(corpus.scans["scan_id"]) - texts.keys() - set(empty)))
    if not texts:
        raise UserError(f"{name}: no scan of {corpus.path} has a value in {', '.join(columns)}")
    if len(columns) == 1 and question != "regression" and not as_then:
        texts = _in_one_spelling(texts, account)
    kind = _kind_of(texts, columns, question, name, lacking=len(empty))
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
    texts = of_corpus(corpus, own, naming)[2] if path is None else of_file(path, corpus, own, Account(), naming)[1]
    return {scan_id: text for scan_id, (text,) in texts.items() if text.casefold() not in MISSING}


def _in_one_spelling(texts: Mapping[str, tuple[str, ...]], account: Account) -> dict[str, tuple[str, ...]]:
    """Values of the only column without further spellings of one word, which are counted."""
    before = {scan_id: text for scan_id, (text,) in texts.items()}
    after = one_spelling(before)
    respelled = sorted(scan_id for scan_id, text in before.items() if after[scan_id] != text)
    account.add(
        "scans whose value is a class in other letters, or another word for yes or no: they count as it", respelled
    )
    return {scan_id: (text,) for scan_id, text in after.items()}


def _kind_of(
    texts: Mapping[str, tuple[str, ...]], columns: Sequence[str], question: Question, name: str, *, lacking: int
) -> Kind:
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
        rest = f" ({lacking} scans are left out: an empty field, NA, unknown and such are no value)" if lacking else ""
        raise WrongUse(f"{name}: all scans of the corpus have the same {columns[0]}; there is nothing to learn{rest}")
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
    named = positive if positive in classes else next((c for c in classes if c.casefold() == positive.casefold()), "")
    if positive and (not named or kind != "binary"):
        raise WrongUse(f"task.positive {positive!r}: {column} of {name} has {', '.join(classes)}")
    if kind == "multiclass":
        return tuple(f"{column}: {one}" for one in classes), {
            scan_id: tuple(float(one == row[0]) for one in classes) for scan_id, row in texts.items()
        }
    plain = classes[0].casefold() in NO | YES and classes[1].casefold() in NO | YES
    chosen = named or next((one for one in classes if plain and one.casefold() in YES), classes[1])
    label = column if plain and not positive else f"{column}: {chosen}"
    return (label,), {scan_id: (float(row[0] == chosen),) for scan_id, row in texts.items()}


def _order(text: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words."""
    number = number_of(text)
    return number is None, number or 0.0, text
