"""What lies around the visible blocks of a dense map: the hidden voxels that touch them, and windows of the map."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from headspark.packed.geometry import MaskGeometry
from headspark.packed.layout import Triple
from headspark.packed.tables import WindowTable

TAPS = 27
"""Of a kernel of three voxels an axis, which reads what touches a voxel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RimTable:
    """The hidden voxels that touch a visible one, and what a kernel of three reads there.

    Attributes:
        places: int64 [voxels]; row of each in the dense volume flattened to (samples * voxels).
        rows: int32 [voxels * 27]; row of the packed data under each tap; one beyond the last where the tap reads
            nothing that is visible.
    """

    places: Tensor
    rows: Tensor


def rim_of(geometry: MaskGeometry, block: Triple, wanted: MaskGeometry | None = None) -> RimTable:
    """Tell which hidden voxels touch a visible one, faces, edges and corners counted.

    Args:
        geometry: The mask.
        block: Edges of a block in voxels of the map, two at least.
        wanted: Hidden blocks; voxels elsewhere are left out, and places are rows of these blocks, packed. None: all.
    """
    if wanted is None:
        return geometry.derived(("rim", block), lambda: _make_rim(geometry, block))
    of = geometry.mask_Bdhw.numpy().tobytes()  # the same blocks may be wanted of another mask
    return wanted.derived(("rim", block, of), lambda: _rim_within(_make_rim(geometry, block), block, wanted))


def dense_windows(geometry: MaskGeometry, block: Triple, margin: int) -> WindowTable:
    """Tell where windows around the visible blocks lie in a dense map.

    Args:
        geometry: The mask.
        block: Edges of a block in voxels of the map.
        margin: Voxels that a window reaches beyond its block.

    Returns:
        The table; its rows are those of the dense map flattened to (samples * voxels), and absent is what lies beyond
        the volume.
    """
    return geometry.derived(("dense windows", block, margin), lambda: _make_dense_windows(geometry, block, margin))


def gather_dense(map_BDHWC: Tensor, table: WindowTable, blocks: slice) -> Tensor:
    """Return windows of a dense map, zero beyond the volume.

    Args:
        map_BDHWC: The map, contiguous.
        table: Where the windows lie.
        blocks: Which of them.

    Returns:
        [windows, window edges, C].
    """
    size = table.edges[0] * table.edges[1] * table.edges[2]
    rows = map_BDHWC.view(-1, map_BDHWC.shape[-1])
    windows = rows.index_select(0, table.rows[blocks.start * size : blocks.stop * size])
    absent = table.absent[table.absent_from[blocks.start] : table.absent_from[blocks.stop]]
    windows.index_fill_(0, absent - blocks.start * size, 0)
    return windows.view(blocks.stop - blocks.start, *table.edges, map_BDHWC.shape[-1])


def _make_rim(geometry: MaskGeometry, block: Triple) -> RimTable:
    depth, height, width = (cells * edge for cells, edge in zip(geometry.grid, block, strict=True))
    visible = F.pad(geometry.mask_Bdhw, (1, 1, 1, 1, 1, 1))
    shifts = list(itertools.product((-1, 0, 1), repeat=3))

    def neighbour(shift: tuple[int, ...]) -> Tensor:
        return visible[(slice(None), *(slice(1 + s, 1 + s + n) for s, n in zip(shift, geometry.grid, strict=True)))]

    places = []
    for towards in shifts:
        if towards == (0, 0, 0):
            continue
        # A voxel at an edge of its block touches the block beyond the edge and those beyond the two faces.
        touching = [s for s in shifts if any(s) and all(a in (0, b) for a, b in zip(s, towards, strict=True))]
        has_rim_Bdhw = ~geometry.mask_Bdhw & torch.stack([neighbour(s) for s in touching]).any(0)
        sample_N, *cells_N = has_rim_Bdhw.nonzero().unbind(1)
        z, y, x = (cells_N[axis][:, None] * block[axis] + _strip(block[axis], towards[axis])[None] for axis in range(3))
        plane = (sample_N[:, None] * depth + z)[:, :, None] * height + y[:, None, :]
        places.append((plane[..., None] * width + x[:, None, None, :]).flatten())
    place_N = torch.cat(places).sort().values

    # With a margin around the volume a tap is a fixed step.
    packed_of = torch.full((geometry.batch, depth + 2, height + 2, width + 2), geometry.blocks * _volume(block))
    rows = torch.arange(geometry.blocks * _volume(block))
    inner = packed_of.new_full((geometry.batch * depth * height * width,), len(rows))
    packed_of[:, 1:-1, 1:-1, 1:-1] = inner.index_copy_(0, geometry.to("cpu").voxel_rows(block), rows).view(
        geometry.batch, depth, height, width
    )
    rest, x = place_N // width, place_N % width
    rest, y = rest // height, rest % height
    sample, z = rest // depth, rest % depth
    centre = ((sample * (depth + 2) + z + 1) * (height + 2) + y + 1) * (width + 2) + x + 1
    steps = torch.tensor([(a * (height + 2) + b) * (width + 2) + c for a, b, c in shifts])
    return RimTable(places=place_N, rows=packed_of.flatten()[centre[:, None] + steps].int().flatten())


def _rim_within(rim: RimTable, block: Triple, wanted: MaskGeometry) -> RimTable:
    """Keep what lies in the wanted blocks, and name it by its row there."""
    rows = wanted.to("cpu").voxel_rows(block)
    voxels = wanted.mask_Bdhw.numel() * _volume(block)
    row_of = torch.full((voxels,), -1).index_copy_(0, rows, torch.arange(len(rows)))[rim.places]
    kept = row_of >= 0
    return RimTable(places=row_of[kept], rows=rim.rows.view(-1, TAPS)[kept].flatten())


def _strip(edge: int, towards: int) -> Tensor:
    """Return the voxels of a block that lie at its low edge, at its high edge, or between."""
    return torch.arange(edge)[{-1: slice(0, 1), 0: slice(1, edge - 1), 1: slice(edge - 1, edge)}[towards]]


def _make_dense_windows(geometry: MaskGeometry, block: Triple, margin: int) -> WindowTable:
    edges = [cells * edge for cells, edge in zip(geometry.grid, block, strict=True)]
    sample_N, *cells_N = geometry.mask_Bdhw.nonzero().unbind(1)
    at = [cells_N[axis][:, None] * block[axis] + torch.arange(-margin, block[axis] + margin) for axis in range(3)]
    inside = [(one >= 0) & (one < edge) for one, edge in zip(at, edges, strict=True)]
    z, y, x = (one.clamp(0, edge - 1) for one, edge in zip(at, edges, strict=True))
    plane = (sample_N[:, None] * edges[0] + z)[:, :, None] * edges[1] + y[:, None, :]
    rows = plane[..., None] * edges[2] + x[:, None, None, :]
    absent = ~(inside[0][:, :, None, None] & inside[1][:, None, :, None] & inside[2][:, None, None, :]).flatten(1)
    places = absent.flatten().nonzero().squeeze(1)
    size = tuple(edge + 2 * margin for edge in block)
    return WindowTable(
        rows=rows.int().flatten(),
        absent=places,
        absent_from=(0, *absent.sum(1).cumsum(0).tolist()),
        edges=size,  # type: ignore[arg-type]
    )


def _volume(block: Triple) -> int:
    return block[0] * block[1] * block[2]
