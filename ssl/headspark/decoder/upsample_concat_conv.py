"""One stage of a U-Net decoder at the memory of one map: upsample, concatenate the skip, convolve.

Run as plain layers, a stage keeps four maps of the size of its output for the backward pass: the joined map, upsampled
channels beside those of the skip, is two of them, the input of the norm and the activated map are the others. At full
resolution each is as large as everything that a masked encoder keeps. Here autograd keeps

- the inputs, which are small: the coarse map (an eighth of the voxels), the packed skip, which the encoder keeps
  anyway, its token and the weights;
- the convolved map, as the input of the norm behind it (:mod:`headspark.decoder.norm_act`): it alone costs too much to
  be made twice.

The joined map is a function of the inputs that costs a twenty-fifth of the convolution. It is made a slab of planes at
a time wherever it is read, forward and backward, and never whole: see ``_JoinedMap``. The activated map follows from
the convolved one in the same way.

Maps lie in memory as [samples, depth, height, width, channels]; f is the stride of the upsampling.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headspark.decoder.slabs import Slab, slabs, with_margin
from headspark.packed.conv import upsampling_matrix
from headspark.packed.geometry import MaskGeometry
from headspark.packed.layout import CHANNELS_LAST, ConvShape, block_of, channels_first, channels_last
from headspark.packed.weight_gradient import weight_gradient_of_windows


def upsample_concat_conv(
    coarse_BdhwC: Tensor,
    skip: Tensor,
    geometry: MaskGeometry,
    token_C: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Convolve an upsampled map and a skip, laid side by side, as one map of their channels.

    Args:
        coarse_BdhwC: The map to be upsampled.
        skip: Packed blocks [n, z, y, x, C] of the skip.
        geometry: Where the blocks of the skip lie.
        token_C: What stands at the hidden cells of the skip; None: zero.
        up_weight: [C_coarse, C, f, f, f], of a transposed convolution whose stride is its kernel.
        up_bias: [C] or None.
        weight: [C_out, 2 C, k, k, k], of a convolution that keeps the grid (k is odd); first the upsampled channels.
        bias: [C_out] or None.

    Returns:
        The convolved map [B, d * f, h * f, w * f, C_out].
    """
    coarse_BdhwC, skip = coarse_BdhwC.contiguous(), skip.contiguous()
    return _UpsampleConcatConv.apply(coarse_BdhwC, skip, token_C, up_weight, up_bias, weight, bias, geometry)


