"""Slices whose header rounds what the others say in full are not lost; volumes of other planes stay apart."""

from __future__ import annotations

import numpy as np
import pytest
from test_dicom_mixtures import STEP, levels, said, write

from harmonize.dicom import find_files, find_volumes, load_volume, reload_volume
from harmonize.errors import Reason

TURNED = (0.999950, 0.009999, 0.0, -0.009999, 0.999950, 0.0)
SOME = [lambda k: k % 2, lambda k: k % 3 == 0, lambda k: k in (3, 4), lambda k: k < 5]


@pytest.mark.parametrize(
    ("element", "full", "rounded"),
    [
        ("PixelSpacing", [0.488281, 0.488281], [0.49, 0.49]),
        ("PixelSpacing", [4.01, 4.01], [4.0, 4.0]),
        ("ImageOrientationPatient", [0.9999995, 0.001, 0, -0.001, 0.9999995, 0], [1, 0, 0, 0, 1, 0]),
        ("ImageOrientationPatient", list(TURNED), [1, 0.01, 0, -0.01, 1, 0]),
    ],
)
@pytest.mark.parametrize("some", SOME)
def test_slices_whose_geometry_is_rounded_stay_in_their_volume(tmp_path, element, full, rounded, some):
    write(tmp_path, np.arange(14) * STEP, 100, **{element: lambda k: rounded if some(k) else full})
    (volume,) = find_volumes(find_files(tmp_path))
    for scan in (load_volume(volume), reload_volume(volume.paths)):
        assert scan.voxels_XYZ.shape[2] == 14
        steps = np.linalg.norm(scan.affine[:3, :2], axis=0)
        np.testing.assert_allclose(steps, full if element == "PixelSpacing" else 1.0, rtol=1e-4)


def test_that_a_geometry_was_taken_from_other_slices_is_told(tmp_path):
    write(tmp_path, np.arange(14) * STEP, 100, PixelSpacing=lambda k: [0.49] * 2 if k in (2, 7, 8) else [0.488281] * 2)
    (volume,) = find_volumes(find_files(tmp_path))
    assert any("rounded in 3 slices" in line for line in load_volume(volume).decisions)


@pytest.mark.parametrize(
    ("other", "shift"),
    [
        ({"PixelSpacing": [0.51, 0.51]}, STEP / 2),
        ({"PixelSpacing": [0.49, 0.49]}, 0.3 * STEP),
        ({"PixelSpacing": [0.49, 0.49]}, 0.0),
        ({"ImageOrientationPatient": [0.9998, 0.02, 0, -0.02, 0.9998, 0]}, STEP / 2),
    ],
)
def test_volumes_of_another_plane_or_between_each_other_are_not_put_together(tmp_path, other, shift):
    write(tmp_path, np.arange(10) * STEP, 100, PixelSpacing=[0.488281] * 2)
    write(tmp_path, np.arange(8) * STEP + shift, 300, **({"PixelSpacing": [0.488281] * 2} | other))
    assert all(len(level) == 1 for level in levels(tmp_path))
    assert {volume.rejection.reason for volume in find_volumes(find_files(tmp_path)) if volume.rejection} == {
        Reason.MIXED_GEOMETRY
    }
    assert "largest of 2 groups" in said(tmp_path)
