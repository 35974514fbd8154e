"""The grid that a scan is put on: which geometries are believed, and the smallest RAS grid that covers one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harmonize.errors import Reason, Rejection
from harmonize.voxels.affines import axis_spacing, voxel_spacing

MAX_VOXELS = 2**28
"""Largest target grid: 512 MiB as int16, a whole-body CT at 1 mm."""

MIN_RAW_SPACING_MM = 0.01
MAX_RAW_SPACING_MM = 25.0
MAX_FIELD_OF_VIEW_MM = 3000.0

UNCOVERED_VOXELS = 1e-3
"""The part of a target voxel that may stick out of the grid before the grid grows by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """An axis-aligned RAS grid.

    Attributes:
        shape: Voxels along R, A and S.
        affine: (4, 4) float64, diagonal, every entry exactly representable in float32 as NIfTI stores it.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        return axis_spacing(self.affine)


def check_geometry(
    shape: tuple[int, ...], affine: NDArray[np.float64], slice_offsets: NDArray[np.float64] | None = None
) -> None:
    """Reject a geometry that cannot be true.

    Args:
        shape: (X, Y, Z).
        affine: (4, 4), voxel index to RAS+ mm.
        slice_offsets: (Z,) positions of the slices in units of the third column, or None.

    Raises:
        Rejection: Not 3D, not finite, singular, or spacings and sizes out of bounds.
    """

    def impossible(message: str) -> Rejection:
        return Rejection(Reason.BAD_GEOMETRY, message)

    if len(shape) != 3:
        raise Rejection(Reason.NOT_3D, f"{len(shape)} dimensions instead of 3")
    if min(shape) < 1:
        raise Rejection(Reason.EMPTY, "no voxels")
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise impossible("the affine is not a finite 4x4 matrix")
    spacing = voxel_spacing(affine)
    if (spacing < MIN_RAW_SPACING_MM).any() or (spacing > MAX_RAW_SPACING_MM).any():
        limits = f"{MIN_RAW_SPACING_MM:g} to {MAX_RAW_SPACING_MM:g} mm"
        raise impossible(f"voxel spacing {' x '.join(f'{mm:.4g}' for mm in spacing)} mm is outside {limits}")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
        raise impossible("the voxel axes are almost parallel to each other")
    if slice_offsets is not None and (
        slice_offsets.shape != shape[2:] or not np.isfinite(slice_offsets).all() or (np.diff(slice_offsets) <= 0).any()
    ):
        raise impossible("the slice positions do not increase")
    low, high = world_box(shape, affine, slice_offsets)
    if (high - low > MAX_FIELD_OF_VIEW_MM).any():
        size = " x ".join(f"{mm:.4g}" for mm in high - low)
        raise impossible(f"a field of view of {size} mm is beyond {MAX_FIELD_OF_VIEW_MM:g} mm")


def target_grid(
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    spacing: tuple[float, float, float],
    slice_offsets: NDArray[np.float64] | None = None,
) -> Grid:
    """The smallest RAS grid that covers the whole field of view, voxels' edges included, centred on it.

    Args:
        shape: (X, Y, Z) of the scan.
        affine: (4, 4) of the scan, voxel index to RAS+ mm.
        spacing: Voxel size of the grid along R, A and S, in mm.
        slice_offsets: (Z,) positions of the slices in units of the third column, or None.

    Raises:
        Rejection: The grid would have more than `MAX_VOXELS` voxels.

    Example:
        A grid at the scan's own spacing lies on the scan's own voxels:

        >>> grid = target_grid((4, 5, 6), np.diag([-1.0, 1.0, 2.0, 1.0]), (1.0, 1.0, 2.0))
        >>> grid.shape, grid.affine[:3, 3].tolist()
        ((4, 5, 6), [-3.0, 0.0, 0.0])
    """
    grid = covering_grid(shape, affine, spacing, slice_offsets)
    check_size(grid)
    return grid


def covering_grid(
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    spacing: tuple[float, float, float],
    slice_offsets: NDArray[np.float64] | None = None,
) -> Grid:
    """As `target_grid`, of any size: for who takes a part of it."""
    low, high = world_box(shape, affine, slice_offsets)
    size = np.asarray(spacing, dtype=np.float64)
    counts = np.maximum(np.ceil((high - low) / size - UNCOVERED_VOXELS), 1).astype(int)
    return _grid(counts, size, (low + high) / 2 - (counts - 1) / 2 * size)


def check_size(grid: Grid) -> None:
    """Reject a grid of more than `MAX_VOXELS` voxels."""
    if np.prod(np.asarray(grid.shape, dtype=float)) > MAX_VOXELS:
        text = " x ".join(str(count) for count in grid.shape)
        raise Rejection(Reason.TOO_LARGE, f"the target grid would be {text} voxels")


def part_of(grid: Grid, low: NDArray[np.int_], high: NDArray[np.int_]) -> Grid:
    """The voxels of a grid from `low` up to `high`, each (3,).

    Example:
        >>> grid = target_grid((4, 5, 6), np.eye(4), (1.0, 1.0, 1.0))
        >>> part = part_of(grid, np.array([1, 0, 2]), np.array([4, 5, 3]))
        >>> part.shape, part.affine[:3, 3].tolist()
        ((3, 5, 1), [1.0, 0.0, 2.0])
    """
    return _grid(high - low, np.diagonal(grid.affine)[:3], grid.affine[:3, 3] + np.diagonal(grid.affine)[:3] * low)


def _grid(shape: NDArray[np.int_], spacing: NDArray[np.float64], first_mm: NDArray[np.float64]) -> Grid:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = first_mm
    x, y, z = (int(count) for count in shape)
    return Grid(shape=(x, y, z), affine=affine.astype(np.float32).astype(np.float64))


def world_box(
    shape: tuple[int, ...], affine: NDArray[np.float64], slice_offsets: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest corner in mm of the box around all voxels, their edges included; each (3,)."""
    low_z, high_z = -0.5, shape[2] - 0.5
    if slice_offsets is not None and len(slice_offsets) > 1:
        gaps = np.diff(slice_offsets)
        low_z, high_z = slice_offsets[0] - gaps[0] / 2, slice_offsets[-1] + gaps[-1] / 2
    ends = np.array(
        [(i, j, k) for i in (-0.5, shape[0] - 0.5) for j in (-0.5, shape[1] - 0.5) for k in (low_z, high_z)]
    )
    corners = ends @ affine[:3, :3].T + affine[:3, 3]
    return corners.min(axis=0), corners.max(axis=0)
