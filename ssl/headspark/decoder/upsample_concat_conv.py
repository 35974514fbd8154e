"""One stage of a U-Net decoder, at the cost of what differs: upsample, concatenate the skip, convolve.

Run as plain layers, a stage convolves twice the channels of its skip at every voxel. Most of that is known beforehand,
and here it is not computed; the result is the same but for rounding:

- An upsampling whose stride is its kernel (2) and the convolution behind it (3) are both linear: together they are one
  transposed convolution of the coarse map with a kernel of 4 and a stride of 2, whose weights follow from the two.
  That is 16 products of channels a voxel instead of 29 where the coarse map has twice the channels.
- The skip is its token at every hidden cell. Its half of the convolution is that of the token everywhere, which is one
  value but at the faces of the volume (`headspark.decoder.faces`), and that of "skip minus token", which is zero except
  at visible voxels and at the hidden ones that touch them (`headspark.decoder.skip_half`).
- Of the finest map only the blocks need be computed whose voxels are scored: ``wanted``.

What is kept for the backward pass are the inputs, and the convolved map as the input of the norm behind it
(`headspark.decoder.norm_act`). Where a map is small its kernels cost more than they save, and plain layers run.

Maps lie in memory as [samples, depth, height, width, channels]; f is the stride of the upsampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headspark.decoder.faces import add_faces, add_faces_of_blocks, convolved_constant, sum_of_faces
from headspark.decoder.skip_half import MARGIN, add_rim, add_visible, beyond_token, skip_gradients
from headspark.packed.blocks import PackedBlocks
from headspark.packed.geometry import MaskGeometry
from headspark.packed.layout import CHANNELS_LAST, Triple, block_of, channels_first, channels_last
from headspark.packed.masked_map import TokenMap
from headspark.packed.near import gather_dense, rim_of
from headspark.packed.windows import window_batches

FUSE_FROM_VOXELS = 32
"""Upsampling and convolution become one kernel where there are so many voxels a channel: making it costs 216 products
of matrices of channels, and it saves 13 a voxel."""

SPARSE_FROM_EDGE = 4
"""The skip is convolved near visible blocks alone where their edge is at least this; smaller ones touch everything."""


def upsample_concat_conv(
    coarse_BdhwC: Tensor,
    skip: Tensor,
    geometry: MaskGeometry,
    token_C: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    wanted: MaskGeometry | None = None,
) -> Tensor:
    """Convolve an upsampled map and a skip, laid side by side, as one map of their channels.

    Args:
        coarse_BdhwC: The map to be upsampled.
        skip: Packed blocks [n, z, y, x, C] of the skip.
        geometry: Where the blocks of the skip lie.
        token_C: What stands at the hidden cells of the skip; None: zero.
        up_weight: [C_coarse, C, f, f, f], of a transposed convolution whose stride is its kernel.
        up_bias: [C] or None.
        weight: [C_out, 2 C, k, k, k], of a convolution that keeps the grid (k is odd); first the upsampled channels.
        bias: [C_out] or None.
        wanted: Hidden blocks, of the same grid; they alone are returned. None: the whole map.

    Returns:
        The convolved map [B, d * f, h * f, w * f, C_out], or its wanted blocks [n, z, y, x, C_out].
    """
    factor, kernel, width = up_weight.shape[2], weight.shape[2], up_weight.shape[1]
    voxels = coarse_BdhwC.shape[:4].numel() * factor**3
    coarse, skip = channels_first(coarse_BdhwC.contiguous()), skip.contiguous()
    dense = TokenMap(PackedBlocks(skip, geometry), token_C).dense
    if (factor, kernel) != (2, 3) or voxels < FUSE_FROM_VOXELS * len(weight):
        joined = torch.cat([F.conv_transpose3d(coarse, up_weight, up_bias, stride=factor), dense()], 1)
        return _take(F.conv3d(joined, weight, bias, padding=kernel // 2), wanted)

    up_half, skip_half = weight[:, :width], weight[:, width:]
    fused = _fused(up_weight, up_half, coarse)
    constants = convolved_constant(up_half, up_bias, bias)
    sparse = not geometry.is_whole and min(block_of(skip)) >= SPARSE_FROM_EDGE
    if sparse:
        constants = constants + convolved_constant(skip_half, token_C, None)
    if sparse and wanted is not None:
        return _AtBlocks.apply(coarse, fused, skip, token_C, skip_half, constants, geometry, wanted)
    y_BCDHW = F.conv_transpose3d(coarse, fused, stride=2, padding=1).contiguous(memory_format=CHANNELS_LAST)
    y_BCDHW = _AddFaces.apply(y_BCDHW, constants)
    if sparse:
        y_BCDHW = _AddSkip.apply(y_BCDHW, skip, token_C, skip_half, geometry)
    else:
        y_BCDHW = y_BCDHW.add_(F.conv3d(dense(), skip_half.to(skip.dtype), padding=1))
    return _take(y_BCDHW, wanted)


def _take(y_BCDHW: Tensor, wanted: MaskGeometry | None) -> Tensor:
    """Return a map, or the wanted blocks of it, with the channels behind."""
    if wanted is not None:
        return PackedBlocks.pack(y_BCDHW, wanted).data
    return channels_last(y_BCDHW.contiguous(memory_format=CHANNELS_LAST))


def _fused(up_weight: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """Return the kernel [C_coarse, C_out, 4, 4, 4] of the transposed convolution that does both."""
    wide = torch.promote_types(up_weight.dtype, torch.float32)
    with torch.autocast(like.device.type, enabled=False):
        mirrored = weight.to(wide).transpose(0, 1).flip(2, 3, 4)
        return F.conv_transpose3d(up_weight.to(wide), mirrored).to(like.dtype)


class _AddFaces(torch.autograd.Function):
    """Add [C_out, 3, 3, 3] to y_BCDHW, in place; channels-last in memory."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, faces: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        add_faces(channels_last(y), faces)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], sum_of_faces(channels_last(grads[0]))


