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
from headspark.packed.recompute import Recompute


class PackedBlocks(MaskedMap):
    """The visible blocks of a batch of volumes, in place of the volumes.

    Args:
        data: [blocks, depth, height, width, channels], blocks in the order of their samples and of the grid.
        geometry: The mask.
        channels_last: Whether the volume that this stands for has its channels behind (after ``permute``).

    Attributes:
        recompute: How the data can be recomputed in the backward pass, where that is known.

    Example:
        >>> geometry = MaskGeometry(torch.tensor([True, False]).view(1, 2, 1, 1))
        >>> x = PackedBlocks.pack(torch.ones(1, 3, 8, 4, 4), geometry)
        >>> y = torch.nn.Conv3d(3, 5, 3, stride=2, padding=1)(x)
        >>> y.shape, y.data.shape
        (torch.Size([1, 5, 4, 2, 2]), torch.Size([1, 2, 2, 2, 5]))
    """

    def __init__(self, data: Tensor, geometry: MaskGeometry, channels_last: bool = False) -> None:
        super().__init__(data, channels_last)
        self.geometry = geometry
        self.recompute: Recompute | None = None

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

    def same_blocks(self, other: PackedBlocks) -> bool:
        """Tell whether another map has the same blocks at the same scale."""
        same = self.geometry is other.geometry or (self.geometry.is_whole and other.geometry.is_whole)
        return same and self.data.shape[:4] == other.data.shape[:4]

    @property
    def block(self) -> Triple:
        """Edges of a block at the scale of this map."""
        return block_of(self.data)

    @property
    def shape(self) -> torch.Size:
        """Shape of the volume that this stands for."""
        space = [cells * edge for cells, edge in zip(self.geometry.grid, self.block, strict=True)]
        channels = self.data.shape[-1]
        if self.channels_last:
            return torch.Size((self.geometry.batch, *space, channels))
        return torch.Size((self.geometry.batch, channels, *space))

    def permute(self, *axes: int) -> PackedBlocks:
        """Move the channels behind, or back; the data stays where it is."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        wanted = (0, 4, 1, 2, 3) if self.channels_last else (0, 2, 3, 4, 1)
        if tuple(order) != wanted:
            raise UnsupportedOperation(f"a permutation {tuple(order)}")
        return PackedBlocks(self.data, self.geometry, not self.channels_last)

    def __iadd__(self, other: Any) -> PackedBlocks:
        operand = self._operand(other)
        # A view that autograd tracks cannot be changed in place without copies: the sum takes its place instead.
        self.data = self.data + operand if self.data._is_view() else self.data.add_(operand)
        self.recompute = None
        return self

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
