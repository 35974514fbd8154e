"""Write volumes as DICOM series: one file a slice, or one enhanced multi-frame file.

A volume is (X, Y, Z) with x along the columns of a slice, y along its rows and z from slice to slice; patient
coordinates in DICOM are LPS, so the first two components change sign (PS3.3 C.7.6.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from harmonize.phantom.acquisition import Grid
from harmonize.phantom.randomness import UID_ROOT, uid_of

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
ENHANCED_STORAGE = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage}

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """How values become stored integers: value = stored * slope + intercept.

    Attributes:
        signed: Two's complement or not.
        bits: BitsStored.
        slope: RescaleSlope; None for one slope a slice, as PET has it.
        intercept: RescaleIntercept.
        rescale: False leaves the rescale tags out, as most MR scanners do.
        padding: Stored value outside the circle that the scanner reconstructs, or None where it fills the square.
    """

    signed: bool
    bits: int
    slope: float | None = 1.0
    intercept: float = 0.0
    rescale: bool = True
    padding: int | None = None


CT_UNSIGNED = Coding(signed=False, bits=12, intercept=-1024.0)
CT_SIGNED_PADDED = Coding(signed=True, bits=16, padding=-2000)
MR_UNSIGNED = Coding(signed=False, bits=12, rescale=False)
PET_BY_SLICE = Coding(signed=True, bits=16, slope=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A written file: its path, SOPInstanceUID, and which slice of the volume it holds."""

    path: Path
    sop_uid: str
    index: int


