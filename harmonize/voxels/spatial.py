"""Geometry: any affine, sheared or uneven, onto a RAS grid in one interpolation, anti-aliased where it shrinks.

Two routes. Where the voxel axes run along R, A and S, the interpolation is separable: one banded matrix an axis,
applied as matrix products. Its rows are triangle kernels as wide as the coarser of the two grids (what torch calls
``antialias=True``), on the slices' true positions, with their first moment put right, so that a field that is linear
in mm comes out exactly. Everywhere else a Gaussian along the axes that shrink is followed by one trilinear lookup.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from harmonize.voxels.affines import voxel_spacing
from harmonize.voxels.grids import Grid, world_box
from harmonize.voxels.kernels import axis_weights, gaussian, multiply, multiply_planes

ALIGNED_MM = 0.01
"""Axes count as parallel to R, A, S if ignoring their tilt moves no voxel by more than this."""

SAME_POSITION_MM = 1e-3
SAME_RESOLUTION = 1e-3
FWHM_PER_SIGMA = 2.3548200450309493
"""2 sqrt(2 ln 2): a Gaussian as wide at half its height as the target voxel brings the two resolutions together
(Cardoso et al. 2015, MICCAI 9350:683)."""


def resample(
    voxels_XYZ: NDArray[Any],
    affine: NDArray[np.float64],
    grid: Grid,
    *,
    slice_offsets: NDArray[np.float64] | None = None,
    outside: float = 0.0,
) -> NDArray[Any]:
    """Interpolate a scan on `grid`, once.

    Args:
        voxels_XYZ: Any real dtype, shape (X, Y, Z).
        affine: (4, 4), voxel index to RAS+ mm; may be oblique or sheared.
        grid: Where to.
        slice_offsets: (Z,) true positions of the slices in units of the third column, or None if even.
        outside: Value where the scan has no voxel.

    Returns:
        float32 of shape `grid.shape`; or, where every target voxel is a source voxel, a copy in the source's dtype,
        bit for bit.
    """
    axes = _aligned_axes(voxels_XYZ.shape, affine)
    if axes is None:
        return _resample_oblique(voxels_XYZ, affine, grid, slice_offsets, outside)
    result = _resample_aligned(voxels_XYZ, affine, grid, slice_offsets, axes)
    for world_axis, inside in enumerate(_covered(voxels_XYZ.shape, affine, grid, slice_offsets)):
        if not inside.all():
            result[(slice(None),) * world_axis + (~inside,)] = outside
    return result


def resample_labels(labels_XYZ: NDArray[Any], affine: NDArray[np.float64], grid: Grid) -> NDArray[Any]:
    """Take the label of the nearest voxel, 0 outside the mask's field of view.

    Args:
        labels_XYZ: uint8 or uint16, shape (X, Y, Z); its geometry need not be the image's.
        affine: (4, 4), voxel index to RAS+ mm.
        grid: Where to.

    Returns:
        Of the same type and of shape `grid.shape`.
    """
    axes = _aligned_axes(labels_XYZ.shape, affine)
    if axes is None:
        return _lookup(labels_XYZ, affine, grid, sitk.sitkNearestNeighbor, 0.0)
    source = np.transpose(labels_XYZ, axes)
    picks, insides = [], []
    for world_axis, positions in enumerate(_positions(labels_XYZ.shape, affine, None, axes)):
        step = (positions[-1] - positions[0]) / (len(positions) - 1) if len(positions) > 1 else 1.0
        index = (_targets(grid, world_axis) - positions[0]) / step
        picks.append(np.clip(np.floor(index + 0.5), 0, len(positions) - 1).astype(int))
        insides.append((index >= -0.5) & (index <= len(positions) - 0.5))
    result = source[np.ix_(*picks)]
    result *= insides[0][:, None, None] & insides[1][:, None] & insides[2]
    return result


def _aligned_axes(shape: tuple[int, ...], affine: NDArray[np.float64]) -> tuple[int, int, int] | None:
    """The voxel axis that runs along R, A and S each, or None if some axis runs between them."""
    matrix = affine[:3, :3]
    along = np.abs(matrix).argmax(axis=0)
    if sorted(along) != [0, 1, 2]:
        return None
    off_axis = matrix.copy()
    off_axis[along, [0, 1, 2]] = 0
    if (np.abs(off_axis) @ (np.asarray(shape) / 2) > ALIGNED_MM).any():
        return None
    x, y, z = (int(axis) for axis in np.argsort(along))
    return x, y, z


def _positions(
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    slice_offsets: NDArray[np.float64] | None,
    axes: tuple[int, int, int],
) -> list[NDArray[np.float64]]:
    """Where the voxels of an aligned scan lie along R, A and S, in mm, in the order of their index."""
    middle = (np.asarray(shape) - 1) / 2
    if slice_offsets is not None:
        middle[2] = slice_offsets[[0, -1]].mean()
    found = []
    for world_axis, axis in enumerate(axes):
        index = np.arange(shape[axis], dtype=np.float64)
        if axis == 2 and slice_offsets is not None:
            index = slice_offsets.astype(np.float64)
        centre = affine[world_axis, :3] @ middle + affine[world_axis, 3]
        found.append(centre + affine[world_axis, axis] * (index - middle[axis]))
    return found


def _targets(grid: Grid, world_axis: int) -> NDArray[np.float64]:
    return grid.affine[world_axis, 3] + grid.affine[world_axis, world_axis] * np.arange(grid.shape[world_axis])


def _covered(
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    grid: Grid,
    slice_offsets: NDArray[np.float64] | None,
) -> list[NDArray[np.bool_]]:
    """Which of the grid's planes along R, A and S have their middle within an aligned scan's field of view."""
    low, high = world_box(shape, affine, slice_offsets)
    targets = (_targets(grid, world_axis) for world_axis in range(3))
    return [(at >= low[axis] - ALIGNED_MM) & (at <= high[axis] + ALIGNED_MM) for axis, at in enumerate(targets)]


def _resample_aligned(
    voxels_XYZ: NDArray[Any],
    affine: NDArray[np.float64],
    grid: Grid,
    slice_offsets: NDArray[np.float64] | None,
    axes: tuple[int, int, int],
) -> NDArray[Any]:
    weights: list[tuple[int, NDArray[np.float32]]] = []
    flips = [slice(None)] * 3
    for world_axis, positions in enumerate(_positions(voxels_XYZ.shape, affine, slice_offsets, axes)):
        descends = len(positions) > 1 and positions[-1] < positions[0]
        ascending = positions[::-1] if descends else positions
        targets = _targets(grid, world_axis)
        if len(targets) == len(ascending) and np.abs(targets - ascending).max() < SAME_POSITION_MM:
            flips[world_axis] = slice(None, None, -1) if descends else slice(None)
            continue
        matrix = axis_weights(ascending, targets, grid.spacing[world_axis])
        weights.append((axes[world_axis], matrix[:, ::-1] if descends else matrix))
    # In memory order, so that every product runs over contiguous voxels; the axis that shrinks most goes first.
    memory = sorted(range(3), key=lambda axis: -abs(voxels_XYZ.strides[axis]))
    result = np.ascontiguousarray(voxels_XYZ.transpose(memory))
    matrices = {memory.index(axis): matrix for axis, matrix in weights}
    order = sorted(matrices, key=lambda axis: (matrices[axis].shape[0] / matrices[axis].shape[1], axis))
    for axis in order:
        if axis not in matrices:
            continue
        matrix = matrices.pop(axis)
        if axis > 0 and 3 - axis in matrices:
            pair = (matrix, matrices.pop(3 - axis))
            result = multiply_planes(result, *(pair if axis == 1 else pair[::-1]))
        else:
            result = multiply(result, matrix, axis)
    back = [memory.index(axis) for axis in axes]
    result = result.transpose(back)[tuple(flips)]
    return result.copy(order="K") if not weights else result


def _resample_oblique(
    voxels_XYZ: NDArray[Any],
    affine: NDArray[np.float64],
    grid: Grid,
    slice_offsets: NDArray[np.float64] | None,
    outside: float,
) -> NDArray[Any]:
    spacing = voxel_spacing(affine)
    # Z first, as files and SimpleITK have it: no product below runs over scattered voxels.
    filtered_ZYX: NDArray[Any] = np.ascontiguousarray(voxels_XYZ.T)
    for axis, size in enumerate(voxels_XYZ.shape):
        index = slice_offsets if axis == 2 and slice_offsets is not None else np.arange(size, dtype=np.float64)
        own = spacing[axis] * float(np.median(np.diff(index))) if size > 1 else np.inf
        wanted = float(np.linalg.norm(affine[:3, axis] / spacing[axis] * grid.spacing))
        if own < wanted * (1 - SAME_RESOLUTION):
            sigma = np.sqrt(wanted**2 - own**2) / FWHM_PER_SIGMA
            filtered_ZYX = multiply(filtered_ZYX, gaussian(index * spacing[axis], sigma), 2 - axis)
    filtered = np.asarray(filtered_ZYX.T, dtype=np.float32)
    if slice_offsets is None:
        return _lookup(filtered, affine, grid, sitk.sitkLinear, outside)
    return _lookup_uneven(filtered, affine, grid, slice_offsets, outside)


def _lookup(
    voxels_XYZ: NDArray[Any], affine: NDArray[np.float64], grid: Grid, interpolator: int, outside: float
) -> NDArray[Any]:
    """One lookup at the grid's true places: SimpleITK with the affine as its transform, since ITK refuses shear."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(voxels_XYZ)))
    into_voxels = np.linalg.inv(affine)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(into_voxels[:3, :3].ravel().tolist())
    transform.SetTranslation(into_voxels[:3, 3].tolist())
    found = sitk.Resample(
        image,
        list(grid.shape),
        transform,
        interpolator,
        grid.affine[:3, 3].tolist(),
        list(grid.spacing),
        np.eye(3).ravel().tolist(),
        outside,
        image.GetPixelID(),
    )
    return np.transpose(sitk.GetArrayFromImage(found))


