"""The kernels as operations of PyTorch, ``torch.ops.headspark``: each makes its outputs and launches once.

So whoever watches PyTorch's operations sees them, and fake tensors have shapes for what they make.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from headspark.packed.kernels import halo, norm_act
from headspark.packed.kernels.tiles import JOINED, SMALLEST_PRODUCT, power_of_2, tile_of

_LIBRARY = torch.library.Library("headspark", "FRAGMENT")


def _operation(schema: str, made: Callable[..., Any], launch: Callable[..., None]) -> None:
    """Define an operation.

    Args:
        schema: Its name and arguments, as PyTorch writes them.
        made: Makes its outputs, empty.
        launch: Fills them: takes them, then the arguments.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema)

    def run(*args: Any) -> Any:
        out = made(*args)
        if args[0].device.type == "cuda":
            with torch.cuda.device(args[0].device):
                launch(out, *args)
        else:
            launch(out, *args)
        return out

    for key in ("CUDA", "CPU"):
        _LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"headspark::{name}", made, lib=_LIBRARY)


def _sums(rows: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=rows.device)


def _batch(first: Tensor) -> int:
    return first.shape[0] - 1


def _make_moments(rows: Tensor, first: Tensor, voxels: int, parts: int, eps: float) -> tuple[Tensor, Tensor]:
    shape = _batch(first) * parts, rows.shape[1]
    return _sums(rows, *shape), _sums(rows, *shape)


def _moments(out: Any, rows: Tensor, first: Tensor, voxels: int, parts: int, eps: float) -> None:
    channels = rows.shape[1]
    height, width = tile_of(channels)
    grid = _batch(first), parts, triton.cdiv(channels, width)
    norm_act.moments[grid](rows, first, *out, voxels, channels, eps, FINAL=parts == 1, ROWS=height, C=width)


def _make_joined(
    means: Tensor, squares: Tensor, first: Tensor, voxels: int, parts: int, eps: float
) -> tuple[Tensor, Tensor]:
    shape = _batch(first), means.shape[1]
    return _sums(means, *shape), _sums(means, *shape)


def _join_moments(out: Any, means: Tensor, squares: Tensor, first: Tensor, voxels: int, parts: int, eps: float) -> None:
    channels = means.shape[1]
    grid = _batch(first), triton.cdiv(channels, JOINED)
    norm_act.join_moments[grid](
        means, squares, first, *out, voxels, channels, eps, parts, PARTS=power_of_2(parts), C=JOINED
    )


def _make_norm_act(rows: Tensor, *args: Any) -> Tensor:
    head = args[7]
    return torch.empty_like(rows) if head is None else rows.new_empty(len(rows), len(head))


def _norm_act(
    out: Tensor, rows: Tensor, first: Tensor, voxels: int, longest: int, mean: Tensor, scale: Tensor,
    weight: Tensor | None, bias: Tensor | None, head: Tensor | None, head_bias: Tensor | None,
    residual: Tensor | None, slope: float,
) -> None:  # fmt: skip
    channels, outs = rows.shape[1], 0 if head is None else len(head)
    height, width = tile_of(channels, outs)
    grid = triton.cdiv(longest, height), _batch(first), triton.cdiv(channels, width)
    norm_act.norm_act[grid](
        rows, first, mean, scale, weight, bias, residual, head, head_bias, out, voxels, channels, outs, slope,
        ROWS=height, C=width, OUTS=_padded(outs), PRECISION=_precision(rows),
    )  # fmt: skip


def _make_gradient_sums(grad: Tensor, rows: Tensor, first: Tensor, voxels: int, parts: int, *args: Any) -> Tensor:
    head = args[4]
    return _sums(rows, _batch(first), parts, 2 if head is None else 2 + len(head), rows.shape[1])


def _gradient_sums(
    out: Tensor, grad: Tensor, rows: Tensor, first: Tensor, voxels: int, parts: int, mean: Tensor, scale: Tensor,
    weight: Tensor | None, bias: Tensor | None, head: Tensor | None, active: Tensor | None, slope: float,
) -> None:  # fmt: skip
    channels, outs = rows.shape[1], 0 if head is None else len(head)
    height, width = tile_of(channels, outs)
    grid = _batch(first), parts, triton.cdiv(channels, width)
    norm_act.gradient_sums[grid](
        grad, rows, first, mean, scale, weight, bias, head, active, out, voxels, channels, outs, slope,
        ROWS=height, C=width, OUTS=_padded(outs), PRECISION=_precision(rows),
    )  # fmt: skip


def _make_joined_gradients(sums: Tensor, first: Tensor, voxels: int, scale: Tensor) -> tuple[Tensor, ...]:
    batch, _, _, channels = sums.shape
    return tuple(_sums(sums, *shape) for shape in ((batch, channels), (batch, channels), (channels,), (channels,)))


def _join_gradient_sums(out: Any, sums: Tensor, first: Tensor, voxels: int, scale: Tensor) -> None:
    batch, parts, held, channels = sums.shape
    norm_act.join_gradient_sums[(triton.cdiv(channels, JOINED),)](
        sums, first, scale, *out, voxels, channels, batch, parts, held - 2,
        PARTS=power_of_2(parts), C=JOINED,
    )  # fmt: skip


