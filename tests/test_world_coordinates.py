"""From DICOM files to the target grid: pixels that hold their own place in mm end at that place."""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from scipy.spatial.transform import Rotation

from harmonize.dicom import find_files, find_volumes, load_volume
from harmonize.scan import Scan
from harmonize.voxels.grids import target_grid
from harmonize.voxels.spatial import resample

WORLD_TOLERANCE_MM = 0.05
PERCENTILE = 99.9
MR = "1.2.840.10008.5.1.4.1.1.4"
ROWS, COLUMNS = 26, 24
SLOPE_MM = 0.01
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def errors_mm(scan: Scan, spacing: tuple[float, float, float], axis: int) -> NDArray[np.float64]:
    """Resample a scan whose voxels hold their own R, A or S and compare it with the grid's; inside voxels only."""
    affine, offsets = np.asarray(scan.affine), scan.slice_offsets
    shape = scan.voxels_XYZ.shape
    grid = target_grid(shape, affine, spacing, offsets)
    found = resample(scan.voxels_XYZ, affine, grid, slice_offsets=offsets, outside=1e6)
    places = np.stack(np.meshgrid(*(np.arange(size) for size in grid.shape), indexing="ij"))
    truth = places * np.array(spacing)[:, None, None, None] + grid.affine[:3, 3, None, None, None]
    into = np.linalg.inv(affine)
    index = np.tensordot(into[:3, :3], truth, axes=1) + into[:3, 3, None, None, None]
    # Inside: no part of the kernel sticks out.
    margin = 2.5 * max(spacing) / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    first = np.array([0, 0, 0 if offsets is None else offsets[0]]) + margin
    last = np.array([shape[0] - 1, shape[1] - 1, shape[2] - 1 if offsets is None else offsets[-1]]) - margin
    inside = (np.clip(index.T, first, last) == index.T).all(axis=-1).T
    return np.abs(found - truth[axis])[inside]


@st.composite
def series(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Positions (N, 3) of the slices, directions (2, 3) and pixel spacing: any orientation and tilt, gaps, losses."""
    turn = Rotation.from_euler("xyz", [draw(st.floats(-180, 180)) for _ in range(3)], degrees=True).as_matrix()
    count = draw(st.integers(14, 22))
    if draw(st.booleans()):
        gaps = np.array(draw(st.lists(st.floats(1.0, 4.0), min_size=count, max_size=count)))
    else:
        gaps = np.full(count, draw(st.floats(0.7, 4.0)))
        for lost in draw(st.lists(st.integers(0, count - 1), max_size=2, unique=True)):
            gaps[lost] *= 2
    shear = np.tan(np.radians([draw(st.floats(-25, 25)), draw(st.floats(-25, 25))]))
    advance = turn[0] * shear[0] + turn[1] * shear[1] + turn[2]
    start = np.array([draw(st.floats(-90, 90)) for _ in range(3)])
    positions = start + np.concatenate([[0], np.cumsum(gaps)])[:, None] * advance
    return positions, turn[:2], (draw(st.floats(0.5, 2.5)), draw(st.floats(0.5, 2.5)))


def write_slice(path: Path, values_mm: NDArray[np.float64], **elements: object) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MR
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.{int(path.stem)}"
    dataset.SeriesInstanceUID, dataset.Modality, dataset.ImageType = "1.2.3", "MR", ["ORIGINAL", "PRIMARY"]
    dataset.Rows, dataset.Columns = values_mm.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 1, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = SLOPE_MM, 0
    dataset.PixelData = np.rint(values_mm / SLOPE_MM).astype(np.int16).tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


@given(
    series=series(),
    axis=st.integers(0, 2),
    seed=st.integers(0, 2**16),
    copies=st.integers(0, 2),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (0.5, 0.5, 1.0), (1.5, 1.5, 1.5)]),
)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_series_of_files_lands_on_true_coordinates(series, axis, seed, copies, spacing) -> None:
    positions, directions, steps = series
    dice = random.Random(seed)
    chosen = [*range(len(positions)), *(dice.randrange(len(positions)) for _ in range(copies))]
    names = dice.sample(range(1000), len(chosen))
    row, column = np.mgrid[:ROWS, :COLUMNS][..., None]
    with tempfile.TemporaryDirectory() as folder:
        for name, k in zip(names, chosen, strict=True):
            places = positions[k] + column * steps[1] * directions[0] + row * steps[0] * directions[1]
            write_slice(
                Path(folder) / f"{name % 3}" / f"{name:04d}.dcm",
                places[..., axis] * LPS_TO_RAS[axis],
                ImagePositionPatient=[f"{value:.8f}" for value in positions[k]],
                ImageOrientationPatient=[f"{value:.12f}" for value in directions.ravel()],
                PixelSpacing=[f"{value:.12f}" for value in steps],
                InstanceNumber=dice.randrange(1000),
            )
        (volume,) = find_volumes(find_files(Path(folder)))
        scan = load_volume(volume)
    errors = errors_mm(scan, spacing, axis)
    assert errors.size == 0 or np.percentile(errors, PERCENTILE) < WORLD_TOLERANCE_MM


@pytest.mark.realdata
@pytest.mark.parametrize(("spacing", "axes"), [((1.0, 1.0, 1.0), (1,)), ((2.0, 2.0, 3.0), (0, 1, 2))])
def test_the_tilted_uneven_head_ct_lands_on_true_coordinates(real_data: Path, spacing, axes) -> None:
    folder = real_data / "ct_ge_head_tilt_uneven" / "dicom"
    (volume,) = find_volumes(find_files(folder))
    scan = load_volume(volume)
    headers = [dcmread(path, stop_before_pixels=True) for path in folder.glob("*.dcm")]
    headers.sort(key=lambda header: float(header.ImagePositionPatient[2]))
    columns, rows, _ = scan.voxels_XYZ.shape
    # The truth comes from the files' own words, slice by slice, not from the affine under test.
    for axis in axes:
        values = np.empty(scan.voxels_XYZ.shape, dtype=np.float32)
        for k, header in enumerate(headers):
            directions = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
            row_step, column_step = (float(step) for step in header.PixelSpacing)
            along = np.arange(columns)[:, None] * column_step * directions[0, axis]
            down = np.arange(rows)[None] * row_step * directions[1, axis]
            values[:, :, k] = (float(header.ImagePositionPatient[axis]) + along + down) * LPS_TO_RAS[axis]
        errors = errors_mm(replace(scan, voxels_XYZ=values), spacing, axis)
        assert errors.size > 50_000
        assert np.percentile(errors, PERCENTILE) < WORLD_TOLERANCE_MM
