"""The field's measures: as scikit-learn has them, of a sample and of patients drawn again."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics

from finetune.evaluation.measures import drawn_measures
from finetune.metrics import draw_patients, undrawn

N, DRAWS = 60, 20


def rows_of(times_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """Which series a draw holds, each as often as it counts."""
    return np.repeat(np.arange(len(times_N)), times_N)


def test_binary_labels_are_measured_as_by_scikit_learn_in_every_draw() -> None:
    generator = np.random.default_rng(0)
    truth_N1 = generator.integers(0, 2, (N, 1)).astype(float)
    said_N1 = np.clip(truth_N1 * 0.3 + generator.random((N, 1)) * 0.7, 0, 1)
    times_ND = draw_patients([str(number // 2) for number in range(N)], draws=DRAWS)
    found = drawn_measures("binary", truth_N1, said_N1, times_ND)
    for draw, times_N in enumerate(times_ND.T):
        truth, said = truth_N1[rows_of(times_N), 0], said_N1[rows_of(times_N), 0]
        assert found["auc"][draw] == pytest.approx(metrics.roc_auc_score(truth, said))
        assert found["average_precision"][draw] == pytest.approx(metrics.average_precision_score(truth, said))
        assert found["balanced_accuracy"][draw] == pytest.approx(metrics.balanced_accuracy_score(truth, said >= 0.5))


def test_classes_are_measured_as_by_scikit_learn_in_every_draw() -> None:
    generator = np.random.default_rng(1)
    classes = generator.integers(0, 3, N)
    truth_NL = np.eye(3)[classes]
    said_NL = truth_NL + generator.random((N, 3)) * 2
    said_NL /= said_NL.sum(1, keepdims=True)
    times_ND = draw_patients(range(N), draws=DRAWS)
    found = drawn_measures("multiclass", truth_NL, said_NL, times_ND)
    for draw, times_N in enumerate(times_ND.T):
        rows = rows_of(times_N)
        called = said_NL[rows].argmax(1)
        area = metrics.roc_auc_score(classes[rows], said_NL[rows], multi_class="ovr")
        assert found["auc"][draw] == pytest.approx(area)
        assert found["accuracy"][draw] == pytest.approx(metrics.accuracy_score(classes[rows], called))
        balanced = metrics.balanced_accuracy_score(classes[rows], called)
        assert found["balanced_accuracy"][draw] == pytest.approx(balanced)


def test_numbers_are_measured_as_by_scikit_learn_in_every_draw() -> None:
    generator = np.random.default_rng(2)
    truth_NL = 1e6 + generator.standard_normal((N, 2)) * (1, 5)
    said_NL = truth_NL + generator.standard_normal((N, 2))
    times_ND = draw_patients(range(N), draws=DRAWS)
    found = drawn_measures("regression", truth_NL, said_NL, times_ND)
    for draw, times_N in enumerate(times_ND.T):
        truth, said = truth_NL[rows_of(times_N)], said_NL[rows_of(times_N)]
        assert found["mae"][draw] == pytest.approx(metrics.mean_absolute_error(truth, said))
        assert found["r2"][draw] == pytest.approx(metrics.r2_score(truth, said), rel=1e-6)
        correlation = np.mean([np.corrcoef(truth[:, label], said[:, label])[0, 1] for label in range(2)])
        assert found["correlation"][draw] == pytest.approx(correlation, rel=1e-6)


def test_what_a_sample_cannot_tell_has_no_value() -> None:
    ones, once = np.ones((4, 1)), undrawn(4)
    found = drawn_measures("binary", ones, ones / 2, once)
    assert np.isnan(found["auc"][0])
    assert np.isnan(found["balanced_accuracy"][0])
    numbers = drawn_measures("regression", ones, ones / 2, once)
    assert numbers["mae"][0] == 0.5
    assert np.isnan(numbers["r2"][0])
