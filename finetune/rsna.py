"""The labelled series of an RSNA corpus: one case each, cross-validation folds, and balanced drawing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.aneurysm_labels import LABELS, LOCATIONS, PRESENT
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.scan import Point

SOURCE = "rsna"
VESSELS = "vessels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One series with its labels.

    Attributes:
        scan_id: The SeriesInstanceUID.
        subject: The patient; series of one patient never lie in different folds.
        modality: As in the corpus.
        unit: Of the stored intensities: `harmonize.scan.HU` or another.
        image: The volume's file.
        vessels: File of the vessel mask (values as in `harmonize.aneurysm_labels.MASK_VALUES`), or None.
        foreground_box: Half-open voxel bounds x0, x1, y0, y1, z0, z1 of the head.
        labels: 0 or 1, columns as `LABELS`.
        points: Aneurysms in RAS+ mm; may be empty for a positive series.
    """

    scan_id: str
    subject: str
    modality: str
    unit: str
    image: Path
    vessels: Path | None
    foreground_box: tuple[int, ...]
    labels: tuple[int, ...]
    points: tuple[Point, ...]

    @property
    def present(self) -> bool:
        """Whether there is an aneurysm anywhere."""
        return self.labels[LABELS.index(PRESENT)] == 1


def read_cases(corpus: Corpus) -> list[Case]:
    """The labelled series of a corpus, in the order of their ids.

    Raises:
        UserError: If there is none.
    """
    rows = corpus.scans
    labelled = rows[(rows["source"] == SOURCE) & rows["labels"].notna()].sort_values("scan_id")
    if labelled.empty:
        raise UserError(
            f"corpus {corpus.path}: no labelled RSNA series; make one with `harmonize rsna RAW --out {corpus.path}` "
            "from a folder that has train.csv"
        )
    return [_case(corpus.path, dict(row)) for _, row in labelled.iterrows()]


def assign_folds(cases: Sequence[Case], folds: int, *, seed: int) -> NDArray[np.int64]:
    """The fold of each case: patients stay together, and each fold has its share of positives of every modality.

    Patients are shuffled within their stratum (present or not, modality) and dealt to the folds in turn, going on from
    one stratum to the next, so folds also differ by at most one patient in size.

    Args:
        cases: The series; their order does not matter.
        folds: How many, at least 2.
        seed: Of the shuffling.

    Returns:
        (N,) fold numbers from 0.

    Raises:
        UserError: If there are fewer patients than folds.
    """
    by_subject: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_subject[case.subject].append(case)
    if folds < 2 or len(by_subject) < folds:
        raise UserError(f"data.folds {folds}: needs to be 2 or more, and no more than the {len(by_subject)} patients")
    strata: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for subject in sorted(by_subject):
        series = by_subject[subject]
        strata[any(case.present for case in series), min(case.modality for case in series)].append(subject)
    generator = np.random.default_rng(seed)
    dealt = [subject for key in sorted(strata) for subject in generator.permutation(strata[key])]
    fold_of = {subject: i % folds for i, subject in enumerate(dealt)}
    return np.array([fold_of[case.subject] for case in cases], dtype=np.int64)


def drawing_weights(cases: Sequence[Case], *, positive_share: float) -> NDArray[np.float64]:
    """Probability of each case to be drawn for training.

    Positive series get `positive_share` of the draws, and among them those with a rare location get more: a series
    weighs the sum over its locations of one over the square root of how many series have that location.

    Args:
        cases: The training series.
        positive_share: Between 0 and 1. Where only one class exists, it gets everything.

    Returns:
        (N,) summing to 1.
    """
    locations_N13 = np.array([case.labels[: len(LOCATIONS)] for case in cases], dtype=np.float64)
    present_N = np.array([case.present for case in cases])
    rarity_13 = 1 / np.sqrt(np.maximum(locations_N13.sum(0), 1))
    # A positive series without a named location still counts as one of a common place.
    positive_N = np.where(present_N, np.maximum(locations_N13 @ rarity_13, rarity_13.min()), 0)
    negative_N = (~present_N).astype(np.float64)
    if not present_N.any() or present_N.all():
        weights_N = positive_N + negative_N
        return weights_N / weights_N.sum()
    return positive_share * positive_N / positive_N.sum() + (1 - positive_share) * negative_N / negative_N.sum()


def _case(root: Path, row: dict[str, Any]) -> Case:
    has_vessels = row["mask_kind"] == VESSELS and isinstance(row["mask_file_name"], str)
    points = row["points"] if row["points"] is not None else ()
    return Case(
        scan_id=row["scan_id"],
        subject=row["subject"],
        modality=row["modality"],
        unit=row["unit"],
        image=root / row["image_file_name"],
        vessels=root / row["mask_file_name"] if has_vessels else None,
        foreground_box=tuple(int(bound) for bound in row["foreground_box"]),
        labels=tuple(int(label) for label in row["labels"]),
        points=tuple(
            Point(label=point["label"], xyz_mm=(float(point["x"]), float(point["y"]), float(point["z"])))
            for point in points
        ),
    )
