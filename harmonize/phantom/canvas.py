"""What a head is painted on: tissues on a rectangular grid, and the distance fields that tell where each goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmonize.phantom.randomness import smooth_field
from harmonize.phantom.vessels.tubes import FAR_MM, Tube, distances, spline

Field = NDArray[np.float32]
"""A value a voxel, shape (X, Y, Z) or broadcasting to it; distances are in mm and negative inside."""

WALL_MARGIN_MM = 6.0
"""Distances are needed this far outside a shape that is painted: more than any wall."""
UNION_MARGIN_MM = 30.0
"""And this far outside one that is joined smoothly with another."""


class Tissue(IntEnum):
    """What a voxel of the head is made of."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    BONE = 4
    MARROW = 5
    CSF = 6
    GREY = 7
    WHITE = 8
    EYE = 9
    MUCOSA = 10
    LESION = 11
    DISC = 12
    COUCH = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """The volume under the brush.

    Attributes:
        tissue_XYZ: uint8 of `Tissue`, painted in place.
        x: Template mm along the first axis, shape (X, 1, 1).
        y: Likewise, shape (1, Y, 1).
        z: Likewise, shape (1, 1, Z).
        affine: (4, 4), voxel index to template mm.
        rng: Where all chance of this head comes from.
    """

    tissue_XYZ: NDArray[np.uint8]
    x: Field
    y: Field
    z: Field
    affine: NDArray[np.float64]
    rng: np.random.Generator

    @classmethod
    def blank(
        cls, low_mm: Sequence[float], high_mm: Sequence[float], resolution_mm: float, rng: np.random.Generator
    ) -> Canvas:
        """A canvas of air over a box of the template."""
        x, y, z = (
            np.arange(low, high + resolution_mm / 2, resolution_mm, dtype=np.float32)
            for low, high in zip(low_mm, high_mm, strict=True)
        )
        affine = np.diag([resolution_mm, resolution_mm, resolution_mm, 1.0])
        affine[:3, 3] = low_mm
        return cls(
            tissue_XYZ=np.zeros((len(x), len(y), len(z)), dtype=np.uint8),
            x=x[:, None, None],
            y=y[None, :, None],
            z=z[None, None, :],
            affine=affine,
            rng=rng,
        )

    def paint(self, where: NDArray[np.bool_], tissue: Tissue) -> None:
        """Lay a tissue over what was there; `where` broadcasts to the volume."""
        np.copyto(self.tissue_XYZ, np.uint8(tissue), where=where)

    def shell(self, distance: Field, cortex_mm: float) -> None:
        """Paint a bone with marrow inside its cortex."""
        self.paint(distance < 0, Tissue.BONE)
        self.paint(distance < -cortex_mm, Tissue.MARROW)

    def field(self, wavelength_mm: ArrayLike) -> Field:
        """A smooth random field; see `smooth_field`."""
        return smooth_field([self.x.ravel(), self.y.ravel(), self.z.ravel()], wavelength_mm, self.rng)

    def tube(self, points_N3: ArrayLike, radii_N: ArrayLike) -> Field:
        """Distance to one curved tube; see `spline`."""
        return self.tubes([spline(points_N3, radii_N)])

    def tubes(self, tubes: Sequence[Tube]) -> Field:
        """Distance to the nearest of some tubes."""
        return distances(tubes, self.affine, self.tissue_XYZ.shape, 2.0)[0]

    def ellipsoid(
        self,
        centre: tuple[float, float, float],
        half: tuple[float, float, float],
        *,
        power: float = 2.0,
        margin_mm: float = WALL_MARGIN_MM,
    ) -> Field:
        """Radial distance to a (super)ellipsoid.

        Args:
            centre: In template mm.
            half: Half axes in mm.
            power: 2 for an ellipsoid; more makes it boxier.
            margin_mm: Beyond the box this much wider the result is `FAR_MM`.
        """
        return self._ellipsoid(self.x - np.float32(centre[0]), centre, half, power, margin_mm)

    def ellipsoid_pair(self, centre: tuple[float, float, float], half: tuple[float, float, float]) -> Field:
        """Radial distance to the nearer of an ellipsoid and its mirror image on the other side of the head."""
        return self._ellipsoid(np.abs(self.x) - np.float32(centre[0]), centre, half, 2.0, WALL_MARGIN_MM)

    def _ellipsoid(
        self,
        x: Field,
        centre: tuple[float, float, float],
        half: tuple[float, float, float],
        power: float,
        margin_mm: float,
    ) -> Field:
        offsets = [np.abs(axis).ravel() for axis in (x, self.y - np.float32(centre[1]), self.z - np.float32(centre[2]))]
        near = [np.flatnonzero(offset < semi + margin_mm) for offset, semi in zip(offsets, half, strict=True)]
        a = offsets[0][near[0]][:, None, None]
        b = offsets[1][near[1]][None, :, None]
        c = offsets[2][near[2]][None, None, :]
        reach = np.sqrt(a * a + b * b + c * c)
        u, v, w = ((axis / np.float32(semi)) ** np.float32(power) for axis, semi in zip((a, b, c), half, strict=True))
        total = u + v + w
        level = np.sqrt(total) if power == 2 else total ** np.float32(1 / power)
        found = np.full(self.tissue_XYZ.shape, FAR_MM)
        # The ray from the centre through a voxel meets the surface at reach / level.
        found[np.ix_(*near)] = reach - reach / np.maximum(level, np.float32(1e-2))
        return found


def union(a: Field, b: Field, width_mm: float) -> Field:
    """Smooth union of two distance fields, rounded over `width_mm` (the polynomial smooth minimum)."""
    h = np.maximum(width_mm - np.abs(a - b), 0) / np.float32(width_mm)
    return np.minimum(a, b) - h * h * np.float32(width_mm / 4)


def ramp(values: Field, width: float) -> Field:
    """A smooth step from 0 to 1 where `values` pass zero."""
    return 1 / (1 + np.exp(-np.clip(values / np.float32(width), -20, 20)))
