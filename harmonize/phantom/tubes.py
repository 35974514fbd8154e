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


def spline(control_N3: ArrayLike, radii_N: ArrayLike, step_mm: float = 3.0) -> Tube:
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
    tubes: Sequence[Tube], affine: NDArray[np.float64], shape: Sequence[int], margin_mm: float
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Signed distance from each voxel centre to the nearest tube wall.

    Args:
        tubes: At most 255 of them.
        affine: (4, 4), voxel index to the mm in which the tubes are given; may be sheared.
        shape: Voxels along each axis.
        margin_mm: The distance is evaluated up to this far outside the walls and is `FAR_MM` beyond.

    Returns:
        distance_XYZ: float32 in mm, negative inside.
        nearest_XYZ: uint8, index of that tube plus one, 0 where none is near.
    """
    distance_XYZ = np.full(tuple(shape), FAR_MM, dtype=np.float32)
    nearest_XYZ = np.zeros(tuple(shape), dtype=np.uint8)
    inverse = np.linalg.inv(affine)
    reach_per_mm = np.linalg.norm(inverse[:3, :3], axis=1)
    for number, tube in enumerate(tubes, start=1):
        for start, end, r_start, r_end in _capsules(tube):
            ends = np.stack([start, end]) @ inverse[:3, :3].T + inverse[:3, 3]
            pad = (max(r_start, r_end) + margin_mm) * reach_per_mm
            low = np.maximum(np.floor(ends.min(axis=0) - pad), 0).astype(int)
            high = np.minimum(np.ceil(ends.max(axis=0) + pad) + 1, shape).astype(int)
            if np.any(low >= high):
                continue
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            found = _capsule_distance(_positions(affine, low, high), start, end, r_start, r_end)
            closer = found < distance_XYZ[box]
            distance_XYZ[box][closer] = found[closer]
            nearest_XYZ[box][closer] = number
    return distance_XYZ, nearest_XYZ


def _capsules(tube: Tube) -> list[tuple[NDArray[np.float64], NDArray[np.float64], float, float]]:
    points, radii = tube.points_N3, tube.radii_N
    if len(points) == 1:
        return [(points[0], points[0], float(radii[0]), float(radii[0]))]
    return [(points[i], points[i + 1], float(radii[i]), float(radii[i + 1])) for i in range(len(points) - 1)]


def _positions(
    affine: NDArray[np.float64], low: NDArray[np.int_], high: NDArray[np.int_]
) -> tuple[NDArray[np.float32], ...]:
    i, j, k = np.ogrid[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    return tuple((row[0] * i + row[1] * j + row[2] * k + row[3]).astype(np.float32) for row in affine[:3])


def _capsule_distance(
    position: tuple[NDArray[np.float32], ...],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    r_start: float,
    r_end: float,
) -> NDArray[np.float32]:
    along = (end - start).astype(np.float32)
    x, y, z = (axis - np.float32(origin) for axis, origin in zip(position, start, strict=True))
    square = float(along @ along)
    if square == 0:
        return np.sqrt(x * x + y * y + z * z) - np.float32(r_start)
    t = np.clip((x * along[0] + y * along[1] + z * along[2]) / np.float32(square), 0, 1)
    x -= t * along[0]
    y -= t * along[1]
    z -= t * along[2]
    return np.sqrt(x * x + y * y + z * z) - (np.float32(r_start) + t * np.float32(r_end - r_start))
