"""Between the encoder's maps and a head: maps of several strides become one grid of cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def coordinates(shape: Sequence[int], like: Tensor) -> Tensor:
    """Centres of the cells of a grid in [-1, 1] along each axis, as 3 channels.

    Args:
        shape: (d, h, w).
        like: Gives dtype and device.

    Returns:
        (1, 3, d, h, w).
    """
    axes = [(torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n * 2 - 1 for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


class Pyramid(nn.Module):
    """Top-down fusion of maps at the finest one's stride (a feature pyramid with one output)."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv3d(count, width, 1) for count in channels)
        self.norm = CellNorm(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps, finest first; (B, width, d, h, w) at the finest one's stride."""
        laterals = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
        fused = laterals[-1]
        for finer in reversed(laterals[:-1]):
            fused = finer + F.interpolate(fused, size=finer.shape[2:], mode="trilinear", align_corners=False)
        return self.norm(fused)


class CellNorm(nn.Module):
    """Layer norm over the channels of each cell. An instance norm would tie a cell to everything else in the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCdhw: Tensor) -> Tensor:
        """Normalise each cell."""
        return self.norm(x_BCdhw.movedim(1, -1)).movedim(-1, 1)
