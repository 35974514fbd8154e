"""Write the DICOM objects that lie beside scans and are none: scouts, structure sets, secondary captures.

Each function writes its file or files into a folder and gives back the header with what it added, `Modality` and
`SOPClassUID` among it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, RTStructureSetStorage, SecondaryCaptureImageStorage

from harmonize.phantom.acquisition import HEAD_CENTRE_MM, make_grid, place_of, scan_head
from harmonize.phantom.anatomy import Head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.dicom_files import CT_UNSIGNED, name_instance, new_dataset, write_slices
from harmonize.phantom.randomness import rng_of, uid_of

_SCOUT_PIXELS = 64
_SCOUT_FIELD_MM = 260.0
_SCOUT_VIEWS = {"1-1.dcm": "PIR", "1-2.dcm": "LIA"}


def write_scout(folder: Path, head: Head, header: dict[str, object]) -> dict[str, object]:
    """A CT scout: one lateral and one frontal view in the same series, LOCALIZER in ImageType."""
    step = _SCOUT_FIELD_MM / _SCOUT_PIXELS
    done = {
        **header,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        "SOPClassUID": CTImageStorage,
        "SliceThickness": "400",
    }
    rng = rng_of(header["SeriesInstanceUID"])
    for number, (name, axes) in enumerate(_SCOUT_VIEWS.items()):
        # Projected through the head as the X-ray fan does; `make_grid` gives two slices, each view keeps one of them.
        grid = make_grid(
            extent_mm=(_SCOUT_FIELD_MM, _SCOUT_FIELD_MM, 240.0),
            spacing_mm=(step, step, 120.0),
            centre_mm=place_of(head.pose, HEAD_CENTRE_MM),
            axes=axes,
        )
        view = scan_head(head, grid, CONTRASTS["CT"], rng)
        view[:] = view.mean(axis=2, keepdims=True)
        write_slices(folder, view, grid, done, CT_UNSIGNED, keep=[number], file_name=partial(_always, name))
    return done


def write_structure_set(folder: Path, head: Head, header: dict[str, object]) -> dict[str, object]:
    """An RTSTRUCT with one contoured region of interest."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {**header, "Modality": "RTSTRUCT", "SOPClassUID": RTStructureSetStorage}
    dataset = new_dataset(done, RTStructureSetStorage)
    _identify(dataset)
    dataset.StructureSetLabel = "RTstruct"
    region = Dataset()
    region.ROINumber, region.ROIName, region.ROIGenerationAlgorithm = 1, "GTV", "MANUAL"
    region.ReferencedFrameOfReferenceUID = header["FrameOfReferenceUID"]
    dataset.StructureSetROISequence = [region]
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    x, y, z = place_of(head.pose, (20, 0, -90))
    contour = Dataset()
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(angles)
    contour.ContourData = [
        f"{value:.3f}" for a in angles for value in (-(x + 10 * np.cos(a)), -(y + 10 * np.sin(a)), z)
    ]
    item = Dataset()
    item.ReferencedROINumber, item.ContourSequence = 1, [contour]
    dataset.ROIContourSequence = [item]
    dcmwrite(folder / "1-1.dcm", dataset, enforce_file_format=True)
    return done


def write_secondary_capture(
    folder: Path, voxels_XYZ: NDArray[np.float32], header: dict[str, object]
) -> dict[str, object]:
    """A coronal picture of a volume, as workstations save them: 8 bit, without geometry."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {
        **header,
        "Modality": "PT",
        "ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"],
        "SeriesDescription": "PET AC coronal",
        "SOPClassUID": SecondaryCaptureImageStorage,
    }
    dataset = new_dataset(done, SecondaryCaptureImageStorage)
    _identify(dataset)
    view = voxels_XYZ.max(axis=1)
    pixels = np.rint(255 * (1 - view / max(float(view.max()), 1.0))).astype(np.uint8).T
    dataset.ConversionType = "WSD"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    content = pixels.tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB"
    dcmwrite(folder / "1-1.dcm", dataset, enforce_file_format=True)
    return done


def _always(name: str, _instance: int, _sop_uid: str) -> str:
    return name


def _identify(dataset: Dataset) -> None:
    name_instance(dataset, uid_of(dataset.SeriesInstanceUID, 0))
    dataset.InstanceNumber = 1
