"""How much a voxel looks like part of a vessel: second derivatives of Gaussians of several widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

WIDTHS_MM = (1.0, 2.0)
"""Standard deviations of the Gaussians: they answer most to tubes about three times as wide."""

TRUNCATED = 3.0
"""Standard deviations after which a Gaussian ends."""

CANDIDATES = 10.0
"""So many times more voxels than are wanted are looked at closely: those that the Laplacian answers most to."""


def vesselness(values_XYZ: NDArray[Any], spacing: Sequence[float], *, dark_too: bool) -> NDArray[np.float32]:
    """The strongest answer of the Laplacian among the widths, normalised by their squares; 0 and more.

    Args:
        values_XYZ: Values in which vessels are brighter than what surrounds them.
        spacing: Of the voxels in mm.
        dark_too: Whether vessels may be darker as well.
    """
    found = np.zeros(values_XYZ.shape, dtype=np.float32)
    for width in WIDTHS_MM:
        answer = laplacian_of_gaussian(values_XYZ, spacing, width)
        answer *= -(width**2)
        np.maximum(found, np.abs(answer, out=answer) if dark_too else answer, out=found)
    return found


def laplacian_of_gaussian(values_XYZ: NDArray[Any], spacing: Sequence[float], width: float) -> NDArray[np.float32]:
    """Second derivatives along all axes, added up, of the smoothed values, per mm^2; float32.

    Args:
        values_XYZ: Any values.
        spacing: Of the voxels in mm.
        width: Standard deviation of the Gaussian in mm.
    """
    return _laplacian(_smooth(values_XYZ, spacing, width), spacing)


def brightest_tubes(
    values_XYZ: NDArray[Any], spacing: Sequence[float], *, within_XYZ: NDArray[np.bool_], share: float
) -> NDArray[np.bool_]:
    """Mark the voxels that most look like a bright tube or ball: of both, two curvatures or more are negative.

    The measure is the geometric mean of the two most negative eigenvalues of the Hessian (Sato et al. 1998, Medical
    Image Analysis 2:143), which a plate, such as the skull or the skin, has only one of. Eigenvalues are taken only
    where the Laplacian, their sum, is among the most negative.

    Args:
        values_XYZ: Real values.
        spacing: Of the voxels in mm.
        within_XYZ: bool, where to look.
        share: Of the voxels there that are marked; fewer, if fewer look like a tube at all.

    Returns:
        bool, shape (X, Y, Z).
    """
    places = np.flatnonzero(within_XYZ)
    wanted = round(share * len(places))
    found = np.zeros(len(places), dtype=np.float32)
    close = min(round(CANDIDATES * wanted), len(places))
    marked_XYZ = np.zeros(values_XYZ.shape, dtype=bool)
    if wanted == 0:
        return marked_XYZ
    for width in WIDTHS_MM:
        smooth_XYZ = _smooth(values_XYZ, spacing, width)
        answers = _laplacian(smooth_XYZ, spacing).ravel()[places]
        nearest = np.argpartition(answers, close - 1)[:close]
        tubes = width**2 * _tube_like(smooth_XYZ, spacing, places[nearest])
        found[nearest] = np.maximum(found[nearest], tubes)
    best = np.argpartition(-found, wanted - 1)[:wanted]
    marked_XYZ.ravel()[places[best[found[best] > 0]]] = True
    return marked_XYZ


def _smooth(values_XYZ: NDArray[Any], spacing: Sequence[float], width: float) -> NDArray[np.float32]:
    smooth_XYZ = np.array(values_XYZ, dtype=np.float32, order="C")
    for axis, mm in enumerate(spacing):
        ndimage.gaussian_filter1d(smooth_XYZ, width / mm, axis, output=smooth_XYZ, mode="nearest", truncate=TRUNCATED)
    return smooth_XYZ


def _laplacian(smooth_XYZ: NDArray[np.float32], spacing: Sequence[float]) -> NDArray[np.float32]:
    total_XYZ = np.zeros_like(smooth_XYZ)
    for axis, mm in enumerate(spacing):
        total_XYZ += ndimage.correlate1d(smooth_XYZ, np.array([1.0, -2.0, 1.0]) / mm**2, axis, mode="nearest")
    return total_XYZ


def _tube_like(
    smooth_XYZ: NDArray[np.float32], spacing: Sequence[float], places_N: NDArray[np.intp]
) -> NDArray[np.float32]:
    """The geometric mean of the two most negative curvatures at some voxels, per mm^2; 0 where there is only one."""
    shape = smooth_XYZ.shape
    at_N3 = np.stack(np.unravel_index(places_N, shape), axis=1)

    def value(*steps: int) -> NDArray[np.float32]:
        x, y, z = (
            np.clip(at_N3[:, axis] + step, 0, edge - 1)
            for axis, (step, edge) in enumerate(zip(steps, shape, strict=True))
        )
        return smooth_XYZ[x, y, z]

    middle = value(0, 0, 0)
    hessian_N33 = np.empty((len(places_N), 3, 3), dtype=np.float32)
    steps = np.eye(3, dtype=int)
    for one in range(3):
        there, back = value(*steps[one]), value(*-steps[one])
        hessian_N33[:, one, one] = (there - 2 * middle + back) / spacing[one] ** 2
        for other in range(one + 1, 3):
            along, across = steps[one] + steps[other], steps[one] - steps[other]
            mixed = value(*along) + value(*-along) - value(*across) - value(*-across)
            hessian_N33[:, one, other] = hessian_N33[:, other, one] = mixed / (4 * spacing[one] * spacing[other])
    lowest, middling, _ = np.linalg.eigvalsh(hessian_N33).T
    return np.sqrt(np.minimum(lowest, 0) * np.minimum(middling, 0))
