"""What a stack of pictures looks like, where its file does not say how large and which way round they are.

The test gateway of a competition, and some anonymisers, take the functional groups out of multi-frame files: pixel
size, slice distance, orientation and the order of the slices are gone. The head itself tells them roughly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.assumed import AXIAL
from harmonize.dicom.geometry import slice_normal
from harmonize.dicom.headers import Frame
from harmonize.scan import HU
from harmonize.voxels.foreground import CROP_CAUTION, find_foreground

HEAD_MM = {"axial": (154.0, 196.0), "sagittal": (196.0, 210.0), "coronal": (154.0, 225.0)}
"""What of a head is seen on a picture, breadth, length, or height down to the neck: with its skin, a common middle of
adults; 4 % standard deviation."""

FULL = 0.95
"""A head that covers more of the circle in a picture is cut by its edges: its size says that it is small, no more."""
FULL_MM = 130.0
"""Edge of such a picture."""

MIN_SLICES = 12
"""Fewer slices say nothing of their distance, nor of which way round they are."""

HEIGHT_MM = 130.0
"""What the slices of a CT protocol of the head cover, of those that are seen."""
MR_HEIGHTS_MM = ((60, 140.0), (220, 115.0), (10**9, 180.0))
"""What those of MR cover, with fewer slices than these: 2D stacks, angiograms and slabs, whole heads in 3D."""

SEMI_AXES_MM = {"axial": 84.0, "sagittal": 77.0, "coronal": 98.0}
"""Of the ellipsoid of a head across its slices; of axial ones, from its largest section to the vertex."""

OF_HEIGHT, OF_TEXTURE, OF_SHAPE = 0.3, 0.25, 0.12
"""How far off the distance of slices may be by their number, by how much neighbours differ, by the head's sections."""

STEP_MM = (0.4, 6.0)
SYMMETRIC = 0.1
"""So much more alike must the halves of the slices be than those of the pictures, for sagittal slices."""

NECK, ABOVE_NECK = 0.3, 0.3
"""Pictures with a neck are not axial: below, the section of the head is at least this share of the largest, and above
that much less."""

VERTEX = 0.75
"""The end of the slices where the head is smaller than this share of the other end is the upper one."""

_COARSE = 48

