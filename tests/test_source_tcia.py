"""TCIA trees: any folder layout, with and without NBIA's table."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from harmonize.errors import Reason, Rejection, UserError
from harmonize.scan import LeftOut, ScanRef
from harmonize.sources import references, tcia

CT, PET, STRUCTURES = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.128", "1.2.840.10008.5.1.4.1.1.481.3"
HEADER = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,Study Description,Study Date,"
    "Series Description,Manufacturer,Modality,SOP Class Name,SOP Class UID,Number of Images,File Size,File Location,"
    "Download Timestamp"
)


def write_slice(path, k, uid="1.2.3", **elements):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = elements.get("SOPClassUID", CT)
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    defaults = {
        "SOPClassUID": CT,
        "SOPInstanceUID": generate_uid(),
        "SeriesInstanceUID": uid,
        "StudyInstanceUID": "1.9",
        "PatientID": "DOE^JANE 1950",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [0, 0, 2.0 * k],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
        "Rows": 4,
        "Columns": 5,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": np.full((4, 5), k, np.int16).tobytes(),
    }
    for name, value in (defaults | elements).items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder, uid="1.2.3", slices=5, **elements):
    for k in range(slices):
        write_slice(folder / f"1-{k + 1}.dcm", k, uid, **elements)


def write_table(root, rows, header=HEADER):
    names = header.split(",")
    with (root / "metadata.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(names)
        for uid, subject in rows:
            table.writerow([{"Series UID": uid, "Subject ID": subject}.get(name, "") for name in names])


def test_series_are_found_below_folders_with_odd_names(tmp_path):
    write_series(
        tmp_path / "Head-Neck-PET-CT" / "HN-CHUM-001" / "08-27-1885-PANC. tte et cou  -TP-74220" / "3.0- 07232"
    )
    write_series(tmp_path / "1.2.4", uid="1.2.4")
    scans = [tcia.load(ref) for ref in references("tcia", tmp_path)]
    assert [scan.voxels_XYZ.shape for scan in scans] == [(5, 4, 5)] * 2


def test_a_series_spread_over_two_folders_is_one_scan(tmp_path):
    for k in range(6):
        write_slice(tmp_path / f"part{k % 2}" / f"{k}.dcm", k)
    (ref,) = references("tcia", tmp_path)
    assert tcia.load(ref).voxels_XYZ[0, 0].tolist() == list(range(6))


def test_ids_of_the_table_are_public(tmp_path):
    write_series(tmp_path / "a")
    write_table(tmp_path, [("1.2.3", "HNSCC-01-0001")])
    (ref,) = references("tcia", tmp_path)
    assert (ref.public_id, ref.subject, ref.session, ref.key) == ("1.2.3", "HNSCC-01-0001", "1.9", "1.2.3/0")


def test_without_the_table_no_id_is_public(tmp_path):
    write_series(tmp_path / "a")
    (ref,) = references("tcia", tmp_path)
    assert (ref.public_id, ref.subject) == (None, "DOE^JANE 1950")


@pytest.mark.parametrize("subject", ["../../etc", "a/b", "", ".hidden", "x" * 300])
def test_an_unsafe_subject_of_the_table_is_not_taken_as_a_name(tmp_path, subject):
    write_series(tmp_path / "a")
    write_table(tmp_path, [("1.2.3", subject)])
    (ref,) = references("tcia", tmp_path)
    assert ref.public_id is None
    assert ref.subject == "DOE^JANE 1950"


@pytest.mark.parametrize("content", [b"id,label\n1,0\n", b"", b'"Series UID,Subject ID\n', b"a\0b"])
def test_a_table_that_is_not_nbias_is_said_and_not_used(tmp_path, content):
    write_series(tmp_path / "a")
    (tmp_path / "metadata.csv").write_bytes(content)
    ref, left = tcia.discover(tmp_path)
    assert (ref.public_id, ref.subject) == (None, "DOE^JANE 1950")
    assert left == LeftOut(what="metadata.csv", why="not NBIA's table, so not used")


def test_a_missing_folder_is_wrong_use(tmp_path):
    with pytest.raises(UserError) as caught:
        list(references("tcia", tmp_path / "nowhere"))
    assert caught.value.exit_code == 2


def test_structure_sets_are_skipped_and_scouts_and_uncorrected_pet_are_recorded(tmp_path):
    write_series(tmp_path / "ct", uid="1.1")
    write_series(tmp_path / "ac", uid="1.2", SOPClassUID=PET, Modality="PT", CorrectedImage=["ATTN"], Units="BQML")
    write_series(tmp_path / "nac", uid="1.3", SOPClassUID=PET, Modality="PT", CorrectedImage=["DECY"], Units="BQML")
    write_series(tmp_path / "scout", uid="1.4", slices=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "rt", uid="1.5", slices=1, SOPClassUID=STRUCTURES, Modality="RTSTRUCT")
    outcomes = {}
    for ref in references("tcia", tmp_path):
        try:
            outcomes[ref.key] = tcia.load(ref).modality
        except Rejection as rejection:
            outcomes[ref.key] = rejection.reason
    assert outcomes == {"1.1/0": "CT", "1.2/0": "PT", "1.3/0": Reason.DERIVED, "1.4/0": Reason.LOCALIZER}


def test_each_echo_is_a_scan_with_its_own_key_and_files(tmp_path):
    write_series(tmp_path / "a", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4", EchoTime=10)
    write_series(tmp_path / "b", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4", EchoTime=90)
    write_table(tmp_path, [("1.2.3", "S1")])
    refs = list(references("tcia", tmp_path))
    assert [(ref.key, ref.public_id) for ref in refs] == [("1.2.3/0", "1.2.3"), ("1.2.3/1", "1.2.3_1")]
    assert set(refs[0].paths).isdisjoint(refs[1].paths)
    scans = [tcia.load(ref) for ref in refs]
    assert [scan.decisions[0][:13] for scan in scans] == ["volume 1 of 2", "volume 2 of 2"]


def test_discovery_is_deterministic_and_reads_no_pixels(tmp_path):
    for number in range(3):
        write_series(tmp_path / f"s{number}", uid=f"1.2.{9 - number}")
    whole = list(references("tcia", tmp_path))
    for path in tmp_path.rglob("*.dcm"):
        path.write_bytes(path.read_bytes()[:-40])
    assert list(references("tcia", tmp_path)) == whole
    with pytest.raises(Rejection) as caught:
        tcia.load(whole[0])
    assert caught.value.reason is Reason.TRUNCATED


def test_a_broken_file_gets_its_own_reference(tmp_path):
    write_series(tmp_path / "a")
    (tmp_path / "a" / "broken.dcm").write_bytes(b"\0" * 200)
    refs = list(references("tcia", tmp_path))
    assert [ref.key for ref in refs] == ["1.2.3/0", "a/broken.dcm/0"]
    with pytest.raises(Rejection) as caught:
        tcia.load(refs[1])
    assert caught.value.reason is Reason.UNREADABLE


def test_linked_folders_are_followed_once(tmp_path):
    write_series(tmp_path / "outside" / "a")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "outside" / "a")
    (root / "again").symlink_to(tmp_path / "outside" / "a")
    (root / "loop").symlink_to(root)
    (ref,) = references("tcia", root)
    assert len(ref.paths) == 5


def test_a_folder_and_a_file_that_cannot_be_read_are_refused_to_be_tried_again(guarded):
    write_series(guarded / "a", slices=6)
    write_series(guarded / "locked", uid="1.2.4")
    (guarded / "a/1-6.dcm").rename(guarded / "a/IM6")
    (guarded / "a/IM6").chmod(0)
    (guarded / "a/notes.txt").touch(mode=0)
    (guarded / "locked").chmod(0)
    own, *refused = references("tcia", guarded)
    assert (own.key, len(own.paths)) == ("1.2.3/0", 5)
    assert [(ref.key, (ref.rejection.reason, ref.rejection.message)) for ref in refused] == [
        ("a/IM6", ("io_error", "a file cannot be read: Permission denied")),
        ("locked/", ("io_error", "a folder cannot be read: Permission denied")),
    ]
    left = [found for found in tcia.discover(guarded) if isinstance(found, LeftOut)]
    assert left == [LeftOut(what=".txt", why="cannot be read")]


def test_what_is_no_picture_is_refused_or_counted(tmp_path):
    write_series(tmp_path / "ct")
    write_series(tmp_path / "rt", uid="1.5", slices=2, SOPClassUID=STRUCTURES, Modality="RTSTRUCT")
    for name in ("DICOMDIR", "a.dcm.gz", "b.nii.gz", "c.txt", "README"):
        (tmp_path / name).write_bytes(b"?" * 200)
    found = list(tcia.discover(tmp_path))
    refused = {ref.key: ref.rejection.reason for ref in found if isinstance(ref, ScanRef) and ref.rejection}
    assert refused == {"a.dcm.gz": "unsupported_encoding", "b.nii.gz": "unsupported_encoding"}
    assert {(left.what, left.count) for left in found if isinstance(left, LeftOut)} == {
        ("DICOM objects", 2), ("DICOMDIR", 1), (".txt", 1), ("without suffix", 1),
    }  # fmt: skip


def test_a_series_that_two_tables_give_to_two_subjects_is_private(tmp_path):
    write_series(tmp_path / "a")
    for folder, subject in (("x", "S1"), ("y", "S2"), ("z", "S1")):
        (tmp_path / folder).mkdir()
        write_table(tmp_path / folder, [("1.2.3", subject)])
    (ref,) = references("tcia", tmp_path)
    assert ref.public_id is None


@pytest.mark.realdata
def test_real_series_are_read_through_the_source(real_data):
    outcomes = []
    for ref in references("tcia", real_data):
        try:
            outcomes.append(tcia.load(ref).modality)
        except Rejection as rejection:
            outcomes.append(str(rejection.reason))
    # The mosaic among the localizers is the second moment of the series in the folder of transfer syntaxes.
    read = ["CT", "CT", "FLAIR", "MR", "MR", "MR", "MR"]
    refused = ["localizer", "localizer", "mixed_geometry", "repeated_positions", "too_few_slices", "too_few_slices"]
    # Each NIfTI file among them claims to be an image, too.
    foreign = ["unsupported_encoding"] * len(list(real_data.rglob("*.nii*")))
    assert sorted(outcomes) == sorted(read + refused + foreign)
