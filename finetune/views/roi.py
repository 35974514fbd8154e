"""The box where a finder says the arteries lie: as it is, or resized to the network's input.

Where the finder is unsure, or names a place outside of the scan, the head's outline lays the box as for `box`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from finetune.finder import Finder, Found
from finetune.finder.find import SCALES
from finetune.finder.survey import fixed_centre_mm
from finetune.series import LAID, Case, Region
from finetune.views.box import BoxView
from finetune.views.region import MARGIN, cut_region, grid_of
from harmonize.errors import WrongUse
from harmonize.voxels.stored import StoredVolume

LEAST_SHARE = 0.5
"""Of its edges, that a resized box keeps where the field of view ends in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiConfig:
    """A box of `data.patch` voxels of `data.spacing` mm, where a finder says that the arteries lie.

    Attributes:
        kind: ``roi``.
        model: Folder of the finder, as `finetune roi` writes it; of several, one a fold, that of `data.fold` counts.
    """

    kind: Literal["roi"] = "roi"
    model: str | None = None

    pictures: ClassVar[bool] = False
    streams: ClassVar[int] = 1

    def channels(self, windows: int) -> int:
        """Of the input, by the number of CT windows."""
        return windows


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizedConfig:
    """A box around the arteries that is resized to `data.patch` voxels, whatever its edges are in mm.

    They are `data.patch` times `data.spacing` for a head of mean size, and shorter where the field of view ends. Which
    size a voxel then has is told to networks with `condition.kind` ``spacing``.

    Attributes:
        kind: ``resized``.
        model: Folder of a finder of boxes, as `finetune roi` writes it; a large head has a large box then. Empty: the
            head's outline says where the box lies.
    """

    kind: Literal["resized"] = "resized"
    model: str | None = None

    pictures: ClassVar[bool] = False
    streams: ClassVar[int] = 1

    def channels(self, windows: int) -> int:
        """Of the input, by the number of CT windows."""
        return windows


class RoiView(BoxView):
    """What the network sees: a box that is found; methods as of `BoxView`.

    Args:
        patch: Its size in voxels.
        finder: Says where it lies; None: the head's outline does.
        finder_sha256: Of its files.
        resized: Whether the box has edges of its own, and is resized to the patch.
        of_box: The other arguments of `BoxView`.
    """

    def __init__(
        self, patch: tuple[int, int, int], *, finder: Finder | None, finder_sha256: str, resized: bool, **of_box: Any
    ) -> None:
        super().__init__(patch, **of_box)
        self.finder, self.finder_sha256, self.zooms = finder, finder_sha256, resized

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
        """The box of a harmonized volume with a margin; always of the same shape, filled where the volume ends."""
        if whole:
            raise ValueError("a box that is found is no whole head")
        found = self._found(volume, unit, foreground_box)
        grid = grid_of(volume.stored_XYZ.shape, volume.spacing, self.spacing)
        middle_3 = (np.array(found.centre_mm) - grid.first_mm) / grid.spacing
        corner_3, edges_3 = self._box(middle_3, np.array(grid.shape), found.scale)
        margin_3 = (np.array(self._shape()) - edges_3) // 2
        region = cut_region(
            volume,
            self.patch,
            spacing=self.spacing,
            unit=unit,
            foreground_box=foreground_box,
            case=case,
            mask=mask,
            mask_values=self.mask_values,
            bounds=(corner_3 - margin_3, corner_3 - margin_3 + self._shape()),
        )
        x, y, z = (int(voxels) for voxels in margin_3)
        zoom = None
        if self.zooms:
            a, b, c = (float(edge) for edge in edges_3 / np.array(self.patch))
            zoom = a, b, c
        return replace(region, start=(x, y, z), zoom=zoom, laid=found.laid)

    def key(self, case: Case) -> str:
        """All that a series' region depends on, as a text."""
        return repr((self.finder_sha256, self.zooms, super().key(case)))

    def region_shape(self, case: Case) -> tuple[int, int, int]:
        """Voxels of a series' region: the same of all, for where a box lies the manifest does not say."""
        return self._shape()

    def _found(self, volume: StoredVolume, unit: str, foreground_box: Sequence[int]) -> Found:
        if self.finder is not None and volume.stored_XYZ.ndim == 3:
            return self.finder.find(volume, unit=unit, foreground_box=foreground_box)
        centre_mm = fixed_centre_mm(volume.spacing, foreground_box)
        return Found(centre_mm=centre_mm, scale=1.0, doubt_mm=0.0, laid=LAID[0])

    def _box(
        self, middle_3: NDArray[np.float64], shape_3: NDArray[np.int64], scale: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First voxel of the box in the volume's grid, and how many voxels it has along each axis."""
        patch_3 = np.array(self.patch)
        edges_3 = np.rint(patch_3 * (scale if self.zooms else 1.0)).astype(np.int64)
        corner_3 = np.rint(middle_3 - (edges_3 - 1) / 2).astype(np.int64)
        if not self.zooms:
            return corner_3, edges_3
        low_3, high_3 = np.clip(corner_3, 0, shape_3), np.clip(corner_3 + edges_3, 0, shape_3)
        least_3 = np.ceil(LEAST_SHARE * edges_3).astype(np.int64)
        short_3 = high_3 - low_3 < least_3
        # The part in sight is too thin: the box keeps its least edge around that, or beside the volume.
        around_3 = np.clip((low_3 + high_3 - least_3) // 2, corner_3, corner_3 + edges_3 - least_3)
        low_3 = np.where(short_3, around_3, low_3)
        return low_3, np.where(short_3, least_3, high_3 - low_3)

    def _shape(self) -> tuple[int, int, int]:
        most = SCALES[1] if self.zooms else 1.0
        x, y, z = (math.ceil(edge * most) + 2 * math.ceil(edge * (MARGIN - 1) / 2) for edge in self.patch)
        return x, y, z


def check_one_box(kind: str, inference: str) -> None:
    """Refuse a bag of boxes: a found one is alone.

    Raises:
        WrongUse: Names the keys.
    """
    if inference == "bag":
        raise WrongUse(f"data.inference bag: view.kind {kind} has one box, which it finds; use box")


def named_finder(kind: str, model: str | None) -> Path:
    """The folder that a recipe names.

    Raises:
        WrongUse: It names none.
    """
    if model is None:
        raise WrongUse(f"view.kind {kind}: wants view.model, the folder that `finetune roi` wrote")
    return Path(model).expanduser()
