"""The finite voxels of a scan, ready to be put on a grid: all of them, every n-th, or those around a box."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Reason, Rejection
from harmonize.scan import AIR_HU, HU, Scan
from harmonize.voxels import interleaving, spatial
from harmonize.voxels.affines import voxel_spacing
from harmonize.voxels.grids import Grid

MAX_BAD_SHARE = 0.5
"""A scan with more NaN or infinite voxels than this is rejected; fewer are filled with its lowest value."""

KERNEL_REACH = 2.0
"""How far an interpolated voxel looks, in voxels of the coarser grid: four deviations of the Gaussian that brings the
two resolutions together are 1.7 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Finite voxels with their places.

    Attributes:
        voxels_XYZ: Any real dtype.
        affine: (4, 4), voxel index to RAS+ mm.
        slice_offsets: (Z,) positions of the slices in units of the third column, or None if even.
        outside: What stands where the scan has no voxel.
        decisions: So far.
    """

    voxels_XYZ: NDArray[Any]
    affine: NDArray[np.float64]
    slice_offsets: NDArray[np.float64] | None
    outside: float
    decisions: tuple[Decision, ...]

    def on(self, grid: Grid) -> NDArray[Any]:
        """The voxels on a grid, in one interpolation."""
        offsets = self.slice_offsets
        return spatial.resample(self.voxels_XYZ, self.affine, grid, slice_offsets=offsets, outside=self.outside)

    def thinned(self, spacing: tuple[float, float, float]) -> Source:
        """Every n-th voxel along each axis, so that those of a grid of this spacing still hold two of them."""
        steps = [max(1, int(min(spacing) / 2 / own)) for own in voxel_spacing(self.affine)]
        if self.slice_offsets is not None:
            steps[2] = 1
        return self._part([slice(None, None, step) for step in steps])

    def around(self, grid: Grid) -> Source:
        """The voxels that the values on a grid depend on, which may be a small part of the scan."""
        shape, own = self.voxels_XYZ.shape, voxel_spacing(self.affine)
        ends = [(-0.5, count - 0.5) for count in grid.shape]
        corners_mm = np.array(list(product(*ends))) * np.asarray(grid.spacing) + grid.affine[:3, 3]
        into = np.linalg.inv(self.affine)
        index_N3 = corners_mm @ into[:3, :3].T + into[:3, 3]
        parts = []
        for axis, (low, high) in enumerate(zip(index_N3.min(axis=0), index_N3.max(axis=0), strict=True)):
            if axis == 2 and self.slice_offsets is not None:
                low, high = np.searchsorted(self.slice_offsets, (low, high))
            reach = math.ceil(KERNEL_REACH * max(grid.spacing) / own[axis]) + KERNEL_REACH
            first = int(np.clip(math.floor(low - reach), 0, shape[axis] - 2))
            parts.append(slice(first, int(np.clip(math.ceil(high + reach) + 1, first + 2, shape[axis]))))
        return self._part(parts)

    def _part(self, parts: list[slice]) -> Source:
        offsets, affine = self.slice_offsets, self.affine.copy()
        starts, steps = [part.start or 0 for part in parts], [part.step or 1 for part in parts]
        if offsets is not None:
            # They say where the slices lie, whatever their number.
            offsets, starts[2] = offsets[parts[2]], 0
        affine[:3, 3] += affine[:3, :3] @ starts
        affine[:3, :3] *= steps
        return replace(self, voxels_XYZ=self.voxels_XYZ[tuple(parts)], affine=affine, slice_offsets=offsets)


def read_source(scan: Scan, affine: NDArray[np.float64]) -> Source:
    """The finite voxels of a scan whose geometry is sound.

    Args:
        scan: With voxels of a real dtype.
        affine: Its affine as float64.

    Raises:
        Rejection: Most of its voxels are not finite.
    """
    woven = interleaving.notes(scan.voxels_XYZ, voxel_spacing(scan.affine))
    voxels, lowest, filled = _finite(scan.voxels_XYZ)
    return Source(
        voxels_XYZ=voxels,
        affine=affine,
        slice_offsets=scan.slice_offsets,
        outside=float(AIR_HU) if scan.unit == HU else lowest,
        decisions=(*scan.decisions, *woven, *filled),
    )


def _finite(voxels_XYZ: NDArray[Any]) -> tuple[NDArray[Any], float, list[Decision]]:
    """The voxels with NaN and infinities replaced by the lowest finite value, that value, and the decisions."""
    if voxels_XYZ.dtype.kind != "f":
        return voxels_XYZ, float(voxels_XYZ.min()), []
    finite = np.isfinite(voxels_XYZ)
    if finite.all():
        return voxels_XYZ, float(voxels_XYZ.min()), []
    share = 1 - finite.mean()
    if share > MAX_BAD_SHARE:
        raise Rejection(Reason.BAD_INTENSITY, f"{share:.0%} of the voxels are not finite")
    lowest = float(voxels_XYZ[finite].min())
    filled = DecisionKind.NOT_FINITE(count=voxels_XYZ.size - int(finite.sum()))
    return np.where(finite, voxels_XYZ, voxels_XYZ.dtype.type(lowest)), lowest, [filled]
