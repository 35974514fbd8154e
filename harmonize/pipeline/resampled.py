"""What the steps of the pipeline hand on: a scan on its target grid, before its intensities are normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision
from harmonize.voxels.grids import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """A scan on its target grid, before its intensities are normalised.

    Attributes:
        values_XYZ: Finite real values.
        grid: Where they lie.
        foreground_XYZ: bool, same shape.
        mask_XYZ: uint8, uint16 or None.
        mask_kind: Its kind.
        decisions: So far.
        brain_XYZ: bool, same shape, or None.
        whole: The whole scan on a coarse grid, where this is a part of it that was cut out by a rule of its own: MRI is
            normalised by all of a head, whatever part of it is stored.
    """

    values_XYZ: NDArray[Any]
    grid: Grid
    foreground_XYZ: NDArray[np.bool_]
    mask_XYZ: NDArray[Any] | None
    mask_kind: str | None
    decisions: tuple[Decision, ...]
    brain_XYZ: NDArray[np.bool_] | None = None
    whole: Resampled | None = None
