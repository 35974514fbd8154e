"""Convolutions of packed blocks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from headspark.packed.blocks import PackedBlocks
from headspark.packed.conv import cast_for_autocast, convolve, gathers, upsampling_matrix
from headspark.packed.handlers import UnsupportedOperation, handles
from headspark.packed.layout import ConvShape, Triple, triple
from headspark.packed.ops.grid import fit_to_stride, require_same_grid


@handles(F.conv3d, torch.conv3d)
def conv3d(
    x: PackedBlocks,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple = 1,
    padding: int | tuple | str = 0,
    dilation: int | tuple = 1,
    groups: int = 1,
) -> PackedBlocks:
    """Convolve without a change of the block grid; strides may shrink or join blocks."""
    if triple(dilation) != (1, 1, 1):
        raise UnsupportedOperation(f"a convolution with dilation {dilation}")
    kernel: Triple = (weight.shape[2], weight.shape[3], weight.shape[4])
    if isinstance(padding, str):
        padding = tuple((k - 1) // 2 for k in kernel) if padding == "same" else 0
    shape = ConvShape(kernel=kernel, stride=triple(stride), padding=triple(padding), groups=groups)
    x = fit_to_stride(x, shape.stride)
    require_same_grid(x, shape.kernel, shape.stride, shape.padding, "a convolution")
    if x.pending is not None and x.pending.residual is None and gathers(x.layout, x.geometry, shape):
        data, cast_weight = cast_for_autocast(x.layout, weight)
        if data is x.layout:
            standin, normed = x.pending.link()
            return x.like(convolve(standin, x.geometry, cast_weight, bias, shape, normed))
    data, weight = cast_for_autocast(x.data, weight)
    return x.like(convolve(data, x.geometry, weight, bias, shape, x.recompute if data is x.data else None))


@handles(F.conv_transpose3d, torch.conv_transpose3d)
def conv_transpose3d(
    x: PackedBlocks,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple = 1,
    padding: int | tuple = 0,
    output_padding: int | tuple = 0,
    groups: int = 1,
    dilation: int | tuple = 1,
) -> PackedBlocks:
    """Upsample every voxel to a cube of its own: the kernel is the stride."""
    kernel: Triple = (weight.shape[2], weight.shape[3], weight.shape[4])
    plain = triple(padding) == triple(output_padding) == (0, 0, 0) and groups == 1 and triple(dilation) == (1, 1, 1)
    if kernel != triple(stride) or not plain:
        raise UnsupportedOperation("a transposed convolution whose kernel is not its stride, or with padding or groups")
    data, weight = cast_for_autocast(x.data, weight)
    bias = None if bias is None else bias.to(data.dtype)
    n, d, h, w, _ = data.shape
    cubes = F.linear(data, *upsampling_matrix(weight, bias))
    cubes = cubes.view(n, d, h, w, *kernel, weight.shape[1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.like(cubes.reshape(n, d * kernel[0], h * kernel[1], w * kernel[2], weight.shape[1]))
