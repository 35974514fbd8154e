"""Slices whose header rounds what the others say in full are not lost; volumes of other planes stay apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_dicom_mixtures import STEP, levels, said, write

from harmonize.dicom import find_files, find_volumes, load_volume, planes, reload_volume
from harmonize.dicom.headers import read_frames
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
        ({"ImageOrientationPatient": [0.9999863, 0.005236, 0, -0.005236, 0.9999863, 0]}, STEP / 2),
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


def test_two_orientations_in_full_are_not_rounded_however_near_they_are(tmp_path):
    for n, angle in enumerate(np.radians([1.0, 1.3])):
        cosine, sine = round(float(np.cos(angle)), 6), round(float(np.sin(angle)), 6)
        turned = {"ImageOrientationPatient": [cosine, sine, 0, -sine, cosine, 0]}
        write(tmp_path, np.arange(8 - n) * STEP + n * STEP / 2, 100 + 200 * n, **turned)
    assert levels(tmp_path) == [{100}]
    rejections = [volume.rejection.reason for volume in find_volumes(find_files(tmp_path)) if volume.rejection]
    assert set(rejections) == {Reason.MIXED_GEOMETRY}


@pytest.mark.parametrize("digits", [9, 5])
def test_volumes_that_are_each_turned_a_little_are_not_all_laid_between_each_other(tmp_path, monkeypatch, digits):
    write(tmp_path, [0.0], 100)
    (frame,) = read_frames(next(tmp_path.iterdir()))
    frames = []
    for n, angle in enumerate(np.linspace(0, 0.1, 80)):  # motion correction turns each volume of an fMRI
        cosine, sine = (round(float(turn), digits if n % 2 else 9) for turn in (np.cos(angle), np.sin(angle)))
        turned = replace(frame, orientation=(cosine, sine, 0.0, -sine, cosine, 0.0))
        frames += [replace(turned, position=(0.0, 0.0, k * STEP)) for k in range(4 + n % 2)]
    sorted_along, place = [], planes.offsets_of
    monkeypatch.setattr(planes, "offsets_of", lambda frames: (sorted_along.append(len(frames)), place(frames))[1])
    assert len(planes.split_planes(frames)) == 80
    assert len(sorted_along) < 80 * 6
