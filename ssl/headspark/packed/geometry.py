"""Where the visible blocks of a masked volume lie, and which packed row each voxel of a window around them reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from headspark.packed import tables
from headspark.packed.kernels import Samples
from headspark.packed.layout import Triple
from headspark.packed.tables import (
    MASKED,
    OUTSIDE,
    Sources,
    Template,
    WindowTable,
    ends,
    positions,
    sources_of,
    spread,
)
from headspark.page_locked import copied

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeTable:
    """How blocks join into larger ones: a large block is visible if any of its children is.

    Attributes:
        geometry: Geometry of the large blocks.
        gather: int32 [voxels of the large blocks]; row of the small blocks, any where the child is hidden.
        absent: int64; positions in ``gather`` without a source: they read as zero.
        scatter: int32 [voxels of the small blocks]; row of the large blocks that holds each of them.
    """

    geometry: MaskGeometry
    gather: Tensor
    absent: Tensor
    scatter: Tensor


class MaskGeometry:
    """The topology of one mask.

    What depends on the mask is small, and is worked out on the CPU: which neighbours each block has, and where it
    lies. It is copied to the device, which makes the tables of voxels of it (:mod:`headspark.packed.tables`), so that
    no device is ever waited for. Tables are made when an operation first asks for them and are shared by all layers
    that ask for the same.

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
        self._place_N4, self._sample_N = place_N4, place_N4[:, 0].contiguous()
        self._index_Bdhw = torch.full(self.mask_Bdhw.shape, MASKED, dtype=torch.int32)
        self._index_Bdhw[self.mask_Bdhw] = torch.arange(len(place_N4), dtype=torch.int32)
        self._host: dict[tuple, object] = {}
        self._here: dict[tuple, object] = {}

    @property
    def blocks(self) -> int:
        """Visible blocks of all samples."""
        return len(self._sample_N)

    @property
    def is_whole(self) -> bool:
        """Whether each sample is one visible block: a dense volume in packed form."""
        return self.grid == (1, 1, 1) and self.blocks == self.batch

    def to(self, device: torch.device | str) -> MaskGeometry:
        """Return this geometry with its tables on a device; what was worked out on the CPU is kept."""
        device = torch.device(device)
        if device == self.device:
            return self
        moved = object.__new__(MaskGeometry)
        moved.__dict__.update(self.__dict__)
        moved.device = device
        moved._here = {}
        return moved

    def ahead(self) -> MaskGeometry:
        """Work out what every encoder asks for, and return this: for whoever has the time before a step has begun."""
        self._present((1, 1, 1))
        return self

    def mask_here(self) -> Tensor:
        """Return the mask on this geometry's device, bool (B, d, h, w)."""
        return self.small_here(("mask",), lambda: self.mask_Bdhw)

    def sample_of_block(self) -> Tensor:
        """Return the sample of each visible block, int64 [blocks]."""
        return self.small_here(("sample",), lambda: self._sample_N)

    def samples(self, block: Triple) -> Samples:
        """Tell where the samples lie among the packed voxels, for kernels."""
        first = self.small_here(("first",), lambda: torch.tensor((0, *self.counts)).cumsum(0, dtype=torch.int32))
        return Samples(first=first, voxels=math.prod(block), longest=max(self.counts) * math.prod(block))

    def windows(self, block: Triple, low: Triple, high: Triple) -> WindowTable:
        """Tell where the voxels of each block's window come from.

        Args:
            block: Edges of a block in voxels of the map.
            low: Voxels that the window reaches below the block, along each axis.
            high: Voxels that it reaches above.
        """
        return self.here(("windows", block, low, high), lambda: self._make_windows(block, low, high))

    def beyond(self, block: Triple, low: Triple, high: Triple) -> Tensor:
        """Return which positions of the windows lie beyond the volume, int64; arguments as for `windows`."""
        return self.here(("beyond", block, low, high), lambda: self._make_beyond(block, low, high))

    def columns(self, block: Triple, kernel: Triple, low: Triple) -> Sources:
        """Tell which rows the taps of a kernel read at every voxel, for stride 1 and an output on the same grid.

        Args:
            block: Edges of a block in voxels of the map.
            kernel: Edges of the kernel.
            low: Padding below.
        """

        def make() -> Sources:
            return self._make_columns(tables.column_template(block, kernel, low, self.device))

        return self.here(("columns", block, kernel, low), make)

    def column_gradients(self, block: Triple, kernel: Triple, low: Triple) -> Sources:
        """Tell which products (voxel of the output, tap) add up to the gradient of every voxel of the input.

        Args:
            block: Edges of a block in voxels of the map.
            kernel: Edges of the kernel.
            low: Padding below, of the forward convolution.

        Returns:
            The rows in [packed voxels * taps] of the products that each voxel adds up, in the order of the kernel's
            taps.
        """

        def make() -> Sources:
            taps = self._make_columns(tables.column_gradient_template(block, kernel, low, self.device))
            return Sources(rows=taps.rows, starts=taps.starts[:: math.prod(kernel)].contiguous())

        return self.here(("column gradients", block, kernel, low), make)

    def merge(self, block: Triple, factor: Triple) -> MergeTable:
        """Tell how blocks join into blocks ``factor`` times as large.

        Raises:
            ValueError: The grid is not a multiple of the factor.
        """
        return self.here(("merge", block, factor), lambda: self._make_merge(block, factor))

    def voxel_rows(self, block: Triple) -> Tensor:
        """Return the row of every packed voxel in the dense volume flattened to (samples * voxels), int64."""
        return self.here(("voxels", block), lambda: self._make_voxel_rows(block))

    def dense_windows(self, block: Triple, margin: int) -> WindowTable:
        """Tell where windows around the visible blocks lie in a dense map.

        Args:
            block: Edges of a block in voxels of the map.
            margin: Voxels that a window reaches beyond its block.

        Returns:
            The table; its rows are those of the dense map flattened to (samples * voxels), and absent is what lies
            beyond the volume.
        """
        return self.here(("dense windows", block, margin), lambda: self._make_dense_windows(block, margin))

    def here(self, key: tuple, make: Callable[[], T]) -> T:
        """Return what lies on this geometry's device under a key; made when it is first asked for.

        Args:
            key: What it is, and for which block.
            make: Makes it, of small tables.
        """
        if key not in self._here:
            self._here[key] = make()
        return self._here[key]  # type: ignore[return-value]

    def small(self, key: tuple, make: Callable[[], T]) -> T:
        """Return what is worked out on the CPU, once for all devices; arguments as for `here`."""
        if key not in self._host:
            self._host[key] = make()
        return self._host[key]  # type: ignore[return-value]

    def small_here(self, key: tuple, make: Callable[[], Tensor]) -> Tensor:
        """Return a small table of the CPU on this geometry's device; arguments as for `here`."""
        return self.here(("small", *key), lambda: copied(self.small(key, make), self.device))

    def around(self, place_N4: Tensor, reach: Triple) -> Tensor:
        """Return the blocks around places of the grid, `MASKED` or `OUTSIDE`; int32 [places, cells around], on the CPU.

        Args:
            place_N4: Sample and cell of each place.
            reach: How many blocks away along each axis; the cells around are numbered row by row.
        """
        edges = (edge + 2 * away for edge, away in zip(self.grid, reach, strict=True))
        framed_Bdhw = torch.full((self.batch, *edges), OUTSIDE, dtype=torch.int32)
        inside = (slice(away, away + edge) for edge, away in zip(self.grid, reach, strict=True))
        framed_Bdhw[(slice(None), *inside)] = self._index_Bdhw
        _, depth, height, width = framed_Bdhw.shape
        corner_N = place_N4 @ torch.tensor([depth * height * width, height * width, width, 1], device="cpu")
        around = (2 * reach[0] + 1, 2 * reach[1] + 1, 2 * reach[2] + 1)
        steps = tables.volume_template(around, height, width, torch.device("cpu"))
        return framed_Bdhw.flatten().index_select(0, (corner_N[:, None] + steps).flatten()).view(-1, len(steps))

    def neighbours(self, reach: Triple = (1, 1, 1)) -> Tensor:
        """Return the blocks around each visible block, as `around` does."""
        return self.small(("neighbours", reach), lambda: self.around(self._place_N4, reach))

    def first_rows(self, block: Triple) -> Tensor:
        """Return the row of each visible block's first voxel in the flattened dense volume, int64 [blocks], here."""
        return self.small_here(("first rows", block), lambda: self.first_rows_at(self._place_N4, block))

    def first_rows_at(self, place_N4: Tensor, block: Triple) -> Tensor:
        """Return the row of the first voxel of cells in the flattened dense volume, int64 [places], on the CPU.

        Args:
            place_N4: Sample and cell of each place.
            block: Edges of a cell in voxels.
        """
        depth, height, width = self.space(block)
        return place_N4 @ torch.tensor(
            [depth * height * width, block[0] * height * width, block[1] * width, block[2]], device="cpu"
        )

    def space(self, block: Triple) -> Triple:
        """Return the edges of the dense volume, for blocks of these edges."""
        depth, height, width = (cells * edge for cells, edge in zip(self.grid, block, strict=True))
        return depth, height, width

    def _make_windows(self, block: Triple, low: Triple, high: Triple) -> WindowTable:
        template = tables.window_template(block, low, high, self.device)
        rows, source = spread(self.neighbours_here(template.reach), template)
        before = ends(self._present(template.reach), template)
        return WindowTable(sources=sources_of(rows, source >= 0, before[-1]), before=before, edges=template.edges)

    def _make_beyond(self, block: Triple, low: Triple, high: Triple) -> Tensor:
        template = tables.window_template(block, low, high, self.device)
        source = self.neighbours_here(template.reach).index_select(1, template.cells).flatten()
        return positions(source == OUTSIDE, ends((self.neighbours(template.reach) == OUTSIDE).long(), template)[-1])

    def _make_dense_windows(self, block: Triple, margin: int) -> WindowTable:
        _, height, width = self.space(block)
        template = tables.window_template(block, (margin,) * 3, (margin,) * 3, self.device)
        steps = tables.volume_template(template.edges, height, width, self.device)
        corner_N = self.first_rows(block) - margin * ((height + 1) * width + 1)
        inside = self.neighbours_here(template.reach).index_select(1, template.cells).flatten() != OUTSIDE
        before = ends((self.neighbours(template.reach) != OUTSIDE).long(), template)
        sources = sources_of((corner_N[:, None] + steps).int().flatten(), inside, before[-1])
        return WindowTable(sources=sources, before=before, edges=template.edges)

    def _make_columns(self, template: Template) -> Sources:
        rows, source = spread(self.neighbours_here(template.reach), template)
        return sources_of(rows, source >= 0, ends(self._present(template.reach), template)[-1])

    def _make_merge(self, block: Triple, factor: Triple) -> MergeTable:
        """Join the cells of the mask, and tell for the voxels of both sizes of blocks where the other's lie."""
        if any(edge % joined for edge, joined in zip(self.grid, factor, strict=True)):
            raise ValueError(f"{self.grid} mask cells cannot be joined by {factor}")
        large, children_MF, parent_N, slot_N = self.small(("join", factor), lambda: self._join(factor))
        template = tables.merge_template(block, factor, self.device)
        gather, source = spread(self.small_here(("children", factor), lambda: children_MF), template)
        places = tables.split_template(block, factor, self.device)
        scatter = places.index_select(0, self.small_here(("slots", factor), lambda: slot_N))
        first_N = self.small_here(("parents", factor), lambda: parent_N) * len(template.cells)
        return MergeTable(
            geometry=large.to(self.device),
            gather=gather,
            absent=positions(source < 0, ends((children_MF < 0).long(), template)[-1]),
            scatter=scatter.add_(first_N[:, None]).flatten(),
        )

    def _make_voxel_rows(self, block: Triple) -> Tensor:
        """Number the voxels of the blocks, [blocks, d, h, w], in the flattened dense volume."""
        _, height, width = self.space(block)
        return (self.first_rows(block)[:, None] + tables.volume_template(block, height, width, self.device)).flatten()

    def _present(self, reach: Triple) -> Tensor:
        """Return which of these are visible, as numbers; int64, on the CPU."""
        return self.small(("present", reach), lambda: (self.neighbours(reach) >= 0).long())

    def neighbours_here(self, reach: Triple) -> Tensor:
        """Return `neighbours` on this geometry's device."""
        return self.small_here(("neighbours", reach), lambda: self.neighbours(reach))

    def _join(self, factor: Triple) -> tuple[MaskGeometry, Tensor, Tensor, Tensor]:
        """Join cells of the mask, on the CPU.

        Returns:
            The geometry of the large cells; their children, int32 [large blocks, cells joined], `MASKED` where hidden;
            and for each block, int64, the large one that it lies in and as which of its cells.
        """
        index_Bdhw = self._index_Bdhw
        for axis in range(3):
            index_Bdhw = index_Bdhw.unflatten(2 * axis + 1, (-1, factor[axis]))
        index_BdhwF = index_Bdhw.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
        large = MaskGeometry((index_BdhwF >= 0).any(4))
        children_MF = index_BdhwF[large.mask_Bdhw]
        parent, slot = (children_MF >= 0).nonzero().unbind(1)
        order = children_MF[parent, slot].long().argsort()
        return large, children_MF, parent[order].int(), slot[order]
