"""Where the circle of Willis lies in a head, told by the head's outline alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CIRCLE_BELOW_VERTEX_MM = 100.0
"""About how deep the circle of Willis lies under the skin of the vertex in an adult: the brain reaches 74 mm above the
plane of the commissures (Talairach and Tournoux 1988), skull and scalp add a good 10 mm, the circle lies some 15 mm
below that plane."""


def first_voxel(
    foreground_23: NDArray[np.float64], spacing_3: NDArray[np.float64], size_3: NDArray[np.int64]
) -> NDArray[np.int64]:
    """First voxel of a box around the circle of Willis.

    The box is centred on the head from left to right and from front to back. From top to bottom it is centred too, but
    never deeper below the vertex than the circle lies: a CTA may reach down to the aortic arch. A box that was laid so
    is laid in the same place again by the head's part in it.

    Args:
        foreground_23: First and one more than the last voxel of the head along R, A and S; fractions are fine.
        spacing_3: Voxel size in mm.
        size_3: Of the box, in voxels.

    Returns:
        (3,), negative where the box sticks out.

    Example:
        A head of 150 x 180 mm whose neck reaches 250 mm below the vertex, and a box of 112 mm:

        >>> head = np.array([[10.0, 10.0, 0.0], [160.0, 190.0, 250.0]])
        >>> first_voxel(head, np.ones(3), np.array([112, 112, 112])).tolist()
        [29, 44, 94]
    """
    middle_3 = foreground_23.mean(0)
    middle_3[2] = max(middle_3[2], foreground_23[1, 2] - CIRCLE_BELOW_VERTEX_MM / spacing_3[2])
    return np.rint(middle_3 - size_3 / 2).astype(np.int64)
