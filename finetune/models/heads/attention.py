"""Labels from cross-attention: each label has a query, which looks at all cells of a grid.

The second place of the RSNA 2025 aneurysm challenge pooled so, beside segmenting decoders. Where a cell lies is told to
the keys alone: a query can look for a place, and what it finds there looks the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from finetune.models.maps import Maps, chosen_maps
from finetune.models.neck import Pyramid, check_grid
from finetune.models.readout import LabelReadout
from finetune.tasks import Task
from headspark.config.checks import require

BANDS = 6
"""Frequencies of the position encoding along each axis: the highest has 32 periods over an input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """Labels by cross-attention with a query a label.

    Attributes:
        kind: ``attention``.
        stride: Edge of a cell in input voxels; one of the encoder's strides.
        coarsest: Stride of the coarsest map that is fused; None takes all.
        width: Channels of the cells and the queries; a multiple of `attention_heads`.
        attention_heads: Of the attention.
        dropout: On the attention, and on the features of each label.
        dilations: Of residual convolutions on the fused grid, such as 1, 2, 4; empty: none.
    """

    kind: Literal["attention"] = "attention"
    stride: int = 4
    coarsest: int | None = None
    width: int = 64
    attention_heads: int = 4
    dropout: float = 0.0
    dilations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_grid(width=self.width, dropout=self.dropout, dilations=self.dilations)
        heads = self.attention_heads
        fits = heads >= 1 and self.width % heads == 0
        require(fits, f"head.width {self.width}: must be a multiple of head.attention_heads {heads}")


class AttentionHead(nn.Module):
    """Neck, attention, readout. Its output is the logits ``labels`` (B, L).

    Args:
        config: Of the recipe.
        maps: What the encoder gives.
        task: What is asked.

    Raises:
        WrongUse: The encoder has no such map.
    """

    outputs = ("labels",)
    cells: Mapping[str, int] = {}

    def __init__(self, config: AttentionConfig, maps: Maps, task: Task) -> None:
        super().__init__()
        self.chosen = chosen_maps(maps, stride=config.stride, coarsest=config.coarsest)
        self.neck = Pyramid(maps.channels[self.chosen], config.width, config.dilations)
        self.position = nn.Linear(3 * (1 + 2 * BANDS), config.width)
        self.query_LC = nn.Parameter(torch.randn(len(task.labels), config.width))
        self.attention = nn.MultiheadAttention(
            config.width, config.attention_heads, dropout=config.dropout, batch_first=True
        )
        self.readout = LabelReadout(len(task.labels), config.width, config.dropout)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Labels."""
        grid_BCdhw = self.neck(maps[self.chosen])
        cells_BNC = grid_BCdhw.flatten(2).transpose(1, 2)
        keys_BNC = cells_BNC + self.position(positions(grid_BCdhw.shape[2:], like=grid_BCdhw))
        query_BLC = self.query_LC.expand(len(cells_BNC), -1, -1)
        seen_BLC, _ = self.attention(query_BLC, keys_BNC, cells_BNC, need_weights=False)
        return {"labels": self.readout(seen_BLC)}


def positions(shape: Sequence[int], like: Tensor) -> Tensor:
    """Where the cells of a grid lie: coordinates in [-1, 1], their sines and cosines at `BANDS` frequencies.

    Args:
        shape: (d, h, w).
        like: Gives dtype and device.

    Returns:
        (d * h * w, 3 * (1 + 2 * BANDS)).
    """
    from timm.layers import build_fourier_pos_embed  # slow to load, and no other head needs it

    parts = build_fourier_pos_embed(
        list(shape), num_bands=BANDS, max_res=2**BANDS, include_grid=True, device=like.device, dtype=torch.float32
    )
    return torch.cat(parts, -1).flatten(0, 2).flatten(1).to(like.dtype)
