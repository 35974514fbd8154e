"""Where the visible blocks of a masked volume lie, and which packed row each voxel of a window around them reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from headspark.packed.layout import Triple

Table = TypeVar("Table", "WindowTable", "ColumnTable", "MergeTable", Tensor)

MASKED = -1
OUTSIDE = -2
"""Marks of absent neighbours: a block that is hidden, a place beyond the volume."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowTable:
    """The source of every voxel of the windows around the blocks.

    Attributes:
        rows: int32 [windows * window voxels]; row of the packed data, 0 where there is none.
        absent: int64; positions in ``rows`` that have no source (hidden or outside): they read as zero.
        absent_from: For each window, how many absent positions come before it; one entry more for the end.
        outside: int64; absent positions that lie beyond the volume.
        edges: Edges of a window.
    """

    rows: Tensor
    absent: Tensor
    absent_from: tuple[int, ...]
    outside: Tensor
    edges: Triple


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnTable:
    """The source of every kernel tap at every packed voxel (im2col), for outputs on the grid of the input.

    Attributes:
        rows: int32 [packed voxels * taps]; row of the packed data, 0 where there is none.
        absent: int64; positions in ``rows`` that have no source: they read as zero.
    """

    rows: Tensor
    absent: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeTable:
    """How blocks join into larger ones: a large block is visible if any of its children is.

    Attributes:
        geometry: Geometry of the large blocks.
        gather: int32 [voxels of the large blocks]; row of the small blocks, 0 where the child is hidden.
        absent: int64; positions in ``gather`` without a source: they read as zero.
        scatter: int32 [voxels of the small blocks]; row of the large blocks that holds each of them.
    """

    geometry: MaskGeometry
    gather: Tensor
    absent: Tensor
    scatter: Tensor


