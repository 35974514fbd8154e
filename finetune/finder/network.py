"""The network that finds places: a heat map a place on a coarse grid, whose mean is where it lies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetune.finder.survey import CHANNELS, SHAPE, SPACING_MM

CELL = 2
"""Edge of a cell of the heat maps, in voxels of `finetune.finder.survey`."""
CELL_MM = CELL * SPACING_MM
CELLS = tuple(edge // CELL for edge in SHAPE)
FEATURES = (24, 48)


def _block(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels, width, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(4, width),
        nn.LeakyReLU(0.01, inplace=True),
    )


class FinderNetwork(nn.Module):
    """Down to cells of 16, 32 and 64 mm, the last of which see all of a head, and back to those of 16 mm.

    Args:
        places: How many there are to find.
        features: Channels of the cells, and of the coarser cells.
    """

    def __init__(self, places: int, features: tuple[int, int] = FEATURES) -> None:
        super().__init__()
        fine, coarse = features
        self.cells = nn.Sequential(_block(CHANNELS, fine, CELL), _block(fine, fine))
        self.coarse = nn.Sequential(
            _block(fine, coarse, 2), _block(coarse, coarse), _block(coarse, coarse, 2), _block(coarse, coarse)
        )
        self.project = nn.Conv3d(coarse, fine, 1)
        self.up = nn.Upsample(size=CELLS, mode="trilinear", align_corners=False)
        self.join = nn.Sequential(_block(fine, fine), _block(fine, fine))
        self.heat = nn.Conv3d(fine, places, 1)

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """Logits of the cells that hold each place, (B, P, *CELLS)."""
        cells = self.cells(x_BCXYZ)
        logits: Tensor = self.heat(self.join(cells + self.up(self.project(self.coarse(cells)))))
        return logits


def cell_centres_mm(device: torch.device | None = None) -> Tensor:
    """Middles of the cells in mm from the middle of what the network sees, (N, 3)."""
    axes = [(torch.arange(edge, device=device) - (edge - 1) / 2) * CELL_MM for edge in CELLS]
    # The voxels that a cell of stride 2 is centred on: the first of its two.
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) - SPACING_MM / 2


def places_mm(logits_BPXYZ: Tensor) -> tuple[Tensor, Tensor]:
    """Where each place lies, (B, P, 3) in mm from the middle, and how far its heat map spreads, (B, P) in mm."""
    heat_BPN = logits_BPXYZ.flatten(2).float().softmax(-1)
    centres_N3 = cell_centres_mm(logits_BPXYZ.device)
    means_BP3 = heat_BPN @ centres_N3
    variances_BP = (heat_BPN @ centres_N3.square() - means_BP3.square()).clamp(min=0).mean(-1)
    return means_BP3, variances_BP.sqrt()


def heat_targets(places_BP3: Tensor, width_mm: float) -> Tensor:
    """Heat maps of places that are known: a Gaussian around each, (B, P, N), with a sum of one.

    Args:
        places_BP3: In mm from the middle.
        width_mm: Standard deviation.
    """
    squared_BPN = torch.cdist(places_BP3, cell_centres_mm(places_BP3.device)[None]).square()
    return (-squared_BPN / (2 * width_mm**2)).softmax(-1)
