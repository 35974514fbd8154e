"""Labels from what a grid shows under a soft mask of each place.

The winner of the RSNA 2025 aneurysm challenge pooled the features of a network under the masks of the vessels that it
had segmented. A mask here is where a place is, times where a finding is; either is said by the head itself, from the
same grid, or by an auxiliary head that segments vessels or findings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.models.heads.cells import PRESENCE_PRIOR
from finetune.models.maps import Maps, chosen_maps
from finetune.models.neck import Pyramid, check_grid, coordinates, mix
from finetune.models.readout import LabelReadout
from finetune.tasks import Task
from harmonize.errors import WrongUse

SMALLEST_PROBABILITY = 1e-6
"""A mask that is zero everywhere pools all cells alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedConfig:
    """Labels pooled under soft masks of places.

    Attributes:
        kind: ``masked``.
        stride: Edge of a cell in input voxels; one of the encoder's strides.
        coarsest: Stride of the coarsest map that is fused; None takes all.
        width: Channels of the neck.
        territories: Who says where the places are: the head itself, as `territory` (``own``), or the output `vessels`
            of an auxiliary head.
        findings: Who says where findings are: the head itself, as `presence` (``own``), the output `spheres` of an
            auxiliary head, or nobody (``none``): then the whole place counts.
        dropout: On the features.
        dilations: Of residual convolutions on the fused grid, such as 1, 2, 4; empty: none.
    """

    kind: Literal["masked"] = "masked"
    stride: int = 4
    coarsest: int | None = None
    width: int = 64
    territories: Literal["own", "vessels"] = "own"
    findings: Literal["own", "spheres", "none"] = "own"
    dropout: float = 0.0
    dilations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_grid(width=self.width, dropout=self.dropout, dilations=self.dilations)


class MaskedHead(nn.Module):
    """Neck, masks, pooling, readout.

    Its outputs are the logits ``labels`` (B, L) and, of what it says itself, ``territory`` (B, P, d, h, w),
    unnormalised log-probabilities of the places, and the logits ``presence`` (B, d, h, w). What other heads segment is
    taken as it is: labels do not train it.

    Args:
        config: Of the recipe.
        maps: What the encoder gives.
        task: With labels for places; every other label is pooled under the union of all.

    Raises:
        WrongUse: The encoder has no such map, or the task no places.
    """

    def __init__(self, config: MaskedConfig, maps: Maps, task: Task) -> None:
        super().__init__()
        if task.places < 1:
            raise WrongUse("head.kind masked: wants a task with labels for places")
        own = [name for name, by in (("territory", config.territories), ("presence", config.findings)) if by == "own"]
        self.outputs = ("labels", *own)
        self.cells = dict.fromkeys(own, config.stride)
        self.needs = tuple(by for by in (config.territories, config.findings) if by not in ("own", "none"))
        self.config, self.places, self.others = config, task.places, len(task.labels) - task.places
        self.chosen = chosen_maps(maps, stride=config.stride, coarsest=config.coarsest)
        self.neck = Pyramid(maps.channels[self.chosen], config.width, config.dilations)
        if "territory" in own:
            self.territory = nn.Sequential(
                mix(config.width + 3, config.width, config.dropout), nn.Conv3d(config.width, task.places, 1)
            )
        if "presence" in own:
            last = nn.Conv3d(config.width, 1, 1)
            nn.init.constant_(last.bias, math.log(PRESENCE_PRIOR / (1 - PRESENCE_PRIOR)))  # type: ignore[arg-type]
            self.presence = nn.Sequential(mix(config.width, config.width, config.dropout), last)
        self.readout = LabelReadout(len(task.labels), config.width, config.dropout)

    def forward(self, maps: Sequence[Tensor], given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Labels, and the masks behind them.

        Args:
            maps: The encoder's, finest first.
            given: Outputs of other heads, among them those of `needs`.
        """
        given = given or {}
        features_BCdhw = self.neck(maps[self.chosen])
        territory_BPdhw, union_B1dhw, outputs = self._territories(features_BCdhw, given)
        mask_BLdhw = torch.cat([territory_BPdhw, union_B1dhw.expand(-1, self.others, -1, -1, -1)], 1)
        if self.config.findings == "own":
            presence_B1dhw = self.presence(features_BCdhw)
            outputs["presence"] = presence_B1dhw[:, 0]
            mask_BLdhw = mask_BLdhw + F.logsigmoid(presence_B1dhw.float())
        elif self.config.findings == "spheres":
            probability_Bdhw = given["spheres"].detach().float().sigmoid()
            mask_BLdhw = mask_BLdhw + on_grid(probability_Bdhw[:, None], features_BCdhw.shape[2:]).log()
        weights_BLN = mask_BLdhw.flatten(2).softmax(-1).to(features_BCdhw.dtype)
        pooled_BLC = weights_BLN @ features_BCdhw.flatten(2).transpose(1, 2)
        return {"labels": self.readout(pooled_BLC), **outputs}

    def _territories(
        self, features_BCdhw: Tensor, given: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Log-probabilities of each place and of any, float32, and what is said of them as an output."""
        shape = features_BCdhw.shape[2:]
        if self.config.territories == "vessels":
            classes = given["vessels"].shape[1]
            if classes != self.places + 1:
                raise ValueError(f"vessels have {classes} classes, and nothing and {self.places} places were expected")
            probability_BKdhw = on_grid(given["vessels"].detach().float().softmax(1), shape)
            vessel_BPdhw = probability_BKdhw[:, 1:]
            return vessel_BPdhw.log(), vessel_BPdhw.sum(1, keepdim=True).log(), {}
        grid = coordinates(shape, features_BCdhw).expand(len(features_BCdhw), -1, -1, -1, -1)
        territory_BPdhw = self.territory(torch.cat([features_BCdhw, grid], 1))
        place_BPdhw = F.log_softmax(territory_BPdhw.float(), 1)
        return place_BPdhw, torch.zeros_like(place_BPdhw[:, :1]), {"territory": territory_BPdhw}


def on_grid(probability_BKdhw: Tensor, shape: Sequence[int]) -> Tensor:
    """Probabilities on another grid of cells over the same input, averaged or interpolated, and above zero.

    Args:
        probability_BKdhw: On theirs.
        shape: (d, h, w) of the other.
    """
    finer = math.prod(probability_BKdhw.shape[2:]) > math.prod(shape)
    if tuple(probability_BKdhw.shape[2:]) != tuple(shape):
        size = tuple(shape)
        probability_BKdhw = (
            F.interpolate(probability_BKdhw, size=size, mode="area")
            if finer
            else F.interpolate(probability_BKdhw, size=size, mode="trilinear", align_corners=False)
        )
    return probability_BKdhw.clamp(min=SMALLEST_PROBABILITY)
