"""The labelled series of an RSNA corpus: one case each, what was left out and why, and balanced drawing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune.metrics import Score, score_labels
from harmonize.corpus import Corpus
from harmonize.decisions import DecisionKind, kind_of
from harmonize.errors import UserError
from harmonize.labels import LABELS, LOCATIONS, PRESENT, in_order
from harmonize.scan import ACTIVITY, Annotations, Point

SOURCE = "rsna"
VESSELS = "vessels"
PET = "PT"
WEIGHTS = (1,) * len(LOCATIONS) + (len(LOCATIONS),)
"""The competition's weight of each of `LABELS`; they are divided by their sum."""

GROUPS = {"auc_present": (PRESENT,), "auc_mean_locations": LOCATIONS}
"""`WEIGHTS` as means over groups of labels: half the area of `PRESENT`, half the mean area of the locations."""

LOST_LOCALIZERS = frozenset({DecisionKind.LOCALIZER_DROPPED, DecisionKind.LOCALIZER_UNREADABLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One series with its labels.

    Attributes:
        scan_id: The SeriesInstanceUID.
        subject: The patient; series of one patient never lie in different folds.
        modality: As in the corpus.
        unit: Of the stored intensities: `harmonize.scan.HU` or another.
        image: The volume's file.
        vessels: File of the vessel mask (values as in `harmonize.labels.MASK_VALUES`), or None.
        foreground_box: Half-open voxel bounds x0, x1, y0, y1, z0, z1 of the head.
        annotations: Labels, and aneurysms in RAS+ mm, of which a positive series may have none; age and sex.
        decisions: What was found and done when the series was harmonized.
        shape: Voxels along X, Y and Z by the manifest; None where it is not known.
    """

    scan_id: str
    subject: str
    modality: str
    unit: str
    image: Path
    vessels: Path | None
    foreground_box: tuple[int, ...]
    annotations: Annotations
    decisions: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """0 or 1, columns as `LABELS`."""
        return in_order(self.annotations.labels)

    @property
    def present(self) -> bool:
        """Whether there is an aneurysm anywhere."""
        return self.labels[LABELS.index(PRESENT)] == 1

    @property
    def points_complete(self) -> bool:
        """Whether no localizer of the series was lost on the way."""
        return all(kind_of(line) not in LOST_LOCALIZERS for line in self.decisions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a corpus offers to a fine-tuning run.

    Attributes:
        cases: The series to train on and to judge, in the order of their ids.
        left_out: How many of the source's other series there are, by why they are not used.
    """

    cases: list[Case]
    left_out: Counter[str]

    def summary(self) -> str:
        """One line for a person.

        Example:
            >>> Selection(cases=[], left_out=Counter({"without labels": 2})).summary()
            '0 of 2 series used; left out: 2 without labels'
        """
        line = f"{len(self.cases)} of {len(self.cases) + self.left_out.total()} series used"
        reasons = ", ".join(f"{count} {why}" for why, count in sorted(self.left_out.items()))
        return f"{line}; left out: {reasons}" if reasons else line


def read_cases(corpus: Corpus) -> list[Case]:
    """The series of a corpus that a run uses: those of `select`.

    Raises:
        UserError: If there is none.
    """
    return select(corpus).cases


def select(corpus: Corpus, *, every_label: bool = False) -> Selection:
    """Which series of a corpus a run uses, and why not the others; the corpus's tables are the only source.

    Args:
        corpus: With labelled RSNA series.
        every_label: Use whatever has labels, as version 0.1.0 did: for runs that it began.

    Raises:
        UserError: If there is none.
    """
    refused = corpus.rejected[corpus.rejected["source"] == SOURCE]
    left_out = Counter(f"refused by harmonize ({reason})" for reason in refused["reason"])
    cases = []
    rows = corpus.scans[corpus.scans["source"] == SOURCE].sort_values("scan_id")
    for row in rows.to_dict("records"):
        fault = _fault(row)
        if fault is None or (every_label and row["labels"] is not None):
            cases.append(_case(corpus.path, row))
        else:
            left_out[fault] += 1
    if not cases:
        why = f" ({', '.join(f'{count} {why}' for why, count in sorted(left_out.items()))})" if left_out else ""
        raise UserError(
            f"corpus {corpus.path}: no labelled RSNA series{why}; make one with "
            f"`harmonize rsna RAW --out {corpus.path}` from a folder that has train.csv"
        )
    return Selection(cases=cases, left_out=left_out)


def competition_score(targets_N14: ArrayLike, probabilities_N14: ArrayLike) -> Score:
    """Score predictions as the competition does, with undefined columns told apart.

    The competition computes ``roc_auc_score(average=None)`` per column and averages with `WEIGHTS`. Its number is
    `Score.score` where `Score.undefined` is empty; the means leave out columns with a single class.

    Args:
        targets_N14: 0 or 1, a row a series, columns as `LABELS`.
        probabilities_N14: Any finite scores in the same layout; only their order within a column matters.

    Returns:
        The areas by label, and their means ``auc_present`` and ``auc_mean_locations``.

    Raises:
        ValueError: If the shapes differ or are not (N, 14), a target is neither 0 nor 1, or a prediction is not finite.

    Example:
        >>> import numpy as np
        >>> targets = np.eye(14)
        >>> competition_score(targets, targets).score
        1.0
    """
    return score_labels(targets_N14, probabilities_N14, labels=LABELS, groups=GROUPS)


def is_foreign(modality: str, unit: str) -> bool:
    """Whether a scan is neither CT nor MR, which is all that the competition has."""
    return modality == PET or unit == ACTIVITY


def contradiction(labels: Iterable[int]) -> bool:
    """Whether a location is positive where `Aneurysm Present` is not.

    Args:
        labels: Columns as `LABELS`.
    """
    *locations, present = labels
    return any(locations) and not present


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


def _fault(row: dict[Any, Any]) -> str | None:
    """Why a series of the manifest is not used, or None."""
    if row["labels"] is None:
        return "without labels"
    if is_foreign(row["modality"], row["unit"]):
        return "neither CT nor MR"
    if contradiction(row["labels"]):
        return "with labels that contradict each other"
    if DecisionKind.CROP_WIDENED in map(kind_of, row["decisions"]):
        # Prediction, which knows no labels, would crop it closer.
        return "cropped wider than without labels"
    return None


def _case(root: Path, row: dict[Any, Any]) -> Case:
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
        annotations=Annotations(
            labels=dict(zip(LABELS, map(int, row["labels"]), strict=True)),
            points=tuple(
                Point(label=point["label"], xyz_mm=(float(point["x"]), float(point["y"]), float(point["z"])))
                for point in points
            ),
            age=None if row["age"] is None or math.isnan(row["age"]) else float(row["age"]),
            sex=row["sex"] if isinstance(row["sex"], str) else None,
        ),
        decisions=tuple(row["decisions"]),
        shape=tuple(int(size) for size in row["shape"]),
    )
