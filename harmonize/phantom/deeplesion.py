"""Write a raw tree as DeepLesion has it: runs of 16-bit PNG slices, and one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from harmonize.phantom.acquisition import HEAD_CENTRE_MM, make_grid, place_of, resolution_for, scan_head
from harmonize.phantom.anatomy import make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.dicom_files import circle_of
from harmonize.phantom.randomness import rng_of

COLUMNS = (
    "File_name", "Patient_index", "Study_index", "Series_ID", "Key_slice_index", "Measurement_coordinates",
    "Bounding_boxes", "Lesion_diameters_Pixel_", "Normalized_lesion_location", "Coarse_lesion_type", "Possibly_noisy",
    "Slice_range", "Spacing_mm_px_", "Image_size", "DICOM_windows", "Patient_gender", "Patient_age", "Train_Val_Test",
)  # fmt: skip
"""The exact header of DL_info.csv."""

HU_OFFSET = 32768
"""Pixel value minus this is the Hounsfield value."""

PADDING_HU = -2048
"""Outside the circle that the scanner reconstructs; below air, as in the real set."""

INTERVALS_MM = (5.0, 1.0, 5.0, 1.0, 2.0)
"""Slice intervals; 5 and 1 mm are by far the most common."""

_UNPADDED_EVERY = 3
"""One series in so many fills the square."""

_TWO_RUN_SERIES = 0
"""This series holds two runs of different spacing, as ``003247_02_01`` of the real set does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Consecutive slices of one series."""

    series: int
    number: int
    interval_mm: float
    first_slice: int


def write_scan(index: int, *, root: Path, scans: int, size: int, seed: int) -> dict[str, object]:
    """Write run `index` of slices into ``Images_png/`` under `root`, and give its row of the table.

    Args:
        index: From 0.
        root: The source's raw root.
        scans: Number of runs; each is a volume.
        size: Pixels along each side of a slice, and the most slices of a run.
        seed: What makes it repeatable.
    """
    return _write_run(root / "Images_png", seed, _plan(scans, size)[index], size)


def write_tables(root: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write ``DL_info.csv``."""
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(root / "DL_info.csv", index=False, lineterminator="\n")


def _plan(scans: int, size: int) -> list[_Run]:
    runs = []
    for index in range(scans):
        second = scans > 1 and index == 1
        series = _TWO_RUN_SERIES if index <= 1 and scans > 1 else index - 1 if scans > 1 else index
        runs.append(
            _Run(
                series=series,
                number=int(second),
                interval_mm=1.0 if second else INTERVALS_MM[index % len(INTERVALS_MM)],
                # The second run begins after a gap behind the first, which has `size` slices at most.
                first_slice=3 + 7 * series + second * (size + 12),
            )
        )
    return runs


def _write_run(root: Path, seed: int, run: _Run, size: int) -> dict[str, object]:
    names = (seed, "deeplesion", run.series)
    rng = rng_of(*names, "run", run.number)
    patient_rng = rng_of(*names, "patient")
    field = float(patient_rng.uniform(205, 250))
    spacing = field / size
    interval = run.interval_mm
    count = int(np.clip(round(float(rng.uniform(45, 150)) / interval), 6, size))
    head = make_head(*names, resolution_mm=resolution_for(spacing))
    centre = place_of(head.pose, HEAD_CENTRE_MM, (0, -8, rng.uniform(-25, 35)))
    grid = make_grid(
        extent_mm=(field, field, count * interval),
        spacing_mm=(spacing, spacing, interval),
        centre_mm=centre,
        axes="LPI",
    )
    voxels = scan_head(head, grid, CONTRASTS[str(rng.choice(["CT", "CTA"]))].varied(rng), rng)
    if run.series % _UNPADDED_EVERY != _UNPADDED_EVERY - 1:
        voxels[~circle_of(grid.shape[:2])] = PADDING_HU
    name = f"{run.series + 1:06d}_01_{1 + run.series % 3:02d}"
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    last = run.first_slice + count - 1
    for k in range(count):
        _save_png(folder / f"{run.first_slice + k:03d}.png", voxels[:, :, k])
    key = run.first_slice + count // 2
    x, y = (float(value) for value in rng.uniform(0.3 * size, 0.7 * size, size=2))
    long, short = sorted((float(value) for value in rng.uniform(4, 16, size=2)), reverse=True)
    box = (x - long / 2, y - short / 2, x + long / 2, y + short / 2)
    return {
        "File_name": f"{name}_{key:03d}.png",
        "Patient_index": run.series + 1,
        "Study_index": 1,
        "Series_ID": 1 + run.series % 3,
        "Key_slice_index": key,
        "Measurement_coordinates": _numbers(x - long / 2, y, x + long / 2, y, x, y - short / 2, x, y + short / 2),
        "Bounding_boxes": _numbers(*box),
        "Lesion_diameters_Pixel_": _numbers(long, short),
        "Normalized_lesion_location": _numbers(x / size, y / size, 0.05),
        "Coarse_lesion_type": -1,
        "Possibly_noisy": 0,
        "Slice_range": f"{run.first_slice}, {last}",
        "Spacing_mm_px_": _numbers(spacing, spacing, interval),
        "Image_size": f"{size}, {size}",
        "DICOM_windows": "-175, 275",
        "Patient_gender": str(patient_rng.choice(["M", "F"])),
        "Patient_age": int(patient_rng.integers(20, 85)),
        "Train_Val_Test": 1 + run.series % 3,
    }


def _save_png(path: Path, values_XY: NDArray[np.float32]) -> None:
    pixels = np.clip(np.rint(values_XY) + HU_OFFSET, 0, 65535).astype(np.uint16)
    # A PNG is [row, column]: x runs along the columns.
    Image.fromarray(np.ascontiguousarray(pixels.T)).save(path)


def _numbers(*values: float) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
