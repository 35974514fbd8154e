"""What every task is: what it calls its answers, which series it has, what a network should say, and the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from finetune.drawing import Balance
from finetune.metrics import Score
from finetune.series import Case, Sample, Selection
from harmonize.corpus import Corpus
from harmonize.scan import Scan

KNOWN = "_known"
"""Behind a target's name: which series it can be scored in, (B,) bool; without it, all."""

LABELS = "labels"
"""The target and the output that every task and every main head has: (B, L), an entry a label."""


class Task(Protocol):
    """One question about a head. A task is one file of `finetune.tasks` and an entry there.

    Attributes:
        labels: Names of the answers, in the order of their columns.
        mirror: The label that each becomes in the mirror image, a permutation; None: mirror images must not be shown.
        places: How many of the labels, from the first on, are places that points and masks name.
        any_label: Index of the label that is positive where any other is; None if there is none.
        label_weights: What each label counts in the score, and in the losses of labels.
        groups: The same as means over groups of labels, by the group's name; the score is the mean of these.
        source: The source of its series in a corpus.
        mask_values: The value of each place in the corpus's masks.
        modalities: Which there are among its series, as the corpus spells them; the classes of the target ``modality``.
        sources: Likewise of sources, the classes of the target ``source``.
    """

    labels: tuple[str, ...]
    mirror: tuple[int, ...] | None
    places: int
    any_label: int | None
    label_weights: tuple[float, ...]
    groups: Mapping[str, tuple[str, ...]]
    source: str
    mask_values: tuple[int, ...]
    modalities: tuple[str, ...]
    sources: tuple[str, ...]

    def cases(self, corpus: Corpus, *, every_label: bool = False) -> Selection:
        """Which series of a corpus a run uses, and why not the others.

        Args:
            corpus: With labels.
            every_label: Use whatever has labels, as version 0.1.0 did: for runs that it began.

        Raises:
            UserError: There is none.
        """
        ...

    def targets(self, sample: Sample) -> dict[str, Tensor]:
        """What the outputs that are named in `Sample.cells`, `LABELS`, ``modality`` and ``source`` should say."""
        ...

    def score(self, table: pd.DataFrame) -> Score:
        """The score of a table as `finetune.inference.predict_cases` makes it."""
        ...

    def draw_weights(
        self, cases: Sequence[Case], *, positive_share: float, balance: Balance = "presence"
    ) -> NDArray[np.float64]:
        """Probability of each labelled case to be drawn for training, (N,) summing to 1."""
        ...

    def check_scan(self, scan: Scan) -> None:
        """Refuse a raw series that the task is not about.

        Raises:
            Rejection: Says why.
        """
        ...


class TaskConfig(Protocol):
    """The part of a recipe that picks a task."""

    @property
    def kind(self) -> str:
        """Its name."""
        ...


def known(targets: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Which series a target can be scored in, (B,) bool, or None for all."""
    return targets.get(f"{name}{KNOWN}")