class _UpsampleConcatConv(torch.autograd.Function):
    """From coarse [B, d, h, w, C_coarse] and packed skip [n, z, y, x, C] to [B, d * f, h * f, w * f, C_out]."""

    @staticmethod
    def forward(
        ctx: Any,
        coarse: Tensor,
        skip: Tensor,
        token: Tensor | None,
        up_weight: Tensor,
        up_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        geometry: MaskGeometry,
    ) -> Tensor:
        ctx.save_for_backward(coarse, skip, token, up_weight, up_bias, weight)
        ctx.geometry, ctx.has_bias = geometry, bias is not None
        joined = _JoinedMap(coarse, skip, token, up_weight, up_bias, geometry, weight.shape[2] // 2)
        out = coarse.new_empty(len(coarse), *joined.space, weight.shape[0])
        for slab in slabs(out, weight.shape[1], joined.factor):
            convolved = F.conv3d(channels_first(joined.windows(slab)), weight, bias)
            out[slab.samples, slab.planes] = channels_last(convolved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        coarse, skip, token, up_weight, up_bias, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        joined = _JoinedMap(coarse, skip, token, up_weight, up_bias, ctx.geometry, weight.shape[2] // 2)
        sums = torch.promote_types(weight.dtype, torch.float32)
        grad_matrix = joined.matrix.new_zeros(joined.matrix.shape, dtype=sums)
        grad_bias, grad_up_bias = (grad.new_zeros(size, dtype=sums) for size in (grad.shape[-1], joined.width))
        grad_token = grad.new_zeros(skip.shape[-1], dtype=sums)
        grad_coarse, grad_skip = torch.empty_like(coarse), torch.empty_like(skip)

        # Both gradients read the output's gradient through the mirrored kernel, so neither needs the input's margin.
        shape = ConvShape(kernel=tuple(weight.shape[2:]), stride=(1, 1, 1), padding=(0, 0, 0), groups=1)  # type: ignore[arg-type]
        mirrored = weight.transpose(0, 1).flip(2, 3, 4).contiguous(memory_format=CHANNELS_LAST)
        grad_mirrored = torch.zeros_like(mirrored, dtype=sums)
        for slab in slabs(grad, weight.shape[1], joined.factor):
            windows, inside, reach = with_margin(grad, slab, joined.space, grad.shape[-1], joined.margin)
            inside.copy_(grad[reach.samples, reach.planes])
            grad_mirrored += weight_gradient_of_windows(windows, joined.planes(slab), mirrored, shape)
            grad_bias += grad[slab.samples, slab.planes].sum((0, 1, 2, 3), dtype=sums)
            grad_joined = channels_last(F.conv3d(channels_first(windows), mirrored))
            joined.put_grad_coarse(slab, grad_joined[..., : joined.width], grad_coarse, grad_matrix, grad_up_bias)
            joined.put_grad_skip(slab, grad_joined[..., joined.width :], grad_skip, grad_token)
        return (
            grad_coarse,
            grad_skip,
            None if token is None or joined.table is None else grad_token.to(token.dtype),
            joined.up_weight_of(grad_matrix).to(up_weight.dtype),
            None if up_bias is None else grad_up_bias.to(up_bias.dtype),
            grad_mirrored.flip(2, 3, 4).transpose(0, 1).to(weight.dtype),
            grad_bias.to(weight.dtype) if ctx.has_bias else None,
            None,
        )


class _JoinedMap:
    """The upsampled map beside the filled skip, [B, d * f, h * f, w * f, 2 C]; never made whole.

    Args:
        coarse: [B, d, h, w, C_coarse].
        skip: [n, z, y, x, C], packed.
        token: [C] or None.
        up_weight: [C_coarse, C, f, f, f].
        up_bias: [C] or None.
        geometry: Where the blocks of the skip lie.
        margin: Voxels that the convolution reads beyond a voxel.

    Attributes:
        space: Edges of the joined map.
        width: Its upsampled channels, C.
        factor: f.
        matrix: The upsampling as a matrix product, [f * f * f * C, C_coarse]; ``matrix_bias`` is its bias or None.
        table: The packed voxels of the skip in the order of the map; None where all are visible.
    """

    def __init__(
        self,
        coarse: Tensor,
        skip: Tensor,
        token: Tensor | None,
        up_weight: Tensor,
        up_bias: Tensor | None,
        geometry: MaskGeometry,
        margin: int,
    ) -> None:
        self.coarse, self.skip, self.token, self.margin = coarse, skip, token, margin
        self.width, self.factor = up_weight.shape[1], up_weight.shape[2]
        self.matrix, self.matrix_bias = upsampling_matrix(up_weight, up_bias)
        depth, height, width = (edge * self.factor for edge in coarse.shape[1:4])
        self.space = depth, height, width
        self.table = None if geometry.is_whole else geometry.planes(block_of(skip))

    def windows(self, slab: Slab) -> Tensor:
        """Return the planes of a slab with a margin on all sides, zero beyond the volume.

        [samples, planes + 2 margins, height + 2 margins, width + 2 margins, 2 C].
        """
        channels = self.width + self.skip.shape[-1]
        windows, inside, reach = with_margin(self.coarse, slab, self.space, channels, self.margin)
        self._write(inside, reach)
        return windows

    def planes(self, slab: Slab) -> Tensor:
        """Return the planes of a slab, [samples, planes, height, width, 2 C]."""
        out = self.coarse.new_empty(*slab.count, *self.space[1:], self.width + self.skip.shape[-1])
        self._write(out, slab)
        return out

    def put_grad_coarse(
        self, slab: Slab, grad: Tensor, grad_coarse: Tensor, grad_matrix: Tensor, grad_up_bias: Tensor
    ) -> None:
        """Write the gradient of the coarse planes under a slab; add to those of the upsampling's weights.

        Args:
            slab: Whole coarse planes.
            grad: Gradient of the slab's upsampled channels, [samples, planes, height, width, C].
            grad_coarse: [B, d, h, w, C_coarse], written.
            grad_matrix: [f * f * f * C, C_coarse], added to.
            grad_up_bias: [C], added to.
        """
        factor, channels = self.factor, grad.shape[-1]
        cubes = grad.unflatten(3, (-1, factor)).unflatten(2, (-1, factor)).unflatten(1, (-1, factor))
        rows = cubes.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, factor**3 * channels)
        under = slab.samples, slice(slab.planes.start // factor, slab.planes.stop // factor)
        coarse = self.coarse[under]
        grad_matrix += rows.t() @ coarse.reshape(-1, coarse.shape[-1])
        grad_up_bias += rows.sum(0, dtype=grad_up_bias.dtype).view(-1, channels).sum(0)
        grad_coarse[under] = (rows @ self.matrix).view(coarse.shape)

    def put_grad_skip(self, slab: Slab, grad: Tensor, grad_skip: Tensor, grad_token: Tensor) -> None:
        """Write the gradient of the visible voxels in a slab; add to that of the token.

        Args:
            slab: The slab.
            grad: Gradient of the slab's skip channels, [samples, planes, height, width, C].
            grad_skip: [n, z, y, x, C], packed, written.
            grad_token: [C], added to.
        """
        if self.table is None:
            grad_skip[slab.samples, slab.planes] = grad
            return
        entries, first = self._entries(slab)
        rows = grad.reshape(-1, grad.shape[-1])
        places = self.table.places[entries] - first
        grad_skip.view(-1, rows.shape[-1]).index_copy_(0, self.table.rows[entries], rows.index_select(0, places))
        grad_token += rows.index_fill_(0, places, 0).sum(0, dtype=grad_token.dtype)

    def up_weight_of(self, matrix: Tensor) -> Tensor:
        """View the matrix of an upsampling as the weight of a transposed convolution, [C_coarse, C, f, f, f]."""
        factor = self.factor
        return matrix.view(factor, factor, factor, self.width, -1).permute(4, 3, 0, 1, 2)

    def _write(self, target: Tensor, slab: Slab) -> None:
        """Write the planes of a slab into ``target`` [samples, planes, height, width, 2 C]."""
        factor, first, last = self.factor, slab.planes.start, slab.planes.stop
        low, high = first // factor, -(-last // factor)
        cubes = F.linear(self.coarse[slab.samples, low:high], self.matrix, self.matrix_bias)
        cubes = cubes.unflatten(-1, (factor, factor, factor, self.width)).permute(0, 1, 4, 2, 5, 3, 6, 7)
        for offset in range(factor):
            # The planes that lie at this place in their cubes, and the cubes of which the slab holds them.
            start = first + (offset - first) % factor
            planes = target[:, start - first :: factor, :, :, : self.width]
            places = planes.unflatten(3, (-1, factor)).unflatten(2, (-1, factor))
            begin = start // factor - low
            places.copy_(cubes[:, begin : begin + planes.shape[1], offset])
        target[..., self.width :] = self._filled_skip(slab)

    def _filled_skip(self, slab: Slab) -> Tensor:
        """Return the planes of the skip with its token at hidden voxels, [samples, planes, height, width, C]."""
        if self.table is None:
            return self.skip[slab.samples, slab.planes]
        entries, first = self._entries(slab)
        shape = *slab.count, *self.space[1:], self.skip.shape[-1]
        rows = self.skip.new_zeros(math.prod(shape[:-1]), shape[-1])
        if self.token is not None:
            rows += self.token
        packed = self.skip.view(-1, shape[-1]).index_select(0, self.table.rows[entries])
        return rows.index_copy_(0, self.table.places[entries] - first, packed).view(shape)

    def _entries(self, slab: Slab) -> tuple[slice, int]:
        """Return which entries of the table lie in a slab, and the place of the slab's first voxel."""
        assert self.table is not None
        depth, height, width = self.space
        first = slab.samples.start * depth + slab.planes.start
        last = (slab.samples.stop - 1) * depth + slab.planes.stop
        starts = self.table.plane_from
        return slice(starts[first], starts[last]), first * height * width
