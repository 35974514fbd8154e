"""Slice positions to an affine: spacing, gaps and gantry tilt of a stack of parallel slices.

Positions and directions are DICOM's patient coordinates (LPS+ mm); affines are RAS+ mm. All of it follows PS3.3
C.7.6.2.1.1: the centre of pixel (column i, row j) lies at ``position + i * column_step * row_direction
+ j * row_step * column_direction``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmonize.errors import Reason, Rejection

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])

SAME_POSITION_MM = 0.01
"""Slices closer than this along the normal are at the same place."""

GAP_TOLERANCE = 0.01
"""Gaps within this share of the median, or `GAP_TOLERANCE_MM`, are even."""
GAP_TOLERANCE_MM = 0.01
_ROUNDING_MM = 1e-6

DRIFT_MM = 0.02
"""Even slices lie this close to their even places: gaps that are each within the tolerance can still add up."""

MAX_MISSING = 2
"""So many slices missing in a row are interpolated; more cut the stack in two."""

MAX_STEP_MM = 15.0
"""No head protocol steps farther from slice to slice: an isolated larger gap is a hole, whatever its size."""

MIN_TILT_DEG = 0.1
MAX_TILT_DEG = 75.0

DIRECTION_TOLERANCE = 1e-3
"""How far direction cosines may be from unit length and from a right angle."""

ROUNDED_DIRECTION = 0.01
"""So much rounding to two decimals can change the length and the angle of direction cosines."""

MAX_SPACING_MM = 100.0
"""A pixel or slice step beyond this is a broken header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackGeometry:
    """Where the voxels of a sorted stack lie.

    Attributes:
        affine: (4, 4), index (column, row, slice) to RAS+ mm; sheared where the gantry was tilted.
        slice_offsets: (N,) true place of each slice in units of the third column, or None where they are even.
        step_mm: Median distance between slices along their normal.
        tilt_deg: Angle between the direction in which the slices advance and their normal.
        missing: Number of slices missing in an otherwise even stack.
        gaps_mm: Smallest and largest distance between neighbours along the normal.
    """

    affine: NDArray[np.float64]
    slice_offsets: NDArray[np.float64] | None
    step_mm: float
    tilt_deg: float
    missing: int
    gaps_mm: tuple[float, float]


def is_plausible_step(step_mm: float) -> bool:
    """Whether a distance of pixels or slices that a header claims may be one; NaN is none.

    Example:
        >>> is_plausible_step(0.8), is_plausible_step(0.0)
        (True, False)
    """
    return 0 < step_mm <= MAX_STEP_MM


@lru_cache(maxsize=256)
def straighten(orientation: tuple[float, ...]) -> tuple[float, ...]:
    """The direction cosines of rows and columns made perpendicular unit vectors where rounding took that from them.

    What is within `DIRECTION_TOLERANCE`, and what is farther off than `ROUNDED_DIRECTION`, comes back as it is.

    Example:
        >>> straighten((0.97, 0.26, 0.0, -0.26, 0.97, 0.0))[0] > 0.9659
        True
    """
    try:
        slice_normal(orientation)
        return orientation
    except Rejection:
        pass
    directions = np.asarray(orientation, np.float64)
    if directions.shape != (6,) or not np.isfinite(directions).all():
        return orientation
    pair = directions.reshape(2, 3)
    if abs(pair @ pair.T - np.eye(2)).max() > 2 * ROUNDED_DIRECTION:
        return orientation
    # The nearest pair of perpendicular unit vectors.
    u, _, vt = np.linalg.svd(pair, full_matrices=False)
    return tuple((u @ vt).ravel().tolist())


