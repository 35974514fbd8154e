"""What every task is: what it calls its answers, which series it has, what a network should say, and the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.drawing import Balance
from finetune.evaluation.measures import Kind
from finetune.metrics import Score
from finetune.series import Case, Sample, Selection
from harmonize.corpus import Corpus
from harmonize.errors import Reason, Rejection
from harmonize.scan import ACTIVITY, Scan

KNOWN = "_known"
"""Behind a target's name: which series it can be scored in, (B,) bool; without it, all."""

LABELS = "labels"
"""The target and the output of tasks that are answered by labels: (B, L), an entry a label."""

MASKS = "masks"
"""The output of tasks that are answered voxel by voxel: (B, L + 1, d, h, w), the first class for none of the labels."""

_SMALLEST = torch.finfo(torch.float32).tiny
_LARGEST = 1 - torch.finfo(torch.float32).eps / 2
"""Probabilities that float32 cannot tell from 0 and 1 still have a finite logit."""


class Link(Enum):
    """What the outputs of a network say of labels: that each is true or not, that one of them is, or numbers."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    IDENTITY = "identity"

    def values(self, outputs_BL: Tensor) -> Tensor:
        """Probabilities, or numbers."""
        if self is Link.IDENTITY:
            return outputs_BL
        return outputs_BL.softmax(1) if self is Link.SOFTMAX else outputs_BL.sigmoid()

    def mean(self, values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """What several models say together: the values of the weighted mean of their outputs.

        Args:
            values: Of each model, (B, L).
            weights: Of each model, positive.

        Example:
            >>> said = [torch.tensor([[0.2]]), torch.tensor([[0.8]])]
            >>> Link.SIGMOID.mean(said, [1.0, 1.0]).item(), round(Link.IDENTITY.mean(said, [1.0, 3.0]).item(), 2)
            (0.5, 0.65)
        """
        shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        stacked = torch.stack([each.double() for each in values], dim=-1)
        if self is Link.IDENTITY:
            return (stacked @ shares).float()
        clamped = stacked.clamp(_SMALLEST, _LARGEST)
        if self is Link.SOFTMAX:
            return (clamped.log() @ shares).softmax(1).float()
        return (clamped.logit() @ shares).sigmoid().float()


class Task(Protocol):
    """One question about a head. A task is one file of `finetune.tasks` and an entry there.

    Attributes:
        answers: The output that says its answers, which the main head must give: `LABELS` or `MASKS`.
        asks: What the labels are, for the measures of what is said of them.
        labels: Names of the answers, in the order of their columns.
        mirror: The label that each becomes in the mirror image, a permutation; None: mirror images must not be shown.
        places: How many of the labels, from the first on, are places that points and masks name.
        any_label: Index of the label that is positive where any other is; None if there is none.
        label_weights: What each label counts in the score, and in the losses of labels.
        groups: The same as means over groups of labels, by the group's name; the score is the mean of these.
        link: What the outputs of its labels say.
        class_weights: What a positive label, or a class, counts in losses of kind ``classes``.
        knows_contrasts: Whether the contrast of an MRI is known at prediction too, as names of NIfTI files tell it.
        shares_folds: Whether folds are those of the corpus, or of each run's own table.
        mask_values: The value of each place in the corpus's masks.
        modalities: Which there are among its series, as the corpus spells them; the classes of the target ``modality``.
        sources: The sources of its series in a corpus, the classes of the target ``source``.
    """

    answers: str
    asks: Kind
    labels: tuple[str, ...]
    mirror: tuple[int, ...] | None
    places: int
    any_label: int | None
    label_weights: tuple[float, ...]
    groups: Mapping[str, tuple[str, ...]]
    link: Link
    class_weights: tuple[float, ...]
    knows_contrasts: bool
    shares_folds: bool
    mask_values: tuple[int, ...]
    modalities: tuple[str, ...]
    sources: tuple[str, ...]

    def cases(self, corpus: Corpus, *, labels: Path | None = None, every_label: bool = False) -> Selection:
        """Which series of a corpus a run uses, and why not the others.

        Args:
            corpus: With labels.
            labels: A table of labels, for tasks that take one.
            every_label: Use whatever has labels, as version 0.1.0 did: for runs that it began.

        Raises:
            UserError: There is none.
        """
        ...

    def targets(self, sample: Sample) -> dict[str, Tensor]:
        """What the outputs that are named in `Sample.cells`, `LABELS`, ``modality`` and ``source`` should say."""
        ...

    def values(self, outputs_BL: Tensor) -> Tensor:
        """What the outputs of a network say of the labels: probabilities, or numbers as the table has them."""
        ...

    def score(self, table: pd.DataFrame) -> Score:
        """The score of a table as `finetune.validation.predict_cases` makes it."""
        ...

    def draw_weights(
        self, cases: Sequence[Case], *, positive_share: float, balance: Balance = "presence"
    ) -> NDArray[np.float64]:
        """Probability of each labelled case to be drawn for training, (N,) summing to 1."""
        ...

    def fold_labels(self, cases: Sequence[Case]) -> list[list[int]]:
        """Labels of 0 and 1 of which each fold gets its share; asked where folds are a run's own."""
        ...

    def check_scan(self, scan: Scan) -> None:
        """Refuse a raw series that the task is not about.

        Raises:
            Rejection: Says why.
        """
        ...


class TaskConfig(Protocol):
    """The part of a recipe that picks a task.

    One that leaves open what a corpus or a table says has a method ``settled(corpus, labels)``, which gives it with
    nothing of that left open; one that learns something of the training series, such as their mean, has a method
    ``fitted(cases)``, likewise. What these fill in lies in the model's folder, and the table need not.
    """

    @property
    def kind(self) -> str:
        """Its name."""
        ...


def known(targets: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Which series a target can be scored in, (B,) bool, or None for all."""
    return targets.get(f"{name}{KNOWN}")


def refuse_activity(scan: Scan) -> None:
    """Refuse counts of decays, which are neither CT nor MR.

    Raises:
        Rejection: It has them.
    """
    if scan.unit == ACTIVITY:
        raise Rejection(Reason.UNSUPPORTED_MODALITY, "neither CT nor MR")
