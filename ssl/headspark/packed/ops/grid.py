"""Keeping an operation on the grid of blocks: blocks that are smaller than a stride are joined, the rest is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headspark.packed.blocks import PackedBlocks
from headspark.packed.geometry import MergeTable
from headspark.packed.handlers import UnsupportedOperation
from headspark.packed.layout import Triple, triple


def fit_to_stride(x: PackedBlocks, stride: Triple) -> PackedBlocks:
    """Join blocks that are smaller than a stride, so that it divides them.

    Raises:
        UnsupportedOperation: Neither divides the other, or the mask's grid is no multiple.
    """
    block = x.block
    if all(edge % step == 0 for edge, step in zip(block, stride, strict=True)):
        return x
    factor = [1, 1, 1]
    for axis, (edge, step) in enumerate(zip(block, stride, strict=True)):
        if edge % step:
            factor[axis] = step // edge
            if step % edge or x.geometry.grid[axis] % factor[axis]:
                raise UnsupportedOperation(
                    f"a stride of {step} on mask blocks of {edge} voxels in a grid of {x.geometry.grid[axis]} blocks; "
                    "choose a patch that is a multiple of the encoder's total stride and of the mask block"
                )
    table = x.geometry.merge(block, triple(factor))
    edges = tuple(edge * joined for edge, joined in zip(block, factor, strict=True))
    data = _Merge.apply(x.data, table).view(table.geometry.blocks, *edges, x.data.shape[-1])
    return PackedBlocks(data, table.geometry)


def require_same_grid(x: PackedBlocks, kernel: Triple, stride: Triple, padding: Triple, what: str) -> None:
    """Refuse an operation whose output is not the input's grid divided by the stride."""
    for edge, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True):
        if (edge + 2 * p - k) // s + 1 != edge // s:
            raise UnsupportedOperation(f"{what} with kernel {kernel}, stride {stride} and padding {padding}")


class _Merge(torch.autograd.Function):
    """Join blocks; each small voxel has one place, so the gradient is a gather too.

    From packed [n, d, h, w, C] to the rows of the large blocks [voxels, C]. Nothing is kept.
    """

    @staticmethod
    def forward(ctx: Any, data: Tensor, table: MergeTable) -> Tensor:
        ctx.table, ctx.shape = table, data.shape
        rows = data.reshape(-1, data.shape[-1]).index_select(0, table.gather)
        return rows.index_fill_(0, table.absent, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.table.scatter).view(ctx.shape), None
