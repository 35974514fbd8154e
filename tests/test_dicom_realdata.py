"""The real DICOM series: each is read or refused as it should be, voxel for voxel as other converters do."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from harmonize.dicom import Rules, find_files, find_volumes, load_volume
from harmonize.errors import Reason

pytestmark = pytest.mark.realdata


def volumes(folder, **rules):
    return find_volumes(find_files(folder), Rules(**rules))


def read(folder, **rules):
    (volume,) = volumes(folder, **rules)
    return load_volume(volume)


def assert_same_in_world(scan, path, *, tolerance_voxels=0.01):
    """Each voxel of the reference has the value of the scan's voxel at the same place in mm."""
    reference = nib.Nifti1Image.from_filename(path)
    expected = np.asanyarray(reference.dataobj)
    to_scan = np.linalg.inv(scan.affine) @ reference.affine
    indices = np.moveaxis(np.indices(expected.shape), 0, -1) @ to_scan[:3, :3].T + to_scan[:3, 3]
    nearest = np.rint(indices)
    assert abs(indices - nearest).max() < tolerance_voxels
    i, j, k = nearest.astype(int).reshape(-1, 3).T
    np.testing.assert_array_equal(scan.voxels_XYZ[i, j, k], expected.reshape(-1))
    assert expected.size == scan.voxels_XYZ.size


def test_tilted_uneven_head_ct_lies_on_the_positions_of_its_files(real_data):
    scan = read(real_data / "ct_ge_head_tilt_uneven" / "dicom")
    assert (scan.modality, scan.unit, scan.voxels_XYZ.dtype) == ("CT", "HU", np.int16)
    assert any("18.5 degrees" in line for line in scan.decisions)
    k = np.arange(28)
    z_of_files = np.where(k < 14, 5.8360586 + 4.22 * k, 61.8360586 + 7.38 * (k - 14))
    corners = scan.affine @ np.stack([0 * k, 0 * k, scan.slice_offsets, 0 * k + 1])
    np.testing.assert_allclose(corners[:3].T, np.stack([0 * k + 125, 0 * k + 123.5404569, z_of_files], 1), atol=1e-5)


def test_tilted_head_ct_has_the_voxels_of_dcm2niix(real_data):
    scan = read(real_data / "ct_ge_head_tilt_uneven" / "dicom")
    reference = nib.Nifti1Image.from_filename(real_data / "ct_ge_head_tilt_uneven" / "ref_dcm2niix" / "ge.nii.gz")
    expected = np.maximum(np.asanyarray(reference.dataobj), -1024)
    np.testing.assert_array_equal(scan.voxels_XYZ[:, ::-1], expected)
    # dcm2niix writes neither the shear nor the uneven steps into this file: its first slice is what compares.
    last_row = expected.shape[1] - 1
    for i, j in [(0, 0), (511, 0), (0, 511), (300, 200)]:
        ours = scan.affine @ [i, last_row - j, 0, 1]
        np.testing.assert_allclose(ours, reference.affine @ [i, j, 0, 1], atol=1e-3)


@pytest.mark.parametrize("number", range(1, 10))
def test_every_transfer_syntax_gives_the_voxels_of_dcm2niix(real_data, number, tmp_path):
    (tmp_path / "scan.dcm").symlink_to(real_data / "mr_transfer_syntaxes" / "dicom" / f"{number}.dcm")
    scan = read(tmp_path)
    assert scan.voxels_XYZ.shape == (64, 64, 35)
    assert_same_in_world(scan, real_data / "mr_transfer_syntaxes" / "ref" / f"{number}.nii.gz")


def test_the_same_picture_in_nine_encodings_is_one_scan(real_data):
    scan = read(real_data / "mr_transfer_syntaxes" / "dicom")
    assert scan.voxels_XYZ.shape == (64, 64, 35)
    assert any("280 dropped" in line for line in scan.decisions)


def test_enhanced_multiframe_head_has_the_voxels_of_dcm2niix(real_data):
    scan = read(real_data / "mr_t1_enhanced_multiframe" / "dicom")
    assert_same_in_world(scan, real_data / "mr_t1_enhanced_multiframe" / "ref" / "5_anat-T1w_acq-tfl.nii.gz")


@pytest.mark.parametrize("name", ["compressed_rle", "compressed_jpegls", "compressed_j2k", "compressed_jpeg"])
def test_compressed_series_have_the_voxels_of_dicom2nifti(real_data, name):
    folder = real_data / "dicom2nifti_tests" / "generic" / name
    assert_same_in_world(read(folder), folder / "001_ground_truth.nii.gz", tolerance_voxels=1e-3)


def test_siemens_multiframe_has_the_voxels_of_dicom2nifti(real_data):
    folder = real_data / "dicom2nifti_tests" / "siemens_multiframe" / "anatomical"
    assert_same_in_world(read(folder), folder / "001_ground_truth.nii.gz", tolerance_voxels=1e-3)


def test_diffusion_series_splits_into_its_volumes(real_data, tmp_path):
    folder = real_data / "dicom2nifti_tests" / "philips" / "dti"
    scans = [load_volume(volume) for volume in volumes(folder, min_slices=2)]
    reference = nib.Nifti1Image.from_filename(folder / "001_ground_truth.nii.gz")
    expected = np.asanyarray(reference.dataobj)
    assert len(scans) == expected.shape[3] == 4
    assert all("b-value, gradient direction" in " ".join(scan.decisions) for scan in scans)
    for number in range(4):
        single = tmp_path / f"{number}.nii"
        nib.Nifti1Image(expected[..., number], reference.affine).to_filename(single)
        candidates = [scan for scan in scans if scan.voxels_XYZ.sum() == expected[..., number].sum()]
        assert len(candidates) == 1
        assert_same_in_world(candidates[0], single, tolerance_voxels=1e-3)


def test_missing_slice_is_kept_on_true_positions(real_data):
    scan = read(real_data / "dicom2nifti_tests" / "failing" / "sliceincrement")
    np.testing.assert_allclose(scan.slice_offsets, [0, 1, 2, 4], atol=1e-5)
    assert any("missing slices: 1" in line for line in scan.decisions)


@pytest.mark.parametrize(
    ("folder", "reasons"),
    [
        ("dicom2nifti_tests/failing/notavolume", {Reason.REPEATED_POSITIONS}),
        ("dicom2nifti_tests/failing/sliceorientation", {Reason.TOO_FEW_SLICES, Reason.MIXED_GEOMETRY}),
        ("dicom2nifti_tests/philips/dti", {Reason.TOO_FEW_SLICES}),
        ("mr_localizers/01-anat-scout", {Reason.LOCALIZER}),
    ],
)
def test_what_is_no_scan_is_refused(real_data, folder, reasons):
    rejections = [volume.rejection for volume in volumes(real_data / folder)]
    assert {rejection.reason for rejection in rejections} == reasons


def test_of_the_localizer_folder_only_the_echo_planar_mosaic_is_a_scan(real_data):
    found = volumes(real_data / "mr_localizers")
    assert sum(len(volume.paths) for volume in found) == 3
    (scan,) = [load_volume(volume) for volume in found if volume.rejection is None]
    assert scan.voxels_XYZ.shape == (64, 64, 35)
    assert {volume.rejection.reason for volume in found if volume.rejection} == {Reason.LOCALIZER}


def test_no_file_of_the_folder_is_lost(real_data):
    files = find_files(real_data)
    found = find_volumes(files)
    assert {path for volume in found for path in volume.paths} == set(files)
    assert len(files) == 28 + 9 + 37 + 3 + 1
