"""Write a raw tree as the NBIA Data Retriever leaves it: patients, studies and DICOM series, and metadata.csv.

Beside the usable series lies what real collections hold and a reader must leave alone: structure sets, scouts, PET
without attenuation correction, secondary captures. The names in the headers are invented.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.acquisition import HEAD_CENTRE_MM, Grid, make_grid, place_of, resolution_for, scan_head
from harmonize.phantom.anatomy import Head, make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.dicom_extras import write_scout, write_secondary_capture, write_structure_set
from harmonize.phantom.dicom_files import (
    CT_SIGNED_PADDED,
    CT_UNSIGNED,
    MR_UNSIGNED,
    PET_BY_SLICE,
    STORAGE,
    Coding,
    write_slices,
)
from harmonize.phantom.randomness import rng_of, uid_of

COLUMNS = (
    "Series UID", "Collection", "3rd Party Analysis", "Data Description URI", "Subject ID", "Study UID",
    "Study Description", "Study Date", "Series Description", "Manufacturer", "Modality", "SOP Class Name",
    "SOP Class UID", "Number of Images", "File Size", "File Location", "Download Timestamp",
)  # fmt: skip
"""The exact header of the NBIA Data Retriever's metadata.csv."""

COLLECTION = "Phantom-HeadNeck"

KINDS = ("CT", "PT", "CT tilted", "T1w", "CT uneven", "T2w", "CT gap", "T1post")
"""What the usable series are, in turn; every two share a patient."""

CONTRAST_OF = {"CT tilted": "CT", "CT uneven": "CT", "CT gap": "CTA"}

_NAMES = ("Doe^Ada", "Roe^Bela", "Poe^Cora", "Loe^Dora", "Noe^Emil", "Moe^Fritz", "Zoe^Gert", "Coe^Hans")
_DESCRIPTIONS = {
    "CT": "StandardFull", "CT tilted": "Tete   C-", "CT uneven": "HEAD SEQ", "CT gap": "ANGIO COU",
    "PT": "PET AC", "T1w": "T1 AX SE", "T2w": "T2 AX TSE", "T1post": "T1 AX GADO",
}  # fmt: skip
_TIMES_MS = {"T1w": (600.0, 12.0), "T1post": (620.0, 12.0), "T2w": (4200.0, 95.0)}
"""Repetition and echo time."""
_MANUFACTURERS = ("GE MEDICAL SYSTEMS", "SIEMENS", "Philips")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patient:
    """One invented person and their study."""

    number: int
    subject: str
    folder: Path
    flat: bool
    header: dict[str, object]
    date: str


