"""Dealing patients to folds: each fold gets its share of what there is, whatever else changes."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harmonize.errors import WrongUse

Stratum = tuple[int, str]
"""What the series of a patient say: 1 where a label is positive, 0 for none, -1 for no labels; and the modality."""


def deal(table: pd.DataFrame, folds: int, *, seed: int, known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Deal patients to folds: each fold gets its share of every stratum, of all, and of every rare label.

    How many of a stratum (positive or not, modality) a fold gets comes first: its patients go to the fold that has the
    fewest of the stratum, and of these to the one that has the fewest in all. Which patients those are comes second:
    they are taken in the order of their rarest label, then as the seed draws, and each goes to the one of its stratum's
    places whose fold has the fewest patients with that label, then with their next rarest.

    Args:
        table: Columns scan_id, subject, modality, labels, as `Corpus.labels`; the order of its rows does not matter.
        folds: How many.
        seed: Of the order.
        known: Folds of series that were dealt before; their patients stay where they are.

    Returns:
        Fold of each series by scan id.

    Raises:
        UserError: If there are fewer patients than folds.
    """
    patients = _patients(table)
    if folds < 2 or len(patients) < folds:
        raise WrongUse(f"data.folds {folds}: needs to be 2 or more, and no more than the {len(patients)} patients")
    frequency = Counter(label for patient in patients for label in patient.positive)
    fold_of_subject: dict[str, int] = {}
    with_label: Counter[tuple[int, int]] = Counter()

    def put(patient: _Patient, fold: int) -> None:
        fold_of_subject[patient.subject] = fold
        with_label.update((label, fold) for label in patient.positive)

    fresh = []
    for patient in patients:
        before = next((known[scan] for scan in patient.scans if known and scan in known), None)
        if before is None:
            fresh.append(patient)
        else:
            put(patient, before)
    places = _places(patients, fresh, fold_of_subject, folds)

    def rarest_first(patient: _Patient) -> list[int]:
        return sorted(patient.positive, key=lambda label: (frequency[label], label))

    def order(patient: _Patient) -> tuple[bool, list[int], Stratum, bytes]:
        counts = [frequency[label] for label in rarest_first(patient)]
        return not counts, counts, patient.stratum, _draw(seed, patient.subject)

    for patient in sorted(fresh, key=order):
        free, labels = places[patient.stratum], rarest_first(patient)
        counts = [[with_label[label, fold] for label in labels] for fold in free]
        put(patient, free.pop(counts.index(min(counts))))
    dealt = {scan: fold_of_subject[patient.subject] for patient in patients for scan in patient.scans}
    return {**dealt, **(known or {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patient:
    """A patient of the label table: the series, in order, the stratum, and the labels that any of them has."""

    subject: str
    scans: tuple[str, ...]
    stratum: Stratum
    positive: frozenset[int]


def _patients(table: pd.DataFrame) -> list[_Patient]:
    rows: dict[str, list[dict[Any, Any]]] = defaultdict(list)
    for row in table.to_dict("records"):
        rows[row["subject"]].append(row)
    found = []
    for subject, series in sorted(rows.items()):
        strata = [_stratum(row) for row in series]
        labelled = [row["labels"] for row in series if row["labels"] is not None]
        found.append(
            _Patient(
                subject=subject,
                scans=tuple(sorted(row["scan_id"] for row in series)),
                stratum=(max(present for present, _ in strata), min(modality for _, modality in strata)),
                positive=frozenset(number for labels in labelled for number, value in enumerate(labels) if value),
            )
        )
    return found


def _places(
    patients: Sequence[_Patient], fresh: Sequence[_Patient], fold_of_subject: Mapping[str, int], folds: int
) -> dict[Stratum, list[int]]:
    """The folds that the fresh patients of each stratum go to, one each, whoever they are."""
    dealt = [patient for patient in patients if patient.subject in fold_of_subject]
    in_stratum = Counter((patient.stratum, fold_of_subject[patient.subject]) for patient in dealt)
    in_all = Counter(fold_of_subject[patient.subject] for patient in dealt)
    places: dict[Stratum, list[int]] = defaultdict(list)
    for stratum in sorted(patient.stratum for patient in fresh):
        fold = min(range(folds), key=lambda fold: (in_stratum[stratum, fold], in_all[fold], fold))
        in_stratum[stratum, fold] += 1
        in_all[fold] += 1
        places[stratum].append(fold)
    return places


def _stratum(row: Mapping[Any, Any]) -> Stratum:
    labels = row["labels"]
    present = -1 if labels is None else int(any(labels))
    return present, str(row["modality"] or "")


def _draw(seed: int, subject: str) -> bytes:
    """A number that depends on nothing but seed and patient, so that a patient more or less reorders no others."""
    return hashlib.sha256(f"{seed} {subject}".encode()).digest()
