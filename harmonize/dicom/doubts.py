"""Let the geometry of a series answer what single words of its headers raise: is it a scout, is it a mosaic?

A word such as *scout* in a description may name another series ("no scout", "post-topogram"). A scout is known by its
few slices or its several planes, the three planes of an MR scout without any word; slices of their own, at different
places, are no mosaics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from harmonize.dicom.geometry import slice_normal
from harmonize.dicom.grouping import MIN_SLICES, distinct_positions
from harmonize.dicom.headers import Frame
from harmonize.dicom.kinds import LOCALIZER
from harmonize.errors import Reason, Rejection

FULL_MR_SLICES = 10
FULL_MR_STEP_MM = 7.5
"""MR scouts come as small stacks, too: only more slices, and no thicker ones, in a single plane outweigh their name."""

_PARALLEL = 0.996
"""Cosine of 5 degrees: planes that are closer are one."""

_ACROSS = 0.5
"""Cosine of 60 degrees: planes of a scout cut each other at no less, also where they are oblique."""


def settle_doubts(frames: Sequence[Frame]) -> list[Frame]:
    """Reject the pictures of a series whose doubt the geometry confirms; the others keep it, and it rejects nothing.

    Args:
        frames: All pictures with one SeriesInstanceUID.

    Returns:
        The pictures in the same order.
    """
    by_kind: dict[tuple[str, Rejection], list[Frame]] = defaultdict(list)
    for frame in frames:
        if frame.doubt and (frame.rejection is None or frame.rejection.reason is Reason.DERIVED):
            by_kind[frame.header.modality, frame.doubt].append(frame)
    confirmed: set[int] = set()
    for doubted in by_kind.values():
        full = {id(frame) for frame in _full_stacks(doubted)}
        confirmed |= {id(frame) for frame in doubted if id(frame) not in full}
    settled = [replace(frame, rejection=frame.doubt) if id(frame) in confirmed else frame for frame in frames]
    wordless = {id(frame) for frame in _three_planes(settled)}
    return [replace(frame, rejection=LOCALIZER) if id(frame) in wordless else frame for frame in settled]


def _three_planes(frames: Sequence[Frame]) -> list[Frame]:
    """The MR pictures of one series number that lie in three planes across each other, in few slices each."""
    numbers: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        if frame.header.modality == "MR" and frame.rejection is None:
            numbers[frame.traits.get("series", "")].append(frame)
    found: list[Frame] = []
    for own in numbers.values():
        planes = _planes(own)
        if len(planes) < 3 or any(_places(plane) >= FULL_MR_SLICES for plane in planes):
            continue
        normals = [slice_normal(plane[0].orientation) for plane in planes]
        if any(max(abs(a @ b), abs(b @ c), abs(c @ a)) <= _ACROSS for a, b, c in combinations(normals, 3)):
            found += own
    return found


def _full_stacks(doubted: Sequence[Frame]) -> list[Frame]:
    """Those of pictures with the same doubt that lie in full stacks of parallel slices."""
    planes = _planes(doubted)
    if doubted[0].header.modality == "MR" and doubted[0].doubt and doubted[0].doubt.reason is Reason.LOCALIZER:
        return [] if len(planes) > 1 else [frame for plane in planes if _is_full_mr(plane) for frame in plane]
    return [frame for plane in planes if _places(plane) >= MIN_SLICES for frame in plane]


def _planes(frames: Sequence[Frame]) -> list[list[Frame]]:
    planes: list[tuple[np.ndarray, list[Frame]]] = []
    for frame in frames:
        try:
            normal = slice_normal(frame.orientation)
        except Rejection:
            continue
        if len(frame.position) != 3 or not np.isfinite(frame.position).all():
            continue
        for other, plane in planes:
            if abs(normal @ other) >= _PARALLEL:
                plane.append(frame)
                break
        else:
            planes.append((normal, [frame]))
    return [_sorted(normal, plane) for normal, plane in planes]


def _sorted(normal: np.ndarray, plane: Sequence[Frame]) -> list[Frame]:
    offsets = (np.array([frame.position for frame in plane]) @ normal).tolist()
    return [plane[i] for i in sorted(range(len(plane)), key=offsets.__getitem__)]


def _places(plane: Sequence[Frame]) -> int:
    return int(distinct_positions(plane)[-1]) + 1


def _is_full_mr(plane: Sequence[Frame]) -> bool:
    places = _places(plane)
    extent = np.linalg.norm(np.subtract(plane[-1].position, plane[0].position))
    return places >= FULL_MR_SLICES and bool(extent <= FULL_MR_STEP_MM * (places - 1))