def slice_normal(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Unit normal of a slice, from the six numbers of ImageOrientationPatient.

    Raises:
        Rejection: The directions are not finite, not of unit length or not at a right angle.

    Example:
        >>> slice_normal([1, 0, 0, 0, 1, 0])
        array([0., 0., 1.])
    """
    directions = np.asarray(orientation, np.float64)
    if directions.shape != (6,) or not np.isfinite(directions).all():
        raise Rejection(Reason.BAD_GEOMETRY, "the image orientation is not six finite numbers")
    along_row, along_column = directions[:3], directions[3:]
    lengths = np.array([np.linalg.norm(along_row), np.linalg.norm(along_column)])
    if (abs(lengths - 1) > DIRECTION_TOLERANCE).any() or abs(along_row @ along_column) > DIRECTION_TOLERANCE:
        raise Rejection(Reason.BAD_GEOMETRY, "the image orientation is not a pair of perpendicular unit vectors")
    normal = np.cross(along_row, along_column)
    return normal / np.linalg.norm(normal)


def pixel_to_ras(
    position: ArrayLike, orientation: Sequence[float], spacing: Sequence[float], column: float, row: float
) -> NDArray[np.float64]:
    """The place in RAS+ mm of a pixel (or a point between pixels) of one slice.

    Args:
        position: (3,) ImagePositionPatient.
        orientation: (6,) ImageOrientationPatient.
        spacing: (row step, column step) in mm, in the order of PixelSpacing.
        column: x on the picture, 0 at the centre of the first column.
        row: y on the picture, 0 at the centre of the first row.

    Example:
        >>> pixel_to_ras([0, 0, 10], [1, 0, 0, 0, 1, 0], (0.5, 0.25), 4, 2)
        array([-1., -1., 10.])
    """
    directions = np.asarray(orientation, np.float64).reshape(2, 3)
    steps = np.array([column * spacing[1], row * spacing[0]])
    return LPS_TO_RAS @ (np.asarray(position, np.float64) + steps @ directions)


def find_holes(offsets: NDArray[np.float64]) -> list[int]:
    """Where a stack is cut because too much of it is missing.

    A hole is a gap that is much larger than its neighbours and either stands for more than `MAX_MISSING` slices of
    an even stack or exceeds `MAX_STEP_MM`. A lasting change of the step (thin slices below, thick above) is none.

    Args:
        offsets: (N,) strictly increasing places along the normal, mm.

    Returns:
        Indices i for which the gap between slice i and i + 1 is a hole.

    Example:
        >>> find_holes(np.array([0.0, 1, 2, 8, 9, 10]))
        [2]
        >>> find_holes(np.array([0.0, 1, 2, 4, 5, 6]))
        []
    """
    gaps = np.diff(offsets)
    if len(gaps) < 2:
        return []
    padded = np.concatenate([[0.0], gaps, [0.0]])
    neighbours = np.maximum(padded[:-2], padded[2:])
    multiples = _multiples(gaps)
    too_many = multiples > MAX_MISSING + 1 if multiples is not None else np.zeros(len(gaps), bool)
    isolated = gaps > (MAX_MISSING + 1.5) * neighbours
    return [int(i) for i in np.flatnonzero(isolated & (too_many | (gaps > MAX_STEP_MM)))]


def fit_stack(positions_N3: ArrayLike, orientation: Sequence[float], spacing: Sequence[float]) -> StackGeometry:
    """Fit an affine, and true slice places where they are uneven, to a sorted stack of slices.

    Args:
        positions_N3: (N, 3) ImagePositionPatient, sorted along the normal, all different; N >= 2.
        orientation: (6,) ImageOrientationPatient, shared by the slices.
        spacing: (row step, column step) in mm.

    Raises:
        Rejection: A number is not finite or not plausible, or the slices do not lie on one straight line.

    Example:
        >>> fit_stack([[0, 0, 0], [0, 0, 2], [0, 0, 4]], [1, 0, 0, 0, 1, 0], (0.5, 0.5)).step_mm
        2.0
    """
    positions = np.asarray(positions_N3, np.float64)
    if len(positions) < 2:
        raise Rejection(Reason.TOO_FEW_SLICES, "a single slice has no slice spacing")
    normal = slice_normal(orientation)
    _check_spacing(spacing)
    if not np.isfinite(positions).all():
        raise Rejection(Reason.BAD_GEOMETRY, "a slice position is not a finite number")
    offsets = positions @ normal
    gaps = np.diff(offsets)
    step = float(np.median(gaps))
    if not 0 < step <= MAX_SPACING_MM:
        raise Rejection(Reason.BAD_GEOMETRY, f"the slices are {step:g} mm apart")

    start, advance = _fit_line(offsets, positions)
    stray = float(np.linalg.norm(start + np.outer(offsets, advance) - positions, axis=1).max())
    if stray > min(spacing) / 2:
        raise Rejection(Reason.MIXED_GEOMETRY, f"the slices stray {stray:.2f} mm from a straight line")
    # The fitted line advances by exactly 1 mm along the normal for each mm of offset.
    tilt = math.degrees(math.acos(min(1.0, 1.0 / float(np.linalg.norm(advance)))))
    if tilt > MAX_TILT_DEG:
        raise Rejection(Reason.BAD_GEOMETRY, f"the slices advance at {tilt:.0f} degrees to their normal")

    even_start, even_step = _fit_line(np.arange(len(offsets), dtype=np.float64), positions)
    drift = float(np.linalg.norm(even_start + np.outer(np.arange(len(offsets)), even_step) - positions, axis=1).max())
    if (abs(gaps - step) <= _tolerance(step)).all() and drift <= max(DRIFT_MM, stray):
        third, origin, slice_offsets = even_step, even_start, None
    else:
        third, origin = advance * step, start + offsets[0] * advance
        slice_offsets = (offsets - offsets[0]) / step
    multiples = _multiples(gaps)
    return StackGeometry(
        affine=_affine(orientation, spacing, third, origin),
        slice_offsets=slice_offsets,
        step_mm=step,
        tilt_deg=tilt,
        missing=int((multiples - 1).sum()) if multiples is not None else 0,
        gaps_mm=(float(gaps.min()), float(gaps.max())),
    )


def _multiples(gaps: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Each gap as a multiple of the median, or None where the stack is not an even one with slices missing."""
    step = float(np.median(gaps))
    multiples = np.rint(gaps / step).astype(np.int64)
    even = (multiples >= 1) & (abs(gaps - multiples * step) <= multiples * _tolerance(step))
    return multiples if even.all() and (multiples == 1).mean() >= 0.5 else None


def _tolerance(step_mm: float) -> float:
    return max(GAP_TOLERANCE * step_mm, GAP_TOLERANCE_MM) + _ROUNDING_MM


def _fit_line(
    parameter: NDArray[np.float64], points_N3: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least squares of points against one parameter: (point at parameter 0, change per unit)."""
    centre, middle = parameter.mean(), points_N3.mean(axis=0)
    centred = parameter - centre
    slope = centred @ (points_N3 - middle) / (centred @ centred)
    return middle - centre * slope, slope


def _check_spacing(spacing: Sequence[float]) -> None:
    if len(spacing) != 2 or not all(math.isfinite(step) and 0 < step <= MAX_SPACING_MM for step in spacing):
        raise Rejection(Reason.BAD_GEOMETRY, "the pixel spacing is not two positive numbers of plausible size")


def _affine(
    orientation: Sequence[float], spacing: Sequence[float], third: NDArray[np.float64], origin: NDArray[np.float64]
) -> NDArray[np.float64]:
    directions = np.asarray(orientation, np.float64)
    affine = np.eye(4)
    affine[:3, 0] = directions[:3] * spacing[1]
    affine[:3, 1] = directions[3:] * spacing[0]
    affine[:3, 2] = third
    affine[:3, 3] = origin
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return affine
