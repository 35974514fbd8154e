"""The pictures of a series that are slices of one orientation, size and pixel spacing.

Headers round the orientation and the spacing, some in a few slices alone; such slices belong to the others if they lie
between them in one step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

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

MOST_DIGITS = 6
"""Digits behind the point; numbers with more are not looked at as rounded."""

EVEN, MAX_UNEVEN_SHARE = 0.1, 0.2
"""Gaps that differ by less than this share are alike; so many may differ from the next where slices lie in one step."""


def split_planes(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Group by size, orientation and pixel spacing; each group sorted along its normal."""
    by_size: dict[tuple[object, ...], list[list[Frame]]] = defaultdict(list)
    for frame in sorted(frames, key=name_free_key):
        layout = frame.header.pixels
        similar = by_size[frame.header.modality, layout.rows, layout.columns, layout.tiles]
        for group in similar:
            if _same_plane(group[0], frame):
                group.append(frame)
                break
        else:
            similar.append([frame])
    planes = [_sorted_along_normal(group) for similar in by_size.values() for group in _joined(similar)]
    return sorted(planes, key=lambda plane: min(map(name_free_key, plane)))


def _joined(groups: Sequence[list[Frame]]) -> list[list[Frame]]:
    """Pictures of one size, where groups that differ by rounding alone are one."""
    joined: list[list[Frame]] = []
    for group in sorted(groups, key=len, reverse=True):
        for n, other in enumerate(joined):
            if _differ_by_rounding(other[0], group[0]) and (one := _in_one_step(other, group)):
                joined[n] = one
                break
        else:
            joined.append(group)
    return joined


def _differ_by_rounding(a: Frame, b: Frame) -> bool:
    turned = max(abs(x - y) for x, y in zip(a.orientation, b.orientation, strict=True))
    scaled = max(abs(x / y - 1) for x, y in zip(a.spacing, b.spacing, strict=True))
    if turned > ROUNDED_ORIENTATION or scaled > ROUNDED_SPACING:
        return False
    return scaled <= SPACING_TOLERANCE or _is_rounded(a.spacing, b.spacing) or _is_rounded(b.spacing, a.spacing)


def _is_rounded(short: Sequence[float], full: Sequence[float]) -> bool:
    """Whether the first numbers are the second ones with fewer digits."""
    digits = max(map(_digits, short))
    return digits < max(map(_digits, full)) and all(
        abs(x - y) <= 0.5 * 10.0 ** -max(1, digits) + 1e-9 for x, y in zip(short, full, strict=True)
    )


def _digits(number: float) -> int:
    return next((n for n in range(MOST_DIGITS) if abs(round(number, n) - number) < 1e-9), MOST_DIGITS)


def _in_one_step(a: Sequence[Frame], b: Sequence[Frame]) -> list[Frame]:
    """The slices of both, those with fewer digits in the geometry of the others, if they lie in one step; else none."""
    exact, rounded = (a, b) if _exactness(a[0]) >= _exactness(b[0]) else (b, a)
    orientation, spacing = exact[0].orientation, exact[0].spacing
    like = [replace(frame, orientation=orientation, spacing=spacing, rounded=True) for frame in rounded]
    frames = _sorted_along_normal([*exact, *like])
    gaps = np.diff(offsets_of(frames))
    if len(gaps) < 3 or gaps.min() <= SAME_POSITION_MM:
        return []
    uneven = np.abs(np.diff(gaps)) > EVEN * np.minimum(gaps[1:], gaps[:-1])
    try:
        fit_stack([frame.position for frame in frames], orientation, spacing)
    except Rejection:
        return []
    return frames if uneven.mean() <= MAX_UNEVEN_SHARE else []


def _exactness(frame: Frame) -> tuple[bool, int]:
    return not frame.straightened, sum(map(_digits, (*frame.orientation, *frame.spacing)))


def _same_plane(a: Frame, b: Frame) -> bool:
    turned = max(abs(x - y) for x, y in zip(a.orientation, b.orientation, strict=True))
    scaled = max(abs(x / y - 1) for x, y in zip(a.spacing, b.spacing, strict=True))
    return turned <= ORIENTATION_TOLERANCE and scaled <= SPACING_TOLERANCE


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
