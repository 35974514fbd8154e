"""The part of a head that the network sees: a box of fixed size around the circle of Willis, in any pose.

The box is centred on the foreground from left to right and from front to back. From top to bottom it is centred too,
but never deeper below the vertex than the circle of Willis lies: a CTA may reach down to the aortic arch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from finetune.tasks.aneurysm import Case
from harmonize.errors import UserError
from harmonize.labels import LOCATIONS, MASK_VALUES, MIRRORED, in_order
from harmonize.scan import AIR_HU, HU, UNANNOTATED, Annotations
from harmonize.voxels.affines import turns
from harmonize.voxels.grids import target_grid
from harmonize.voxels.spatial import resample, resample_labels
from harmonize.voxels.stored import INT16, StoredVolume, real_value, stored_value
from headspark.config.checks import require
from headspark.data import augment
from headspark.data.augment import Scale
from headspark.data.stores import read_corpus_file

MARGIN = 1.2
"""Edge of the region that is kept in memory over that of the patch: room for rotation, scaling and shifts."""

CIRCLE_BELOW_VERTEX_MM = 100.0
"""About how deep the circle of Willis lies under the skin of the vertex in an adult: the brain reaches 74 mm above the
plane of the commissures (Talairach and Tournoux 1988), skull and scalp add a good 10 mm, the circle lies some 15 mm
below that plane."""

SAME_SPACING_MM = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig(augment.AugmentConfig):
    """How training patches are varied: as in pretraining, and shifted. Mirroring swaps sides in labels and vessels too.

    Attributes:
        shift: Largest shift along each axis, in mm.
    """

    rotate: float = 10.0
    scale: Scale = 0.1
    shift: float = 6.0
    contrast: float = 0.1
    brightness: float = 0.1
    noise: float = 0.05

    def __post_init__(self) -> None:
        augment.AugmentConfig.__post_init__(self)
        require(self.shift >= 0, f"augment.shift {self.shift}: must be 0 or more")

    @classmethod
    def upgrade(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The section of a recipe with today's keys: version 0.1.0 called `mirror` ``flip``."""
        return {
            "mirror" if name == "flip" and "mirror" not in values else name: value for name, value in values.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is known about a series, in the voxels of a region or a patch.

    Attributes:
        points_K3: Aneurysms, as indices of voxels.
        places_K: Index of each aneurysm's location in `LOCATIONS`.
        vessels_XYZ: uint8, 0 for none, else one more than the index of the location; None without a mask.
        labels_14: 0 or 1, columns as `LABELS`.
        points_complete: False where a localizer of the series could not be used, or lies outside of the volume.
    """

    points_K3: NDArray[np.float64]
    places_K: NDArray[np.int64]
    vessels_XYZ: NDArray[np.uint8] | None
    labels_14: NDArray[np.int64]
    points_complete: bool = True

    def mirrored(self) -> Findings:
        """The same with left and right swapped in the names of places, but for where they lie."""
        other = np.array(MIRRORED)
        vessels_XYZ = self.vessels_XYZ
        if vessels_XYZ is not None:
            vessels_XYZ = np.array([0, *(other[:-1] + 1)], dtype=np.uint8)[vessels_XYZ]
        return replace(self, places_K=other[self.places_K], labels_14=self.labels_14[other], vessels_XYZ=vessels_XYZ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """What is kept in memory of one series: the patch in its upright pose, with a margin.

    Attributes:
        volume: int16.
        fill: Stored value outside of the field of view.
        unit: Of the real values.
        start: Index of the patch's first voxel in the volume; negative where the patch sticks out.
        findings: In the volume's voxels.
    """

    volume: StoredVolume
    fill: float
    unit: str
    start: tuple[int, int, int]
    findings: Findings

    @property
    def nbytes(self) -> int:
        """Memory that the voxels take."""
        vessels = self.findings.vessels_XYZ
        return self.volume.stored_XYZ.nbytes + (0 if vessels is None else vessels.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """How a patch lies in its region: voxel p maps to ``linear @ (p - centre) + centre + shift`` in mm.

    Attributes:
        linear: (3, 3); a mirrored pose has a negative determinant.
        shift: mm.
    """

    linear: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def mirrored(self) -> bool:
        """Whether left and right are swapped."""
        return bool(np.linalg.det(self.linear) < 0)


UPRIGHT = Pose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A posed patch with everything known about it, sides already swapped if it is mirrored.

    Attributes:
        values_XYZ: Real values, float32.
        unit: Of the values.
        findings: In the patch's voxels; some points may lie outside.
    """

    values_XYZ: Tensor
    unit: str
    findings: Findings


def load_region(case: Case, patch: Sequence[int], *, spacing: float | None) -> Region:
    """Read a series of the corpus and keep what a patch can need; arguments as for `cut_region`.

    Raises:
        UserError: A file is gone or damaged; names the series.
    """
    volume = read_corpus_file(case.image, scan_id=case.scan_id, shape=case.shape)
    vessels = None
    if case.vessels is not None:
        shape = volume.stored_XYZ.shape[:3]
        vessels = read_corpus_file(case.vessels, scan_id=case.scan_id, shape=shape)
    return cut_region(
        volume,
        patch,
        spacing=spacing,
        unit=case.unit,
        foreground_box=case.foreground_box,
        vessels=vessels,
        annotations=case.annotations,
        points_complete=case.points_complete,
    )


def cut_region(
    volume: StoredVolume,
    patch: Sequence[int],
    *,
    spacing: float | None,
    unit: str,
    foreground_box: Sequence[int],
    vessels: StoredVolume | None = None,
    annotations: Annotations = UNANNOTATED,
    points_complete: bool = True,
) -> Region:
    """Cut the region around the patch out of a harmonized volume, resampled where another spacing is asked for.

    Args:
        volume: RAS, axis-aligned, int16.
        patch: Size of the patch in voxels.
        spacing: Voxel size of the patch in mm; None takes the volume's.
        unit: Of the volume's real values.
        foreground_box: Half-open voxel bounds x0, x1, y0, y1, z0, z1 of the head.
        vessels: Mask on the same grid, values as in `MASK_VALUES`.
        annotations: Labels and points; without labels there is no aneurysm.
        points_complete: False where a localizer could not be used.

    Returns:
        The region.

    Raises:
        UserError: If the corpus stores baked CT windows instead of HU.
    """
    if volume.stored_XYZ.ndim != 3:
        raise UserError(
            "this corpus stores baked CT windows; fine-tuning cuts its own: harmonize without --bake-windows"
        )
    box_23 = np.asarray(foreground_box, dtype=np.float64).reshape(3, 2).T
    stored, affine = volume.stored_XYZ, volume.affine
    mask = None if vessels is None else vessels.stored_XYZ.astype(np.uint8, copy=False)
    sizes_mm = np.diag(affine)[:3]
    if spacing is not None and np.abs(sizes_mm - spacing).max() > SAME_SPACING_MM:
        grid = target_grid(stored.shape, affine, (spacing,) * 3)
        values = resample(volume.values(), affine, grid).astype(np.float32, copy=False)
        rounded = np.rint(stored_value(values, volume.slope, volume.inter))
        stored = np.clip(rounded, INT16.min, INT16.max).astype(np.int16)
        mask = None if mask is None else resample_labels(mask, affine, grid)
        edges_mm = (box_23 - 0.5) * sizes_mm + affine[:3, 3]
        affine, sizes_mm = grid.affine, np.full(3, spacing)
        box_23 = (edges_mm - affine[:3, 3]) / sizes_mm + 0.5
    size = np.array(patch)
    corner = _corner(box_23, sizes_mm, size)
    margin = np.ceil(size * (MARGIN - 1) / 2).astype(int)
    low = np.clip(corner - margin, 0, np.array(stored.shape) - 1)
    high = np.clip(corner + size + margin, low + 1, stored.shape)
    start = corner - low
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    points = annotations.points
    points_K3 = np.array([point.xyz_mm for point in points], dtype=np.float64).reshape(-1, 3)
    points_K3 = (points_K3 - affine[:3, 3]) / sizes_mm
    within_K3 = (points_K3 >= -0.5) & (points_K3 < np.array(stored.shape) - 0.5)
    cut_affine = np.diag([*sizes_mm, 1.0])
    cut_affine[:3, 3] = affine[:3, 3] + low * sizes_mm
    return Region(
        volume=replace(volume, stored_XYZ=np.ascontiguousarray(stored[inside]), affine=cut_affine),
        fill=float(AIR_HU) if unit == HU else float(stored.min()),
        unit=unit,
        start=(int(start[0]), int(start[1]), int(start[2])),
        findings=Findings(
            points_K3=points_K3 - low,
            places_K=np.array([LOCATIONS.index(point.label) for point in points], dtype=np.int64),
            vessels_XYZ=None if mask is None else _place_of_value()[mask[inside]],
            labels_14=np.array(in_order(annotations.labels), dtype=np.int64),
            points_complete=points_complete and bool(within_K3.all()),
        ),
    )


def draw_pose(config: AugmentConfig, generator: np.random.Generator) -> Pose:
    """A random pose."""
    about_x, about_y, about_z = turns(np.radians(generator.uniform(-1, 1, 3) * config.rotate))
    magnification = augment.draw_magnification(generator, config.scale)
    shift = generator.uniform(-1, 1, 3) * config.shift
    side = -1.0 if generator.random() < config.mirror else 1.0
    linear = about_z @ about_y @ about_x @ np.diag([side, 1.0, 1.0]) / magnification
    return Pose(linear=linear, shift=(float(shift[0]), float(shift[1]), float(shift[2])))


def pose_patch(region: Region, patch: Sequence[int], pose: Pose = UPRIGHT) -> Patch:
    """Cut a patch in one interpolation; a mirrored pose swaps the sides of labels, points and vessels.

    Args:
        region: From `cut_region`.
        patch: Size in voxels.
        pose: Upright gives the voxels of the corpus.

    Returns:
        The patch.
    """
    spacing = np.array(region.volume.spacing)
    centre_p = (np.array(patch) - 1) / 2
    centre_q = centre_p + region.start + np.array(pose.shift) / spacing
    linear = np.diag(1 / spacing) @ pose.linear @ np.diag(spacing)
    stored = torch.from_numpy(region.volume.stored_XYZ).float()
    values = _sample(stored - region.fill, linear, centre_q, patch, mode="bilinear")
    values = real_value(values + region.fill, region.volume.slope, region.volume.inter)
    vessels = region.findings.vessels_XYZ
    if vessels is not None:
        mask = torch.from_numpy(vessels).float()
        vessels = _sample(mask, linear, centre_q, patch, mode="nearest").to(torch.uint8).numpy()
    points = (region.findings.points_K3 - centre_q) @ np.linalg.inv(linear).T + centre_p
    findings = replace(region.findings, points_K3=points, vessels_XYZ=vessels)
    return Patch(values_XYZ=values, unit=region.unit, findings=findings.mirrored() if pose.mirrored else findings)


def vary_intensity(x_CDHW: Tensor, config: AugmentConfig, generator: np.random.Generator) -> Tensor:
    """Random contrast, brightness and noise on the network's input."""
    contrast = 1 + generator.uniform(-1, 1) * config.contrast
    brightness = generator.uniform(-1, 1) * config.brightness
    deviation = generator.uniform(0, 1) * config.noise
    varied = x_CDHW * contrast + brightness
    if deviation > 0:
        varied = varied + torch.from_numpy(generator.standard_normal(x_CDHW.shape, dtype=np.float32)) * deviation
    return varied


def _corner(
    box_23: NDArray[np.float64], sizes_mm: NDArray[np.float64], patch_3: NDArray[np.int64]
) -> NDArray[np.int64]:
    """First voxel of the patch."""
    middle = box_23.mean(0)
    middle[2] = max(middle[2], box_23[1, 2] - CIRCLE_BELOW_VERTEX_MM / sizes_mm[2])
    return np.rint(middle - patch_3 / 2).astype(np.int64)


def _place_of_value() -> NDArray[np.uint8]:
    """Lookup from a value of the competition's vessel masks to one more than the location's index."""
    table = np.zeros(256, dtype=np.uint8)
    for place, value in enumerate(MASK_VALUES):
        table[value] = place + 1
    return table


def _sample(
    source_XYZ: Tensor, linear: NDArray[np.float64], centre: NDArray[np.float64], patch: Sequence[int], *, mode: str
) -> Tensor:
    """Interpolate ``source[linear @ (p - patch centre) + centre]`` for every voxel p of the patch; zero outside."""
    size_in, size_out = np.array(source_XYZ.shape), np.array(patch)
    # grid_sample counts from -1 at the first voxel's centre to 1 at the last one's, with the last axis first.
    to_unit = 2 / np.maximum(size_in - 1, 1)
    theta = np.concatenate(
        [
            to_unit[:, None] * linear * ((size_out - 1) / 2)[None],
            (to_unit * centre - 1)[:, None],
        ],
        axis=1,
    )
    theta = np.concatenate([theta[::-1, 2::-1], theta[::-1, 3:]], axis=1)
    grid = F.affine_grid(torch.from_numpy(theta[None].copy()), [1, 1, *map(int, patch)], align_corners=True).float()
    return F.grid_sample(source_XYZ[None, None], grid, mode=mode, padding_mode="zeros", align_corners=True)[0, 0]
