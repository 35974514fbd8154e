"""RSNA 2025 intracranial aneurysm detection: 13 places, and whether there is an aneurysm at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from finetune.drawing import Balance, drawing_weights
from finetune.evaluation.measures import Kind
from finetune.metrics import Score, score_labels
from finetune.series import NO_PLACE, Case, Sample, Selection, Spot
from finetune.targets import RADIUS_MM, class_targets, points_and_mask_targets
from finetune.tasks.base import KNOWN, Link
from finetune.tasks.base import LABELS as ANSWERS
from harmonize.corpus import Corpus
from harmonize.decisions import DecisionKind, kind_of
from harmonize.errors import Reason, Rejection, UserError
from harmonize.labels import LABELS, LOCATIONS, MASK_VALUES, MIRRORED, PRESENT
from harmonize.scan import ACTIVITY, HU, Scan
from harmonize.sources.adam import UNTREATED
from harmonize.sources.rsna_tables import MODALITIES
from headspark.config.checks import require

LARGEST_RADIUS_MM = 50.0
VESSELS, OWN_MASKS = "vessels", "labels"
"""Kinds of masks in a corpus: the competition's, and a user's own."""

PET = "PT"
WEIGHTS = (1,) * len(LOCATIONS) + (len(LOCATIONS),)
"""The competition's weight of each of `LABELS`; they are divided by their sum."""

GROUPS = {"auc_present": (PRESENT,), "auc_mean_locations": LOCATIONS}
"""`WEIGHTS` as means over groups of labels: half the area of `PRESENT`, half the mean area of the locations."""

TOPCOW = {
    2: "Other Posterior Circulation",
    3: "Other Posterior Circulation",
    4: "Right Supraclinoid Internal Carotid Artery",
    5: "Right Middle Cerebral Artery",
    6: "Left Supraclinoid Internal Carotid Artery",
    7: "Left Middle Cerebral Artery",
    8: "Right Posterior Communicating Artery",
    9: "Left Posterior Communicating Artery",
    10: "Anterior Communicating Artery",
    11: "Right Anterior Cerebral Artery",
    12: "Left Anterior Cerebral Artery",
}
"""The place of each value of TopCoW's masks, whose carotid arteries are their segments C6 and C7. They do not part the
tip of the basilar artery from the rest (1), and a third A2 (15) is of neither side: nothing is learned of these."""

ADAM = "adam"
"""A source whose series nobody trains on: places and sizes of aneurysms, whose sites are not named."""

