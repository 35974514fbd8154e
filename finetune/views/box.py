"""The part of a head that the network sees: a box of fixed size around the circle of Willis, in any pose.

The box is centred on the foreground from left to right and from front to back. From top to bottom it is centred too,
but never deeper below the vertex than the circle of Willis lies: a CTA may reach down to the aortic arch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from finetune.series import UPRIGHT, Case, Findings, Pose, Region
from harmonize.errors import UserError
from harmonize.scan import AIR_HU, HU
from harmonize.voxels.circle import first_voxel
from harmonize.voxels.grids import Grid, target_grid
from harmonize.voxels.spatial import resample, resample_labels
from harmonize.voxels.stored import INT16, StoredVolume, real_value, stored_value
from headspark.channels import DEFAULT_MRI_SCALING, CtWindow, MriScaling, to_network_input
from headspark.data.stores import read_corpus_file

MARGIN = 1.2
"""Edge of the region that is kept in memory over that of the patch: room for rotation, scaling and shifts."""

SAME_SPACING_MM = 1e-3
SIZE_DECIMALS = 6
ELASTIC_ROUNDS = 12
"""Displacements of 5 mm at nodes that lie 32 mm apart have a slope well below one: each round brings a point nearer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxConfig:
    """A box of `data.patch` voxels of `data.spacing` mm.

    Attributes:
        kind: ``box``.
    """

    kind: Literal["box"] = "box"


