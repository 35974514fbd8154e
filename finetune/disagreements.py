"""Where the labels, the points and the mask of a series do not agree: how often, and what is done about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from finetune.series import Case, Region
from finetune.targets import RADIUS_MM

NO_POINT = "positive place without a point"
NEGATIVE_POINT = "point at a place that is negative"
SHARED_CELL = "points closer than a cell"
OTHER_MASK = "point where the mask says another place"

RULES = {
    NO_POINT: "the labels count; nothing is learned from empty cells, since one of them is none",
    NEGATIVE_POINT: "the labels count; the points say nothing about presence",
    SHARED_CELL: "the cell belongs to the first of them",
    OTHER_MASK: f"the point counts within {RADIUS_MM:g} mm",
}
"""What is done about each, as `finetune.targets` does it."""


def in_tables(cases: Iterable[Case], *, places: int, cell_mm: float) -> Counter[str]:
    """How many series have labels and points that do not agree.

    Args:
        cases: The series.
        places: How many of the labels are places, the first ones.
        cell_mm: Edge of a cell, or 0 where nothing is said by cells.
    """
    return Counter(fault for case in cases for fault in _faults(case, places, cell_mm))


def in_masks(regions: Iterable[Region]) -> Counter[str]:
    """How many series have a point around which the mask names another place first.

    Args:
        regions: Of the series that are kept in memory; others are not read for it.
    """
    return Counter(OTHER_MASK for region in regions if _mask_differs(region))


def lines(found: Counter[str]) -> Iterator[str]:
    """A line for a person about each."""
    for fault, count in sorted(found.items()):
        yield f"{count} series: {fault}; {RULES[fault]}"


def _faults(case: Case, places: int, cell_mm: float) -> Iterator[str]:
    positive = {place for place in range(places) if case.labels[place]}
    pointed = {spot.label for spot in case.spots}
    if positive - pointed:
        yield NO_POINT
    if pointed - positive:
        yield NEGATIVE_POINT
    points_K3 = np.array([spot.xyz_mm for spot in case.spots]).reshape(-1, 3)
    apart_KK = np.abs(points_K3[:, None] - points_K3[None]).max(-1)
    if (apart_KK[np.triu_indices(len(points_K3), 1)] < cell_mm).any():
        yield SHARED_CELL


def _mask_differs(region: Region) -> bool:
    """Whether the mask voxel nearest to a point, within `RADIUS_MM`, names another place."""
    if region.mask_XYZ is None:
        return False
    findings, spacing, mask_XYZ = region.findings, region.spacing, region.mask_XYZ.numpy()
    reach_3 = np.ceil(RADIUS_MM / np.array(spacing)).astype(int)
    for point_3, place in zip(findings.points_K3, findings.places_K, strict=True):
        voxel_3 = np.round(point_3).astype(int)
        low_3 = np.maximum(voxel_3 - reach_3, 0)
        high_3 = np.maximum(voxel_3 + reach_3 + 1, low_3)
        around = mask_XYZ[tuple(map(slice, low_3, high_3))]
        named_M3 = np.argwhere(around)
        if len(named_M3) == 0:
            continue
        distance_mm_M = np.linalg.norm((named_M3 + low_3 - point_3) * np.array(spacing), axis=1)
        nearest = int(distance_mm_M.argmin())
        if distance_mm_M[nearest] <= RADIUS_MM and around[tuple(named_M3[nearest])] != place + 1:
            return True
    return False
