"""One stage of a U-Net decoder at the memory of one map: enlarge, join the skip, convolve.

A plain stage keeps seven maps of the size of its output for the backward pass, and at full resolution each of them is
as large as everything that a masked encoder keeps. This one keeps its inputs and, for the norm behind it
(:mod:`headspark.decoder.norm_act`), the convolved map. The enlarged map and the filled skip are made a few planes at a
time, whenever they are read: the enlargement is a twenty-fifth of the convolution.

Maps lie in memory as [samples, depth, height, width, channels].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headspark.decoder.slabs import Part, framed, parts_of
from headspark.packed.conv import ConvShape, weight_gradient_of_windows
from headspark.packed.geometry import MaskGeometry


def enlarge_and_convolve(
    coarse_BdhwC: Tensor,
    skip: Tensor,
    geometry: MaskGeometry,
    token_C: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Convolve an enlarged map and a skip, laid side by side, as one map of their channels.

    Args:
        coarse_BdhwC: The map to be enlarged.
        skip: Packed blocks [n, z, y, x, C] of the skip.
        geometry: Where the blocks of the skip lie.
        token_C: What stands at the hidden cells of the skip; None: zero.
        up_weight: [C_coarse, C, f, f, f], of a transposed convolution whose stride is its kernel.
        up_bias: [C] or None.
        weight: [C_out, 2 C, k, k, k], of a convolution that keeps the grid (k is odd); first the enlarged channels.
        bias: [C_out] or None.

    Returns:
        The convolved map [B, d * f, h * f, w * f, C_out].
    """
    coarse_BdhwC, skip = coarse_BdhwC.contiguous(), skip.contiguous()
    return _EnlargeAndConvolve.apply(coarse_BdhwC, skip, token_C, up_weight, up_bias, weight, bias, geometry)


