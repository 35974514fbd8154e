"""Labels from the means of maps over all cells: what classification of whole volumes does.

OpenMind's benchmark classifies so: the mean of the deepest map, dropout of 0.2, one linear layer (arXiv 2412.17041). A
sac of a few cells hardly moves a mean; `GlobalConfig.pooling` can add the maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from finetune.models.maps import Maps, chosen_maps
from finetune.tasks import Task
from headspark.config.checks import require


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalConfig:
    """Labels from maps that are pooled as a whole.

    Attributes:
        kind: ``global``.
        stride: Of the finest map that is pooled; empty: that of the coarsest, which is then the only one.
        coarsest: Stride of the coarsest map that is pooled; empty: the encoder's.
        pooling: The mean over all cells (``mean``), or mean and maximum (``mean_max``).
        dropout: On the pooled features.
    """

    kind: Literal["global"] = "global"
    stride: int | None = None
    coarsest: int | None = None
    pooling: Literal["mean", "mean_max"] = "mean"
    dropout: float = 0.2

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, f"head.dropout {self.dropout}: must lie in [0, 1)")


class GlobalHead(nn.Module):
    """Pooling, dropout, one linear layer. Its output is the logits ``labels`` (B, L).

    Args:
        config: Of the recipe.
        maps: What the encoder gives.
        task: What is asked.

    Raises:
        WrongUse: The encoder has no such map.
    """

    outputs = ("labels",)
    cells: Mapping[str, int] = {}

    def __init__(self, config: GlobalConfig, maps: Maps, task: Task) -> None:
        super().__init__()
        coarsest = maps.strides[-1] if config.coarsest is None else config.coarsest
        stride = coarsest if config.stride is None else config.stride
        self.chosen = chosen_maps(maps, stride=stride, coarsest=coarsest)
        self.with_maximum = config.pooling == "mean_max"
        features = sum(maps.channels[self.chosen]) * (2 if self.with_maximum else 1)
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(features, len(task.labels))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Labels."""
        pooled = [map_.mean((2, 3, 4)) for map_ in maps[self.chosen]]
        if self.with_maximum:
            pooled += [map_.amax((2, 3, 4)) for map_ in maps[self.chosen]]
        return {"labels": self.linear(self.dropout(torch.cat(pooled, 1)))}
