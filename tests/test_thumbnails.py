"""Thumbnails: the patient's right is on the left, and box and masks are where they belong."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from harmonize.report.thumbnails import SIDE, thumbnail
from harmonize.settings import PERCENTILES
from harmonize.voxels.stored import StoredVolume

SHAPE = (60, 80, 40)


def volume(stored: NDArray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), slope: float = 1.0) -> StoredVolume:
    return StoredVolume(stored_XYZ=stored, slope=slope, affine=np.diag([*spacing, 1.0]))


def draw(image: StoredVolume, mask: NDArray | None = None, kind: str | None = None, **changes) -> NDArray[np.int_]:
    """Three planes, each (SIDE, SIDE, 3)."""
    options = {"unit": "HU", "box": [0, 0, 0, 0, 0, 0], "percentiles": np.linspace(0, 1, len(PERCENTILES))} | changes
    drawn = thumbnail(image, None if mask is None else volume(mask), mask_kind=kind, **options)
    picture = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB")).astype(int)
    assert picture.shape == (SIDE, 3 * SIDE, 3)
    return np.stack(np.split(picture, 3, axis=1))


def brightest(plane: NDArray[np.int_]) -> tuple[float, float]:
    """Row and column of what is bright, as shares of the square."""
    rows, columns = np.nonzero(plane.sum(axis=-1) > 450)
    return float(rows.mean() / SIDE), float(columns.mean() / SIDE)


def test_right_is_on_the_left_anterior_and_superior_are_up() -> None:
    stored = np.full(SHAPE, -1000, dtype=np.int16)
    stored[45:, 60:, 30:] = 1000
    axial, coronal, sagittal = draw(volume(stored), box=[45, 60, 60, 80, 30, 40])
    assert brightest(axial)[0] < 0.3
    assert brightest(axial)[1] < 0.4
    assert brightest(coronal)[1] < 0.3
    assert brightest(sagittal)[1] < 0.3
    assert brightest(coronal)[0] < 0.5
    assert brightest(sagittal)[0] < 0.5


def test_the_box_is_drawn_where_it_is() -> None:
    axial = draw(volume(np.full(SHAPE, -1000, dtype=np.int16)), box=[15, 45, 20, 60, 10, 30])[0]
    amber = axial[..., 0] > axial[..., 2] + 60
    rows, columns = np.nonzero(amber)
    assert (rows.min() / SIDE, rows.max() / SIDE) == pytest.approx((0.25, 0.75), abs=0.03)
    assert (columns.min() / SIDE, columns.max() / SIDE) == pytest.approx((0.3125, 0.6875), abs=0.03)


def test_what_was_defaced_is_red_and_the_head_is_outlined() -> None:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[10:50, 10:50] = 1
    mask[10:50, 50:70] = 2
    axial = draw(volume(np.full(SHAPE, 240, dtype=np.int16)), mask, "anatomy", box=[0, 60, 0, 80, 0, 40])[0]
    reddish = axial[..., 0] > axial[..., 2] + 40
    assert reddish[: SIDE // 2].sum() > 4 * reddish[SIDE // 2 :].sum()
    assert (axial[..., 0] < 160).any()


def test_the_planes_run_where_the_vessels_are() -> None:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[5:9, 70:75, 2:4] = 7
    planes = draw(volume(np.full(SHAPE, -1000, dtype=np.int16)), mask, "vessels", box=[0, 60, 0, 80, 0, 40])
    for plane in planes:
        assert (plane[..., 0] > plane[..., 2] + 100).sum() > 5


def test_a_thick_axis_keeps_its_true_height() -> None:
    stored = np.full((40, 40, 10), 1000, dtype=np.int16)
    coronal = draw(volume(stored, spacing=(1.0, 1.0, 4.0)), box=[0, 40, 0, 40, 0, 10])[1]
    lit = coronal.sum(axis=-1) > 450
    assert lit.any(axis=1).mean() > 0.95
    assert lit.any(axis=0).mean() > 0.95


def test_mri_and_baked_windows_are_drawn_too() -> None:
    ramp = np.linspace(-20000, 20000, np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    mri = draw(volume(ramp, slope=1e-4), unit="zscore", percentiles=np.linspace(-2, 2, 9))
    baked = draw(volume(np.stack([np.abs(ramp)] * 3, axis=-1), slope=1 / 32767), unit="window")
    assert mri.std() > 10
    assert baked.std() > 10
