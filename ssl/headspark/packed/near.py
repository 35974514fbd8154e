"""What lies around the visible blocks of a dense map: the hidden voxels that touch them, and windows of the map."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from headspark.packed.geometry import MaskGeometry
from headspark.packed.layout import Triple
from headspark.packed.tables import (
    TEMPLATES,
    WindowTable,
    column_template,
    positions,
    side_template,
    volume_template,
)
from headspark.packed.windows import read
from headspark.page_locked import copied

TAPS = 27
"""Of a kernel of three voxels an axis, which reads what touches a voxel; and the sides of a block, its inside too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RimTable:
    """The hidden voxels that touch a visible one, and what a kernel of three reads there.

    Attributes:
        places: int64 [voxels]; row of each in the dense volume flattened to (samples * voxels).
        rows: int32 [voxels * 27]; row of the packed data under each tap, of one block more that is zero where the tap
            reads nothing that is visible.
    """

    places: Tensor
    rows: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shell:
    """The voxels at the faces of a block, for any block.

    Attributes:
        voxels: int64 [shell]; the place of each in the block, row by row.
        sides: int64 [shell]; at which of the 27 sides of the block it lies.
        counts: int64 [27], on the CPU; voxels at each side.
        tap_cells: int64 [shell * 27]; in which of the blocks around each tap of a kernel of three reads.
        tap_places: int32 [shell * 27]; and where in that block.
    """

    voxels: Tensor
    sides: Tensor
    counts: Tensor
    tap_cells: Tensor
    tap_places: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cells:
    """The hidden cells with visible ones around, on the CPU.

    Attributes:
        places_Q4: int64; sample and cell of each.
        numbers_Q: int64; which of the cells that were asked about it is.
        neighbours_Q27: int32; the packed block of each cell around, one beyond the last where it is not visible.
        has_rim_Q27: Whether the voxels at each side of the cell touch a visible one.
    """

    places_Q4: Tensor
    numbers_Q: Tensor
    neighbours_Q27: Tensor
    has_rim_Q27: Tensor


def rim_of(geometry: MaskGeometry, block: Triple, wanted: MaskGeometry | None = None) -> RimTable:
    """Tell which hidden voxels touch a visible one, faces, edges and corners counted.

    Args:
        geometry: The mask.
        block: Edges of a block in voxels of the map, two at least.
        wanted: Hidden blocks; voxels elsewhere are left out, and places are rows of these blocks, packed. None: all.
    """
    if wanted is None:
        return geometry.here(("rim", block), lambda: _rim_of_volume(geometry, block))
    of = geometry.mask_Bdhw.numpy().tobytes()  # the same blocks may be wanted of another mask
    return wanted.here(("rim", block, of), lambda: _rim_of_blocks(geometry, block, wanted, of))


def gather_dense(map_BDHWC: Tensor, table: WindowTable, blocks: slice) -> Tensor:
    """Return windows of a dense map, zero beyond the volume.

    Args:
        map_BDHWC: The map, contiguous.
        table: Where the windows lie, `MaskGeometry.dense_windows`.
        blocks: Which of them.

    Returns:
        [windows, window edges, C].
    """
    windows = read(map_BDHWC.view(-1, map_BDHWC.shape[-1]), table.of(blocks))
    return windows.view(blocks.stop - blocks.start, *table.edges, map_BDHWC.shape[-1])


def _rim_of_volume(geometry: MaskGeometry, block: Triple) -> RimTable:
    device, (_, height, width) = geometry.device, geometry.space(block)
    cells = geometry.small(("rim",), lambda: _cells_near(geometry, (~geometry.mask_Bdhw).nonzero()))
    first_Q = geometry.small_here(("rim rows", block), lambda: geometry.first_rows_at(cells.places_Q4, block))
    steps = volume_template(block, height, width, device).index_select(0, _shell(block, device).voxels)
    return _spread(geometry, block, cells, ("rim",), first_Q, steps)


