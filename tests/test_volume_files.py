"""Volumes in the formats that nibabel reads, and values that float32 cannot hold."""

from __future__ import annotations

import bz2
import gzip
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonize.errors import Reason, Rejection
from harmonize.nifti import MAX_EXPONENT, read_nifti, within_float32
from harmonize.sources.volume_files import read_volume_file

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 3, -12], [0, 0, 0, 1]])
VOXELS = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress}


def pack(path: Path, packer: str) -> Path:
    packed = path.with_name(path.name + packer)
    packed.write_bytes(PACKERS[packer](path.read_bytes()))
    path.unlink()
    return packed


@pytest.mark.parametrize("name", ["a.nii", "a.NII", "a.nii.gz", "a.NII.GZ", "a.Nii.gz", "a.nii.bz2", "a.nii.BZ2"])
def test_a_single_nifti_is_read_by_its_content_and_not_its_case(tmp_path: Path, name: str) -> None:
    suffix = name[1:].lower()
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / f"x{suffix}")
    shutil.move(tmp_path / f"x{suffix}", tmp_path / name)
    found = read_volume_file(tmp_path / name)
    assert np.array_equal(found.voxels_XYZ, VOXELS)
    assert np.allclose(found.affine, AFFINE)


@pytest.mark.parametrize("packer", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_a_nifti_pair_is_read(tmp_path: Path, kind: type, packer: str) -> None:
    nib.save(kind(VOXELS, AFFINE), tmp_path / "a.img")
    paths = [tmp_path / "a.img", tmp_path / "a.hdr"]
    if packer:
        paths = [pack(path, packer) for path in paths]
    found = read_volume_file(*paths)
    assert np.array_equal(found.voxels_XYZ, VOXELS)
    assert np.allclose(found.affine, AFFINE)


@pytest.mark.parametrize("name", ["a.mgz", "a.MGZ", "a.mgh", "a.mgh.gz"])
def test_freesurfers_files_are_read(tmp_path: Path, name: str) -> None:
    made = tmp_path / ("x.mgz" if "z" in name.lower() else "x.mgh")
    nib.save(nib.MGHImage(VOXELS.astype(np.float32), AFFINE), made)
    shutil.move(made, tmp_path / name)
    found = read_volume_file(tmp_path / name)
    assert np.array_equal(found.voxels_XYZ, VOXELS)
    assert np.allclose(found.affine, AFFINE, atol=1e-4)


def reason_of(*paths: Path) -> Reason:
    with pytest.raises(Rejection) as caught:
        read_volume_file(*paths)
    return caught.value.reason


def test_files_that_say_no_orientation_are_refused(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(VOXELS, None), tmp_path / "a.img")
    assert reason_of(tmp_path / "a.img", tmp_path / "a.hdr") == Reason.MISSING_METADATA
    image = nib.MGHImage(VOXELS.astype(np.float32), AFFINE)
    image.header["goodRASFlag"] = 0
    nib.save(image, tmp_path / "a.mgh")
    assert reason_of(tmp_path / "a.mgh") == Reason.MISSING_METADATA


def test_half_a_pair_is_missing_its_other_half(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / "a.img")
    assert reason_of(tmp_path / "a.img") == Reason.MISSING_FILE
    (tmp_path / "a.hdr").unlink()
    assert reason_of(tmp_path / "a.img", tmp_path / "a.hdr") == Reason.MISSING_FILE


@settings(max_examples=60, deadline=None)
@given(suffix=st.sampled_from([".nii.bz2", ".mgz", ".mgh", ".mnc", ".nii.gz"]), data=st.data())
def test_a_damaged_file_is_refused_and_nothing_else(suffix: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        if suffix == ".mnc" or data.draw(st.booleans()):
            path.write_bytes(
                data.draw(st.sampled_from([b"", b"BZh9", b"CDF\x01", b"\x89HDF\r\n\x1a\n"]))
                + data.draw(st.binary(max_size=400))
            )
        else:
            kind = nib.MGHImage if suffix.startswith(".mg") else nib.Nifti1Image
            nib.save(kind(VOXELS.astype(np.float32), AFFINE), path)
            content = path.read_bytes()
            # The footer of a plain MGH file, behind its 840 bytes of voxels, is not needed.
            path.write_bytes(content[: data.draw(st.integers(0, min(len(content) - 9, 1100)))])
        with pytest.raises(Rejection):
            read_volume_file(path)


@pytest.mark.parametrize("suffix", [".mgz", ".mgh.gz"])
def test_a_packed_file_whose_voxels_are_there_but_wrong_is_refused(tmp_path: Path, suffix: str) -> None:
    """The checksum at the end tells, and whatever is cut off behind the last voxel."""
    path = tmp_path / f"a{suffix}"
    nib.save(nib.MGHImage(VOXELS.astype(np.float32), AFFINE), tmp_path / "a.mgh")
    # Stored, not squeezed: a changed bit is a changed voxel.
    packed = gzip.compress((tmp_path / "a.mgh").read_bytes(), compresslevel=0)
    path.write_bytes(packed)
    assert read_volume_file(path).voxels_XYZ.shape == VOXELS.shape
    changed = bytearray(packed)
    changed[400] ^= 1
    for damaged in (bytes(changed), packed[:-9], packed[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(Rejection):
            read_volume_file(path)


@pytest.mark.parametrize("start", [b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"])
def test_other_packers_are_named(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a.nii").write_bytes(start + bytes(400))
    with pytest.raises(Rejection, match=r"packed by (xz|zstd|zip); unpack it") as caught:
        read_volume_file(tmp_path / "a.nii")
    assert caught.value.reason == Reason.UNSUPPORTED_ENCODING


@pytest.mark.parametrize("sform", [True, False])
def test_a_qfac_of_0_is_taken_as_1(tmp_path: Path, sform: bool) -> None:
    image = nib.Nifti1Image(VOXELS, None)
    image.set_qform(np.abs(AFFINE), 1)
    image.set_sform(np.abs(AFFINE) if sform else None, int(sform))
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[76:80] = bytes(4)
    (tmp_path / "a.nii").write_bytes(content)
    found = read_nifti(tmp_path / "a.nii")
    assert np.allclose(found.affine, np.abs(AFFINE), atol=1e-4)
    assert found.decisions == (() if sform else ("no sform; the qform is used",))


@settings(max_examples=60, deadline=None)
@given(exponent=st.integers(-900, 900), slope=st.sampled_from([1.0, 2.5, -1e30, 1e-30]), seed=st.integers(0, 99))
def test_values_of_any_size_keep_their_proportions(exponent: int, slope: float, seed: int) -> None:
    values = np.ldexp(np.random.default_rng(seed).normal(3, 1, (5, 6, 7)), exponent)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nii"
        image = nib.Nifti1Image(values, AFFINE)
        nib.save(image, path)
        content = bytearray(path.read_bytes())
        content[112:120] = np.array([slope, 0], "<f4").tobytes()
        path.write_bytes(content)
        found = read_nifti(path)
    wanted, _ = np.frexp(values * np.float32(slope))
    mantissas, powers = np.frexp(found.voxels_XYZ.astype(np.float64))
    assert np.isfinite(found.voxels_XYZ.astype(np.float32)).all()
    assert np.allclose(mantissas, wanted, rtol=1e-5)
    assert np.array_equal(powers + found.exponent, np.frexp(values * np.float64(np.float32(slope)))[1])
    assert bool(found.exponent) == any("beyond the range of float32" in line for line in found.decisions)
    assert abs(int(powers.max())) <= MAX_EXPONENT


def test_ordinary_values_are_not_touched() -> None:
    for dtype in (np.int16, np.float32, np.float64):
        values = VOXELS.astype(dtype)
        found, exponent, _ = within_float32(values)
        assert found is values
        assert exponent == 0


def test_values_that_are_not_finite_do_not_hide_the_others() -> None:
    values, exponent, _ = within_float32(np.array([np.nan, np.inf, 1e200]))
    assert exponent > 0
    assert float(values[2]) * 2.0**exponent == pytest.approx(1e200)


EXAMPLES = Path(nib.__file__).parent / "tests" / "data"


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="nibabel came without its example files")
@pytest.mark.parametrize("names", [("small.mnc",), ("minc1_1_scale.mnc",), ("scaled+tlrc.BRIK", "scaled+tlrc.HEAD")])
def test_minc_and_afni_files_are_read_as_nibabel_reads_them(names: tuple[str, ...]) -> None:
    paths = [EXAMPLES / name for name in names]
    found, wanted = read_volume_file(*paths), nib.load(paths[0])
    assert np.allclose(found.voxels_XYZ, wanted.get_fdata().squeeze())
    assert np.allclose(found.affine, wanted.affine)


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="nibabel came without its example files")
@pytest.mark.parametrize("name", ["phantom_truncated", "phantom_EPI_asc_CLEAR_2_1"])
def test_a_damaged_or_four_dimensional_par_rec_pair_is_refused(name: str) -> None:
    assert reason_of(EXAMPLES / f"{name}.REC", EXAMPLES / f"{name}.PAR") in (Reason.UNREADABLE, Reason.NOT_3D)
