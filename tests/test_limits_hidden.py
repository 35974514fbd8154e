"""Claims that lie where the first look does not reach: in fragments, repeated values, scales and long texts."""

from __future__ import annotations

import math
import shutil
import struct
from pathlib import Path

import bombs
import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from isal import igzip_lib
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from harmonize import limits
from harmonize.corpus import SCAN_SCHEMA, Corpus, read_volume, write_volume
from harmonize.corpus.verify import verify
from harmonize.dicom import find_volumes, load_volume
from harmonize.dicom.elements import Elements
from harmonize.errors import Reason, Rejection, UserError
from harmonize.parquet import read_parquet
from harmonize.report import write_report
from harmonize.sources import tables
from harmonize.sources.volume_files import read_volume_file
from harmonize.voxels.stored import StoredVolume
from headspark.data.cohort import read_cohort
from headspark.data.decoders import decode
from headspark.recipe import DataConfig

SIDE = struct.pack(">H", 60_000)
JPEG2000 = b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIH", 41, 0, 60_000, 60_000, 0, 0, 60_000, 60_000, 0, 0, 1)
JPEG2000 += b"\x0f\x01\x01\xff\x93" + bytes(64) + b"\xff\xd9"
SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
JPEG_START, JPEG_SIZE = b"\xff\xd8", b"\xff\xc0\x00\x0b\x08" + SIDE + SIDE + b"\x01\x01\x11\x00" + SCAN + b"\xff\xd9"
JPEG_LS = b"\xff\xd8\xff\xf7\x00\x0b\x10" + SIDE + SIDE + b"\x01\x01\x11\x00" + SCAN + bytes(64) + b"\xff\xd9"
LONG_SEGMENT = b"\xff\xe1\xff\xff" + bytes(65533)
RLE_HEAD = struct.pack("<16I", 2, 64, 64, *[0] * 13)


def refusal(folder: Path) -> Reason:
    """Why the one volume of a folder cannot be loaded."""
    (volume,) = find_volumes(sorted(folder.iterdir()))
    with pytest.raises(Rejection) as caught:
        load_volume(volume)
    return caught.value.reason


@pytest.mark.parametrize("defined", [False, True], ids=["undefined length", "defined length"])
@pytest.mark.parametrize(
    ("syntax", "fragments"),
    [
        (JPEG2000Lossless, [JPEG2000[:20], JPEG2000[20:]]),
        (JPEG2000Lossless, [JPEG2000[:1], JPEG2000[1:]]),
        (JPEGBaseline8Bit, [JPEG_START + LONG_SEGMENT * 3 + JPEG_SIZE]),
        (JPEGBaseline8Bit, [JPEG_START + JPEG_SIZE[:5], JPEG_SIZE[5:]]),
        (JPEGLSLossless, [JPEG_LS[:8], JPEG_LS[8:]]),
        (RLELossless, [RLE_HEAD + b"\x81\x00" * (1 << 20)]),
    ],
    ids=["JPEG 2000", "JPEG 2000, one byte first", "JPEG behind long segments", "JPEG", "JPEG-LS", "RLE"],
)
def test_a_compressed_picture_is_measured_as_its_decoder_puts_it_together(tmp_path, syntax, fragments, defined):
    bombs.ct_series(tmp_path, 4, syntax, encapsulated=b"to be replaced")
    bombs.in_fragments(tmp_path, fragments, defined=defined)
    assert refusal(tmp_path) is Reason.TOO_LARGE


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless])
def test_a_compressed_picture_that_does_not_say_its_size_is_not_decoded(tmp_path, syntax):
    bombs.ct_series(tmp_path, 4, syntax, encapsulated=b"to be replaced")
    bombs.in_fragments(tmp_path, [bytes(5000) + JPEG2000])
    assert refusal(tmp_path) is Reason.TRUNCATED


def test_what_lies_behind_compressed_pixels_costs_nothing(tmp_path):
    """Sequences without end among it: pydicom would follow them."""
    rows = np.arange(30, dtype=np.int16).reshape(5, 6)
    planes = [bytes([29, *plane.tobytes()]) for plane in (rows.view("u1")[:, 1::2], rows.view("u1")[:, ::2])]
    head = struct.pack("<16I", 2, 64, 64 + 32, *[0] * 13)
    bombs.ct_series(tmp_path, 4, RLELossless, encapsulated=b"to be replaced")
    bombs.in_fragments(tmp_path, [head + planes[0] + b"\0" + planes[1] + b"\0"])
    behind = bombs.nested(2000, explicit=True, little_endian=True).replace(b"\x40\0\x30\xa7SQ", b"\xe1\x7f\x10\0SQ")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes() + behind)
    (volume,) = find_volumes(sorted(tmp_path.iterdir()))
    assert np.array_equal(load_volume(volume).voxels_XYZ[:, :, 0].T, rows)


def test_the_windows_of_a_corpus_file_are_counted_with_its_voxels(tmp_path, monkeypatch):
    for channels in ((), (3,)):
        write_volume(
            tmp_path / f"{len(channels)}.nii.gz",
            StoredVolume(stored_XYZ=np.ones((4, 5, 6, *channels), np.int16), affine=np.eye(4)),
        )
    monkeypatch.setenv(limits.VARIABLE, "120")
    assert read_volume(tmp_path / "0.nii.gz").stored_XYZ.shape == (4, 5, 6)
    with pytest.raises(ValueError, match="4 x 5 x 6 voxels of 6 bytes"):
        read_volume(tmp_path / "1.nii.gz")
    monkeypatch.setenv(limits.VARIABLE, "180")
    assert read_volume(tmp_path / "1.nii.gz").stored_XYZ.shape == (4, 5, 6, 3)


