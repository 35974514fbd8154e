"""The comparison of objectives: features at places, scores of heads that were not learnt from, paired intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bench_objectives
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
    scores = np.random.default_rng(0).normal(size=(20, 2)).round(1)
    truth, drawn = np.repeat([1, 0], 20), np.random.default_rng(1).integers(20, size=20)
    times = np.bincount(drawn, minlength=20).astype(np.int32)[:, None]
    area_S, area_SD = measures([{"sac": scores.tolist(), "vessel": []}], times)["sac_auc"]
    assert area_S == pytest.approx(roc_auc_score(truth, scores.T.ravel()))
    assert area_SD == pytest.approx(roc_auc_score(truth, scores[drawn].T.ravel()))


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


# -------------------------------------------------------------------------------------------- a folder that is there


Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Run the benchmark with costs and cells that are made up; gives what it wrote, and what it had to make for it."""
    made: list[object] = []
    speeds = iter((1.0, 3.0, 5.0))  # each time another machine

    def costs(recipes: Mapping[str, object], corpus: Path) -> dict[str, Any]:
        made.append(tuple(recipes))
        second = next(speeds)
        seconds = {arm: second * (1.5 if arm == "both" else 1.0) for arm in recipes if arm != "random"}
        return {
            "step_seconds": seconds,
            "ratio": {arm: value / seconds["masked"] for arm, value in seconds.items()},
            "all_seconds": {arm: [value] for arm, value in seconds.items()},
            "look_seconds_a_scan": 0.0, "scans": 4, "load": (0.0, 0.0, 0.0),
        }  # fmt: skip

    def judged(arm: str, seed: int, *_: object) -> dict[str, object]:
        made.append(f"{arm}_{seed}")
        return cells(np.random.default_rng(seed), 0.0)[0]

    monkeypatch.setattr(bench_objectives, "corpus_of", lambda arguments, name, *_, **__: tmp_path / name)
    monkeypatch.setattr(bench_objectives, "vessels_found", lambda _: {})
    monkeypatch.setattr(bench_objectives, "measured_costs", costs)
    monkeypatch.setattr(bench_objectives, "judged", judged)
    monkeypatch.setattr("paired_arms.DRAWS", 10)

    def run(*words: str) -> dict[str, Any]:
        made.clear()
        found = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", ["bench", "--out", str(tmp_path / "out"), "--json", str(found), *words])
        bench_objectives.main()
        return {**json.loads(found.read_text()), "made": list(made)}

    return run


def test_further_arms_of_a_folder_are_measured_beside_the_masked_one(bench: Bench) -> None:
    first = bench("--seeds", "1", "--steps", "30", "--arms", "masked", "random")
    assert first["made"] == [("masked", "random"), "masked_0", "random_0"]
    more = bench("--seeds", "1", "--steps", "30", "--arms", "masked", "both")
    assert more["made"] == [("masked", "both"), "both_0"], "nothing is made twice"
    assert more["costs"]["step_seconds"] == {"masked": 1.0, "both": 1.5}
    assert more["steps"] == {"masked": 30, "both": 20}
    again = bench("--seeds", "2", "--steps", "30", "--arms", "masked", "both")
    assert again["made"] == ["masked_1", "both_1"]


def test_a_folder_of_other_settings_is_refused(bench: Bench) -> None:
    bench("--seeds", "1", "--arms", "masked")
    for setting in bench_objectives.SHARED:
        said = rf"began with --{setting} \d+, not 77; give --out a new folder$"
        with pytest.raises(SystemExit, match=said) as caught:
            bench("--seeds", "1", "--arms", "masked", f"--{setting}", "77")
        assert "\n" not in str(caught.value)
