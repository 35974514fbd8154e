"""The phantom as a whole: the same bytes each time, the exact tables, and an output that is never half written."""

from __future__ import annotations

import csv
import hashlib
import re
from pathlib import Path

import pytest

from harmonize import phantom, sources
from harmonize.errors import UserError
from harmonize.phantom.rsna import BESIDE

OPENMIND = (
    "unique_id,image_path,modality,anon_mask_path,anat_mask_path,image_quality_score,derived_from,is_brain_extract,age,"
    "sex,handedness,race,weight,bmi,health_status,manufacturer,model_name,phase_encoding_direction,"
    "magnetic_field_strength,repetition_time,echo_time"
)
TCIA = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,Study Description,Study Date,"
    "Series Description,Manufacturer,Modality,SOP Class Name,SOP Class UID,Number of Images,File Size,File Location,"
    "Download Timestamp"
)
DEEPLESION = (
    "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
    "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,Spacing_mm_px_,"
    "Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test"
)
RSNA = (
    "SeriesInstanceUID,PatientAge,PatientSex,Modality,"
    "Left Infraclinoid Internal Carotid Artery,Right Infraclinoid Internal Carotid Artery,"
    "Left Supraclinoid Internal Carotid Artery,Right Supraclinoid Internal Carotid Artery,"
    "Left Middle Cerebral Artery,Right Middle Cerebral Artery,Anterior Communicating Artery,"
    "Left Anterior Cerebral Artery,Right Anterior Cerebral Artery,Left Posterior Communicating Artery,"
    "Right Posterior Communicating Artery,Basilar Tip,Other Posterior Circulation,Aneurysm Present"
)
TABLES = {
    "openmind/openneuro_metadata.csv": OPENMIND,
    "tcia/metadata.csv": TCIA,
    "deeplesion/DL_info.csv": DEEPLESION,
    "rsna/train.csv": RSNA,
    "rsna/train_localizers.csv": "SeriesInstanceUID,SOPInstanceUID,coordinates,location",
}


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("all")
    phantom.write("all", out, scans=2, size=24, seed=3)
    return out


def test_all_writes_one_tree_for_each_source(everything: Path) -> None:
    assert sorted(path.name for path in everything.iterdir()) == [
        "adam", "deeplesion", "nifti", "openmind", "rsna", "rsna_hospitals.csv", "rsna_mimics.csv", "rsna_sizes.csv",
        "tcia",
    ]  # fmt: skip


@pytest.mark.parametrize("source", [name for name, entry in sources.SOURCES.items() if entry.phantom])
def test_a_source_written_alone_by_two_processes_has_the_same_bytes_as_among_all(
    everything: Path, tmp_path: Path, source: str
) -> None:
    assert phantom.write(source, tmp_path, scans=2, size=24, seed=3, workers=2) == [tmp_path / source]
    assert digests(tmp_path / source) == digests(everything / source)


def test_another_seed_gives_other_scans(everything: Path, tmp_path: Path) -> None:
    phantom.write("deeplesion", tmp_path, scans=1, size=24, seed=4)
    ours = {name: digest for name, digest in digests(everything / "deeplesion").items() if name.endswith(".png")}
    others = {name: digest for name, digest in digests(tmp_path / "deeplesion").items() if name.endswith(".png")}
    assert not set(ours.values()) & set(others.values())


@pytest.mark.parametrize(("table", "header"), TABLES.items())
def test_tables_have_the_exact_header_of_their_source(everything: Path, table: str, header: str) -> None:
    assert (everything / table).read_text(encoding="utf-8").splitlines()[0] == header


def test_no_table_names_a_file_that_is_not_there(everything: Path) -> None:
    with (everything / "openmind/openneuro_metadata.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            for column in ("image_path", "anon_mask_path", "anat_mask_path"):
                assert not row[column] or (everything / "openmind/OpenMind" / row[column]).is_file()
    with (everything / "tcia/metadata.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            files = list((everything / "tcia" / row["File Location"]).iterdir())
            assert len(files) == int(row["Number of Images"])


@pytest.mark.parametrize(
    ("source", "scans", "size", "word"),
    [("oasis", 1, 32, "oasis"), ("rsna", 0, 32, "--scans"), ("rsna", 1, 4, "--size")],
)
def test_wrong_use_is_told_in_one_line(tmp_path: Path, source: str, scans: int, size: int, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        phantom.write(source, tmp_path, scans=scans, size=size, seed=0)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_an_existing_tree_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "deeplesion").mkdir()
    with pytest.raises(UserError, match="exists already"):
        phantom.write("all", tmp_path, scans=1, size=24, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["deeplesion"]


@pytest.mark.parametrize("table", BESIDE)
def test_a_table_of_another_tree_is_neither_overwritten_nor_left_beside_a_new_one(tmp_path: Path, table: str) -> None:
    (tmp_path / table).write_text("mine")
    with pytest.raises(UserError, match=f"{re.escape(table)} exists already"):
        phantom.write("rsna", tmp_path, scans=1, size=24, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == [table]


def test_a_tree_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_late(root: Path, found: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("harmonize.phantom.rsna.write_tables", fail_late)
    with pytest.raises(OSError, match="disk full"):
        phantom.write("rsna", tmp_path, scans=2, size=24, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_cannot_get_its_name_takes_its_tables_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        assert (tmp_path / "rsna_sizes.csv").is_file(), "whoever finds the tree finds its tables"
        raise OSError("disk gone")

    original = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: fail(self, to) if to.name == "rsna" else original(self, to))
    with pytest.raises(OSError, match="disk gone"):
        phantom.write("rsna", tmp_path, scans=2, size=24, seed=0)
    assert list(tmp_path.iterdir()) == []
