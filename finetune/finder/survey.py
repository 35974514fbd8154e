"""A coarse look at a whole scan: few voxels of several mm, and where none were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from harmonize.scan import AIR_HU, HU
from harmonize.voxels.circle import first_voxel
from harmonize.voxels.stored import StoredVolume
from headspark.channels import to_network_input

SPACING_MM = 8.0
SHAPE = (32, 36, 36)
"""256 x 288 x 288 mm around the middle of a head, or around the depth where an adult's circle of Willis lies."""

WINDOWS = ("brain", "bone", "vessel")
CHANNELS = len(WINDOWS) + 1
"""The windows of a CT, an MRI in each of them, and what was measured: outside of the field of view is no air."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A scan in voxels of several mm, means of the scan's.

    Attributes:
        values_XYZ: float32, real values.
        first_mm: Middle of its first voxel, in mm from that of the scan.
        spacing: Of its voxels in mm.
        anchor_mm: Where the middle of what the network looks at lies, likewise.
        unit: Of the values.
        extent_mm: Of the scan, from the middle of its first voxel to that of its last.
    """

    values_XYZ: Tensor
    first_mm: tuple[float, float, float]
    spacing: tuple[float, float, float]
    anchor_mm: tuple[float, float, float]
    unit: str
    extent_mm: tuple[float, float, float]


def fixed_centre_mm(spacing: Sequence[float], foreground_box: Sequence[int]) -> tuple[float, float, float]:
    """Where the head's outline alone lays the middle of a box, in mm from the middle of a scan's first voxel.

    Args:
        spacing: Of the scan's voxels.
        foreground_box: Half-open voxel bounds x0, x1, y0, y1, z0, z1 of the head.

    Example:
        >>> fixed_centre_mm([1.0, 1.0, 1.0], [10, 160, 10, 190, 0, 250])
        (84.5, 99.5, 149.5)
    """
    sizes_3 = np.asarray(spacing, dtype=np.float64)
    box_23 = np.asarray(foreground_box, dtype=np.float64).reshape(3, 2).T
    even_3 = np.array([2, 2, 2])  # the middle of a box of two voxels lies between them
    middle_3 = first_voxel(box_23, sizes_3, even_3) + even_3 / 2 - 0.5
    x, y, z = (float(mm) for mm in middle_3 * sizes_3)
    return x, y, z


def survey_of(
    volume: StoredVolume, *, unit: str, foreground_box: Sequence[int], spacing_mm: float = SPACING_MM
) -> Survey:
    """Look at a harmonized scan.

    Args:
        volume: RAS, axis-aligned, int16.
        unit: Of its real values.
        foreground_box: Half-open voxel bounds of the head.
        spacing_mm: Of the voxels that are looked at, at most, where the scan's own are no larger.
    """
    spacing_3 = np.asarray(volume.spacing, dtype=np.float64)
    factors = [max(1, math.floor(spacing_mm / mm + 1e-3)) for mm in spacing_3]
    stored = torch.from_numpy(np.ascontiguousarray(volume.stored_XYZ)).float()
    coarse = F.avg_pool3d(stored[None, None], factors, ceil_mode=True, count_include_pad=False)[0, 0]
    factors_3, edges_3 = np.array(factors), np.array(volume.stored_XYZ.shape)
    return Survey(
        values_XYZ=coarse * volume.slope + volume.inter,
        first_mm=_three((factors_3 - 1) / 2 * spacing_3),
        spacing=_three(factors_3 * spacing_3),
        anchor_mm=fixed_centre_mm(volume.spacing, foreground_box),
        unit=unit,
        extent_mm=_three((edges_3 - 1) * spacing_3),
    )


def look(
    survey: Survey,
    linear: NDArray[np.float64] | None = None,
    shift_mm: Sequence[float] = (0.0, 0.0, 0.0),
    cut_mm: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """What the network sees of a scan: `CHANNELS` x `SHAPE`.

    A voxel that lies d mm from the middle shows the place ``linear @ d + anchor + shift``.

    Args:
        survey: Of the scan.
        linear: (3, 3); None: upright.
        shift_mm: Of the middle.
        cut_mm: First and last place along each axis, in mm from the middle of the scan's first voxel, of a smaller
            field of view; None: all of it.
    """
    matrix = np.eye(3) if linear is None else linear
    size_3, spacing_3 = np.array(survey.values_XYZ.shape), np.asarray(survey.spacing)
    to_unit_3 = 2 / np.maximum(size_3 - 1, 1)
    centre_3 = (np.asarray(survey.anchor_mm) + shift_mm - survey.first_mm) / spacing_3
    half_3 = (np.array(SHAPE) - 1) / 2 * SPACING_MM
    theta = np.concatenate(
        [to_unit_3[:, None] / spacing_3[:, None] * matrix * half_3, (to_unit_3 * centre_3 - 1)[:, None]], axis=1
    )
    theta = np.concatenate([theta[::-1, 2::-1], theta[::-1, 3:]], axis=1)
    grid = F.affine_grid(torch.from_numpy(theta[None].copy()), [1, 1, *SHAPE], align_corners=True).float()
    inside = torch.ones_like(survey.values_XYZ)
    if cut_mm is not None:
        for axis, (low, high) in enumerate(cut_mm):
            at_mm = torch.arange(size_3[axis]) * spacing_3[axis] + survey.first_mm[axis]
            kept = ((at_mm >= low) & (at_mm <= high)).float()
            inside = inside * kept.view([-1 if axis == other else 1 for other in range(3)])
    fill = AIR_HU if survey.unit == HU else float(survey.values_XYZ.min())
    both = torch.stack([(survey.values_XYZ - fill) * inside, inside])[None]
    values, measured = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]
    return torch.cat([to_network_input(values + fill, survey.unit, WINDOWS), measured[None]])


def _three(values_3: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values_3)
    return x, y, z
