"""What is assumed of a multi-frame file that lost the geometry of its frames, before its pixels are seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harmonize.dicom.elements import Elements
from harmonize.dicom.geometry import is_plausible_step, slice_normal, straighten
from harmonize.errors import Rejection

ASSUMED_FIELD_OF_VIEW_MM = 220.0
"""Width of a head scan where a multi-frame file came without any geometry (a common choice for head MR and CTA)."""
ASSUMED_STEP_MM = 1.0
"""Slice step in the same case, if neither SpacingBetweenSlices nor SliceThickness is there."""

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
AS_AXIAL = "taken as axial, in frame order"
NO_STEP = f"slices taken to be {ASSUMED_STEP_MM:g} mm apart, since no element says"


def assumed_place(elements: Elements) -> tuple[NDArray[np.float64], tuple[float, ...], str]:
    """Where the first frame lies and how it is turned, as far as the header says: (LPS mm, cosines, in words)."""
    position, orientation = elements.numbers(0x00200032), straighten(elements.numbers(0x00200037))
    try:
        slice_normal(orientation)
    except Rejection:
        return np.zeros(3), AXIAL, AS_AXIAL
    start = np.array(position if len(position) == 3 and np.isfinite(position).all() else (0.0, 0.0, 0.0))
    return start, orientation, "taken in frame order, along the normal of its one orientation"


def assumed_step(elements: Elements) -> tuple[float, str]:
    """The distance of slices without positions, mm, and where it comes from: what cannot be true is passed over.

    A negative spacing is a distance, too: writers tell by its sign in which direction slices follow each other.
    """
    steps = (abs(elements.number(0x00180088)), "SpacingBetweenSlices"), (elements.number(0x00180050), "SliceThickness")
    for step, name in steps:
        if is_plausible_step(step):
            return step, f"slices as far apart as {name} says"
    return ASSUMED_STEP_MM, NO_STEP