def _make_gradients(grad: Tensor, rows: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    active, over = args[8], args[11]
    empty = rows.new_empty(0)
    return empty if over else torch.empty_like(rows), empty if active is None else torch.empty_like(rows)


def _norm_act_gradient(
    out: Any, grad: Tensor, rows: Tensor, first: Tensor, voxels: int, longest: int, mean: Tensor, scale: Tensor,
    weight: Tensor | None, bias: Tensor | None, head: Tensor | None, active: Tensor | None,
    shift: Tensor, pull: Tensor, over: bool, slope: float,
) -> None:  # fmt: skip
    channels, outs = rows.shape[1], 0 if head is None else len(head)
    height, width = tile_of(channels, outs)
    grid = triton.cdiv(longest, height), _batch(first), triton.cdiv(channels, width)
    norm_act.norm_act_gradient[grid](
        grad, rows, first, mean, scale, weight, bias, head, active, shift, pull,
        rows if over else out[0], None if active is None else out[1], voxels, channels, outs, slope,
        ROWS=height, C=width, OUTS=_padded(outs), PRECISION=_precision(rows),
    )  # fmt: skip


def _padded(outs: int) -> int:
    return max(power_of_2(outs), SMALLEST_PRODUCT) if outs else 1


def _precision(rows: Tensor) -> str:
    return "ieee" if rows.dtype is torch.float32 else "tf32"


def _make_gathered(rows: Tensor, neighbours: Tensor, block: list[int], low: list[int], edges: list[int],
                   kernel: list[int], *args: Any) -> Tensor:  # fmt: skip
    each = math.prod(edges) if edges else math.prod(block) * math.prod(kernel)
    return rows.new_empty(len(neighbours) * each, rows.shape[1])


def _gather(
    out: Tensor, rows: Tensor, neighbours: Tensor, block: list[int], low: list[int], edges: list[int],
    kernel: list[int], reach: list[int], sample: Tensor | None, mean: Tensor | None, scale: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, slope: float,
) -> None:  # fmt: skip
    channels, size = rows.shape[1], len(out) // len(neighbours)
    height, width = tile_of(channels)
    height = min(height, power_of_2(size))
    tiles = triton.cdiv(size, height)
    halo.gather[(len(neighbours) * tiles, triton.cdiv(channels, width))](
        rows, neighbours, sample, mean, scale, weight, bias, out, channels, slope, tiles,
        *block, *low, *(edges or [0] * 3), *reach, *(kernel or [0] * 3),
        NORM=mean is not None, COLUMNS=not edges, ROWS=height, C=width,
    )  # fmt: skip


def _make_summed(products: Tensor, neighbours: Tensor, block: list[int], *args: Any) -> Tensor:
    return products.new_empty(len(neighbours) * math.prod(block), products.shape[1])


def _sum_columns(
    out: Tensor, products: Tensor, neighbours: Tensor, block: list[int], low: list[int], kernel: list[int],
    reach: list[int],
) -> None:  # fmt: skip
    channels, size = products.shape[1], math.prod(block)
    height, width = tile_of(channels)
    height = min(height, power_of_2(size))
    tiles = triton.cdiv(size, height)
    halo.sum_columns[(len(neighbours) * tiles, triton.cdiv(channels, width))](
        products, neighbours, out, channels, tiles, *block, *low, *reach, *kernel, ROWS=height, C=width
    )


_NORM = "Tensor mean, Tensor scale, Tensor? weight, Tensor? bias, Tensor? head"
_operation(
    "moments(Tensor rows, Tensor first, int voxels, int parts, float eps) -> (Tensor, Tensor)", _make_moments, _moments
)
_operation(
    "join_moments(Tensor means, Tensor squares, Tensor first, int voxels, int parts, float eps) -> (Tensor, Tensor)",
    _make_joined,
    _join_moments,
)
_operation(
    f"norm_act(Tensor rows, Tensor first, int voxels, int longest, {_NORM}, Tensor? head_bias, Tensor? residual, "
    "float slope) -> Tensor",
    _make_norm_act,
    _norm_act,
)
_operation(
    f"gradient_sums(Tensor grad, Tensor rows, Tensor first, int voxels, int parts, {_NORM}, Tensor? active, "
    "float slope) -> Tensor",
    _make_gradient_sums,
    _gradient_sums,
)
_operation(
    "join_gradient_sums(Tensor sums, Tensor first, int voxels, Tensor scale) -> (Tensor, Tensor, Tensor, Tensor)",
    _make_joined_gradients,
    _join_gradient_sums,
)
_operation(
    f"norm_act_gradient(Tensor grad, Tensor(a!) rows, Tensor first, int voxels, int longest, {_NORM}, Tensor? active, "
    "Tensor shift, Tensor pull, bool over, float slope) -> (Tensor, Tensor)",
    _make_gradients,
    _norm_act_gradient,
)
_operation(
    "gather(Tensor rows, Tensor neighbours, int[] block, int[] low, int[] edges, int[] kernel, int[] reach, "
    "Tensor? sample, Tensor? mean, Tensor? scale, Tensor? weight, Tensor? bias, float slope) -> Tensor",
    _make_gathered,
    _gather,
)
_operation(
    "sum_columns(Tensor products, Tensor neighbours, int[] block, int[] low, int[] kernel, int[] reach) -> Tensor",
    _make_summed,
    _sum_columns,
)