class MaskGeometry:
    """The topology of one mask.

    Everything is worked out on the CPU and then copied to the device, so that no device is ever waited for. Tables
    are made when an operation first asks for them and are shared by all layers that ask for the same.

    Args:
        mask_Bdhw: Boolean mask over blocks, True where visible; best on the CPU.

    Attributes:
        mask_Bdhw: The mask, on the CPU.
        batch: Samples.
        grid: Blocks along each axis.
        counts: Visible blocks of each sample.
        device: Where tables are handed out.

    Example:
        >>> geometry = MaskGeometry(torch.tensor([True, False]).view(1, 2, 1, 1))
        >>> geometry.counts, geometry.grid
        ((1,), (2, 1, 1))
    """

    def __init__(self, mask_Bdhw: Tensor) -> None:
        if mask_Bdhw.dtype is not torch.bool or mask_Bdhw.dim() != 4:
            raise ValueError("a mask is a boolean tensor with one axis of samples and three of blocks")
        self.device = mask_Bdhw.device
        self.mask_Bdhw = mask_Bdhw.cpu()
        self.batch = mask_Bdhw.shape[0]
        self.grid: Triple = (mask_Bdhw.shape[1], mask_Bdhw.shape[2], mask_Bdhw.shape[3])
        self.counts: tuple[int, ...] = tuple(self.mask_Bdhw.flatten(1).sum(1).tolist())

        place_N4 = self.mask_Bdhw.nonzero()
        self._sample_N, self._cell_N3 = place_N4[:, 0].contiguous(), place_N4[:, 1:].contiguous()
        self._index_Bdhw = torch.full(self.mask_Bdhw.shape, MASKED)
        self._index_Bdhw[self.mask_Bdhw] = torch.arange(len(place_N4))
        self._host_tables: dict[tuple, Any] = {}
        self._tables: dict[tuple, Any] = {}

    @property
    def blocks(self) -> int:
        """Visible blocks of all samples."""
        return len(self._sample_N)

    @property
    def is_whole(self) -> bool:
        """Whether each sample is one visible block: a dense volume in packed form."""
        return self.grid == (1, 1, 1) and self.blocks == self.batch

    def to(self, device: torch.device | str) -> MaskGeometry:
        """Return this geometry with its tables on a device; what was made on the CPU is kept."""
        device = torch.device(device)
        if device == self.device:
            return self
        moved = object.__new__(MaskGeometry)
        moved.__dict__.update(self.__dict__)
        moved.device = device
        moved._tables = {}
        return moved

    def sample_of_block(self) -> Tensor:
        """Return the sample of each visible block, int64 [blocks]."""
        return self._table(("sample",), lambda: self._sample_N)

    def windows(self, block: Triple, low: Triple, high: Triple) -> WindowTable:
        """Tell where the voxels of each block's window come from.

        Args:
            block: Edges of a block in voxels of the map.
            low: Voxels that the window reaches below the block, along each axis.
            high: Voxels that it reaches above.
        """
        return self._table(("windows", block, low, high), lambda: self._make_windows(block, low, high))

    def columns(self, block: Triple, kernel: Triple, low: Triple) -> ColumnTable:
        """Tell which rows the taps of a kernel read at every voxel, for stride 1 and an output on the same grid.

        Args:
            block: Edges of a block in voxels of the map.
            kernel: Edges of the kernel.
            low: Padding below.
        """
        return self._table(("columns", block, kernel, low), lambda: self._make_columns(block, kernel, low))

    def column_gradients(self, block: Triple, kernel: Triple, low: Triple) -> ColumnTable:
        """Tell which products (voxel of the output, tap) add up to the gradient of every voxel of the input.

        Args:
            block: Edges of a block in voxels of the map.
            kernel: Edges of the kernel.
            low: Padding below, of the forward convolution.

        Returns:
            The row in [packed voxels * taps] of each of the products, taps in the order of the kernel.
        """
        key = ("column gradients", block, kernel, low)
        return self._table(key, lambda: self._make_column_gradients(block, kernel, low))

    def merge(self, block: Triple, factor: Triple) -> MergeTable:
        """Tell how blocks join into blocks ``factor`` times as large.

        Raises:
            ValueError: The grid is not a multiple of the factor.
        """
        return self._table(("merge", block, factor), lambda: self._make_merge(block, factor))

    def voxel_rows(self, block: Triple) -> Tensor:
        """Return the row of every packed voxel in the dense volume flattened to (samples * voxels), int64."""
        return self._table(("voxels", block), lambda: self._make_voxel_rows(block))

    def derived(self, key: tuple, make: Callable[[], Any]) -> Any:
        """Return what was worked out of this mask under a key, on this geometry's device; made when first asked for.

        Args:
            key: What it is, and for which block.
            make: Works it out on the CPU: a tensor, or a dataclass of tensors.
        """
        return self._table(key, make)

    def _table(self, key: tuple, make: Callable[[], Table]) -> Table:
        """Return a table on this geometry's device; make it on the CPU when it is first asked for."""
        if key not in self._tables:
            if key not in self._host_tables:
                self._host_tables[key] = make()
            self._tables[key] = _moved(self._host_tables[key], self.device)
        return self._tables[key]

    def _make_windows(self, block: Triple, low: Triple, high: Triple) -> WindowTable:
        """Make the table of windows with halos ``low`` and ``high``."""
        spans = [_split(edge, edge, lo, hi) for edge, lo, hi in zip(block, low, high, strict=True)]
        cells = [self._cell_N3[:, axis, None] + spans[axis][0] for axis in range(3)]
        rows, source = self._rows(self._sample_N, cells, [place for _, place in spans], block)
        absent = (source < 0).view(self.blocks, -1).sum(1).cumsum(0).tolist() if self.blocks else []
        return WindowTable(
            rows=rows,
            absent=(source < 0).nonzero().squeeze(1),
            absent_from=(0, *absent),
            outside=(source == OUTSIDE).nonzero().squeeze(1),
            edges=(len(spans[0][0]), len(spans[1][0]), len(spans[2][0])),
        )

    def _make_columns(self, block: Triple, kernel: Triple, low: Triple) -> ColumnTable:
        """Pick the taps of every voxel, [blocks, block voxels * taps], out of the windows around the blocks."""
        high = (kernel[0] - 1 - low[0], kernel[1] - 1 - low[1], kernel[2] - 1 - low[2])
        windows = self._make_windows(block, low, high)
        z, y, x = (torch.arange(b)[:, None] + torch.arange(k) for b, k in zip(block, kernel, strict=True))
        plane = z[:, None, None, :, None, None] * windows.edges[1] + y[None, :, None, None, :, None]
        position = (plane * windows.edges[2] + x[None, None, :, None, None, :]).flatten()
        absent = torch.zeros(len(windows.rows), dtype=torch.bool).index_fill_(0, windows.absent, True)
        return ColumnTable(
            rows=windows.rows.view(self.blocks, -1)[:, position].flatten(),
            absent=absent.view(self.blocks, -1)[:, position].flatten().nonzero().squeeze(1),
        )

    def _make_column_gradients(self, block: Triple, kernel: Triple, low: Triple) -> ColumnTable:
        """Mirror the taps of every voxel: what tap t carries to an output, the mirrored kernel finds from the input."""
        high = (kernel[0] - 1 - low[0], kernel[1] - 1 - low[1], kernel[2] - 1 - low[2])
        mirrored, taps = self._make_columns(block, kernel, high), _volume(kernel)
        rows = mirrored.rows.view(-1, taps).flip(1) * taps + torch.arange(taps, dtype=torch.int32)
        voxel, tap = mirrored.absent // taps, mirrored.absent % taps
        absent = voxel * taps + (taps - 1 - tap)
        return ColumnTable(rows=rows.flatten(), absent=absent.sort().values)

    def _make_merge(self, block: Triple, factor: Triple) -> MergeTable:
        """Join the cells of the mask, and tell for the voxels of both sizes of blocks where the other's lie."""
        large_Bdhw = self.mask_Bdhw
        for axis in range(3):
            if self.grid[axis] % factor[axis]:
                raise ValueError(f"{self.grid} mask cells cannot be joined by {factor}")
            large_Bdhw = large_Bdhw.unflatten(axis + 1, (-1, factor[axis])).any(axis + 2)
        large = MaskGeometry(large_Bdhw)

        spans = [_split(edge * joined, edge, 0, 0) for edge, joined in zip(block, factor, strict=True)]
        cells = [large._cell_N3[:, axis, None] * factor[axis] + spans[axis][0] for axis in range(3)]
        gather, source = self._rows(large._sample_N, cells, [place for _, place in spans], block)
        present = (source >= 0).nonzero().squeeze(1)
        scatter = torch.empty(self.blocks * _volume(block), dtype=torch.int32)
        scatter[gather[present].long()] = present.int()
        absent = (source < 0).nonzero().squeeze(1)
        return MergeTable(geometry=large, gather=gather, absent=absent, scatter=scatter)

    def _make_voxel_rows(self, block: Triple) -> Tensor:
        """Number the voxels of the blocks, [blocks, d, h, w], in the flattened dense volume."""
        edges = [cells * edge for cells, edge in zip(self.grid, block, strict=True)]
        z, y, x = (self._cell_N3[:, axis, None] * block[axis] + torch.arange(block[axis]) for axis in range(3))
        plane = (self._sample_N[:, None] * edges[0] + z)[:, :, None] * edges[1] + y[:, None, :]
        return (plane[:, :, :, None] * edges[2] + x[:, None, None, :]).flatten()

    def _rows(
        self, sample_N: Tensor, cells: list[Tensor], places: list[Tensor], block: Triple
    ) -> tuple[Tensor, Tensor]:
        """Return the packed row of places in cells (0 where absent), and the packed block that holds each place.

        Args:
            sample_N: Sample of each window.
            cells: For each axis, the cell that each position of each window falls in, [windows, positions].
            places: For each axis, the place of each position in its cell, [positions].
            block: Edges of a block.

        Returns:
            rows: int32 [windows * positions]; block: int64 of the same shape, or `MASKED` or `OUTSIDE`.
        """
        clamped, inside = [], []
        for axis in range(3):
            inside.append((cells[axis] >= 0) & (cells[axis] < self.grid[axis]))
            clamped.append(cells[axis].clamp(0, self.grid[axis] - 1))
        z, y, x = clamped[0][:, :, None, None], clamped[1][:, None, :, None], clamped[2][:, None, None, :]
        source = self._index_Bdhw[sample_N[:, None, None, None], z, y, x]
        is_inside = inside[0][:, :, None, None] & inside[1][:, None, :, None] & inside[2][:, None, None, :]
        source.masked_fill_(~is_inside, OUTSIDE)
        place = (places[0][:, None, None] * block[1] + places[1][:, None]) * block[2] + places[2]
        rows = source * _volume(block) + place
        return rows.masked_fill_(source < 0, 0).int().flatten(), source.flatten()


def _split(edge: int, block: int, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Split positions -low ... edge + high - 1 into the cell that holds each, relative, and the place in that cell.

    Both are int64 [low + edge + high].
    """
    position = torch.arange(-low, edge + high)
    return torch.div(position, block, rounding_mode="floor"), position % block


def _volume(edges: Triple) -> int:
    """Return how many voxels a block has, or taps a kernel."""
    return edges[0] * edges[1] * edges[2]


def _moved(table: Any, device: torch.device) -> Any:
    """Copy a tensor, or all tensors of a table, to a device."""
    if isinstance(table, Tensor):
        return table.to(device, non_blocking=True)
    if isinstance(table, MaskGeometry):
        return table.to(device)
    if isinstance(table, tuple):
        return table
    return type(table)(**{member.name: _moved(getattr(table, member.name), device) for member in fields(table)})
