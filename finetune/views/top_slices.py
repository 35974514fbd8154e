"""The slices that look most like vessels, as a bag of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.series import UPRIGHT, Pose, Region
from finetune.views.bone import bone_of
from finetune.views.pictures import PicturesView, between, check_pictures, on_screen, percentiles_of
from finetune.views.vesselness import vesselness
from harmonize.scan import HU
from headspark.config.checks import require

VESSELS_HU = (0.0, 500.0)
"""Values of a CT among which vessels are looked for."""

COARSEST_MM = 1.0
"""Voxels of which vessels are looked for: finer ones cost more and tell the same."""

BRIGHTEST_SHARE = 0.01
"""Of the voxels of a slice, whose mean says how much like vessels it looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopSlicesConfig:
    """Those slices of a box of `data.patch` voxels that hold most of what looks like vessels.

    A CT is looked at between 0 and 500 HU without its bone, where vessels are bright; an MRI between its percentiles,
    where they may be dark as well.

    Attributes:
        kind: ``top_slices``.
        slices: How many; they keep their order.
        neighbours: Slices before and after each that are its further channels.
        size: Edge of a picture in pixels.
        percentiles: Of an MRI, which become the darkest and the brightest value.
    """

    kind: Literal["top_slices"] = "top_slices"
    slices: int = 24
    neighbours: int = 1
    size: int = 224
    percentiles: tuple[float, float] = (1.0, 99.0)

    pictures: ClassVar[bool] = True
    streams: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_pictures(self.size, self.percentiles)
        require(1 <= self.slices <= 256, f"view.slices {self.slices}: must lie in 1 to 256")
        require(0 <= self.neighbours <= 8, f"view.neighbours {self.neighbours}: must lie in 0 to 8")

    def channels(self, windows: int) -> int:
        """Of a picture: a slice and its neighbours, in each window."""
        return (1 + 2 * self.neighbours) * windows


class TopSlicesView(PicturesView):
    """What the network sees: a bag of slices, from below to above.

    Args:
        patch: Size of the box in voxels.
        slices: How many.
        neighbours: Of each, on either side.
        of_pictures: The other arguments of `PicturesView`.
    """

    def __init__(self, patch: tuple[int, int, int], *, slices: int, neighbours: int, **of_pictures: Any) -> None:
        super().__init__(patch, **of_pictures)
        self.count, self.neighbours = slices, neighbours

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(N, C, H, W) of a bag."""
        channels = (1 + 2 * self.neighbours) * len(self.windows)
        return (self.count, channels, self.size, self.size)

    def sample(self, region: Region, pose: Pose = UPRIGHT) -> Tensor:
        """x_NCHW."""
        (values_XYZ,) = self.slabs(region, [(0, self.patch[2])], pose)
        chosen_N = self.chosen(values_XYZ, region)
        offsets = torch.arange(-self.neighbours, self.neighbours + 1, device=chosen_N.device)
        numbers_NK = (chosen_N[:, None] + offsets).clamp(0, self.patch[2] - 1)
        planes_NKXY = values_XYZ.movedim(-1, 0)[numbers_NK]
        pictures_NKHW = self.resized(on_screen(planes_NKXY).flatten(0, 1)).unflatten(0, (self.count, -1))
        return self.channels(pictures_NKHW, region).transpose(0, 1).flatten(1, 2)

    def chosen(self, values_XYZ: Tensor, region: Region) -> Tensor:
        """Numbers of the slices that look most like vessels, rising, (N,)."""
        mean_K = self._slice_scores(values_XYZ, region)
        best = mean_K.topk(self.count, sorted=False).indices
        return best.sort().values

    def _slice_scores(self, values_XYZ: Tensor, region: Region) -> Tensor:
        """How much like vessels each slice looks, (Z,)."""
        spacing, edges = region.spacing, values_XYZ.shape
        if region.unit == HU:
            low, high = VESSELS_HU
            values_XYZ = values_XYZ.masked_fill(bone_of(values_XYZ, spacing), low)
        else:
            low, high = percentiles_of(region, self.percentiles).tolist()
        shades_XYZ = between(values_XYZ, low, high)
        factors = [max(1, int(COARSEST_MM / mm + 1e-6)) for mm in spacing]
        coarse = F.avg_pool3d(shades_XYZ[None, None], factors, ceil_mode=True)[0, 0]
        coarse_mm = [factor * mm for factor, mm in zip(factors, spacing, strict=True)]
        found = vesselness(coarse, coarse_mm, dark_too=region.unit != HU)
        planes_zV = found.movedim(-1, 0).flatten(1)
        most = max(1, int(BRIGHTEST_SHARE * planes_zV.shape[1]))
        scores_z = planes_zV.topk(most, dim=1, sorted=False).values.mean(1)
        return scores_z.repeat_interleave(factors[2])[: edges[2]]
