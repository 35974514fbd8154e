"""One stage of a U-Net decoder at the memory of one map: enlarge, join the skip, convolve, normalise, activate.

A plain stage keeps seven maps of the size of its output for the backward pass, and at full resolution each of them is
as large as everything that a masked encoder keeps. This one keeps its inputs and the convolved map. The enlarged map
and the filled skip are made a few planes at a time, whenever they are read; the norm and the activation are computed
again; and the gradient of the convolved map is written over it. What is computed twice costs little (the enlargement
is a twenty-fifth of the convolution).

Maps lie in memory as [samples, depth, height, width, channels].
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

from headspark.packed_conv import ConvShape, weight_gradient_of_windows
from headspark.packed_geometry import MaskGeometry

CPU_PART_BYTES = 16 * 2**20
"""What is computed at a time on a CPU, where small parts stay in the cache."""

PART_BYTES = 2**30
"""What is computed at a time elsewhere."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some planes of one sample, or all planes of some samples."""

    samples: slice
    planes: slice


def parts_of(map_BDHWC: Tensor, channels: int, step: int = 1) -> list[Part]:
    """Divide a map into parts that are computed one after the other.

    Args:
        map_BDHWC: The map.
        channels: Channels of the largest map that is made of a part.
        step: Planes that belong together.
    """
    samples, depth, height, width, _ = map_BDHWC.shape
    limit = CPU_PART_BYTES if map_BDHWC.device.type == "cpu" else PART_BYTES
    planes = limit // (height * width * channels * map_BDHWC.element_size())
    if planes >= depth:
        at_once = planes // depth
        return [Part(slice(b, min(b + at_once, samples)), slice(0, depth)) for b in range(0, samples, at_once)]
    at_once = max(planes // step, 1) * step
    return [
        Part(slice(b, b + 1), slice(z, min(z + at_once, depth)))
        for b in range(samples)
        for z in range(0, depth, at_once)
    ]


# Enlarge, lay beside, convolve ---------------------------------------------------------------------------------------


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
        out = coarse.new_empty(*source.shape, weight.shape[0])
        for part in parts_of(out, weight.shape[1], source.factor):
            convolved = F.conv3d(_channels_first(source.windows(part)), weight, bias)
            out[part.samples, part.planes] = convolved.permute(0, 2, 3, 4, 1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        coarse, skip, token, up_weight, up_bias, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        margin = weight.shape[2] // 2
        source = _Source(coarse, skip, token, up_weight, up_bias, ctx.geometry, margin)
        sums = torch.promote_types(weight.dtype, torch.float32)
        to_weight = torch.zeros_like(weight, dtype=sums)
        to_matrix = source.matrix.new_zeros(source.matrix.shape, dtype=sums)
        to_bias, to_up_bias = (grad.new_zeros(size, dtype=sums) for size in (grad.shape[-1], source.width))
        to_token = grad.new_zeros(skip.shape[-1], dtype=sums)
        to_coarse, to_skip = torch.empty_like(coarse), torch.empty_like(skip)

        shape = ConvShape(kernel=tuple(weight.shape[2:]), stride=(1, 1, 1), padding=(0, 0, 0), groups=1)  # type: ignore[arg-type]
        mirrored = weight.transpose(0, 1).flip(2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
        for part in parts_of(grad, weight.shape[1], source.factor):
            here = grad[part.samples, part.planes]
            to_weight += weight_gradient_of_windows(source.windows(part), here, weight, shape)
            to_bias += here.sum((0, 1, 2, 3), dtype=sums)
            around = _channels_first(_with_margin(grad, part, margin))
            both = F.conv3d(around, mirrored).permute(0, 2, 3, 4, 1)
            source.put_coarse_gradient(part, both[..., : source.width], to_coarse, to_matrix, to_up_bias)
            source.put_skip_gradient(part, both[..., source.width :], to_skip, to_token)
        return (
            to_coarse,
            to_skip,
            None if token is None or source.table is None else to_token.to(token.dtype),
            source.as_up_weight(to_matrix).to(up_weight.dtype),
            None if up_bias is None else to_up_bias.to(up_bias.dtype),
            to_weight.to(weight.dtype),
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
        self.shape = (coarse.shape[0], *(edge * self.factor for edge in coarse.shape[1:4]))
        block = skip.shape[1:4]
        self.table = None if geometry.is_whole else geometry.planes((block[0], block[1], block[2]))

    def windows(self, part: Part) -> Tensor:
        """Return the planes of a part with a margin on all sides, zero beyond the volume."""
        _, depth, height, width = self.shape
        margin, planes = self.margin, part.planes
        samples = part.samples.stop - part.samples.start
        edges = (planes.stop - planes.start + 2 * margin, height + 2 * margin, width + 2 * margin)
        windows = self.coarse.new_zeros(samples, *edges, self.width + self.skip.shape[-1])
        first, last = max(planes.start - margin, 0), min(planes.stop + margin, depth)
        at = planes.start - margin
        inside = windows[:, first - at : last - at, margin : margin + height, margin : margin + width]
        inside[..., : self.width] = self._enlarged(part.samples, first, last)
        inside[..., self.width :] = self._filled(Part(part.samples, slice(first, last)))
        return windows

    def _enlarged(self, samples: slice, first: int, last: int) -> Tensor:
        factor = self.factor
        low, high = first // factor, -(-last // factor)
        cubes = F.linear(self.coarse[samples, low:high], self.matrix, self.up_bias)
        n, d, h, w, _ = cubes.shape
        cubes = cubes.view(n, d, h, w, factor, factor, factor, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        planes = cubes.reshape(n, d * factor, h * factor, w * factor, -1)
        return planes[:, first - low * factor : last - low * factor]

    def _filled(self, part: Part) -> Tensor:
        if self.table is None:
            return self.skip[part.samples, part.planes]
        visible, first = self._entries(part)
        channels = self.skip.shape[-1]
        shape = (part.samples.stop - part.samples.start, part.planes.stop - part.planes.start, *self.shape[2:])
        rows = self.skip.new_zeros(math.prod(shape), channels)
        if self.token is not None:
            rows += self.token
        packed = self.skip.view(-1, channels).index_select(0, self.table.rows[visible])
        return rows.index_copy_(0, self.table.places[visible] - first, packed).view(*shape, channels)

    def _entries(self, part: Part) -> tuple[slice, int]:
        """Return which entries of the table lie in a part, and the place of the part's first voxel."""
        assert self.table is not None
        depth = self.shape[1]
        first = part.samples.start * depth + part.planes.start
        last = (part.samples.stop - 1) * depth + part.planes.stop
        starts = self.table.plane_from
        return slice(starts[first], starts[last]), first * self.shape[2] * self.shape[3]

    def put_coarse_gradient(
        self, part: Part, grad: Tensor, to_coarse: Tensor, to_matrix: Tensor, to_up_bias: Tensor
    ) -> None:
        """Write the gradient of the coarse planes that a part enlarges; add to those of the enlargement's weights."""
        factor = self.factor
        n, d, h, w, channels = grad.shape
        cubes = grad.reshape(n, d // factor, factor, h // factor, factor, w // factor, factor, channels)
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


def _with_margin(map_BDHWC: Tensor, part: Part, margin: int) -> Tensor:
    """Return the planes of a part with a margin on all sides, zero beyond the volume."""
    _, depth, height, width, channels = map_BDHWC.shape
    first, last = max(part.planes.start - margin, 0), min(part.planes.stop + margin, depth)
    at = part.planes.start - margin
    edges = (part.planes.stop - at + margin, height + 2 * margin, width + 2 * margin)
    out = map_BDHWC.new_zeros(part.samples.stop - part.samples.start, *edges, channels)
    target = out[:, first - at : last - at, margin : margin + height, margin : margin + width]
    target.copy_(map_BDHWC[part.samples, first:last])
    return out


# Normalise, activate, project ----------------------------------------------------------------------------------------


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
        for part, rows in _rows(x):
            centred = rows - mean_BC[part.samples, None]
            active = F.leaky_relu(torch.addcmul(bias, centred, (weight * scale_BC)[part.samples, None]), slope)
            if head_weight is not None:
                active = F.linear(active.to(x.dtype), head_weight, head_bias)
            target = out[part.samples, part.planes]
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
        to_bias_BC, to_centred_BC = torch.zeros_like(mean_BC), torch.zeros_like(mean_BC)
        to_head = None if head_weight is None else torch.zeros_like(head_weight, dtype=mean_BC.dtype)

        def gradient(part: Part, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Return the centred input, the activation, and the gradient of the normalised map."""
            grad = grads[0][part.samples, part.planes].flatten(1, 3)
            centred = rows - mean_BC[part.samples, None]
            normed = torch.addcmul(bias, centred, gain_BC[part.samples, None])
            if head_weight is not None:
                grad = grad @ head_weight
            return centred, normed, torch.ops.aten.leaky_relu_backward(grad.to(normed.dtype), normed, slope, False)

        for part, rows in _rows(x):
            centred, normed, grad = gradient(part, rows)
            to_bias_BC[part.samples] += grad.sum(1)
            to_centred_BC[part.samples] += (grad * centred).sum(1)
            if to_head is not None:
                active = F.leaky_relu_(normed, slope).to(x.dtype).flatten(0, 1)
                to_head += grads[0][part.samples, part.planes].flatten(0, 3).t() @ active
        voxels = math.prod(x.shape[1:4])
        offset_BC, pull_BC = to_bias_BC / voxels, to_centred_BC * scale_BC.square() / voxels
        for part, rows in _rows(x):
            centred, _, grad = gradient(part, rows)
            grad -= offset_BC[part.samples, None]
            grad -= centred.mul_(pull_BC[part.samples, None])
            target = x[part.samples, part.planes]
            target.copy_(grad.mul_(gain_BC[part.samples, None]).view(target.shape))
        return (
            x,
            (to_centred_BC * scale_BC).sum(0).to(weight.dtype),
            to_bias_BC.sum(0).to(bias.dtype),
            None if head_weight is None or to_head is None else to_head.to(head_weight.dtype),
            grads[0].sum((0, 1, 2, 3)) if ctx.has_head_bias else None,
            None,
            None,
        )


def _rows(map_BDHWC: Tensor) -> Iterator[tuple[Part, Tensor]]:
    """Yield parts, and their voxels [samples, voxels, channels] in at least float32."""
    wide = torch.promote_types(map_BDHWC.dtype, torch.float32)
    # An elementwise chain reads and writes a few maps of a part.
    for part in parts_of(map_BDHWC, 4 * map_BDHWC.shape[-1]):
        yield part, map_BDHWC[part.samples, part.planes].flatten(1, 3).to(wide)


def _moments(map_BDHWC: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and inverse deviation of every channel of every sample; parts are joined as Chan et al. (1979) do."""
    wide = torch.promote_types(map_BDHWC.dtype, torch.float32)
    mean_BC, squares_BC = (map_BDHWC.new_zeros(len(map_BDHWC), map_BDHWC.shape[-1], dtype=wide) for _ in range(2))
    plane = map_BDHWC.shape[2] * map_BDHWC.shape[3]
    for part, rows in _rows(map_BDHWC):
        before, here = part.planes.start * plane, rows.shape[1]
        centre = rows.mean(1)
        apart = centre - mean_BC[part.samples]
        mean_BC[part.samples] += apart * (here / (before + here))
        squares_BC[part.samples] += (rows - centre[:, None]).square_().sum(1)
        squares_BC[part.samples] += apart.square() * (before * here / (before + here))
    return mean_BC, (squares_BC / math.prod(map_BDHWC.shape[1:4]) + eps).rsqrt()


def _channels_first(map_BDHWC: Tensor) -> Tensor:
    return map_BDHWC.permute(0, 4, 1, 2, 3)
