"""Patches anywhere in a volume: a training sample is a patch that is drawn, often one around a structure of the mask.

All of the volume is kept; a network that answers voxel by voxel is asked about it tile by tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from finetune.series import Case, Region
from finetune.views.box import BoxView
from finetune.views.region import MARGIN, place_region
from harmonize.voxels.stored import StoredVolume
from headspark.config.checks import require


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchesConfig:
    """Patches of `data.patch` voxels of `data.spacing` mm, anywhere in the volume.

    Attributes:
        kind: ``patches``.
        foreground_share: Share of the training draws whose patch lies around a voxel of a structure: first one of those
            that the series has is drawn, each alike, then one of its voxels. The others lie anywhere. The share is
            dealt evenly, so that each batch has its part. nnU-Net asks for 0.33, which makes one of its two patches a
            step.
    """

    kind: Literal["patches"] = "patches"
    foreground_share: float = 0.33

    pictures: ClassVar[bool] = False
    streams: ClassVar[int] = 1

    def channels(self, windows: int) -> int:
        """Of the input, by the number of CT windows."""
        return windows

    def __post_init__(self) -> None:
        share = self.foreground_share
        require(0 <= share <= 1, f"view.foreground_share {share}: must lie in [0, 1]")


class PatchesView(BoxView):
    """What the network sees: a patch of a volume that is kept whole; methods as of `BoxView`.

    Args:
        patch: Its size in voxels.
        foreground_share: Of `PatchesConfig`.
        of_box: The other arguments of `BoxView`.
    """

    def __init__(self, patch: tuple[int, int, int], *, foreground_share: float, **of_box: Any) -> None:
        super().__init__(patch, **of_box)
        self.foreground_share = foreground_share

    def load(self, case: Case) -> Region:
        """Read a series of the corpus, and keep it whole.

        Raises:
            UserError: A file is gone or damaged; names the series.
        """
        return super().load(_whole(case))

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
        """All of a harmonized volume; where its head lies does not matter."""
        box = _everything(volume.stored_XYZ.shape)
        return super().cut(volume, unit=unit, foreground_box=box, case=case, mask=mask, whole=True)

    def key(self, case: Case) -> str:
        """All that a series' region depends on, as a text; the size of a patch does not."""
        facts = (self.spacing, self.mask_values, case.sha256, case.mask_sha256, case.unit)
        return repr(("patches", facts, [max(edges) for edges in zip(self.patch, case.shape, strict=True)]))

    def region_shape(self, case: Case) -> tuple[int, int, int]:
        """Voxels of a series' region, by the manifest."""
        return super().region_shape(_whole(case))

    def draw(self, region: Region, generator: np.random.Generator, number: int) -> Region:
        """The surroundings of a patch that is drawn, around a structure if `number` is due: as far as poses reach."""
        shape, patch = np.array(region.stored_XYZ.shape), np.array(self.patch)
        middle = self._middle(region, generator, number)
        # The patch stays inside, and where the volume is smaller, the volume in the patch.
        low, high = np.minimum(0, shape - patch), np.maximum(0, shape - patch)
        if middle is None:
            start = generator.integers(low, high, endpoint=True)
        else:
            start = np.clip(middle - patch // 2, low, high)
        margin = np.ceil(patch * (MARGIN - 1) / 2).astype(int)
        first, end = np.maximum(start - margin, 0), np.minimum(start + patch + margin, shape)
        inside = tuple(slice(int(a), int(b)) for a, b in zip(first, end, strict=True))
        x, y, z = (int(index) for index in start - first)
        mask_XYZ = None if region.mask_XYZ is None else region.mask_XYZ[inside].clone()
        # Copies, for what a worker hands over is all of the memory that a part lies in.
        return replace(region, stored_XYZ=region.stored_XYZ[inside].clone(), mask_XYZ=mask_XYZ, start=(x, y, z))

    def affine(self, volume: StoredVolume) -> NDArray[np.float64]:
        """From the voxels of `whole` of a volume's region to RAS+ mm, (4, 4)."""
        shape = volume.stored_XYZ.shape[:3]
        place = place_region(
            shape, volume.spacing, self.patch, spacing=self.spacing, foreground_box=_everything(shape), whole=True
        )
        found = np.diag([*place.spacing, 1.0])
        first_3 = np.array(place.low) + np.array(place.start)
        found[:3, 3] = volume.affine[:3, 3] + place.first_mm + first_3 * np.array(place.spacing)
        return found

    def _middle(self, region: Region, generator: np.random.Generator, number: int) -> NDArray[np.int64] | None:
        """A voxel of a structure that the patch shall lie around; None: it may lie anywhere."""
        if region.mask_XYZ is None or not is_due(number, self.foreground_share):
            return None
        mask_XYZ = region.mask_XYZ.numpy()
        there = np.flatnonzero(np.bincount(mask_XYZ.ravel(order="K"), minlength=1)[1:]) + 1
        if not len(there):
            return None
        voxels = np.flatnonzero(mask_XYZ == generator.choice(there))
        return np.array(np.unravel_index(generator.choice(voxels), mask_XYZ.shape))


def is_due(number: int, share: float) -> bool:
    """Whether a sample is one of a share of all, dealt as evenly as can be: each batch has its part.

    Example:
        >>> [is_due(number, 0.33) for number in range(6)]
        [False, False, False, True, False, False]
    """
    return math.floor((number + 1) * share) > math.floor(number * share)


def _everything(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(bound for edge in shape[:3] for bound in (0, int(edge)))


def _whole(case: Case) -> Case:
    return replace(case, whole=True, foreground_box=_everything(case.shape))
