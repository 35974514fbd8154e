"""The tables of RSNA's phantom: those of the competition, and beside the tree what a competition does not tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harmonize.files import atomic_path
from harmonize.labels import LABELS
from harmonize.phantom.rsna.options import TreeOptions

SIZES = "rsna_sizes.csv"
"""Diameters of the sacs as `finetune evaluate --sizes` reads them."""
HOSPITALS_TABLE = "rsna_hospitals.csv"
MIMICS = "rsna_mimics.csv"
TRUTH = "rsna_truth.csv"
"""The labels as they should be, where ``train.csv`` has mistakes; as `finetune evaluate --truth` reads them."""
COUNTERFACTUALS = "rsna_counterfactuals.csv"

LOOKS = ("shape", "at_branching", "thrombosed", "calcified")
"""What tells the sacs of medium and hard trees apart besides their size."""

Row = dict[str, object]

_TRAIN = ("SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS)
_POINTS = ("SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location")
_SIZES = ("SeriesInstanceUID", "location", "diameter_mm")
_COLUMNS = {
    HOSPITALS_TABLE: ("SeriesInstanceUID", "hospital"),
    MIMICS: ("SeriesInstanceUID", "SOPInstanceUID", "coordinates", "kind"),
    TRUTH: ("SeriesInstanceUID", *LABELS, "mistake"),
    COUNTERFACTUALS: (
        "pair", "with_sac", "without_sac", "location", "diameter_mm", *LOOKS, "x_mm", "y_mm", "z_mm", "modality",
        "hospital",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What is known of a series once it is written.

    Attributes:
        row: Of ``train.csv``.
        points: Rows of ``train_localizers.csv``.
        sizes: Rows of `SIZES`, one a sac.
        hospital: Row of `HOSPITALS_TABLE`.
        mimics: Rows of `MIMICS`.
        truth: Row of `TRUTH`.
        pair: Row of `COUNTERFACTUALS`, of the series that has the sac; None for others.
    """

    row: Row
    points: tuple[Row, ...]
    sizes: tuple[Row, ...]
    hospital: Row
    mimics: tuple[Row, ...]
    truth: Row
    pair: Row | None = None


def write_tables(root: Path, found: Sequence[Written]) -> None:
    """Write ``train.csv`` and ``train_localizers.csv``."""
    _write(root / "train.csv", [one.row for one in found], _TRAIN)
    _write(root / "train_localizers.csv", [point for one in found for point in one.points], _POINTS)


BESIDE = (SIZES, HOSPITALS_TABLE, MIMICS, TRUTH, COUNTERFACTUALS)
"""Names of all tables that may lie beside a tree."""


def beside(options: TreeOptions) -> tuple[str, ...]:
    """Names of the tables that lie beside a tree, since the competition has none of them."""
    if options.difficulty == "easy":
        return (SIZES,)
    noise = (TRUTH,) if options.label_noise else ()
    pairs = (COUNTERFACTUALS,) if options.counterfactuals else ()
    return (SIZES, HOSPITALS_TABLE, MIMICS, *noise, *pairs)


def write_beside(folder: Path, found: Sequence[Written], options: TreeOptions) -> None:
    """Write the tables of `beside` into the folder of the tree."""
    rows = {
        SIZES: [size for one in found for size in one.sizes],
        HOSPITALS_TABLE: [one.hospital for one in found],
        MIMICS: [mimic for one in found for mimic in one.mimics],
        TRUTH: [one.truth for one in found],
        COUNTERFACTUALS: [one.pair for one in found if one.pair is not None],
    }
    sizes = _SIZES if options.difficulty == "easy" else (*_SIZES, *LOOKS)
    for name in beside(options):
        with atomic_path(folder / name) as temporary:
            _write(temporary, rows[name], sizes if name == SIZES else _COLUMNS[name])


def _write(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False, lineterminator="\n")
