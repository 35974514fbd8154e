"""How packed maps lie in memory, and sizes along the three axes of space.

A packed map is [blocks, depth, height, width, channels]: the memory of a channels-last volume whose batch are blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple[int, int, int]

CHANNELS_LAST = torch.channels_last_3d


def triple(value: int | tuple | list) -> Triple:
    """Return one number for each of the three axes, from what PyTorch takes as a size.

    Example:
        >>> triple(3), triple([2]), triple((1, 2, 3))
        ((3, 3, 3), (2, 2, 2), (1, 2, 3))
    """
    if isinstance(value, int):
        return value, value, value
    if len(value) == 1:
        return value[0], value[0], value[0]
    return value[0], value[1], value[2]


def block_of(data: Tensor) -> Triple:
    """Return the edges of the blocks of a packed map [n, d, h, w, C]."""
    return data.shape[1], data.shape[2], data.shape[3]


def channels_first(map_NDHWC: Tensor) -> Tensor:
    """View [n, d, h, w, C] as PyTorch's convolutions want it: [n, C, d, h, w], channels-last in memory."""
    return map_NDHWC.permute(0, 4, 1, 2, 3)


def channels_last(map_NCDHW: Tensor) -> Tensor:
    """View [n, C, d, h, w] as [n, d, h, w, C]."""
    return map_NCDHW.permute(0, 2, 3, 4, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvShape:
    """A convolution that keeps the grid of blocks, and the halos that its blocks need.

    Attributes:
        kernel: Edges of the kernel.
        stride: Steps of the kernel.
        padding: Zeros before and behind the volume.
        groups: Groups of channels that do not see each other.
    """

    kernel: Triple
    stride: Triple
    padding: Triple
    groups: int

    @property
    def halo(self) -> tuple[Triple, Triple]:
        """Voxels of the input that a block needs below and above itself."""
        above = tuple(max(k - s - p, 0) for k, s, p in zip(self.kernel, self.stride, self.padding, strict=True))
        return self.padding, above  # type: ignore[return-value]

    def gradient_halo(self, block: Triple) -> tuple[Triple, Triple]:
        """Voxels of the output's gradient that a block (edges of the input) needs below and above itself."""
        low, high = [], []
        for k, s, p, edge in zip(self.kernel, self.stride, self.padding, block, strict=True):
            low.append((k - 1 - p) // s)
            high.append((edge - 1 + p) // s - (edge // s - 1))
        return tuple(low), tuple(high)  # type: ignore[return-value]
