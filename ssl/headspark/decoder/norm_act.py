"""Instance norm and LeakyReLU of a whole map, at the memory of that map."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headspark.decoder.slabs import Slab, rows_of_slabs
from headspark.packed import MaskGeometry, kernels
from headspark.packed.kernels import Norm, Samples
from headspark.packed.layout import block_of
from headspark.page_locked import copied


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
    head_weight, head_bias = head or (None, None)
    if kernels.take(map_BDHWC):
        samples = Samples(
            first=_counted(len(map_BDHWC), map_BDHWC.device),
            voxels=math.prod(map_BDHWC.shape[1:4]),
            longest=math.prod(map_BDHWC.shape[1:4]),
        )
        return _FusedNormAct.apply(map_BDHWC.contiguous(), weight, bias, head_weight, head_bias, samples, eps, slope)
    return _NormAct.apply(map_BDHWC, weight, bias, head_weight, head_bias, eps, slope)


def norm_act_of_blocks(
    blocks_NDHWC: Tensor,
    geometry: MaskGeometry,
    weight: Tensor,
    bias: Tensor,
    head: tuple[Tensor, Tensor | None] | None = None,
    *,
    eps: float,
    slope: float,
) -> Tensor:
    """The same over the blocks of each sample, [n, d, h, w, C]; arguments as for `norm_act`."""
    if kernels.take(blocks_NDHWC):
        layer = head or (None, None)
        samples = geometry.samples(block_of(blocks_NDHWC))
        return _FusedNormAct.apply(blocks_NDHWC.contiguous(), weight, bias, *layer, samples, eps, slope)
    activate = partial(norm_act, weight=weight, bias=bias, head=head, eps=eps, slope=slope)
    # A sample's blocks are one long map; its gradient is written over it, so samples may not share memory.
    maps = [blocks_NDHWC]
    if geometry.batch > 1:
        maps = [blocks.clone() for blocks in blocks_NDHWC.split(geometry.counts) if len(blocks)]
    decoded = [activate(blocks.flatten(0, 1)[None]) for blocks in maps]
    return torch.cat([one[0] for one in decoded]).view(*blocks_NDHWC.shape[:4], -1)


@lru_cache
@torch.inference_mode(False)
def _counted(samples: int, device: torch.device) -> Tensor:
    """Return 0, 1, ..., samples: how many dense maps come before each; it stays on the device."""
    return copied(torch.arange(samples + 1, dtype=torch.int32), device)


class _FusedNormAct(torch.autograd.Function):
    """The same as `_NormAct`, by kernels: from [n, d, h, w, C] to [n, d, h, w, C or C_out]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        head_weight: Tensor | None,
        head_bias: Tensor | None,
        samples: Samples,
        eps: float,
        slope: float,
    ) -> Tensor:
        rows = x.view(-1, x.shape[-1])
        mean_BC, scale_BC = kernels.moments(rows, samples, eps)
        norm = Norm(mean_BC, scale_BC, weight, bias, slope)
        head = None if head_weight is None else (head_weight.contiguous(), head_bias)
        ctx.save_for_backward(x, *norm[:4], head_weight)
        ctx.samples, ctx.slope, ctx.head_bias_type = samples, slope, None if head_bias is None else head_bias.dtype
        return kernels.apply(rows, samples, norm, head=head).view(*x.shape[:4], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean_BC, scale_BC, weight, bias, head_weight = ctx.saved_tensors
        norm = Norm(mean_BC, scale_BC, weight, bias, ctx.slope)
        x, grad = x.detach(), grads[0].reshape(-1, grads[0].shape[-1]).contiguous()
        head = None if head_weight is None else head_weight.contiguous()
        found = kernels.gradients(grad, x.view(-1, x.shape[-1]), ctx.samples, norm, head=head, over=True)
        return (
            x,
            found.weight.to(weight.dtype),
            found.bias.to(bias.dtype),
            None if head_weight is None or found.head is None else found.head.to(head_weight.dtype),
            None if ctx.head_bias_type is None else grad.sum(0, dtype=ctx.head_bias_type),
            None,
            None,
            None,
        )


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
