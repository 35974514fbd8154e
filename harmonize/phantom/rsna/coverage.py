"""Fields of view beyond the protocols': necks and cut vertices, small and off-centre fields, odd slices, turned heads.

What finds a place in a head must find it in these too. Every site that has or could have an aneurysm stays inside.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.acquisition import CIRCLE_OF_WILLIS_MM, Grid, make_grid, order_of, place_of
from harmonize.phantom.randomness import rotation

MARGIN_MM = 10.0
"""Every aneurysm lies at least this far inside the field of view."""

_AXES = ("LPS", "LPI", "PIL", "AIL", "PIR", "LIP", "RSA", "LIA")
"""Slices across the body, along its sides, and along its front, each in more orders than one."""
_REACH_MM = (((45, 105), (45, 105)), ((50, 130), (50, 110)), ((30, 118), (30, 115)))
"""How far a field of view reaches from the circle of Willis: to the left and right, back and front, down and up. The
least misses half of the brain; downwards the most shows the third vertebra, upwards air above the vertex."""
_TILT_DEG = (20.0, 12.0, 15.0)
"""How far slices are turned about R, A and S at most, either way."""
_TURN_DEG = (18.0, 10.0, 15.0)
"""Likewise the head."""
_STEP_MM = {"CTA": (0.6, 1.25), "MRA": (0.5, 1.0), "MRI T2": (3.0, 5.0), "MRI T1post": (0.8, 1.2)}
"""From slice to slice, where there are as many slices as asked for."""


def turned(pose: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A turn of a head that does not lie straight, about its circle of Willis: (4, 4), scanner mm to scanner mm.

    Args:
        pose: Of the head, template mm to scanner mm.
        rng: Where the chance comes from.
    """
    turn, pivot = np.eye(4), place_of(pose, CIRCLE_OF_WILLIS_MM)
    turn[:3, :3] = rotation(rng.uniform(-np.array(_TURN_DEG), _TURN_DEG))
    turn[:3, 3] = pivot - turn[:3, :3] @ pivot
    return turn


def varied_grid(
    modality: str,
    circle_mm: NDArray[np.float64],
    sites_N3: NDArray[np.float64],
    size: int,
    rng: np.random.Generator,
) -> Grid:
    """A field of view that knows of no protocol.

    Args:
        modality: As ``train.csv`` says it.
        circle_mm: Middle of the circle of Willis in the scanner.
        sites_N3: Where aneurysms are, or would be: inside, whatever is drawn.
        size: Voxels along the largest axis.
        rng: Where the chance comes from.
    """
    axes = str(rng.choice(_AXES))
    tilt = rng.uniform(-np.array(_TILT_DEG), _TILT_DEG)
    reach = np.array([[rng.uniform(*side) for side in axis] for axis in _REACH_MM])
    offsets_N3 = (sites_N3 - circle_mm) @ rotation(tilt)  # in the axes of the slices
    low = np.minimum(-reach[:, 0], offsets_N3.min(0, initial=0) - MARGIN_MM)
    high = np.maximum(reach[:, 1], offsets_N3.max(0, initial=0) + MARGIN_MM)
    extent = (high - low)[order_of(axes)]
    spacing = np.maximum(extent / size, (0.6, 0.6, rng.uniform(*_STEP_MM[modality])))
    return make_grid(
        extent_mm=extent.tolist(),
        spacing_mm=spacing.tolist(),
        centre_mm=circle_mm + rotation(tilt) @ ((low + high) / 2),
        axes=axes,
        tilt_deg=tilt,
    )