def write_slices(
    folder: Path,
    voxels_XYZ: NDArray[np.float32] | Iterable[NDArray[np.float32]],
    grid: Grid,
    header: Mapping[str, object],
    coding: Coding,
    *,
    file_name: Callable[[int, str], str],
    keep: Sequence[int] | None = None,
    head_first: bool = False,
) -> list[Slice]:
    """Write one file a slice.

    Args:
        folder: Where the files go.
        voxels_XYZ: Values, shape `grid.shape`; or the slices one after the other, each (X, Y), where all of them would
            be too much for the memory.
        grid: The geometry.
        header: Elements of every file by keyword; `Modality`, `SeriesInstanceUID` and `ImageType` among them.
        coding: How values are stored.
        file_name: Name of a file from its InstanceNumber and SOPInstanceUID.
        keep: Slices to write, in increasing order; all by default.
        head_first: Number the instances downwards.

    Returns:
        What was written, in the order of the slices in the volume.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = list(range(grid.shape[2])) if keep is None else list(keep)
    dataset = new_dataset(header, STORAGE[str(header["Modality"])])
    orientation, spacing = _plane(grid)
    dataset.ImageOrientationPatient, dataset.PixelSpacing = orientation, spacing
    if "SliceThickness" not in dataset:
        dataset.SliceThickness = _ds(grid.spacing[2])
    _describe_pixels(dataset, grid, coding)
    written = []
    places = {k: place for place, k in enumerate(kept)}
    for k, plane_XY in enumerate(planes_of(voxels_XYZ)):
        if k not in places:
            continue
        instance = len(kept) - places[k] if head_first else places[k] + 1
        slope = _slope_of(plane_XY, coding)
        name_instance(dataset, uid_of(dataset.SeriesInstanceUID, k))
        dataset.InstanceNumber = instance
        dataset.ImagePositionPatient = _position(grid, k)
        if coding.rescale:
            dataset.RescaleIntercept, dataset.RescaleSlope = _ds(coding.intercept), _ds(slope)
        dataset.PixelData = _stored(plane_XY, coding, slope).tobytes()
        path = folder / file_name(instance, dataset.SOPInstanceUID)
        dcmwrite(path, dataset, enforce_file_format=True)
        written.append(Slice(path=path, sop_uid=str(dataset.SOPInstanceUID), index=k))
    return written


def planes_of(voxels_XYZ: NDArray[np.float32] | Iterable[NDArray[np.float32]]) -> Iterable[NDArray[np.float32]]:
    """The slices of a volume, or of what already comes slice by slice."""
    return np.moveaxis(voxels_XYZ, 2, 0) if isinstance(voxels_XYZ, np.ndarray) else voxels_XYZ


def write_multiframe(
    path: Path,
    voxels_XYZ: NDArray[np.float32] | Iterable[NDArray[np.float32]],
    grid: Grid,
    header: Mapping[str, object],
    coding: Coding,
    sop_uid: str,
) -> None:
    """Write the whole volume as one enhanced file, frame f being slice f; arguments as in `write_slices`.

    Raises:
        ValueError: `coding` gives each slice a slope of its own, which one file of all slices has no place for.
    """
    if coding.slope is None:
        raise ValueError("a multi-frame file has one slope")
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = new_dataset(header, ENHANCED_STORAGE[str(header["Modality"])])
    name_instance(dataset, sop_uid)
    dataset.InstanceNumber = 1
    dataset.NumberOfFrames = grid.shape[2]
    _describe_pixels(dataset, grid, coding)
    slope = coding.slope
    orientation, spacing = _plane(grid)
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(PixelSpacing=spacing, SliceThickness=_ds(grid.spacing[2]))]
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=orientation)]
    shared.PixelValueTransformationSequence = [
        _item(
            RescaleIntercept=_ds(coding.intercept),
            RescaleSlope=_ds(slope),
            RescaleType="HU" if header["Modality"] == "CT" else "US",
        )
    ]
    dataset.SharedFunctionalGroupsSequence = [shared]
    organization = uid_of(sop_uid, "dimensions")
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    dataset.DimensionIndexSequence = [
        _item(DimensionOrganizationUID=organization, DimensionIndexPointer=pointer, FunctionalGroupPointer=0x00209111)
        for pointer in (0x00209056, 0x00209057)  # StackID, InStackPositionNumber
    ]
    frames = []
    for k in range(grid.shape[2]):
        frame = Dataset()
        frame.FrameContentSequence = [
            _item(StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[1, k + 1], FrameAcquisitionNumber=1)
        ]
        frame.PlanePositionSequence = [_item(ImagePositionPatient=_position(grid, k))]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    with TemporaryFile(dir=path.parent) as pixels:
        for plane_XY in planes_of(voxels_XYZ):
            pixels.write(_stored(plane_XY, coding, slope).tobytes())
        pixels.seek(0)
        dataset.add_new("PixelData", "OW", pixels)
        dcmwrite(path, dataset, enforce_file_format=True)


def new_dataset(header: Mapping[str, object], storage_class: str) -> Dataset:
    """A dataset with file meta information and the elements of `header`, which are given by keyword."""
    dataset = Dataset()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(storage_class)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(f"{UID_ROOT}1")
    meta.ImplementationVersionName = "HEADSPARK"
    dataset.file_meta = meta
    dataset.SOPClassUID = storage_class
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    return dataset


def name_instance(dataset: Dataset, sop_uid: str) -> None:
    """Give a dataset its SOPInstanceUID, which the file meta information repeats."""
    dataset.SOPInstanceUID = UID(sop_uid)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(sop_uid)


def pixels_of(grid: Grid, world_mm: ArrayLike) -> tuple[float, float, int]:
    """Column and row (fractional, 0 at the first pixel's centre) and nearest slice of a place in RAS+ mm."""
    x, y, z = grid.index(world_mm)
    return float(x), float(y), int(np.clip(round(float(z)), 0, grid.shape[2] - 1))


def circle_of(shape_XY: Sequence[int]) -> NDArray[np.bool_]:
    """True within the circle that a CT scanner reconstructs, shape (X, Y)."""
    x, y = np.ogrid[: shape_XY[0], : shape_XY[1]]
    middle = [(count - 1) / 2 for count in shape_XY]
    return np.asarray(np.hypot(x - middle[0], y - middle[1]) <= max(shape_XY) / 2)


def _describe_pixels(dataset: Dataset, grid: Grid, coding: Coding) -> None:
    dataset.Rows, dataset.Columns = grid.shape[1], grid.shape[0]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 16
    dataset.BitsStored = coding.bits
    dataset.HighBit = coding.bits - 1
    dataset.PixelRepresentation = int(coding.signed)
    if coding.padding is not None:
        dataset.add_new("PixelPaddingValue", "SS" if coding.signed else "US", coding.padding)


def _plane(grid: Grid) -> tuple[list[str], list[str]]:
    directions = _RAS_TO_LPS @ (grid.affine[:3, :3] / np.asarray(grid.spacing))
    orientation = [_ds(value) for axis in (0, 1) for value in directions[:, axis]]
    # PixelSpacing names the distance between rows first.
    return orientation, [_ds(grid.spacing[1]), _ds(grid.spacing[0])]


def _position(grid: Grid, k: int) -> list[str]:
    return [_ds(value) for value in _RAS_TO_LPS @ grid.world((0, 0, k))]


def _slope_of(values: NDArray[np.float32], coding: Coding) -> float:
    if coding.slope is not None:
        return coding.slope
    return max(float(values.max()), 1.0) / (2 ** (coding.bits - 1) - 1)


def _stored(values_XY: NDArray[np.float32], coding: Coding, slope: float) -> NDArray[np.integer]:
    low, high = (-(2 ** (coding.bits - 1)), 2 ** (coding.bits - 1) - 1) if coding.signed else (0, 2**coding.bits - 1)
    stored = np.clip(np.rint((values_XY - coding.intercept) / slope), low, high)
    if coding.padding is not None:
        stored[~circle_of(values_XY.shape)] = coding.padding
    # Pixels go row by row; always little endian, as the transfer syntax says.
    return np.ascontiguousarray(stored.T).astype("<i2" if coding.signed else "<u2")


def _item(**elements: object) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters, without a negative zero."""
    return format_number_as_ds(float(value) + 0.0)
