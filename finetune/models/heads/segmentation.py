"""The class of each voxel from a U-Net decoder: the head of tasks that are answered by masks.

The decoder is that of pretraining (`decoder.kind: unet`), nnU-Net's, and begins with its weights where they lie beside
the encoder; only the layers that predict are new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from finetune.models.heads.decoder import DecodingHead
from finetune.models.maps import Maps
from finetune.tasks import MASKS, Task
from harmonize.errors import WrongUse
from headspark.config.checks import require


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationConfig:
    """A decoder that says the class of each voxel.

    Attributes:
        kind: ``segmentation``.
        stride: Edge of a cell in input voxels; one of the encoder's strides, finer than its coarsest.
        deep_supervision: At how many coarser scales it predicts while it trains. The outputs are called ``masks_2``,
            ``masks_4`` ... by the edge of their cells; each wants a loss of its own. 0: none.
    """

    kind: Literal["segmentation"] = "segmentation"
    stride: int = 1
    deep_supervision: int = 0

    def __post_init__(self) -> None:
        require(self.deep_supervision >= 0, f"head.deep_supervision {self.deep_supervision}: must be 0 or more")


class SegmentationHead(DecodingHead):
    """Its outputs are unnormalised log-probabilities (B, L + 1, d, h, w), the first class for none of the labels.

    Args:
        config: Of the recipe.
        maps: What the encoder gives.
        task: Whose labels are the classes.

    Raises:
        WrongUse: The encoder has no map at `SegmentationConfig.stride`, or too few for deep supervision; or the task is
            not answered by masks.
    """

    def __init__(self, config: SegmentationConfig, maps: Maps, task: Task) -> None:
        if task.answers != MASKS:
            raise WrongUse(f"head.kind {config.kind}: is for tasks that are answered by masks; this one is not")
        super().__init__(maps, config.stride, {MASKS: len(task.labels) + 1}, key="head.stride")
        first, scales = maps.strides.index(config.stride), config.deep_supervision + 1
        offered = len(maps.strides) - 1 - first
        if scales > offered:
            raise WrongUse(f"head.deep_supervision {config.deep_supervision}: this encoder has {offered - 1} at most")
        edges = maps.strides[first : first + scales]
        names = [MASKS, *(f"{MASKS}_{edge}" for edge in edges[1:])]
        self.outputs = tuple(names)
        self.cells = dict(zip(names, edges, strict=True))
        for layer in self.decoder.seg_layers[-scales:]:
            layer.requires_grad_(True)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Outputs by name; the finest alone where nothing trains."""
        names = self.outputs if self.training else self.outputs[:1]
        predicted = self.decoder.at_scales(maps[-len(self.decoder.widths) :], len(names))
        return dict(zip(names, predicted, strict=True))
