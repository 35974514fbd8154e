"""Write a raw tree as the RSNA 2025 aneurysm competition has it: DICOM series, three tables' worth of labels, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harmonize.files import atomic_path
from harmonize.labels import LABELS, LOCATIONS, PRESENT
from harmonize.phantom.acquisition import (
    CIRCLE_OF_WILLIS_MM,
    Grid,
    make_grid,
    place_of,
    resolution_for,
    scan_head,
    vessel_mask,
)
from harmonize.phantom.anatomy import Head, draw_pose, draw_vessels, make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.dicom_files import (
    CT_SIGNED_PADDED,
    CT_UNSIGNED,
    MR_UNSIGNED,
    Slice,
    pixels_of,
    write_multiframe,
    write_slices,
)
from harmonize.phantom.randomness import rng_of, uid_of
from harmonize.phantom.rsna.coverage import MARGIN_MM, Coverage, turned, varied_grid
from harmonize.phantom.rsna.plan import EVEN, Prevalence, SeriesPlan, plan_series
from harmonize.scan import AIR_HU

MAX_SPACING_MM = 2.0
"""An aneurysm of a few mm must stay visible, so few voxels mean a smaller field of view, not larger voxels."""
MIN_FIELD_MM = 110.0

_CONTRAST_OF = {"CTA": "CTA", "MRA": "MRA", "MRI T2": "T2w", "MRI T1post": "T1post"}
_TRAIN_COLUMNS = ("SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS)
_LOCALIZER_COLUMNS = ("SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location")
SIZES = "rsna_sizes.csv"
BESIDE = (SIZES,)
"""Beside the tree, since the competition has no sizes: diameters as `finetune evaluate --sizes` reads them."""
_SIZE_COLUMNS = ("SeriesInstanceUID", "location", "diameter_mm")


def write_scan(
    index: int,
    *,
    root: Path,
    scans: int,
    size: int,
    seed: int,
    prevalence: Prevalence = EVEN,
    coverage: Coverage = "protocol",
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Write series `index` into ``series/`` and its masks into ``segmentations/`` under `root`.

    Args:
        index: From 0.
        root: The source's raw root.
        scans: Number of series.
        size: Voxels along the largest axis.
        seed: What makes it repeatable.
        prevalence: How many of the series have one aneurysm or more.
        coverage: Fields of view of the four protocols, or ``varied`` ones of turned heads.

    Returns:
        Its row of ``train.csv``, and a row an aneurysm for ``train_localizers.csv`` and `SIZES`.
    """
    return write_series(root, plan_series(index, seed=seed, prevalence=prevalence), size, coverage)


def write_tables(root: Path, found: Sequence[tuple[dict[str, object], list[dict[str, object]]]]) -> None:
    """Write ``train.csv`` and ``train_localizers.csv``."""
    rows = [row for row, _ in found]
    points = [point for _, points in found for point in points]
    pd.DataFrame(rows, columns=list(_TRAIN_COLUMNS)).to_csv(root / "train.csv", index=False, lineterminator="\n")
    pd.DataFrame(points, columns=list(_LOCALIZER_COLUMNS)).to_csv(
        root / "train_localizers.csv", index=False, lineterminator="\n"
    )


def write_beside(folder: Path, found: Sequence[tuple[dict[str, object], list[dict[str, object]]]]) -> None:
    """Write `SIZES` into the folder of the tree: a row an aneurysm."""
    rows = [point for _, points in found for point in points]
    with atomic_path(folder / SIZES) as temporary:
        pd.DataFrame(rows, columns=list(_SIZE_COLUMNS)).to_csv(temporary, index=False, lineterminator="\n")


