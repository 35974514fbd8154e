"""One scan in memory: grid, masks, foreground, intensities and what the manifest says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from harmonize.errors import Reason, Rejection
from harmonize.pipeline import HarmonizedScan, harmonize_scan
from harmonize.report.outliers import find
from harmonize.scan import HU, Annotations, Mask, Point, Scan
from harmonize.settings import Settings


def ball(shape: tuple[int, int, int] = (40, 36, 30), radius: float = 11.0) -> NDArray[np.bool_]:
    centre = np.array(shape) / 2
    return np.sqrt(sum((np.indices(shape) - centre[:, None, None, None]) ** 2)) < radius


def ct(**changes: Any) -> Scan:
    voxels = np.where(ball(), 40, -1000).astype(np.int16)
    return Scan(**({"voxels_XYZ": voxels, "affine": np.eye(4), "modality": "CT", "unit": HU} | changes))


def mr(**changes: Any) -> Scan:
    random = np.random.default_rng(0)
    voxels = np.where(ball(), 500, 10) + random.normal(0, 30, ball().shape)
    return Scan(**({"voxels_XYZ": voxels.astype(np.float32), "affine": np.eye(4), "modality": "T1w"} | changes))


def test_a_ct_on_its_own_grid_keeps_every_hounsfield_unit() -> None:
    scan = ct()
    found = harmonize_scan(scan, Settings())
    assert np.array_equal(found.volume.stored_XYZ, np.maximum(scan.voxels_XYZ, -1024))
    assert (found.volume.slope, found.volume.inter, found.unit) == (1.0, 0.0, HU)


def test_a_resampled_ct_is_int16_in_hounsfield_units() -> None:
    found = harmonize_scan(ct(affine=np.diag([0.7, 0.7, 2.0, 1.0])), Settings())
    assert found.volume.stored_XYZ.dtype == np.int16
    assert found.volume.spacing == (1.0, 1.0, 1.0)
    assert found.raw_spacing == pytest.approx((0.7, 0.7, 2.0))
    assert found.volume.stored_XYZ.min() == -1000
    assert found.volume.stored_XYZ.max() == 40


def test_spacing_may_differ_by_axis() -> None:
    found = harmonize_scan(ct(), Settings(spacing=(0.5, 0.5, 1.0)))
    assert found.volume.stored_XYZ.shape == (80, 72, 30)


def test_mri_is_normalised_over_the_head_and_not_the_air() -> None:
    found = harmonize_scan(mr(), Settings(mri_norm="zscore"))
    inside = found.volume.values()[ball(radius=9)]
    assert abs(float(inside.mean())) < 0.2
    assert found.unit == "zscore"
    x0, x1, _, _, z0, z1 = found.foreground_box
    assert (x0, x1) == pytest.approx((9, 31), abs=3)
    assert (z0, z1) == pytest.approx((4, 26), abs=3)


def test_the_statistics_tell_before_and_after() -> None:
    found = harmonize_scan(mr(), Settings(mri_norm="zscore"))
    middle = len(found.percentiles) // 2
    assert found.raw_percentiles[middle] == pytest.approx(500, abs=10)
    assert abs(found.percentiles[middle]) < 0.2
    hounsfield = harmonize_scan(ct(), Settings())
    assert hounsfield.raw_percentiles == hounsfield.percentiles


def test_the_anatomy_mask_decides_what_the_foreground_is() -> None:
    labels = np.zeros((40, 36, 30), dtype=np.uint8)
    labels[15:25, 10:20, 12:18] = 1
    found = harmonize_scan(mr(masks={"anatomy": Mask(labels_XYZ=labels, affine=np.eye(4))}), Settings())
    assert found.foreground_box == (15, 25, 10, 20, 12, 18)
    assert found.mask_kind == "anatomy"
    assert found.mask_XYZ is not None
    assert np.array_equal(found.mask_XYZ, labels)


def test_the_defaced_part_is_two_in_the_mask_and_out_of_the_statistics() -> None:
    defaced = np.zeros((40, 36, 30), dtype=np.uint8)
    defaced[:, 20:, :] = 1
    masks = {
        "anatomy": Mask(labels_XYZ=ball().astype(np.uint8), affine=np.eye(4)),
        "deface": Mask(labels_XYZ=defaced, affine=np.eye(4)),
    }
    found = harmonize_scan(mr(masks=masks), Settings())
    assert found.mask_XYZ is not None
    assert (found.mask_XYZ[:, 20:] == 2).all()
    assert set(np.unique(found.mask_XYZ)) == {0, 1, 2}
    assert found.foreground_box[3] <= 20


@pytest.mark.parametrize("place", [slice(0), slice(60, 70)])
def test_a_deface_mask_that_marks_nothing_of_the_image_makes_no_scan_defaced(place: slice) -> None:
    marked = np.zeros((70, 36, 30), dtype=np.uint8)
    marked[place] = 1
    masks = {
        "anatomy": Mask(labels_XYZ=ball().astype(np.uint8), affine=np.eye(4)),
        "deface": Mask(labels_XYZ=marked, affine=np.eye(4)),
    }
    found = harmonize_scan(mr(masks=masks, decisions=["anatomy mask used", "deface mask used"]), Settings())
    assert found.mask_XYZ is not None
    assert np.array_equal(found.mask_XYZ, ball())
    assert "nothing was removed" in found.decisions[-1]
    assert "defaced" not in flags_of(found)


def test_a_deface_mask_that_marks_something_makes_the_scan_defaced() -> None:
    marked = np.zeros((40, 36, 30), dtype=np.uint8)
    marked[20, 30, 15] = 1
    masks = {"deface": Mask(labels_XYZ=marked, affine=np.eye(4))}
    assert "defaced" in flags_of(harmonize_scan(mr(masks=masks, decisions=["deface mask used"]), Settings()))


def flags_of(found: HarmonizedScan) -> tuple[str, ...]:
    row = {
        "source": "openmind", "modality": found.modality, "shape": found.volume.stored_XYZ.shape,
        "spacing": found.volume.spacing,
        "raw_spacing": found.raw_spacing, "foreground_box": found.foreground_box,
        "intensity_percentiles": found.percentiles, "decisions": found.decisions,
    }  # fmt: skip
    return find(pd.DataFrame([row]))[0].flags


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-0.9, 0.8, 1.1, 1.0])])
def test_labels_of_a_user_keep_values_that_need_sixteen_bits(affine: NDArray[np.float64]) -> None:
    labels = np.zeros((40, 36, 30), dtype=np.uint16)
    labels[18:32, 10:26, 10:22] = 2035
    labels[10:14, 18:22, 10:20] = 7
    found = harmonize_scan(ct(affine=affine, masks={"labels": Mask(labels_XYZ=labels, affine=affine)}), Settings())
    assert found.mask_kind == "labels"
    assert found.mask_XYZ is not None
    assert found.mask_XYZ.dtype == np.uint16
    assert np.unique(found.mask_XYZ).tolist() == [0, 7, 2035]
    volume = np.abs(np.linalg.det(affine))
    assert np.count_nonzero(found.mask_XYZ == 2035) == pytest.approx(14 * 16 * 12 * volume, rel=0.12)


def test_vessels_keep_their_values() -> None:
    vessels = np.zeros((40, 36, 30), dtype=np.uint8)
    vessels[18:22, 18:22, 10:20] = 13
    found = harmonize_scan(ct(masks={"vessels": Mask(labels_XYZ=vessels, affine=np.eye(4))}), Settings())
    assert found.mask_kind == "vessels"
    assert found.mask_XYZ is not None
    assert set(np.unique(found.mask_XYZ)) == {0, 13}


def test_cropping_keeps_the_head_with_its_margin_and_the_world_in_place() -> None:
    voxels = np.full((90, 90, 60), -1000, dtype=np.int16)
    voxels[40:60, 42:58, 20:44] = 30
    voxels[50, 50, 30] = 2000
    found = harmonize_scan(ct(voxels_XYZ=voxels), Settings(crop_foreground=True))
    assert all(size < full for size, full in zip(found.volume.stored_XYZ.shape, voxels.shape, strict=True))
    place = np.argwhere(found.volume.stored_XYZ == 2000)[0] + found.volume.affine[:3, 3]
    assert place.tolist() == [50, 50, 30]
    x0, x1, *_ = found.foreground_box
    assert x0 >= 10
    assert found.volume.stored_XYZ.shape[0] - x1 >= 10
    assert any("cropped" in line for line in found.decisions)


def test_cropping_never_cuts_a_vessel_mask_or_a_point() -> None:
    voxels = np.full((90, 90, 60), -1000, dtype=np.int16)
    voxels[40:60, 42:58, 20:44] = 30
    vessels = np.zeros(voxels.shape, dtype=np.uint8)
    vessels[15:18, 50, 30] = 3
    point = Point(label="Basilar Tip", xyz_mm=(50.0, 50.0, 55.0))
    masks = {"vessels": Mask(labels_XYZ=vessels, affine=np.eye(4))}
    scan = ct(voxels_XYZ=voxels, masks=masks, annotations=Annotations(points=(point,)))
    found = harmonize_scan(scan, Settings(crop_foreground=True))
    assert found.mask_XYZ is not None
    assert np.count_nonzero(found.mask_XYZ) == 3
    place = np.linalg.inv(found.volume.affine) @ [*point.xyz_mm, 1]
    assert all(0 <= index < size for index, size in zip(place, found.volume.stored_XYZ.shape, strict=False))
    assert found.volume.stored_XYZ.shape[1] < 90


def test_baked_windows_have_three_channels_and_the_same_grid() -> None:
    found = harmonize_scan(ct(), Settings(bake_windows=True))
    assert found.volume.stored_XYZ.shape == (40, 36, 30, 3)
    assert found.unit == "window"


def test_a_few_nan_are_filled_and_said() -> None:
    scan = mr()
    scan.voxels_XYZ[0, 0, :5] = np.nan
    found = harmonize_scan(scan, Settings())
    assert np.isfinite(found.volume.values()).all()
    assert any("not finite" in line for line in found.decisions)


@pytest.mark.parametrize(
    ("scan", "reason"),
    [
        (mr(voxels_XYZ=np.full((8, 8, 8), np.nan)), Reason.BAD_INTENSITY),
        (mr(voxels_XYZ=np.full((8, 8, 8), 5.0)), Reason.NO_FOREGROUND),
        (ct(voxels_XYZ=np.full((8, 8, 8), -1000)), Reason.NO_FOREGROUND),
        (ct(voxels_XYZ=np.zeros((8, 8, 8), dtype=complex)), Reason.UNSUPPORTED_ENCODING),
        (ct(voxels_XYZ=np.zeros((8, 8))), Reason.NOT_3D),
        (ct(voxels_XYZ=np.zeros((8, 8, 1))), Reason.TOO_FEW_SLICES),
        (ct(affine=np.diag([1.0, 1, 0, 1])), Reason.BAD_GEOMETRY),
        (ct(affine=np.diag([90.0, 90, 90, 1])), Reason.BAD_GEOMETRY),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(scan: Scan, reason: Reason) -> None:
    with pytest.raises(Rejection) as caught:
        harmonize_scan(scan, Settings())
    assert caught.value.reason == reason


def test_nyul_without_a_histogram_of_the_modality_is_refused(tmp_path) -> None:
    with pytest.raises(Rejection) as caught:
        harmonize_scan(mr(), Settings(mri_norm="nyul", nyul_folder=tmp_path))
    assert caught.value.reason == Reason.MISSING_METADATA
