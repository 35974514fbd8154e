"""The competition's gateway: it strips the headers of series, copies each into a shared folder, and asks the server.

`write_package` writes it as the package that the competition has beside its data, for processes of their own.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import tag_for_keyword

KEPT = (
    "BitsAllocated", "BitsStored", "Columns", "FrameOfReferenceUID", "HighBit", "ImageOrientationPatient",
    "ImagePositionPatient", "InstanceNumber", "Modality", "PatientID", "PhotometricInterpretation",
    "PixelRepresentation", "PixelSpacing", "PlanarConfiguration", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "Rows", "SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "SliceThickness", "SpacingBetweenSlices",
    "StudyInstanceUID", "TransferSyntaxUID", "PixelData",
)  # fmt: skip
"""The elements that the gateway leaves in."""

_PACKAGE = '''"""Written by tests: the competition's server, asked about the series of `GATEWAY_SERIES`."""

import os
import sys
from pathlib import Path

sys.path.append({standins!r})
from standin_gateway import ask


class RSNAInferenceServer:
    def __init__(self, predict):
        self.predict = predict

    def serve(self):
        ask(
            self.predict,
            Path(os.environ["GATEWAY_SERIES"]),
            Path(os.environ["GATEWAY_SHARED"]),
            quota=int(os.environ["GATEWAY_QUOTA"]),
            out=Path(os.environ["GATEWAY_OUT"]),
        )

    def run_local_gateway(self):
        raise AssertionError("the hidden test set is scored by serve()")
'''


def strip(source: Path, target: Path) -> None:
    """Copy a DICOM file with nothing but the elements that the gateway leaves in; what is none is copied as it is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        dataset = pydicom.dcmread(source)
    except pydicom.errors.InvalidDicomError:
        shutil.copyfile(source, target)
        return
    kept = {tag_for_keyword(name) for name in KEPT}
    for element in list(dataset):
        if element.tag not in kept:
            del dataset[element.tag]
    dataset.save_as(target)


def strip_series(source: Path, target: Path) -> Path:
    """Copy a series' folder as the gateway hands it out."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        strip(path, target / path.name)
    return target


def ask(predict: Callable[[str], Any], series: Path, shared: Path, *, quota: int, out: Path) -> None:
    """Ask about each series of a folder, one after the other, as the gateway does.

    Args:
        predict: The server's.
        series: Folder of the series' folders.
        shared: Where each is copied before it is asked about; nobody but the server empties it.
        quota: Bytes that the shared folder may hold.
        out: The rows are written here: JSON.

    Raises:
        OSError: The shared folder is full.
        ValueError: An answer is no row of the competition.
    """
    rows = []
    for folder in sorted(series.iterdir()):
        place = strip_series(folder, shared / folder.name)
        used = sum(path.stat().st_size for path in shared.rglob("*") if path.is_file())
        if used > quota:
            raise OSError(f"the shared folder holds {used} bytes of {quota}")
        frame = predict(str(place))
        if len(frame) != 1:
            raise ValueError(f"{len(frame)} rows for one series")
        row = {name: float(frame[name][0]) for name in frame.columns}
        if not all(math.isfinite(value) for value in row.values()):
            raise ValueError("a prediction is no number")
        rows.append({"series": folder.name, **row})
    out.write_text(json.dumps(rows))


def write_package(folder: Path) -> None:
    """Write `kaggle_evaluation` into a folder that is to be on the path of a process."""
    package = folder / "kaggle_evaluation"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    text = _PACKAGE.format(standins=os.fspath(Path(__file__).resolve().parent))
    (package / "rsna_inference_server.py").write_text(text)
