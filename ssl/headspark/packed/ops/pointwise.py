"""What is done voxel by voxel on packed blocks: activations, dropout, linear layers and joined channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from headspark.packed.blocks import PackedBlocks
from headspark.packed.handlers import HANDLERS, Handler, UnsupportedOperation, handles
from headspark.packed.recompute import apply_pointwise

_POINTWISE = (
    F.celu,
    F.elu,
    F.gelu,
    F.hardsigmoid,
    F.hardswish,
    F.hardtanh,
    F.leaky_relu,
    F.logsigmoid,
    F.mish,
    F.relu,
    F.relu6,
    F.selu,
    F.sigmoid,
    F.silu,
    F.softplus,
    F.softsign,
    F.tanh,
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    F.dropout,
)


def _leaky(slope: float) -> Callable[..., float]:
    """Return what tells the slope of a rectifier below zero, of its arguments."""
    return lambda negative_slope=slope: float(negative_slope)


_RECTIFIERS = {F.leaky_relu: _leaky(0.01), F.relu: lambda: 0.0, torch.relu: lambda: 0.0}
"""Functions that are carried out with the norm before them, and how to read their slope."""


def _with_norm(x: PackedBlocks, slope: float) -> PackedBlocks:
    """Return the outcome of a norm that is pending, and of a rectifier behind it."""
    assert x.pending is not None
    out = PackedBlocks(x.pending.source, x.geometry, x.channels_last).await_norm(x.pending.activated(slope))
    if x.pending.residual is not None:
        out.data = out.data  # a sum has several readers, and what it is made of need not be kept for it
    return out


def _pointwise(function: Callable) -> Handler:
    """Make the handler of a function of single numbers."""

    def handler(x: PackedBlocks, *args: Any, inplace: bool | None = None, **kwargs: Any) -> PackedBlocks:
        if function in _RECTIFIERS and x.pending is not None and x.pending.slope is None:
            slope = _RECTIFIERS[function](*args, **kwargs)
            if slope >= 0:
                out = _with_norm(x, slope)
                return x.become(out) if inplace else out
        over = partial(function, *args, inplace=True, **kwargs) if inplace and x.can_change else None

        def plain(data: Tensor) -> Tensor:
            return function(data, *args, **kwargs)

        if x.recompute is None or function is F.dropout:
            out = x.like(plain(x.data) if over is None else over(x.data))
        else:
            out = x.like(apply_pointwise(x.data, x.recompute, plain, inplace=over))
            out.recompute = x.recompute.then(plain)
        return x.become(out) if inplace else out

    return handler


HANDLERS.update({function: _pointwise(function) for function in _POINTWISE})


@handles(F.prelu, torch.prelu)
def _prelu(x: PackedBlocks, weight: Tensor) -> PackedBlocks:
    """Scale what is below zero; the weight is [C] or [1]."""
    return x.like(torch.where(x.data > 0, x.data, x.data * weight))


@handles(F.dropout3d)
def _dropout3d(x: PackedBlocks, p: float = 0.5, training: bool = True, inplace: bool = False) -> PackedBlocks:
    """Drop whole channels of a sample."""
    if not training or p == 0:
        return x
    kept_BC111 = torch.rand(x.geometry.batch, x.data.shape[-1], 1, 1, 1, device=x.data.device) >= p
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return x * (kept_BC111 * scale).to(x.data.dtype)


@handles(torch.cat)
def _cat(parts: list[PackedBlocks], dim: int = 0) -> PackedBlocks:
    """Lay the channels of maps on the same blocks side by side."""
    first = parts[0]
    if dim not in (1, -4) or not all(isinstance(part, PackedBlocks) and first.same_blocks(part) for part in parts):
        raise UnsupportedOperation("a concatenation along another axis than the channels")
    return first.like(torch.cat([part.data for part in parts], -1))


@handles(F.linear)
def _linear(x: PackedBlocks, weight: Tensor, bias: Tensor | None = None) -> PackedBlocks:
    """Mix the channels of each voxel; the weight is [C_out, C_in]."""
    if not x.channels_last:
        raise UnsupportedOperation("a linear layer along an axis of space")
    return x.like(F.linear(x.data, weight, bias))
