"""The part of a head that the network sees: a box of fixed size around the circle of Willis, in any pose.

The box is centred on the foreground from left to right and from front to back. From top to bottom it is centred too,
but never deeper below the vertex than the circle of Willis lies: a CTA may reach down to the aortic arch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from finetune.series import UPRIGHT, Case, Findings, Pose, Region
from finetune.sliding import covered_shape
from finetune.views.posing import pose_findings, pose_values
from finetune.views.region import MARGIN, Place, cut_region, place_region
from harmonize.voxels.stored import StoredVolume
from headspark.channels import DEFAULT_MRI_SCALING, CtWindow, MriScaling, to_network_input
from headspark.data.decoders import read_corpus_file

LEFT_RIGHT = 2
"""Axis of a batch x_BCDHW that runs from left to right: volumes are RAS, so it is the first of the three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxConfig:
    """A box of `data.patch` voxels of `data.spacing` mm.

    Attributes:
        kind: ``box``.
    """

    kind: Literal["box"] = "box"

    pictures: ClassVar[bool] = False
    streams: ClassVar[int] = 1

    def channels(self, windows: int) -> int:
        """Of the input, by the number of CT windows."""
        return windows


class BoxView:
    """What the network sees: a 3D box; methods as in `finetune.views.base.View`.

    Args:
        patch: Its size in voxels.
        spacing: Their size in mm; None takes the corpus's.
        windows: CT windows, a channel each.
        scaling: Of MRI, as `headspark.channels.to_network_input` takes it.
        mask_values: The value of each of the task's places in the corpus's masks.
        mirror: The task's; None: poses must not be mirrored.
    """

    pictures = False
    zooms = False
    at_once = 1

    def __init__(
        self,
        patch: tuple[int, int, int],
        *,
        spacing: float | None,
        windows: Sequence[str | Mapping[str, Any] | CtWindow],
        scaling: MriScaling = DEFAULT_MRI_SCALING,
        mask_values: Sequence[int],
        mirror: Sequence[int] | None,
    ) -> None:
        self.patch, self.spacing, self.windows, self.scaling = patch, spacing, tuple(windows), scaling
        self.mask_values, self.mirror = tuple(mask_values), mirror

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample: (C, D, H, W)."""
        return (len(self.windows), *self.patch)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Voxels that a sample is made of, in which `findings` are."""
        return self.patch

    def load(self, case: Case) -> Region:
        """Read a series of the corpus and keep what a patch, or tiles of the whole head, can need.

        Raises:
            UserError: A file is gone or damaged; names the series.
        """
        volume = read_corpus_file(case.image, scan_id=case.scan_id, shape=case.shape)
        mask = None
        if case.mask is not None:
            mask = read_corpus_file(case.mask, scan_id=case.scan_id, shape=volume.stored_XYZ.shape[:3])
        return self.cut(
            volume, unit=case.unit, foreground_box=case.foreground_box, case=case, mask=mask, whole=case.whole
        )

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
        """What is kept of a harmonized volume; arguments as for `cut_region`."""
        return cut_region(
            volume,
            self.patch,
            spacing=self.spacing,
            unit=unit,
            foreground_box=foreground_box,
            case=case,
            mask=mask,
            mask_values=self.mask_values,
            whole=whole,
        )

    def key(self, case: Case) -> str:
        """All that a series' region depends on, as a text."""
        facts = (MARGIN, self.patch, self.spacing, self.mask_values, case.sha256, case.mask_sha256, case.foreground_box)
        spots = [(spot.label, *spot.xyz_mm) for spot in case.spots]
        more = [*(("whole",) if case.whole else ()), *((case.mask_places,) if case.mask_places else ())]
        return repr((facts, spots, case.unit, case.spots_complete, *more))

    def region_shape(self, case: Case) -> tuple[int, int, int]:
        """Voxels of a series' region, by the manifest."""
        return self.placed(case).shape

    def placed(self, case: Case) -> Place:
        """Where a series' region lies, by the manifest."""
        return place_region(
            case.shape,
            case.spacing,
            self.patch,
            spacing=self.spacing,
            foreground_box=case.foreground_box,
            whole=case.whole,
        )

    def guide_shape(self, case: Case) -> tuple[int, int, int] | None:
        """No guide is kept."""
        return None

    def draw(self, region: Region, generator: np.random.Generator, number: int) -> Region:
        """The region itself: a box lies where the head does."""
        return region

    def parts(self, region: Region) -> list[Region]:
        """The region itself, which is one input."""
        return [region]

    def where(self, region: Region, pose: Pose = UPRIGHT) -> Tensor | None:
        """Nothing is told."""
        return None

    def mirrored(self, x: Tensor) -> Tensor:
        """Inputs x_BCDHW of the mirror images."""
        return mirror_image(x)

    def sample(self, region: Region, pose: Pose = UPRIGHT) -> Tensor:
        """The network's input, x_CDHW, in one interpolation; upright, the voxels are the corpus's."""
        return self._channels(region, self.patch, pose)

    def whole(self, region: Region) -> Tensor:
        """All of a region that was cut whole, x_CDHW."""
        return self._channels(region, covered_shape(region, self.patch), UPRIGHT)

    def _channels(self, region: Region, shape: Sequence[int], pose: Pose) -> Tensor:
        values_XYZ = pose_values(region, shape, pose)
        return to_network_input(values_XYZ, region.unit, self.windows, self.scaling)

    def findings(self, region: Region, pose: Pose = UPRIGHT) -> Findings:
        """What is known, in the voxels of `sample`; a mirrored pose swaps the sides."""
        found = pose_findings(region, self.sample_shape, pose)
        if not pose.mirrored:
            return found
        if self.mirror is None:
            raise ValueError("a task without a mirror was shown a mirrored pose")
        return found.mirrored(self.mirror)


def mirror_image(x_BCDHW: Tensor) -> Tensor:
    """Inputs or maps with left and right swapped."""
    return x_BCDHW.flip(LEFT_RIGHT)
