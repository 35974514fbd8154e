"""RSNA 2025: tables, localizers in mm, masks, multi-frame files and the dirt of the real download."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from harmonize.decisions import DecisionKind
from harmonize.errors import Reason, Rejection, Stage, UserError
from harmonize.labels import LABELS, PRESENT
from harmonize.pipeline import harmonize_scan
from harmonize.scan import LeftOut, ScanRef
from harmonize.settings import Settings
from harmonize.sources import references, rsna
from harmonize.sources.dicom_series import load_series

CT, MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
UID = "1.2.826.0.1"
TILT = 0.3
LABEL = "Left Middle Cerebral Artery"


def write_file(path, pixels, sop, **elements):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = elements.get("SOPClassUID", CT)
    dataset.file_meta.MediaStorageSOPInstanceUID = sop
    defaults = {
        "SOPClassUID": CT,
        "SOPInstanceUID": sop,
        "SeriesInstanceUID": UID,
        "Modality": "CT",
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": pixels.astype(np.int16).tobytes(),
    }
    for name, value in (defaults | elements).items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_series(root, offsets=(0.0, 1.5, 3.0, 4.5, 9.0), uid=UID, **elements):
    """A tilted series with slices at `offsets`; SOP UIDs are ``<uid>.<k>``."""
    for k, offset in enumerate(offsets):
        own = {
            "ImagePositionPatient": [-10, 20 + TILT * offset, offset],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [0.5, 0.25],
            "SeriesInstanceUID": uid,
        }
        write_file(root / "series" / uid / f"{uid}.{k}.dcm", np.full((6, 8), k), f"{uid}.{k}", **(own | elements))


def write_multiframe(root, frames=5, step=0.8):
    groups = []
    for k in range(frames):
        group, plane = Dataset(), Dataset()
        plane.ImagePositionPatient = [1, 2, 3 + step * k]
        group.PlanePositionSequence = Sequence([plane])
        groups.append(group)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.5, 0.5]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    write_file(
        root / "series" / UID / f"{UID}.0.dcm",
        np.arange(frames)[:, None, None] + np.zeros((frames, 6, 8)),
        f"{UID}.0",
        SOPClassUID=ENHANCED_MR,
        Modality="MR",
        NumberOfFrames=frames,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(groups),
    )


def write_tables(root, rows=((UID, "CTA"),), localizers=(), columns=LABELS):
    with (root / "train.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *columns])
        for uid, modality in rows:
            table.writerow([uid, 64, "Female", modality, *(int(name in (LABEL, PRESENT)) for name in columns)])
    with (root / "train_localizers.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location"])
        table.writerows(localizers)


def load(root):
    (ref,) = references("rsna", root)
    return rsna.load(ref)


def left_out(root):
    return {(found.what, found.why): found.count for found in rsna.discover(root) if isinstance(found, LeftOut)}


def write_mask(path, scan_shape=(8, 6, 5), affine=None, value=10):
    labels = np.zeros(scan_shape, np.uint8)
    labels[2, 3, 1] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(labels, np.diag([-0.25, -0.5, 2.0, 1.0]) if affine is None else affine).to_filename(path)


MASK_AFFINE = np.array([[-0.25, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 1.5, 0], [0, 0, 0, 1.0]])


def test_a_row_becomes_a_scan_with_labels_age_and_sex(tmp_path):
    write_series(tmp_path)
    write_tables(tmp_path)
    (ref,) = references("rsna", tmp_path)
    assert (ref.public_id, ref.subject, ref.modality, len(ref.paths)) == (UID, UID, "CTA", 5)
    scan = rsna.load(ref)
    assert (scan.modality, scan.unit, scan.annotations.age, scan.annotations.sex) == ("CTA", "HU", 64.0, "F")
    assert scan.annotations.labels == {name: int(name in (LABEL, PRESENT)) for name in LABELS}


@pytest.mark.parametrize(
    ("written", "name"), [("CTA", "CTA"), ("MRA", "MRA"), ("MRI T2", "T2w"), ("MRI T1post", "T1post")]
)
def test_modalities_of_the_table_get_the_corpus_names(tmp_path, written, name):
    write_series(tmp_path, SOPClassUID=CT if written == "CTA" else MR, Modality="CT" if written == "CTA" else "MR")
    write_tables(tmp_path, [(UID, written)])
    scan = load(tmp_path)
    assert scan.modality == name
    assert scan.unit == ("HU" if written == "CTA" else "arbitrary")


def test_a_localizer_lies_at_its_pixel_in_a_tilted_uneven_series(tmp_path):
    write_series(tmp_path)
    write_tables(tmp_path, localizers=[(UID, f"{UID}.4", "{'x': 5.5, 'y': 2.25}", LABEL)])
    scan = load(tmp_path)
    (point,) = scan.annotations.points
    assert point.label == LABEL
    expected = [-(-10 + 5.5 * 0.25), -(20 + TILT * 9.0 + 2.25 * 0.5), 9.0]
    np.testing.assert_allclose(point.xyz_mm, expected, atol=1e-9)
    by_affine = scan.affine @ [5.5, 2.25, scan.slice_offsets[4], 1]
    np.testing.assert_allclose(by_affine[:3], expected, atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 0.5)])
@pytest.mark.parametrize("crop", [False, True])
def test_a_localizer_lands_within_half_a_target_voxel_of_its_pixel(tmp_path, spacing, crop):
    offsets, hot = (0.0, 3.0, 6.0, 9.0, 13.0, 17.0, 21.0, 25.0), (5, 9, 11)
    for k, offset in enumerate(offsets):
        pixels = np.full((24, 20), -1000)
        pixels[6:18, 6:16] = 40
        if k == hot[0]:
            pixels[hot[1:]] = 3000
        place = {"ImagePositionPatient": [-30, 20 + TILT * offset, offset], "PixelSpacing": [2.5, 2.0]}
        write_file(
            tmp_path / "series" / UID / f"{UID}.{k}.dcm",
            pixels,
            f"{UID}.{k}",
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            **place,
        )
    write_tables(tmp_path, localizers=[(UID, f"{UID}.{hot[0]}", f"{{'x': {hot[2]}, 'y': {hot[1]}}}", LABEL)])
    scan = load(tmp_path)
    found = harmonize_scan(scan, Settings(spacing=spacing, crop_foreground=crop)).volume
    (point,) = scan.annotations.points
    brightest = np.array(np.unravel_index(found.stored_XYZ.argmax(), found.stored_XYZ.shape))
    away_mm = np.abs(found.affine[:3, :3] @ brightest + found.affine[:3, 3] - point.xyz_mm)
    assert (away_mm <= np.array(spacing) / 2 + 1e-3).all()


def test_a_localizer_of_a_multiframe_file_lies_in_its_frame(tmp_path):
    write_multiframe(tmp_path)
    localizers = [(UID, f"{UID}.0", "{'x': 2, 'y': 4, 'f': 3}", LABEL)]
    write_tables(tmp_path, [(UID, "MRA")], localizers)
    (point,) = load(tmp_path).annotations.points
    np.testing.assert_allclose(point.xyz_mm, [-(1 + 1), -(2 + 2), 3 + 0.8 * 3], atol=1e-9)


@pytest.mark.parametrize(
    ("sop", "coordinates", "location"),
    [
        (f"{UID}.99", "{'x': 1, 'y': 1}", LABEL),
        (f"{UID}.0", "{'x': 1}", LABEL),
        (f"{UID}.0", "{'x': 1, 'y': float('nan')}", LABEL),
        (f"{UID}.0", "__import__('os').getcwd()", LABEL),
        (f"{UID}.0", "", LABEL),
        (f"{UID}.0", "{'x': 1, 'y': 1}", "Left Elbow"),
    ],
    ids=["missing picture", "no y", "not a literal", "code", "empty", "unknown place"],
)
def test_a_localizer_that_cannot_be_placed_is_a_decision_and_no_crash(tmp_path, sop, coordinates, location):
    write_series(tmp_path)
    write_tables(tmp_path, localizers=[(UID, sop, coordinates, location)])
    scan = load(tmp_path)
    assert scan.annotations.points == ()
    assert any("localizer dropped" in line for line in scan.decisions)


@pytest.mark.parametrize("layout", ["{uid}_cowseg.nii", "{uid}/{uid}_cowseg.nii", "{uid}_cowseg.nii.gz"])
def test_vessel_masks_are_found_in_either_layout(tmp_path, layout):
    write_series(tmp_path)
    write_tables(tmp_path)
    write_mask(tmp_path / "segmentations" / layout.format(uid=UID), affine=MASK_AFFINE)
    mask = load(tmp_path).masks["vessels"]
    assert np.argwhere(mask.labels_XYZ == 10).tolist() == [[2, 3, 1]]
    np.testing.assert_allclose(mask.affine, MASK_AFFINE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scan_shape": (8, 6, 7)}, "shape"),
        ({"affine": MASK_AFFINE + np.array([[0, 0, 0, 80.0]] + [[0] * 4] * 3)}, "elsewhere"),
        ({"value": 99}, "no vessel"),
    ],
)
def test_a_mask_that_does_not_fit_is_dropped_with_a_decision(tmp_path, changes, words):
    write_series(tmp_path)
    write_tables(tmp_path)
    write_mask(tmp_path / "segmentations" / f"{UID}_cowseg.nii", **({"affine": MASK_AFFINE} | changes))
    scan = load(tmp_path)
    assert scan.masks == {}
    assert any("mask dropped" in line and words in line for line in scan.decisions)


def test_an_unreadable_mask_is_dropped_with_a_decision(tmp_path):
    write_series(tmp_path)
    write_tables(tmp_path)
    (tmp_path / "segmentations").mkdir()
    (tmp_path / "segmentations" / f"{UID}_cowseg.nii").write_bytes(b"nothing")
    scan = load(tmp_path)
    assert scan.masks == {}
    assert any("mask dropped" in line for line in scan.decisions)


def test_of_mixed_orientations_the_largest_is_read(tmp_path):
    write_series(tmp_path)
    for k in range(2):
        write_file(
            tmp_path / "series" / UID / f"scout{k}.dcm",
            np.zeros((9, 9)),
            f"{UID}.7{k}",
            ImagePositionPatient=[k * 30.0, 0, 0],
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
            PixelSpacing=[1, 1],
        )
    write_tables(tmp_path)
    scan = load(tmp_path)
    assert scan.voxels_XYZ.shape == (8, 6, 5)
    assert any("2 other pictures" in line for line in scan.decisions)


def test_a_series_with_all_slices_at_one_height_is_refused(tmp_path):
    write_series(tmp_path, offsets=[4.0] * 6)
    write_tables(tmp_path)
    with pytest.raises(Rejection) as caught:
        load(tmp_path)
    assert caught.value.reason is Reason.REPEATED_POSITIONS


def test_a_series_without_files_is_refused(tmp_path):
    write_tables(tmp_path)
    with pytest.raises(Rejection) as caught:
        load(tmp_path)
    assert caught.value.reason is Reason.MISSING_FILE


@pytest.mark.parametrize("uid", ["../../etc/passwd", "..", "a/b", "/etc"])
def test_a_series_id_that_is_no_file_name_is_refused_and_never_opened(tmp_path, uid):
    write_tables(tmp_path, [(uid, "CTA")])
    (ref,) = references("rsna", tmp_path)
    assert (ref.public_id, ref.paths) == (None, ())
    with pytest.raises(Rejection) as caught:
        rsna.load(ref)
    assert caught.value.reason is Reason.UNSAFE_NAME


def test_a_series_that_stands_twice_in_the_table_is_read_once(tmp_path):
    write_series(tmp_path)
    write_tables(tmp_path, [(UID, "CTA"), (UID, "CTA")])
    scan = load(tmp_path)
    assert scan.voxels_XYZ.shape == (8, 6, 5)
    assert scan.annotations.labels is not None
    assert left_out(tmp_path) == {("rows of train.csv", "the series stands in an earlier row"): 1}


def test_a_wrong_table_is_named_with_what_it_lacks(tmp_path):
    write_tables(tmp_path, columns=LABELS[:-1])
    with pytest.raises(UserError, match="Aneurysm Present"):
        list(references("rsna", tmp_path))


def test_a_folder_that_is_not_the_download_is_said(tmp_path):
    with pytest.raises(UserError, match=r"train\.csv"):
        list(references("rsna", tmp_path))


def test_a_series_is_read_without_tables(tmp_path):
    write_series(tmp_path)
    scan = load_series(tmp_path / "series" / UID)
    assert (scan.modality, scan.unit, scan.annotations.labels, scan.annotations.points) == ("CT", "HU", None, ())


def test_a_multiframe_file_stripped_by_the_gateway_is_still_read(tmp_path):
    write_file(
        tmp_path / "only.dcm",
        np.arange(7)[:, None, None] + np.zeros((7, 6, 8)),
        "1.2",
        SOPClassUID=ENHANCED_MR,
        Modality="MR",
        SliceThickness=0.7,
    )
    scan = load_series(tmp_path)
    assert scan.voxels_XYZ.shape == (8, 6, 7)
    np.testing.assert_allclose(np.diag(scan.affine), [-220 / 8, -220 / 8, 0.7, 1])
    assert any("assumed" in line for line in scan.decisions)


def test_a_folder_of_one_series_without_files_is_refused_and_a_missing_one_is_wrong_use(tmp_path):
    with pytest.raises(Rejection):
        load_series(tmp_path)
    with pytest.raises(UserError) as caught:
        load_series(tmp_path / "nowhere")
    assert caught.value.exit_code == 2


def write_rows(root, rows):
    """train.csv from rows of text: series, and what differs from a negative CTA of a woman of 64."""
    with (root / "train.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, ["SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS])
        table.writeheader()
        usual = {"PatientAge": "64", "PatientSex": "Female", "Modality": "CTA"} | dict.fromkeys(LABELS, "0")
        table.writerows({"SeriesInstanceUID": uid} | usual | differing for uid, differing in rows)


@pytest.mark.parametrize(
    ("rows", "said", "why"),
    [
        ([{PRESENT: ""}], "1 of the 14 labels is empty", None),
        ([{PRESENT: "2"}], "1 of the 14 labels says neither yes nor no", None),
        ([{PRESENT: "yes"}], "1 of the 14 labels says neither yes nor no", None),
        ([{LABEL: "1"}], "a location is positive although Aneurysm Present is 0", None),
        ([{}, {PRESENT: "1"}], "its rows in train.csv contradict each other", "the series stands in an earlier row"),
        ([{}, {PRESENT: ""}], "its rows in train.csv contradict each other", "the series stands in an earlier row"),
    ],
)
def test_a_series_whose_labels_cannot_be_used_trains_nothing_and_that_is_said(tmp_path, rows, said, why):
    write_series(tmp_path)
    write_rows(tmp_path, [(UID, row) for row in rows])
    (ref,) = references("rsna", tmp_path)
    scan = rsna.load(ref)
    assert scan.annotations.labels is None
    assert ref.meta["labels"] is None
    (line,) = [line for line in scan.decisions if line.kind is DecisionKind.NO_LABELS]
    assert said in line
    counts = left_out(tmp_path)
    assert counts["series of train.csv", "no usable labels: taken, but they train nothing"] == 1
    assert why is None or counts["rows of train.csv", why] == len(rows) - 1


def test_rows_that_agree_are_one_and_what_they_differ_in_is_left_out(tmp_path):
    write_series(tmp_path)
    write_rows(tmp_path, [(UID, {}), (UID, dict.fromkeys(LABELS, "0.0") | {"PatientAge": "65"}), (UID, {})])
    scan = load(tmp_path)
    assert scan.annotations.labels == dict.fromkeys(LABELS, 0)
    assert (scan.annotations.age, scan.annotations.sex) == (None, "F")
    assert "its rows contradict each other about the age: left out" in scan.decisions


def test_what_no_row_of_the_tables_names_is_refused_or_counted(tmp_path):
    write_series(tmp_path)
    write_series(tmp_path, uid="1.9")
    write_tables(tmp_path, localizers=[("1.8", "1", "{}", LABEL)])
    write_mask(tmp_path / "segmentations/1.7_cowseg.nii", affine=MASK_AFFINE)
    write_mask(tmp_path / f"segmentations/{UID}_cowseg.NII.GZ", affine=MASK_AFFINE)
    write_mask(tmp_path / f"segmentations/{UID}.nii", affine=MASK_AFFINE)
    (tmp_path / "series" / UID / "Thumbs.db").touch()
    (tmp_path / "notes.txt").touch()
    found = list(rsna.discover(tmp_path))
    own, strange = (ref for ref in found if isinstance(ref, ScanRef))
    assert (own.key, len(own.paths)) == (UID, 5)
    assert "vessels" in rsna.load(own).masks
    assert strange.key == "series/1.9/"
    assert strange.rejection == Rejection(
        Reason.MISSING_METADATA, "no row of train.csv names these 5 files", stage=Stage.DISCOVER
    )
    assert "labels" not in strange.meta
    assert {what: count for (what, _), count in left_out(tmp_path).items()} == {
        ".db": 1, ".nii": 1, ".txt": 1, "rows of train_localizers.csv": 1, "vessel masks": 1,
    }  # fmt: skip


def test_a_series_that_cannot_be_read_is_refused_once_with_its_labels_kept(guarded):
    write_series(guarded)
    write_tables(guarded)
    (guarded / "series" / UID).chmod(0)
    (ref,) = references("rsna", guarded)
    assert ref.meta["labels"] == {name: int(name in (LABEL, PRESENT)) for name in LABELS}
    with pytest.raises(Rejection) as caught:
        rsna.load(ref)
    assert caught.value.reason is Reason.IO_ERROR
    assert "Permission denied" in caught.value.message


def test_a_file_that_cannot_be_read_is_a_decision_of_its_series(guarded):
    write_series(guarded, offsets=(0.0, 1.5, 3.0, 4.5, 6.0))
    write_tables(guarded)
    (guarded / "series" / UID / f"{UID}.4.dcm").chmod(0)
    scan = load(guarded)
    assert scan.voxels_XYZ.shape == (8, 6, 4)
    assert "1 files of the series left out: a file cannot be read: Permission denied" in scan.decisions


def test_a_localizer_of_a_location_that_is_negative_is_said(tmp_path):
    write_series(tmp_path)
    write_tables(tmp_path, localizers=[(UID, f"{UID}.1", "{'x': 1, 'y': 1}", "Basilar Tip")])
    scan = load(tmp_path)
    assert "train_localizers.csv has a point (Basilar Tip) where train.csv has none" in scan.decisions
