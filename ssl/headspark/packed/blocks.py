"""The visible blocks of a masked volume, in a form that plain modules take for the volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headspark.masking import expand_cells
from headspark.packed.geometry import MaskGeometry
from headspark.packed.handlers import HANDLERS, UnsupportedOperation
from headspark.packed.layout import Triple, block_of, channels_first, channels_last
from headspark.packed.masked_map import MaskedMap
from headspark.packed.normed import PendingNorm
from headspark.packed.recompute import Recompute


class PackedBlocks(MaskedMap):
    """The visible blocks of a batch of volumes, in place of the volumes.

    Args:
        data: [blocks, depth, height, width, channels], blocks in the order of their samples and of the grid.
        geometry: The mask.
        channels_last: Whether the volume that this stands for has its channels behind (after ``permute``).

    Attributes:
        recompute: How the data can be recomputed in the backward pass, where that is known.
        pending: The norm that the data are the outcome of, where a kernel can carry it out on the way.
        awaited: Whether a norm that is not carried out yet reads the data: they may not be changed in place.

    Example:
        >>> geometry = MaskGeometry(torch.tensor([True, False]).view(1, 2, 1, 1))
        >>> x = PackedBlocks.pack(torch.ones(1, 3, 8, 4, 4), geometry)
        >>> y = torch.nn.Conv3d(3, 5, 3, stride=2, padding=1)(x)
        >>> y.shape, y.data.shape
        (torch.Size([1, 5, 4, 2, 2]), torch.Size([1, 2, 2, 2, 5]))
    """

    _data: Tensor | None
    pending: PendingNorm | None

    def __init__(self, data: Tensor, geometry: MaskGeometry, channels_last: bool = False) -> None:
        super().__init__(data, channels_last)
        self.geometry = geometry
        self.recompute: Recompute | None = None
        self.awaited = False

    @property  # type: ignore[override]
    def data(self) -> Tensor:
        """The numbers; a norm that is pending is carried out."""
        if self._data is None:
            assert self.pending is not None
            self._data = self.pending.carried_out()
        return self._data

    @data.setter
    def data(self, data: Tensor) -> None:
        self._data, self.pending = data, None
        self.awaited = False

    def await_norm(self, pending: PendingNorm) -> PackedBlocks:
        """Become the outcome of a norm of data of this shape."""
        self._data, self.pending, self.recompute = None, pending, None
        return self

    def become(self, other: PackedBlocks) -> PackedBlocks:
        """Take the numbers of another map on the same blocks."""
        self._data, self.pending, self.recompute = other._data, other.pending, other.recompute
        self.awaited = other.awaited
        return self

    @property
    def layout(self) -> Tensor:
        """A tensor of the shape, the type and the device of the data, whatever its numbers."""
        return self.pending.source if self._data is None and self.pending is not None else self.data

    @staticmethod
    def pack(x_BCDHW: Tensor, geometry: MaskGeometry) -> PackedBlocks:
        """Take the visible blocks out of a volume; what is hidden is not read.

        Args:
            x_BCDHW: The volume; its edges are multiples of the mask's grid.
            geometry: The mask.

        Raises:
            ValueError: The mask does not tile the volume.
        """
        batch, channels, *edges = x_BCDHW.shape
        if batch != geometry.batch or any(edge % cells for edge, cells in zip(edges, geometry.grid, strict=True)):
            raise ValueError(
                f"a mask of {geometry.batch} x {geometry.grid} blocks does not tile {tuple(x_BCDHW.shape)}"
            )
        block = tuple(edge // cells for edge, cells in zip(edges, geometry.grid, strict=True))
        rows = channels_last(x_BCDHW).reshape(-1, channels)
        rows = rows.index_select(0, geometry.voxel_rows(block))  # type: ignore[arg-type]
        return PackedBlocks(rows.view(geometry.blocks, *block, channels), geometry)

    @staticmethod
    def whole(x_BCDHW: Tensor) -> PackedBlocks:
        """Take a dense volume as one visible block, for modules that then run on the kernels of packed blocks."""
        geometry = MaskGeometry(torch.ones(len(x_BCDHW), 1, 1, 1, dtype=torch.bool)).to(x_BCDHW.device)
        return PackedBlocks(channels_last(x_BCDHW).contiguous(), geometry)

    def dense(self, token_C: Tensor | None = None) -> Tensor:
        """Return the volume x_BCDHW, channels-last in memory; hidden voxels hold zeros or ``token_C``."""
        if self.geometry.is_whole:
            return channels_first(self.data)
        batch, channels, *edges = self.shape
        total = batch * edges[0] * edges[1] * edges[2]
        rows = self.data.reshape(-1, channels)
        if token_C is None:
            volume = rows.new_zeros(total, channels)
        else:
            volume = token_C.to(rows.dtype).expand(total, channels)
        volume = volume.index_copy(0, self.geometry.voxel_rows(self.block), rows)
        return channels_first(volume.view(batch, *edges, channels))

    def voxel_mask(self) -> Tensor:
        """Return the mask at the scale of this map, bool (B, 1, D, H, W)."""
        return expand_cells(self.geometry.mask_here(), tuple(self.shape[2:]))

    def like(self, data: Tensor) -> PackedBlocks:
        """Return other data on the same blocks."""
        return PackedBlocks(data, self.geometry, self.channels_last)

    def samples(self, first: int, last: int) -> PackedBlocks:
        """Return the map of the samples from ``first`` to before ``last``; their blocks lie side by side."""
        counts, whole = self.geometry.counts, self.geometry
        geometry = whole.small(("samples", first, last), lambda: MaskGeometry(whole.mask_Bdhw[first:last]))
        here = whole.here(("samples", first, last), lambda: geometry.to(whole.device))
        return PackedBlocks(self.data[sum(counts[:first]) : sum(counts[:last])], here, self.channels_last)

    def same_blocks(self, other: PackedBlocks) -> bool:
        """Tell whether another map has the same blocks at the same scale."""
        same = self.geometry is other.geometry or (self.geometry.is_whole and other.geometry.is_whole)
        return same and self.layout.shape[:4] == other.layout.shape[:4]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.layout.dtype

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.layout.device

    @property
    def block(self) -> Triple:
        """Edges of a block at the scale of this map."""
        return block_of(self.layout)

    @property
    def shape(self) -> torch.Size:
        """Shape of the volume that this stands for."""
        space = [cells * edge for cells, edge in zip(self.geometry.grid, self.block, strict=True)]
        channels = self.layout.shape[-1]
        if self.channels_last:
            return torch.Size((self.geometry.batch, *space, channels))
        return torch.Size((self.geometry.batch, channels, *space))

    def permute(self, *axes: int) -> PackedBlocks:
        """Move the channels behind, or back; the data stays where it is."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        wanted = (0, 4, 1, 2, 3) if self.channels_last else (0, 2, 3, 4, 1)
        if tuple(order) != wanted:
            raise UnsupportedOperation(f"a permutation {tuple(order)}")
        moved = PackedBlocks(self.data, self.geometry, not self.channels_last)
        moved.awaited = self.awaited
        return moved

    def __iadd__(self, other: Any) -> PackedBlocks:
        operand = self._operand(other)
        pending = self.pending
        if pending is not None and pending.takes(operand):
            return self.await_norm(pending.plus(operand))
        self.data = self.data.add_(operand) if self.can_change else self.data + operand
        self.recompute = None
        return self

    @property
    def can_change(self) -> bool:
        """Whether the data can be changed in place; else what takes their place is written elsewhere.

        A view that autograd tracks cannot without copies.
        """
        return not (self.data._is_view() or self.awaited)

    def _operand(self, other: Any) -> Any:
        """Bring the other side of an operator to the shape of the packed data."""
        if isinstance(other, PackedBlocks):
            if not self.same_blocks(other) or other.channels_last != self.channels_last:
                raise UnsupportedOperation("an operator between maps of different masks or layouts")
            return other.data
        if not isinstance(other, Tensor) or other.numel() == 1:
            return other
        if self.channels_last:
            if other.dim() == 1 or other.shape[:-1].numel() == 1:
                return other.flatten()
        elif other.dim() in (4, 5) and other.shape[-3:].numel() == 1:
            values = other.reshape(-1, 1, 1, 1, other.shape[-4])
            return values if len(values) == 1 else values.index_select(0, self.geometry.sample_of_block())
        raise UnsupportedOperation(f"an operator with a tensor of shape {tuple(other.shape)}")

    @classmethod
    def _call(cls, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        return HANDLERS[function](*args, **kwargs)