LOST_LOCALIZERS = frozenset({DecisionKind.LOCALIZER_DROPPED, DecisionKind.LOCALIZER_UNREADABLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class AneurysmConfig:
    """Aneurysms of the competition.

    Attributes:
        kind: ``aneurysm``.
        radius: Reach of a marked point in mm: of the spheres, blobs and heat around it, and of its territory.
        topcow: Sources of the corpus (``nifti``) whose masks are TopCoW's: their arteries teach the territories, and
            nothing else is learned of these series.
    """

    kind: Literal["aneurysm"] = "aneurysm"
    radius: float = RADIUS_MM
    topcow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(0 < self.radius <= LARGEST_RADIUS_MM, f"task.radius {self.radius}: must be more than 0 mm, 50 at most")
        own = [source for source in AneurysmTask.sources if source in self.topcow]
        require(not own, f"task.topcow {', '.join(own)}: has masks of its own values; name the source of TopCoW's")


class AneurysmTask:
    """The competition's question; attributes and methods as in `finetune.tasks.base.Task`."""

    answers = ANSWERS
    asks: Kind = "multilabel"
    labels: tuple[str, ...] = LABELS
    mirror: tuple[int, ...] | None = tuple(MIRRORED)
    places = len(LOCATIONS)
    any_label: int | None = LABELS.index(PRESENT)
    label_weights: tuple[float, ...] = WEIGHTS
    groups: Mapping[str, tuple[str, ...]] = GROUPS
    link = Link.SIGMOID
    class_weights: tuple[float, ...] = (1.0,) * len(LABELS)
    knows_contrasts = False
    shares_folds = True
    mask_values = tuple(MASK_VALUES)
    modalities = tuple(MODALITIES.values())
    sources: tuple[str, ...] = ("rsna",)

    def __init__(self, config: AneurysmConfig | None = None) -> None:
        config = config or AneurysmConfig()
        self.radius_mm, self._topcow = config.radius, config.topcow

    def cases(self, corpus: Corpus, *, labels: Path | None = None, every_label: bool = False) -> Selection:
        """The labelled series of a corpus that a run uses; the corpus's tables are the only source.

        Args:
            corpus: With labelled RSNA series.
            labels: None: there is no other table.
            every_label: Use whatever has labels, as version 0.1.0 did: for runs that it began.

        Raises:
            UserError: If there is none.
        """
        refused = corpus.rejected[corpus.rejected["source"].isin(self.sources)]
        left_out = Counter(f"refused by harmonize ({reason})" for reason in refused["reason"])
        cases, unlabelled = [], []
        rows = corpus.scans[corpus.scans["source"].isin(self.sources)].sort_values("scan_id")
        for row in rows.to_dict("records"):
            fault = _fault(row)
            if fault is None or (every_label and row["labels"] is not None):
                cases.append(_case(corpus.path, row))
                continue
            left_out[fault] += 1
            if _fault(row | {"labels": [0] * len(LABELS)}) is None:
                unlabelled.append(_case(corpus.path, row))
        if not cases:
            why = f" ({', '.join(f'{count} {why}' for why, count in sorted(left_out.items()))})" if left_out else ""
            raise UserError(
                f"corpus {corpus.path}: no labelled RSNA series{why}; make one with "
                f"`harmonize rsna RAW --out {corpus.path}` from a folder that has train.csv"
            )
        masked = [] if every_label else topcow_cases(corpus, self._topcow)
        return Selection(cases=cases, left_out=left_out, unlabelled=unlabelled, masked=masked)

    def outside(self, corpus: Corpus) -> list[Case]:
        """Series for a test outside of the competition: ADAM's, with points and no labels; else labelled ones.

        Args:
            corpus: That no model here was trained on.

        Raises:
            UserError: It has neither.
        """
        rows = corpus.scans[corpus.scans["source"] == ADAM].sort_values("scan_id")
        if rows.empty:
            return self.cases(corpus).cases
        return [_adam_case(corpus.path, row) for row in rows.to_dict("records")]

    def targets(self, sample: Sample) -> dict[str, Tensor]:
        """Labels, classes, and what the cells of the dense outputs should say."""
        classes = class_targets(sample, modalities=self.modalities, sources=self.sources)
        findings = sample.findings
        has_labels = len(findings.labels_L) > 0
        if not has_labels:
            sample = replace(sample, findings=replace(findings, labels_L=np.zeros(len(LABELS))))
        located = points_and_mask_targets(
            sample, places=self.places, any_label=self.any_label, radius_mm=self.radius_mm
        )
        if self._topcow:
            located[f"labels{KNOWN}"] = torch.tensor(has_labels)
            # Its masks end at a box around the circle, and some of their arteries have no place.
            located |= {name: known & has_labels for name, known in located.items() if name == f"{VESSELS}{KNOWN}"}
        return located | classes

    def values(self, outputs_BL: Tensor) -> Tensor:
        """Probabilities."""
        return self.link.values(outputs_BL)

    def score(self, table: pd.DataFrame) -> Score:
        """The competition's score of a table of predictions and truth."""
        return competition_score(table[[f"target: {label}" for label in LABELS]], table[list(LABELS)])

    def draw_weights(
        self, cases: Sequence[Case], *, positive_share: float, balance: Balance = "presence"
    ) -> NDArray[np.float64]:
        """Probability of each case to be drawn for training, as `finetune.drawing.drawing_weights`."""
        return drawing_weights(
            cases, places=self.places, any_label=len(LABELS) - 1, positive_share=positive_share, balance=balance
        )

    def fold_labels(self, cases: Sequence[Case]) -> list[list[int]]:
        """The labels themselves."""
        return [[int(value) for value in case.labels] for case in cases]

    def check_scan(self, scan: Scan) -> None:
        """Refuse what is neither CT nor MR, which is all that the competition has."""
        if is_foreign(scan.modality, scan.unit):
            raise Rejection(Reason.UNSUPPORTED_MODALITY, "neither CT nor MR")


KIND = (AneurysmConfig, AneurysmTask)


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
    """Whether a scan is neither CT nor MR."""
    return modality == PET or unit == ACTIVITY


def contradiction(labels: Iterable[int]) -> bool:
    """Whether a location is positive where `Aneurysm Present` is not.

    Args:
        labels: Columns as `LABELS`.
    """
    *locations, present = labels
    return any(locations) and not present


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


def topcow_cases(corpus: Corpus, sources: Sequence[str]) -> list[Case]:
    """Series with TopCoW's masks, for their arteries alone.

    Args:
        corpus: Of the run.
        sources: Of the series.

    Raises:
        UserError: One of them has none, or MRI that was normalised otherwise than the labelled series.
    """
    scans, norms = corpus.scans, corpus.mri_norms
    found = []
    for source in sources:
        rows = scans[(scans["source"] == source) & (scans["mask_kind"] == OWN_MASKS) & scans["mask_file_name"].notna()]
        if rows.empty:
            raise UserError(
                f"task.topcow {source}: {corpus.path} has no series of it with masks; bring them in with "
                f"`harmonize nifti TOPCOW --out {corpus.path}`"
            )
        other = next((one for one in AneurysmTask.sources if norms[one] != norms[source]), None)
        if other is not None and (rows["unit"] != HU).any():
            raise UserError(
                f"task.topcow {source}: its MRI is normalised by {norms[source]}, that of {other} by {norms[other]}; "
                "harmonize both with the same --mri-norm"
            )
        found += [_topcow_case(corpus.path, row) for row in rows.sort_values("scan_id").to_dict("records")]
    return found


def _topcow_case(root: Path, row: dict[Any, Any]) -> Case:
    case = _case(root, row | {"labels": None, "points": None})
    places = tuple((value, LOCATIONS.index(name)) for value, name in TOPCOW.items())
    return replace(case, mask=root / row["mask_file_name"], mask_places=places, spots_complete=False, pseudo=True)


def _adam_case(root: Path, row: dict[Any, Any]) -> Case:
    case = _case(root, row | {"labels": None, "points": None})
    points = row["points"] if row["points"] is not None else ()
    diameters = row["point_diameters"] if row["point_diameters"] is not None else [None] * len(points)
    spots = tuple(
        Spot(
            label=NO_PLACE,
            xyz_mm=(float(point["x"]), float(point["y"]), float(point["z"])),
            diameter_mm=None if diameter is None else float(diameter),
            counts=point["label"] == UNTREATED,
        )
        for point, diameter in zip(points, diameters, strict=True)
    )
    # Where the text file cannot be read, the mask has told.
    complete = case.spots_complete or isinstance(row["mask_file_name"], str)
    return replace(case, spots=spots, spots_complete=complete)


def _case(root: Path, row: dict[Any, Any]) -> Case:
    has_vessels = row["mask_kind"] == VESSELS and isinstance(row["mask_file_name"], str)
    points = row["points"] if row["points"] is not None else ()
    return Case(
        scan_id=row["scan_id"],
        subject=row["subject"],
        modality=row["modality"],
        unit=row["unit"],
        image=root / row["image_file_name"],
        mask=root / row["mask_file_name"] if has_vessels else None,
        foreground_box=tuple(int(bound) for bound in row["foreground_box"]),
        labels=tuple(map(int, row["labels"] if row["labels"] is not None else ())),
        spots=tuple(
            Spot(
                label=LOCATIONS.index(point["label"]),
                xyz_mm=(float(point["x"]), float(point["y"]), float(point["z"])),
            )
            for point in points
        ),
        spots_complete=all(kind_of(line) not in LOST_LOCALIZERS for line in row["decisions"]),
        decisions=tuple(row["decisions"]),
        shape=tuple(int(size) for size in row["shape"]),
        spacing=tuple(float(size) for size in row["spacing"]),
        sha256=row["sha256"],
        mask_sha256=row["mask_sha256"] if isinstance(row["mask_sha256"], str) else None,
        source=row["source"],
    )
