"""Chance that repeats: generators and UIDs drawn from names, and smooth random fields."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmonize.voxels.affines import turns

UID_ROOT = "1.2.826.0.1.3680043.8.498."
"""The root that pydicom uses for example objects, as the competition's own UIDs do."""

COIL_MM = 300.0
"""Length of a typical wave of the unevenness of a coil."""

_BSPLINE_STD = (151 / 315) ** 1.5
"""Standard deviation of unit white noise after a cubic B-spline in three dimensions (mean of summed squares, 3/2)."""


def rng_of(*names: object) -> np.random.Generator:
    """Give the generator that belongs to `names`; other names give an independent one.

    Example:
        >>> float(rng_of(0, "a").random()) == float(rng_of(0, "a").random())
        True
        >>> float(rng_of(0, "a").random()) == float(rng_of(0, "b").random())
        False
    """
    return np.random.default_rng(int.from_bytes(_digest(names)[:16], "big"))


def uid_of(*names: object) -> str:
    """Give the DICOM UID that belongs to `names`: at most 64 characters, no leading zeros in a component.

    Example:
        >>> uid_of(0, "series", 1)[:26]
        '1.2.826.0.1.3680043.8.498.'
    """
    return f"{UID_ROOT}{int.from_bytes(_digest(names)[:15], 'big')}"


def smooth_field(
    axes_mm: Sequence[NDArray[np.floating]], wavelength_mm: ArrayLike, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a smooth random field of zero mean and about unit variance on a rectangular grid.

    White noise on a lattice of half a wavelength, joined by cubic B-splines: three small matrix products. The
    lattice hangs on the extent in mm, not on the sampling, so a finer grid shows the same field.

    Args:
        axes_mm: Coordinates along each of the three axes, evenly spaced.
        wavelength_mm: Length of a typical wave, one for all axes or one each.
        rng: Where the chance comes from.

    Returns:
        float32, shape (len(axis) for each axis).
    """
    waves = np.broadcast_to(np.asarray(wavelength_mm, dtype=np.float64), 3)
    bases = [
        _bspline_basis(np.asarray(axis, dtype=np.float64), wave / 2) for axis, wave in zip(axes_mm, waves, strict=True)
    ]
    field = rng.standard_normal([basis.shape[1] for basis in bases]).astype(np.float32)
    for basis in bases:
        # Contract the first axis and append the result as the last: after three turns the order is restored.
        field = np.tensordot(field, basis, axes=([0], [1]))
    return np.ascontiguousarray(field / np.float32(_BSPLINE_STD))


def bias_planes(
    shape: Sequence[int], spacing: Sequence[float], rng: np.random.Generator
) -> Callable[[int], NDArray[np.float32]]:
    """Draw the smooth field of a receiving coil; gives it slice by slice.

    Args:
        shape: Voxels along the three axes, the slices along the last.
        spacing: Their size in mm.
        rng: Where the chance comes from.

    Returns:
        What gives the field in slice k, (X, Y) float32 of zero mean and about unit variance, at most 2 either way.
    """
    axes_mm = [np.arange(count, dtype=np.float64) * step for count, step in zip(shape, spacing, strict=True)]
    bases = [_bspline_basis(axis_mm, COIL_MM / 2) for axis_mm in axes_mm]
    lattice = rng.standard_normal([basis.shape[1] for basis in bases]).astype(np.float32)
    field_CXY = np.einsum("abc,xa,yb->cxy", lattice, bases[0], bases[1]) / _BSPLINE_STD

    def plane(k: int) -> NDArray[np.float32]:
        summed_XY = np.tensordot(bases[2][k].astype(np.float64), field_CXY, axes=1)
        return np.clip(summed_XY, -2, 2).astype(np.float32)

    return plane


def rotation(angles_deg: ArrayLike) -> NDArray[np.float64]:
    """Rotation matrix (3, 3) about x, then y, then z, in degrees."""
    about_x, about_y, about_z = turns(np.deg2rad(np.asarray(angles_deg, dtype=np.float64)))
    return about_z @ about_y @ about_x


def _digest(names: Sequence[object]) -> bytes:
    return hashlib.sha256("/".join(str(name) for name in names).encode()).digest()


def _bspline_basis(axis_mm: NDArray[np.float64], knot_mm: float) -> NDArray[np.float32]:
    place = (axis_mm - axis_mm[0]) / knot_mm + 1.0
    first = np.floor(place).astype(int) - 1
    t = place - np.floor(place)
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    basis = np.zeros((len(axis_mm), int(first[-1]) + 5), dtype=np.float32)
    for corner in range(4):
        basis[np.arange(len(axis_mm)), first + corner] = weights[:, corner]
    return basis
