"""From stored bits to values: signs, bit depths, rescaling, padding, encodings, and damage."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from harmonize.dicom import find_volumes, load_volume
from harmonize.errors import Reason, Rejection

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT_GE = "1.2.840.113619.5.2"


def picture(pixels, k, syntax=ExplicitVRLittleEndian, **elements):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = CT
    dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{k + 1}"
    bits = pixels.dtype.itemsize * 8
    defaults = {
        "SOPClassUID": CT,
        "SOPInstanceUID": f"1.2.{k + 1}",
        "SeriesInstanceUID": "1.2.3",
        "Modality": "CT",
        "ImagePositionPatient": [0, 0, k],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": elements.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": pixels.tobytes(),
    }
    for name, value in (defaults | elements).items():
        setattr(dataset, name, value)
    return dataset


def write(folder, pixels, syntax=ExplicitVRLittleEndian, **elements):
    for k in range(4):
        dataset = picture(pixels, k, syntax, **elements)
        little = syntax != ExplicitVRBigEndian
        implicit = syntax in (ImplicitVRLittleEndian, IMPLICIT_GE)
        dataset.save_as(folder / f"{k}.dcm", little_endian=little, implicit_vr=implicit, enforce_file_format=True)
    return folder


def load(folder):
    (volume,) = find_volumes(sorted(folder.iterdir()))
    return load_volume(volume)


def first_slice(folder):
    return load(folder).voxels_XYZ[:, :, 0].T


def rejection(folder):
    with pytest.raises(Rejection) as caught:
        load(folder)
    return caught.value.reason


RAMP = np.arange(-20, 10, dtype=np.int16).reshape(5, 6)


def test_unsigned_pixels_with_intercept_are_hounsfield_units(tmp_path):
    stored = np.array([[0, 24, 1024, 4095]], np.uint16)
    write(tmp_path, stored, BitsStored=12, RescaleSlope=1, RescaleIntercept=-1024)
    scan = load(tmp_path)
    assert scan.voxels_XYZ.dtype == np.int16
    assert scan.voxels_XYZ[:, 0, 0].tolist() == [-1024, -1000, 0, 3071]


def test_sixteen_stored_bits_are_clipped_to_int16_and_not_wrapped(tmp_path):
    stored = np.array([[0, 1024, 33000, 65535]], np.uint16)
    write(tmp_path, stored, RescaleSlope=1, RescaleIntercept=-1024)
    assert load(tmp_path).voxels_XYZ[:, 0, 0].tolist() == [-1024, 0, 31976, 32767]


def test_slope_of_two_stays_whole(tmp_path):
    write(tmp_path, np.array([[0, 512, 20000]], np.uint16), RescaleSlope=2, RescaleIntercept=-1024)
    scan = load(tmp_path)
    assert scan.voxels_XYZ.dtype == np.int16
    assert scan.voxels_XYZ[:, 0, 0].tolist() == [-1024, 0, 32767]


def test_broken_slope_gives_floats(tmp_path):
    write(tmp_path, np.array([[0, 3]], np.uint16), Modality="MR", RescaleSlope=0.5, RescaleIntercept=1)
    scan = load(tmp_path)
    assert scan.voxels_XYZ.dtype == np.float32
    assert scan.voxels_XYZ[:, 0, 0].tolist() == [1, 2.5]


def test_a_slope_of_zero_is_refused(tmp_path):
    write(tmp_path, RAMP, RescaleSlope=0, RescaleIntercept=0)
    assert rejection(tmp_path) is Reason.BAD_INTENSITY


def test_an_intercept_that_is_no_number_is_refused(tmp_path):
    write(tmp_path, RAMP, RescaleSlope=1, RescaleIntercept="7")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"DS\x02\x007 ", b"DS\x02\x00x "))
    assert rejection(tmp_path) is Reason.BAD_INTENSITY


def test_twelve_signed_bits_are_sign_extended(tmp_path):
    stored = (np.array([[-2048, -1, 0, 2047]], np.int16) & 0x0FFF).astype(np.uint16)
    write(tmp_path, stored, Modality="MR", BitsStored=12, PixelRepresentation=1)
    assert load(tmp_path).voxels_XYZ[:, 0, 0].tolist() == [-2048, -1, 0, 2047]


def test_overlay_in_the_unused_bits_is_cut_off(tmp_path):
    write(tmp_path, np.array([[0x1005, 0xF00F]], np.uint16), Modality="MR", BitsStored=12)
    assert load(tmp_path).voxels_XYZ[:, 0, 0].tolist() == [5, 15]


def test_pixels_in_the_upper_bits_are_shifted_down(tmp_path):
    write(tmp_path, np.array([[5 << 4, 4095 << 4]], np.uint16), Modality="MR", BitsStored=12, HighBit=15)
    assert load(tmp_path).voxels_XYZ[:, 0, 0].tolist() == [5, 4095]


def test_eight_bit_pixels_are_read(tmp_path):
    write(tmp_path, np.array([[0, 255]], np.uint8), Modality="MR")
    assert load(tmp_path).voxels_XYZ[:, 0, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("pixels", "padding"),
    [
        (np.array([[-2000, -1024, 50]], np.int16), struct.pack("<h", -2000)),
        (np.array([[-2000, -1024, 50]], np.int16), struct.pack("<H", 63536)),
    ],
    ids=["as signed", "as unsigned"],
)
def test_padding_becomes_air(tmp_path, pixels, padding):
    write(tmp_path, pixels, PixelPaddingValue=-2000)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"SS\x02\x00" + struct.pack("<h", -2000), b"US\x02\x00" + padding))
    assert load(tmp_path).voxels_XYZ[:, 0, 0].tolist() == [-1024, -1024, 50]


def test_padding_range_above_the_scale_becomes_air(tmp_path):
    pixels = np.array([[0, 1024, 65000, 65500]], np.uint16)
    write(tmp_path, pixels, RescaleIntercept=-1024, PixelPaddingValue=64000, PixelPaddingRangeLimit=65535)
    assert load(tmp_path).voxels_XYZ[:, 0, 0].tolist() == [-1024, 0, -1024, -1024]


def test_padding_among_tissue_values_is_not_believed(tmp_path):
    write(tmp_path, RAMP, PixelPaddingValue=0)
    scan = load(tmp_path)
    np.testing.assert_array_equal(scan.voxels_XYZ[:, :, 0].T, RAMP)
    assert any("not applied" in line for line in scan.decisions)


def test_values_below_air_become_air_in_ct_only(tmp_path):
    (tmp_path / "ct").mkdir()
    (tmp_path / "mr").mkdir()
    below = np.array([[-3024, 7]], np.int16)
    assert first_slice(write(tmp_path / "ct", below)).tolist() == [[-1024, 7]]
    assert first_slice(write(tmp_path / "mr", below, Modality="MR")).tolist() == [[-3024, 7]]


def test_lost_intercept_is_put_back_where_air_is_stored_as_zero(tmp_path):
    pixels = np.zeros((16, 16), np.uint16)
    pixels[:, 8:] = 1064
    pixels[4, 12] = 2200
    write(tmp_path, pixels)
    scan = load(tmp_path)
    assert scan.voxels_XYZ[[0, 12, 12], [0, 0, 4], 0].tolist() == [-1024, 40, 1176]
    assert any("intercept is missing" in line for line in scan.decisions)


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.uint8])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_uncompressed_encodings_hold_the_same_values(tmp_path, syntax, kind):
    pixels = np.arange(30).reshape(5, 6).astype(kind)
    stored = pixels.astype(pixels.dtype.newbyteorder(">")) if syntax == ExplicitVRBigEndian else pixels
    write(tmp_path, pixels, syntax, Modality="MR", PixelData=stored.tobytes())
    np.testing.assert_array_equal(first_slice(tmp_path), pixels)


@pytest.mark.parametrize("kind", [np.int16, np.uint16])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_encodings_hold_the_same_values(tmp_path, syntax, kind):
    pixels = np.arange(1000, 5096).reshape(64, 64).astype(kind)
    if kind is np.int16:
        pixels -= 2000
    for k in range(4):
        dataset = picture(pixels, k, Modality="MR")
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(first_slice(tmp_path), pixels)


def test_ge_private_big_endian_pixels_are_read(tmp_path):
    pixels = np.arange(30, dtype=np.int16).reshape(5, 6)
    write(tmp_path, pixels, IMPLICIT_GE, PixelData=pixels.astype(">i2").tobytes())
    np.testing.assert_array_equal(first_slice(tmp_path), pixels)


def test_a_file_without_preamble_is_read(tmp_path):
    for k in range(4):
        dataset = picture(RAMP, k)
        del dataset.file_meta
        dataset.save_as(tmp_path / f"{k}.dcm", implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(first_slice(tmp_path), RAMP)


def test_a_file_that_ends_early_is_truncated(tmp_path):
    write(tmp_path, RAMP)
    path = tmp_path / "2.dcm"
    path.write_bytes(path.read_bytes()[:-7])
    assert rejection(tmp_path) is Reason.TRUNCATED


def test_pixel_data_shorter_than_claimed_is_truncated(tmp_path):
    write(tmp_path, RAMP, PixelData=RAMP.tobytes()[:-10])
    assert rejection(tmp_path) is Reason.TRUNCATED


def test_a_file_without_pixels_is_truncated(tmp_path):
    for k in range(4):
        dataset = picture(RAMP, k)
        del dataset.PixelData
        dataset.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    assert rejection(tmp_path) is Reason.TRUNCATED


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_files_cut_short_are_truncated(tmp_path, syntax):
    pixels = np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16)
    for k in range(4):
        dataset = picture(pixels, k)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    last = tmp_path / "3.dcm"
    last.write_bytes(last.read_bytes()[:-100])
    assert rejection(tmp_path) is Reason.TRUNCATED


def test_damaged_compressed_pixels_are_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16)
    for k in range(4):
        dataset = picture(pixels, k)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        dataset.PixelData = encapsulate([dataset.PixelData[100:400]])
        dataset.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    assert rejection(tmp_path) is Reason.TRUNCATED


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_compressed_picture_of_another_shape_is_refused_and_not_shifted(tmp_path, syntax):
    for k in range(4):
        dataset = picture(np.arange(4096, dtype=np.uint16).reshape(32, 128), k)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.Rows, dataset.Columns = 64, 64
        dataset.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    assert rejection(tmp_path) is Reason.TRUNCATED


@pytest.mark.realdata
def test_a_lossless_jpeg_cut_short_is_truncated(tmp_path, real_data):
    for path in (real_data / "dicom2nifti_tests" / "generic" / "compressed_jpeg").rglob("*.dcm"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert load(tmp_path).voxels_XYZ.shape == (256, 256, 4)
    last = max(tmp_path.iterdir())
    last.write_bytes(last.read_bytes()[:-2000])
    assert rejection(tmp_path) is Reason.TRUNCATED


def test_a_huge_claimed_size_is_refused_before_memory_is_taken(tmp_path):
    write(tmp_path, RAMP, Rows=65000, Columns=65000)
    assert rejection(tmp_path) is Reason.TOO_LARGE


def test_colour_pictures_are_refused(tmp_path):
    colour = np.zeros((5, 6 * 3), np.uint8)
    write(tmp_path, colour, Columns=6, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert rejection(tmp_path) is Reason.DERIVED


@pytest.mark.parametrize("elements", [{"BitsAllocated": 12}, {"BitsStored": 20}, {"BitsStored": 12, "HighBit": 3}])
def test_contradictory_bit_depths_are_refused(tmp_path, elements):
    write(tmp_path, RAMP, **elements)
    assert rejection(tmp_path) is Reason.UNSUPPORTED_ENCODING


def test_an_unknown_encoding_is_refused(tmp_path):
    write(tmp_path, RAMP)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    assert rejection(tmp_path) is Reason.UNSUPPORTED_ENCODING
