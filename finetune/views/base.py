"""What every view is: it cuts what a network sees of a series, in a pose, and says where the findings lie in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor

from finetune.series import UPRIGHT, Case, Findings, Pose, Region
from harmonize.voxels.stored import StoredVolume


class View(Protocol):
    """What a network sees of a head. A 3D box gives x_CDHW a sample; views of pictures give a bag x_NCHW.

    Attributes:
        pictures: Whether samples are bags of pictures.
        at_once: How many inputs a forward pass of prediction may take, at least.
        zooms: Whether its inputs have voxels of their own size, which `finetune.series.told_of` tells.
    """

    pictures: bool
    zooms: bool
    at_once: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample."""
        ...

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y and Z that a sample is made of; `findings` are in these."""
        ...

    def load(self, case: Case) -> Region:
        """Read a series of the corpus and keep what a sample can need.

        Raises:
            UserError: A file is gone or damaged; names the series.
        """
        ...

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
        """What is kept of a harmonized volume.

        Args:
            volume: RAS, axis-aligned, int16.
            unit: Of its real values.
            foreground_box: Half-open voxel bounds x0, x1, y0, y1, z0, z1 of the head.
            case: What is known about the series; None where nothing is.
            mask: On the same grid.
            whole: Keep the whole head, which `finetune.sliding.tiles_of` covers with tiles.
        """
        ...

    def key(self, case: Case) -> str:
        """All that a series' region depends on, as a text: what a cache on disk knows it by."""
        ...

    def region_shape(self, case: Case) -> tuple[int, int, int]:
        """Voxels of a series' region, by the manifest."""
        ...

    def guide_shape(self, case: Case) -> tuple[int, int, int] | None:
        """Of its region's guide, by the manifest; None for views that keep none."""
        ...

    def draw(self, region: Region, generator: np.random.Generator, number: int) -> Region:
        """The part of a region that a training sample is made of: the region itself, unless the view draws one.

        Args:
            region: Of the series.
            generator: For what is drawn.
            number: Of the sample, so that views can deal out what is drawn evenly.
        """
        ...

    def sample(self, region: Region, pose: Pose = UPRIGHT) -> Tensor:
        """The network's input, without the batch axis."""
        ...

    def parts(self, region: Region) -> list[Region]:
        """The inputs that prediction looks at one by one; the surest answer counts. As a rule the region itself."""
        ...

    def where(self, region: Region, pose: Pose = UPRIGHT) -> Tensor | None:
        """The points that training tells the network, (M, 2) in [0, 1] along a picture's axes; None: it tells none."""
        ...

    def mirrored(self, x: Tensor) -> Tensor:
        """A batch of inputs with left and right swapped."""
        ...

    def whole(self, region: Region) -> Tensor:
        """All of a region that was cut whole, upright, as one input of any size: what its tiles are parts of.

        Returns:
            x_CDHW of `finetune.sliding.covered_shape`; a finding lies in it `Region.start` below where it lies in the
            region.
        """
        ...

    def findings(self, region: Region, pose: Pose = UPRIGHT) -> Findings:
        """What is known, in the voxels of `sample`; a mirrored pose swaps the sides."""
        ...


class ViewConfig(Protocol):
    """The part of a recipe that picks a view."""

    pictures: ClassVar[bool]
    streams: ClassVar[int]
    """Pictures of a bag that belong together, each of which wants a network of its own."""

    @property
    def kind(self) -> str:
        """Its name."""
        ...

    def channels(self, windows: int) -> int:
        """Of the input, or of a picture, by the number of CT windows."""
        ...