class _EnlargeAndConvolve(torch.autograd.Function):
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
        source = _Source(coarse, skip, token, up_weight, up_bias, geometry, weight.shape[2] // 2)
        out = coarse.new_empty(len(coarse), *source.space, weight.shape[0])
        for part in parts_of(out, weight.shape[1], source.factor):
            convolved = F.conv3d(_channels_first(source.windows(part)), weight, bias)
            out[part.samples, part.planes] = convolved.permute(0, 2, 3, 4, 1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        coarse, skip, token, up_weight, up_bias, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        source = _Source(coarse, skip, token, up_weight, up_bias, ctx.geometry, weight.shape[2] // 2)
        sums = torch.promote_types(weight.dtype, torch.float32)
        to_matrix = source.matrix.new_zeros(source.matrix.shape, dtype=sums)
        to_bias, to_up_bias = (grad.new_zeros(size, dtype=sums) for size in (grad.shape[-1], source.width))
        to_token = grad.new_zeros(skip.shape[-1], dtype=sums)
        to_coarse, to_skip = torch.empty_like(coarse), torch.empty_like(skip)

        # Both gradients read the output's gradient through the mirrored kernel, so neither needs the input's margin.
        shape = ConvShape(kernel=tuple(weight.shape[2:]), stride=(1, 1, 1), padding=(0, 0, 0), groups=1)  # type: ignore[arg-type]
        mirrored = weight.transpose(0, 1).flip(2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
        to_mirrored = torch.zeros_like(mirrored, dtype=sums)
        for part in parts_of(grad, weight.shape[1], source.factor):
            windows, inside, reach = framed(grad, part, source.space, grad.shape[-1], source.margin)
            inside.copy_(grad[reach.samples, reach.planes])
            to_mirrored += weight_gradient_of_windows(windows, source.joined(part), mirrored, shape)
            to_bias += grad[part.samples, part.planes].sum((0, 1, 2, 3), dtype=sums)
            both = F.conv3d(_channels_first(windows), mirrored).permute(0, 2, 3, 4, 1)
            source.put_coarse_gradient(part, both[..., : source.width], to_coarse, to_matrix, to_up_bias)
            source.put_skip_gradient(part, both[..., source.width :], to_skip, to_token)
        return (
            to_coarse,
            to_skip,
            None if token is None or source.table is None else to_token.to(token.dtype),
            source.as_up_weight(to_matrix).to(up_weight.dtype),
            None if up_bias is None else to_up_bias.to(up_bias.dtype),
            to_mirrored.flip(2, 3, 4).transpose(0, 1).to(weight.dtype),
            to_bias.to(weight.dtype) if ctx.has_bias else None,
            None,
        )


class _Source:
    """The enlarged map beside the filled skip, never made whole."""

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
        self.matrix = up_weight.permute(2, 3, 4, 1, 0).reshape(-1, up_weight.shape[0])
        self.up_bias = None if up_bias is None else up_bias.repeat(self.factor**3)
        depth, height, width = (edge * self.factor for edge in coarse.shape[1:4])
        self.space = depth, height, width
        self.table = None if geometry.is_whole else geometry.planes((skip.shape[1], skip.shape[2], skip.shape[3]))

    def windows(self, part: Part) -> Tensor:
        """Return the planes of a part with a margin on all sides, zero beyond the volume."""
        channels = self.width + self.skip.shape[-1]
        windows, inside, here = framed(self.coarse, part, self.space, channels, self.margin)
        self._write(inside, here)
        return windows

    def joined(self, part: Part) -> Tensor:
        """Return the planes of a part."""
        out = self.coarse.new_empty(*part.count, *self.space[1:], self.width + self.skip.shape[-1])
        self._write(out, part)
        return out

    def _write(self, target: Tensor, part: Part) -> None:
        factor, first, last = self.factor, part.planes.start, part.planes.stop
        low, high = first // factor, -(-last // factor)
        cubes = F.linear(self.coarse[part.samples, low:high], self.matrix, self.up_bias)
        cubes = cubes.unflatten(-1, (factor, factor, factor, self.width)).permute(0, 1, 4, 2, 5, 3, 6, 7)
        for offset in range(factor):
            # The planes that lie at this place in their cubes, and the cubes of which the part holds them.
            start = first + (offset - first) % factor
            planes = target[:, start - first :: factor, :, :, : self.width]
            places = planes.unflatten(3, (-1, factor)).unflatten(2, (-1, factor))
            begin = start // factor - low
            places.copy_(cubes[:, begin : begin + planes.shape[1], offset])
        target[..., self.width :] = self._filled(part)

    def _filled(self, part: Part) -> Tensor:
        if self.table is None:
            return self.skip[part.samples, part.planes]
        visible, first = self._entries(part)
        shape = *part.count, *self.space[1:], self.skip.shape[-1]
        rows = self.skip.new_zeros(math.prod(shape[:-1]), shape[-1])
        if self.token is not None:
            rows += self.token
        packed = self.skip.view(-1, shape[-1]).index_select(0, self.table.rows[visible])
        return rows.index_copy_(0, self.table.places[visible] - first, packed).view(shape)

    def _entries(self, part: Part) -> tuple[slice, int]:
        """Return which entries of the table lie in a part, and the place of the part's first voxel."""
        assert self.table is not None
        depth, height, width = self.space
        first = part.samples.start * depth + part.planes.start
        last = (part.samples.stop - 1) * depth + part.planes.stop
        starts = self.table.plane_from
        return slice(starts[first], starts[last]), first * height * width

    def put_coarse_gradient(
        self, part: Part, grad: Tensor, to_coarse: Tensor, to_matrix: Tensor, to_up_bias: Tensor
    ) -> None:
        """Write the gradient of the coarse planes that a part enlarges; add to those of the enlargement's weights."""
        factor = self.factor
        channels = grad.shape[-1]
        cubes = grad.unflatten(3, (-1, factor)).unflatten(2, (-1, factor)).unflatten(1, (-1, factor))
        rows = cubes.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, factor**3 * channels)
        here = part.samples, slice(part.planes.start // factor, part.planes.stop // factor)
        coarse = self.coarse[here]
        to_matrix += rows.t() @ coarse.reshape(-1, coarse.shape[-1])
        to_up_bias += rows.sum(0, dtype=to_up_bias.dtype).view(-1, channels).sum(0)
        to_coarse[here] = (rows @ self.matrix).view(coarse.shape)

    def put_skip_gradient(self, part: Part, grad: Tensor, to_skip: Tensor, to_token: Tensor) -> None:
        """Write the gradient of the visible voxels in a part; add to that of the token."""
        if self.table is None:
            to_skip[part.samples, part.planes] = grad
            return
        visible, first = self._entries(part)
        rows = grad.reshape(-1, grad.shape[-1])
        places = self.table.places[visible] - first
        to_skip.view(-1, rows.shape[-1]).index_copy_(0, self.table.rows[visible], rows.index_select(0, places))
        to_token += rows.index_fill_(0, places, 0).sum(0, dtype=to_token.dtype)

    def as_up_weight(self, matrix: Tensor) -> Tensor:
        """View the matrix of an enlargement as the weight of a transposed convolution."""
        factor = self.factor
        return matrix.view(factor, factor, factor, self.width, -1).permute(4, 3, 0, 1, 2)


def _channels_first(map_BDHWC: Tensor) -> Tensor:
    return map_BDHWC.permute(0, 4, 1, 2, 3)
