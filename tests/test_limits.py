"""Small files that claim much, nest deep, unpack to gigabytes or never end: each costs little and stops nobody else."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import bombs
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

from harmonize import dicom as dicom_volumes
from harmonize import engine, limits
from harmonize.corpus import journal, read_volume, write_volume
from harmonize.corpus.volume import WrongShapeError
from harmonize.dicom import find_volumes, load_volume, tokens
from harmonize.dicom.codestream import Claim, claim_of
from harmonize.errors import Reason, Rejection, Stage, UserError
from harmonize.fetch.archives import Damaged, unpack
from harmonize.page import Page
from harmonize.scan import ScanRef
from harmonize.settings import Settings
from harmonize.sources import deeplesion, openmind, references
from harmonize.time_limit import watched
from harmonize.voxels.stored import StoredVolume

CONTENT = 0x0040A730


def refusals(folder: Path) -> dict[str, Reason]:
    """By file name the reason of each refused volume."""
    found = {path.name: volume.rejection.reason for volume in find_volumes(sorted(folder.iterdir())) if volume.rejection
             for path in volume.paths}  # fmt: skip
    return found


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("little_endian", [True, False])
def test_sequences_nested_without_end_cost_one_file(tmp_path, explicit, little_endian):
    bombs.ct_series(tmp_path, 4)
    if not explicit and not little_endian:
        pytest.skip("there is no such encoding")
    nested = bombs.nested(520, explicit=explicit, little_endian=little_endian)
    (tmp_path / "deep.dcm").write_bytes(bombs.part10(nested, explicit=explicit, little_endian=little_endian))
    volumes = find_volumes(sorted(tmp_path.iterdir()))
    assert [len(volume.paths) for volume in volumes if volume.rejection is None] == [4]
    assert refusals(tmp_path) == {"deep.dcm": Reason.UNREADABLE}


@pytest.mark.parametrize(("explicit", "little_endian"), [(True, True), (False, True), (True, False)])
def test_sequences_that_python_could_follow_are_too_deep_as_well(tmp_path, explicit, little_endian):
    nested = bombs.nested(100, explicit=explicit, little_endian=little_endian)
    (tmp_path / "deep.dcm").write_bytes(bombs.part10(nested, explicit=explicit, little_endian=little_endian))
    (volume,) = find_volumes(sorted(tmp_path.iterdir()))
    assert volume.rejection == Rejection(Reason.UNREADABLE, "sequences nested more than 64 deep", stage=Stage.DISCOVER)


def test_sequences_of_structured_reports_are_not_too_deep():
    content = bombs.nested(30, explicit=True, little_endian=True)
    found, _ = tokens._scan(content, 0, explicit=True)
    depth = 0
    while CONTENT in found:
        (found,), depth = found[CONTENT][1], depth + 1
    assert depth == 30


def test_a_header_of_too_many_elements_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "MAX_ELEMENTS", 1000)
    monkeypatch.setattr(tokens, "MAX_TAGS", 1000)
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, 0) for _ in range(2000))
    sequence = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + items
    flat = b"".join(struct.pack("<HH2sH", 9 + 2 * (n // 60000), n % 60000 + 0x1000, b"SH", 0) for n in range(2000))
    (tmp_path / "items.dcm").write_bytes(bombs.part10(sequence + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)))
    (tmp_path / "flat.dcm").write_bytes(bombs.part10(flat))
    assert refusals(tmp_path) == {"items.dcm": Reason.TOO_LARGE, "flat.dcm": Reason.TOO_LARGE}


def test_a_few_bytes_do_not_stand_for_twenty_thousand_pictures(tmp_path):
    bombs.ct_series(tmp_path, 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=20_000)
    (volume,) = find_volumes(sorted(tmp_path.iterdir()))
    assert volume.rejection is not None
    assert volume.rejection.reason is Reason.TRUNCATED
    assert volume.stack.frames == ()


def test_a_compressed_picture_that_is_larger_than_its_header_says_is_not_decoded(tmp_path):
    size = struct.pack(">HHIIIIIIIIH", 41, 0, 60_000, 60_000, 0, 0, 60_000, 60_000, 0, 0, 1)
    stream = b"\xff\x4f\xff\x51" + size + b"\x0f\x01\x01" + b"\xff\x93" + bytes(64) + b"\xff\xd9"
    bombs.ct_series(tmp_path, 4, JPEG2000Lossless, encapsulated=stream)
    (volume,) = find_volumes(sorted(tmp_path.iterdir()))
    with pytest.raises(Rejection) as caught:
        load_volume(volume)
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_jpeg_ls_picture_without_its_end_is_not_decoded_for_seconds(tmp_path):
    head = "ffd8fff7000b10000500060101 1100 fff8000d01ffff0012004301140040 ffda0008010100000000 ff7f80"
    bombs.ct_series(tmp_path, 4, JPEGLSLossless, encapsulated=bytes.fromhex(head) + bytes(30))
    (volume,) = find_volumes(sorted(tmp_path.iterdir()))
    began = time.process_time()
    with pytest.raises(Rejection) as caught:
        load_volume(volume)
    assert caught.value.reason is Reason.TRUNCATED
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("ffd8 ffe0 0004 4142 ffc3 000b 08 0010 0020 03 011100 ffff ffda 0000", Claim((16, 32, 3), 8)),
        ("ffd8 fff7 000b 10 0200 0100 01 011100 ffda 0000", Claim((512, 256, 1), 16)),
        (f"ff4f ff51 0029 0000 00000009 00000012 00000001 00000002 {'00' * 16} 0001 8b", Claim((16, 8, 1), 12)),
        ("ffd8 fff7 000b 10 0200 0100 01 011100", None),
        ("ffd8 fff7 000b 10 0200 0100 01 011100 00 ffda 0000", None),
        ("ffd8 fff7 000b 10 0200 0100 01 011100 fff7 000b 10 0200 0100 01 011100 ffda 0000", None),
        ("ffd8 ffda 0004 4142", None),
        ("00010203", None),
        ("ffd8 ffc0", None),
    ],
)
def test_pictures_say_their_size(head, expected):
    assert claim_of(bytes.fromhex(head)) == expected


def test_deflated_pixels_are_read_as_far_as_the_header_claims(tmp_path):
    pixels = np.arange(30, dtype=np.int16).reshape(5, 6)
    bombs.ct_series(tmp_path, 4, DeflatedExplicitVRLittleEndian, pixels=pixels)
    (volume,) = find_volumes(sorted(tmp_path.iterdir()))
    assert np.array_equal(load_volume(volume).voxels_XYZ[:, :, 0].T, pixels)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    (volume,) = find_volumes(sorted(tmp_path.iterdir()))
    with pytest.raises(Rejection):
        load_volume(volume)


def test_a_corpus_file_of_another_shape_is_not_unpacked(tmp_path, monkeypatch):
    write_volume(tmp_path / "a.nii.gz", StoredVolume(stored_XYZ=np.ones((4, 5, 6), np.int16), affine=np.eye(4)))
    assert read_volume(tmp_path / "a.nii.gz", shape=(4, 5, 6)).stored_XYZ.shape == (4, 5, 6)
    with pytest.raises(WrongShapeError) as caught:
        read_volume(tmp_path / "a.nii.gz", shape=(4, 5, 7))
    assert caught.value.shape == (4, 5, 6)
    monkeypatch.setenv(limits.VARIABLE, "100")
    with pytest.raises(ValueError, match="4 x 5 x 6"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_corpus_file_with_more_than_its_voxels_is_damaged(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_volume(path, StoredVolume(stored_XYZ=np.ones((4, 5, 6), np.int16), affine=np.eye(4)))
    inner = zlib.decompress(path.read_bytes(), 31)
    path.write_bytes(bombs.gzipped(inner, zeros_mib=1))
    with pytest.raises(ValueError, match="more than the voxels"):
        read_volume(path)


def test_a_mask_that_claims_far_more_than_its_image_is_left_out(tmp_path):
    folder = tmp_path / "OpenMind/ds000001/sub-01/anat"
    image = bombs.nifti(folder / "sub-01_T1w.nii.gz", (8, 9, 10))
    bombs.nifti(folder / "sub-01_T1w__Data/fb_mask.nii.gz", (80, 80, 80), voxel=2)
    (ref,) = references("openmind", tmp_path)
    assert ref.paths == (image,)
    scan = openmind.load(ref)
    assert scan.masks == {}
    assert any("mask was left out" in line and "80 x 80 x 80" in line for line in scan.decisions)


def test_the_cap_on_voxels_can_be_set(tmp_path, monkeypatch):
    folder = tmp_path / "OpenMind/ds000001/sub-01/anat"
    bombs.nifti(folder / "sub-01_T1w.nii.gz", (8, 9, 10))
    (ref,) = references("openmind", tmp_path)
    monkeypatch.setenv(limits.VARIABLE, "720")
    assert openmind.load(ref).voxels_XYZ.shape == (8, 9, 10)
    monkeypatch.setenv(limits.VARIABLE, "719")
    with pytest.raises(Rejection) as caught:
        openmind.load(ref)
    assert caught.value.reason is Reason.TOO_LARGE
    assert limits.VARIABLE in caught.value.message
    for wrong in ("many", "0", "-5", "nan", "inf"):
        monkeypatch.setenv(limits.VARIABLE, wrong)
        with pytest.raises(UserError, match=limits.VARIABLE) as error:
            limits.max_voxels()
        assert error.value.exit_code == 2


def test_slices_of_a_run_are_counted_before_the_first_is_read(tmp_path):
    folder = tmp_path / "Images_png" / "000001_01_01"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((4096, 4096), np.uint16)).save(folder / "001.png", compress_level=1)
    for number in range(2, 61):
        os.link(folder / "001.png", folder / f"{number:03d}.png")
    (tmp_path / "DL_info.csv").write_text(
        'File_name,Slice_range,Spacing_mm_px_\n000001_01_01_001.png,"1, 60","1, 1, 1"\n'
    )
    (ref,) = references("deeplesion", tmp_path)
    with pytest.raises(Rejection) as caught:
        deeplesion.load(ref)
    assert caught.value.reason is Reason.TOO_LARGE


def test_an_archive_that_unpacks_to_far_more_than_it_is_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, str(16 << 20))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small", b"1")
        archive.writestr("large", bytes(20 << 20))
    with pytest.raises(Damaged, match="20 MiB"):
        unpack(tmp_path / "a.zip", tmp_path / "out", place=PurePosixPath)
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv(limits.VARIABLE)
    assert len(unpack(tmp_path / "a.zip", tmp_path / "out", place=PurePosixPath)) == 2


def test_a_modality_is_no_formula():
    figure = Figure()
    axes = figure.subplots()
    axes.set_ylabel("T1 $\\frac{a$")
    axes.set_title("$" * 300 + "\a\n" * 300)
    axes.plot([1, 1000], [1, 1000], label="\\(x_{")
    axes.set_yscale("log")
    axes.legend()
    page = Page("a corpus")
    page.figure(figure, caption="")
    assert "data:image/png" in page.html()
    assert axes.yaxis.get_majorticklabels()[0].get_parse_math()


class Nobody:
    """An executor that takes note of the scans that it is given, and does none."""

    def __init__(self) -> None:
        self.given: list[ScanRef] = []

    def __call__(self, function, refs):
        self.given += refs
        return (pair for pair in ())


@pytest.mark.parametrize("source", ["tcia", "openmind", "deeplesion", "rsna"])
def test_empty_files_are_refused_at_once(tmp_path, source, monkeypatch):
    """No worker is asked, and the disk is not waited for once a file."""
    bombs.empty_files(tmp_path / "raw", source, 300)
    waited = []
    monkeypatch.setattr(journal.os, "fsync", waited.append)
    nobody = Nobody()
    summary = engine.run(source, tmp_path / "raw", tmp_path / "out", Settings(), executor=nobody)
    assert nobody.given == []
    assert summary.rejected == {Reason.EMPTY.value: 300}
    assert len(waited) < 30


def test_a_file_that_takes_for_ever_in_discovery_is_one_refusal(tmp_path, monkeypatch):
    bombs.ct_series(tmp_path, 4)
    (tmp_path / "x.dcm").write_bytes((tmp_path / "0.dcm").read_bytes())
    read = dicom_volumes.read_frames

    def slow(path: Path, **rules: bool):
        while path.name == "x.dcm":
            time.sleep(0.01)
        return read(path, **rules)

    monkeypatch.setattr(dicom_volumes, "read_frames", slow)
    with watched(0.2):
        found = refusals(tmp_path)
    assert found == {"x.dcm": Reason.WORKER_DIED}

    def busy(path: Path, **rules: bool):
        while path.name == "x.dcm":
            pass
        return read(path, **rules)

    monkeypatch.setattr(dicom_volumes, "read_frames", busy)
    with watched(None, cpu_seconds=0.2):
        assert refusals(tmp_path) == {"x.dcm": Reason.WORKER_DIED}


def test_a_run_looks_for_scans_under_its_time_limit(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    bombs.ct_series(raw, 4)
    (raw / "x.dcm").write_bytes((raw / "0.dcm").read_bytes())
    read = dicom_volumes.read_frames

    def slow(path: Path, **rules: bool):
        while path.name == "x.dcm":
            time.sleep(0.01)
        return read(path, **rules)

    monkeypatch.setattr(dicom_volumes, "read_frames", slow)
    nobody = Nobody()
    summary = engine.run("tcia", raw, tmp_path / "out", Settings(), executor=nobody, time_limit_s=0.3)
    assert [len(ref.paths) for ref in nobody.given] == [4]
    assert summary.rejected == {Reason.WORKER_DIED.value: 1}


def test_a_fault_that_nobody_foresaw_costs_one_file_in_discovery_too(tmp_path, monkeypatch):
    bombs.ct_series(tmp_path, 4)
    (tmp_path / "x.dcm").write_bytes((tmp_path / "0.dcm").read_bytes())
    read = dicom_volumes.read_frames

    def faulty(path: Path, **rules: bool):
        if path.name == "x.dcm":
            raise ArithmeticError("Smith^John")
        return read(path, **rules)

    monkeypatch.setattr(dicom_volumes, "read_frames", faulty)
    volumes = find_volumes(sorted(tmp_path.iterdir()))
    assert [len(volume.paths) for volume in volumes if volume.rejection is None] == [4]
    (message,) = [volume.rejection.message for volume in volumes if volume.rejection]
    assert "ArithmeticError" in message
    assert "Smith" not in message


def test_bombs_take_little_memory(tmp_path):
    """Each of them takes two to seven gigabytes where its claim is believed or all of it is unpacked."""
    ran = subprocess.run(
        [sys.executable, bombs.__file__, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    *outcomes, peak = ran.stdout.splitlines()
    assert outcomes == [
        "deflated: found",
        "deflated: (6, 5, 4)",
        "deflated header: too_large",
        "mask: left out",
        "vessels: dropped",
        "image: too_large",
        "corpus: too large",
        "corpus tail: damaged",
    ]
    assert int(peak) < 900 << 10
