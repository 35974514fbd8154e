"""Norms of packed blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from headspark.packed import kernels
from headspark.packed.blocks import PackedBlocks
from headspark.packed.handlers import UnsupportedOperation, handles
from headspark.packed.norm import group_norm, instance_norm
from headspark.packed.normed import PendingNorm
from headspark.packed.recompute import Recompute


@handles(F.instance_norm)
def _instance_norm(
    x: PackedBlocks,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> PackedBlocks:
    """Normalise each channel of each sample over its visible voxels."""
    if running_mean is not None or not use_input_stats:
        raise UnsupportedOperation("an instance norm that tracks running statistics")
    if kernels.take(x.layout):
        return _pending(x, weight, bias, eps)
    counts = x.geometry.counts
    return _normed(x, lambda data: instance_norm(data, counts, weight, bias, eps))


@handles(F.group_norm)
def _group_norm(
    x: PackedBlocks, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> PackedBlocks:
    """Normalise each group of channels of each sample over its visible voxels."""
    counts = x.geometry.counts
    return _normed(x, lambda data: group_norm(data, counts, num_groups, weight, bias, eps))


def _pending(x: PackedBlocks, weight: Tensor | None, bias: Tensor | None, eps: float) -> PackedBlocks:
    """Note a norm, to be carried out together with what follows."""
    pending = PendingNorm(
        x.data.contiguous(), x.geometry.samples(x.block), x.geometry.sample_of_block(), weight, bias, eps
    )
    x.awaited = True
    return PackedBlocks(pending.source, x.geometry, x.channels_last).await_norm(pending)


def _normed(x: PackedBlocks, norm: Callable[[Tensor], Tensor]) -> PackedBlocks:
    """Normalise a map; while training, note how, so that what follows need not be kept.

    Whole volumes get no note: their convolutions are PyTorch's own, which keep their input themselves. The note
    outlives the map, so ``norm`` must not hold it.
    """
    out = x.like(norm(x.data))
    if out.data.requires_grad and not x.geometry.is_whole:
        out.recompute = Recompute(x.data, norm)
    return out


@handles(F.batch_norm)
def _batch_norm(x: PackedBlocks, *args: Any, **kwargs: Any) -> PackedBlocks:
    """Normalise each channel over the visible voxels of the batch; no note: running statistics count once."""
    return x.like(F.batch_norm(x.data.reshape(-1, x.data.shape[-1]), *args, **kwargs).view(x.data.shape))


@handles(F.layer_norm)
def _layer_norm(x: PackedBlocks, normalized_shape: tuple[int, ...], *args: Any, **kwargs: Any) -> PackedBlocks:
    """Normalise each voxel over its channels."""
    if not x.channels_last or tuple(normalized_shape) != (x.data.shape[-1],):
        raise UnsupportedOperation("a layer norm over more than the channels")
    return x.like(F.layer_norm(x.data, normalized_shape, *args, **kwargs))
