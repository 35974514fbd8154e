"""What affines say: the size of voxels, and the turns about each axis."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def voxel_spacing(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths of the voxel axes in mm, shape (3,).

    Args:
        affine: (4, 4), voxel index to mm; may be oblique or sheared.

    Example:
        >>> voxel_spacing(np.diag([-0.5, 0.5, 2.0, 1.0])).tolist()
        [0.5, 0.5, 2.0]
    """
    return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def axis_spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """`voxel_spacing` as plain numbers, for manifests and messages."""
    x, y, z = voxel_spacing(affine).tolist()
    return x, y, z


def turns(angles: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rotation matrices (3, 3) about x, about y and about z, for whoever multiplies them in the order it needs.

    Args:
        angles: One an axis, in radians.

    Example:
        >>> about_x, about_y, about_z = turns((0.0, 0.0, np.pi / 2))
        >>> (about_z @ about_y @ about_x @ (1.0, 0.0, 0.0)).round().tolist()
        [0.0, 1.0, 0.0]
    """
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_x, about_y, about_z
