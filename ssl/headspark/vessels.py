"""Where vessels run in a scan, without labels: what hides the blocks around them, and a target beside intensities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from harmonize.pipeline import WINDOWED
from harmonize.scan import HU
from harmonize.voxels.foreground import CROP_CAUTION, find_foreground
from harmonize.voxels.intensity import CT_WINDOWS
from harmonize.voxels.vesselness import brightest_tubes
from headspark.config.checks import require

Look = Literal["bright", "dark"]
LOOKS: dict[str, Look] = {"CTA": "bright", "MRA": "bright", "T1post": "bright", "T2w": "dark"}
"""How vessels look in contrasts of the manifest in which they stand out: by contrast agent or inflow, or by the signal
that flowing blood loses. In others, and where the contrast is not known, nothing is looked for."""

VESSEL_SHARE = 0.01
"""Of the inner head that is taken for vessels: what looks most like them. A round figure."""

SHELL_MM = 12.0
"""Skin and skull, where nothing is looked for: a round figure."""

BONE_HU, BONE_MM = 600.0, 2.0
"""Denser than contrast in an artery; and how far its blurred edge reaches."""

VESSELS_HU = (0.0, 500.0)
"""Values of a CT among which vessels are looked for."""

SHELL_STEP_MM = 4.0
"""Voxels in which depth below the surface is measured."""

STEP_MM = 0.25
"""Of distances as they are kept, in one byte."""

VERSION = 2
"""Of all this: what is kept of one is not taken for another's."""

UNKNOWN = 255
"""Stands for no distance: nothing was looked for, or it is outside of the scan."""

NEAR_SHARE = 0.005
"""Of the voxels of a block that are vessel in one that counts as near them: 20 of a block of 16."""

MOST_ODDS = 1000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class VesselConfig:
    """What is done about vessels, as far as they stand out: bright in CTA, MRA and T1post, dark in T2w.

    After artery-masked pretraining with an artery-distance target (arXiv 2502.21244), without labels.

    Attributes:
        mask_odds: The odds that a block with vessels is hidden, by those of another; 1: as often. The mask ratio stays.
        distance_weight: Of the error of a further channel that is predicted, how near a vessel is, beside that of the
            intensities; 0: there is no such channel.
        reach_mm: From a vessel to here, that channel falls from 1 to 0.
    """

    mask_odds: float = 1.0
    distance_weight: float = 0.0
    reach_mm: float = 10.0

    def __post_init__(self) -> None:
        low = 1 / MOST_ODDS
        require(
            low <= self.mask_odds <= MOST_ODDS,
            f"vessels.mask_odds {self.mask_odds}: must lie in {low:g} to {MOST_ODDS:g}; the nearest is "
            f"{MOST_ODDS if self.mask_odds > MOST_ODDS else low:g}",
        )
        require(
            0 <= self.distance_weight < math.inf,
            f"vessels.distance_weight {self.distance_weight}: must be 0 or more, and finite",
        )
        most = (UNKNOWN - 1) * STEP_MM
        require(
            1 <= self.reach_mm <= most,
            f"vessels.reach_mm {self.reach_mm}: must lie in 1 to {most:g}; the nearest is "
            f"{most if self.reach_mm > most else 1:g}",
        )

    @property
    def wanted(self) -> bool:
        """Whether anything is done about them."""
        return self.mask_odds != 1 or self.distance_weight > 0


def look_of(modality: str) -> Look | None:
    """How vessels look in a contrast; None where they do not stand out.

    Example:
        >>> [look_of(modality) for modality in ("CTA", "T2w", "CT", "MR")]
        ['bright', 'dark', None, None]
    """
    return LOOKS.get(modality)


def distance_map(values_XYZ: NDArray[Any], spacing: Sequence[float], *, unit: str, look: Look) -> NDArray[np.uint8]:
    """How far each voxel of a scan is from what looks most like vessels.

    Args:
        values_XYZ: Real values, shape (X, Y, Z), or (X, Y, Z, 3) with unit ``window``.
        spacing: Of the voxels in mm.
        unit: As the manifest has it.
        look: Of vessels.

    Returns:
        uint8, steps of `STEP_MM`, 0 within vessels, 254 also for what is farther; `UNKNOWN` everywhere if
        there are none.
    """
    if unit == WINDOWED:  # back from the widest window, in which arteries are not saturated
        width, level = CT_WINDOWS["bone"]
        values_XYZ = values_XYZ[..., list(CT_WINDOWS).index("bone")] * width + (level - width / 2)
        unit = HU
    vessels_XYZ = find_vessels(values_XYZ, spacing, unit=unit, look=look)
    if not vessels_XYZ.any():
        return np.full(vessels_XYZ.shape, UNKNOWN, dtype=np.uint8)
    steps_XYZ = ndimage.distance_transform_edt(~vessels_XYZ, sampling=[mm / STEP_MM for mm in spacing])
    return np.clip(np.rint(steps_XYZ), 0, UNKNOWN - 1).astype(np.uint8)


def find_vessels(values_XYZ: NDArray[Any], spacing: Sequence[float], *, unit: str, look: Look) -> NDArray[np.bool_]:
    """What looks most like vessels below skin and skull, bool; arguments as of `distance_map`."""
    x, y, z = spacing
    within_XYZ = _inner(find_foreground(values_XYZ, (x, y, z), unit, caution=CROP_CAUTION), spacing)
    if unit == HU:
        bone_XYZ = values_XYZ > BONE_HU
        for axis, mm in enumerate(spacing):
            bone_XYZ = ndimage.maximum_filter1d(bone_XYZ, 2 * round(BONE_MM / mm) + 1, axis)
        within_XYZ &= ~bone_XYZ
        values_XYZ = np.clip(values_XYZ, *VESSELS_HU)
    values_XYZ = -values_XYZ if look == "dark" else values_XYZ
    return brightest_tubes(values_XYZ, spacing, within_XYZ=within_XYZ, share=VESSEL_SHARE)


def nearness(steps: Tensor, reach_mm: float) -> Tensor:
    """The target that is predicted: 1 in a vessel, falling evenly to 0 at `reach_mm`.

    Args:
        steps: Distances of `distance_map`, float, any shape.
        reach_mm: As of `VesselConfig`.

    Example:
        >>> import torch
        >>> nearness(torch.tensor([0.0, 20.0, 40.0, 80.0]), 10.0)
        tensor([1.0000, 0.5000, 0.0000, 0.0000])
    """
    return (1 - steps * (STEP_MM / reach_mm)).clamp(min=0)


def _inner(head_XYZ: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.bool_]:
    """The part of a head that is `SHELL_MM` and more below its surface; where the scan ends, no surface is seen."""
    factors = [max(1, round(SHELL_STEP_MM / mm)) for mm in spacing]
    coarse = head_XYZ[:: factors[0], :: factors[1], :: factors[2]]
    if coarse.all():
        return head_XYZ.copy()
    sizes = [factor * mm for factor, mm in zip(factors, spacing, strict=True)]
    deep = ndimage.distance_transform_edt(coarse, sampling=sizes) > SHELL_MM
    for axis, (factor, edge) in enumerate(zip(factors, head_XYZ.shape, strict=True)):
        deep = deep.repeat(factor, axis).take(range(edge), axis)
    return deep & head_XYZ
