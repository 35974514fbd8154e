"""Segmentation: which structure each voxel belongs to, learned from the masks of a corpus."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.drawing import Balance
from finetune.evaluation.measures import Kind
from finetune.evaluation.overlap import DICE, OverlapScore, score_overlap
from finetune.series import Case, Sample, Selection
from finetune.targets import class_targets
from finetune.tasks.base import MASKS, Link, refuse_activity
from harmonize.corpus import Corpus, mask_labels
from harmonize.errors import UserError, WrongUse
from harmonize.scan import ACTIVITY, Scan
from headspark.config.checks import require

LARGEST_VALUE = 2**16 - 1
"""Of a mask."""

MOST_LABELS = 255
"""A region keeps the index of each voxel's label in a byte."""

OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l", "lh": "rh", "rh": "lh"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MasksConfig:
    """Structures that masks show; what is left open, the corpus says.

    Attributes:
        kind: ``masks``.
        sources: Of the series; empty: all of the corpus that have such masks.
        masks: Of which kind the masks are (`mask_kind` in the manifest); empty: the only kind there is.
        labels: The value of each structure in the masks, by its name; empty: all that the corpus names. Other values
            are background.
        modalities: Those of the series, which a network that is told the modality, or must not tell it, knows apart;
            empty: those of the corpus.
    """

    kind: Literal["masks"] = "masks"
    sources: tuple[str, ...] = ()
    masks: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = list(self.labels.values())
        for name, value in self.labels.items():
            require(0 < value <= LARGEST_VALUE, f"task.labels.{name} {value}: must lie between 1 and {LARGEST_VALUE}")
        require(len(set(values)) == len(values), f"task.labels: {sorted(values)}: each value once")
        require(len(values) <= MOST_LABELS, f"task.labels: {len(values)} are too many; {MOST_LABELS} at most")

    def settled(self, corpus: Corpus, table: Path | None = None) -> MasksConfig:
        """The same with nothing left open.

        Args:
            corpus: With masks.
            table: None: masks are no table.

        Raises:
            UserError: It has none, or several kinds of them, of which the recipe must name one; or nobody says what
                their values stand for.
        """
        if table is not None:
            raise WrongUse(f"--labels: the task {self.kind} learns from masks, which the corpus has; leave it out")
        rows = corpus.scans[corpus.scans["mask_file_name"].notna()]
        if self.sources:
            rows = rows[rows["source"].isin(self.sources)]
        there = sorted(set(rows["mask_kind"].dropna()))
        of_sources = f" of {', '.join(self.sources)}" if self.sources else ""
        if not there:
            raise UserError(f"{corpus.path}: no scan{of_sources} has a mask; harmonize a source that brings masks")
        if self.masks not in ("", *there) or (not self.masks and len(there) > 1):
            said = f" {self.masks!r}" if self.masks else ""
            raise WrongUse(f"task.masks{said}: the corpus has masks of kind {', '.join(there)}{of_sources}; name one")
        kind = self.masks or there[0]
        rows = rows[rows["mask_kind"] == kind]
        sources = tuple(sorted(set(rows["source"])))
        labels = self.labels or mask_labels(corpus, sources, kind)
        if not labels:
            raise WrongUse(
                f"task.labels: the corpus does not name the values of its masks ({kind}); give the value of each "
                "structure by its name"
            )
        modalities = self.modalities or tuple(sorted(set(rows["modality"])))
        return replace(self, sources=sources, masks=kind, labels=labels, modalities=modalities)


