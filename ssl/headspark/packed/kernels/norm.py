"""Norm and activation of rows, and their gradients, each in as few launches as it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from headspark.packed.kernels.tiles import parts_of, tile_of

OPS = torch.ops.headspark


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Where the samples lie among rows [voxels, C].

    Attributes:
        first: int32 [B + 1], on the device; how many blocks come before each sample, and in all.
        voxels: Rows of a block.
        longest: Rows of the largest sample.
    """

    first: Tensor
    voxels: int
    longest: int


class Norm(NamedTuple):
    """What an instance norm and its activation do with the rows.

    Attributes:
        mean: float32 [B, C].
        scale: float32 [B, C]; the inverse deviation.
        weight: [C] or None.
        bias: [C] or None.
        slope: Of the activation, below zero; 1 where there is none.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor | None
    bias: Tensor | None
    slope: float


def moments(rows: Tensor, samples: Samples, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and inverse deviation of every channel of every sample, float32 [B, C] each."""
    parts = parts_of(samples.longest, tile_of(rows.shape[1])[0])
    means, squares = OPS.moments(rows, samples.first, samples.voxels, parts, eps)
    if parts == 1:
        return means, squares
    return OPS.join_moments(means, squares, samples.first, samples.voxels, parts, eps)


def apply(
    rows: Tensor,
    samples: Samples,
    norm: Norm,
    *,
    residual: Tensor | None = None,
    head: tuple[Tensor, Tensor | None] | None = None,
) -> Tensor:
    """Normalise rows [voxels, C], add ``residual`` of their shape, activate, multiply with a head.

    Args:
        rows: Contiguous, of all samples.
        samples: Where they lie.
        norm: What is done.
        residual: Added before the activation.
        head: Weight [C_out, C] and bias [C_out] or None of a linear layer behind.

    Returns:
        [voxels, C or C_out], of the type of the rows.
    """
    return OPS.norm_act(
        rows, samples.first, samples.voxels, samples.longest, norm.mean, norm.scale, norm.weight, norm.bias,
        *(head or (None, None)), residual, norm.slope,
    )  # fmt: skip


class Gradients(NamedTuple):
    """Of what `apply` took.

    Attributes:
        rows: [voxels, C].
        weight: [C], float32.
        bias: [C], float32.
        residual: [voxels, C], where something was added.
        head: [C_out, C], float32, where there is a head.
    """

    rows: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    head: Tensor | None


def gradients(
    grad: Tensor,
    rows: Tensor,
    samples: Samples,
    norm: Norm,
    *,
    active: Tensor | None = None,
    head: Tensor | None = None,
    over: bool = False,
) -> Gradients:
    """Return the gradients of what `apply` took.

    Args:
        grad: Of what it gave, contiguous.
        rows: As it took them.
        samples: As it took them.
        norm: As it took it.
        active: What it gave, where something was added.
        head: Weight [C_out, C] of the layer behind.
        over: Write the gradient of the rows over them.
    """
    first, voxels = samples.first, samples.voxels
    parts = parts_of(samples.longest, tile_of(rows.shape[1], 0 if head is None else len(head))[0])
    given = norm.mean, norm.scale, norm.weight, norm.bias, head, active
    sums = OPS.gradient_sums(grad, rows, first, voxels, parts, *given, norm.slope)
    shift, pull, grad_weight, grad_bias = OPS.join_gradient_sums(sums, first, voxels, norm.scale)
    grad_rows, grad_residual = OPS.norm_act_gradient(
        grad, rows, first, voxels, samples.longest, *given, shift, pull, over, norm.slope
    )
    return Gradients(
        rows=rows if over else grad_rows,
        weight=grad_weight,
        bias=grad_bias,
        residual=None if active is None else grad_residual,
        head=None if head is None else sums[:, :, 2:].sum((0, 1)),
    )