WAYS = {"axial": AXIAL, "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)}
"""Direction cosines of rows and columns, as ImageOrientationPatient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How a stack lies, by what is seen on it.

    Attributes:
        pixel_mm: Edge of a pixel.
        pixel_error: Its relative uncertainty, one standard deviation.
        step_mm: Distance of slices.
        step_error: Likewise.
        way: Of `WAYS`, how the pictures lie.
        direction: 1 where the slices advance along the positive axis of the patient, else -1.
    """

    pixel_mm: float
    pixel_error: float
    step_mm: float
    step_error: float
    way: str
    direction: int


Estimator = Callable[[NDArray[Any], str], Estimate | None]
"""Says of real values (slices, rows, columns) and their unit how the stack lies; None where it cannot tell."""


def estimate_stack(voxels_ZYX: NDArray[Any], unit: str) -> Estimate | None:
    """How a stack lies; None where no head stands out, or of few slices.

    Args:
        voxels_ZYX: Real values: slices, rows, columns.
        unit: `harmonize.scan.HU` for CT.
    """
    if len(voxels_ZYX) < MIN_SLICES:
        return None
    steps = [max(1, round(size / _COARSE)) for size in voxels_ZYX.shape]
    coarse_ZYX = voxels_ZYX[:: steps[0], :: steps[1], :: steps[2]].astype(np.float32)
    # Each voxel by itself: how many of them are alike is what is not known.
    head_ZYX = find_foreground(coarse_ZYX, (2.0, 2.0, 2.0), unit, caution=CROP_CAUTION)
    areas_Z = head_ZYX.mean(axis=(1, 2))
    if not areas_Z.max() > 0.05:
        return None
    way = _way(coarse_ZYX, head_ZYX)
    edge = max(1, len(areas_Z) // 8)
    turned = way == "axial" and areas_Z[:edge].mean() < VERTEX * areas_Z[-edge:].mean()
    rows, columns = voxels_ZYX.shape[1:]
    covered = _covered(head_ZYX, areas_Z)
    pixel_mm = _field_of_view(covered, way) / float(np.sqrt(rows * columns))
    count = len(voxels_ZYX)
    height_mm = HEIGHT_MM if unit == HU else next(mm for most, mm in MR_HEIGHTS_MM if count < most)
    told = [(height_mm / count, OF_HEIGHT)]
    if unit != HU and (relative := _relative_step(voxels_ZYX, head_ZYX, steps)) is not None:
        told.append((relative * pixel_mm, OF_TEXTURE))
    if (share := _step_of_semi_axis(areas_Z[::-1] if turned else areas_Z, both_sides=way != "axial")) is not None:
        told.append((share * SEMI_AXES_MM[way] / steps[0], OF_SHAPE))
    weights = np.array([1 / error**2 for _, error in told])
    step_mm = float(np.exp(np.average(np.log([mm for mm, _ in told]), weights=weights)))
    return Estimate(
        pixel_mm=pixel_mm,
        pixel_error=0.1 if covered < FULL else 0.15,
        step_mm=float(np.clip(step_mm, *STEP_MM)),
        step_error=max(0.15, min(error for _, error in told)),
        way=way,
        direction=-1 if turned else 1,
    )


def placed(frames: Sequence[Frame], estimate: Estimate) -> tuple[list[Frame], Decision]:
    """The pictures of a stack where the estimate has them, as far as their file says nothing else.

    Args:
        frames: In their order; where the estimate has them turned round, they come back in the reverse order.
        estimate: Of their pixels.
    """
    first, unsaid = frames[0], frames[0].unsaid
    pixels = (estimate.pixel_mm,) * 2 if "pixels" in unsaid else first.spacing
    turned = "directions" in unsaid
    orientation = WAYS[estimate.way] if turned else first.orientation
    before = np.linalg.norm(np.subtract(frames[1].position, first.position))
    step = estimate.step_mm if "steps" in unsaid else float(before)
    order = frames[::-1] if turned and estimate.direction < 0 else frames
    advance = slice_normal(orientation) * step
    decision = DecisionKind.GEOMETRY_ESTIMATED(
        pixel_mm=pixels[0],
        pixel_percent=round(100 * estimate.pixel_error) if "pixels" in unsaid else 0,
        step_mm=step,
        step_percent=round(100 * estimate.step_error) if "steps" in unsaid else 0,
        way=f"{estimate.way}, {'first' if order is frames else 'last'} frame first" if turned else "as the file says",
    )
    start = np.zeros(3) if turned else np.array(first.position)
    return [
        replace(
            frame,
            position=tuple((start + k * advance).tolist()),
            orientation=orientation,
            spacing=tuple(pixels),
            assumed="",
        )
        for k, frame in enumerate(order)
    ], decision


def _way(coarse_ZYX: NDArray[np.float32], head_ZYX: NDArray[np.bool_]) -> str:
    """How the pictures of a stack lie, of `WAYS`.

    A neck at the lower edge says that they are not axial; then the slices or the columns are the more alike from both
    sides. Without one, slices that are much more alike are sagittal.
    """
    sections_Y = head_ZYX.mean(axis=(0, 2))
    sections_Y = sections_Y / sections_Y.max()
    edge = max(1, len(sections_Y) // 16)
    above, below = sections_Y[:edge].mean(), sections_Y[-edge:].mean()
    likeness = _asymmetry(coarse_ZYX, head_ZYX, 2) - _asymmetry(coarse_ZYX, head_ZYX, 0)
    if below > NECK and below - above > ABOVE_NECK:
        return "sagittal" if likeness > 0 else "coronal"
    return "sagittal" if likeness > SYMMETRIC else "axial"


def _step_of_semi_axis(areas_Z: NDArray[np.floating], *, both_sides: bool) -> float | None:
    """The distance of slices in semi-axes of the ellipsoid whose sections these are; None where they hardly shrink.

    Of an ellipsoid, the root of what a section lacks of the largest rises evenly with the distance from that.

    Args:
        areas_Z: Sections; upward, where only one side counts.
        both_sides: Whether the sections before the largest count as well; a neck is no ellipsoid.
    """
    shares = areas_Z / np.percentile(areas_Z, 95)
    largest = int(np.median(np.flatnonzero(shares >= 0.98 * shares.max())))
    slopes = []
    for side in (shares[largest:], shares[largest::-1]) if both_sides else (shares[largest:],):
        used = np.flatnonzero((side > 0.35) & (side < 0.95))
        if len(used) >= 3 and side[used].min() < 0.85:
            slopes.append(float(np.polyfit(used, np.sqrt(1 - side[used]), 1)[0]))
    slopes = [slope for slope in slopes if slope > 0]
    return float(np.mean(slopes)) if slopes else None


def _covered(head_ZYX: NDArray[np.bool_], areas_Z: NDArray[np.floating]) -> float:
    """The share of the circle in a picture that the head covers where it is largest: scanners see no corners."""
    y, x = (np.linspace(-1, 1, size) for size in head_ZYX.shape[1:])
    circle_YX = y[:, None] ** 2 + x**2 <= 1
    largest = head_ZYX[areas_Z >= np.percentile(areas_Z, 80)]
    return float(largest[:, circle_YX].mean())


@cache
def _coverage(way: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of pictures in mm, and the share of the circle in each that a head in its middle covers; falling."""
    edges, (breadth, length) = np.arange(FULL_MM, 500.0, 2.5), HEAD_MM[way]
    unit = np.linspace(-0.5, 0.5, 201)
    x, y = unit[:, None], unit[None, :]
    circle = x**2 + y**2 <= 0.25
    heads = ((2 * x * edge / breadth) ** 2 + (2 * y * edge / length) ** 2 <= 1 for edge in edges)
    return edges, np.array([head[circle].mean() for head in heads])


def _field_of_view(covered: float, way: str) -> float:
    """Edge in mm of a picture whose circle a head covers so far."""
    edges, shares = _coverage(way)
    return FULL_MM if covered > FULL else float(np.interp(-covered, -shares, edges))


def _asymmetry(values_ZYX: NDArray[np.float32], head_ZYX: NDArray[np.bool_], axis: int) -> float:
    """How unlike its mirror image a head is along an axis: one less the correlation of the values within it."""
    places = np.flatnonzero(head_ZYX.any(axis=tuple(other for other in range(3) if other != axis)))
    part = np.take(values_ZYX, np.arange(places[0], places[-1] + 1), axis=axis)
    inside = np.take(head_ZYX, np.arange(places[0], places[-1] + 1), axis=axis)
    both = inside | np.flip(inside, axis)
    one, other = np.where(inside, part, part.min())[both], np.where(inside, part, part.min())
    other = np.flip(other, axis)[both]
    if one.std() == 0:
        return 1.0
    return 1.0 - float(np.corrcoef(one, other)[0, 1])


def _relative_step(voxels_ZYX: NDArray[Any], head_ZYX: NDArray[np.bool_], steps: list[int]) -> float | None:
    """The distance of slices in pixels, at which neighbours differ as much as they do so far apart on a picture."""
    low, high = np.percentile(voxels_ZYX[:: steps[0], :: steps[1], :: steps[2]][head_ZYX], (2, 98))
    if not high > low:
        return None
    # The middle of the head, where there is tissue all round.
    z, y, x = (slice(int(0.25 * size), max(int(0.75 * size), int(0.25 * size) + 4)) for size in voxels_ZYX.shape)
    middle = np.clip(voxels_ZYX[z, y, x].astype(np.float32), low, high)
    if min(middle.shape) < 4:
        return None

    def apart(axis: int, lag: int) -> float:
        ahead, behind = (
            np.take(middle, range(lag, middle.shape[axis]), axis),
            np.take(middle, range(middle.shape[axis] - lag), axis),
        )
        return float(np.abs(ahead - behind).mean())

    lags = np.arange(1, max(2, min(16, *(size // 2 for size in middle.shape[1:]))))
    on_picture = np.maximum.accumulate([(apart(1, lag) + apart(2, lag)) / 2 for lag in lags])
    between = apart(0, 1)
    if between <= on_picture[0]:
        slope = np.log(on_picture[1] / on_picture[0]) / np.log(2) if len(lags) > 1 else 0.0
        return float(np.clip((between / on_picture[0]) ** (1 / max(slope, 0.3)), 0.3, 1.0))
    if between >= on_picture[-1]:
        return None
    return float(np.interp(between, on_picture, lags))
