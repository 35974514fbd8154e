"""A box in mm around the circle of Willis: where it lies, and what of a scan's points and masks it leaves out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind, kind_of
from harmonize.pipeline.resampled import Resampled
from harmonize.scan import Scan
from harmonize.voxels.circle import first_voxel
from harmonize.voxels.foreground import WORKING_SPACING_MM, bounding_box
from harmonize.voxels.grids import Grid, check_size, part_of

CUT = {"vessels": DecisionKind.VESSELS_CUT, "labels": DecisionKind.LABELS_CUT}
"""What is said of a mask that people drew, by its kind."""


def survey_spacing(spacing: tuple[float, float, float]) -> tuple[float, float, float]:
    """Voxel size in mm of the look at the whole scan that says where its head lies."""
    x, y, z = (max(mm, WORKING_SPACING_MM) for mm in spacing)
    return x, y, z


def lay_box(survey: Resampled, everything: Grid, size_mm: tuple[float, float, float]) -> tuple[Grid, Decision]:
    """Lay the box around the circle of Willis.

    Args:
        survey: The whole scan on a coarse grid, its foreground found without labels.
        everything: The grid that would hold the whole scan; the box takes a part of its voxels.
        size_mm: Edges of the box along R, A and S; shorter where the field of view ends.

    Returns:
        The box, and what to say of it.

    Raises:
        Rejection: It has too many voxels.
    """
    spacing_3 = np.asarray(everything.spacing)
    box_23 = np.asarray(bounding_box(survey.foreground_XYZ), dtype=np.float64).reshape(3, 2).T
    edges_mm = (box_23 - 0.5) * np.asarray(survey.grid.spacing) + survey.grid.affine[:3, 3]
    foreground_23 = (edges_mm - everything.affine[:3, 3]) / spacing_3 + 0.5
    size_3 = np.ceil(np.asarray(size_mm) / spacing_3 - 1e-6).astype(np.int64)
    first_3, shape_3 = first_voxel(foreground_23, spacing_3, size_3), np.asarray(everything.shape)
    low_3 = np.clip(first_3, 0, shape_3 - 1)
    high_3 = np.clip(first_3 + size_3, low_3 + 1, shape_3)
    grid = part_of(everything, low_3, high_3)
    check_size(grid)
    return grid, DecisionKind.CIRCLE_CUT(
        size=" x ".join(f"{mm:g}" for mm in size_mm),
        box=", ".join(f"{a}:{b}" for a, b in zip(low_3, high_3, strict=True)),
        shape=" x ".join(str(size) for size in everything.shape),
    )


def left_out(scan: Scan, grid: Grid) -> list[Decision]:
    """What of the scan's points and masks lies outside of the box, and whether it lies in a part of a series."""
    decisions: list[Decision] = []
    if any(kind_of(line) is DecisionKind.CUT_AT_HOLE for line in scan.decisions):
        decisions.append(DecisionKind.CIRCLE_IN_A_PART())
    points_N3 = np.array([point.xyz_mm for point in scan.annotations.points], dtype=np.float64).reshape(-1, 3)
    outside = int(np.count_nonzero(~_inside(points_N3, grid)))
    if outside:
        decisions.append(DecisionKind.POINTS_OUTSIDE(count=outside, total=len(points_N3)))
    for kind, mask in scan.masks.items():
        if kind not in CUT:
            continue
        voxels_N3 = np.argwhere(mask.labels_XYZ)
        outside_N = ~_inside(voxels_N3 @ mask.affine[:3, :3].T + mask.affine[:3, 3], grid)
        if outside_N.any():
            decisions.append(CUT[kind](percent=100 * float(outside_N.mean())))
    return decisions


def _inside(points_N3: NDArray[np.float64], grid: Grid) -> NDArray[np.bool_]:
    """Which places in mm lie in a voxel of the grid, (N,)."""
    index_N3 = (points_N3 - grid.affine[:3, 3]) / np.asarray(grid.spacing)
    inside_N3: NDArray[np.bool_] = (index_N3 >= -0.5) & (index_N3 < np.asarray(grid.shape) - 0.5)
    return np.all(inside_N3, axis=1)
