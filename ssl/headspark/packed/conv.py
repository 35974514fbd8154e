"""Convolution of packed blocks: each block is convolved with the halo that its visible neighbours lend it.

A hidden neighbour lends zeros, so the result equals "dense convolution, then multiply by the mask" at every visible
voxel. Only the packed input is kept for the backward pass, or what it can be recomputed from; halos are gathered
again. The gradient of the input is a gather as well (the transposed convolution of the blocks with the halos of their
neighbours' gradients), so nothing is scattered and no atomics are needed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headspark.packed.geometry import MaskGeometry
from headspark.packed.layout import CHANNELS_LAST, ConvShape, block_of, channels_first, channels_last
from headspark.packed.normed import Normed
from headspark.packed.recompute import Recompute, restore, save
from headspark.packed.weight_gradient import weight_gradient, weight_of_matrix
from headspark.packed.windows import gather_columns, map_windows, sum_columns

GEMM_MAX_VOXELS = 8
"""Blocks of at most so many voxels are convolved as one matrix product: their halo outweighs them."""


def convolve(
    data: Tensor,
    geometry: MaskGeometry,
    weight: Tensor,
    bias: Tensor | None,
    shape: ConvShape,
    made_of: Recompute | Normed | None = None,
) -> Tensor:
    """Convolve packed blocks.

    Args:
        data: Packed input [n, d, h, w, C_in]; its edges are multiples of the stride.
        geometry: The mask.
        weight: [C_out, C_in / groups, kernel].
        bias: [C_out] or None, of any type.
        shape: Kernel, stride, padding and groups.
        made_of: How the data can be recomputed in the backward pass; without, it is kept. A :class:`Normed` where the
            data only stand in for it; only for what :func:`gathers`.

    Returns:
        Packed output [n, d / stride, h / stride, w / stride, C_out].
    """
    if math.prod(shape.kernel) == 1 and shape.groups == 1:
        strided = data[:, :: shape.stride[0], :: shape.stride[1], :: shape.stride[2]]
        return F.linear(strided, weight.flatten(1), _as(bias, data))
    if geometry.is_whole:
        out = F.conv3d(channels_first(data), weight, _as(bias, data), shape.stride, shape.padding, groups=shape.groups)
        return channels_last(out.contiguous(memory_format=CHANNELS_LAST))
    if shape.stride == (1, 1, 1) and shape.groups == 1 and math.prod(block_of(data)) <= GEMM_MAX_VOXELS:
        return _ColumnConv.apply(data, weight, bias, geometry, shape, made_of)
    return channels_last(_WindowConv.apply(data, weight, bias, geometry, shape, made_of))


def gathers(data: Tensor, geometry: MaskGeometry, shape: ConvShape) -> bool:
    """Tell whether :func:`convolve` gathers what it reads of the neighbours, window by window or tap by tap."""
    return not geometry.is_whole and (math.prod(shape.kernel) > 1 or shape.groups > 1)


def cast_for_autocast(data: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bring the operands of a convolution to the type that autocast wants, as PyTorch does for plain tensors."""
    if not torch.is_autocast_enabled(data.device.type):
        return data, weight
    dtype = torch.get_autocast_dtype(data.device.type)
    return data.to(dtype), weight.to(dtype)


def _as(bias: Tensor | None, data: Tensor) -> Tensor | None:
    """Return a bias in the type of the map that it is added to."""
    return None if bias is None else bias.to(data.dtype)


