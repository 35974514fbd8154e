"""Convolution of visible blocks: each block is convolved with the rim that its visible neighbours lend it.

A hidden neighbour lends zeros, so the result equals "dense convolution, then multiply by the mask" at every visible
voxel. Only the packed input is kept for the backward pass; rims are gathered again. The gradient of the input is a
gather as well (the transposed convolution of the blocks with the rims of their neighbours' gradients), so nothing is
scattered and no atomics are needed.

Packed data is [blocks, depth, height, width, channels], which is the memory of a channels-last volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headspark.packed.geometry import MaskGeometry, Triple
from headspark.packed.recompute import Again, keep, kept

CHANNELS_LAST = torch.channels_last_3d

GEMM_MAX_VOXELS = 8
"""Blocks of at most so many voxels are convolved as one matrix product: their rim outweighs them."""

GEMM_MIN_CHANNELS = 32
"""From so many channels on, a CPU gets weight gradients from matrix products: as fast at 32, a third faster at 128."""

CPU_COLUMN_BYTES = 4 * 2**20
"""Unfolded windows that are multiplied at a time on a CPU; they stay in its cache."""

CPU_WINDOW_BYTES = 16 * 2**20
"""Windows that are gathered at a time on a CPU: as fast as all at once (measured), and it bounds the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvShape:
    """A convolution that keeps the grid of blocks: its kernel, stride, padding and groups, and the rims it needs."""

    kernel: Triple
    stride: Triple
    padding: Triple
    groups: int

    @property
    def rim(self) -> tuple[Triple, Triple]:
        """Voxels of the input that a block needs below and above itself."""
        above = tuple(max(k - s - p, 0) for k, s, p in zip(self.kernel, self.stride, self.padding, strict=True))
        return self.padding, above  # type: ignore[return-value]

    def gradient_rim(self, block: Triple) -> tuple[Triple, Triple]:
        """Voxels of the output's gradient that a block (edges of the input) needs below and above itself."""
        low, high = [], []
        for k, s, p, edge in zip(self.kernel, self.stride, self.padding, block, strict=True):
            low.append((k - 1 - p) // s)
            high.append((edge - 1 + p) // s - (edge // s - 1))
        return tuple(low), tuple(high)  # type: ignore[return-value]


def convolve(
    data: Tensor,
    geometry: MaskGeometry,
    weight: Tensor,
    bias: Tensor | None,
    shape: ConvShape,
    again: Again | None = None,
) -> Tensor:
    """Convolve packed blocks.

    Args:
        data: Packed input [n, d, h, w, C_in]; its edges are multiples of the stride.
        geometry: The mask.
        weight: [C_out, C_in / groups, kernel].
        bias: [C_out] or None.
        shape: Kernel, stride, padding and groups.
        again: How the data can be computed again in the backward pass; without, it is kept.

    Returns:
        Packed output [n, d / stride, h / stride, w / stride, C_out].
    """
    if math.prod(shape.kernel) == 1 and shape.groups == 1:
        strided = data[:, :: shape.stride[0], :: shape.stride[1], :: shape.stride[2]]
        return F.linear(strided, weight.flatten(1), bias)
    if geometry.is_whole:
        out = F.conv3d(_channels_first(data), weight, bias, shape.stride, shape.padding, groups=shape.groups)
        return out.contiguous(memory_format=CHANNELS_LAST).permute(0, 2, 3, 4, 1)
    if shape.stride == (1, 1, 1) and shape.groups == 1 and math.prod(data.shape[1:4]) <= GEMM_MAX_VOXELS:
        return _ColumnConv.apply(data, weight, bias, geometry, shape, again)
    out = _WindowConv.apply(data, weight, bias, geometry, shape, again)
    return out.permute(0, 2, 3, 4, 1)


def gather_windows(
    data: Tensor, geometry: MaskGeometry, low: Triple, high: Triple, start: int = 0, stop: int | None = None
) -> Tensor:
    """Return blocks with a rim from their neighbours: [n, d + rims, h + rims, w + rims, C].

    Args:
        data: Packed input; what is absent reads as zero.
        geometry: The mask.
        low: Voxels of rim below, along each axis.
        high: Voxels of rim above.
        start: First block wanted.
        stop: First block no longer wanted.
    """
    blocks, *edges, channels = data.shape
    stop = blocks if stop is None else stop
    if low == high == (0, 0, 0):
        return data[start:stop].contiguous()
    table = geometry.windows((edges[0], edges[1], edges[2]), low, high)
    size = math.prod(table.edges)
    windows = data.reshape(-1, channels).index_select(0, table.rows[start * size : stop * size])
    absent = table.absent[table.absent_from[start] : table.absent_from[stop]]
    windows.index_fill_(0, absent - start * size if start else absent, 0)
    return windows.view(stop - start, *table.edges, channels)


def window_parts(data: Tensor, geometry: MaskGeometry, low: Triple, high: Triple) -> Iterator[tuple[slice, Tensor]]:
    """Gather all windows, some blocks at a time: on a CPU few enough for its cache, elsewhere all at once.

    Yields:
        The blocks, and their windows channels-first.
    """
    blocks = len(data)
    step = blocks
    if data.device.type == "cpu":
        edges = (edge + lo + hi for edge, lo, hi in zip(data.shape[1:4], low, high, strict=True))
        step = max(CPU_WINDOW_BYTES // (math.prod(edges) * data.shape[-1] * data.element_size()), 1)
    for start in range(0, blocks, max(step, 1)):
        stop = min(start + step, blocks)
        yield slice(start, stop), _channels_first(gather_windows(data, geometry, low, high, start, stop))


class _WindowConv(torch.autograd.Function):
    """Gather windows, convolve them without padding. The output is channels-first in channels-last memory."""

    @staticmethod
    def forward(
        ctx: Any,
        data: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: MaskGeometry,
        shape: ConvShape,
        again: Again | None,
    ) -> Tensor:
        ctx.geometry, ctx.shape = geometry, shape
        keep(ctx, data, again, weight)
        edges = (edge // stride for edge, stride in zip(data.shape[1:4], shape.stride, strict=True))
        out = _Output((len(data), weight.shape[0], *edges), data)
        for part, windows in window_parts(data, geometry, *shape.rim):
            out.put(part, F.conv3d(windows, weight, bias, stride=shape.stride, groups=shape.groups))
        return out.value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        data, weight = kept(ctx)
        grad_cf = grads[0].contiguous(memory_format=CHANNELS_LAST)
        grad_data = grad_weight = grad_bias = None
        if any(ctx.needs_input_grad[1:3]):
            grad_weight, grad_bias = _weight_gradient(data, weight, grad_cf, ctx.geometry, ctx.shape)
        if ctx.needs_input_grad[0]:
            grad = grad_cf.permute(0, 2, 3, 4, 1)
            grad_data = _input_gradient(grad, weight, data, ctx.geometry, ctx.shape).permute(0, 2, 3, 4, 1)
        return grad_data, grad_weight, grad_bias if ctx.needs_input_grad[2] else None, None, None, None


class _Output:
    """A channels-last map that is filled some blocks at a time; a part that is all of it is taken as it is."""

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.shape, self.like = shape, like
        self._value: Tensor | None = None

    def put(self, part: slice, values: Tensor) -> None:
        if len(values) == self.shape[0]:
            self._value = values.contiguous(memory_format=CHANNELS_LAST)
        else:
            self.value[part] = values

    @property
    def value(self) -> Tensor:
        if self._value is None:
            self._value = torch.empty(
                self.shape, dtype=self.like.dtype, device=self.like.device, memory_format=CHANNELS_LAST
            )
        return self._value


class _ColumnConv(torch.autograd.Function):
    """Gather the taps of every voxel and multiply: for blocks that are smaller than their rim."""

    @staticmethod
    def forward(
        ctx: Any,
        data: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: MaskGeometry,
        shape: ConvShape,
        again: Again | None,
    ) -> Tensor:
        ctx.geometry, ctx.shape = geometry, shape
        keep(ctx, data, again, weight)
        columns = _gather_columns(data, geometry, shape.kernel, shape.padding)
        matrix = weight.permute(0, 2, 3, 4, 1).reshape(weight.shape[0], -1)
        return F.linear(columns, matrix, bias).view(*data.shape[:4], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        data, weight = kept(ctx)
        geometry, shape = ctx.geometry, ctx.shape
        grad = grads[0].contiguous()
        grad_rows = grad.view(-1, weight.shape[0])
        grad_data = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            columns = _gather_columns(data, geometry, shape.kernel, shape.padding)
            grad_weight = _as_weight(grad_rows.t() @ columns, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_rows.sum(0)
        if ctx.needs_input_grad[0]:
            # Products first, then their sum: the weight is taken as it lies in memory, which is most of a deep layer.
            taps_first = weight.permute(0, 2, 3, 4, 1).reshape(weight.shape[0], -1)
            products = (grad_rows @ taps_first).view(-1, weight.shape[1])
            block: Triple = (data.shape[1], data.shape[2], data.shape[3])
            table = geometry.column_gradients(block, shape.kernel, shape.padding)
            terms = products.index_select(0, table.rows).index_fill_(0, table.absent, 0)
            grad_data = terms.view(*data.shape[:4], -1, weight.shape[1]).sum(4)
        return grad_data, grad_weight, grad_bias, None, None, None


def _weight_gradient(
    data: Tensor, weight: Tensor, grad_cf: Tensor, geometry: MaskGeometry, shape: ConvShape
) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias, from windows that are gathered again."""
    sums = torch.promote_types(weight.dtype, torch.float32)
    total, grad = torch.zeros_like(weight, dtype=sums), grad_cf.permute(0, 2, 3, 4, 1)
    for part, windows in window_parts(data, geometry, *shape.rim):
        total += weight_gradient_of_windows(windows.permute(0, 2, 3, 4, 1), grad[part], weight, shape)
    return total.to(weight.dtype), grad.sum((0, 1, 2, 3), dtype=sums).to(weight.dtype)


def weight_gradient_of_windows(windows: Tensor, grad: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Return the gradient of a weight from windows that were convolved without padding.

    Args:
        windows: [n, window edges, C_in].
        grad: Gradient of the convolved windows, [n, edges, C_out].
        weight: The weight, for its shape and memory.
        shape: Stride and groups; the padding does not matter.
    """
    wide = grad.dtype in (torch.float32, torch.float64)
    if wide and grad.device.type == "cpu" and shape.groups == 1 and windows.shape[-1] >= GEMM_MIN_CHANNELS:
        return _weight_gradient_by_product(windows, grad, weight, shape)
    _, grad_weight, _ = torch.ops.aten.convolution_backward(
        _channels_first(grad),
        _channels_first(windows),
        weight,
        None,
        shape.stride,
        [0, 0, 0],
        [1, 1, 1],
        False,
        [0, 0, 0],
        shape.groups,
        [False, True, False],
    )
    return grad_weight


def _weight_gradient_by_product(windows: Tensor, grad: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """The same as a sum of matrix products of unfolded windows; faster on a CPU where there are many channels."""
    total = windows.new_zeros(weight.shape[0], math.prod(shape.kernel) * windows.shape[-1])
    rows = max(CPU_COLUMN_BYTES // (total.shape[1] * windows.element_size()), 1)
    for some, their_grad in _cut(windows, grad, shape, rows):
        total.addmm_(their_grad.reshape(-1, weight.shape[0]).t(), _unfold(some, shape))
    return _as_weight(total, weight)


def _cut(
    windows: Tensor, grad: Tensor, shape: ConvShape, voxels: int, axis: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut windows, and the output's gradient with them, to pieces of about so many voxels of the output."""
    step = voxels * grad.shape[axis] // max(math.prod(grad.shape[:4]), 1)
    for start in range(0, grad.shape[axis], max(step, 1)):
        length = min(max(step, 1), grad.shape[axis] - start)
        some = grad.narrow(axis, start, length)
        if axis:
            stride, kernel = shape.stride[axis - 1], shape.kernel[axis - 1]
            reach = windows.narrow(axis, start * stride, (length - 1) * stride + kernel)
        else:
            reach = windows.narrow(axis, start, length)
        if step or axis == 3:
            yield reach, some
        else:
            yield from _cut(reach, some, shape, voxels, axis + 1)


def _unfold(windows: Tensor, shape: ConvShape) -> Tensor:
    """Return [voxels of the output, taps * channels]; the taps of a line lie beside each other in memory."""
    channels = windows.shape[-1]
    counts = [(edge - k) // s + 1 for edge, k, s in zip(windows.shape[1:4], shape.kernel, shape.stride, strict=True)]
    n, z, y, x, _ = windows.stride()
    steps = (n, z * shape.stride[0], y * shape.stride[1], x * shape.stride[2], z, y, 1)
    sizes = (len(windows), *counts, shape.kernel[0], shape.kernel[1], shape.kernel[2] * channels)
    return windows.as_strided(sizes, steps).reshape(-1, math.prod(shape.kernel) * channels)


def _as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
    """View [C_out, taps * C_in] in the shape of a weight."""
    return matrix.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).permute(0, 4, 1, 2, 3)


def _input_gradient(grad: Tensor, weight: Tensor, data: Tensor, geometry: MaskGeometry, shape: ConvShape) -> Tensor:
    """Return the gradient of the input, channels-first, from the packed gradient of the output."""
    block: Triple = (data.shape[1], data.shape[2], data.shape[3])
    low, high = shape.gradient_rim(block)
    out = _Output((len(data), data.shape[-1], *block), data)
    if shape.stride == (1, 1, 1) and shape.groups == 1:
        mirrored = weight.transpose(0, 1).flip(2, 3, 4).contiguous(memory_format=CHANNELS_LAST)
        for part, windows in window_parts(grad, geometry, low, high):
            out.put(part, F.conv3d(windows, mirrored))
        return out.value

    starts, missing = [], []
    for axis in range(3):
        start = low[axis] * shape.stride[axis]
        edge = grad.shape[1 + axis] + low[axis] + high[axis]
        length = (edge - 1) * shape.stride[axis] + shape.kernel[axis] - 2 * shape.padding[axis]
        starts.append(start)
        missing.append(max(start + block[axis] - length, 0))
    z, y, x = (slice(start, start + edge) for start, edge in zip(starts, block, strict=True))
    for part, windows in window_parts(grad, geometry, low, high):
        spread = F.conv_transpose3d(
            windows, weight, stride=shape.stride, padding=shape.padding, output_padding=missing, groups=shape.groups
        )
        out.put(part, spread[:, :, z, y, x])
    return out.value


def _gather_columns(data: Tensor, geometry: MaskGeometry, kernel: Triple, low: Triple) -> Tensor:
    """Return [packed voxels, taps * channels]."""
    block: Triple = (data.shape[1], data.shape[2], data.shape[3])
    table = geometry.columns(block, kernel, low)
    columns = data.reshape(-1, data.shape[-1]).index_select(0, table.rows)
    columns.index_fill_(0, table.absent, 0)
    return columns.view(-1, math.prod(kernel) * data.shape[-1])


def _channels_first(windows: Tensor) -> Tensor:
    return windows.permute(0, 4, 1, 2, 3)
