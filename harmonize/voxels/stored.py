"""Voxels as they are stored: whole numbers, the scale that gives their real values, and the place that they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from harmonize.voxels.affines import axis_spacing

Numbers = TypeVar("Numbers")
INT16 = np.iinfo(np.int16)


def real_value(stored: Numbers, slope: Any, inter: Any) -> Numbers:
    """The real value of what is stored: ``stored * slope + inter``, as NIfTI defines it.

    Args:
        stored: A number, an array or a tensor, already of the type that the result shall have.
        slope: Scale, of a type that does not widen the result.
        inter: Offset, the same.
    """
    return stored * slope + inter  # type: ignore[operator, no-any-return]


def stored_value(real: Numbers, slope: Any, inter: Any) -> Numbers:
    """What stands for a real value, before it is rounded; undoes `real_value`."""
    return (real - inter) / slope  # type: ignore[operator, no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVoxels:
    """Voxels with their scale.

    Attributes:
        stored_XYZ: int16 (images) or uint8 (masks), shape (X, Y, Z), or (X, Y, Z, 3) with the three CT windows.
        slope: 1 for CT in HU and for masks.
        inter: 0 for CT in HU and for masks.
    """

    stored_XYZ: NDArray[np.integer[Any]]
    slope: float = 1.0
    inter: float = 0.0

    def values(self) -> NDArray[np.float32]:
        """Real values as float32, shape of `stored_XYZ`."""
        return real_value(self.stored_XYZ.astype(np.float32), self.slope, self.inter)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVolume(StoredVoxels):
    """Voxels with their scale and their place.

    Attributes:
        affine: (4, 4) float64, voxel index to RAS+ mm; diagonal but for the origin in every volume of a corpus.
    """

    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        return axis_spacing(self.affine)