def upsampling_matrix(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Write a transposed convolution whose stride is its kernel as a matrix product, each voxel giving a cube.

    Args:
        weight: [C_in, C_out, kernel].
        bias: [C_out] or None.

    Returns:
        [taps * C_out, C_in] and [taps * C_out] or None; taps in the order of the kernel.
    """
    matrix = weight.permute(2, 3, 4, 1, 0).reshape(-1, weight.shape[0])
    return matrix, None if bias is None else bias.repeat(math.prod(weight.shape[2:]))


class _WindowConv(torch.autograd.Function):
    """Gather windows, convolve them without padding.

    From packed [n, d, h, w, C_in] to [n, C_out, d / stride, h / stride, w / stride], channels-last in memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        data: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: MaskGeometry,
        shape: ConvShape,
        made_of: Recompute | Normed | None,
    ) -> Tensor:
        ctx.geometry, ctx.shape, ctx.bias_type = geometry, shape, None if bias is None else bias.dtype
        save(ctx, data, made_of, weight)
        data, normed = (made_of.source, made_of) if isinstance(made_of, Normed) else (data, None)
        bias = _as(bias, data)
        depth, height, width = (edge // step for edge, step in zip(block_of(data), shape.stride, strict=True))
        return map_windows(
            lambda windows: F.conv3d(windows, weight, bias, stride=shape.stride, groups=shape.groups),
            data, geometry, *shape.halo, shape=(weight.shape[0], depth, height, width), normed=normed,
        )  # fmt: skip

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        data, normed, weight = restore(ctx)
        grad_cf = grads[0].contiguous(memory_format=CHANNELS_LAST)
        grad_data = grad_weight = grad_bias = None
        if any(ctx.needs_input_grad[1:3]):
            grad_weight, grad_bias = weight_gradient(
                data, normed, weight, grad_cf, ctx.geometry, ctx.shape, ctx.bias_type
            )
        if ctx.needs_input_grad[0]:
            grad_data = channels_last(_input_gradient(channels_last(grad_cf), weight, data, ctx.geometry, ctx.shape))
        return grad_data, grad_weight, grad_bias if ctx.needs_input_grad[2] else None, None, None, None


class _ColumnConv(torch.autograd.Function):
    """Gather the taps of every voxel and multiply: for blocks that are smaller than their halo.

    From packed [n, d, h, w, C_in] to packed [n, d, h, w, C_out].
    """

    @staticmethod
    def forward(
        ctx: Any,
        data: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: MaskGeometry,
        shape: ConvShape,
        made_of: Recompute | Normed | None,
    ) -> Tensor:
        ctx.geometry, ctx.shape, ctx.bias_type = geometry, shape, None if bias is None else bias.dtype
        save(ctx, data, made_of, weight)
        data, normed = (made_of.source, made_of) if isinstance(made_of, Normed) else (data, None)
        bias = _as(bias, data)
        columns = gather_columns(data, geometry, shape.kernel, shape.padding, normed)
        return F.linear(columns, _matrix(weight), bias).view(*data.shape[:4], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        data, normed, weight = restore(ctx)
        geometry, shape = ctx.geometry, ctx.shape
        grad = grads[0].contiguous()
        grad_rows = grad.view(-1, weight.shape[0])
        grad_data = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            columns = gather_columns(data, geometry, shape.kernel, shape.padding, normed)
            grad_weight = weight_of_matrix(grad_rows.t() @ columns, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_rows.sum(0, dtype=ctx.bias_type)
        if ctx.needs_input_grad[0]:
            # Products first, then their sum: the weight is taken as it lies in memory, which is most of a deep layer.
            products = (grad_rows @ _matrix(weight)).view(-1, weight.shape[1])
            grad_data = sum_columns(products, geometry, block_of(data), shape.kernel, shape.padding)
        return grad_data, grad_weight, grad_bias, None, None, None


def _matrix(weight: Tensor) -> Tensor:
    """View a weight [C_out, C_in, kernel] as [C_out, taps * C_in]."""
    return weight.permute(0, 2, 3, 4, 1).reshape(weight.shape[0], -1)


def _input_gradient(grad: Tensor, weight: Tensor, data: Tensor, geometry: MaskGeometry, shape: ConvShape) -> Tensor:
    """Return the gradient of the input from the packed gradient of the output.

    Args:
        grad: Gradient of the output [n, edges, C_out].
        weight: [C_out, C_in / groups, kernel].
        data: The input [n, d, h, w, C_in], for its shape.
        geometry: The mask.
        shape: Kernel, stride, padding and groups.

    Returns:
        [n, C_in, d, h, w], channels-last in memory.
    """
    block = block_of(data)
    low, high = shape.gradient_halo(block)
    if shape.stride == (1, 1, 1) and shape.groups == 1:
        mirrored = weight.transpose(0, 1).flip(2, 3, 4).contiguous(memory_format=CHANNELS_LAST)
        return map_windows(
            lambda windows: F.conv3d(windows, mirrored), grad, geometry, low, high, shape=(data.shape[-1], *block)
        )

    starts, missing = [], []
    for axis in range(3):
        start = low[axis] * shape.stride[axis]
        edge = grad.shape[1 + axis] + low[axis] + high[axis]
        length = (edge - 1) * shape.stride[axis] + shape.kernel[axis] - 2 * shape.padding[axis]
        starts.append(start)
        missing.append(max(start + block[axis] - length, 0))
    z, y, x = (slice(start, start + edge) for start, edge in zip(starts, block, strict=True))

    def spread(windows: Tensor) -> Tensor:
        """Convolve windows of the gradient backwards, and take what belongs to their blocks."""
        whole = F.conv_transpose3d(
            windows, weight, stride=shape.stride, padding=shape.padding, output_padding=missing, groups=shape.groups
        )
        return whole[:, :, z, y, x]

    return map_windows(spread, grad, geometry, low, high, shape=(data.shape[-1], *block))
