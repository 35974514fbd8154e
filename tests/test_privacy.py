"""Privacy: text planted wherever a raw tree can hold some reaches no byte that harmonize writes or says."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from harmonize.cli import main
from harmonize.corpus import Corpus

MARK = "Zqxjkv"
MARK_DATE = "19031127"
MARK_UID = "1.2.3.777888999777"
MARKS = [text.encode() for text in (MARK, MARK.upper(), MARK.lower(), MARK_DATE, "1903-11-27", MARK_UID)]
SECRETS = [*MARKS, MARK.encode("utf-16-le"), "Zq\u00e4xjkv".encode(), "Zq\u00e4xjkv".encode("latin-1")]

FREE_TEXT = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
DATES = ("DA", "DT")
PERSONAL = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientAddress", "PatientMotherBirthName",
    "PatientComments", "PatientBirthDate", "PatientTelephoneNumbers", "MilitaryRank", "EthnicGroup", "Occupation",
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "ReferringPhysicianName",
    "PerformingPhysicianName", "OperatorsName", "PhysiciansOfRecord", "AccessionNumber", "StudyID",
    "StudyDescription", "SeriesDescription", "ProtocolName", "RequestedProcedureDescription", "ImageComments",
    "AdditionalPatientHistory", "DeviceSerialNumber", "SoftwareVersions", "Manufacturer", "ManufacturerModelName",
    "DerivationDescription", "SequenceName", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate",
    "SeriesNumber",
)  # fmt: skip
UIDS = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")


def test_no_planted_text_reaches_the_corpus_its_report_or_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    raw, corpus = tmp_path / f"raw-{MARK}", tmp_path / "corpus"
    assert main(["phantom", "--out", str(raw), "--scans", "2", "--size", "24"]) == 0
    plant_dicom(raw / "tcia", uids=(*UIDS, "SeriesInstanceUID"))
    plant_dicom(raw / "rsna", uids=UIDS)
    plant_nifti(raw / "openmind")
    plant_own(raw / "nifti")
    plant_tables(raw)
    capfd.readouterr()
    caplog.clear()
    for source in ("tcia", "rsna", "openmind", "deeplesion", "nifti", "dicom"):
        words = ["--spacing", "8", "--workers", "0", "--mri-norm", "zscore", "--salt", "s"]
        given = raw / ("tcia" if source == "dicom" else source)
        assert main([source, str(given), "--out", str(corpus), *words]) == 0
    for command in ("merge", "verify", "report"):
        assert main([command, str(corpus)]) == 0

    found = Corpus.open(corpus)
    assert {"tcia", "rsna", "openmind", "deeplesion", "nifti", "dicom"} == set(found.scans["source"])
    assert {"derived", "truncated", "unsupported_modality"} <= set(found.rejected["reason"])
    said = "\n".join((*capfd.readouterr(), caplog.text)).encode()
    leaks = [(place, secret) for place, content in [("terminal", said), *written(corpus)] for secret in SECRETS
             if secret in content]  # fmt: skip
    assert leaks == []


def plant_dicom(root: Path, *, uids: tuple[str, ...]) -> None:
    """Mark every file; one of each series is damaged too; folders and files get marked names where they are free."""
    files = sorted(root.rglob("*.dcm"))
    everything = files[0].parent
    for path in files:
        dataset = pydicom.dcmread(path)
        mark(dataset, uids)
        if path.parent == everything:
            for tag, (vr, count, _, retired, _) in DicomDictionary.items():
                if vr in FREE_TEXT and not retired and tag >> 16 > 2 and tag not in dataset and count[0] == "1":
                    dataset.add_new(tag, vr, MARK)
        dataset.file_meta.SourceApplicationEntityTitle = MARK
        dataset.preamble = MARK.encode().ljust(128, b"\0")
        dataset.save_as(path)
    if root.name == "tcia":
        (root / "metadata.csv").unlink()
        cut = root / f"{MARK}^cut" / f"{MARK}.dcm"
        cut.parent.mkdir()
        cut.write_bytes(files[-1].read_bytes()[:-400])
        for folder in [folder for folder in root.iterdir() if folder.is_dir()]:
            folder.rename(root / f"{MARK}-{folder.name}")


def mark(dataset: Dataset, uids: tuple[str, ...]) -> None:
    for element in dataset.iterall():
        if element.VR in FREE_TEXT:
            element.value = MARK
        elif element.VR in DATES:
            element.value = MARK_DATE
    for keyword in PERSONAL:
        vr = pydicom.datadict.dictionary_VR(keyword)
        setattr(dataset, keyword, MARK_DATE if vr in DATES else "777" if vr == "IS" else MARK)
    dataset.PatientName = f"{MARK}^Zq\u00e4xjkv"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in uids:
        if keyword in dataset:
            setattr(dataset, keyword, f"{MARK_UID}.{zlib.crc32(dataset[keyword].value.encode())}")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    block = dataset.private_block(0x0029, f"{MARK} private", create=True)
    for offset, vr in enumerate((*FREE_TEXT, "UN"), start=1):
        block.add_new(offset, vr, MARK.encode() if vr == "UN" else MARK)
    nested = Dataset()
    nested.PatientName, nested.CodeMeaning = MARK, MARK
    dataset.RequestAttributesSequence = [nested]


def plant_nifti(root: Path) -> None:
    """Mark headers, extensions and gzip's own header; add a private study, an unknown contrast and a cut file."""
    images = sorted(path for path in (root / "OpenMind").rglob("*.nii.gz") if not path.name.startswith("."))
    for path in images:
        image = nib.load(path)
        marked = type(image)(np.asanyarray(image.dataobj), image.affine, image.header)
        for field in ("descrip", "aux_file", "intent_name", "db_name"):
            marked.header[field] = MARK.encode()
        marked.header.extensions.append(nib.nifti1.Nifti1Extension("comment", MARK.encode()))
        plain = path.with_suffix("")
        nib.save(marked, plain)
        with path.open("wb") as stream, gzip.GzipFile(f"{MARK}.nii", "wb", fileobj=stream) as packed:
            packed.write(plain.read_bytes())
        plain.unlink()
    private = root / "OpenMind" / f"{MARK} study" / f"sub-{MARK}" / f"ses-{MARK_DATE}"
    private.mkdir(parents=True)
    first = next(path for path in images if "__Data" not in path.as_posix())
    shutil.copy(first, private / f"sub-{MARK}_T1w.nii.gz")
    shutil.copy(first, private / f"sub-{MARK}_nothing.nii.gz")
    (private / f"sub-{MARK}_T2w.nii.gz").write_bytes(first.read_bytes()[:700])


