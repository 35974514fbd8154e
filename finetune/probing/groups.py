"""Groups of scans that a probe is judged on apart: by sex, age, source, modality, scanner, and columns of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.label_table import FEW_VALUES, read_column
from harmonize.corpus import Corpus
from harmonize.errors import WrongUse
from harmonize.sources.tables import AGE, SEX, age_of, columns_of, number_of, sex_of

SCANNERS = frozenset({"hospital", "scanner", "manufacturer", "scanner_model", "site", "vendor", "device"})
"""Columns of a table that say where a scan was made, in lower case."""

NAMING = "--groups {}"

Values = tuple[str | None, ...]
"""Of each scan; None where it is not known."""


def read_groups(
    corpus: Corpus,
    rows: Sequence[Mapping[Any, Any]],
    labels: Path | None,
    *,
    named: Sequence[str] = (),
    asked: Sequence[str] = (),
) -> dict[str, Values]:
    """What divides the scans, as far as the corpus and the table of labels know it.

    Args:
        corpus: Whose scans.
        rows: Of its manifest, a scan each.
        labels: A user's table.
        named: Columns of it, or else of the corpus's own table, that divide them too.
        asked: Columns that are labels: they divide nothing.

    Returns:
        The group of each scan, by what divides them; only what makes two groups or more. Numbers of many values are
        divided at their median.

    Raises:
        WrongUse: There is no such column.
    """
    texts = _columns(corpus, labels, named, set(asked))
    scan_ids = [row["scan_id"] for row in rows]
    of_table = {name: tuple(texts[name].get(scan_id, "") for scan_id in scan_ids) for name in texts}
    sexes = [tuple(sex_of(text)[0] for text in _of(of_table, name)) for name in SEX]
    ages = [tuple(age_of(text)[0] for text in _of(of_table, name)) for name in AGE]
    found: dict[str, Values] = {
        "sex": _first(tuple(_text(row["sex"]) for row in rows), *sexes),
        "source": tuple(_text(row["source"]) for row in rows),
        "modality": tuple(_text(row["modality"]) for row in rows),
        "age": _halves(_first(tuple(_number(row["age"]) for row in rows), *ages)),
    }
    for name, values in of_table.items():
        if name.casefold() not in (*SEX, *AGE):
            found[name] = _grouped(values)
    return {name: values for name, values in found.items() if name not in asked and len(set(values) - {None}) > 1}


def _columns(corpus: Corpus, labels: Path | None, named: Sequence[str], asked: set[str]) -> dict[str, dict[str, str]]:
    """The columns that divide the scans: text by scan."""
    places: dict[str, Path | None] = {str(name): None for name in corpus.table.columns}
    if labels is not None:
        places |= dict.fromkeys(columns_of(labels), labels)
    for name in named:
        if name not in places:
            where = corpus.path if labels is None else f"{labels.name} and {corpus.path}"
            raise WrongUse(f"{NAMING.format(name)}: no such column in {where}; there is {', '.join(places) or 'none'}")
    known = {name for name in places if name.strip().casefold() in SCANNERS | {*SEX, *AGE}}
    wanted = dict.fromkeys((*named, *sorted(known - asked)))
    return {name: read_column(places[name], corpus, name, naming=NAMING) for name in wanted}


def _of(of_table: Mapping[str, tuple[str, ...]], lowered: str) -> tuple[str, ...]:
    return next((values for name, values in of_table.items() if name.casefold() == lowered), ())


def _first(*answers: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of each scan the first answer that there is."""
    given = [one for one in answers if one]
    return tuple(next((value for value in values if value is not None), None) for values in zip(*given, strict=True))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: float | None) -> float | None:
    """A manifest's number: pandas makes NaN of those that are not there."""
    return None if value is None or np.isnan(value) else float(value)


def _grouped(texts: Sequence[str]) -> Values:
    """Texts as they are; numbers of many values in two halves."""
    numbers = [number_of(text) if text else None for text in texts]
    if all(number is not None for number, text in zip(numbers, texts, strict=True) if text) and (
        len(set(numbers) - {None}) > FEW_VALUES
    ):
        return _halves(numbers)
    return tuple(text or None for text in texts)


def _halves(numbers: Sequence[float | None]) -> Values:
    """Up to the median, and above.

    Example:
        >>> _halves([30.0, None, 50.0, 70.0])
        ('up to 50', None, 'up to 50', 'above 50')
    """
    known = [number for number in numbers if number is not None]
    if not known:
        return (None,) * len(numbers)
    middle = float(np.median(known))
    return tuple(
        None if number is None else f"up to {middle:g}" if number <= middle else f"above {middle:g}"
        for number in numbers
    )
