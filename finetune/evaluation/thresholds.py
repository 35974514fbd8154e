"""Where to call a series positive: thresholds chosen on other folds, and the tables of right and wrong calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.predictions import Predictions

TARGET_PRECISION = 0.8
"""Of the overall label, where nobody asks for another: four of five calls are right."""

Choose = Callable[[NDArray[np.int64], NDArray[np.float64]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Right and wrong calls.

    Attributes:
        true_positives: Called and there.
        false_positives: Called and not there.
        false_negatives: There and not called.
        true_negatives: Neither.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def precision(self) -> float:
        """Share of the calls that are right; NaN without a call."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def sensitivity(self) -> float:
        """Share of what is there that is called; NaN where nothing is."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> float:
        """Share of what is not there that is not called; NaN where all is."""
        return _share(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and sensitivity; NaN where nothing is there or called."""
        return _share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    def facts(self) -> dict[str, float]:
        """For JSON."""
        return {
            "true_positives": self.true_positives,
            "false_positives": self.false_positives,
            "false_negatives": self.false_negatives,
            "true_negatives": self.true_negatives,
            "precision": self.precision,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
            "f1": self.f1,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Of one label.

    Attributes:
        name: The label.
        rule: How it is chosen, in words.
        value: From all series: a series is called where its probability reaches it. NaN where no threshold does.
        confusion: Calls of each fold's series at the threshold that the other folds choose, so that nothing is judged
            by what it was chosen on; of all at `value` where there are no folds.
        honest: Whether they were chosen on other folds.
    """

    name: str
    rule: str
    value: float
    confusion: Confusion
    honest: bool

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {"rule": self.rule, "threshold": self.value, "out_of_fold": self.honest, **self.confusion.facts()}


def choose_thresholds(predictions: Predictions, *, precision: float = TARGET_PRECISION) -> tuple[Threshold, ...]:
    """The smallest threshold that reaches a precision for the overall label, and that of the best F1 for each site.

    Args:
        predictions: Those.
        precision: To reach.
    """
    parts_N = predictions.parts()
    found = []
    for label in predictions.labels:
        targets_N, probabilities_N = predictions.of(label)
        overall = label == predictions.overall
        choose: Choose = partial(smallest_with_precision, precision=precision) if overall else best_f1
        rule = f"precision {precision:g}" if overall else "best F1"
        value = choose(targets_N, probabilities_N)
        called_N = probabilities_N >= value
        if parts_N is not None:
            for part in np.unique(parts_N):
                rows = parts_N == part
                called_N[rows] = probabilities_N[rows] >= choose(targets_N[~rows], probabilities_N[~rows])
        confusion = confusion_of(targets_N, called_N)
        found.append(Threshold(name=label, rule=rule, value=value, confusion=confusion, honest=parts_N is not None))
    return tuple(found)


def smallest_with_precision(
    targets_N: NDArray[np.int64], probabilities_N: NDArray[np.float64], *, precision: float
) -> float:
    """The smallest threshold at which the share of right calls reaches `precision`; NaN where none does.

    Example:
        >>> smallest_with_precision(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]), precision=0.6)
        0.2
    """
    from sklearn.metrics import precision_recall_curve  # slow to load, and nothing that predicts needs it

    if not targets_N.any():
        return float("nan")
    reached_T, _, values_T = precision_recall_curve(targets_N, probabilities_N)
    enough = np.flatnonzero(reached_T[:-1] >= precision)
    return float(values_T[enough[0]]) if len(enough) else float("nan")


def best_f1(targets_N: NDArray[np.int64], probabilities_N: NDArray[np.float64]) -> float:
    """The threshold with the highest F1, the higher one of two; NaN without a positive.

    Example:
        >>> best_f1(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]))
        0.2
    """
    from sklearn.metrics import precision_recall_curve  # slow to load, and nothing that predicts needs it

    if not targets_N.any():
        return float("nan")
    precision_T, recall_T, values_T = precision_recall_curve(targets_N, probabilities_N)
    both_T = precision_T[:-1] + recall_T[:-1]
    f1_T = 2 * precision_T[:-1] * recall_T[:-1] / np.where(both_T > 0, both_T, 1)
    return float(values_T[np.flatnonzero(f1_T == f1_T.max())[-1]])


def confusion_of(targets_N: NDArray[np.int64], called_N: NDArray[np.bool_]) -> Confusion:
    """Count the calls."""
    there_N = targets_N == 1
    return Confusion(
        true_positives=int((called_N & there_N).sum()),
        false_positives=int((called_N & ~there_N).sum()),
        false_negatives=int((~called_N & there_N).sum()),
        true_negatives=int((~called_N & ~there_N).sum()),
    )


def summed(confusions: Sequence[Confusion]) -> Confusion:
    """All calls together: what the micro averages are made of."""
    return Confusion(
        true_positives=sum(one.true_positives for one in confusions),
        false_positives=sum(one.false_positives for one in confusions),
        false_negatives=sum(one.false_negatives for one in confusions),
        true_negatives=sum(one.true_negatives for one in confusions),
    )


def averaged(confusions: Sequence[Confusion]) -> dict[str, float]:
    """Macro averages: the mean of each share over the labels that have it."""
    names = ("precision", "sensitivity", "specificity", "f1")
    values = {name: [value for one in confusions if not np.isnan(value := getattr(one, name))] for name in names}
    return {name: float(np.mean(found)) if found else float("nan") for name, found in values.items()}


def site_confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Which site is taken for which: series with exactly one site, by that site (rows) and by the highest one.

    Returns:
        (S, S) counts, rows and columns as `Predictions.sites`.
    """
    columns = [predictions.labels.index(site) for site in predictions.sites]
    targets_NS, scores_NS = predictions.targets_NL[:, columns], predictions.probabilities_NL[:, columns]
    counts_SS = np.zeros((len(columns), len(columns)), dtype=np.int64)
    if columns:
        single = targets_NS.sum(1) == 1
        np.add.at(counts_SS, (targets_NS[single].argmax(1), scores_NS[single].argmax(1)), 1)
    return counts_SS


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