def plant_own(root: Path) -> None:
    """Mark the names, sidecars and table of a lab's own images; add damaged descriptions below marked folders."""
    for path in sorted(root.rglob("sub-*.json")):
        said = json.loads(path.read_text())
        told = {name: f"{value} {MARK}" if name == "Manufacturer" else MARK for name, value in said.items()}
        path.write_text(json.dumps(told | {"Modality": said["Modality"], "PatientName": MARK, "AcquisitionTime": MARK}))
    for path in sorted(root.rglob("sub-*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.replace("sub-001", f"sub-{MARK}")))
    table = root / "participants.tsv"
    head, *rows = table.read_text().replace("sub-001", f"sub-{MARK}").splitlines()
    marked = [f"{head}\tremarks\tfinding\tscan_day", *(f"{row}\t{MARK}\t{MARK}\t1903-11-27" for row in rows)]
    table.write_text("\n".join(marked) + "\n")
    for number, name in enumerate(("dataset.json", "dseg.tsv")):
        folder = root / f"{MARK}{number}" / "imagesTr"
        folder.mkdir(parents=True)
        first = next(root.rglob(f"sub-{MARK}_T1w.nii.gz"))
        shutil.copy(first, folder / f"{MARK}_T1.nii.gz")
        shutil.copy(first, folder / f"{MARK}_T1_seg.nii.gz")
        (folder.parent / name).write_text(f"{MARK} {{")


def plant_tables(root: Path) -> None:
    """Mark the free columns of each table, and add one that nobody asked for."""
    free = {"unique_id", "age", "sex", "handedness", "race", "health_status", "manufacturer", "model_name"}
    for path in root.rglob("*.csv"):
        head, *rows = path.read_text().splitlines()
        names = head.split(",")
        marked = [f"{head},notes"]
        for row in rows:
            cells = row.split(",")
            if path.name.startswith("openneuro"):
                cells = [MARK if name in free else cell for name, cell in zip(names, cells, strict=True)]
            marked.append(",".join((*cells, MARK)))
        path.write_text("\n".join(marked) + "\n")


def written(corpus: Path) -> Iterator[tuple[str, bytes]]:
    """Every file's name and bytes, and what is packed inside."""
    for path in sorted(corpus.rglob("*")):
        name = path.relative_to(corpus).as_posix()
        yield f"name {name}", name.encode()
        if not path.is_file():
            continue
        yield name, path.read_bytes()
        if path.suffix == ".gz":
            yield f"inside {name}", gzip.decompress(path.read_bytes())
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield f"inside {name}", f"{table.to_pylist()}{table.schema.metadata}".encode()
