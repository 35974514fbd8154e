"""The voxels, points and masks of a region in a pose, each in one interpolation, on the device that it lies on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from finetune.series import UPRIGHT, Findings, Pose, Region
from harmonize.voxels.stored import real_value
from headspark.page_locked import copied

ELASTIC_ROUNDS = 12
"""Displacements of 5 mm at nodes that lie 32 mm apart have a slope well below one: each round brings a point nearer."""


def pose_values(region: Region, patch: Sequence[int], pose: Pose = UPRIGHT) -> Tensor:
    """Real values of a posed patch in one interpolation, float32 (X, Y, Z) on the region's device.

    A pose that only shifts by whole voxels gives the voxels themselves.
    """
    return next(pose_slabs(region, patch, pose, [(0, int(patch[2]))]))


def pose_slabs(region: Region, patch: Sequence[int], pose: Pose, slabs: Iterable[tuple[int, int]]) -> Iterator[Tensor]:
    """Slabs of a posed patch, one after the other: the same values as `pose_values`, few of them in memory.

    Args:
        region: What is kept of the series.
        patch: Size of the patch.
        pose: How it lies in the region.
        slabs: First and one more than the last slice along Z of each; they may stick out of the patch.

    Yields:
        (X, Y, slices) of each.
    """
    linear, centre_q = _to_region(region, patch, pose)
    start = _whole_shift(linear, centre_q, patch, pose)
    source_XYZ = region.stored_XYZ if start is not None else region.stored_XYZ.float() - region.fill
    for first, end in slabs:
        if start is None:
            # Two slices at least: affine_grid warns of one.
            grid = _grid(region, linear, centre_q, patch, pose, (first, max(end, first + 2)))
            values = _sample(source_XYZ, grid, mode="bilinear")[..., : end - first] + region.fill
        else:
            x, y, z = start
            size = (int(patch[0]), int(patch[1]), end - first)
            values = _slice(source_XYZ, (x, y, z + first), size, fill=region.fill).float()
        yield real_value(values, region.slope, region.inter)


def pose_findings(region: Region, patch: Sequence[int], pose: Pose = UPRIGHT) -> Findings:
    """Points and mask in the voxels of a posed patch, with the names that they have in the region."""
    linear, centre_q = _to_region(region, patch, pose)
    mask = region.mask_XYZ
    if mask is not None:
        start = _whole_shift(linear, centre_q, patch, pose)
        if start is None:
            grid = _grid(region, linear, centre_q, patch, pose)
            mask = _sample(mask.float(), grid, mode="nearest").to(torch.uint8)
        else:
            mask = _slice(mask, start, patch, fill=0)
    points = pose_points(region, patch, pose, region.findings.points_K3)
    return replace(region.findings, points_K3=points, mask_XYZ=mask)


def pose_points(
    region: Region, patch: Sequence[int], pose: Pose, points_K3: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Points of a region in the voxels of a posed patch, (K, 3)."""
    linear, centre_q = _to_region(region, patch, pose)
    points = (points_K3 - centre_q) @ np.linalg.inv(linear).T + (np.array(patch) - 1) / 2
    if pose.elastic_mm_3DHW is not None:
        points = _undisplaced(points, region, patch, pose.elastic_mm_3DHW)
    return points


