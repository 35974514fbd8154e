"""A grid of cells, from which the labels of a series are pooled.

Each cell says two things: how likely a finding sits there (`presence`), and which of the task's places it belongs to
(`territory`). The logit of a finding at place l in a cell is ``presence + log_softmax(territory)_l``, and a series'
logit is the mean of its highest cells. So all places share one detector, which matters where a place has a handful of
positives, and territories can be learned from vessel masks of healthy series too.

The size of the cells was worth more than the backbone in the RSNA 2025 aneurysm challenge (8^3 to 25^3 cells:
leaderboard 0.77 to 0.81), hence `CellsConfig.stride`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.models.maps import Maps, chosen_maps
from finetune.models.neck import Pyramid, check_grid, coordinates, mix
from finetune.tasks import Task
from harmonize.errors import WrongUse
from headspark.config.checks import require

PRESENCE_PRIOR = 0.01
"""Presence of an untrained cell: most cells are empty, and starting there keeps the first steps calm (RetinaNet)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellsConfig:
    """Labels pooled from cells.

    Attributes:
        kind: ``cells``.
        stride: Edge of a cell in input voxels; one of the encoder's strides.
        coarsest: Stride of the coarsest map that is used; None takes all. Coarse maps see the whole head, which lets a
            network that has few series to learn from remember them one by one.
        width: Channels of the neck.
        pooling: How cells become a series' logit: the mean of the `top` highest, a log-mean-exp, or the plain mean.
        top: Cells of ``topk`` pooling.
        coordinates: Tell the territory of each cell its place in the patch: left and right look alike without it.
            Presence never knows it, so that a finding looks the same everywhere.
        dropout: On the neck's features.
        dilations: Of residual convolutions on the fused grid, such as 1, 2, 4; empty: none.
    """

    kind: Literal["cells"] = "cells"
    stride: int = 4
    coarsest: int | None = None
    width: int = 64
    pooling: Literal["topk", "logmeanexp", "mean"] = "topk"
    top: int = 8
    coordinates: bool = True
    dropout: float = 0.0
    dilations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_grid(width=self.width, dropout=self.dropout, dilations=self.dilations)
        require(self.top >= 1, f"head.top {self.top}: must be at least 1")


class CellsHead(nn.Module):
    """Neck, cells, pooling.

    Its outputs are the logits ``labels`` (B, L) and ``presence`` (B, d, h, w), and ``territory`` (B, P, d, h, w),
    unnormalised log-probabilities of the places.

    Args:
        config: Of the recipe.
        maps: What the encoder gives.
        task: Whose labels are places, and one that says whether there is any.

    Raises:
        WrongUse: The encoder has no map at `CellsConfig.stride`, or the task no places.
    """

    outputs = ("labels", "presence", "territory")

    def __init__(self, config: CellsConfig, maps: Maps, task: Task) -> None:
        super().__init__()
        if task.places < 1 or task.any_label != task.places or len(task.labels) != task.places + 1:
            raise WrongUse("head.kind cells: wants a task with labels for places, and a last one for any of them")
        self.config = config
        self.chosen = chosen_maps(maps, stride=config.stride, coarsest=config.coarsest)
        self.cells = {"presence": config.stride, "territory": config.stride}
        self.neck = Pyramid(maps.channels[self.chosen], config.width, config.dilations)
        self.presence_mix = mix(config.width, config.width, config.dropout)
        self.presence = nn.Conv3d(config.width, 1, 1)
        self.territory_mix = mix(config.width + (3 if config.coordinates else 0), config.width, config.dropout)
        self.territory = nn.Conv3d(config.width, task.places, 1)
        self.scale_L = nn.Parameter(torch.ones(len(task.labels)))
        self.shift_L = nn.Parameter(torch.zeros(len(task.labels)))
        prior = torch.full((1,), math.log(PRESENCE_PRIOR / (1 - PRESENCE_PRIOR)))
        self.presence.bias = nn.Parameter(prior)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Labels, and the cells behind them."""
        features = self.neck(maps[self.chosen])
        presence_B1dhw = self.presence(self.presence_mix(features))
        if self.config.coordinates:
            grid = coordinates(features.shape[2:], features).movedim(1, -1).expand(len(features), -1, -1, -1, -1)
            features = torch.cat([features.movedim(1, -1), grid], dim=-1).movedim(-1, 1)  # channels last in memory
        territory_BPdhw = self.territory(self.territory_mix(features))
        places_BPdhw = presence_B1dhw + F.log_softmax(territory_BPdhw, dim=1)
        evidence_BLdhw = torch.cat([places_BPdhw, presence_B1dhw], dim=1)
        logits_BL = self.scale_L * pool(evidence_BLdhw, self.config) + self.shift_L
        return {"labels": logits_BL, "presence": presence_B1dhw[:, 0], "territory": territory_BPdhw}


def pool(evidence_BKdhw: Tensor, config: CellsConfig) -> Tensor:
    """One number a channel from a grid of cells.

    Args:
        evidence_BKdhw: Logits of the cells.
        config: Which pooling.

    Returns:
        (B, K).

    Example:
        >>> cells = torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(1, 1, 1, 2, 2)
        >>> pool(cells, CellsConfig(pooling="topk", top=2)).item()
        2.5
    """
    cells = evidence_BKdhw.flatten(2).float()
    if config.pooling == "mean":
        return cells.mean(-1)
    if config.pooling == "logmeanexp":
        return cells.logsumexp(-1) - math.log(cells.shape[-1])
    return cells.topk(min(config.top, cells.shape[-1]), dim=-1).values.mean(-1)
