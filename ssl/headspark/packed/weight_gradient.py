"""Gradients of convolution weights from windows that were convolved without padding."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from headspark.packed.geometry import MaskGeometry
from headspark.packed.layout import ConvShape, channels_first, channels_last
from headspark.packed.normed import Normed
from headspark.packed.windows import gather_windows, window_batches

GEMM_MIN_CHANNELS = 32
"""From so many channels on, a CPU gets weight gradients from matrix products: as fast at 32, a third faster at 128."""

CPU_COLUMN_BYTES = 4 * 2**20
"""Unfolded windows that are multiplied at a time on a CPU; they stay in its cache."""


def weight_gradient(
    data: Tensor,
    normed: Normed | None,
    weight: Tensor,
    grad_cf: Tensor,
    geometry: MaskGeometry,
    shape: ConvShape,
    bias_type: torch.dtype | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of weight and bias of a packed convolution; its windows are gathered again.

    Args:
        data: Packed input [n, d, h, w, C_in].
        normed: Where the data are still to be normalised: how.
        weight: [C_out, C_in / groups, kernel], for its shape and memory.
        grad_cf: Gradient of the output, channels-first [n, C_out, edges].
        geometry: The mask.
        shape: Kernel, stride, padding and groups.
        bias_type: Type of the bias; None: there is none.

    Returns:
        The gradients, of the shapes of weight and [C_out].
    """
    sums = torch.promote_types(weight.dtype, torch.float32)
    grad, batches = channels_last(grad_cf), window_batches(data, *shape.halo)
    if len(batches) == 1:
        windows = gather_windows(data, geometry, *shape.halo, normed=normed)
        grad_weight = weight_gradient_of_windows(windows, grad, weight, shape)
        return grad_weight.to(weight.dtype), None if bias_type is None else grad.sum((0, 1, 2, 3), dtype=bias_type)
    total = torch.zeros_like(weight, dtype=sums)
    for blocks in batches:
        windows = gather_windows(data, geometry, *shape.halo, blocks, normed)
        total += weight_gradient_of_windows(windows, grad[blocks], weight, shape)
    grad_bias = None if bias_type is None else grad.sum((0, 1, 2, 3), dtype=sums).to(bias_type)
    return total.to(weight.dtype), grad_bias


def weight_gradient_of_windows(windows: Tensor, grad: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Return the gradient of a weight.

    Args:
        windows: [n, window edges, C_in].
        grad: Gradient of the convolved windows, [n, edges, C_out].
        weight: [C_out, C_in / groups, kernel], for its shape and memory.
        shape: Kernel, stride and groups; the padding does not matter.

    Returns:
        [C_out, C_in / groups, kernel].
    """
    wide = grad.dtype in (torch.float32, torch.float64)
    if wide and grad.device.type == "cpu" and shape.groups == 1 and windows.shape[-1] >= GEMM_MIN_CHANNELS:
        return _by_products(windows, grad, weight, shape)
    _, grad_weight, _ = torch.ops.aten.convolution_backward(
        channels_first(grad),
        channels_first(windows),
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


def weight_of_matrix(matrix: Tensor, weight: Tensor) -> Tensor:
    """View [C_out, taps * C_in] in the shape of a weight [C_out, C_in, kernel]."""
    return matrix.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).permute(0, 4, 1, 2, 3)


def _by_products(windows: Tensor, grad: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """The same as a sum of matrix products of unfolded windows; faster on a CPU where there are many channels."""
    total = windows.new_zeros(weight.shape[0], math.prod(shape.kernel) * windows.shape[-1])
    rows = max(CPU_COLUMN_BYTES // (total.shape[1] * windows.element_size()), 1)
    for some, their_grad in _pieces(windows, grad, shape, rows):
        total.addmm_(their_grad.reshape(-1, weight.shape[0]).t(), _unfold(some, shape))
    return weight_of_matrix(total, weight)


def _pieces(
    windows: Tensor, grad: Tensor, shape: ConvShape, voxels: int, axis: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut windows, and the output's gradient with them, to pieces of about so many voxels of the output.

    Args:
        windows: [n, window edges, C_in].
        grad: [n, edges, C_out].
        shape: Kernel and stride.
        voxels: Voxels of the output in a piece.
        axis: Along which to cut first; where one place along it is too much, the next axis is cut too.

    Yields:
        Views of both, of the same axes.
    """
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
            yield from _pieces(reach, some, shape, voxels, axis + 1)


def _unfold(windows: Tensor, shape: ConvShape) -> Tensor:
    """Unfold windows [n, window edges, C] to [voxels of the output, taps * C].

    The taps of a line lie beside each other in memory, so that they are copied as one.
    """
    channels = windows.shape[-1]
    counts = [(edge - k) // s + 1 for edge, k, s in zip(windows.shape[1:4], shape.kernel, shape.stride, strict=True)]
    n, z, y, x, _ = windows.stride()
    steps = (n, z * shape.stride[0], y * shape.stride[1], x * shape.stride[2], z, y, 1)
    sizes = (len(windows), *counts, shape.kernel[0], shape.kernel[1], shape.kernel[2] * channels)
    return windows.as_strided(sizes, steps).reshape(-1, math.prod(shape.kernel) * channels)
