"""Distance to chains of tapered capsules, evaluated only where the chains run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FAR_MM = np.float32(1e3)
"""Distance reported where no tube is near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tube:
    """A chain of tapered capsules; a single point is a ball.

    Attributes:
        points_N3: (N, 3) in mm.
        radii_N: (N,) in mm.
    """

    points_N3: NDArray[np.float64]
    radii_N: NDArray[np.float64]

    def moved(self, affine: NDArray[np.float64]) -> Tube:
        """The same tube after `affine` (4, 4); the radii stay."""
        return Tube(points_N3=self.points_N3 @ affine[:3, :3].T + affine[:3, 3], radii_N=self.radii_N)


def spline(control_N3: ArrayLike, radii_N: ArrayLike, step_mm: float = 4.0) -> Tube:
    """Join control points by a Catmull-Rom curve.

    Args:
        control_N3: (N, 3), N >= 2, in mm; the curve passes through each of them.
        radii_N: Radius at each control point in mm, linear in between.
        step_mm: Approximate length of a capsule.

    Returns:
        A tube that begins and ends at the first and last control point.
    """
    control = np.asarray(control_N3, dtype=np.float64)
    radii = np.asarray(radii_N, dtype=np.float64)
    padded = np.vstack([2 * control[0] - control[1], control, 2 * control[-1] - control[-2]])
    points, widths = [control[:1]], [radii[:1]]
    for index in range(len(control) - 1):
        before, start, end, after = padded[index : index + 4]
        pieces = max(1, int(np.ceil(np.linalg.norm(end - start) / step_mm)))
        t = (np.arange(1, pieces + 1) / pieces)[:, None]
        points.append(
            0.5
            * (
                2 * start
                + (end - before) * t
                + (2 * before - 5 * start + 4 * end - after) * t**2
                + (3 * start - before - 3 * end + after) * t**3
            )
        )
        widths.append(radii[index] + t[:, 0] * (radii[index + 1] - radii[index]))
    return Tube(points_N3=np.concatenate(points), radii_N=np.concatenate(widths))


def distances(
    tubes: Sequence[Tube],
    affine: NDArray[np.float64],
    shape: Sequence[int],
    margin_mm: float,
    first: Sequence[int] = (0, 0, 0),
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Signed distance from each voxel centre to the nearest tube wall.

    Args:
        tubes: At most 255 of them.
        affine: (4, 4), voxel index to the mm in which the tubes are given; may be sheared.
        shape: Voxels along each axis.
        margin_mm: The distance is evaluated up to this far outside the walls and is `FAR_MM` beyond.
        first: Index of the first voxel, by which a part of a larger grid is the same to the last bit.

    Returns:
        distance_XYZ: float32 in mm, negative inside.
        nearest_XYZ: uint8, index of that tube plus one, 0 where none is near.
    """
    distance_XYZ = np.full(tuple(shape), FAR_MM, dtype=np.float32)
    nearest_XYZ = np.zeros(tuple(shape), dtype=np.uint8)
    inverse = np.linalg.inv(affine)
    reach_per_mm = np.linalg.norm(inverse[:3, :3], axis=1)
    for number, tube in enumerate(tubes, start=1):
        # One capsule from each point to the next; a ball is a capsule without length.
        starts = tube.points_N3[: max(len(tube.points_N3) - 1, 1)]
        steps = tube.points_N3[-len(starts) :] - starts
        radii = tube.radii_N[: len(starts)]
        growths = tube.radii_N[-len(starts) :] - radii
        corners = np.stack([starts, starts + steps]) @ inverse[:3, :3].T + inverse[:3, 3]
        pad = (np.maximum(radii, radii + growths)[:, None] + margin_mm) * reach_per_mm
        end = np.add(first, shape)
        lows = np.clip(np.floor(corners.min(axis=0) - pad), first, end).astype(int)
        highs = np.clip(np.ceil(corners.max(axis=0) + pad) + 1, first, end).astype(int)
        for index in np.flatnonzero(np.all(lows < highs, axis=1)):
            low, high = lows[index], highs[index]
            box = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
            offsets = _offsets(affine, low, high, starts[index])
            found = _capsule_distance(offsets, steps[index], float(radii[index]), float(growths[index]))
            closer = found < distance_XYZ[box]
            np.copyto(distance_XYZ[box], found, where=closer)
            np.copyto(nearest_XYZ[box], np.uint8(number), where=closer)
    return distance_XYZ, nearest_XYZ


def _offsets(
    affine: NDArray[np.float64], low: NDArray[np.int_], high: NDArray[np.int_], start_mm: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
    """mm from `start_mm` to each voxel centre of a box, one array an axis."""
    i, j, k = (np.arange(a, b) for a, b in zip(low, high, strict=True))
    return [
        (row[0] * i + (row[3] - origin)).astype(np.float32)[:, None, None]
        + (row[1] * j).astype(np.float32)[:, None]
        + (row[2] * k).astype(np.float32)
        for row, origin in zip(affine[:3], start_mm, strict=True)
    ]


def _capsule_distance(
    offsets: list[NDArray[np.float32]], step: NDArray[np.float64], radius: float, growth: float
) -> NDArray[np.float32]:
    x, y, z = offsets
    square = float(step @ step)
    if square == 0:
        return np.sqrt(x * x + y * y + z * z) - np.float32(radius)
    a, b, c = (np.float32(value) for value in step)
    t = x * np.float32(a / square) + y * np.float32(b / square) + z * np.float32(c / square)
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    x -= t * a
    y -= t * b
    z -= t * c
    return np.sqrt(x * x + y * y + z * z) - (np.float32(radius) + t * np.float32(growth))
