"""The comparison of objectives: features at places, scores of heads that were not learnt from, paired intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from frozen_places import PLACES, features_at, held_out, in_ball, voxels_of
from paired_arms import differences, measures, summary
from sklearn.metrics import roc_auc_score

from harmonize.voxels.stored import StoredVolume


def test_features_are_those_of_the_cells_at_a_place() -> None:
    fine, coarse = torch.randn(1, 2, 16, 8, 24), torch.randn(1, 3, 8, 4, 12)
    voxels = np.array([[3, 2, 20], [15, 0, 7], [0.5, 7, 23]])
    found = features_at([fine, coarse], voxels, (16, 8, 24))
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found[0, :2], fine[0, :, 3, 2, 20], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1, :2], fine[0, :, 15, 0, 7], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2, :2], fine[0, :, :2, 7, 23].mean(1), rtol=1e-4, atol=1e-5)
    # The middle of a coarse cell lies between two voxels.
    middle = features_at([fine, coarse], np.array([[6.5, 4.5, 2.5]]), (16, 8, 24))
    np.testing.assert_allclose(middle[0, 2:], coarse[0, :, 3, 2, 1], rtol=1e-4, atol=1e-5)


def test_places_in_the_world_become_voxels() -> None:
    affine = np.array([[2.0, 0, 0, -10], [0, 1, 0, 5], [0, 0, 0.5, 0], [0, 0, 0, 1]])
    volume = StoredVolume(stored_XYZ=np.zeros((4, 4, 4), dtype=np.int16), affine=affine)
    np.testing.assert_allclose(voxels_of(np.array([[-4.0, 7.0, 1.5]]), volume), [[3, 2, 3]])
    radii = np.linalg.norm(in_ball(np.random.default_rng(0), 4000, 2.0), axis=1)
    assert radii.max() <= 2
    assert (radii < 1).mean() == pytest.approx(1 / 8, abs=0.02)


def test_a_unit_is_scored_by_what_was_learnt_of_others() -> None:
    rng = np.random.default_rng(0)
    units = [rng.normal(size=(2, PLACES, 3)).astype(np.float32) for _ in range(10)]
    for number, unit in enumerate(units):
        unit[0, :, 0] += 3 if number < 9 else -3  # the last says the contrary, and nobody learns from it for itself
    scores = held_out(units, np.arange(10))
    assert all(score.shape == (2, PLACES) for score in scores)
    assert all(score[0].mean() > score[1].mean() for score in scores[:9])
    assert scores[9][0].mean() < scores[9][1].mean()


def cells(rng: np.random.Generator, gain: float) -> list[dict[str, object]]:
    """Three seeds of an arm on 60 heads that are as hard as in every arm."""
    hard = np.random.default_rng(9).normal(size=60)
    found: list[dict[str, object]] = []
    for _ in range(3):
        sac = np.stack([0.5 + gain + hard, hard], 1) + 0.3 * rng.normal(size=(60, 2))
        found.append(
            {"sac": sac.tolist(), "vessel": [[pair, 0.7 + gain / 10 + 0.02 * rng.normal()] for pair in range(0, 60, 2)]}
        )
    return found


def test_the_area_under_the_curve_is_that_of_scikit_learn() -> None:
    scores = np.random.default_rng(0).normal(size=(1, 20, 2)).round(1)
    truth = np.repeat([1, 0], 20)
    assert measures(scores, np.zeros((1, 0)))["sac_auc"] == pytest.approx(roc_auc_score(truth, scores[0].T.ravel()))


def test_a_difference_that_is_there_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(0)
    baseline, better, same = cells(rng, 0.0), cells(rng, 0.6), cells(rng, 0.0)
    found = differences(better, baseline)
    for name in ("sac_auc", "vessel_auc"):
        assert 0 < found[name]["low"] < found[name]["difference"] < found[name]["high"]
        assert found[name]["difference"] == pytest.approx(summary(better)[name] - summary(baseline)[name])
    assert found["vessel_auc"]["difference"] == pytest.approx(0.06, abs=0.01)
    for one in differences(same, baseline).values():
        assert one["low"] < 0 < one["high"]
