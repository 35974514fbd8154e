"""Which voxels of a CT are bone: dense enough, and of a shape that no artery has."""

from __future__ import annotations

from collections.abc import Sequence

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

COARSEST_MM = 1.0
"""Voxels of which shapes of some millimetres are told as well as of finer ones, at an eighth of the cost."""

RULES = (CORTICAL_HU, MARROW_HU, CLOSED_MM, RIM_MM, SPECK_MM, SPECK_SHARE, COARSEST_MM)
"""All that decides what is bone, for caches that keep what was found."""


def bone_of(hu_XYZ: Tensor, spacing: Sequence[float]) -> Tensor:
    """Bone of a CT, bool of the same shape.

    Dense voxels, but for specks, are closed over gaps of marrow, and take in their blurred edge. Density and edge are
    those of each voxel, shapes are looked at in voxels of up to `COARSEST_MM`.

    Args:
        hu_XYZ: HU, of any type.
        spacing: Of the voxels in mm.
    """
    factors = coarsening(spacing)
    coarse_mm = [factor * mm for factor, mm in zip(factors, spacing, strict=True)]
    dense = hu_XYZ > CORTICAL_HU
    filled = block_means(dense, factors)
    share = filled
    for axis, mm in enumerate(coarse_mm):
        share = _line_means(share, axis, _voxels(SPECK_MM / 2, mm))
    solid = share >= SPECK_SHARE
    closed = ~dilated(~dilated((filled > 0) & solid, coarse_mm, CLOSED_MM), coarse_mm, CLOSED_MM)
    dense &= _finer(solid, factors, dense.shape)
    edged = dilated(dense, spacing, RIM_MM)
    edged |= _finer(closed, factors, dense.shape)
    edged &= hu_XYZ > MARROW_HU
    return edged


def coarsening(spacing: Sequence[float]) -> list[int]:
    """How many voxels along each axis make one of up to `COARSEST_MM`.

    Example:
        >>> coarsening((0.5, 0.4, 2.0))
        [2, 2, 1]
    """
    return [max(1, int(COARSEST_MM / mm + 1e-6)) for mm in spacing]


def block_means(values_XYZ: Tensor, factors: Sequence[int]) -> Tensor:
    """Means over blocks of so many voxels along each axis, float32; blocks at the ends may be smaller."""
    return F.avg_pool3d(values_XYZ.float()[None, None], list(factors), ceil_mode=True)[0, 0]


def dilated(marked_XYZ: Tensor, spacing: Sequence[float], mm: float) -> Tensor:
    """Whether anything is marked in a cube that reaches so far from its middle; bool.

    Args:
        marked_XYZ: bool.
        spacing: Of the voxels in mm.
        mm: Half of the cube's edge, which is one voxel at least.
    """
    for axis, size in enumerate(spacing):
        reach = _voxels(mm, size)
        marked_XYZ = _any_along(marked_XYZ, axis, reach)
    return marked_XYZ


def _any_along(marked_XYZ: Tensor, axis: int, reach: int) -> Tensor:
    """Whether anything is marked up to `reach` voxels before or after, along an axis.

    A window of twice the width is two that lie side by side: a few steps, however wide it is.
    """
    edge, width = marked_XYZ.shape[axis], 2 * reach + 1
    sides = [0] * 6
    sides[4 - 2 * axis : 6 - 2 * axis] = [reach, reach]
    found, have = F.pad(marked_XYZ, sides), 1
    while have < width:
        step = min(have, width - have)
        longer = found.shape[axis] - step
        found = found.narrow(axis, 0, longer) | found.narrow(axis, step, longer)
        have += step
    return found.narrow(axis, 0, edge)


def _line_means(values_XYZ: Tensor, axis: int, reach: int) -> Tensor:
    """Means over lines along an axis, up to `reach` voxels before and after, of those that there are."""
    kernel = [1, 1, 1]
    kernel[axis] = 2 * reach + 1
    padding = [edge // 2 for edge in kernel]
    return F.avg_pool3d(values_XYZ[None, None], kernel, stride=1, padding=padding, count_include_pad=False)[0, 0]


def _finer(values_xyz: Tensor, factors: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Each value for all voxels of its block."""
    for axis, (factor, edge) in enumerate(zip(factors, shape, strict=True)):
        if factor > 1:
            values_xyz = values_xyz.repeat_interleave(factor, axis).narrow(axis, 0, edge)
    return values_xyz


def _voxels(mm: float, size: float) -> int:
    return max(1, round(mm / size))
