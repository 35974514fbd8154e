"""The tables of the RSNA 2025 competition: what they say of each series, typed, and what in them fits none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from harmonize.decisions import Decision, DecisionKind
from harmonize.labels import LABELS, read_labels
from harmonize.raw_tree import RawTree
from harmonize.sources.first_look import nothing_found
from harmonize.sources.tables import age_of, merge, read_table, sex_of

TRAIN, LOCALIZERS = "train.csv", "train_localizers.csv"
NEEDED = ("SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS)

MODALITIES = {"CTA": "CTA", "MRA": "MRA", "MRI T2": "T2w", "MRI T1post": "T1post"}
"""Names in train.csv, by the corpus's names."""


def read_train(root: Path, tree: RawTree) -> dict[str, dict[str, object]]:
    """What ``train.csv`` says of each series, typed, in its order; of several rows what they agree in."""
    path = root / TRAIN
    if not path.is_file():
        raise nothing_found("rsna", root, lacking=TRAIN)
    table = read_table(path, NEEDED)
    tree.count(f"rows of {TRAIN}", "damaged", table.damaged)
    found: dict[str, list[dict[str, object]]] = {}
    for row in table.rows:
        found.setdefault(row["SeriesInstanceUID"].strip(), []).append(_typed(row))
    tree.count(f"rows of {TRAIN}", "they name no series", len(found.pop("", [])))
    tree.count(f"rows of {TRAIN}", "the series stands in an earlier row", sum(len(rows) - 1 for rows in found.values()))
    typed = {uid: rows[0] if len(rows) == 1 else _merged(rows) for uid, rows in found.items()}
    worthless = sum(row["labels"] is None for row in typed.values())
    tree.count(f"series of {TRAIN}", "no usable labels: taken, but they train nothing", worthless)
    return typed


def _typed(row: Mapping[str, str]) -> dict[str, object]:
    notes: list[Decision] = []
    labels, fault = read_labels(row)
    if fault:
        notes.append(DecisionKind.NO_LABELS(why=f"in {TRAIN} {fault}"))
    modality = MODALITIES.get(row["Modality"].strip())
    if modality is None:
        notes.append(DecisionKind.MODALITY_UNKNOWN())
    (age, odd_age), (sex, odd_sex) = age_of(row["PatientAge"]), sex_of(row["PatientSex"])
    return {"labels": labels, "modality": modality, "age": age, "sex": sex, "notes": (*notes, *odd_age, *odd_sex)}


def _merged(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    said, differing = merge(rows)
    notes = list(dict.fromkeys(note for row in rows for note in cast(tuple[Decision, ...], row["notes"])))
    notes.append(DecisionKind.LISTED_TWICE(count=len(rows)))
    if "labels" in differing:
        notes = [note for note in notes if note.kind is not DecisionKind.NO_LABELS]
        notes.append(DecisionKind.NO_LABELS(why=f"its rows in {TRAIN} contradict each other"))
    notes += [DecisionKind.ROWS_CONTRADICT(name=name) for name in ("age", "sex", "modality") if name in differing]
    return said | {"notes": tuple(notes)}


def read_localizers(root: Path, tree: RawTree, rows: Iterable[str]) -> dict[str, tuple[tuple[str, str, str], ...]]:
    """(SOP instance, coordinates as text, location) of each localizer by series; none without the table."""
    path = root / LOCALIZERS
    if not path.is_file():
        return {}
    table = read_table(path, ("SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location"))
    tree.count(f"rows of {LOCALIZERS}", "damaged", table.damaged)
    known, strange = set(rows), 0
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for row in table.rows:
        uid = row["SeriesInstanceUID"].strip()
        strange += uid not in known
        found[uid].append((row["SOPInstanceUID"].strip(), row["coordinates"], row["location"].strip()))
    tree.count(f"rows of {LOCALIZERS}", f"no row of {TRAIN} names their series", strange)
    return {uid: tuple(entries) for uid, entries in found.items()}
