"""The visible blocks of a masked volume, in a form that plain modules take for the volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headspark.masking import expand_cells
from headspark.packed.geometry import MaskGeometry, Triple
from headspark.packed.ops import HANDLERS, UnsupportedOperation, same_mask
from headspark.packed.recompute import Again


class PackedBlocks:
    """The visible blocks of a batch of volumes, in place of the volumes.

    Args:
        data: [blocks, depth, height, width, channels], blocks in the order of their samples and of the grid.
        geometry: The mask.
        channels_last: Whether the volume that this stands for has its channels behind (after ``permute``).

    Attributes:
        again: How the data can be computed again in the backward pass, where that is known.

    Example:
        >>> geometry = MaskGeometry(torch.tensor([True, False]).view(1, 2, 1, 1))
        >>> x = PackedBlocks.pack(torch.ones(1, 3, 8, 4, 4), geometry)
        >>> y = torch.nn.Conv3d(3, 5, 3, stride=2, padding=1)(x)
        >>> y.shape, y.data.shape
        (torch.Size([1, 5, 4, 2, 2]), torch.Size([1, 2, 2, 2, 5]))
    """

    ndim = 5

    def __init__(self, data: Tensor, geometry: MaskGeometry, channels_last: bool = False) -> None:
        self.data = data
        self.geometry = geometry
        self.channels_last = channels_last
        self.again: Again | None = None

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
        rows = x_BCDHW.permute(0, 2, 3, 4, 1).reshape(-1, channels)
        visible = rows.index_select(0, geometry.voxel_rows(block))  # type: ignore[arg-type]
        return PackedBlocks(visible.view(geometry.blocks, *block, channels), geometry)

    @staticmethod
    def whole(x_BCDHW: Tensor) -> PackedBlocks:
        """Take a dense volume as one visible block, for modules that then run on the kernels of packed blocks."""
        geometry = MaskGeometry(torch.ones(len(x_BCDHW), 1, 1, 1, dtype=torch.bool)).to(x_BCDHW.device)
        return PackedBlocks(x_BCDHW.permute(0, 2, 3, 4, 1).contiguous(), geometry)

    def dense(self, fill_C: Tensor | None = None) -> Tensor:
        """Return the volume x_BCDHW, channels-last in memory; hidden voxels hold zeros or ``fill_C``."""
        if self.geometry.is_whole:
            return self.data.permute(0, 4, 1, 2, 3)
        batch, channels, *edges = self.shape
        rows = self.geometry.voxel_rows(self.block)
        total = batch * edges[0] * edges[1] * edges[2]
        visible = self.data.reshape(-1, channels)
        if fill_C is None:
            volume = visible.new_zeros(total, channels)
        else:
            volume = fill_C.to(visible.dtype).expand(total, channels)
        volume = volume.index_copy(0, rows, visible)
        return volume.view(batch, *edges, channels).permute(0, 4, 1, 2, 3)

    def visible(self) -> Tensor:
        """Return the mask at the scale of this map, (B, 1, D, H, W)."""
        return expand_cells(self.geometry.visible_Bdhw, tuple(self.shape[2:])).to(self.geometry.device)

    def like(self, data: Tensor) -> PackedBlocks:
        """Return other data on the same blocks."""
        return PackedBlocks(data, self.geometry, self.channels_last)

    @property
    def block(self) -> Triple:
        """Edges of a block at the scale of this map."""
        return self.data.shape[1], self.data.shape[2], self.data.shape[3]

    # What modules ask of the tensor they are given.

    @property
    def shape(self) -> torch.Size:
        """Shape of the volume that this stands for."""
        space = [cells * edge for cells, edge in zip(self.geometry.grid, self.block, strict=True)]
        channels = self.data.shape[-1]
        if self.channels_last:
            return torch.Size((self.geometry.batch, *space, channels))
        return torch.Size((self.geometry.batch, channels, *space))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.data.device

    def dim(self) -> int:
        """Return the number of axes of the volume."""
        return self.ndim

    def size(self, axis: int | None = None) -> Any:
        """Return the shape of the volume, or one edge of it."""
        return self.shape if axis is None else self.shape[axis]

    def contiguous(self, memory_format: torch.memory_format | None = None) -> PackedBlocks:
        """Return self: packed data has one layout."""
        return self

    def new_empty(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return an ordinary tensor of this type on this device."""
        return self.data.new_empty(*args, **kwargs)

    def permute(self, *axes: int) -> PackedBlocks:
        """Move the channels behind, or back; the data stays where it is."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        wanted = (0, 4, 1, 2, 3) if self.channels_last else (0, 2, 3, 4, 1)
        if tuple(order) != wanted:
            raise UnsupportedOperation(f"a permutation {tuple(order)}")
        return PackedBlocks(self.data, self.geometry, not self.channels_last)

    def __add__(self, other: Any) -> PackedBlocks:
        return self.like(self.data + self._operand(other))

    def __sub__(self, other: Any) -> PackedBlocks:
        return self.like(self.data - self._operand(other))

    def __mul__(self, other: Any) -> PackedBlocks:
        return self.like(self.data * self._operand(other))

    def __truediv__(self, other: Any) -> PackedBlocks:
        return self.like(self.data / self._operand(other))

    __radd__ = __add__
    __rmul__ = __mul__

    def __iadd__(self, other: Any) -> PackedBlocks:
        operand = self._operand(other)
        self.data, self.again = self.data + operand if self.data._is_view() else self.data.add_(operand), None
        return self

    def _operand(self, other: Any) -> Any:
        """Bring the other side of an operator to the shape of the packed data."""
        if isinstance(other, PackedBlocks):
            if not same_mask(self, other) or other.channels_last != self.channels_last:
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
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = HANDLERS.get(func)
        if handler is None:
            raise UnsupportedOperation(torch.overrides.resolve_name(func) or repr(func))
        return handler(*args, **(kwargs or {}))
