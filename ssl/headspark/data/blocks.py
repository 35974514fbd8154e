"""Which blocks of a patch hold what is marked in the crop that the patch is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPARSE_STEP = 4
"""Of a lattice of voxels that stands for a whole crop where only a block's share counts."""


def marked_in_blocks(
    marked_XYZ: NDArray[np.bool_], *, patch: int, block: int, matrix: NDArray[np.float64] | None
) -> NDArray[np.int_]:
    """Count the marked voxels of a crop in each block of the patch.

    Args:
        marked_XYZ: bool, the crop; a cube, as large as the patch or larger.
        patch: Edge of the patch in voxels.
        block: Edge of a block in voxels.
        matrix: Offsets in the patch to offsets in the crop, both from the middle, as of `headspark.data.augment`; None:
            the patch lies in the middle of the crop as it is.

    Returns:
        Shape (d, h, w). Of a magnified patch fewer than its voxels, as many as the crop's.

    Example:
        >>> marked = np.zeros((4, 4, 4), bool)
        >>> marked[0, 0, 2:] = True
        >>> marked_in_blocks(marked, patch=4, block=2, matrix=None)[0].tolist()
        [[0, 2], [0, 0]]
    """
    size, cells = marked_XYZ.shape[0], patch // block
    if matrix is None and size == patch:
        return marked_XYZ.reshape(cells, block, cells, block, cells, block).sum((1, 3, 5))
    offset_N3 = np.argwhere(marked_XYZ) - (size - 1) / 2
    if matrix is not None:
        offset_N3 = offset_N3 @ np.linalg.inv(matrix).T
    place_N3 = np.floor((offset_N3 + patch / 2) / block).astype(np.int64)
    place_N3 = place_N3[((place_N3 >= 0) & (place_N3 < cells)).all(1)]
    return np.bincount(np.ravel_multi_index(tuple(place_N3.T), (cells,) * 3), minlength=cells**3).reshape((cells,) * 3)


def thinned(marked_XYZ: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Every `SPARSE_STEP`-th voxel along each axis of what is marked: where a block has any, at a 64th of the cost."""
    thin_XYZ = np.zeros_like(marked_XYZ)
    lattice = (slice(SPARSE_STEP // 2, None, SPARSE_STEP),) * 3
    thin_XYZ[lattice] = marked_XYZ[lattice]
    return thin_XYZ
