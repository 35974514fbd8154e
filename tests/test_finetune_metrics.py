"""The competition's metric against a direct computation, and its odd cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from finetune.metrics import (
    DRAWS,
    Interval,
    draw_patients,
    drawn_areas,
    drawn_precisions,
    percentile_interval,
    undrawn,
)
from finetune.tasks.aneurysm import WEIGHTS, competition_score
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
    assert found.means["auc_present"] == pytest.approx(areas[13])


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
    assert found.means["auc_mean_locations"] == pytest.approx(np.mean(others))
    assert "1 of 14 labels" in found.note()


def test_the_score_is_undefined_where_present_has_one_class() -> None:
    targets, scores = draw(2)
    targets[:, 13] = 1
    found = competition_score(targets, scores)
    assert np.isnan(found.score)
    assert not np.isnan(found.means["auc_mean_locations"])


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


def bootstrap_interval(
    targets_N: Any, scores_N: Any, *, subjects_N: Sequence[object] | None = None, draws: int = DRAWS
) -> Interval:
    """Of the ROC area of one label, over patients; where none are given, each series is one of its own."""
    targets, scores = np.asarray(targets_N, dtype=np.int64), np.asarray(scores_N, dtype=np.float64)
    times_ND = draw_patients(range(len(targets)) if subjects_N is None else subjects_N, draws=draws, seed=0)
    return percentile_interval(drawn_areas(targets, scores, times_ND))


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


def clustered(seed: int, count: int = 30) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Targets and tied scores of patients who have one to three series each."""
    generator = np.random.default_rng(seed)
    subjects = [f"P{number}" for number in range(count) for _ in range(generator.integers(1, 4))]
    targets = (generator.random(len(subjects)) < 0.4).astype(np.int64)
    return targets, np.round(generator.random(len(subjects)) + 0.3 * targets, 1), subjects


def test_a_patients_series_are_drawn_together_and_as_many_patients_as_there_are() -> None:
    _, _, subjects = clustered(0)
    times_ND = draw_patients(subjects, draws=50)
    for subject in set(subjects):
        rows = times_ND[[name == subject for name in subjects]]
        assert (rows == rows[0]).all()
    first = [subjects.index(name) for name in dict.fromkeys(subjects)]
    assert (times_ND[first].sum(0) == 30).all()


@pytest.mark.parametrize(
    ("drawn", "direct"), [(drawn_areas, roc_auc_score), (drawn_precisions, average_precision_score)]
)
def test_a_statistic_of_the_draws_is_that_of_the_rows_written_out(drawn: Any, direct: Any) -> None:
    targets, scores, subjects = clustered(1)
    times_ND = draw_patients(subjects, draws=20)
    values = drawn(targets, scores, times_ND)
    for times_N, value in zip(times_ND.T, values, strict=True):
        assert value == pytest.approx(direct(np.repeat(targets, times_N), np.repeat(scores, times_N)), rel=1e-12)


def test_several_answers_of_a_series_are_drawn_together() -> None:
    targets, scores = draw(7, count=25)
    times_ND = draw_patients(range(25), draws=10)
    for times_N, area in zip(times_ND.T, drawn_areas(targets, scores, times_ND), strict=True):
        rows = np.repeat(np.arange(25), times_N)
        assert area == pytest.approx(roc_auc_score(targets[rows].ravel(), scores[rows].ravel()), rel=1e-12)


def test_only_pairs_of_one_stratum_count() -> None:
    targets, scores, _ = clustered(2)
    strata = np.arange(len(targets)) % 3
    found = drawn_areas(targets, scores + strata, undrawn(len(targets)), strata_N=strata)[0]
    own = [(targets[strata == s], scores[strata == s]) for s in range(3)]
    pairs = [truth.sum() * (1 - truth).sum() for truth, _ in own]
    assert found == pytest.approx(np.average([roc_auc_score(*one) for one in own], weights=pairs), rel=1e-12)


@pytest.mark.parametrize("drawn", [drawn_areas, drawn_precisions])
def test_a_statistic_without_positives_is_undefined_and_so_is_one_of_nothing(drawn: Any) -> None:
    values = drawn(np.zeros(3, dtype=np.int64), np.array([0.1, 0.2, 0.2]), np.ones((3, 2), dtype=np.int32))
    assert np.isnan(values).all()
    assert np.isnan(drawn(np.zeros(0, dtype=np.int64), np.zeros(0), draw_patients([], draws=2))).all()


def test_the_interval_over_patients_is_wider_where_a_patients_series_say_the_same() -> None:
    targets, scores = draw(6, count=40)
    five = {"targets_N": np.repeat(targets[:, 13], 5), "scores_N": np.repeat(scores[:, 13], 5)}
    alone = bootstrap_interval(targets[:, 13], scores[:, 13])
    together = bootstrap_interval(**five, subjects_N=np.repeat(np.arange(40), 5).tolist())
    apart = bootstrap_interval(**five)
    assert (together.low, together.high) == (alone.low, alone.high)
    assert apart.high - apart.low < 0.6 * (together.high - together.low)
