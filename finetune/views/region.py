"""What is kept of a series: the box that the network sees, with a margin, or the whole head, to be seen in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.series import Case, Findings, Region
from finetune.targets import label_of_value
from harmonize.errors import UserError
from harmonize.scan import AIR_HU, HU
from harmonize.voxels.circle import first_voxel
from harmonize.voxels.grids import Grid, target_grid
from harmonize.voxels.spatial import resample, resample_labels
from harmonize.voxels.stored import INT16, StoredVolume, stored_value

MARGIN = 1.2
"""Edge of the region that is kept in memory over that of the patch: room for rotation, scaling and shifts."""

SAME_SPACING_MM = 1e-3
SIZE_DECIMALS = 6
"""Of voxel sizes in mm."""


def cut_region(
    volume: StoredVolume,
    patch: Sequence[int],
    *,
    spacing: float | None,
    unit: str,
    foreground_box: Sequence[int],
    case: Case | None = None,
    mask: StoredVolume | None = None,
    mask_values: Sequence[int] = (),
    whole: bool = False,
    bounds: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> Region:
    """Cut the region around the patch out of a harmonized volume, resampled where another spacing is asked for.

    Args:
        volume: RAS, axis-aligned, int16.
        patch: Size of the patch in voxels.
        spacing: Voxel size of the patch in mm; None takes the volume's.
        unit: Of the volume's real values.
        foreground_box: Half-open voxel bounds x0, x1, y0, y1, z0, z1 of the head.
        case: What is known about the series; None where nothing is.
        mask: On the same grid.
        mask_values: The value of each label in the mask, unless the case says otherwise.
        whole: Keep the whole head, for `finetune.sliding.tiles_of`, instead of what poses of one patch can reach.
        bounds: First and one more than the last voxel of the region in `grid_of` the volume, which may lie outside of
            it: what was not measured is filled. None: around the patch that the head's outline lays.

    Returns:
        The region.

    Raises:
        UserError: If the corpus stores baked CT windows instead of HU.
    """
    if volume.stored_XYZ.ndim != 3:
        raise UserError(
            "this corpus stores baked CT windows; fine-tuning cuts its own: harmonize without --bake-windows"
        )
    place = place_region(
        volume.stored_XYZ.shape, volume.spacing, patch, spacing=spacing, foreground_box=foreground_box, whole=whole
    )
    stored, origin_mm = volume.stored_XYZ, volume.affine[:3, 3]
    labelled = None
    if mask is not None:
        pairs = case.mask_places if case is not None else ()
        labelled = label_of_value(pairs or [(value, label) for label, value in enumerate(mask_values)])[mask.stored_XYZ]
    if place.grid is not None:
        values = resample(volume.values(), place.source_affine, place.grid).astype(np.float32, copy=False)
        rounded = np.rint(stored_value(values, volume.slope, volume.inter))
        stored = np.clip(rounded, INT16.min, INT16.max).astype(np.int16)
        labelled = None if labelled is None else resample_labels(labelled, place.source_affine, place.grid)
    spots = () if case is None else case.spots
    points_K3 = np.array([spot.xyz_mm for spot in spots], dtype=np.float64).reshape(-1, 3)
    points_K3 = (points_K3 - origin_mm - place.first_mm) / np.array(place.spacing)
    within_K3 = (points_K3 >= -0.5) & (points_K3 < np.array(stored.shape) - 0.5)
    fill = float(AIR_HU) if unit == HU else float(stored.min())
    if bounds is not None:
        place = replace(place, low=_three(bounds[0]), high=_three(bounds[1]))
    first_mm = origin_mm + place.first_mm + np.array(place.low) * place.spacing
    return Region(
        stored_XYZ=torch.from_numpy(_part(stored, place, round(fill))),
        mask_XYZ=None if labelled is None else torch.from_numpy(_part(labelled, place, 0)),
        slope=volume.slope,
        inter=volume.inter,
        spacing=place.spacing,
        fill=fill,
        unit=unit,
        start=place.start,
        findings=Findings(
            points_K3=points_K3 - np.array(place.low),
            places_K=np.array([spot.label for spot in spots], dtype=np.int64),
            mask_XYZ=None,
            labels_L=np.array(() if case is None else case.labels, dtype=np.float64),
            points_complete=(case is None or case.spots_complete) and bool(within_K3.all()),
        ),
        origin_mm=(float(first_mm[0]), float(first_mm[1]), float(first_mm[2])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a region lies in a volume, told by the volume's size alone.

    Attributes:
        grid: What the volume is resampled on first, in mm from its first voxel; None for its own.
        source_affine: The volume's, with its first voxel at zero.
        first_mm: Centre of the grid's first voxel.
        spacing: Its voxel size in mm.
        low: First voxel of the region in the grid.
        high: One more than its last voxel.
        start: First voxel of the patch, or of the first tile, in the region; negative where it sticks out.
    """

    grid: Grid | None
    source_affine: NDArray[np.float64]
    first_mm: NDArray[np.float64]
    spacing: tuple[float, float, float]
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    start: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the region."""
        x, y, z = (b - a for a, b in zip(self.low, self.high, strict=True))
        return x, y, z


def place_region(
    shape: Sequence[int],
    sizes_mm: Sequence[float],
    patch: Sequence[int],
    *,
    spacing: float | None,
    foreground_box: Sequence[int],
    whole: bool = False,
) -> Place:
    """Where the region around a patch lies; arguments as of `cut_region`.

    Args:
        shape: Of the volume.
        sizes_mm: Of its voxels.
        patch: Size of the patch in voxels.
        spacing: Voxel size of the patch in mm; None takes the volume's.
        foreground_box: Half-open voxel bounds of the head.
        whole: As for `cut_region`.
    """
    on = grid_of(shape, sizes_mm, spacing)
    box_23 = np.asarray(foreground_box, dtype=np.float64).reshape(3, 2).T
    if on.grid is not None:
        box_23 = ((box_23 - 0.5) * np.diagonal(on.source_affine)[:3] - on.first_mm) / on.spacing + 0.5
    shape, sizes_3 = on.shape, on.spacing
    size = np.array(patch)
    corner = first_voxel(box_23, sizes_3, size)
    if whole:
        corner, end = _around_head(box_23, corner, size)
        margin = np.zeros(3, dtype=int)
    else:
        end = corner + size
        margin = np.ceil(size * (MARGIN - 1) / 2).astype(int)
    low = np.clip(corner - margin, 0, np.array(shape) - 1)
    high = np.clip(end + margin, low + 1, shape)
    return Place(
        grid=on.grid,
        source_affine=on.source_affine,
        first_mm=on.first_mm,
        spacing=(float(sizes_3[0]), float(sizes_3[1]), float(sizes_3[2])),
        low=_three(low),
        high=_three(high),
        start=_three(corner - low),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGrid:
    """The voxels that a region is cut from.

    Attributes:
        grid: As of `Place`.
        source_affine: Likewise.
        first_mm: Likewise.
        shape: How many there are.
        spacing: Their size in mm, (3,).
    """

    grid: Grid | None
    source_affine: NDArray[np.float64]
    first_mm: NDArray[np.float64]
    shape: tuple[int, ...]
    spacing: NDArray[np.float64]


def grid_of(shape: Sequence[int], sizes_mm: Sequence[float], spacing: float | None) -> OnGrid:
    """The voxels that regions of a volume are cut from: its own, or those of another spacing; as `place_region`."""
    # A file holds sizes as float32: what it says and what the manifest says must place the same region.
    sizes_3: NDArray[np.float64] = np.asarray(sizes_mm, dtype=np.float64).round(SIZE_DECIMALS)
    affine = np.diag([*sizes_3, 1.0])
    if spacing is None or np.abs(sizes_3 - spacing).max() <= SAME_SPACING_MM:
        return OnGrid(grid=None, source_affine=affine, first_mm=np.zeros(3), shape=tuple(shape), spacing=sizes_3)
    grid = target_grid(tuple(shape), affine, (spacing,) * 3)
    spacing_3 = np.array([spacing] * 3)
    return OnGrid(
        grid=grid, source_affine=affine, first_mm=grid.affine[:3, 3], shape=tuple(grid.shape), spacing=spacing_3
    )


def _part(array_XYZ: NDArray[Any], place: Place, fill: int) -> NDArray[Any]:
    """The voxels of a place, with `fill` where it lies outside of the array."""
    size_3, low_3, high_3 = np.array(array_XYZ.shape), np.array(place.low), np.array(place.high)
    first_3, last_3 = np.clip(low_3, 0, size_3), np.clip(high_3, 0, size_3)
    inside = array_XYZ[tuple(slice(int(a), int(b)) for a, b in zip(first_3, last_3, strict=True))]
    if inside.shape == place.shape:
        return np.ascontiguousarray(inside)
    part = np.full(place.shape, fill, dtype=array_XYZ.dtype)
    there = zip(np.clip(first_3 - low_3, 0, None), inside.shape, strict=True)
    if inside.size:
        part[tuple(slice(int(a), int(a) + n) for a, n in there)] = inside
    return part


def _around_head(
    box_23: NDArray[np.float64], corner_3: NDArray[np.int64], size_3: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one more than the last voxel of a whole head; of the patch along axes where that holds it.

    Args:
        box_23: Half-open voxel bounds of the head; fractions are fine.
        corner_3: First voxel of the patch.
        size_3: Of the patch.
    """
    first_3, end_3 = np.floor(box_23[0].round(SIZE_DECIMALS)), np.ceil(box_23[1].round(SIZE_DECIMALS))
    # A short head of which the patch, laid by its vertex, misses the end: centred, the patch holds it.
    centred_3 = np.where(end_3 - first_3 <= size_3, np.rint(box_23.mean(0) - size_3 / 2), first_3)
    # The corner is rounded: half a voxel of skin may stick out.
    held_3 = (box_23[0] >= corner_3 - 0.5) & (box_23[1] <= corner_3 + size_3 + 0.5)
    low_3 = np.where(held_3, corner_3, centred_3)
    high_3 = np.where(held_3, corner_3 + size_3, np.maximum(end_3, centred_3 + size_3))
    return low_3.astype(np.int64), high_3.astype(np.int64)


def _three(values_3: NDArray[np.int64]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values_3)
    return x, y, z
