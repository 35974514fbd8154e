"""What each PyTorch function means on packed blocks: one handler a function, and nothing else is let through."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harmonize.errors import UserError
from headspark.packed.conv import ConvShape, convolve, gather_windows
from headspark.packed.geometry import MaskGeometry, MergeTable, Triple
from headspark.packed.norm import group_norm, instance_norm
from headspark.packed.recompute import Again, apply_pointwise

if TYPE_CHECKING:
    from headspark.packed.blocks import PackedBlocks


class UnsupportedOperation(UserError):
    """An encoder asked for something that has no exact meaning on packed blocks."""


Handler = Callable[..., Any]
HANDLERS: dict[Callable, Handler] = {}


def handles(*functions: Callable) -> Callable[[Handler], Handler]:
    """Register a handler for PyTorch functions."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


# Convolution ---------------------------------------------------------------------------------------------------------


@handles(F.conv3d, torch.conv3d)
def conv3d(
    x: PackedBlocks,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple = 1,
    padding: int | tuple | str = 0,
    dilation: int | tuple = 1,
    groups: int = 1,
) -> PackedBlocks:
    """Convolve without a change of the block grid; strides may shrink or join blocks."""
    if triple(dilation) != (1, 1, 1):
        raise UnsupportedOperation(f"a convolution with dilation {dilation}")
    kernel: Triple = (weight.shape[2], weight.shape[3], weight.shape[4])
    if isinstance(padding, str):
        padding = tuple((k - 1) // 2 for k in kernel) if padding == "same" else 0
    shape = ConvShape(kernel=kernel, stride=triple(stride), padding=triple(padding), groups=groups)
    x = fit_to_stride(x, shape.stride)
    require_same_grid(x, shape.kernel, shape.stride, shape.padding, "a convolution")
    data, weight, bias = cast_for_autocast(x.data, weight, bias)
    again = x.again if data is x.data else None
    return x.like(convolve(data, x.geometry, weight, bias, shape, again))


@handles(F.conv_transpose3d, torch.conv_transpose3d)
def conv_transpose3d(
    x: PackedBlocks,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple = 1,
    padding: int | tuple = 0,
    output_padding: int | tuple = 0,
    groups: int = 1,
    dilation: int | tuple = 1,
) -> PackedBlocks:
    """Enlarge every voxel to a cube of its own: the kernel is the stride."""
    kernel: Triple = (weight.shape[2], weight.shape[3], weight.shape[4])
    plain = triple(padding) == triple(output_padding) == (0, 0, 0) and groups == 1 and triple(dilation) == (1, 1, 1)
    if kernel != triple(stride) or not plain:
        raise UnsupportedOperation("a transposed convolution whose kernel is not its stride, or with padding or groups")
    data, weight, bias = cast_for_autocast(x.data, weight, bias)
    n, d, h, w, _ = data.shape
    matrix = weight.permute(2, 3, 4, 1, 0).reshape(-1, weight.shape[0])
    cubes = F.linear(data, matrix, None if bias is None else bias.repeat(math.prod(kernel)))
    cubes = cubes.view(n, d, h, w, *kernel, weight.shape[1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.like(cubes.reshape(n, d * kernel[0], h * kernel[1], w * kernel[2], weight.shape[1]))


# Pooling -------------------------------------------------------------------------------------------------------------


@handles(F.avg_pool3d)
def avg_pool3d(
    x: PackedBlocks,
    kernel_size: int | tuple,
    stride: int | tuple | None = None,
    padding: int | tuple = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> PackedBlocks:
    """Average over the kernel; hidden voxels count as zeros, as they do in a dense map."""
    kernel, stride, padding = triple(kernel_size), triple(stride or kernel_size), triple(padding)
    if ceil_mode or divisor_override is not None or (padding != (0, 0, 0) and not count_include_pad):
        raise UnsupportedOperation("average pooling with ceil_mode, divisor_override or count_include_pad=False")
    x = fit_to_stride(x, stride)
    require_same_grid(x, kernel, stride, padding, "average pooling")
    if kernel == stride:
        return x.like(_tiles(x.data, kernel).mean((2, 4, 6)))
    channels = x.data.shape[-1]
    weight = x.data.new_full((channels, 1, *kernel), 1 / math.prod(kernel))
    shape = ConvShape(kernel=kernel, stride=stride, padding=padding, groups=channels)
    return x.like(convolve(x.data, x.geometry, weight, None, shape))


@handles(F.max_pool3d, torch.max_pool3d)
def max_pool3d(
    x: PackedBlocks,
    kernel_size: int | tuple,
    stride: int | tuple | None = None,
    padding: int | tuple = 0,
    dilation: int | tuple = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> PackedBlocks:
    """Take the maximum over the kernel; hidden voxels count as zeros, those beyond the volume not at all."""
    kernel, stride, padding = triple(kernel_size), triple(stride or kernel_size), triple(padding)
    if ceil_mode or return_indices or triple(dilation) != (1, 1, 1):
        raise UnsupportedOperation("max pooling with ceil_mode, return_indices or dilation")
    x = fit_to_stride(x, stride)
    require_same_grid(x, kernel, stride, padding, "max pooling")
    if kernel == stride:
        return x.like(_tiles(x.data, kernel).amax((2, 4, 6)))
    low, high = ConvShape(kernel=kernel, stride=stride, padding=padding, groups=1).rim
    windows = _Windows.apply(x.data, x.geometry, low, high)
    pooled = F.max_pool3d(windows.permute(0, 4, 1, 2, 3), kernel, stride)
    return x.like(pooled.permute(0, 2, 3, 4, 1).contiguous())


# Norms ---------------------------------------------------------------------------------------------------------------


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
    if running_mean is not None or not use_input_stats:
        raise UnsupportedOperation("an instance norm that tracks running statistics")
    counts = x.geometry.counts
    return _normed(x, lambda data: instance_norm(data, counts, weight, bias, eps))


@handles(F.group_norm)
def _group_norm(
    x: PackedBlocks, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> PackedBlocks:
    counts = x.geometry.counts
    return _normed(x, lambda data: group_norm(data, counts, num_groups, weight, bias, eps))


def _normed(x: PackedBlocks, norm: Callable[[Tensor], Tensor]) -> PackedBlocks:
    """Normalise a map; while training, note how, so that what follows need not be kept.

    The note outlives the map: ``norm`` must not hold it.
    """
    out = x.like(norm(x.data))
    if out.data.requires_grad and not x.geometry.is_whole:
        out.again = Again(x.data, norm)
    return out


@handles(F.batch_norm)
def _batch_norm(x: PackedBlocks, *args: Any, **kwargs: Any) -> PackedBlocks:
    return x.like(F.batch_norm(x.data.reshape(-1, x.data.shape[-1]), *args, **kwargs).view(x.data.shape))


@handles(F.layer_norm)
def _layer_norm(x: PackedBlocks, normalized_shape: tuple[int, ...], *args: Any, **kwargs: Any) -> PackedBlocks:
    if not x.channels_last or tuple(normalized_shape) != (x.data.shape[-1],):
        raise UnsupportedOperation("a layer norm over more than the channels")
    return x.like(F.layer_norm(x.data, normalized_shape, *args, **kwargs))


@handles(F.linear)
def _linear(x: PackedBlocks, weight: Tensor, bias: Tensor | None = None) -> PackedBlocks:
    if not x.channels_last:
        raise UnsupportedOperation("a linear layer along an axis of space")
    return x.like(F.linear(x.data, weight, bias))


# Voxel by voxel ------------------------------------------------------------------------------------------------------

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


def _pointwise(function: Callable) -> Handler:
    def handler(x: PackedBlocks, *args: Any, inplace: bool | None = None, **kwargs: Any) -> PackedBlocks:
        # A view that autograd tracks cannot be changed in place without copies: the result takes its place instead.
        over = partial(function, *args, inplace=True, **kwargs) if inplace and not x.data._is_view() else None

        def plain(data: Tensor) -> Tensor:
            return function(data, *args, **kwargs)

        if x.again is None or function is F.dropout:
            out = x.like(plain(x.data) if over is None else over(x.data))
        else:
            out = x.like(apply_pointwise(x.data, x.again, plain, inplace=over))
            out.again = x.again.then(plain)
        if not inplace:
            return out
        x.data, x.again = out.data, out.again
        return x

    return handler


HANDLERS.update({function: _pointwise(function) for function in _POINTWISE})


@handles(F.prelu, torch.prelu)
def _prelu(x: PackedBlocks, weight: Tensor) -> PackedBlocks:
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
    first = parts[0]
    if dim not in (1, -4) or not all(hasattr(part, "geometry") and same_mask(first, part) for part in parts):
        raise UnsupportedOperation("a concatenation along another axis than the channels")
    return first.like(torch.cat([part.data for part in parts], -1))


# Helpers -------------------------------------------------------------------------------------------------------------


def triple(value: int | tuple | list) -> Triple:
    """Return one number for each of the three axes."""
    if isinstance(value, int):
        return value, value, value
    if len(value) == 1:
        return value[0], value[0], value[0]
    return value[0], value[1], value[2]


def cast_for_autocast(data: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring the operands of a convolution to the type that autocast wants, as PyTorch does for plain tensors."""
    if not torch.is_autocast_enabled(data.device.type):
        return data, weight, bias
    dtype = torch.get_autocast_dtype(data.device.type)
    return data.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def same_mask(one: PackedBlocks, other: PackedBlocks) -> bool:
    """Tell whether two maps have the same blocks at the same scale."""
    geometries = one.geometry, other.geometry
    same = geometries[0] is geometries[1] or all(geometry.is_whole for geometry in geometries)
    return same and one.data.shape[:4] == other.data.shape[:4]


def fit_to_stride(x: PackedBlocks, stride: Triple) -> PackedBlocks:
    """Join blocks that are smaller than a stride, so that it divides them.

    Raises:
        UnsupportedOperation: Neither divides the other, or the mask's grid is no multiple.
    """
    block = x.block
    if all(edge % step == 0 for edge, step in zip(block, stride, strict=True)):
        return x
    factor = [1, 1, 1]
    for axis, (edge, step) in enumerate(zip(block, stride, strict=True)):
        if edge % step:
            factor[axis] = step // edge
            if step % edge or x.geometry.grid[axis] % factor[axis]:
                raise UnsupportedOperation(
                    f"a stride of {step} on mask blocks of {edge} voxels in a grid of {x.geometry.grid[axis]} blocks; "
                    "choose a patch that is a multiple of the encoder's total stride and of the mask block"
                )
    table = x.geometry.merge(block, triple(factor))
    edges = tuple(edge * joined for edge, joined in zip(block, factor, strict=True))
    data = _Merge.apply(x.data, table).view(table.geometry.blocks, *edges, x.data.shape[-1])
    return type(x)(data, table.geometry)


def require_same_grid(x: PackedBlocks, kernel: Triple, stride: Triple, padding: Triple, what: str) -> None:
    """Refuse an operation whose output is not the input's grid divided by the stride."""
    for edge, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True):
        if (edge + 2 * p - k) // s + 1 != edge // s:
            raise UnsupportedOperation(f"{what} with kernel {kernel}, stride {stride} and padding {padding}")


def _tiles(data: Tensor, kernel: Triple) -> Tensor:
    """View packed data as tiles of a kernel: [n, d/k, k, h/k, k, w/k, k, C]."""
    n, d, h, w, channels = data.shape
    return data.reshape(n, d // kernel[0], kernel[0], h // kernel[1], kernel[1], w // kernel[2], kernel[2], channels)


class _Merge(torch.autograd.Function):
    """Join blocks; each small voxel has one place, so the gradient is a gather too."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, table: MergeTable) -> Tensor:
        ctx.table, ctx.shape = table, data.shape
        rows = data.reshape(-1, data.shape[-1]).index_select(0, table.gather)
        return rows.index_fill_(0, table.absent, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.table.scatter).view(ctx.shape), None


class _Windows(torch.autograd.Function):
    """Windows with minus infinity beyond the volume; their gradient is added up where they overlap."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, geometry: MaskGeometry, low: Triple, high: Triple) -> Tensor:
        ctx.shape, ctx.table = data.shape, geometry.windows((data.shape[1], data.shape[2], data.shape[3]), low, high)
        windows = gather_windows(data, geometry, low, high)
        windows.view(-1, data.shape[-1]).index_fill_(0, ctx.table.outside, -math.inf)
        return windows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows = grads[0].reshape(-1, ctx.shape[-1]).index_fill(0, ctx.table.absent, 0)
        out = rows.new_zeros(math.prod(ctx.shape[:4]), ctx.shape[-1])
        return out.index_add_(0, ctx.table.rows, rows).view(ctx.shape), None, None, None