def _rim_of_blocks(geometry: MaskGeometry, block: Triple, wanted: MaskGeometry, of: bytes) -> RimTable:
    cells = wanted.small(("rim", of), lambda: _cells_near(geometry, wanted.mask_Bdhw.nonzero()))
    first_Q = wanted.small_here(("rim rows", block, of), lambda: cells.numbers_Q * math.prod(block))
    return _spread(wanted, block, cells, ("rim", of), first_Q, _shell(block, wanted.device).voxels)


def _spread(
    keeper: MaskGeometry,
    block: Triple,
    cells: _Cells,
    key: tuple,
    first_Q: Tensor,
    steps_S: Tensor,
) -> RimTable:
    """Spread what is known of cells over the voxels of their shells.

    Args:
        keeper: Keeps the small tables, and is where the rim is wanted.
        block: Edges of a block in voxels of the map.
        cells: The cells.
        key: What the cells are, for the keeper.
        first_Q: Row of the first voxel of each cell.
        steps_S: How far the voxels of a shell lie behind it.
    """
    shell, size = _shell(block, keeper.device), math.prod(block)
    has_rim_Q27 = keeper.small_here(("has", *key), lambda: cells.has_rim_Q27)
    count = int((cells.has_rim_Q27.sum(0) * shell.counts).sum())
    kept = positions(has_rim_Q27.index_select(1, shell.sides).flatten(), count)
    neighbours_Q27 = keeper.small_here(("around", *key), lambda: cells.neighbours_Q27)
    rows = (neighbours_Q27 * size).index_select(1, shell.tap_cells).add_(shell.tap_places)
    return RimTable(
        places=(first_Q[:, None] + steps_S).flatten().index_select(0, kept),
        rows=rows.view(-1, TAPS).index_select(0, kept).flatten(),
    )


def _cells_near(geometry: MaskGeometry, asked_N4: Tensor) -> _Cells:
    """Look around cells of the grid, for those that are hidden and have a visible one beside them."""
    around_N27 = geometry.around(asked_N4, (1, 1, 1))
    visible_N27 = around_N27 >= 0
    has_rim_N27 = ((visible_N27.float() @ _touching()) > 0) & ~visible_N27[:, TAPS // 2, None]
    numbers_Q = has_rim_N27.any(1).nonzero().squeeze(1)
    return _Cells(
        places_Q4=asked_N4.index_select(0, numbers_Q),
        numbers_Q=numbers_Q,
        neighbours_Q27=torch.where(visible_N27, around_N27, geometry.blocks).index_select(0, numbers_Q),
        has_rim_Q27=has_rim_N27.index_select(0, numbers_Q),
    )


@lru_cache(1)
@torch.inference_mode(False)
def _touching() -> Tensor:
    """Tell which blocks around the voxels at each side of a block touch, as numbers, [27 around, 27 sides].

    A voxel at an edge of its block touches the block beyond the edge and those beyond the two faces.
    """
    shifts = list(itertools.product((-1, 0, 1), repeat=3))
    touching = [[any(s) and all(a in (0, b) for a, b in zip(s, side, strict=True)) for side in shifts] for s in shifts]
    return torch.tensor(touching).float()


@lru_cache(TEMPLATES)
@torch.inference_mode(False)
def _shell(block: Triple, device: torch.device) -> _Shell:
    cpu = torch.device("cpu")
    sides, taps = side_template(block, cpu), column_template(block, (3, 3, 3), (1, 1, 1), cpu)
    voxels = (sides != TAPS // 2).nonzero().squeeze(1)
    return _Shell(
        voxels=copied(voxels, device),
        sides=copied(sides[voxels], device),
        counts=sides[voxels].bincount(minlength=TAPS),
        tap_cells=copied(taps.cells.view(-1, TAPS)[voxels].flatten(), device),
        tap_places=copied(taps.places.view(-1, TAPS)[voxels].flatten(), device),
    )
