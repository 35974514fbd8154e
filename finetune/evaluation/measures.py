"""The field's measures of labels that are binary, of one class of several, or numbers, of patients drawn again too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import Times, drawn_areas, drawn_precisions

Kind = Literal["binary", "multiclass", "multilabel", "regression"]
Drawn = NDArray[np.float64]

AUC, PRECISION, BALANCED, ACCURACY = "auc", "average_precision", "balanced_accuracy", "accuracy"
MAE, R2, CORRELATION = "mae", "r2", "correlation"

HALF = 0.5
"""From which probability on a label is called."""

HEADLINE: Mapping[Kind, str] = {"binary": AUC, "multiclass": AUC, "multilabel": AUC, "regression": R2}
"""The measure that is the score."""

NAMES = {
    AUC: "AUC", PRECISION: "average precision", BALANCED: "balanced accuracy", ACCURACY: "accuracy",
    MAE: "mean absolute error", R2: "R2", CORRELATION: "correlation",
}  # fmt: skip
"""For people."""


def drawn_measures(kind: Kind, truth_NL: NDArray[np.float64], said_NL: Drawn, times_ND: Times) -> dict[str, Drawn]:
    """Each measure of each draw, as a mean over the labels for which it is defined there.

    Args:
        kind: Of the labels.
        truth_NL: 0 or 1 (of one class of several: a single 1 a row), or numbers.
        said_NL: Probabilities, or numbers.
        times_ND: How often each series counts in each draw, as `finetune.metrics.draw_patients` gives it.

    Returns:
        (D,) by name, in the order in which they are told; NaN where no label has the measure.
    """
    labels = range(truth_NL.shape[1])
    by_label = [label_measures(kind, truth_NL[:, label], said_NL[:, label], times_ND) for label in labels]
    found = {name: _mean([one[name] for one in by_label]) for name in by_label[0]}
    if kind == "multiclass":
        truth_N, called_N = truth_NL.argmax(1), said_NL.argmax(1)
        right_N = (truth_N == called_N).astype(np.float64)
        recalls = [_weighted_mean(right_N, times_ND * (truth_N == label)[:, None]) for label in labels]
        # As scikit-learn has it: over the classes that the draw holds.
        found[BALANCED] = _mean(recalls)
        found[ACCURACY] = _weighted_mean(right_N, times_ND)
    return found


def label_measures(kind: Kind, truth_N: NDArray[np.float64], said_N: Drawn, times_ND: Times) -> dict[str, Drawn]:
    """Each measure of one label in each draw; arguments as for `drawn_measures`, of the label alone."""
    if kind == "regression":
        return {name: measure(truth_N, said_N, times_ND) for name, measure in _OF_NUMBERS.items()}
    classes_N = truth_N.astype(np.int64)
    found = {
        AUC: drawn_areas(classes_N, said_N, times_ND),
        PRECISION: drawn_precisions(classes_N, said_N, times_ND),
    }
    if kind != "multiclass":
        found[BALANCED] = _balanced_accuracy(classes_N, said_N, times_ND)
    return found


def _balanced_accuracy(truth_N: NDArray[np.int64], said_N: Drawn, times_ND: Times) -> Drawn:
    called_N = (said_N >= HALF).astype(np.float64)
    sensitivity_D = _weighted_mean(called_N, times_ND * (truth_N == 1)[:, None])
    specificity_D = _weighted_mean(1 - called_N, times_ND * (truth_N == 0)[:, None])
    return np.asarray((sensitivity_D + specificity_D) / 2)


def _absolute_error(truth_N: Drawn, said_N: Drawn, times_ND: Times) -> Drawn:
    return _weighted_mean(np.abs(truth_N - said_N), times_ND)


def _explained(truth_N: Drawn, said_N: Drawn, times_ND: Times) -> Drawn:
    """One minus the squared error over the variance; NaN where all have one value."""
    spread_D = _variance(truth_N, times_ND)
    error_D = _weighted_mean((truth_N - said_N) ** 2, times_ND)
    return 1 - np.divide(error_D, spread_D, out=np.full(len(spread_D), np.nan), where=spread_D > 0)


def _correlation(truth_N: Drawn, said_N: Drawn, times_ND: Times) -> Drawn:
    """Pearson's; NaN where one side has one value."""
    truth_N, said_N = truth_N - truth_N.mean(), said_N - said_N.mean()
    product_D = _weighted_mean(truth_N * said_N, times_ND)
    shared_D = product_D - _weighted_mean(truth_N, times_ND) * _weighted_mean(said_N, times_ND)
    spread_D = np.sqrt(_variance(truth_N, times_ND) * _variance(said_N, times_ND))
    return np.divide(shared_D, spread_D, out=np.full(len(spread_D), np.nan), where=spread_D > 0)


_OF_NUMBERS: Mapping[str, Callable[[Drawn, Drawn, Times], Drawn]] = {
    MAE: _absolute_error,
    R2: _explained,
    CORRELATION: _correlation,
}


def _variance(values_N: Drawn, times_ND: Times) -> Drawn:
    centred_N = values_N - values_N.mean()  # large numbers with a small spread keep their digits
    return np.asarray(_weighted_mean(centred_N**2, times_ND) - _weighted_mean(centred_N, times_ND) ** 2)


def _weighted_mean(values_N: Drawn, times_ND: Times) -> Drawn:
    """NaN in a draw that holds no series."""
    count_D = times_ND.sum(0)
    return np.divide(values_N @ times_ND, count_D, out=np.full(times_ND.shape[1], np.nan), where=count_D > 0)


def _mean(values: list[Drawn]) -> Drawn:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=0))
