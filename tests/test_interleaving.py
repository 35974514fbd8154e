"""The flag for slices that alternate: seen where two contrasts are woven, silent in one volume."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonize.pipeline import resample_scan
from harmonize.report import outliers
from harmonize.scan import Scan
from harmonize.settings import PERCENTILES, Settings
from harmonize.voxels import interleaving

FLAG = "alternating slices"


def head(slices=24, noise=8.0, seed=0, size=32):
    """An ellipsoid of bone and brain with a slope in it, in air, shape (X, Y, Z)."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (size, size, slices)), indexing="ij")
    r = x**2 + y**2 + (0.8 * z) ** 2
    values = np.where(r < 0.6, 40 + 20 * x + 15 * z, np.where(r < 0.75, 900.0, -1000.0))
    return values + noise * rng.normal(size=values.shape)


def weave(voxels, change, every=2):
    woven = voxels.copy()
    woven[..., 1::every] = change(woven[..., 1::every])
    return woven


def decisions_of(voxels, affine=None, unit="HU"):
    affine = np.diag([4.0, 4, 5, 1]) if affine is None else affine
    scan = Scan(voxels_XYZ=voxels, affine=affine, modality="CT", unit=unit)
    return resample_scan(scan, Settings(spacing=(4.0, 4.0, 5.0))).decisions


def row(decisions):
    return pd.DataFrame(
        [
            {
                "source": "tcia", "modality": "CT", "raw_spacing": [1.0] * 3, "shape": [100] * 3, "spacing": [1.0] * 3,
                "intensity_percentiles": np.linspace(0, 1, len(PERCENTILES)), "decisions": decisions,
                "foreground_box": [0, 100] * 3,
            }
        ]
    )  # fmt: skip


CHANGES = {
    "another phase": (lambda v: np.where(abs(v - 40) < 60, v + 100, v), 2),
    "another gain": (lambda v: (v + 1000) * 1.4 - 1000, 2),
    "another sign": (lambda v: -v, 2),
    "every third slice": (lambda v: -v, 3),
    "every fourth slice": (lambda v: -v, 4),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_woven_contrasts_are_said_and_flagged(name, dtype):
    woven = weave(head(), *CHANGES[name]).astype(dtype)
    said = decisions_of(woven)
    assert any("alternate" in line for line in said)
    assert FLAG in outliers.find(row(said))[0].flags


@pytest.mark.parametrize("turn", [(0, 50, 100), (0, 60, 10, 90), (0, 0, 100, 100)])
def test_more_than_two_contrasts_are_flagged(turn):
    woven = head()
    woven += np.where(abs(woven - 40) < 60, np.resize(turn, woven.shape[2]), 0)
    assert any("alternate" in line for line in decisions_of(woven))


def test_slices_along_any_axis_are_looked_at_in_files_that_do_not_tell():
    woven = np.moveaxis(weave(head(), *CHANGES["another phase"]), 2, 0)
    assert any("alternate" in line for line in decisions_of(woven, np.diag([5.0, 4, 4, 1])))


@settings(max_examples=40, deadline=None)
@given(
    slices=st.integers(3, 60),
    noise=st.floats(0, 200),
    seed=st.integers(0, 99),
    hole=st.integers(0, 60),
    drift=st.floats(-1, 1),
)
def test_one_volume_is_never_flagged_with_noise_drift_or_a_damaged_slice(slices, noise, seed, hole, drift):
    voxels = head(slices, noise, seed) * (1 + drift * np.linspace(0, 1, slices))
    voxels[..., min(hole, slices - 1)] = -1000
    for axis in range(3):
        assert not interleaving.seems_woven(interleaving.sample_slices(voxels, axis))


@pytest.mark.parametrize("voxels", [np.zeros((8, 8, 12)), np.full((8, 8, 12), np.nan), np.zeros((3, 3, 3), np.int16)])
def test_empty_volumes_are_not_flagged(voxels):
    assert not interleaving.seems_woven(interleaving.sample_slices(voxels))


def test_one_volume_raises_no_flag():
    said = decisions_of(head())
    assert not any("alternate" in line for line in said)
    assert FLAG not in outliers.find(row(said))[0].flags


@pytest.mark.parametrize("contrast", [40, 100])
def test_what_alternates_goes_with_the_groups_that_turn_with_it_alone(contrast):
    woven = weave(head(16, noise=4), lambda v: np.where(abs(v - 40) < 60, v + contrast, v))
    samples = interleaving.sample_slices(woven)
    with_it = {turn: interleaving.alternates_with(samples, np.resize(list(turn), 16).tolist()) for turn in TURNS}
    assert [turn for turn, does in with_it.items() if does] == ["ab"]
    flat = interleaving.sample_slices(np.tile([0.0, 9.0], (4, 4, 8)))
    follow = {turn: interleaving.follow_groups(flat, np.resize(list(turn), 16).tolist()) for turn in TURNS}
    assert [turn for turn, does in follow.items() if does] == ["ab"]


TURNS = ("ab", "aabb", "aaabbb", "abba", "abc", "aab", "aabbcc", "aaaabbbb")
"""What headers may say of slices that alternate, over and over."""
