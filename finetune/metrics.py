"""ROC areas of any labels, their means, and what patients drawn again make of them.

A column with a single class has no ROC area: scikit-learn before 1.6 raises there, later ones warn and return NaN.
On a small fold that is the usual case, so such columns are named in `Score.undefined`, their area is NaN, and the
means go over the defined columns.

A bootstrap draw is how often each series counts: one column of times_ND, in which the series of a patient come
together. A statistic of all draws is then one pass over sorted predictions, with no resampled copy of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array

Times = NDArray[np.int32]

DRAWS = 1000
LEVEL = 0.95
LEAST_DEFINED = 0.5
"""Share of the draws in which a statistic must be defined for it to have an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a set of predictions is worth.

    Attributes:
        areas: ROC area by label, in the task's order; NaN where undefined.
        means: Mean area of the defined labels of each group, by the group's name; NaN if none is defined.
        score: Mean of `means`; NaN if one is.
        undefined: Labels that had a single class.
    """

    areas: dict[str, float]
    means: dict[str, float]
    score: float
    undefined: tuple[str, ...]

    def headline(self) -> dict[str, object]:
        """The means by name, the score, and the labels they leave out."""
        return {**self.means, "score": self.score, "undefined": list(self.undefined)}

    def line(self) -> str:
        """The means, the score and the note in one line for a person.

        Example:
            >>> score_labels([[0, 1], [1, 0]], [[1, 1], [1, 0]], labels="ab", groups={"auc_all": "ab"}).line()
            'AUC all 0.750, score 0.750'
        """
        named = [(name.replace("_", " ").replace("auc", "AUC"), mean) for name, mean in self.means.items()]
        means = ", ".join(f"{name} {mean:.3f}" for name, mean in (*named, ("score", self.score)))
        return f"{means} ({self.note()})" if self.note() else means

    def note(self) -> str:
        """One line for a person about what the score leaves out; empty if it leaves out nothing.

        Example:
            >>> score_labels([[0, 1], [0, 0]], [[1, 1], [1, 0]], labels="ab", groups={"all": "ab"}).note()
            '1 of 2 labels have a single class in this set; the means leave them out'
        """
        if not self.undefined:
            return ""
        return (
            f"{len(self.undefined)} of {len(self.areas)} labels have a single class in this set; "
            "the means leave them out"
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


def score_labels(
    targets_NL: ArrayLike, probabilities_NL: ArrayLike, *, labels: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> Score:
    """Score predictions by the mean of the means over groups of labels, with undefined columns told apart.

    Args:
        targets_NL: 0 or 1, a row a series, columns as `labels`.
        probabilities_NL: Any finite scores in the same layout; only their order within a column matters.
        labels: Names of the columns.
        groups: Labels of each group, by its name.

    Returns:
        The areas and their means.

    Raises:
        ValueError: If the shapes differ or are not (N, L), a target is neither 0 nor 1, or a prediction is not finite.

    Example:
        >>> score_labels([[0, 1], [1, 0]], [[0.1, 0.9], [0.8, 0.2]], labels="ab", groups={"all": "ab"}).score
        1.0
    """
    areas = dict(zip(labels, map(float, roc_areas(targets_NL, probabilities_NL, labels=len(labels))), strict=True))
    means = {name: _mean_of_defined([areas[label] for label in members]) for name, members in groups.items()}
    return Score(
        areas=areas,
        means=means,
        score=float(np.mean(list(means.values()))),
        undefined=tuple(label for label, area in areas.items() if np.isnan(area)),
    )


def roc_areas(targets_NL: ArrayLike, scores_NL: ArrayLike, *, labels: int) -> NDArray[np.float64]:
    """ROC area of each label, (L,); NaN where it has a single class. Arguments and faults as for `score_labels`."""
    targets, scores = np.asarray(targets_NL), np.asarray(scores_NL, dtype=np.float64)
    if targets.shape != scores.shape or targets.ndim != 2 or targets.shape[1] != labels:
        raise ValueError(f"targets {targets.shape} and predictions {scores.shape} must both be (N, {labels})")
    if not np.isin(targets, (0, 1)).all():
        raise ValueError("targets must be 0 or 1")
    if not np.isfinite(scores).all():
        raise ValueError("predictions must be finite: there is no ROC area of NaN")
    return np.array([_area(targets[:, column].astype(np.int64), scores[:, column]) for column in range(labels)])


def draw_patients(subjects_N: Sequence[object], *, draws: int = DRAWS, seed: int = 0) -> Times:
    """Draw as many patients as there are, with replacement, again and again.

    Args:
        subjects_N: The patient of each series.
        draws: How many times.
        seed: Of the drawing.

    Returns:
        times_ND: how often each series counts in each draw; a patient's series come together.
    """
    codes_N, names = pd.factorize(np.asarray(subjects_N, dtype=object), use_na_sentinel=False)
    if not len(names):
        return np.zeros((0, draws), dtype=np.int32)
    share = np.full(len(names), 1 / len(names))
    times_DP = np.random.default_rng(seed).multinomial(len(names), share, draws)
    return np.ascontiguousarray(times_DP.T, dtype=np.int32)[codes_N]


def drawn_areas(
    targets_N: NDArray[np.int64],
    scores_N: NDArray[np.float64],
    times_ND: Times,
    *,
    strata_N: NDArray[np.generic] | None = None,
) -> NDArray[np.float64]:
    """ROC area of each draw: the share of its pairs of a positive and a negative that are in the right order.

    Args:
        targets_N: 0 or 1; (N, C) takes each of a series' C answers as one of its own (micro average).
        scores_N: Finite, of the same shape; only their order matters, and a tie is half a pair.
        times_ND: As `draw_patients` gives them; a column of ones, from `undrawn`, is the sample itself.
        strata_N: Only pairs of one stratum count, such as those whose scores are of one model; None: all pairs.

    Returns:
        (D,), NaN where a draw has no pair.
    """
    rows = [slice(None)] if strata_N is None else [strata_N == stratum for stratum in np.unique(strata_N)]
    won_D, pairs_D = np.zeros(times_ND.shape[1]), np.zeros(times_ND.shape[1], dtype=np.int64)
    for row in rows:
        steps = _steps_of(targets_N[row], scores_N[row], times_ND[row])
        won_D += np.einsum("kd,kd->d", steps.positives_KD, steps.below_KD + steps.up_to_KD, dtype=np.int64) / 2
        pairs_D += steps.positives_KD.sum(0, dtype=np.int64) * steps.negatives_D
    return _quotient(won_D, pairs_D)


def drawn_precisions(
    targets_N: NDArray[np.int64], scores_N: NDArray[np.float64], times_ND: Times
) -> NDArray[np.float64]:
    """Average precision of each draw, as scikit-learn has it: the precision at each score, weighted by recall gained.

    Args:
        targets_N: As for `drawn_areas`.
        scores_N: Likewise.
        times_ND: Likewise.

    Returns:
        (D,), NaN where a draw has no positive.
    """
    steps = _steps_of(targets_N, scores_N, times_ND)
    right_KD = np.cumsum(steps.positives_KD[::-1], axis=0)[::-1]
    called_KD = right_KD + (steps.negatives_D - steps.below_KD)
    summed_D = np.einsum("kd,kd->d", steps.positives_KD, right_KD / np.maximum(called_KD, 1))
    return _quotient(summed_D, steps.positives_KD.sum(0, dtype=np.int64))


def undrawn(count: int) -> Times:
    """The sample itself as a single draw: each of `count` series once."""
    return np.ones((count, 1), dtype=np.int32)


def percentile_interval(values_D: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """The interval between percentiles of a statistic's draws; those in which it is NaN are left out and counted.

    Args:
        values_D: The statistic of each draw.
        level: Coverage, between 0 and 1.

    Returns:
        The interval; NaN bounds where fewer than half of the draws were defined.
    """
    values = values_D[np.isfinite(values_D)]
    share = len(values) / len(values_D)
    if share < LEAST_DEFINED:
        return Interval(low=float("nan"), high=float("nan"), defined=share)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), defined=share)


class _Steps(NamedTuple):
    """What a threshold passes on its way over the K different scores of positives, lowest first, in each draw.

    Attributes:
        positives_KD: Positives with that score.
        below_KD: Negatives with a lower score.
        up_to_KD: The same with those of that score.
        negatives_D: All negatives.
    """

    positives_KD: NDArray[np.int32]
    below_KD: NDArray[np.int32]
    up_to_KD: NDArray[np.int32]
    negatives_D: NDArray[np.int32]


def _steps_of(targets: NDArray[np.int64], scores: NDArray[np.float64], times_ND: Times) -> _Steps:
    series = np.broadcast_to(np.arange(len(times_ND)).reshape(-1, *[1] * (targets.ndim - 1)), targets.shape)
    positive = targets == 1
    score_K, step = np.unique(scores[positive], return_inverse=True)
    positives_KD = _summed(step, series[positive], times_ND, len(score_K))
    # Negatives fall between two scores (even places) or on one (odd ones).
    below = np.searchsorted(score_K, scores[~positive], side="left")
    place = below + np.searchsorted(score_K, scores[~positive], side="right")
    passed_KD = np.cumsum(_summed(place, series[~positive], times_ND, 2 * len(score_K) + 1), axis=0, dtype=np.int32)
    return _Steps(positives_KD, passed_KD[:-1:2], passed_KD[1::2], passed_KD[-1])


def _summed(place_M: NDArray[np.int64], series_M: NDArray[np.int64], times_ND: Times, places: int) -> Times:
    """How often the series at each place were drawn, (places, D)."""
    ones_M = np.ones(len(place_M), dtype=np.int32)
    at_PN = coo_array((ones_M, (place_M, series_M)), shape=(places, len(times_ND))).tocsr()
    return np.asarray(at_PN @ times_ND)


def _quotient(above_D: NDArray[np.float64], below_D: NDArray[np.int64]) -> NDArray[np.float64]:
    """NaN where it is divided by 0."""
    return np.divide(above_D, below_D, out=np.full(len(below_D), np.nan), where=below_D > 0)


def _mean_of_defined(areas: Sequence[float]) -> float:
    defined = [area for area in areas if not np.isnan(area)]
    return float(np.mean(defined)) if defined else float("nan")


def _area(targets_N: NDArray[np.int64], scores_N: NDArray[np.float64]) -> float:
    if len(np.unique(targets_N)) < 2:
        return float("nan")
    from sklearn.metrics import roc_auc_score  # slow to load, and nothing that predicts needs it

    return float(roc_auc_score(targets_N, scores_N))