def _to_region(region: Region, patch: Sequence[int], pose: Pose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Linear part and the image of the patch's centre, of the map from its voxels to the region's."""
    spacing = np.array(region.spacing)
    zoom = np.array((1.0, 1.0, 1.0) if region.zoom is None else region.zoom)
    middle = (np.array(patch) * zoom - 1) / 2  # of what the upright patch covers
    centre_q = middle + region.start + np.array(pose.shift) / spacing
    return np.diag(1 / spacing) @ pose.linear @ np.diag(spacing * zoom), centre_q


def _whole_shift(
    linear: NDArray[np.float64], centre_q: NDArray[np.float64], patch: Sequence[int], pose: Pose
) -> tuple[int, ...] | None:
    """Index of the patch's first voxel in the region, if the map only shifts by whole voxels."""
    start = centre_q - (np.array(patch) - 1) / 2
    if pose.elastic_mm_3DHW is not None or not np.array_equal(linear, np.eye(3)) or (start != np.rint(start)).any():
        return None
    return tuple(int(index) for index in start)


def _slice(source_XYZ: Tensor, start: Sequence[int], patch: Sequence[int], *, fill: float) -> Tensor:
    """A part of an array, with `fill` where it sticks out."""
    cut = source_XYZ.new_full(tuple(patch), fill)
    size = source_XYZ.shape
    low = [max(0, -first) for first in start]
    high = [min(edge, n - first) for edge, n, first in zip(patch, size, start, strict=True)]
    if all(a < b for a, b in zip(low, high, strict=True)):
        there = tuple(slice(a + first, b + first) for a, b, first in zip(low, high, start, strict=True))
        cut[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = source_XYZ[there]
    return cut


def _grid(
    region: Region,
    linear: NDArray[np.float64],
    centre: NDArray[np.float64],
    patch: Sequence[int],
    pose: Pose,
    slab: tuple[int, int] | None = None,
) -> Tensor:
    """Where each voxel of the patch, or of its slab, reads, as grid_sample counts: (1, X, Y, Z, 3), last axis first.

    It counts from -1 at the first voxel's centre to 1 at the last one's.
    """
    device = region.stored_XYZ.device
    first, end = (0, int(patch[2])) if slab is None else slab
    size_in, size_out = np.array(region.stored_XYZ.shape), np.array([patch[0], patch[1], end - first])
    # The map is about the middle of the patch, the grid about that of the slab.
    centre = centre + linear @ np.array([0.0, 0.0, (first + end - 1) / 2 - (patch[2] - 1) / 2])
    to_unit = 2 / np.maximum(size_in - 1, 1)
    theta = np.concatenate(
        [
            to_unit[:, None] * linear * ((size_out - 1) / 2)[None],
            (to_unit * centre - 1)[:, None],
        ],
        axis=1,
    )
    theta = np.concatenate([theta[::-1, 2::-1], theta[::-1, 3:]], axis=1)
    # Accelerators are slow in float64; 1e-7 of a region's edge is far below a voxel.
    exact = torch.float64 if device.type == "cpu" else torch.float32
    grid = F.affine_grid(
        copied(torch.from_numpy(theta[None].copy()).to(exact), device), [1, 1, *map(int, size_out)], align_corners=True
    ).float()
    if pose.elastic_mm_3DHW is not None:
        nodes = copied(torch.from_numpy(pose.elastic_mm_3DHW)[None], device)
        moved_13XYZ = _displacements(nodes, patch, first, end)
        to_grid = torch.from_numpy((to_unit[:, None] * linear / np.array(region.input_spacing)[None])[::-1].copy())
        to_grid = copied(to_grid.to(moved_13XYZ.dtype), device)
        grid = grid + torch.einsum("ij,bjxyz->bxyzi", to_grid, moved_13XYZ)
    return grid


def _displacements(nodes_13DHW: Tensor, patch: Sequence[int], first: int, end: int) -> Tensor:
    """Displacements of the voxels of a slab; beyond the patch those of its last slice."""
    x, y, z = map(int, patch)
    if (first, end) == (0, z):
        return F.interpolate(nodes_13DHW, size=(x, y, z), mode="trilinear", align_corners=True)
    # Linear along one axis after the other: along Z on the few nodes, of which the slab is taken.
    along_z = F.interpolate(nodes_13DHW, size=(*nodes_13DHW.shape[2:4], z), mode="trilinear", align_corners=True)
    inside = torch.arange(first, end, device=nodes_13DHW.device).clamp(0, z - 1)
    return F.interpolate(along_z[..., inside], size=(x, y, end - first), mode="trilinear", align_corners=True)


def _undisplaced(
    points_K3: NDArray[np.float64], region: Region, patch: Sequence[int], elastic_mm_3DHW: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Where points lie in a patch whose voxels p read at ``p + displacement(p)``: found by iteration.

    The displacement is a contraction (its slope is below one), so each round brings the points nearer.
    """
    nodes = torch.from_numpy(elastic_mm_3DHW)[None].double()
    last = np.maximum(np.array(patch) - 1, 1)
    found = points_K3
    for _ in range(ELASTIC_ROUNDS):
        unit = torch.from_numpy((2 * found / last - 1)[:, ::-1].copy()).reshape(1, -1, 1, 1, 3)
        moved_mm = F.grid_sample(nodes, unit, mode="bilinear", padding_mode="border", align_corners=True)
        found = points_K3 - moved_mm.reshape(3, -1).T.numpy() / np.array(region.input_spacing)
    return found


def _sample(source_XYZ: Tensor, grid: Tensor, *, mode: str) -> Tensor:
    """Interpolate an array where a grid says; zero outside."""
    return F.grid_sample(source_XYZ[None, None], grid, mode=mode, padding_mode="zeros", align_corners=True)[0, 0]