class BoxView:
    """What the network sees: a 3D box; methods as in `finetune.views.base.View`.

    Args:
        patch: Its size in voxels.
        spacing: Their size in mm; None takes the corpus's.
        windows: CT windows, a channel each.
        scaling: Of MRI, as `headspark.channels.to_network_input` takes it.
        mask_values: The value of each of the task's places in the corpus's masks.
        mirror: The task's; None: poses must not be mirrored.
    """

    def __init__(
        self,
        patch: tuple[int, int, int],
        *,
        spacing: float | None,
        windows: Sequence[str | Mapping[str, Any] | CtWindow],
        scaling: MriScaling = DEFAULT_MRI_SCALING,
        mask_values: Sequence[int],
        mirror: Sequence[int] | None,
    ) -> None:
        self.patch, self.spacing, self.windows, self.scaling = patch, spacing, tuple(windows), scaling
        self.mask_values, self.mirror = tuple(mask_values), mirror

    def load(self, case: Case) -> Region:
        """Read a series of the corpus and keep what a patch can need.

        Raises:
            UserError: A file is gone or damaged; names the series.
        """
        volume = read_corpus_file(case.image, scan_id=case.scan_id, shape=case.shape)
        mask = None
        if case.mask is not None:
            mask = read_corpus_file(case.mask, scan_id=case.scan_id, shape=volume.stored_XYZ.shape[:3])
        return self.cut(volume, unit=case.unit, foreground_box=case.foreground_box, case=case, mask=mask)

    def cut(
        self,
        volume: StoredVolume,
        *,
        unit: str,
        foreground_box: Sequence[int],
        case: Case | None = None,
        mask: StoredVolume | None = None,
    ) -> Region:
        """What is kept of a harmonized volume; arguments as for `cut_region`."""
        return cut_region(
            volume,
            self.patch,
            spacing=self.spacing,
            unit=unit,
            foreground_box=foreground_box,
            case=case,
            mask=mask,
            mask_values=self.mask_values,
        )

    def key(self, case: Case) -> str:
        """All that a series' region depends on, as a text."""
        facts = (MARGIN, self.patch, self.spacing, self.mask_values, case.sha256, case.mask_sha256, case.foreground_box)
        spots = [(spot.label, *spot.xyz_mm) for spot in case.spots]
        return repr((facts, spots, case.unit, case.spots_complete))

    def region_shape(self, case: Case) -> tuple[int, int, int]:
        """Voxels of a series' region, by the manifest."""
        place = place_region(
            case.shape, case.spacing, self.patch, spacing=self.spacing, foreground_box=case.foreground_box
        )
        return place.shape

    def sample(self, region: Region, pose: Pose = UPRIGHT) -> Tensor:
        """The network's input, x_CDHW, in one interpolation; upright, the voxels are the corpus's."""
        values_XYZ = pose_values(region, self.patch, pose)
        return to_network_input(values_XYZ, region.unit, self.windows, self.scaling)

    def findings(self, region: Region, pose: Pose = UPRIGHT) -> Findings:
        """What is known, in the voxels of `sample`; a mirrored pose swaps the sides."""
        found = pose_findings(region, self.patch, pose)
        if not pose.mirrored:
            return found
        if self.mirror is None:
            raise ValueError("a task without a mirror was shown a mirrored pose")
        return found.mirrored(self.mirror)


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
        mask_values: The value of each label in the mask.

    Returns:
        The region.

    Raises:
        UserError: If the corpus stores baked CT windows instead of HU.
    """
    if volume.stored_XYZ.ndim != 3:
        raise UserError(
            "this corpus stores baked CT windows; fine-tuning cuts its own: harmonize without --bake-windows"
        )
    place = place_region(volume.stored_XYZ.shape, volume.spacing, patch, spacing=spacing, foreground_box=foreground_box)
    stored, origin_mm = volume.stored_XYZ, volume.affine[:3, 3]
    labelled = None if mask is None else mask.stored_XYZ.astype(np.uint8, copy=False)
    if place.grid is not None:
        values = resample(volume.values(), place.source_affine, place.grid).astype(np.float32, copy=False)
        rounded = np.rint(stored_value(values, volume.slope, volume.inter))
        stored = np.clip(rounded, INT16.min, INT16.max).astype(np.int16)
        labelled = None if labelled is None else resample_labels(labelled, place.source_affine, place.grid)
    spots = () if case is None else case.spots
    points_K3 = np.array([spot.xyz_mm for spot in spots], dtype=np.float64).reshape(-1, 3)
    points_K3 = (points_K3 - origin_mm - place.first_mm) / np.array(place.spacing)
    within_K3 = (points_K3 >= -0.5) & (points_K3 < np.array(stored.shape) - 0.5)
    inside = tuple(slice(a, b) for a, b in zip(place.low, place.high, strict=True))
    return Region(
        stored_XYZ=torch.from_numpy(np.ascontiguousarray(stored[inside])),
        mask_XYZ=None if labelled is None else torch.from_numpy(_label_of_value(mask_values)[labelled[inside]]),
        slope=volume.slope,
        inter=volume.inter,
        spacing=place.spacing,
        fill=float(AIR_HU) if unit == HU else float(stored.min()),
        unit=unit,
        start=place.start,
        findings=Findings(
            points_K3=points_K3 - np.array(place.low),
            places_K=np.array([spot.label for spot in spots], dtype=np.int64),
            mask_XYZ=None,
            labels_L=np.array(() if case is None else case.labels, dtype=np.float64),
            points_complete=(case is None or case.spots_complete) and bool(within_K3.all()),
        ),
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
        start: First voxel of the patch in the region; negative where it sticks out.
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
) -> Place:
    """Where the region around a patch lies; arguments as of `cut_region`.

    Args:
        shape: Of the volume.
        sizes_mm: Of its voxels.
        patch: Size of the patch in voxels.
        spacing: Voxel size of the patch in mm; None takes the volume's.
        foreground_box: Half-open voxel bounds of the head.
    """
    # A file holds sizes as float32: what it says and what the manifest says must place the same region.
    sizes_3: NDArray[np.float64] = np.asarray(sizes_mm, dtype=np.float64).round(SIZE_DECIMALS)
    box_23 = np.asarray(foreground_box, dtype=np.float64).reshape(3, 2).T
    source_affine, grid, first_mm = np.diag([*sizes_3, 1.0]), None, np.zeros(3)
    if spacing is not None and np.abs(sizes_3 - spacing).max() > SAME_SPACING_MM:
        grid = target_grid(tuple(shape), source_affine, (spacing,) * 3)
        first_mm = grid.affine[:3, 3]
        box_23 = ((box_23 - 0.5) * sizes_3 - first_mm) / spacing + 0.5
        shape, sizes_3 = grid.shape, np.array([spacing] * 3)
    size = np.array(patch)
    corner = first_voxel(box_23, sizes_3, size)
    margin = np.ceil(size * (MARGIN - 1) / 2).astype(int)
    low = np.clip(corner - margin, 0, np.array(shape) - 1)
    high = np.clip(corner + size + margin, low + 1, shape)
    return Place(
        grid=grid,
        source_affine=source_affine,
        first_mm=first_mm,
        spacing=(float(sizes_3[0]), float(sizes_3[1]), float(sizes_3[2])),
        low=_three(low),
        high=_three(high),
        start=_three(corner - low),
    )


def _three(values_3: NDArray[np.int64]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values_3)
    return x, y, z


def pose_values(region: Region, patch: Sequence[int], pose: Pose = UPRIGHT) -> Tensor:
    """Real values of a posed patch in one interpolation, float32 (X, Y, Z) on the region's device.

    A pose that only shifts by whole voxels gives the voxels themselves.
    """
    linear, centre_q = _to_region(region, patch, pose)
    start = _whole_shift(linear, centre_q, patch, pose)
    if start is None:
        grid = _grid(region, linear, centre_q, patch, pose)
        values = _sample(region.stored_XYZ.float() - region.fill, grid, mode="bilinear") + region.fill
    else:
        values = _slice(region.stored_XYZ, start, patch, fill=region.fill).float()
    return real_value(values, region.slope, region.inter)


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
    centre_p = (np.array(patch) - 1) / 2
    points = (region.findings.points_K3 - centre_q) @ np.linalg.inv(linear).T + centre_p
    if pose.elastic_mm_3DHW is not None:
        points = _undisplaced(points, region, patch, pose.elastic_mm_3DHW)
    return replace(region.findings, points_K3=points, mask_XYZ=None if mask is None else mask.cpu().numpy())


def _to_region(region: Region, patch: Sequence[int], pose: Pose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Linear part and the image of the patch's centre, of the map from its voxels to the region's."""
    spacing = np.array(region.spacing)
    centre_p = (np.array(patch) - 1) / 2
    centre_q = centre_p + region.start + np.array(pose.shift) / spacing
    return np.diag(1 / spacing) @ pose.linear @ np.diag(spacing), centre_q


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
    region: Region, linear: NDArray[np.float64], centre: NDArray[np.float64], patch: Sequence[int], pose: Pose
) -> Tensor:
    """Where each voxel of the patch reads, as grid_sample counts: (1, X, Y, Z, 3), last axis first.

    It counts from -1 at the first voxel's centre to 1 at the last one's.
    """
    device = region.stored_XYZ.device
    size_in, size_out = np.array(region.stored_XYZ.shape), np.array(patch)
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
        torch.from_numpy(theta[None].copy()).to(device, exact), [1, 1, *map(int, patch)], align_corners=True
    ).float()
    if pose.elastic_mm_3DHW is not None:
        nodes = torch.from_numpy(pose.elastic_mm_3DHW)[None].to(device)
        moved_13XYZ = F.interpolate(nodes, size=tuple(map(int, patch)), mode="trilinear", align_corners=True)
        to_grid = torch.from_numpy((to_unit[:, None] * linear / np.array(region.spacing)[None])[::-1].copy())
        grid = grid + torch.einsum("ij,bjxyz->bxyzi", to_grid.to(moved_13XYZ), moved_13XYZ)
    return grid


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
        found = points_K3 - moved_mm.reshape(3, -1).T.numpy() / np.array(region.spacing)
    return found


def _sample(source_XYZ: Tensor, grid: Tensor, *, mode: str) -> Tensor:
    """Interpolate an array where a grid says; zero outside."""
    return F.grid_sample(source_XYZ[None, None], grid, mode=mode, padding_mode="zeros", align_corners=True)[0, 0]


def _label_of_value(mask_values: Sequence[int]) -> NDArray[np.uint8]:
    """Lookup from a value of a mask to one more than the index of its label."""
    table = np.zeros(256, dtype=np.uint8)
    for label, value in enumerate(mask_values):
        table[value] = label + 1
    return table
