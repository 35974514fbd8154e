"""Windows of packed blocks: each block with a halo that its visible neighbours lend it, zero elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from headspark.packed import kernels
from headspark.packed.geometry import MaskGeometry
from headspark.packed.layout import CHANNELS_LAST, Triple, block_of, channels_first
from headspark.packed.normed import Normed
from headspark.packed.tables import Sources, reach_of

CPU_WINDOW_BYTES = 16 * 2**20
"""Windows that are gathered at a time on a CPU: as fast as all at once (measured), and it bounds the memory."""

SUM = 0
"""What an embedding bag does with its rows, by its number in PyTorch."""


def gather_windows(
    data: Tensor,
    geometry: MaskGeometry,
    low: Triple,
    high: Triple,
    blocks: slice | None = None,
    normed: Normed | None = None,
) -> Tensor:
    """Return blocks with a halo from their neighbours.

    Args:
        data: Packed map [n, d, h, w, C]; what is absent reads as zero.
        geometry: The mask.
        low: Voxels of halo below, along each axis.
        high: Voxels of halo above.
        blocks: Which blocks are wanted; None: all.
        normed: Where the data are still to be normalised: how; only for all blocks at once.

    Returns:
        [wanted blocks, d + halos, h + halos, w + halos, C].
    """
    first, stop = (0, len(data)) if blocks is None else (blocks.start, blocks.stop)
    if low == high == (0, 0, 0) and normed is None:
        return data[first:stop].contiguous()
    if stop - first == len(data) and kernels.take(data):
        edges = tuple(edge + lo + hi for edge, lo, hi in zip(block_of(data), low, high, strict=True))
        reach = reach_of(block_of(data), low, high)
        return _gather(data, geometry, low, reach, normed, edges=edges).view(len(data), *edges, data.shape[-1])
    table = geometry.windows(block_of(data), low, high)
    windows = read(data.reshape(-1, data.shape[-1]), table.of(slice(first, stop)))
    return windows.view(stop - first, *table.edges, data.shape[-1])


def gather_columns(
    data: Tensor, geometry: MaskGeometry, kernel: Triple, low: Triple, normed: Normed | None = None
) -> Tensor:
    """Return what each tap of a kernel reads at every packed voxel (im2col), zero where it is absent.

    Args:
        data: Packed map [n, d, h, w, C].
        geometry: The mask.
        kernel: Edges of the kernel.
        low: Padding below.
        normed: Where the data are still to be normalised: how.

    Returns:
        [n * d * h * w, taps * C].
    """
    if kernels.take(data):
        reach = reach_of(block_of(data), low, _above(kernel, low))
        columns = _gather(data, geometry, low, reach, normed, kernel=kernel)
        return columns.view(-1, math.prod(kernel) * data.shape[-1])
    columns = read(data.reshape(-1, data.shape[-1]), geometry.columns(block_of(data), kernel, low))
    return columns.view(-1, math.prod(kernel) * data.shape[-1])


def sum_columns(products: Tensor, geometry: MaskGeometry, block: Triple, kernel: Triple, low: Triple) -> Tensor:
    """Sum, for every packed voxel, the products of the taps that read it: back through :func:`gather_columns`.

    Args:
        products: [n * d * h * w * taps, C].
        geometry: The mask.
        block: Edges of a block.
        kernel: Edges of the kernel.
        low: Padding below.

    Returns:
        [n, d, h, w, C].
    """
    shape = geometry.blocks, *block, products.shape[-1]
    if kernels.take(products):
        reach = reach_of(block, low, _above(kernel, low))
        neighbours = geometry.neighbours_here(reach)
        return torch.ops.headspark.sum_columns(products, neighbours, block, low, kernel, reach).view(shape)
    return read(products, geometry.column_gradients(block, kernel, low)).view(shape)


def read(rows_NC: Tensor, sources: Sources) -> Tensor:
    """Return the sum of the rows that each entry reads, zero where it reads none, [entries, C].

    A sum of bags is one pass over memory, where a selection and a second pass that clears what is absent take 2 to 5
    times as long on a CPU. Nothing goes back through it.
    """
    return torch.ops.aten._embedding_bag_forward_only(
        rows_NC, sources.rows, sources.starts, mode=SUM, include_last_offset=True
    )[0]


def _above(kernel: Triple, low: Triple) -> Triple:
    """Return how far a kernel reads above a voxel, of how far below."""
    return kernel[0] - 1 - low[0], kernel[1] - 1 - low[1], kernel[2] - 1 - low[2]


def _gather(
    data: Tensor,
    geometry: MaskGeometry,
    low: Triple,
    reach: Triple,
    normed: Normed | None,
    *,
    edges: tuple[int, ...] = (),
    kernel: tuple[int, ...] = (),
) -> Tensor:
    """Gather by the kernel, windows of these edges or the taps of this kernel, [rows, C]."""
    norm = (None, None, None, None, 1.0) if normed is None else normed.norm
    return torch.ops.headspark.gather(
        data.reshape(-1, data.shape[-1]), geometry.neighbours_here(reach), block_of(data), low, edges, kernel, reach,
        None if normed is None else normed.sample_N, *norm,
    )  # fmt: skip


def window_batches(data: Tensor, low: Triple, high: Triple) -> list[slice]:
    """Divide blocks [n, d, h, w, C] by what to gather at a time: on a CPU what its cache holds, elsewhere all."""
    step = len(data)
    if data.device.type == "cpu" and not kernels.take(data):
        edges = (edge + lo + hi for edge, lo, hi in zip(block_of(data), low, high, strict=True))
        step = CPU_WINDOW_BYTES // (math.prod(edges) * data.shape[-1] * data.element_size())
    step = max(step, 1)
    return [slice(start, min(start + step, len(data))) for start in range(0, len(data), step)]


def map_windows(
    function: Callable[[Tensor], Tensor],
    data: Tensor,
    geometry: MaskGeometry,
    low: Triple,
    high: Triple,
    *,
    shape: tuple[int, int, int, int],
    normed: Normed | None = None,
) -> Tensor:
    """Apply a function to the windows of all blocks, some blocks at a time.

    Args:
        function: Takes windows channels-first [some, C, window edges] and gives [some, *shape], of the same type.
        data: Packed map [n, d, h, w, C].
        geometry: The mask.
        low: Voxels of halo below, along each axis.
        high: Voxels of halo above.
        shape: Channels and edges of what the function makes of a block.
        normed: Where the data are still to be normalised: how.

    Returns:
        [n, *shape], channels-last in memory.
    """
    batches = window_batches(data, low, high)
    if len(batches) == 1:
        windows = channels_first(gather_windows(data, geometry, low, high, normed=normed))
        return function(windows).contiguous(memory_format=CHANNELS_LAST)
    out = torch.empty((len(data), *shape), dtype=data.dtype, device=data.device, memory_format=CHANNELS_LAST)
    for blocks in batches:
        out[blocks] = function(channels_first(gather_windows(data, geometry, low, high, blocks)))
    return out