@pytest.mark.parametrize("shape", [(1000, 1000, 500), (40, 36, 44)], ids=["claims more", "holds more"])
def test_a_corpus_file_costs_verify_report_and_training_no_more_than_its_row_says(
    tiny_corpus, tmp_path, monkeypatch, shape
):
    corpus = Corpus.open(shutil.copytree(tiny_corpus, tmp_path / "corpus"))
    row = corpus.scans.iloc[1]
    (corpus.path / row.image_file_name).write_bytes(
        bombs.gzipped(bombs.nifti_header(shape, np.int16) + bytes(math.prod((40, 36, 44)) * 2), zeros_mib=1100)
    )
    unpacked, decompressor = [], igzip_lib.IgzipDecompressor

    class Counting:
        def __init__(self, flag: int) -> None:
            self._inner = decompressor(flag=flag)

        def decompress(self, packed: bytes, size: int = -1) -> bytes:
            content = self._inner.decompress(packed, size)
            unpacked.append(len(content))
            return content

        @property
        def eof(self) -> bool:
            return self._inner.eof

    monkeypatch.setattr("isal.igzip_lib.IgzipDecompressor", Counting)
    faults = verify(corpus.path)
    assert any(row.image_file_name in fault for fault in faults)
    write_report(corpus.path, thumbnails=6)
    cohort = read_cohort(corpus, DataConfig(val_share=0.3))
    with pytest.raises(UserError, match=f"scan {row.scan_id}: .*{row.image_file_name}"):
        decode(cohort.scans[1])
    assert 0 < max(unpacked) < 1 << 20


def test_voxels_that_become_float64_are_counted_as_such(tmp_path, monkeypatch):
    minc = Path(nib.__file__).parent / "tests/data/tiny.mnc"  # 10 x 20 x 20 voxels of one byte, with a scale
    monkeypatch.setenv(limits.VARIABLE, "7999")
    with pytest.raises(Rejection) as caught:
        read_volume_file(minc)
    assert caught.value.reason is Reason.TOO_LARGE
    monkeypatch.setenv(limits.VARIABLE, "8000")
    assert read_volume_file(minc).voxels_XYZ.dtype == np.float64


def test_a_text_that_stands_in_every_row_of_a_table_is_counted_in_every_row(tmp_path):
    for length, rows in ((100_000, 10_000), (100_000, 20)):
        texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * length]))
        nested = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), pa.int32()), texts)
        for number, column in enumerate((texts, nested, pa.StructArray.from_arrays([texts], ["a"]))):
            path = tmp_path / f"{number}.parquet"
            pq.write_table(pa.table({"a": column}), path, compression="zstd", store_schema=False)
            assert path.stat().st_size < 1000
            if rows == 20:
                assert len(read_parquet(path)) == rows
                continue
            with pytest.raises(ValueError, match="more than its bytes can"):
                read_parquet(path)


def test_a_list_of_a_table_counts_with_all_its_values(tmp_path):
    many = pa.array(np.zeros(5_000_000, np.int8))
    lists = pa.ListArray.from_arrays(pa.array([0, len(many)], pa.int32()), many)
    pq.write_table(pa.table({"labels": lists}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(ValueError, match="claims more than its bytes can hold"):
        read_parquet(tmp_path / "a.parquet")


def test_a_table_is_read_as_it_was_written(tmp_path):
    """With its types, its nulls, and texts within lists."""
    rows = [{"scan_id": "a", "decisions": ["x", None], "points": [{"label": "l", "x": 1.0, "y": 2.0, "z": None}]}] * 3
    table = pa.Table.from_pylist([*rows, {"scan_id": None, "decisions": [], "points": None}], schema=SCAN_SCHEMA)
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", row_group_size=2)
    for schema in (None, SCAN_SCHEMA):
        found = read_parquet(tmp_path / "a.parquet", schema)
        assert found.schema.equals(SCAN_SCHEMA)
        assert found.equals(table)


def test_a_megabyte_of_text_in_a_header_is_refused_and_some_kilobytes_are_read(tmp_path):
    numbers = b"\\".join(b"%d" % number for number in range(5000))
    elements = Elements({0x00280030: ("DS", numbers), 0x00080008: ("UN", b"1\\" * (1 << 20))})
    assert elements.numbers(0x00280030) == tuple(range(5000))
    for read in (elements.text, elements.texts, elements.numbers):
        with pytest.raises(Rejection) as caught:
            read(0x00080008)
        assert caught.value.reason is Reason.TOO_LARGE
    bombs.ct_series(tmp_path, 4, DeflatedExplicitVRLittleEndian, ImageType="A" * 30_000)
    (tmp_path / "long.dcm").write_bytes(
        bombs.deflated_part10(struct.pack("<HH2sHI", 8, 8, b"UN", 0, 2 << 20), zeros_mib=3)
    )
    found = {
        len(volume.paths): volume.rejection and volume.rejection.reason
        for volume in find_volumes(list(tmp_path.iterdir()))
    }
    assert found == {4: None, 1: Reason.TOO_LARGE}


def test_a_table_of_more_rows_than_any_source_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROWS", 3)
    for rows in (3, 4):
        (tmp_path / "a.csv").write_text("name\n" + "x\n" * rows)
        if rows == 3:
            assert len(tables.read_table(tmp_path / "a.csv", ("name",)).rows) == 3
            continue
        with pytest.raises(UserError, match="more than 3 rows"):
            tables.read_table(tmp_path / "a.csv", ("name",))
