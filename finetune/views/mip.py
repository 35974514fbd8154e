"""Maximum intensity projections along three axes, without bone, in which arteries are shown once more by themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from finetune.series import UPRIGHT, Case, Pose, Region
from finetune.views import bone
from finetune.views.pictures import PicturesView, between, check_pictures, on_screen, percentiles_of
from harmonize.scan import HU
from harmonize.voxels.stored import real_value
from headspark.config.checks import require

PLANES = 3
SLICES_AT_ONCE = 32
"""Of the box in memory as real values."""

ARTERIES_HU = (150.0, 400.0)
"""Where the picture of the arteries begins and is brightest, in a CT."""

ARTERIES_PERCENTILES = (90.0, 99.9)
"""The same of an MRI, in percentiles of its box."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MipConfig:
    """Projections of a box of `data.patch` voxels: each CT window, and one more channel for arteries.

    Attributes:
        kind: ``mip``.
        size: Edge of a picture in pixels.
        slabs: Pictures along each axis, each the projection of as thick a slab.
        without_bone: Whether the bone of a CT is left out of its projections.
        percentiles: Of an MRI, which become the darkest and the brightest value.
    """

    kind: Literal["mip"] = "mip"
    size: int = 224
    slabs: int = 1
    without_bone: bool = True
    percentiles: tuple[float, float] = (1.0, 99.9)

    pictures: ClassVar[bool] = True
    streams: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_pictures(self.size, self.percentiles)
        require(1 <= self.slabs <= 64, f"view.slabs {self.slabs}: must lie in 1 to 64")

    def channels(self, windows: int) -> int:
        """Of a picture: the windows, and the arteries."""
        return windows + 1


class MipView(PicturesView):
    """What the network sees: a bag of projections, first from above, then from the front, then from the side.

    Args:
        patch: Size of the box in voxels.
        slabs: Pictures along each axis.
        without_bone: Whether bone is left out.
        of_pictures: The other arguments of `PicturesView`.
    """

    def __init__(self, patch: tuple[int, int, int], *, slabs: int, without_bone: bool, **of_pictures: Any) -> None:
        super().__init__(patch, **of_pictures)
        self.count, self.without_bone = slabs, without_bone

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(N, C, H, W) of a bag."""
        return (PLANES * self.count, len(self.windows) + 1, self.size, self.size)

    def prepared(self, region: Region) -> Region:
        """A region without bone: found once a series, and not for every pose."""
        return without_bone(region) if self.without_bone and region.unit == HU else region

    def key(self, case: Case) -> str:
        """All that a series' region depends on, as a text."""
        key = super().key(case)
        return repr((key, bone.RULES)) if self.without_bone and case.unit == HU else key

    def mirrored(self, x: Tensor) -> Tensor:
        """Bags of the mirror images: those from the side are the same, in the other order."""
        above_and_front, side = x.split([2 * self.count, self.count], 1)
        return torch.cat([above_and_front.flip(-1), side.flip(1)], 1)

    def sample(self, region: Region, pose: Pose = UPRIGHT) -> Tensor:
        """x_NCHW."""
        seen = []
        for plane_SAB in self._projections(region, pose):
            plane_SHW = on_screen(plane_SAB)
            shown_CSHW = torch.cat([self.channels(plane_SHW, region), self._arteries(plane_SHW, region)[None]])
            seen.append(self.resized(shown_CSHW.flatten(0, 1)).unflatten(0, shown_CSHW.shape[:2]).transpose(0, 1))
        return torch.cat(seen)

    def _arteries(self, values_SHW: Tensor, region: Region) -> Tensor:
        low, high = ARTERIES_HU if region.unit == HU else percentiles_of(region, ARTERIES_PERCENTILES)
        return between(values_SHW, low, high) * 2 - 1

    def _projections(self, region: Region, pose: Pose) -> tuple[Tensor, Tensor, Tensor]:
        """Largest real values of each slab, (S, X, Y), (S, X, Z) and (S, Y, Z).

        Windows are projected with them: none changes which of two values is larger.
        """
        x, y, z = self.patch
        count = self.count
        wanted = [(first, min(first + SLICES_AT_ONCE, z)) for first in range(0, z, SLICES_AT_ONCE)]
        above = torch.full((count, x, y), -torch.inf, device=region.stored_XYZ.device)
        front, side = [], []
        for (first, end), inside in zip(wanted, self.slabs(region, wanted, pose), strict=True):
            for number in range(count):
                low, high = (max(first, number * z // count), min(end, (number + 1) * z // count))
                if low < high:
                    part = inside[..., low - first : high - first].amax(-1)
                    above[number] = torch.maximum(above[number], part)
            front.append(torch.stack([part.amax(1) for part in inside.tensor_split(_cuts(y, count), 1)]))
            side.append(torch.stack([part.amax(0) for part in inside.tensor_split(_cuts(x, count), 0)]))
        return above, torch.cat(front, -1), torch.cat(side, -1)


def without_bone(region: Region) -> Region:
    """A CT's region with what lies outside of the field of view wherever there is bone."""
    found = bone.bone_of(real_value(region.stored_XYZ, region.slope, region.inter), region.spacing)
    return replace(region, stored_XYZ=region.stored_XYZ.masked_fill(found, int(region.fill)))


def _cuts(edge: int, count: int) -> list[int]:
    return [number * edge // count for number in range(1, count)]