class MasksTask:
    """One class a structure; attributes and methods as in `finetune.tasks.base.Task`."""

    answers = MASKS
    asks: Kind = "multiclass"
    link = Link.SOFTMAX
    shares_folds = False
    places = 0
    any_label: int | None = None

    def __init__(self, config: MasksConfig | None = None) -> None:
        self._config = config = config or MasksConfig()
        self.labels: tuple[str, ...] = tuple(config.labels)
        self.mirror = mirrored_names(self.labels)
        self.label_weights: tuple[float, ...] = (1.0,) * len(self.labels)
        self.groups: Mapping[str, tuple[str, ...]] = {DICE: self.labels}
        self.class_weights: tuple[float, ...] = self.label_weights
        self.sources = config.sources
        self.mask_values = tuple(config.labels.values())
        self.modalities = config.modalities

    def cases(self, corpus: Corpus, *, labels: Path | None = None, every_label: bool = False) -> Selection:
        """The series of its sources that have such a mask.

        Args:
            corpus: With masks.
            labels: Changes nothing here.
            every_label: Changes nothing here.

        Raises:
            UserError: There is none.
        """
        left_out = Counter(
            f"refused by harmonize ({reason})"
            for reason in corpus.rejected.loc[corpus.rejected["source"].isin(self.sources), "reason"]
        )
        cases = []
        for row in corpus.scans[corpus.scans["source"].isin(self.sources)].sort_values("scan_id").to_dict("records"):
            fault = self._fault(row)
            if fault is None:
                cases.append(_case(corpus, row))
            else:
                left_out[fault] += 1
        if not cases:
            raise UserError(
                f"corpus {corpus.path}: no series of {', '.join(self.sources)} with a mask ({self._config.masks})"
            )
        return Selection(cases=cases, left_out=left_out)

    def targets(self, sample: Sample) -> dict[str, Tensor]:
        """The class of the voxel in the middle of each cell, and that of the series."""
        masks = {
            name: voxel_classes(sample, stride=stride)
            for name, stride in sample.cells.items()
            if name.startswith(MASKS)
        }
        return masks | class_targets(sample, modalities=self.modalities, sources=self.sources)

    def values(self, outputs_BL: Tensor) -> Tensor:
        """Probabilities of classes."""
        return self.link.values(outputs_BL)

    def score(self, table: pd.DataFrame) -> OverlapScore:
        """Dice a structure and their mean, of a table of `finetune.segmentation`."""
        return score_overlap(table, self.labels)

    def draw_weights(
        self, cases: Sequence[Case], *, positive_share: float, balance: Balance = "presence"
    ) -> NDArray[np.float64]:
        """Each series alike; balanced by modality, each of these by the square root of its number."""
        if balance == "presence":
            return np.full(len(cases), 1 / len(cases))
        count = Counter(case.modality for case in cases)
        weights_N = np.array([count[case.modality] ** -0.5 for case in cases])
        return np.asarray(weights_N / weights_N.sum())

    def fold_labels(self, cases: Sequence[Case]) -> list[list[int]]:
        """None: which structures a mask shows is known when it is read; modalities get their share in any case."""
        return [[] for _ in cases]

    def check_scan(self, scan: Scan) -> None:
        """Refuse counts of decays, which no mask is learned from here."""
        refuse_activity(scan)

    def _fault(self, row: Mapping[Any, Any]) -> str | None:
        if row["unit"] == ACTIVITY:
            return "neither CT nor MR"
        if row["mask_kind"] != self._config.masks or not isinstance(row["mask_file_name"], str):
            return f"without a mask ({self._config.masks})"
        return None


KIND = (MasksConfig, MasksTask)


def voxel_classes(sample: Sample, *, stride: int) -> Tensor:
    """The class of the voxel in the middle of each cell, (d, h, w) int64: 0 for none, else one more than the label's.

    Args:
        sample: With a mask, on whose device they are; without one, all are 0.
        stride: Edge of a cell in voxels.
    """
    shape = [-(-edge // stride) for edge in sample.shape]
    mask_XYZ = sample.findings.mask_XYZ
    if mask_XYZ is None:
        return torch.zeros(shape, dtype=torch.int64)
    # A last cell that sticks out has its middle outside: its last voxel counts.
    for axis, (count, edge) in enumerate(zip(shape, sample.shape, strict=True)):
        middles = torch.arange(stride // 2, count * stride, stride, device=mask_XYZ.device).clamp_(max=edge - 1)
        mask_XYZ = mask_XYZ.index_select(axis, middles)
    return mask_XYZ.long()


def mirrored_names(labels: Sequence[str]) -> tuple[int, ...] | None:
    """The label that each becomes in the mirror image, by the word in its name that tells the side.

    Sides are the words left and right, or L and R (or LH and RH) that stand alone.

    Returns:
        Indices, a permutation; None where a side is named and the other one has no label: then nothing may be mirrored.

    Example:
        >>> mirrored_names(["Left ACA", "Acom", "Right ACA", "R-ICA", "L-ICA"])
        (2, 1, 0, 4, 3)
        >>> mirrored_names(["liver", "right kidney"]) is None
        True
    """
    lowered = [label.lower() for label in labels]
    found = []
    for name in lowered:
        other = re.sub(r"[a-z]+", lambda word: OTHER_SIDE.get(word.group(), word.group()), name)
        if other != name and other not in lowered:
            return None
        found.append(lowered.index(other))
    return tuple(found)


def _case(corpus: Corpus, row: Mapping[Any, Any]) -> Case:
    return Case(
        scan_id=row["scan_id"],
        subject=row["subject"],
        modality=row["modality"],
        unit=row["unit"],
        image=corpus.path / row["image_file_name"],
        mask=corpus.path / row["mask_file_name"],
        foreground_box=tuple(int(bound) for bound in row["foreground_box"]),
        labels=(),
        decisions=tuple(row["decisions"]),
        shape=tuple(int(size) for size in row["shape"]),
        spacing=tuple(float(size) for size in row["spacing"]),
        sha256=row["sha256"],
        mask_sha256=row["mask_sha256"] if isinstance(row["mask_sha256"], str) else None,
        source=row["source"],
    )
