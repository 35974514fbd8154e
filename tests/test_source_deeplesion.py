"""DeepLesion: runs of slices, the spacing of each, the head up and the left where it belongs."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harmonize.decisions import DecisionKind, kind_of
from harmonize.errors import Reason, Rejection, UserError
from harmonize.scan import LeftOut, ScanRef
from harmonize.sources import deeplesion, references

HEADER = (
    "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
    "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,Spacing_mm_px_,"
    "Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test"
)


def line(series: str, key: int, first: int, last: int, spacing: str = "0.5, 0.5, 5", size: str = "8, 6") -> str:
    return (
        f'{series}_{key:03d}.png,1,1,1,{key},"1, 2","1, 2, 3, 4","11.9, 5.1","0.4, 0.2, 0.4",3,0,"{first}, {last}",'
        f'"{spacing}","{size}","-175, 275",F,62,3'
    )


def table(root: Path, *lines: str) -> None:
    (root / "DL_info.csv").write_text("\n".join((HEADER, *lines)) + "\n")


def slices(root: Path, series: str, first: int, last: int, hu: np.ndarray | None = None) -> None:
    folder = root / "Images_png" / series
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, 8), 40) if hu is None else hu
    for number in range(first, last + 1):
        Image.fromarray((pixels + 32768).astype(np.uint16)).save(folder / f"{number:03d}.png")


def spacing_of(ref) -> list[float]:
    return np.abs(np.diagonal(deeplesion.load(ref).affine)[:3]).tolist()


def test_a_run_is_a_volume_in_hounsfield_units(tmp_path: Path) -> None:
    hu = np.arange(48).reshape(6, 8) * 10 - 100
    slices(tmp_path, "000001_01_01", 103, 115, hu)
    table(tmp_path, line("000001_01_01", 109, 103, 115))
    (ref,) = deeplesion.discover(tmp_path)
    scan = deeplesion.load(ref)
    assert ref.public_id == "000001_01_01_103-115"
    assert scan.voxels_XYZ.shape == (8, 6, 13)
    assert np.array_equal(scan.voxels_XYZ[:, :, 0], hu.T)
    assert (scan.annotations.age, scan.annotations.sex, scan.unit) == (62.0, "F", "HU")


def test_rows_go_to_posterior_columns_to_left_and_slices_to_the_feet(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 4)
    table(tmp_path, line("000001_01_01", 2, 1, 4, "0.5, 0.5, 5"))
    (ref,) = deeplesion.discover(tmp_path)
    assert np.array_equal(deeplesion.load(ref).affine, np.diag([-0.5, -0.5, -5, 1]))


def test_each_run_of_a_series_has_its_own_spacing(tmp_path: Path) -> None:
    slices(tmp_path, "003247_02_01", 44, 111)
    slices(tmp_path, "003247_02_01", 120, 132)
    table(
        tmp_path,
        line("003247_02_01", 80, 44, 111, "0.7, 0.7, 1"),
        line("003247_02_01", 90, 44, 111, "0.7, 0.7, 1"),
        line("003247_02_01", 126, 120, 132, "0.7, 0.7, 5"),
    )
    first, second = deeplesion.discover(tmp_path)
    assert (len(first.paths), len(second.paths)) == (68, 13)
    assert spacing_of(first) == [0.7, 0.7, 1.0]
    assert spacing_of(second) == [0.7, 0.7, 5.0]


def test_touching_runs_of_different_spacing_are_kept_apart(tmp_path: Path) -> None:
    slices(tmp_path, "000002_01_01", 1, 20)
    table(tmp_path, line("000002_01_01", 5, 1, 10, "0.7, 0.7, 1"), line("000002_01_01", 15, 11, 20, "0.7, 0.7, 5"))
    first, second = deeplesion.discover(tmp_path)
    assert spacing_of(first)[2] == 1
    assert spacing_of(second)[2] == 5


def test_slices_that_two_spacings_claim_are_refused(tmp_path: Path) -> None:
    slices(tmp_path, "000002_01_01", 1, 10)
    table(tmp_path, line("000002_01_01", 5, 1, 10, "0.7, 0.7, 1"), line("000002_01_01", 6, 1, 10, "0.7, 0.7, 5"))
    (ref,) = deeplesion.discover(tmp_path)
    with pytest.raises(Rejection) as caught:
        deeplesion.load(ref)
    assert caught.value.reason == Reason.MIXED_GEOMETRY


@pytest.mark.parametrize(
    ("size", "spacing"),
    [
        ("6, 8", [0.5, 0.5, 5]), ("", [0.5, 0.5, 5]), ("n/a", [0.5, 0.5, 5]), ("16, 12", [1, 1, 5]),
        ("4, 3", [0.25, 0.25, 5]),
    ],
)  # fmt: skip
def test_pictures_of_another_size_than_the_table_says_show_the_same_field_of_view(
    tmp_path: Path, size: str, spacing: list[float]
) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    table(tmp_path, line("000001_01_01", 2, 1, 3, size=size))
    (ref,) = deeplesion.discover(tmp_path)
    scan = deeplesion.load(ref)
    assert np.allclose(np.abs(np.diagonal(scan.affine)[:3]), spacing)
    told = [kind_of(text) for text in scan.decisions]
    assert (DecisionKind.SPACING_OF_OTHER_SIZE in told) == (spacing[0] != 0.5)


@pytest.mark.parametrize("sizes", [("512, 512",), ("16, 12", "32, 24")])
def test_pictures_that_were_cut_have_no_known_spacing(tmp_path: Path, sizes: tuple[str, ...]) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    table(tmp_path, *(line("000001_01_01", 2, 1, 3, size=size) for size in sizes))
    (ref,) = deeplesion.discover(tmp_path)
    with pytest.raises(Rejection) as caught:
        deeplesion.load(ref)
    assert caught.value.reason == Reason.BAD_GEOMETRY


def test_a_size_that_is_true_changes_nothing_that_a_corpus_knows_a_scan_by(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    found = []
    for size in ("", "8, 6"):
        table(tmp_path, line("000001_01_01", 2, 1, 3, size=size))
        found += deeplesion.discover(tmp_path)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["000001_01_01/002.png", "Images_png/000001_01_01/002.png", "000001_01_01_002.png"])
def test_rows_are_read_by_the_files_path_and_with_turned_ranges(tmp_path: Path, name: str) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    table(tmp_path, line("000001_01_01", 2, 3, 1).replace("000001_01_01_002.png", name))
    (ref,) = deeplesion.discover(tmp_path)
    assert spacing_of(ref) == [0.5, 0.5, 5]


def test_slices_that_the_table_gives_and_that_are_not_there_are_said(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 4)
    slices(tmp_path, "000001_01_01", 6, 7)
    slices(tmp_path, "000002_01_01", 3, 5)
    table(
        tmp_path,
        line("000001_01_01", 2, 1, 8),
        line("000001_01_01", 5, 3, 8),
        line("000001_01_01", 99, 90, 999999999),
        line("000002_01_01", 4, 3, 5),
        line("000003_01_01", 4, 3, 5),
    )
    *found, left = deeplesion.discover(tmp_path)
    told = "2 of the 8 slices that the table gives are not there"
    said = {ref.key: told in deeplesion.load(ref).decisions for ref in found if isinstance(ref, ScanRef)}
    assert said == {"000001_01_01_001-004": True, "000001_01_01_006-007": True, "000002_01_01_003-005": False}
    assert left == LeftOut(what="rows of DL_info.csv", why="none of their slices is there", count=2)


def test_rows_that_name_no_series_are_counted_as_such(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    table(tmp_path, line("lesion", 2, 1, 3))
    _, left = deeplesion.discover(tmp_path)
    assert left == LeftOut(what="rows of DL_info.csv", why="their File_name names no series")


def test_padding_and_metal_are_clipped_and_counted(tmp_path: Path) -> None:
    hu = np.full((6, 8), 40)
    hu[0, 0], hu[0, 1], hu[0, 2] = -2000, 9000, -32768
    slices(tmp_path, "000001_01_01", 1, 3, hu)
    table(tmp_path, line("000001_01_01", 2, 1, 3))
    (ref,) = deeplesion.discover(tmp_path)
    scan = deeplesion.load(ref)
    assert scan.voxels_XYZ[:3, 0, 0].tolist() == [-1024, 3071, -1024]
    assert "6 padding voxels set to -1024" in scan.decisions
    assert "3 voxels above 3071 HU were clipped" in scan.decisions


def test_slices_without_a_row_are_refused_and_not_lost(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    table(tmp_path)
    (ref,) = deeplesion.discover(tmp_path)
    with pytest.raises(Rejection) as caught:
        deeplesion.load(ref)
    assert caught.value.reason == Reason.MISSING_METADATA


@pytest.mark.parametrize("spacing", ["0, 0.5, 5", "-1, 1, 1", "nan, 1, 1", "1, 1", "a, b, c", ""])
def test_a_senseless_spacing_is_refused(tmp_path: Path, spacing: str) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    table(tmp_path, line("000001_01_01", 2, 1, 3, spacing))
    (ref,) = deeplesion.discover(tmp_path)
    with pytest.raises(Rejection) as caught:
        deeplesion.load(ref)
    assert caught.value.reason in {Reason.BAD_GEOMETRY, Reason.MISSING_METADATA}


def test_slices_of_different_size_are_refused(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    slices(tmp_path, "000001_01_01", 4, 5, np.zeros((9, 9)))
    table(tmp_path, line("000001_01_01", 2, 1, 5))
    (ref,) = deeplesion.discover(tmp_path)
    with pytest.raises(Rejection) as caught:
        deeplesion.load(ref)
    assert caught.value.reason == Reason.MIXED_GEOMETRY


def test_damaged_and_shallow_pictures_are_refused(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 3, np.random.default_rng(0).integers(-1000, 2000, (60, 80)))
    table(tmp_path, line("000001_01_01", 2, 1, 3))
    path = tmp_path / "Images_png/000001_01_01/002.png"
    whole = path.read_bytes()
    (ref,) = deeplesion.discover(tmp_path)
    reasons = []
    for content in (whole[: len(whole) // 2], b"", b"no picture", None):
        if content is None:
            Image.fromarray(np.zeros((60, 80), dtype=np.uint8)).save(path)
        else:
            path.write_bytes(content)
        with pytest.raises(Rejection) as caught:
            deeplesion.load(ref)
        reasons.append(caught.value.reason)
    assert reasons == [Reason.TRUNCATED, Reason.UNREADABLE, Reason.UNREADABLE, Reason.UNSUPPORTED_ENCODING]


def test_a_missing_table_or_column_is_named(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    with pytest.raises(UserError, match=r"DL_info\.csv"):
        list(deeplesion.discover(tmp_path))
    (tmp_path / "DL_info.csv").write_text("File_name,Slice_range\n")
    with pytest.raises(UserError, match="Spacing_mm_px_"):
        list(deeplesion.discover(tmp_path))


@pytest.mark.parametrize("name", ["DL_info (1).csv", "dl_info.CSV"])
def test_a_table_of_nearly_its_name_is_named(tmp_path: Path, name: str) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    (tmp_path / name).write_text("File_name\n")
    with pytest.raises(UserError, match=re.escape(f"(is it {name}? then rename it)")):
        list(deeplesion.discover(tmp_path))


@settings(max_examples=30, deadline=None)
@given(numbers=st.sets(st.integers(0, 120), min_size=1, max_size=12), data=st.data())
def test_slices_are_in_the_order_of_their_numbers_however_these_are_written(
    numbers: set[int], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number in numbers:
            width, suffix = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([".png", ".PNG", ".Png"]))
            slices(root, "000001_01_01", number, number, np.full((6, 8), number))
            folder = root / "Images_png/000001_01_01"
            (folder / f"{number:03d}.png").rename(folder / f"{number:0{width}d}{suffix}")
        table(root, line("000001_01_01", 1, 0, 120))
        found = {ref.key: deeplesion.load(ref).voxels_XYZ[0, 0].tolist() for ref in references("deeplesion", root)}
    runs = [[number] for number in sorted(numbers) if number - 1 not in numbers]
    for run in runs:
        while run[-1] + 1 in numbers:
            run.append(run[-1] + 1)
    assert found == {f"000001_01_01_{run[0]:03d}-{run[-1]:03d}": run for run in runs}


def test_of_two_files_with_one_number_the_data_sets_own_name_is_taken_and_that_is_said(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 3, np.full((6, 8), 7))
    folder = tmp_path / "Images_png/000001_01_01"
    Image.fromarray(np.full((6, 8), 32768, dtype=np.uint16)).save(folder / "2.png")
    table(tmp_path, line("000001_01_01", 2, 1, 3))
    ref, left = deeplesion.discover(tmp_path)
    scan = deeplesion.load(ref)
    assert scan.voxels_XYZ[0, 0].tolist() == [7, 7, 7]
    assert "1 slice numbers stand on several files: the name of three digits is taken" in scan.decisions
    assert left == LeftOut(what=".png", why="another file has the same slice number")
    (folder / "002.png").rename(folder / "0002.png")
    (ref,) = references("deeplesion", tmp_path)
    with pytest.raises(Rejection) as caught:
        deeplesion.load(ref)
    assert caught.value.reason == Reason.REPEATED_POSITIONS


def test_what_is_no_slice_of_a_series_is_accounted_for(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    slices(tmp_path, "strange", 1, 1)
    slices(tmp_path, "000002_01_01", 1, 0)
    folder = tmp_path / "Images_png/000001_01_01"
    for name in ("mask.png", "notes.txt", "volume.nii.gz"):
        (folder / name).touch()
    table(tmp_path, line("000001_01_01", 2, 1, 3), line("000001_01_01", 2, 1, 3).replace('"1, 3"', '"1"'))
    found = list(deeplesion.discover(tmp_path))
    refused = {ref.key: ref.rejection.reason for ref in found if isinstance(ref, ScanRef) and ref.rejection}
    assert refused == {
        "Images_png/000001_01_01/mask.png": "missing_metadata",
        "Images_png/000001_01_01/volume.nii.gz": "unsupported_encoding",
        "Images_png/strange/001.png": "missing_metadata",
    }
    assert {(left.what, left.count) for left in found if isinstance(left, LeftOut)} == {
        (".txt", 1), ("series folders", 1), ("rows of DL_info.csv", 1),
    }  # fmt: skip


def test_rows_that_contradict_each_other_about_the_patient_say_nothing(tmp_path: Path) -> None:
    slices(tmp_path, "000001_01_01", 1, 3)
    own = line("000001_01_01", 2, 1, 3)
    table(tmp_path, own, own.replace(",F,62,", ",F,old,"))
    (ref,) = references("deeplesion", tmp_path)
    scan = deeplesion.load(ref)
    assert (scan.annotations.age, scan.annotations.sex) == (None, "F")
    assert "the table contradicts itself about the age: left out" in scan.decisions
