"""The competition's metric against a direct computation, and its odd cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finetune.metrics import WEIGHTS, bootstrap_interval, competition_score
from harmonize.labels import LABELS, PRESENT


def draw(seed: int, count: int = 60, share: float = 0.3) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    targets = (generator.random((count, 14)) < share).astype(np.int64)
    return targets, np.round(generator.random((count, 14)) + 0.2 * targets, 1)


def area_by_counting(targets: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Share of positive-negative pairs in the right order, ties half: the Mann-Whitney form of the ROC area."""
    pairs = scores[targets == 1][:, None] - scores[targets == 0][None]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


@pytest.mark.parametrize("seed", range(5))
def test_the_score_is_the_weighted_mean_of_the_areas_counted_by_hand(seed: int) -> None:
    targets, scores = draw(seed)
    areas = [area_by_counting(targets[:, i], scores[:, i]) for i in range(14)]
    found = competition_score(targets, scores)
    assert list(found.areas) == list(LABELS)
    assert found.undefined == ()
    np.testing.assert_allclose(list(found.areas.values()), areas, rtol=1e-12)
    assert found.score == pytest.approx(np.average(areas, weights=WEIGHTS), rel=1e-12)
    assert found.auc_present == pytest.approx(areas[13])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_only_the_order_within_a_column_matters_and_reversing_it_mirrors_the_score(seed: int) -> None:
    targets, scores = draw(seed, count=40)
    score = competition_score(targets, scores)
    assert competition_score(targets, np.exp(3 * scores) * np.arange(1, 15)).areas == pytest.approx(score.areas)
    reversed_score = competition_score(targets, -scores)
    for label, area in score.areas.items():
        assert reversed_score.areas[label] == pytest.approx(1 - area, nan_ok=True)


def test_present_weighs_as_much_as_all_locations_together() -> None:
    targets, scores = draw(0)
    scores[:, 13] = targets[:, 13]
    scores[:, :13] = 0.5
    assert competition_score(targets, scores).score == pytest.approx(0.75)


def test_a_column_with_one_class_is_named_and_left_out_of_the_mean() -> None:
    targets, scores = draw(1)
    targets[:, 11] = 0
    found = competition_score(targets, scores)
    assert found.undefined == ("Basilar Tip",)
    assert np.isnan(found.areas["Basilar Tip"])
    others = [area for label, area in found.areas.items() if label not in ("Basilar Tip", PRESENT)]
    assert found.auc_mean_locations == pytest.approx(np.mean(others))
    assert "1 of 14 labels" in found.note()


def test_the_score_is_undefined_where_present_has_one_class() -> None:
    targets, scores = draw(2)
    targets[:, 13] = 1
    found = competition_score(targets, scores)
    assert np.isnan(found.score)
    assert not np.isnan(found.auc_mean_locations)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_refused_as_the_competition_does(bad: float) -> None:
    targets, scores = draw(3)
    scores[0, 0] = bad
    with pytest.raises(ValueError, match="finite"):
        competition_score(targets, scores)


def test_wrong_shapes_and_targets_are_refused() -> None:
    targets, scores = draw(4)
    with pytest.raises(ValueError, match="14"):
        competition_score(targets[:, :13], scores[:, :13])
    with pytest.raises(ValueError, match="0 or 1"):
        competition_score(targets * 2, scores)


def test_the_bootstrap_interval_is_that_of_resampled_areas() -> None:
    targets, scores = draw(5, count=80)
    interval = bootstrap_interval(targets[:, 13], scores[:, 13], draws=400)
    generator = np.random.default_rng(1)
    areas = []
    for _ in range(400):
        rows = generator.integers(80, size=80)
        areas.append(area_by_counting(targets[rows, 13], scores[rows, 13]))
    assert interval.low == pytest.approx(np.quantile(areas, 0.025), abs=0.03)
    assert interval.high == pytest.approx(np.quantile(areas, 0.975), abs=0.03)
    assert interval.defined == 1
    assert interval == bootstrap_interval(targets[:, 13], scores[:, 13], draws=400)


def test_the_bootstrap_says_when_the_area_is_mostly_undefined() -> None:
    interval = bootstrap_interval([0, 0, 0], [0.1, 0.2, 0.3], draws=10)
    assert interval.defined == 0
    assert np.isnan(interval.low)