class _AddSkip(torch.autograd.Function):
    """Add the convolution of "skip minus token" to y_BCDHW, in place; channels-last in memory."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, skip: Tensor, token: Tensor | None, weight: Tensor, geometry: MaskGeometry
    ) -> Tensor:
        ctx.mark_dirty(y)
        ctx.save_for_backward(skip, token, weight)
        ctx.geometry = geometry
        rows, weight, apart = channels_last(y).view(-1, y.shape[1]), weight.to(y.dtype), beyond_token(skip, token)
        add_visible(rows, apart, geometry, weight)
        add_rim(rows, apart, rim_of(geometry, block_of(skip)), weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = channels_last(grads[0].contiguous(memory_format=CHANNELS_LAST))
        skip, token, weight = ctx.saved_tensors
        return grads[0], *skip_gradients(grad, skip, token, weight, ctx.geometry), None


class _AtBlocks(torch.autograd.Function):
    """The stage at some hidden blocks alone: from coarse [B, C_coarse, d, h, w] to packed [n, z, y, x, C_out]."""

    @staticmethod
    def forward(
        ctx: Any,
        coarse: Tensor,
        fused: Tensor,
        skip: Tensor,
        token: Tensor | None,
        weight: Tensor,
        faces: Tensor,
        geometry: MaskGeometry,
        wanted: MaskGeometry,
    ) -> Tensor:
        ctx.save_for_backward(coarse, fused, skip, token, weight)
        ctx.geometry, ctx.wanted = geometry, wanted
        block, channels = block_of(skip), fused.shape[1]
        out = coarse.new_empty(wanted.blocks, *block, channels)
        for blocks, windows in _coarse_windows(coarse, wanted, block):
            out[blocks] = channels_last(F.conv_transpose3d(windows, fused, stride=2, padding=3))
        rows = out.view(-1, channels)
        add_faces_of_blocks(rows, faces, wanted, block)
        add_rim(rows, beyond_token(skip, token), rim_of(geometry, block, wanted), weight.to(out.dtype))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        coarse, fused, skip, token, weight = ctx.saved_tensors
        wanted, grad = ctx.wanted, grads[0].contiguous()
        whole = channels_last(PackedBlocks(grad, wanted).dense())
        # On the whole map one call does both faster than windows do.
        grad_coarse, grad_fused, _ = torch.ops.aten.convolution_backward(
            channels_first(whole), coarse, fused, None, [2] * 3, [1] * 3, [1] * 3, True, [0] * 3, 1, [True, True, False]
        )
        from_skip = skip_gradients(whole, skip, token, weight, ctx.geometry)
        return grad_coarse, grad_fused, *from_skip, sum_of_faces(whole), None, None


def _coarse_windows(coarse_BCdhw: Tensor, wanted: MaskGeometry, block: Triple) -> Iterator[tuple[slice, Tensor]]:
    """Yield what the wanted blocks read of the coarse map, channels-first, some blocks at a time."""
    coarse = channels_last(coarse_BCdhw)
    edges = block[0] // 2, block[1] // 2, block[2] // 2
    table = wanted.dense_windows(edges, 1)
    packed = coarse.new_empty(1).expand(wanted.blocks, *edges, coarse.shape[-1])  # for its sizes
    for blocks in window_batches(packed, MARGIN, MARGIN):
        yield blocks, channels_first(gather_dense(coarse, table, blocks))
