"""How much a voxel looks like part of a vessel: the Laplacian of Gaussians of several widths, as scipy has it.

On the device of the values: scipy's and ITK's work on the CPU alone, and MONAI has the Gaussian, not the Laplacian.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTHS_MM = (1.0, 2.0)
"""Standard deviations of the Gaussians: they answer most to tubes about three times as wide."""


def vesselness(values_XYZ: Tensor, spacing: Sequence[float], *, dark_too: bool) -> Tensor:
    """The strongest answer among the widths, normalised by their squares; 0 and more.

    Args:
        values_XYZ: Values in which vessels are brighter than what surrounds them.
        spacing: Of the voxels in mm.
        dark_too: Whether vessels may be darker as well.
    """
    found = torch.zeros_like(values_XYZ)
    for width in WIDTHS_MM:
        answer = -(width**2) * laplacian_of_gaussian(values_XYZ, spacing, width)
        found = torch.maximum(found, answer.abs() if dark_too else answer)
    return found


def laplacian_of_gaussian(values_XYZ: Tensor, spacing: Sequence[float], width: float) -> Tensor:
    """Second derivatives along all axes, added up, of the smoothed values, per mm^2.

    Args:
        values_XYZ: Any values.
        spacing: Of the voxels in mm.
        width: Standard deviation of the Gaussian in mm.
    """
    from monai.networks.layers import GaussianFilter  # slow to load, and no volume needs it

    smooth = GaussianFilter(3, [width / mm for mm in spacing], truncated=3.0).to(values_XYZ.device)
    # The filter fills with zeros beyond the ends: a margin keeps their edge away.
    margins = [min(round(3 * width / mm) + 1, edge - 1) for mm, edge in zip(spacing, values_XYZ.shape, strict=True)]
    sides = [side for margin in reversed(margins) for side in (margin, margin)]
    smoothed = smooth(F.pad(values_XYZ[None, None], sides, mode="replicate"))[0, 0]
    total = torch.zeros_like(smoothed)
    for axis, mm in enumerate(spacing):
        total += (smoothed.roll(1, axis) - 2 * smoothed + smoothed.roll(-1, axis)) / mm**2
    return total[tuple(slice(margin, margin + edge) for margin, edge in zip(margins, values_XYZ.shape, strict=True))]
