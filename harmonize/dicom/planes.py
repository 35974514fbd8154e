"""The pictures of a series that are slices of one orientation, size and pixel spacing.

Headers round the orientation and the spacing, some in a few slices alone; such slices belong to the others if they lie
between them in one step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from harmonize.dicom.geometry import SAME_POSITION_MM, fit_stack, slice_normal
from harmonize.dicom.headers import Frame
from harmonize.errors import Rejection

ORIENTATION_TOLERANCE = 5e-4
"""Direction cosines that differ less belong to one orientation: 0.12 mm at the edge of a 250 mm picture."""

SPACING_TOLERANCE = 1e-4
"""Relative; headers round the same spacing differently from slice to slice."""

ROUNDED_ORIENTATION = 6e-3
"""Direction cosines that differ by less may be one orientation, rounded to two decimals in some slices."""

ROUNDED_SPACING = 0.02
"""Relative; the same of spacings that are rounded to two decimals, 0.25 mm and more."""

MOST_TRIED = 20
"""Groups that one group is laid between, the largest first; rounding makes few."""

MOST_DIGITS = 6
"""Digits behind the point; numbers with more are not looked at as rounded."""

LEAST_OF_COSINES, LEAST_OF_SPACINGS = 2, 1
"""Digits that numbers are rounded to at least: 1 and 0 are direction cosines of two decimals, too."""

EVEN, MAX_UNEVEN_SHARE = 0.1, 0.2
"""Gaps that differ by less than this share are alike; so many may differ from the next where slices lie in one step."""


def split_planes(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Group by size, orientation and pixel spacing; each group sorted along its normal."""
    by_size: dict[tuple[object, ...], list[list[Frame]]] = defaultdict(list)
    known: dict[tuple[object, ...], list[Frame]] = {}
    for frame in sorted(frames, key=name_free_key):
        layout = frame.header.pixels
        size = frame.header.modality, layout.rows, layout.columns, layout.tiles
        # Frames by the ten thousand have few planes, or as many as a motion correction turned their volumes.
        plane = (*size, frame.orientation, frame.spacing)
        if plane not in known:
            similar = by_size[size]
            known[plane] = next((group for group in similar if _same_plane(group[0], frame)), [])
            if not known[plane]:
                similar.append(known[plane])
        known[plane].append(frame)
    planes = [_sorted_along_normal(group) for similar in by_size.values() for group in _joined(similar)]
    return sorted(planes, key=lambda plane: min(map(name_free_key, plane)))


def _joined(groups: Sequence[list[Frame]]) -> list[list[Frame]]:
    """Pictures of one size, where groups that differ by rounding alone are one."""
    joined: list[list[Frame]] = []
    for group in sorted(groups, key=len, reverse=True):
        candidates = (n for n, other in enumerate(joined) if _differ_by_rounding(other[0], group[0]))
        for n in islice(candidates, MOST_TRIED):
            if one := _in_one_step(joined[n], group):
                joined[n] = one
                break
        else:
            joined.append(group)
    return joined


def _differ_by_rounding(a: Frame, b: Frame) -> bool:
    turned, scaled = _turned(a, b), _scaled(a, b)
    if turned > ROUNDED_ORIENTATION or scaled > ROUNDED_SPACING:
        return False
    straightened = any(frame.straightened and not frame.rounded for frame in (a, b))
    return (
        turned <= ORIENTATION_TOLERANCE
        or straightened
        or _one_is_rounded(a.orientation, b.orientation, LEAST_OF_COSINES)
    ) and (scaled <= SPACING_TOLERANCE or _one_is_rounded(a.spacing, b.spacing, LEAST_OF_SPACINGS))


def _turned(a: Frame, b: Frame) -> float:
    return max(abs(x - y) for x, y in zip(a.orientation, b.orientation, strict=True))


def _scaled(a: Frame, b: Frame) -> float:
    return max(abs(x / y - 1) for x, y in zip(a.spacing, b.spacing, strict=True))


def _one_is_rounded(a: tuple[float, ...], b: tuple[float, ...], least: int) -> bool:
    """Whether numbers are the others with fewer digits, of which zeros at the end make up `least`."""
    digits = min(_digits(a), _digits(b))
    apart = max(abs(x - y) for x, y in zip(a, b, strict=True))
    return _digits(a) != _digits(b) and apart <= 0.5 * 10.0 ** -max(least, digits) + 1e-9


@lru_cache(maxsize=4096)
def _digits(numbers: tuple[float, ...]) -> int:
    """Digits behind the point, the most of several numbers."""
    return max(
        next((n for n in range(MOST_DIGITS) if abs(round(number, n) - number) < 1e-9), MOST_DIGITS)
        for number in numbers
    )


def _in_one_step(a: Sequence[Frame], b: Sequence[Frame]) -> list[Frame]:
    """The slices of both, those with fewer digits in the geometry of the others, if they lie in one step; else none."""
    exact, rounded = (a, b) if _exactness(a[0]) >= _exactness(b[0]) else (b, a)
    gaps = np.diff(np.sort(offsets_of([*exact, *rounded])))
    if len(gaps) < 3 or gaps.min() <= SAME_POSITION_MM:
        return []
    uneven = np.abs(np.diff(gaps)) > EVEN * np.minimum(gaps[1:], gaps[:-1])
    if uneven.mean() > MAX_UNEVEN_SHARE:
        return []
    orientation, spacing = exact[0].orientation, exact[0].spacing
    like = [replace(frame, orientation=orientation, spacing=spacing, rounded=True) for frame in rounded]
    frames = _sorted_along_normal([*exact, *like])
    try:
        fit_stack([frame.position for frame in frames], orientation, spacing)
    except Rejection:
        return []
    return frames


def _exactness(frame: Frame) -> tuple[bool, int]:
    digits = sum(_digits((number,)) for number in (*frame.orientation, *frame.spacing))
    return frame.rounded or not frame.straightened, digits


def _same_plane(a: Frame, b: Frame) -> bool:
    return _turned(a, b) <= ORIENTATION_TOLERANCE and _scaled(a, b) <= SPACING_TOLERANCE


def _sorted_along_normal(frames: Sequence[Frame]) -> list[Frame]:
    offsets = offsets_of(frames)
    return [frames[i] for i in sorted(range(len(frames)), key=lambda i: (offsets[i], name_free_key(frames[i])))]


def offsets_of(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """(N,) places along the normal of the first frame, mm."""
    normal = slice_normal(frames[0].orientation)
    return np.array([frame.position for frame in frames]) @ normal


def name_free_key(frame: Frame) -> tuple[object, ...]:
    """An order that survives renamed files, as far as the headers allow."""
    return frame.header.sop_uid, frame.instance, frame.index, frame.header.path.as_posix()


def distinct_positions(frames: Sequence[Frame]) -> NDArray[np.int64]:
    """Number the places of a sorted stack: frames at the same place share a number, shape (len(frames),)."""
    gaps = np.diff(offsets_of(frames))
    return np.concatenate([[0], np.cumsum(gaps > SAME_POSITION_MM)]).astype(np.int64)
