"""Compressed pixels that GDCM decodes, and what damage to them costs."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from fuzz.valid import SLICES, compressed_dicom, dicom_bytes
from pydicom import uid
from pydicom.dataset import Dataset

from harmonize.dicom import find_volumes, load_volume
from harmonize.errors import Reason, Rejection

EXTENDED, LOSSLESS, JPEG2000 = "JPEGExtendedProcess2_4", "JPEGLosslessProcess14_1", "JPEG2000Lossless"
RETIRED = ["1.2.840.10008.1.2.4.52", "1.2.840.10008.1.2.4.53", uid.JPEGLossless]


def write(folder: Path, syntax: str, *, behind: bytes = b"", case: int = 1, **changes: object) -> Path:
    """A series in the syntax of GDCM's name, each file with other elements than it should have, or more behind them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(SLICES):
        dataset: Dataset = compressed_dicom(case, number, syntax=syntax)
        for name, value in changes.items():
            setattr(dataset.file_meta if name == "TransferSyntaxUID" else dataset, name, value)
        (folder / f"{number}.dcm").write_bytes(dicom_bytes(dataset) + behind)
    return folder


def voxels(folder: Path) -> np.ndarray:
    (volume,) = find_volumes(sorted(folder.iterdir()))
    return load_volume(volume).voxels_XYZ


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The voxels of the series by another decoder."""
    return voxels(write(tmp_path_factory.mktemp("rle"), "RLELossless"))


def assert_close(found: np.ndarray, exact: np.ndarray) -> None:
    """Compare the head alone: of the least number that a pixel holds, lossy coding and GDCM make the greatest."""
    head = exact > -1000
    assert head.mean() > 0.2
    assert np.ptp(exact[head]) > 100
    assert np.abs(found - exact)[head].max() <= 3


@pytest.mark.parametrize("syntax", RETIRED)
def test_retired_processes_of_jpeg_are_decoded(tmp_path: Path, exact: np.ndarray, syntax: str) -> None:
    assert np.array_equal(voxels(write(tmp_path, LOSSLESS, TransferSyntaxUID=syntax)), exact)


def test_jpeg_of_twelve_bits_is_decoded(tmp_path: Path, exact: np.ndarray) -> None:
    assert_close(voxels(write(tmp_path, EXTENDED)), exact)


def test_what_lies_behind_the_pixels_is_not_read(tmp_path: Path, exact: np.ndarray) -> None:
    claims_much = struct.pack("<HH2sHI", 0x7FE1, 0x0010, b"OB", 0, 0xA0000000)
    found = voxels(write(tmp_path, EXTENDED, behind=claims_much))
    assert_close(found, exact)


@pytest.mark.parametrize("syntax", [LOSSLESS, JPEG2000, "JPEGLSLossless"])
def test_a_picture_of_more_bits_than_the_header_has_room_for_is_refused(tmp_path: Path, syntax: str) -> None:
    write(tmp_path, syntax, BitsAllocated=8, BitsStored=8, HighBit=7)
    with pytest.raises(Rejection) as caught:
        voxels(tmp_path)
    assert caught.value.reason is Reason.TRUNCATED