def write_series(
    root: Path, series: SeriesPlan, size: int, coverage: Coverage
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Write one planned series as `write_scan` does."""
    rng = rng_of(*series.names, "series")
    spacing = float(np.clip(rng.uniform(180, 220) / size, 0.4, max(MAX_SPACING_MM, MIN_FIELD_MM / size)))
    if coverage == "varied":
        turn = turned(draw_pose(*series.names), rng)
        grid = _varied_grid(series, turn, size, rng)
        spacing = float(np.median(grid.spacing))
    else:
        turn, grid = None, draw_grid(series, size, spacing, rng)
    head = make_head(*series.names, resolution_mm=resolution_for(spacing), locations=series.locations)
    if turn is not None:
        head = replace(head, pose=turn @ head.pose, vessels=head.vessels.moved(turn))
    contrast = CONTRASTS[_CONTRAST_OF[series.modality]].varied(rng)
    voxels = scan_head(head, grid, contrast, rng)
    is_ct = series.modality == "CTA"
    coding = (CT_SIGNED_PADDED if rng.random() < 0.3 else CT_UNSIGNED) if is_ct else MR_UNSIGNED
    header = _header(series)
    folder = root / "series" / series.uid
    if series.multiframe:
        sop = uid_of(series.uid, "file")
        write_multiframe(folder / f"{sop}.dcm", voxels, grid, header, coding, sop)
        slices = [Slice(path=folder / f"{sop}.dcm", sop_uid=sop, index=k) for k in range(grid.shape[2])]
    else:
        slices = write_slices(
            folder, voxels, grid, header, coding, file_name=lambda _, sop: f"{sop}.dcm", head_first=rng.random() < 0.5
        )
    if series.segmented:
        _write_masks(root / "segmentations", series, head, grid, voxels)
    row: dict[str, object] = {
        "SeriesInstanceUID": series.uid,
        "PatientAge": int(rng.integers(22, 90)),
        "PatientSex": "Female" if rng.random() < 0.65 else "Male",
        "Modality": series.modality,
        **{location: int(location in series.locations) for location in LOCATIONS},
        PRESENT: int(bool(series.locations)),
    }
    points: list[dict[str, object]] = []
    for aneurysm in head.vessels.aneurysms:
        column, line, k = pixels_of(grid, aneurysm.centre_mm)
        coordinates: dict[str, float | int] = {"x": column, "y": line}
        if series.multiframe:
            coordinates["f"] = k
        points.append(
            {
                "SeriesInstanceUID": series.uid,
                "SOPInstanceUID": slices[k].sop_uid,
                "coordinates": str(coordinates),
                "location": aneurysm.location,
                "diameter_mm": round(aneurysm.diameter_mm, 2),
            }
        )
    return row, points


def draw_grid(series: SeriesPlan, size: int, spacing: float, rng: np.random.Generator) -> Grid:
    """Field of view, slice distance and orientation as the four protocols have them; the same for ill and healthy."""
    modality, pose = series.modality, draw_pose(*series.names)
    back, rise = float(rng.uniform(-6, 2)), 0.0
    field = size * spacing
    axes, tilt = "LPS", np.zeros(3)
    if modality == "CTA":
        height, step = float(rng.uniform(120, 180)), max(float(rng.uniform(0.6, 1.25)), spacing * 0.6)
        rise = float(rng.uniform(0, 15))
    elif modality == "MRA":
        height, step = float(rng.uniform(80, 110)), max(float(rng.uniform(0.5, 1.0)), spacing * 0.5)
        tilt = rng.uniform((-12, -3, -3), (3, 3, 3))
    elif modality == "MRI T2":
        height, step = float(rng.uniform(120, 150)), float(rng.uniform(3.0, 5.0))
        rise = float(rng.uniform(0, 15))
        tilt = rng.uniform((-12, -3, -3), (5, 3, 3))
    else:
        axes = str(rng.choice(["LPS", "PIL", "LIP"]))
        height, step = float(rng.uniform(120, 160)), max(float(rng.uniform(0.8, 1.2)), spacing * 0.6)
        tilt = rng.uniform(-3, 3, size=3)
    middle = place_of(pose, CIRCLE_OF_WILLIS_MM, (0, back, rise))
    across = ("RL", "AP", "SI")
    low, high = _bounds(series, pose)
    # Extents by anatomical axis: wide enough for every aneurysm, and no more slices than asked for.
    wanted = dict(zip(across, (field, field, field), strict=True))
    slice_axis = next(pair for pair in across if axes[2] in pair)
    wanted[slice_axis] = min(height, size * max(step, spacing))
    for axis, pair in enumerate(across):
        reach = 2 * float(np.max(np.abs(np.stack([low, high])[:, axis] - middle[axis])) + MARGIN_MM)
        wanted[pair] = max(wanted[pair], reach)
    extent = [wanted[next(pair for pair in across if letter in pair)] for letter in axes]
    spacings = [max(extent[0] / size, spacing), max(extent[1] / size, spacing), max(step, extent[2] / size)]
    return make_grid(extent_mm=extent, spacing_mm=spacings, centre_mm=middle, axes=axes, tilt_deg=tilt)


def _varied_grid(series: SeriesPlan, turn: NDArray[np.float64], size: int, rng: np.random.Generator) -> Grid:
    pose = turn @ draw_pose(*series.names)
    aneurysms = draw_vessels(*series.names, pose=pose, locations=series.sites).aneurysms
    sites_N3 = np.array([aneurysm.centre_mm for aneurysm in aneurysms]).reshape(-1, 3)
    return varied_grid(series.modality, place_of(pose, CIRCLE_OF_WILLIS_MM), sites_N3, size, rng)


def _bounds(series: SeriesPlan, pose: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Box around the circle of Willis and the aneurysms, or where they would be: else an image's size tells of them."""
    aneurysms = draw_vessels(*series.names, pose=pose, locations=series.sites).aneurysms
    centres = np.array([place_of(pose, CIRCLE_OF_WILLIS_MM), *(a.centre_mm for a in aneurysms)])
    return centres.min(axis=0), centres.max(axis=0)


def _header(series: SeriesPlan) -> dict[str, object]:
    modality = "CT" if series.modality == "CTA" else "MR"
    return {
        "Modality": modality,
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        if series.multiframe
        else ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientID": uid_of(*series.names, "patient"),
        "StudyInstanceUID": uid_of(*series.names, "study"),
        "SeriesInstanceUID": series.uid,
        "FrameOfReferenceUID": uid_of(*series.names, "frame"),
        "SeriesNumber": 1,
    }


def _write_masks(folder: Path, series: SeriesPlan, head: Head, grid: Grid, voxels: NDArray[np.float32]) -> None:
    """`{uid}.nii` and `{uid}_cowseg.nii`, directly in the folder or in one of their own: both are found in the wild."""
    nested = int(rng_of(*series.names, "layout").integers(2)) == 1
    place = folder / series.uid if nested else folder
    place.mkdir(parents=True, exist_ok=True)
    for name, array in (
        (f"{series.uid}.nii", np.clip(np.rint(voxels), AIR_HU, 32767).astype(np.int16)),
        (f"{series.uid}_cowseg.nii", vessel_mask(head, grid)),
    ):
        image = nibabel.Nifti1Image(array, grid.affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, place / name)
