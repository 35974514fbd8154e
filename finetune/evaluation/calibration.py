"""Whether probabilities mean what they say: a temperature a label, reliability, and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from finetune.evaluation.predictions import Predictions

CLOSEST = 1e-7
"""Probabilities are kept this far from 0 and 1, where logits have no end."""

LOG_TEMPERATURES = (-3.0, 3.0)
BINS = 10
LEAST_IN_BIN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """Series in bins of equal count, by predicted probability.

    Attributes:
        predicted_B: Mean predicted probability.
        found_B: Share of positives.
        count_B: Series.
    """

    predicted_B: NDArray[np.float64]
    found_B: NDArray[np.float64]
    count_B: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance between predicted and found, weighted by count."""
        return float(np.average(np.abs(self.predicted_B - self.found_B), weights=self.count_B))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Of one label.

    Attributes:
        name: The label.
        temperature: What its logits are best divided by, fitted to all series; NaN with a single class.
        before: Bins of the probabilities as they are.
        after: Bins with temperatures that were fitted to the other folds; None where there are none.
        brier: Mean squared error of the probabilities as they are.
        brier_after: The same with those temperatures; NaN where there are none.
    """

    name: str
    temperature: float
    before: Bins
    after: Bins | None
    brier: float
    brier_after: float

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {
            "temperature": self.temperature,
            "expected_calibration_error": self.before.error,
            "expected_calibration_error_out_of_fold": float("nan") if self.after is None else self.after.error,
            "brier": self.brier,
            "brier_out_of_fold": self.brier_after,
        }


def calibrate(predictions: Predictions) -> tuple[Calibration, ...]:
    """Fit a temperature to each label, and say what it is worth on series that it was not fitted to."""
    parts_N = predictions.parts()
    return tuple(_calibrate(*predictions.of(label), parts_N, name=label) for label in predictions.labels)


def cooled(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Probabilities whose logits are divided by a temperature; as they are where that is NaN.

    Example:
        >>> cooled(np.array([0.9]), 2.0).round(2).tolist()
        [0.75]
    """
    return probabilities if np.isnan(temperature) else np.asarray(expit(_logits(probabilities) / temperature))


def temperature(targets_N: NDArray[np.int64], probabilities_N: NDArray[np.float64]) -> float:
    """What logits are divided by so that the truth is likeliest (Guo et al. 2017); NaN with a single class.

    Example:
        >>> sure = np.where(np.arange(160) % 4 == 0, 0.01, 0.99)  # right in three of four cases
        >>> truth = np.where(np.arange(160) % 16 < 4, sure < 0.5, sure > 0.5).astype(int)
        >>> round(float(expit(logit(0.99) / temperature(truth, sure))), 2)
        0.75
    """
    if len(np.unique(targets_N)) < 2:
        return float("nan")
    logits_N, signs_N = _logits(probabilities_N), 2 * targets_N - 1

    def surprise(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signs_N * logits_N / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(surprise, bounds=LOG_TEMPERATURES, method="bounded").x))


def bins_of(targets_N: NDArray[np.int64], probabilities_N: NDArray[np.float64]) -> Bins:
    """Bins of equal count: at most `BINS`, and fewer where they would have fewer than `LEAST_IN_BIN` series."""
    order = np.argsort(probabilities_N, kind="stable")
    bins = np.array_split(order, max(1, min(BINS, len(order) // LEAST_IN_BIN)))
    return Bins(
        predicted_B=np.array([probabilities_N[rows].mean() for rows in bins]),
        found_B=np.array([targets_N[rows].mean() for rows in bins]),
        count_B=np.array([len(rows) for rows in bins]),
    )


def _calibrate(
    targets_N: NDArray[np.int64],
    probabilities_N: NDArray[np.float64],
    parts_N: NDArray[np.int64] | None,
    *,
    name: str,
) -> Calibration:
    cooled_N = None if parts_N is None else _cooled_by_others(targets_N, probabilities_N, parts_N)
    return Calibration(
        name=name,
        temperature=temperature(targets_N, probabilities_N),
        before=bins_of(targets_N, probabilities_N),
        after=None if cooled_N is None else bins_of(targets_N, cooled_N),
        brier=float(((probabilities_N - targets_N) ** 2).mean()),
        brier_after=float("nan") if cooled_N is None else float(((cooled_N - targets_N) ** 2).mean()),
    )


def _cooled_by_others(
    targets_N: NDArray[np.int64], probabilities_N: NDArray[np.float64], parts_N: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Probabilities with the temperature of all other parts; None where a part's others have a single class."""
    cooled_N = np.empty_like(probabilities_N)
    for part in np.unique(parts_N):
        rows = parts_N == part
        fitted = temperature(targets_N[~rows], probabilities_N[~rows])
        if np.isnan(fitted):
            return None
        cooled_N[rows] = expit(_logits(probabilities_N[rows]) / fitted)
    return cooled_N


def _logits(probabilities_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(logit(np.clip(probabilities_N, CLOSEST, 1 - CLOSEST)), dtype=np.float64)
