"""The metric of RSNA 2025 intracranial aneurysm detection: weighted ROC areas of 14 labels.

The competition computes ``roc_auc_score(average=None)`` per column and averages with the weights ``[1] * 13 + [13]``,
that is half the area of `Aneurysm Present` plus half the mean area of the 13 locations.

A column with a single class has no ROC area: scikit-learn before 1.6 raises there, later ones warn and return NaN.
On a small fold that is the usual case, so such columns are named in `Score.undefined`, their area is NaN, and the
means go over the defined columns; only a score with nothing undefined is the competition's number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from harmonize.labels import LABELS, LOCATIONS, PRESENT

WEIGHTS = (1,) * len(LOCATIONS) + (len(LOCATIONS),)
"""The competition's weight of each of `LABELS`; they are divided by their sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a set of predictions is worth.

    Attributes:
        areas: ROC area by label name, in the competition's order; NaN where undefined.
        auc_present: Area of `Aneurysm Present`, or NaN.
        auc_mean_locations: Mean area of the defined locations, or NaN if none is defined.
        score: Mean of the two above; NaN if either is. The competition's number if `undefined` is empty.
        undefined: Labels that had a single class.
    """

    areas: dict[str, float]
    auc_present: float
    auc_mean_locations: float
    score: float
    undefined: tuple[str, ...]

    def headline(self) -> dict[str, object]:
        """The three means by name, and the labels they leave out."""
        return {
            "auc_present": self.auc_present,
            "auc_mean_locations": self.auc_mean_locations,
            "score": self.score,
            "undefined": list(self.undefined),
        }

    def note(self) -> str:
        """One line for a person about what the score leaves out; empty if it leaves out nothing.

        Example:
            >>> competition_score([[0] * 14, [0] * 13 + [1]], [[0.1] * 14, [0.9] * 14]).note()
            '13 of 14 labels have a single class in this set; the means leave them out'
        """
        if not self.undefined:
            return ""
        return (
            f"{len(self.undefined)} of {len(LABELS)} labels have a single class in this set; the means leave them out"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A percentile bootstrap interval.

    Attributes:
        low: Lower bound, or NaN if too few draws were defined.
        high: Upper bound, or NaN likewise.
        defined: Share of the draws in which the statistic was defined.
    """

    low: float
    high: float
    defined: float


def competition_score(targets_N14: ArrayLike, probabilities_N14: ArrayLike) -> Score:
    """Score predictions as the competition does, with undefined columns told apart.

    Args:
        targets_N14: 0 or 1, a row a series, columns as `LABELS`.
        probabilities_N14: Any finite scores in the same layout; only their order within a column matters.

    Returns:
        The areas and their means.

    Raises:
        ValueError: If the shapes differ or are not (N, 14), a target is neither 0 nor 1, or a prediction is not finite.

    Example:
        >>> import numpy as np
        >>> targets = np.eye(14)
        >>> competition_score(targets, targets).score
        1.0
    """
    targets, probabilities = _checked(targets_N14, probabilities_N14)
    areas = [_area(targets[:, i], probabilities[:, i]) for i in range(len(LABELS))]
    locations = [area for area in areas[: len(LOCATIONS)] if not np.isnan(area)]
    present = areas[LABELS.index(PRESENT)]
    mean_locations = float(np.mean(locations)) if locations else float("nan")
    return Score(
        areas=dict(zip(LABELS, areas, strict=True)),
        auc_present=present,
        auc_mean_locations=mean_locations,
        score=(present + mean_locations) / 2,
        undefined=tuple(label for label, area in zip(LABELS, areas, strict=True) if np.isnan(area)),
    )


def bootstrap_interval(
    targets_N: ArrayLike, scores_N: ArrayLike, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap, over series, of the ROC area of one label.

    Args:
        targets_N: 0 or 1.
        scores_N: Finite; only their order matters.
        draws: Resamples with replacement. Those with a single class have no area: they are left out and counted.
        level: Coverage, between 0 and 1.
        seed: Of the resampling.

    Returns:
        The interval; NaN bounds where fewer than half of the draws were defined.
    """
    targets, scores = np.asarray(targets_N), np.asarray(scores_N, dtype=np.float64)
    difference_PQ = scores[targets == 1][:, None] - scores[targets == 0][None]
    # A resample is how often each series was drawn, and its area a weighted share of pairs in the right order.
    wins_PQ = (difference_PQ > 0) + 0.5 * (difference_PQ == 0)
    times_DN = np.random.default_rng(seed).multinomial(len(targets), np.full(len(targets), 1 / len(targets)), draws)
    times_DP, times_DQ = times_DN[:, targets == 1], times_DN[:, targets == 0]
    pairs_D = times_DP.sum(1) * times_DQ.sum(1)
    won_D = ((times_DP @ wins_PQ) * times_DQ).sum(1)
    areas = won_D[pairs_D > 0] / pairs_D[pairs_D > 0]
    share = len(areas) / draws
    if share < 0.5:
        return Interval(low=float("nan"), high=float("nan"), defined=share)
    low, high = np.quantile(areas, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), defined=share)


def _checked(targets_N14: ArrayLike, probabilities_N14: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    targets, probabilities = np.asarray(targets_N14), np.asarray(probabilities_N14, dtype=np.float64)
    if targets.shape != probabilities.shape or targets.ndim != 2 or targets.shape[1] != len(LABELS):
        raise ValueError(
            f"targets {targets.shape} and predictions {probabilities.shape} must both be (N, {len(LABELS)})"
        )
    if not np.isin(targets, (0, 1)).all():
        raise ValueError("targets must be 0 or 1")
    if not np.isfinite(probabilities).all():
        raise ValueError("predictions must be finite: the competition's metric refuses NaN")
    return targets.astype(np.int64), probabilities


def _area(targets_N: NDArray[np.int64], scores_N: NDArray[np.float64]) -> float:
    if len(np.unique(targets_N)) < 2:
        return float("nan")
    return float(roc_auc_score(targets_N, scores_N))
