"""How much a voxel looks like part of a vessel: the Laplacian of Gaussians of several widths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

WIDTHS_MM = (1.0, 2.0)
"""Standard deviations of the Gaussians: they answer most to tubes about three times as wide."""

TRUNCATED = 3.0
"""Standard deviations after which a Gaussian ends."""


def vesselness(values_XYZ: Tensor, spacing: Sequence[float], *, dark_too: bool) -> Tensor:
    """The strongest answer among the widths, normalised by their squares; 0 and more.

    Args:
        values_XYZ: Values in which vessels are brighter than what surrounds them.
        spacing: Of the voxels in mm.
        dark_too: Whether vessels may be darker as well.
    """
    found = torch.zeros_like(values_XYZ)
    for width in WIDTHS_MM:
        answer = laplacian_of_gaussian(values_XYZ, spacing, width).mul_(-(width**2))
        found = torch.maximum(found, answer.abs_() if dark_too else answer)
    return found


def laplacian_of_gaussian(values_XYZ: Tensor, spacing: Sequence[float], width: float) -> Tensor:
    """Second derivatives along all axes, added up, of the smoothed values, per mm^2; float32, on the CPU.

    Args:
        values_XYZ: Any values.
        spacing: Of the voxels in mm.
        width: Standard deviation of the Gaussian in mm.
    """
    smooth = values_XYZ.numpy().astype(np.float32)
    for axis, mm in enumerate(spacing):
        ndimage.gaussian_filter1d(smooth, width / mm, axis, output=smooth, mode="nearest", truncate=TRUNCATED)
    total = np.zeros_like(smooth)
    for axis, mm in enumerate(spacing):
        total += ndimage.correlate1d(smooth, np.array([1.0, -2.0, 1.0]) / mm**2, axis, mode="nearest")
    return torch.from_numpy(total)
