"""A box as one picture: slices of the whole of it, evenly spaced, as channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from finetune.series import UPRIGHT, Pose, Region
from finetune.views.pictures import PicturesView, check_pictures, even_slabs, on_screen
from headspark.config.checks import require

MOST_SLICES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """A box of `data.patch` voxels from below to above, as channels of one picture.

    Attributes:
        kind: ``stack``.
        slices: How many, each the mean of as thick a slab of the box.
        size: Edge of the picture in pixels.
        percentiles: Of an MRI, which become the darkest and the brightest value.
    """

    kind: Literal["stack"] = "stack"
    slices: int = 32
    size: int = 384
    percentiles: tuple[float, float] = (1.0, 99.0)

    pictures: ClassVar[bool] = True
    streams: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_pictures(self.size, self.percentiles)
        require(1 <= self.slices <= MOST_SLICES, f"view.slices {self.slices}: must lie in 1 to {MOST_SLICES}")

    def channels(self, windows: int) -> int:
        """Of the picture: the slices, in each window."""
        return self.slices * windows


class StackView(PicturesView):
    """What the network sees: a bag of one picture, its channels slices from below to above.

    Args:
        patch: Size of the box in voxels.
        slices: How many.
        of_pictures: The other arguments of `PicturesView`.
    """

    def __init__(self, patch: tuple[int, int, int], *, slices: int, **of_pictures: Any) -> None:
        super().__init__(patch, **of_pictures)
        self.count = slices

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(1, C, H, W) of a bag."""
        return (1, self.count * len(self.windows), self.size, self.size)

    def sample(self, region: Region, pose: Pose = UPRIGHT) -> Tensor:
        """x_NCHW."""
        slabs = self.slabs(region, even_slabs(self.patch[2], self.count), pose)
        slices = [self.resized(on_screen(values_XYz.mean(-1))[None])[0] for values_XYz in slabs]
        return self.channels(torch.stack(slices), region).flatten(0, 1)[None]
