"""Pooling of packed blocks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headspark.packed.blocks import PackedBlocks
from headspark.packed.conv import convolve
from headspark.packed.geometry import MaskGeometry
from headspark.packed.handlers import UnsupportedOperation, handles
from headspark.packed.layout import ConvShape, Triple, block_of, channels_first, channels_last, triple
from headspark.packed.ops.grid import fit_to_stride, require_same_grid
from headspark.packed.tables import positions
from headspark.packed.windows import gather_windows


@handles(F.avg_pool3d)
def avg_pool3d(
    x: PackedBlocks,
    kernel_size: int | tuple,
    stride: int | tuple | None = None,
    padding: int | tuple = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> PackedBlocks:
    """Average over the kernel; hidden voxels count as zeros, as they do in a dense map."""
    kernel, stride, padding = triple(kernel_size), triple(stride or kernel_size), triple(padding)
    if ceil_mode or divisor_override is not None or (padding != (0, 0, 0) and not count_include_pad):
        raise UnsupportedOperation("average pooling with ceil_mode, divisor_override or count_include_pad=False")
    x = fit_to_stride(x, stride)
    require_same_grid(x, kernel, stride, padding, "average pooling")
    if kernel == stride:
        return x.like(_mean(_tiles(x.data, kernel)))
    channels = x.data.shape[-1]
    weight = x.data.new_full((channels, 1, *kernel), 1 / math.prod(kernel))
    shape = ConvShape(kernel=kernel, stride=stride, padding=padding, groups=channels)
    return x.like(convolve(x.data, x.geometry, weight, None, shape))


@handles(F.max_pool3d, torch.max_pool3d)
def max_pool3d(
    x: PackedBlocks,
    kernel_size: int | tuple,
    stride: int | tuple | None = None,
    padding: int | tuple = 0,
    dilation: int | tuple = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> PackedBlocks:
    """Take the maximum over the kernel; hidden voxels count as zeros, those beyond the volume not at all."""
    kernel, stride, padding = triple(kernel_size), triple(stride or kernel_size), triple(padding)
    if ceil_mode or return_indices or triple(dilation) != (1, 1, 1):
        raise UnsupportedOperation("max pooling with ceil_mode, return_indices or dilation")
    x = fit_to_stride(x, stride)
    require_same_grid(x, kernel, stride, padding, "max pooling")
    if kernel == stride:
        return x.like(_tiles(x.data, kernel).amax((2, 4, 6)))
    low, high = ConvShape(kernel=kernel, stride=stride, padding=padding, groups=1).halo
    windows = _Windows.apply(x.data, x.geometry, low, high)
    return x.like(channels_last(F.max_pool3d(channels_first(windows), kernel, stride)).contiguous())


def _mean(tiles: Tensor) -> Tensor:
    """The mean over each tile, [n, tiles along each axis, C]."""
    if tiles.device.type != "cpu":
        return tiles.mean((2, 4, 6))
    # Whole planes first, then lines: what is added lies side by side, which a CPU does ten times as fast.
    return tiles.sum(2).sum(3).sum(4) / (tiles.shape[2] * tiles.shape[4] * tiles.shape[6])


def _tiles(data: Tensor, kernel: Triple) -> Tensor:
    """View packed data [n, d, h, w, C] as tiles of a kernel: [n, d/k, k, h/k, k, w/k, k, C]."""
    n, d, h, w, channels = data.shape
    return data.reshape(n, d // kernel[0], kernel[0], h // kernel[1], kernel[1], w // kernel[2], kernel[2], channels)


class _Windows(torch.autograd.Function):
    """Windows with minus infinity beyond the volume; their gradient is added up where they overlap.

    From packed [n, d, h, w, C] to [n, d + halos, h + halos, w + halos, C]. Nothing is kept.
    """

    @staticmethod
    def forward(ctx: Any, data: Tensor, geometry: MaskGeometry, low: Triple, high: Triple) -> Tensor:
        ctx.shape, ctx.table = data.shape, geometry.windows(block_of(data), low, high)
        windows = gather_windows(data, geometry, low, high)
        beyond = geometry.beyond(block_of(data), low, high)
        windows.view(-1, data.shape[-1]).index_fill_(0, beyond, -math.inf)
        return windows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sources = ctx.table.sources
        present = positions(sources.starts.diff() > 0, len(sources.rows))
        rows = grads[0].reshape(-1, ctx.shape[-1]).index_select(0, present)
        out = rows.new_zeros(math.prod(ctx.shape[:4]), ctx.shape[-1])
        return out.index_add_(0, sources.rows, rows).view(ctx.shape), None, None, None
