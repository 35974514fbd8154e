"""What views of pictures share: they are made of the box that a 3D network would see, a few slices at a time.

Pictures lie as on a screen: front or vertex up, the axis from left to right across, so that a mirror image is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.series import UPRIGHT, Case, Pose, Region
from finetune.views.box import BoxView
from finetune.views.posing import pose_slabs
from harmonize.scan import HU
from harmonize.voxels.stored import StoredVolume, real_value
from headspark.channels import to_network_input
from headspark.config.checks import require

MOST_LOOKED_AT = 100_000
"""Voxels of a region that percentiles are taken of, at most: every so many along each axis."""

LARGEST_EDGE = 1024
"""Of a picture, in pixels."""


def check_pictures(size: int, percentiles: Sequence[float]) -> None:
    """Refuse keys that views of pictures share.

    Raises:
        WrongUse: Names the key.
    """
    require(32 <= size <= LARGEST_EDGE, f"view.size {size}: must lie in 32 to {LARGEST_EDGE} pixels")
    low, high = percentiles
    require(0 <= low < high <= 100, f"view.percentiles {list(percentiles)}: must rise, from 0 to 100")


class PicturesView(BoxView):
    """A bag of pictures of a box; methods as of `BoxView`.

    Args:
        patch: Size of the box in voxels.
        size: Edge of a picture in pixels.
        percentiles: Of an MRI, which become -1 and 1.
        of_box: The other arguments of `BoxView`.
    """

    pictures = True

    def __init__(
        self, patch: tuple[int, int, int], *, size: int, percentiles: tuple[float, float], **of_box: Any
    ) -> None:
        super().__init__(patch, **of_box)
        self.size, self.percentiles = size, percentiles

    def cut(
        self,
        volume: StoredVolume,
        *,
        unit: str,
        foreground_box: Sequence[int],
        case: Case | None = None,
        mask: StoredVolume | None = None,
        whole: bool = False,
    ) -> Region:
        """What is kept of a harmonized volume, prepared; arguments as for `BoxView.cut`."""
        return self.prepared(
            super().cut(volume, unit=unit, foreground_box=foreground_box, case=case, mask=mask, whole=whole)
        )

    def prepared(self, region: Region) -> Region:
        """A region with all that is found in it once and for all poses; nothing, unless a view looks for something.

        A view that does says in `key` what that depends on.
        """
        return region

    def mirrored(self, x: Tensor) -> Tensor:
        """Bags x_BNCHW of the mirror images."""
        return x.flip(-1)

    def slabs(self, region: Region, slabs: Sequence[tuple[int, int]], pose: Pose = UPRIGHT) -> Iterator[Tensor]:
        """Real values of some slabs of slices, (X, Y, slices) each."""
        return pose_slabs(region, self.sample_shape, pose, slabs)

    def channels(self, values: Tensor, region: Region) -> Tensor:
        """What pictures show of real values: windows of a CT, or an MRI between its percentiles as often.

        Args:
            values: Of any shape.
            region: Whose values.

        Returns:
            (windows, ...) in [-1, 1].
        """
        if region.unit == HU:
            return to_network_input(values, HU, self.windows)
        shades = between(values, *percentiles_of(region, self.percentiles)) * 2 - 1
        return shades[None].expand(len(self.windows), *values.shape)

    def resized(self, pictures_CHW: Tensor) -> Tensor:
        """Pictures of any shape as squares of `size` pixels."""
        size = (self.size, self.size)
        if pictures_CHW.shape[-2:] == size:
            return pictures_CHW
        return F.interpolate(pictures_CHW[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def on_screen(values_AB: Tensor) -> Tensor:
    """A plane whose axes go right or to the front, and to the front or up, as a picture (..., rows, columns)."""
    return values_AB.transpose(-1, -2).flip(-2)


def between(values: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """0 up to `low`, 1 from `high` on, linear in between.

    Example:
        >>> between(torch.tensor([0.0, 2.0, 9.0]), 1.0, 3.0)
        tensor([0.0000, 0.5000, 1.0000])
    """
    low, high = (torch.as_tensor(one, device=values.device) for one in (low, high))
    return ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def percentiles_of(region: Region, percentiles: Sequence[float]) -> Tensor:
    """Percentiles of the real values of a region, whatever the pose; (len(percentiles),) on its device."""
    stored = region.stored_XYZ
    step = math.ceil((stored.numel() / MOST_LOOKED_AT) ** (1 / 3))
    shares = torch.tensor(percentiles, dtype=torch.float32, device=stored.device) / 100
    found = torch.quantile(stored[::step, ::step, ::step].float().flatten(), shares)
    return real_value(found, region.slope, region.inter)


def even_slabs(slices: int, count: int) -> list[tuple[int, int]]:
    """First and one more than the last slice of each of `count` slabs; of fewer slices, some come twice.

    Example:
        >>> even_slabs(7, 3), even_slabs(2, 4)
        ([(0, 3), (2, 5), (4, 7)], [(0, 1), (0, 1), (1, 2), (1, 2)])
    """
    return [(number * slices // count, -(-(number + 1) * slices // count)) for number in range(count)]