def _lookup_uneven(
    voxels_XYZ: NDArray[Any],
    affine: NDArray[np.float64],
    grid: Grid,
    slice_offsets: NDArray[np.float64],
    outside: float,
) -> NDArray[np.float32]:
    """Trilinear on the slices' true positions; slab by slab, so that the coordinates do not fill the memory."""
    gaps = np.diff(slice_offsets)
    knots = np.concatenate(([slice_offsets[0] - gaps[0] / 2], slice_offsets, [slice_offsets[-1] + gaps[-1] / 2]))
    index_of_knot = np.concatenate(([-0.5], np.arange(len(slice_offsets)), [len(slice_offsets) - 0.5]))
    into_voxels = np.linalg.inv(affine)
    x, y = (_targets(grid, axis) for axis in (0, 1))
    limits = np.asarray(voxels_XYZ.shape) - 0.5
    result = np.empty(grid.shape, dtype=np.float32)
    for index, z in enumerate(_targets(grid, 2)):
        points = np.stack(np.broadcast_arrays(x[:, None], y[None, :], z))
        i, j, t = np.tensordot(into_voxels[:3, :3], points, axes=1) + into_voxels[:3, 3, None, None]
        k = np.interp(t, knots, index_of_knot, left=-1, right=len(slice_offsets))
        where = np.stack((i, j, k))
        inside = ((where >= -0.5) & (where <= limits[:, None, None])).all(axis=0)
        plane = map_coordinates(voxels_XYZ, where, order=1, mode="nearest", prefilter=False)
        result[:, :, index] = np.where(inside, plane, outside)
    return result
