"""Norm layers whose statistics are those of the visible voxels alone; blocks in the order of their samples."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headspark.packed.layout import channels_first, channels_last


def instance_norm(
    data: Tensor, counts: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalise every channel of every sample over its visible voxels.

    Args:
        data: Packed map [n, d, h, w, C].
        counts: Visible blocks of each sample.
        weight: [C] or None.
        bias: [C] or None.
        eps: Added to the variance.

    Returns:
        [n, d, h, w, C].
    """
    return _InstanceNorm.apply(data, weight, bias, counts, eps)


def group_norm(
    data: Tensor, counts: tuple[int, ...], groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalise every group of channels of every sample over its visible voxels; arguments as instance_norm."""
    channels = data.shape[-1]
    if groups == channels:
        return instance_norm(data, counts, weight, bias, eps)
    if len(set(counts)) == 1:
        return _group_norm(data.reshape(len(counts), -1, 1, channels), groups, weight, bias, eps).view(data.shape)
    parts = [
        _group_norm(part.reshape(1, -1, 1, channels), groups, weight, bias, eps).view(part.shape)
        for part in data.split(counts)
        if len(part)
    ]
    return torch.cat(parts) if parts else data


def _group_norm(rows_BL1C: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise the rows of equally many voxels a sample, [B, voxels, 1, C]; weight and bias [C].

    All in the type of the rows, as a GPU's kernel asks for, and so whether autocast is on or, as when a map is
    recomputed in the backward pass, off; the statistics are float32's all the same.
    """
    weight, bias = (None if one is None else one.to(rows_BL1C.dtype) for one in (weight, bias))
    with torch.autocast(rows_BL1C.device.type, enabled=False):
        normed = F.group_norm(rows_BL1C.permute(0, 3, 1, 2), groups, weight, bias, eps)
    return normed.permute(0, 2, 3, 1).contiguous()


class _InstanceNorm(torch.autograd.Function):
    """The batch-norm kernel of PyTorch on the blocks of one sample after the other; [n, d, h, w, C] in and out.

    Kept for the backward pass: the input, and mean and inverse deviation [C] of each sample.
    """

    @staticmethod
    def forward(
        ctx: Any, data: Tensor, weight: Tensor | None, bias: Tensor | None, counts: tuple[int, ...], eps: float
    ) -> Tensor:
        data = data.contiguous()
        out = torch.empty_like(data)
        statistics = torch.promote_types(data.dtype, torch.float32)
        moments = []
        for sample, target in zip(data.split(counts), out.split(counts), strict=True):
            mean, scale = (torch.empty(data.shape[-1], dtype=statistics, device=data.device) for _ in range(2))
            if len(sample):
                places = (_laid_out(target), mean, scale)
                torch.native_batch_norm(_laid_out(sample), weight, bias, None, None, True, 0.0, eps, out=places)
            moments += [mean, scale]
        ctx.save_for_backward(data, weight, *moments)
        ctx.counts, ctx.eps, ctx.has_bias = counts, eps, bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        data, weight, *moments = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], weight is not None, ctx.has_bias]
        grad_parts, grad_weights, grad_biases = [], [], []
        samples = zip(data.split(ctx.counts), grads[0].contiguous().split(ctx.counts), strict=True)
        for index, (sample, grad) in enumerate(samples):
            if not len(sample):
                continue
            mean, scale = moments[2 * index : 2 * index + 2]
            grad_data, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                _laid_out(grad), _laid_out(sample), weight, None, None, mean, scale, True, ctx.eps, wanted
            )
            grad_parts.append(grad_data)
            grad_weights.append(grad_weight)
            grad_biases.append(grad_bias)
        grad_data = _joined(grad_parts, data) if wanted[0] else None
        return (
            grad_data,
            reduce(torch.add, grad_weights) if wanted[1] and grad_weights else None,
            reduce(torch.add, grad_biases) if wanted[2] and grad_biases else None,
            None,
            None,
        )


def _laid_out(map_NDHWC: Tensor) -> Tensor:
    """View a map as PyTorch's batch norm is fastest on it.

    A CPU's takes [n, C, d, h, w], channels-last in memory. A GPU's has a kernel for rows [voxels, C], and would copy
    anything else of that layout in float32.
    """
    return channels_first(map_NDHWC) if map_NDHWC.device.type == "cpu" else map_NDHWC.flatten(0, 3)


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    """Join the samples' blocks, laid out as :func:`_laid_out` does, to a packed map of the shape of ``like``."""
    if not parts:
        return torch.zeros_like(like)
    if like.device.type == "cpu":
        parts = [channels_last(part) for part in parts]
    return parts[0].contiguous().view(like.shape) if len(parts) == 1 else torch.cat(parts).view(like.shape)
