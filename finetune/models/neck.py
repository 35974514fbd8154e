"""Between the encoder's maps and a head: maps of several strides become one grid of cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headspark.config.checks import require

LARGEST_DILATION = 64
"""In cells: beyond it a kernel looks outside of any grid."""


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
    """Top-down fusion of maps at the finest one's stride (a feature pyramid with one output).

    Args:
        channels: Of the maps, finest first.
        width: Of the grid.
        dilations: Of the convolutions that follow, one after the other; none: no convolution.
    """

    def __init__(self, channels: Sequence[int], width: int, dilations: Sequence[int] = ()) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv3d(count, width, 1) for count in channels)
        self.norm = CellNorm(width)
        self.dilated = nn.Sequential(*(DilatedBlock(width, dilation) for dilation in dilations))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps, finest first; (B, width, d, h, w) at the finest one's stride."""
        laterals = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
        fused = laterals[-1]
        for finer in reversed(laterals[:-1]):
            fused = finer + F.interpolate(fused, size=finer.shape[2:], mode="trilinear", align_corners=False)
        return self.dilated(self.norm(fused))


class DilatedBlock(nn.Module):
    """A cell looks at cells `dilation` apart from it, beside itself: context without a coarser grid."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm = CellNorm(width)

    def forward(self, x_BCdhw: Tensor) -> Tensor:
        """Add what was seen."""
        return x_BCdhw + F.gelu(self.norm(self.conv(x_BCdhw)))


class CellNorm(nn.Module):
    """Layer norm over the channels of each cell. An instance norm would tie a cell to everything else in the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCdhw: Tensor) -> Tensor:
        """Normalise each cell."""
        return self.norm(x_BCdhw.movedim(1, -1)).movedim(-1, 1)


def mix(channels: int, width: int, dropout: float) -> nn.Module:
    """Two layers that look at a cell and its neighbours."""
    return nn.Sequential(
        nn.Conv3d(channels, width, 3, padding=1),
        nn.GELU(),
        nn.Dropout3d(dropout),
        nn.Conv3d(width, width, 1),
        nn.GELU(),
    )


def check_grid(*, width: int, dropout: float, dilations: Sequence[int]) -> None:
    """Refuse a head whose grid of cells cannot be made.

    Raises:
        WrongUse: Names the key.
    """
    require(width >= 1, f"head.width {width}: must be at least 1")
    require(0 <= dropout < 1, f"head.dropout {dropout}: must lie in [0, 1)")
    for dilation in dilations:
        require(1 <= dilation <= LARGEST_DILATION, f"head.dilations: {dilation} must lie in 1 to {LARGEST_DILATION}")