def write_scan(index: int, *, root: Path, scans: int, size: int, seed: int) -> list[dict[str, object]]:
    """Write usable series `index`, with what comes beside it, and give their rows of the table.

    Args:
        index: From 0; every two series share a patient.
        root: The source's raw root.
        scans: Number of usable series.
        size: Voxels along the largest axis.
        seed: What makes it repeatable.
    """
    patient = _draw_patient(root, seed, index // 2)
    head = make_head(seed, "tcia", patient.number, resolution_mm=resolution_for(230 / size))
    rows = _write_what_is_no_scan(root, patient, head) if index % 2 == 0 else []
    rows.extend(_write_series(root, patient, head, index, size, seed))
    return [] if patient.flat else rows


def write_tables(root: Path, rows: Sequence[list[dict[str, object]]]) -> None:
    """Write ``metadata.csv``."""
    with (root / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(itertools.chain.from_iterable(rows))


def _draw_patient(root: Path, seed: int, number: int) -> _Patient:
    names = (seed, "tcia", number)
    rng = rng_of(*names, "patient")
    subject = f"HN-PHANTOM-{number + 1:03d}"
    year, month, day = int(rng.integers(1998, 2014)), int(rng.integers(1, 13)), int(rng.integers(1, 29))
    study_uid = uid_of(*names, "study")
    # As NBIA writes it: blanks kept, accents lost, a trailing blank before the hyphen.
    study = f"{month:02d}-{day:02d}-{year}-PANC. avec C.A. SPHRE ORL   tte et cou  -TP-{study_uid[-5:]}"
    age = int(rng.integers(35, 80))
    return _Patient(
        number=number,
        subject=subject,
        folder=root / COLLECTION / subject / study,
        # REST downloads are flat; every fourth patient came that way and is in no table.
        flat=number % 4 == 3,
        date=f"{month:02d}-{day:02d}-{year}",
        header={
            "PatientName": _NAMES[number % len(_NAMES)],
            "PatientID": subject,
            "PatientBirthDate": f"{year - age}0{1 + number % 9}12",
            "PatientSex": str(rng.choice(["F", "M"])),
            "PatientAge": f"{age:03d}Y",
            "InstitutionName": "Phantom General Hospital",
            "ReferringPhysicianName": "Vice^Dr",
            "AccessionNumber": f"ACC{number:05d}",
            "Manufacturer": _MANUFACTURERS[number % len(_MANUFACTURERS)],
            "StudyDate": f"{year}{month:02d}{day:02d}",
            "StudyDescription": "PANC. avec C.A. SPHRE ORL   tte et cou",
            "StudyInstanceUID": study_uid,
            "FrameOfReferenceUID": uid_of(*names, "frame"),
        },
    )


def _write_series(
    root: Path, patient: _Patient, head: Head, index: int, size: int, seed: int
) -> list[dict[str, object]]:
    kind = KINDS[index % len(KINDS)]
    rng = rng_of(seed, "tcia", "series", index)
    name = CONTRAST_OF.get(kind, kind)
    family = CONTRASTS[name].family
    grid, keep = _draw_grid(kind, head, size, rng)
    contrast = CONTRASTS[name].varied(rng)
    voxels = scan_head(head, grid, contrast, rng)
    header = {
        **patient.header,
        "Modality": family,
        "SeriesInstanceUID": uid_of(seed, "tcia", "series", index),
        "SeriesDescription": _DESCRIPTIONS[kind],
        "SeriesNumber": 3 + index % 2,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"] if family == "CT" else ["ORIGINAL", "PRIMARY"],
        **_protocol(kind, rng),
    }
    rows = [_save(root, patient, voxels, grid, header, _coding_of(family, rng), keep, rng)]
    if family == "PT":
        uncorrected = {
            **header,
            "SeriesInstanceUID": uid_of(seed, "tcia", "uncorrected", index),
            "SeriesDescription": "PET NO AC",
            "SeriesNumber": 7,
            "CorrectedImage": ["DECY", "RADL", "DTIM", "SCAT", "DCAL", "RAN"],
            "AttenuationCorrectionMethod": "",
        }
        rows.append(_save(root, patient, voxels * np.float32(0.4), grid, uncorrected, PET_BY_SLICE, None, rng))
        capture = {**patient.header, "SeriesInstanceUID": uid_of(seed, "tcia", "capture", index), "SeriesNumber": 99}
        folder = _folder_of(patient, capture)
        rows.append(_row(root, patient, write_secondary_capture(folder, voxels, capture), folder))
    return rows


def _save(
    root: Path,
    patient: _Patient,
    voxels: NDArray[np.float32],
    grid: Grid,
    header: dict[str, object],
    coding: Coding,
    keep: list[int] | None,
    rng: np.random.Generator,
) -> dict[str, object]:
    folder = _folder_of(patient, header)
    write_slices(
        folder, voxels, grid, header, coding, keep=keep, head_first=bool(rng.random() < 0.4),
        file_name=lambda instance, _: f"1-{instance:03d}.dcm",
    )  # fmt: skip
    return _row(root, patient, {**header, "SOPClassUID": STORAGE[str(header["Modality"])]}, folder)


def _protocol(kind: str, rng: np.random.Generator) -> dict[str, object]:
    """Elements that tell one modality's series from another's."""
    if kind == "PT":
        return {
            "Units": "BQML",
            "CorrectedImage": ["DECY", "ATTN", "RADL", "DTIM", "SCAT", "DCAL", "RAN"],
            "AttenuationCorrectionMethod": "measured,AC CT",
            "SeriesType": ["WHOLE BODY", "IMAGE"],
        }
    if kind in _TIMES_MS:
        repetition, echo = _TIMES_MS[kind]
        extra = {"ContrastBolusAgent": "GADO"} if kind == "T1post" else {}
        return {
            "ScanningSequence": "SE",
            "SequenceVariant": "NONE",
            "MRAcquisitionType": "2D",
            "RepetitionTime": repetition,
            "EchoTime": echo,
            "MagneticFieldStrength": 1.5,
            **extra,
        }
    tilt: dict[str, object] = {"KVP": 120, "ConvolutionKernel": str(rng.choice(["STANDARD", "H30s", "B"]))}
    if kind == "CT gap":
        tilt["ContrastBolusAgent"] = "OMNIPAQUE"
    if kind == "CT tilted":
        # The sign and size of this element cannot be trusted in real files either.
        tilt["GantryDetectorTilt"] = 18
    return tilt


def _draw_grid(kind: str, head: Head, size: int, rng: np.random.Generator) -> tuple[Grid, list[int] | None]:
    """Geometry of a series, and the slices that exist (None for all)."""
    field = float(rng.uniform(215, 250))
    axes, tilt, shear, rise = "LPS", np.zeros(3), 0.0, -15.0
    height, step, keep = 190.0, max(float(rng.uniform(2.0, 3.5)), 200 / size), None
    if kind == "PT":
        field, step = 240.0, max(3.3, 200 / size)
        field = max(field, 1.0 * size)
        rise = -20.0
    elif kind == "CT tilted":
        shear = float(rng.choice([-1, 1])) * float(rng.uniform(12, 20))
        step = max(float(rng.uniform(3.0, 5.0)), 180 / size)
        height, rise = 150.0, 5.0
    elif kind == "CT uneven":
        # Thin through the skull base and thick above, on a table that moves in steps of a quarter of the thick ones.
        step = max(1.75, 5.25 * 28 / size / 3)
        keep = [*range(0, 36, 3), *range(37, 85, 4)]
        height, rise = step * 85, 5.0
    elif kind == "CT gap":
        step = max(2.5, 180 / size)
    elif kind in _TIMES_MS:
        field, height, step = float(rng.uniform(200, 235)), 150.0, max(float(rng.uniform(4.0, 6.0)), 160 / size)
        axes = str(rng.choice(["LPS", "LPS", "PIL"]))
        tilt, rise = rng.uniform((-12, -3, -3), (6, 3, 3)), 7.0
    grid = make_grid(
        extent_mm=(field, field, height),
        spacing_mm=(field / size, field / size, step),
        centre_mm=place_of(head.pose, HEAD_CENTRE_MM, (0, -4, rise)),
        axes=axes,
        tilt_deg=tilt,
        shear_deg=shear,
    )
    if kind == "CT gap":
        lost = grid.shape[2] // 3
        keep = [k for k in range(grid.shape[2]) if k != lost]
    return grid, keep


def _coding_of(family: str, rng: np.random.Generator) -> Coding:
    if family == "CT":
        return CT_SIGNED_PADDED if rng.random() < 0.4 else CT_UNSIGNED
    return PET_BY_SLICE if family == "PT" else MR_UNSIGNED


def _write_what_is_no_scan(root: Path, patient: _Patient, head: Head) -> list[dict[str, object]]:
    """A scout and a structure set, which every patient of such a collection has."""
    rows = []
    for number, (name, write) in enumerate((("scout", write_scout), ("RTSTRUCT", write_structure_set)), start=1):
        header = {**patient.header, "SeriesInstanceUID": uid_of(patient.header["StudyInstanceUID"], name)}
        header |= {"SeriesNumber": number, "SeriesDescription": name}
        folder = _folder_of(patient, header)
        rows.append(_row(root, patient, write(folder, head, header), folder))
    return rows


def _folder_of(patient: _Patient, header: dict[str, object]) -> Path:
    uid = str(header["SeriesInstanceUID"])
    if patient.flat:
        return patient.folder.parents[2] / uid
    description = str(header.get("SeriesDescription", "NA"))
    return patient.folder / f"{header['SeriesNumber']}.000000-{description}-{uid[-5:]}"


def _row(root: Path, patient: _Patient, header: dict[str, object], folder: Path) -> dict[str, object]:
    files = sorted(folder.iterdir())
    storage = header["SOPClassUID"]
    return {
        "Series UID": header["SeriesInstanceUID"],
        "Collection": COLLECTION,
        "3rd Party Analysis": "NO",
        "Data Description URI": "",
        "Subject ID": patient.subject,
        "Study UID": header["StudyInstanceUID"],
        "Study Description": header["StudyDescription"],
        "Study Date": patient.date,
        "Series Description": header.get("SeriesDescription", ""),
        "Manufacturer": header["Manufacturer"],
        "Modality": header["Modality"],
        "SOP Class Name": getattr(storage, "name", storage),
        "SOP Class UID": str(storage),
        "Number of Images": len(files),
        "File Size": f"{sum(file.stat().st_size for file in files) / 1e6:.2f} MB",
        "File Location": f"./{folder.relative_to(root).as_posix()}",
        "Download Timestamp": "2020-01-01T00:00:00.000",
    }
