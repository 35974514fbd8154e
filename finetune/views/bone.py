"""Which voxels of a CT are bone: dense enough, and of a shape that no artery has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CORTICAL_HU = 600.0
"""Denser than contrast in an artery, which has 200 to 500 HU."""

MARROW_HU = 150.0
"""Bone has at least as much, marrow and voxels at its edge too."""

CLOSED_MM = 2.5
"""Half of the gap between two dense layers that is taken for marrow: that of the skull's."""

RIM_MM = 1.0
"""How far beyond dense bone its blurred edge reaches."""

SPECK_MM, SPECK_SHARE = 6.0, 0.08
"""Dense voxels that fill less than this share of a cube around them are a calcified wall or a clip, not bone."""


def bone_of(hu_XYZ: Tensor, spacing: Sequence[float]) -> Tensor:
    """Bone of a CT, bool of the same shape; what lies outside is unknown, so `reach` slices at the ends are doubtful.

    Dense voxels, but for specks, are closed over gaps of marrow, and take in their blurred edge.

    Args:
        hu_XYZ: HU.
        spacing: Of the voxels in mm.
    """
    dense = (hu_XYZ > CORTICAL_HU).float()[None, None]
    share = dense
    for kernel in _lines(spacing, SPECK_MM / 2):
        padding = [edge // 2 for edge in kernel]
        share = F.avg_pool3d(share, kernel, stride=1, padding=padding, count_include_pad=False)
    dense = dense * (share >= SPECK_SHARE)
    closed = -_dilated(-_dilated(dense, spacing, CLOSED_MM), spacing, CLOSED_MM)
    rim = torch.maximum(closed, _dilated(dense, spacing, RIM_MM))[0, 0] > 0
    return rim & (hu_XYZ > MARROW_HU)


def reach(mm: float) -> int:
    """How many slices of so many mm around a voxel decide whether it is bone."""
    return _voxels(SPECK_MM / 2, mm) + 2 * _voxels(CLOSED_MM, mm)


def _dilated(x_11XYZ: Tensor, spacing: Sequence[float], mm: float) -> Tensor:
    """The maximum over a cube, one axis after the other."""
    for kernel in _lines(spacing, mm):
        x_11XYZ = F.max_pool3d(x_11XYZ, kernel, stride=1, padding=[edge // 2 for edge in kernel])
    return x_11XYZ


def _lines(spacing: Sequence[float], mm: float) -> Iterator[list[int]]:
    """Kernels along each axis, which one after the other make a cube that reaches so far from its middle."""
    for axis, size in enumerate(spacing):
        kernel = [1, 1, 1]
        kernel[axis] = 2 * _voxels(mm, size) + 1
        yield kernel


def _voxels(mm: float, size: float) -> int:
    return max(1, round(mm / size))
