"""The slices that look most like vessels, as a bag of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from finetune.series import UPRIGHT, Case, Pose, Region
from finetune.views.bone import RULES, block_means, bone_of, coarsening
from finetune.views.pictures import PicturesView, between, check_pictures, on_screen, percentiles_of
from finetune.views.posing import pose_slabs
from harmonize.scan import HU
from harmonize.voxels.stored import real_value
from harmonize.voxels.vesselness import WIDTHS_MM, vesselness
from headspark.config.checks import require
from headspark.page_locked import copied

VESSELS_HU = (0.0, 500.0)
"""Values of a CT among which vessels are looked for."""

GUIDE_STEP = 1e-4
"""Of what a guide keeps of answers, as integers."""

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

    What looks like vessels is found once a series, in voxels of about a millimetre, and kept as the region's guide;
    each pose looks there which of its slices to show.

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

    def prepared(self, region: Region) -> Region:
        """A region with what looks like vessels as its guide."""
        stored_XYZ, factors = region.stored_XYZ, coarsening(region.spacing)
        if region.unit == HU:
            low, high = VESSELS_HU
            hu_XYZ = real_value(stored_XYZ, region.slope, region.inter)
            shades_XYZ = between(hu_XYZ, low, high).masked_fill_(bone_of(hu_XYZ, region.spacing), 0)
        else:
            low, high = percentiles_of(region, self.percentiles).tolist()
            shades_XYZ = between(real_value(stored_XYZ, region.slope, region.inter), low, high)
        coarse_mm = [factor * mm for factor, mm in zip(factors, region.spacing, strict=True)]
        found = vesselness(block_means(shades_XYZ, factors).numpy(), coarse_mm, dark_too=region.unit != HU)
        return replace(region, guide_XYZ=torch.from_numpy(found / GUIDE_STEP).round().to(torch.int16))

    def key(self, case: Case) -> str:
        """All that a series' region and its guide depend on, as a text."""
        shades = (VESSELS_HU, RULES) if case.unit == HU else self.percentiles
        return repr((super().key(case), shades, WIDTHS_MM, GUIDE_STEP))

    def guide_shape(self, case: Case) -> tuple[int, int, int]:
        """Voxels of its guide, by the manifest."""
        place = self.placed(case)
        x, y, z = (-(-edge // factor) for edge, factor in zip(place.shape, coarsening(place.spacing), strict=True))
        return x, y, z

    def sample(self, region: Region, pose: Pose = UPRIGHT) -> Tensor:
        """x_NCHW."""
        chosen_N = self.chosen(region, pose)
        offsets = torch.arange(-self.neighbours, self.neighbours + 1)
        numbers_NK = (chosen_N[:, None] + offsets).clamp(0, self.patch[2] - 1)
        wanted, place_NK = numbers_NK.unique(return_inverse=True)
        runs = list(_runs(wanted.tolist()))
        shown_SHW = torch.cat([self.resized(on_screen(part.movedim(-1, 0))) for part in self.slabs(region, runs, pose)])
        pictures_NKHW = shown_SHW[copied(place_NK, shown_SHW.device)]
        return self.channels(pictures_NKHW, region).transpose(0, 1).flatten(1, 2)

    def chosen(self, region: Region, pose: Pose = UPRIGHT) -> Tensor:
        """Numbers of the slices that look most like vessels, rising, (N,), on the CPU."""
        best = self._slice_scores(region, pose).topk(self.count, sorted=False).indices
        return best.sort().values.cpu()

    def _slice_scores(self, region: Region, pose: Pose) -> Tensor:
        """How much like vessels each slice looks, (Z,): the mean of its strongest answers."""
        factors = coarsening(region.spacing)
        planes_zV = self._posed_guide(region, pose, factors).movedim(-1, 0).flatten(1)
        most = max(1, int(BRIGHTEST_SHARE * planes_zV.shape[1]))
        scores_z = planes_zV.topk(most, dim=1, sorted=False).values.mean(1)
        return scores_z.repeat_interleave(factors[2])[: self.patch[2]]

    def _posed_guide(self, region: Region, pose: Pose, factors: Sequence[int]) -> Tensor:
        """The guide in a pose, in its voxels, of which the first begins where the first of the box does."""
        guide_XYZ = region.guide_XYZ
        if guide_XYZ is None:
            raise ValueError("a region without a guide was shown to a view that looks there")
        starts = list(zip(region.start, factors, strict=True))
        x, y, z = (first // factor for first, factor in starts)
        a, b, c = (edge_mm * factor for edge_mm, factor in zip(region.spacing, factors, strict=True))
        coarse = replace(
            region, stored_XYZ=guide_XYZ, slope=1.0, inter=0.0, fill=0.0, spacing=(a, b, c), start=(x, y, z)
        )
        rest = [first % factor * mm for (first, factor), mm in zip(starts, region.spacing, strict=True)]
        i, j, k = (mm + more for mm, more in zip(pose.shift, rest, strict=True))
        size = [-(-edge // factor) for edge, factor in zip(self.patch, factors, strict=True)]
        return next(pose_slabs(coarse, size, replace(pose, shift=(i, j, k)), [(0, size[2])]))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of rising numbers without a gap: the first of each, and one more than its last.

    Example:
        >>> list(_runs([2, 3, 4, 7]))
        [(2, 5), (7, 8)]
    """
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1] + 1
