"""Foreign NIfTI files: every variant that the standard allows, and the reason for each that is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harmonize.errors import Reason, Rejection
from harmonize.nifti import read_nifti

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 3, -12], [0, 0, 0, 1]])
OTHER = np.array([[0, -1.5, 0, 10], [2.0, 0, 0, 5], [0, 0, 3, 0], [0, 0, 0, 1]])
VOXELS = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)


def save(path: Path, voxels: np.ndarray = VOXELS, *, sform: tuple | None = (AFFINE, 1), qform: tuple | None = None):
    image = nib.Nifti1Image(voxels, None)
    image.set_sform(*(sform or (None, 0)))
    image.set_qform(*(qform or (None, 0)))
    nib.save(image, path)
    return path


def edit(path: Path, offset: int, content: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)
    return path


def reason_of(path: Path) -> Reason:
    with pytest.raises(Rejection) as caught:
        read_nifti(path)
    return caught.value.reason


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_plain_and_packed_files_are_read(tmp_path: Path, name: str) -> None:
    found = read_nifti(save(tmp_path / name))
    assert np.array_equal(found.voxels_XYZ, VOXELS)
    assert found.voxels_XYZ.dtype == np.int16
    assert np.allclose(found.affine, AFFINE)


def test_sform_only(tmp_path: Path) -> None:
    found = read_nifti(save(tmp_path / "a.nii"))
    assert found.decisions == ("no qform; the sform is used",)


def test_qform_only(tmp_path: Path) -> None:
    found = read_nifti(save(tmp_path / "a.nii", sform=None, qform=(OTHER, 1)))
    assert np.allclose(found.affine, OTHER, atol=1e-5)
    assert found.decisions == ("no sform; the qform is used",)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("part", [0.7071072, 0.70711, 0.7072])
def test_a_quaternion_that_rounding_made_too_long_is_a_half_turn(tmp_path: Path, kind: type, part: float) -> None:
    half_turn = np.array([[0, 2.0, 0, 10], [1.5, 0, 0, 5], [0, 0, -3.0, 0], [0, 0, 0, 1]])
    image = kind(VOXELS, None)
    image.set_sform(None, 0)
    image.set_qform(half_turn, 1)
    nib.save(image, tmp_path / "a.nii")
    number, offset = kind.header_class.template_dtype.fields["quatern_b"]
    path = edit(tmp_path / "a.nii", offset, np.array([part, part], dtype=number).tobytes())
    assert np.allclose(read_nifti(path).affine, half_turn, atol=1e-5)


def test_three_numbers_that_are_no_quaternion_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", sform=None, qform=(OTHER, 1))
    assert reason_of(edit(path, 256, np.array([1, 1, 1], dtype="<f4").tobytes())) == Reason.BAD_GEOMETRY


@pytest.mark.parametrize(("qfac", "sign"), [(2.0, 1), (0.0, 1), (np.nan, 1), (-3.0, -1)])
def test_the_sign_alone_of_qfac_counts(tmp_path: Path, qfac: float, sign: int) -> None:
    path = save(tmp_path / "a.nii", sform=None, qform=(OTHER, 1))
    found = read_nifti(edit(path, 76, np.array([qfac], dtype="<f4").tobytes()))
    assert np.allclose(found.affine, OTHER @ np.diag([1, 1, sign, 1]), atol=1e-5)


def test_agreeing_forms_need_no_decision(tmp_path: Path) -> None:
    assert read_nifti(save(tmp_path / "a.nii", qform=(AFFINE, 1))).decisions == ()


def test_disagreeing_forms_take_the_sform_and_say_so(tmp_path: Path) -> None:
    found = read_nifti(save(tmp_path / "a.nii", qform=(OTHER, 1)))
    assert np.allclose(found.affine, AFFINE)
    assert found.decisions == ("qform and sform disagree; the sform is used",)


def test_a_singular_sform_gives_way_to_the_qform(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", qform=(OTHER, 1))
    found = read_nifti(edit(path, 280, bytes(48)))
    assert np.allclose(found.affine, OTHER, atol=1e-5)


def test_oblique_and_sheared_affines_come_through(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.9
    assert np.allclose(read_nifti(save(tmp_path / "a.nii", sform=(sheared, 1))).affine, sheared)


def test_one_volume_in_four_dimensions_is_squeezed(tmp_path: Path) -> None:
    found = read_nifti(save(tmp_path / "a.nii.gz", VOXELS[..., None]))
    assert found.voxels_XYZ.shape == VOXELS.shape
    assert any("4-dimensional" in line for line in found.decisions)


def test_several_volumes_are_refused(tmp_path: Path) -> None:
    assert reason_of(save(tmp_path / "a.nii", np.stack([VOXELS] * 2, axis=-1))) == Reason.NOT_3D


def test_a_flat_image_is_refused(tmp_path: Path) -> None:
    assert reason_of(save(tmp_path / "a.nii", VOXELS[..., 0])) == Reason.NOT_3D


def test_the_headers_scale_is_applied(tmp_path: Path) -> None:
    path = edit(save(tmp_path / "a.nii"), 112, np.array([0.25, -3.0], dtype="<f4").tobytes())
    found = read_nifti(path)
    assert np.allclose(found.voxels_XYZ, VOXELS * 0.25 - 3)
    assert any("scale 0.25" in line for line in found.decisions)


def test_a_scale_of_zero_means_none(tmp_path: Path) -> None:
    path = edit(save(tmp_path / "a.nii"), 112, np.array([0.0, 9.0], dtype="<f4").tobytes())
    assert np.array_equal(read_nifti(path).voxels_XYZ, VOXELS)


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(VOXELS.astype(">i2"), AFFINE, header)
    nib.save(image, tmp_path / "a.nii.gz")
    found = read_nifti(tmp_path / "a.nii.gz")
    assert np.array_equal(found.voxels_XYZ, VOXELS)
    assert found.voxels_XYZ.dtype.isnative
    assert np.allclose(found.affine, AFFINE)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(VOXELS, AFFINE), tmp_path / "a.nii.gz")
    assert np.allclose(read_nifti(tmp_path / "a.nii.gz").affine, AFFINE)


def test_metres_become_millimetres(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert np.allclose(read_nifti(tmp_path / "a.nii").affine, AFFINE, atol=1e-4)


def test_without_any_form_the_sides_are_unknown(tmp_path: Path) -> None:
    assert reason_of(save(tmp_path / "a.nii", sform=None)) == Reason.MISSING_METADATA


@pytest.mark.parametrize("cut", [1, 100, 200, 250, -1, -12])
def test_a_cut_file_is_truncated(tmp_path: Path, cut: int) -> None:
    path = save(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes()[:cut])
    assert reason_of(path) in {Reason.TRUNCATED, Reason.UNREADABLE}


@pytest.mark.parametrize("cut", [100, 349, 500])
def test_a_cut_plain_file_is_truncated(tmp_path: Path, cut: int) -> None:
    path = save(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:cut])
    assert reason_of(path) == Reason.TRUNCATED


def test_a_checksum_that_does_not_fit_is_unreadable(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF
    path.write_bytes(content)
    assert reason_of(path) == Reason.UNREADABLE


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 900, gzip.compress(b"x" * 900, mtime=0), gzip.compress(b"", mtime=0)],
    ids=["empty", "text", "packed text", "packed nothing"],
)
def test_what_is_no_nifti_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert reason_of(tmp_path / "a.nii.gz") in {Reason.EMPTY, Reason.NOT_AN_IMAGE, Reason.TRUNCATED}


def test_a_huge_claim_is_not_believed(tmp_path: Path) -> None:
    path = edit(save(tmp_path / "a.nii"), 42, np.array([30000, 30000, 30000], dtype="<i2").tobytes())
    assert reason_of(path) == Reason.TOO_LARGE


@pytest.mark.parametrize("dim", [[0, 1, 1, 1], [3, -5, 6, 7], [3, 0, 6, 7], [99, 5, 6, 7]])
def test_senseless_dimensions_are_refused(tmp_path: Path, dim: list[int]) -> None:
    path = edit(save(tmp_path / "a.nii"), 40, np.array(dim, dtype="<i2").tobytes())
    with pytest.raises(Rejection):
        read_nifti(path)


def test_colours_and_complex_numbers_are_no_intensities(tmp_path: Path) -> None:
    assert reason_of(save(tmp_path / "a.nii", VOXELS.astype(np.complex64))) == Reason.UNSUPPORTED_ENCODING


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_affine_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    path = edit(save(tmp_path / "a.nii"), 280, np.array([value], dtype="<f4").tobytes())
    assert reason_of(path) == Reason.BAD_GEOMETRY


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "a.nii") == Reason.MISSING_FILE
