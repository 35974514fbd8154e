"""What is known of where the places lie: the middle of each in a mask, and marked points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.series import Case
from finetune.targets import label_of_value

REACH_MM = 45.0
"""What lies further from the middle of all places is left out: how far an artery runs up or down is a matter of the
field of view, and of how patient somebody was who drew it."""

AIR_MM = 5.0
"""A head of which an end is in sight has so much of air beyond it."""


def places_of_mask(
    mask_XYZ: NDArray[np.integer[Any]], spacing: Sequence[float], case: Case, mask_values: Sequence[int]
) -> NDArray[np.float64]:
    """Middle of each place of a mask near the middle of all, (P, 3) in mm from the first voxel; NaN where it has none.

    Args:
        mask_XYZ: As its file holds it.
        spacing: Of its voxels in mm.
        case: The series.
        mask_values: The task's value of each place.
    """
    labels_XYZ = label_of_value(case.mask_places or [(value, label) for label, value in enumerate(mask_values)])[
        mask_XYZ
    ]
    voxels_N3 = np.argwhere(labels_XYZ)
    labels_N, at_N3 = labels_XYZ[tuple(voxels_N3.T)] - 1, voxels_N3 * np.asarray(spacing, dtype=np.float64)
    found_P3 = np.full((len(mask_values), 3), np.nan)
    there = [label for label in range(len(mask_values)) if (labels_N == label).any()]
    if not there:
        return found_P3
    # The median of medians: each place counts once, and those that run far do not pull.
    middle_3 = np.median([np.median(at_N3[labels_N == label], axis=0) for label in there], axis=0)
    near_N = np.linalg.norm(at_N3 - middle_3, axis=1) <= REACH_MM
    for label in there:
        own_N = near_N & (labels_N == label)
        if own_N.any():
            found_P3[label] = at_N3[own_N].mean(0)
    return found_P3


def places_of_points(case: Case, origin_mm: NDArray[np.float64], places: int) -> NDArray[np.float64]:
    """Where points of each place lie, (P, 3) in mm from the first voxel; NaN where nobody marked one.

    Args:
        case: The series.
        origin_mm: Of its first voxel, RAS+.
        places: How many there are.
    """
    found_P3 = np.full((places, 3), np.nan)
    for label in {spot.label for spot in case.spots}:
        found_P3[label] = np.mean([spot.xyz_mm for spot in case.spots if spot.label == label], axis=0) - origin_mm
    return found_P3


def shows_outline(case: Case) -> bool:
    """Whether both sides, front, back and vertex of a head are in sight: then its outline says where a box lies."""
    box_32 = np.asarray(case.foreground_box).reshape(3, 2)
    air_32 = np.stack([box_32[:, 0], np.asarray(case.shape) - box_32[:, 1]], 1) * np.asarray(case.spacing)[:, None]
    return bool((air_32[:2] >= AIR_MM).all() and air_32[2, 1] >= AIR_MM)
