"""Headers and files that are odd, and can be read all the same.

The made-up head and its helpers are those of `test_dicom_meaning`.
"""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, RLELossless
from test_dicom_meaning import (
    SIDE,
    SLICES,
    as_mr,
    assert_head,
    drop,
    read,
    rejection,
    said,
    store,
    write,
    write_enhanced,
)

from harmonize.dicom import find_files
from harmonize.errors import Reason


def replace_in(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("number", ["nan ", "inf ", "-inf"])
@pytest.mark.parametrize("name", ["SliceThickness", "KVP", "SpacingBetweenSlices", "EchoTime"])
def test_a_number_that_is_none_in_some_slices_is_as_if_it_were_absent(tmp_path, name, number):
    write(tmp_path, lambda dataset, k: setattr(dataset, name, "7.77"))
    for path in sorted(tmp_path.iterdir())[::2]:
        replace_in(path, b"DS\x04\x007.77", b"DS\x04\x00" + number.encode())
    assert_head(read(tmp_path))


@pytest.mark.parametrize(("representation", "value"), [("SL", -1024), ("SS", -1024), ("FD", -1024.0)])
def test_rescale_tags_may_be_binary_numbers(tmp_path, representation, value):
    def edit(dataset, k):
        dataset.add_new(0x00281052, representation, value)
        dataset.add_new(0x00281053, "FD" if representation == "FD" else "UL", 1)

    assert_head(read(write(tmp_path, edit)))


@pytest.mark.parametrize("slope", ["1e308", "1e100", "-1e50"])
def test_a_slope_beyond_all_numbers_is_refused_for_that(tmp_path, slope):
    fault = rejection(write(tmp_path, lambda dataset, k: setattr(dataset, "RescaleSlope", slope)))
    assert fault.reason is Reason.BAD_INTENSITY
    assert "slope" in fault.message


def test_a_slope_that_whole_numbers_do_not_hold_is_no_unexpected_fault(tmp_path):
    fault = rejection(write(tmp_path, lambda dataset, k: setattr(dataset, "RescaleSlope", "1e20")))
    assert fault.reason in (Reason.BAD_INTENSITY, Reason.UNSUPPORTED_UNIT)


def test_a_number_of_frames_of_0_says_nothing(tmp_path):
    assert_head(read(write(tmp_path, lambda dataset, k: setattr(dataset, "NumberOfFrames", 0))))


def test_the_frames_of_an_enhanced_file_that_claims_none_are_counted(tmp_path):
    write_enhanced(tmp_path / "a.dcm", ["HU"] * SLICES)
    replace_in(tmp_path / "a.dcm", b"\x28\x00\x08\x00IS\x02\x0012", b"\x28\x00\x08\x00IS\x02\x000 ")
    scan = read(tmp_path)
    assert_head(scan)
    assert f"multi-frame file of {SLICES} frames" in said(scan)


@pytest.mark.parametrize("intercept", [0, -1024])
def test_a_high_bit_below_the_bits_stored_is_the_depth_of_the_pixels(tmp_path, intercept):
    scan = read(write(tmp_path, lambda dataset, k: setattr(dataset, "HighBit", 11), intercept=intercept))
    assert_head(scan)


def test_more_bits_than_such_a_high_bit_leaves_are_read(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 8000, SIDE).astype(int), (SIDE, SIDE))

    def edit(dataset, k):
        as_mr(dataset, k)
        store(dataset, ramp)
        dataset.HighBit = 11

    scan = read(write(tmp_path, edit))
    np.testing.assert_array_equal(scan.voxels_XYZ[:, :, 0].T, ramp)
    assert "BitsStored" in said(scan)


@pytest.mark.parametrize("names", [["ImagePositionPatient"], ["ImageOrientationPatient", "PixelSpacing"]])
def test_a_refusal_for_missing_geometry_says_what_is_missing(tmp_path, names):
    fault = rejection(write(tmp_path, drop(*names)))
    assert fault.reason is Reason.MISSING_METADATA
    assert fault.message == f"the header lacks {' and '.join(names)}"


# --- files that are damaged, or say that they are written otherwise


def test_a_copy_that_was_cut_short_is_left_out_where_another_is_whole(tmp_path):
    write(tmp_path)
    whole = (tmp_path / "07.dcm").read_bytes()
    (tmp_path / "07 (1).dcm").write_bytes(whole)
    (tmp_path / "07.dcm").write_bytes(whole[:-600])
    scan = read(tmp_path)
    assert_head(scan)
    assert "1 pictures that are cut short left out" in said(scan)


def test_a_slice_that_was_cut_short_and_is_no_copy_still_ends_the_series(tmp_path):
    write(tmp_path)
    (tmp_path / "03 (1).dcm").write_bytes((tmp_path / "03.dcm").read_bytes())
    (tmp_path / "07.dcm").write_bytes((tmp_path / "07.dcm").read_bytes()[:-600])
    assert rejection(tmp_path).reason is Reason.TRUNCATED


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless, RLELossless])
def test_pixels_that_are_not_compressed_as_the_file_says_are_read(tmp_path, syntax):
    write(tmp_path)
    old, new = (f"UI{chr(len(text))}\0{text}".encode() for text in (ExplicitVRLittleEndian + "\0", _even(syntax)))
    for path in tmp_path.iterdir():
        replace_in(path, old, new)
        content = path.read_bytes()
        length = int.from_bytes(content[140:144], "little") + len(new) - len(old)
        path.write_bytes(content[:140] + length.to_bytes(4, "little") + content[144:])
    assert_head(read(tmp_path))


def _even(text):
    return text + "\0" * (len(text) % 2)


@pytest.mark.parametrize("name", ["{}.dcm", "{}"])
@pytest.mark.parametrize("kind", ["with meta information", "explicit", "implicit"])
def test_a_file_without_preamble_may_begin_with_the_length_of_its_first_group(tmp_path, kind, name):
    write(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()[132:]
        if kind != "with meta information":
            dataset = dcmread(path)
            del dataset.file_meta, dataset.preamble
            dataset.save_as(path, implicit_vr=kind == "implicit", little_endian=True)
            length = b"\x04\0\0\0" if kind == "implicit" else b"UL\x04\0"
            content = b"\x08\0\0\0" + length + b"\x80\0\0\0" + path.read_bytes()
        path.unlink()
        (tmp_path / name.format(path.stem)).write_bytes(content)
    assert_head(read(tmp_path))


def test_two_small_numbers_are_no_dicom(tmp_path):
    (tmp_path / "index").write_bytes(b"\x02\0\0\0\x04\0\0\0" + bytes(200))
    assert find_files(tmp_path) == []
