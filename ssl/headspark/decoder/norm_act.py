"""Instance norm and LeakyReLU of a whole map, at the memory of that map."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headspark.decoder.slabs import Slab, rows_of_slabs


def norm_act(
    map_BDHWC: Tensor,
    weight: Tensor,
    bias: Tensor,
    head: tuple[Tensor, Tensor | None] | None = None,
    *,
    eps: float,
    slope: float,
) -> Tensor:
    """Instance norm, LeakyReLU and, if wanted, a linear layer over the channels.

    Only the map that is given is kept, and its gradient is written over it: nothing else may need it any more. A second
    backward pass over the same graph is refused by PyTorch.

    Args:
        map_BDHWC: The map.
        weight: [C] of the norm.
        bias: [C] of the norm.
        head: Weight [C_out, C] and bias [C_out] (or None) of the linear layer.
        eps: Added to the variance.
        slope: Of the activation, below zero.

    Returns:
        [B, D, H, W, C], or C_out with a head.
    """
    return _NormAct.apply(map_BDHWC, weight, bias, *(head or (None, None)), eps, slope)


class _NormAct(torch.autograd.Function):
    """The norm, its activation and its head, from [B, D, H, W, C] to [B, D, H, W, C or C_out].

    Kept for the backward pass: the map itself, and mean and inverse deviation [B, C]. What lies between is made again
    slab by slab, and the gradient is written over the map.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor | None,
        head_bias: Tensor | None,
        eps: float,
        slope: float,
    ) -> Tensor:
        mean_BC, scale_BC = _moments(x, eps)
        out = x.new_empty(*x.shape[:4], x.shape[-1] if head_weight is None else head_weight.shape[0])
        for slab, rows in rows_of_slabs(x):
            centred = rows - mean_BC[slab.samples, None]
            active = F.leaky_relu(torch.addcmul(bias, centred, (weight * scale_BC)[slab.samples, None]), slope)
            if head_weight is not None:
                active = F.linear(active.to(x.dtype), head_weight, head_bias)
            target = out[slab.samples, slab.planes]
            target.copy_(active.view(target.shape))
        ctx.save_for_backward(x, weight, bias, head_weight, mean_BC, scale_BC)
        ctx.slope, ctx.has_head_bias = slope, head_bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, head_weight, mean_BC, scale_BC = ctx.saved_tensors
        x, slope = x.detach(), ctx.slope
        gain_BC = weight * scale_BC
        grad_bias_BC, grad_dot_centred_BC = torch.zeros_like(mean_BC), torch.zeros_like(mean_BC)
        grad_head = None if head_weight is None else torch.zeros_like(head_weight, dtype=mean_BC.dtype)

        def gradient(slab: Slab, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Return the centred input, the normalised map and its gradient, all [samples, voxels, C]."""
            grad = grads[0][slab.samples, slab.planes].flatten(1, 3)
            centred = rows - mean_BC[slab.samples, None]
            normed = torch.addcmul(bias, centred, gain_BC[slab.samples, None])
            if head_weight is not None:
                grad = grad @ head_weight
            return centred, normed, torch.ops.aten.leaky_relu_backward(grad.to(normed.dtype), normed, slope, False)

        for slab, rows in rows_of_slabs(x):
            centred, normed, grad = gradient(slab, rows)
            grad_bias_BC[slab.samples] += grad.sum(1)
            grad_dot_centred_BC[slab.samples] += (grad * centred).sum(1)
            if grad_head is not None:
                active = F.leaky_relu_(normed, slope).to(x.dtype).flatten(0, 1)
                grad_head += grads[0][slab.samples, slab.planes].flatten(0, 3).t() @ active
        voxels = math.prod(x.shape[1:4])
        offset_BC, pull_BC = grad_bias_BC / voxels, grad_dot_centred_BC * scale_BC.square() / voxels
        for slab, rows in rows_of_slabs(x):
            centred, _, grad = gradient(slab, rows)
            grad -= offset_BC[slab.samples, None]
            grad -= centred.mul_(pull_BC[slab.samples, None])
            target = x[slab.samples, slab.planes]
            target.copy_(grad.mul_(gain_BC[slab.samples, None]).view(target.shape))
        return (
            x,
            (grad_dot_centred_BC * scale_BC).sum(0).to(weight.dtype),
            grad_bias_BC.sum(0).to(bias.dtype),
            None if head_weight is None or grad_head is None else grad_head.to(head_weight.dtype),
            grads[0].sum((0, 1, 2, 3)) if ctx.has_head_bias else None,
            None,
            None,
        )


def _moments(map_BDHWC: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and inverse deviation of every channel of every sample, [B, C] each.

    Slabs are joined as Chan et al. (1979) do.
    """
    wide = torch.promote_types(map_BDHWC.dtype, torch.float32)
    mean_BC, squares_BC = (map_BDHWC.new_zeros(len(map_BDHWC), map_BDHWC.shape[-1], dtype=wide) for _ in range(2))
    plane = map_BDHWC.shape[2] * map_BDHWC.shape[3]
    for slab, rows in rows_of_slabs(map_BDHWC):
        before, here = slab.planes.start * plane, rows.shape[1]
        centre = rows.mean(1)
        apart = centre - mean_BC[slab.samples]
        mean_BC[slab.samples] += apart * (here / (before + here))
        squares_BC[slab.samples] += (rows - centre[:, None]).square_().sum(1)
        squares_BC[slab.samples] += apart.square() * (before * here / (before + here))
    return mean_BC, (squares_BC / math.prod(map_BDHWC.shape[1:4]) + eps).rsqrt()
