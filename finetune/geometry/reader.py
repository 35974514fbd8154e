"""A trained network as an estimator of stripped stacks, beside what the head's outline says of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from finetune.geometry.network import SHAPE, WAYS, GeometryNetwork, told
from harmonize.dicom.estimate import Estimate, estimate_stack
from harmonize.scan import HU

CT_RANGE = (-200.0, 500.0)
"""HU that the network tells apart."""
MR_PERCENTILES = (1.0, 99.0)
WORST = 0.35
"""An extent that may be further off is not worth more than what the outline says."""

TURNED = math.log(3)
"""Scanners seldom number slices downward, or from the back: three to one must be the odds of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryReader:
    """How a stack lies, by a network that learned from a corpus.

    Attributes:
        network: In eval mode.
        spread_2: What the network's own uncertainty of both extents is to be multiplied by, as measured on series that
            it did not learn from.
        facts: What was measured on these.
    """

    network: GeometryNetwork
    spread_2: tuple[float, float]
    facts: dict[str, object]

    @torch.inference_mode()
    def __call__(self, voxels_ZYX: NDArray[Any], unit: str) -> Estimate | None:
        """As `harmonize.dicom.estimate.estimate_stack`, which counts where the network is unsure; its None stays."""
        by_outline = estimate_stack(voxels_ZYX, unit)
        if by_outline is None:  # no head, or few slices: nothing that the network has learned from either
            return None
        slices, rows, columns = voxels_ZYX.shape
        x_ZYX = scaled(few_voxels(voxels_ZYX), unit)
        read = self.network(x_ZYX[None, None], told(slices, rows, columns, is_ct=unit == HU)[None])
        edge_mm, height_mm = (math.exp(value) for value in read.log_extents_B2[0].tolist())
        sigmas = [math.exp(log) * by for log, by in zip(read.log_sigmas_B2[0].tolist(), self.spread_2, strict=True)]
        if not max(sigmas) <= WORST:  # what is no number is unsure too
            return by_outline
        way = WAYS[int(read.way_logits_B3[0].argmax())]
        return Estimate(
            pixel_mm=edge_mm / math.sqrt(rows * columns),
            pixel_error=sigmas[0],
            step_mm=height_mm / slices,
            step_error=sigmas[1],
            way=way,
            # Both sides of a head look the same.
            direction=-1 if read.turned_logit_B[0] > TURNED and way != "sagittal" else 1,
        )


def few_voxels(voxels_ZYX: NDArray[Any]) -> Tensor:
    """A stack of any shape in `SHAPE` means of its voxels, or between them where it has fewer; float32."""
    # Few of many slices and pixels are as good, and a stack of a thousand pictures stays where it is.
    steps = [max(1, size // (4 * wanted)) for size, wanted in zip(voxels_ZYX.shape, SHAPE, strict=True)]
    part = np.ascontiguousarray(voxels_ZYX[:: steps[0], :: steps[1], :: steps[2]], dtype=np.float32)
    x = torch.from_numpy(part)[None, None]
    # Means over the axes that have more, then lines between along those that have fewer.
    slices, rows, columns = (min(size, wanted) for size, wanted in zip(part.shape, SHAPE, strict=True))
    x = F.adaptive_avg_pool3d(x, (slices, rows, columns))
    return F.interpolate(x, SHAPE, mode="trilinear", align_corners=False)[0, 0]


def scaled(x_ZYX: Tensor, unit: str) -> Tensor:
    """Values in -1 to 1, alike whatever an MRI was scaled by."""
    low, high = CT_RANGE
    if unit != HU:
        low, high = np.percentile(x_ZYX.numpy(), MR_PERCENTILES)
    return ((x_ZYX - low) / max(high - low, 1e-6) * 2 - 1).clamp(-1, 1)
