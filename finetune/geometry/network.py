"""The network: a whole stack in few voxels, whatever they measure, to its extents and the way it lies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

WAYS = ("axial", "sagittal", "coronal")
"""How the pictures of a stack lie; in the order of the network's outputs."""

SHAPE = (24, 48, 48)
"""Slices, rows and columns that every stack is brought to."""

TOLD = 3
"""Of each stack beside its voxels, as `told` gives them."""

FEATURES = (16, 32, 48)
HIDDEN = 96
UNITS_MM = (200.0, 150.0)
"""Edge of a picture and height of a stack of which the network's outputs are 0."""
LOG_SIGMA = (-4.0, 0.5)
"""Bounds of the logarithm of how far off an extent may be, relative to it."""


class Read(NamedTuple):
    """What the network says of stacks.

    Attributes:
        log_extents_B2: Natural logarithm of the edge of a square picture of the same area, and of the height, in mm.
        log_sigmas_B2: Of how far off these may be, one standard deviation.
        way_logits_B3: Of `WAYS`.
        turned_logit_B: Whether the slices run against their normal.
    """

    log_extents_B2: Tensor
    log_sigmas_B2: Tensor
    way_logits_B3: Tensor
    turned_logit_B: Tensor


def told(slices: int, rows: int, columns: int, *, is_ct: bool) -> Tensor:
    """What a file says of a stack, stripped as it is: (TOLD,) float32, near 0 to 1."""
    counts = torch.tensor([slices / 100, columns / rows]).log()
    return torch.cat([counts, torch.tensor([float(is_ct)])])


class GeometryNetwork(nn.Module):
    """Three halvings, then a layer that knows where in the stack it sees what.

    Args:
        features: Channels after each halving.
    """

    def __init__(self, features: tuple[int, int, int] = FEATURES) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *features), features, strict=False):
            layers += [
                nn.Conv3d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(4, after),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        self.body = nn.Sequential(*layers)
        cells = features[-1] * (SHAPE[0] // 8) * (SHAPE[1] // 8) * (SHAPE[2] // 8)
        self.hidden = nn.Sequential(
            nn.Linear(cells + TOLD, HIDDEN), nn.LeakyReLU(0.01), nn.Dropout(0.2), nn.Linear(HIDDEN, HIDDEN), nn.GELU()
        )
        self.out = nn.Linear(HIDDEN, 2 + 2 + len(WAYS) + 1)

    def forward(self, x_B1ZYX: Tensor, told_BT: Tensor) -> Read:
        """What stacks look like.

        Args:
            x_B1ZYX: Of `SHAPE`, in -1 to 1.
            told_BT: See `told`.
        """
        cells_BC = self.body(x_B1ZYX).flatten(1)
        out_BO = self.out(self.hidden(torch.cat([cells_BC, told_BT], 1)))
        extents_B2, sigmas_B2, ways_B3, turned_B1 = out_BO.split([2, 2, len(WAYS), 1], 1)
        return Read(
            log_extents_B2=extents_B2 + extents_B2.new_tensor(UNITS_MM).log(),
            log_sigmas_B2=(sigmas_B2 - 2).clamp(*LOG_SIGMA),
            way_logits_B3=ways_B3,
            turned_logit_B=turned_B1[:, 0],
        )
