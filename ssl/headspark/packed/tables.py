"""Which packed row each voxel around the visible blocks reads: made where it is used, of a template and small tables.

A table of millions of rows is a small table of the mask, which neighbour each block has on each side, spread by a
template that is the same for every mask. Only the small one is worked out on the CPU and copied; the template lies on
the device already, and what is large never leaves it. Nothing here waits for a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from headspark.packed.layout import Triple
from headspark.page_locked import copied

MASKED = -1
OUTSIDE = -2
"""Marks of absent neighbours: a block that is hidden, a place beyond the volume."""

TEMPLATES = 256
"""Templates that are kept; an encoder with its decoder needs about twenty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Which row each entry of a table reads, where it reads one: bags of one row or none.

    Attributes:
        rows: int32; the rows that are read, in the order of the entries.
        starts: int32 [entries + 1]; how many of them come before each entry, and of all at the end.
    """

    rows: Tensor
    starts: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowTable:
    """The source of every voxel of the windows around the blocks.

    Attributes:
        sources: Rows of the packed data; an entry a window voxel, none where it is hidden or outside.
        before: For each window, how many rows come before it; one entry more for the end.
        edges: Edges of a window.
    """

    sources: Sources
    before: tuple[int, ...]
    edges: Triple

    def of(self, blocks: slice) -> Sources:
        """The sources of some windows, by themselves."""
        if blocks.start == 0 and blocks.stop == len(self.before) - 1:
            return self.sources
        size, first = math.prod(self.edges), self.before[blocks.start]
        starts = self.sources.starts[blocks.start * size : blocks.stop * size + 1]
        return Sources(rows=self.sources.rows[first : self.before[blocks.stop]], starts=starts - first)


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """Where the entries of a table lie, for any block: in which of its neighbours, and at which row of that.

    Attributes:
        cells: int64 [entries]; the column of the table of neighbours.
        places: int32 [entries]; the row, counted from the first of that neighbour.
        rows: Rows of a block.
        counts: int64 [neighbours], on the CPU; entries that lie in each neighbour.
        reach: How many blocks away its neighbours are, along each axis; for windows.
        edges: Edges of a window.
    """

    cells: Tensor
    places: Tensor
    rows: int
    counts: Tensor
    reach: Triple = (0, 0, 0)
    edges: Triple = (0, 0, 0)

    def to(self, device: torch.device) -> Template:
        """The same on a device."""
        return replace(self, cells=copied(self.cells, device), places=copied(self.places, device))


def spread(neighbours_NK: Tensor, template: Template) -> tuple[Tensor, Tensor]:
    """Spread a table of neighbours by a template.

    Args:
        neighbours_NK: int32; the packed block beside each block, or a negative mark where it is absent.
        template: On the same device.

    Returns:
        rows: int32 [blocks * entries], any row where absent; source: int32 of the same shape, the block or its mark.
    """
    source = neighbours_NK.index_select(1, template.cells)
    rows = source.clamp(min=0).mul_(template.rows).add_(template.places)
    return rows.flatten(), source.flatten()


def sources_of(rows: Tensor, present: Tensor, count: int) -> Sources:
    """Keep of the rows, one an entry, those that are present; `count` of them."""
    starts = torch.zeros(len(rows) + 1, dtype=torch.int32, device=rows.device)
    torch.cumsum(present, 0, dtype=torch.int32, out=starts[1:])
    kept = rows[present] if rows.device.type == "cpu" else rows.index_select(0, positions(present, count))
    return Sources(rows=kept, starts=starts)


def positions(where: Tensor, count: int) -> Tensor:
    """Where a boolean tensor [entries] is true, int64, rising; `count` is known beforehand, so nobody waits for it."""
    if where.device.type == "cpu":
        return where.nonzero().squeeze(1)
    return torch.nonzero_static(where, size=count).squeeze(1)


def ends(counted_NK: Tensor, template: Template) -> tuple[int, ...]:
    """Count the entries in some of the neighbours before each block, and of all of them at the end; on the CPU.

    Args:
        counted_NK: int64; 1 for the neighbours whose entries count, 0 for the others.
        template: Where the entries lie.
    """
    return 0, *(counted_NK @ template.counts).cumsum(0).tolist()


@lru_cache(TEMPLATES)
@torch.inference_mode(False)
def side_template(block: Triple, device: torch.device) -> Tensor:
    """At which side of its block each voxel lies, int64 [voxels]: of the 27 neighbours, the one that it is nearest to.

    The middle one where the voxel lies at no face; edges are two voxels at least.
    """
    sides = []
    for edge in block:
        side = torch.ones(edge, dtype=torch.long)
        side[0], side[-1] = 0, 2
        sides.append(side)
    return copied(_numbered(sides, (3, 3, 3)), device)


def reach_of(block: Triple, low: Triple, high: Triple) -> Triple:
    """How many blocks away a window reaches along each axis; one or more."""
    z, y, x = (max(1, math.ceil(max(lo, hi) / edge)) for edge, lo, hi in zip(block, low, high, strict=True))
    return z, y, x


@lru_cache(TEMPLATES)
@torch.inference_mode(False)
def window_template(block: Triple, low: Triple, high: Triple, device: torch.device) -> Template:
    """Of the voxels of a window, low + block + high along each axis, in the order of the volume."""
    reach = reach_of(block, low, high)
    cells, places = [], []
    for edge, lo, hi, away in zip(block, low, high, reach, strict=True):
        position = torch.arange(-lo, edge + hi)
        cells.append(torch.div(position, edge, rounding_mode="floor") + away)
        places.append(position % edge)
    columns = (2 * reach[0] + 1, 2 * reach[1] + 1, 2 * reach[2] + 1)
    edges = (len(cells[0]), len(cells[1]), len(cells[2]))
    template = _template(_numbered(cells, columns), _numbered(places, block), block, columns)
    return replace(template, reach=reach, edges=edges).to(device)


@lru_cache(TEMPLATES)
@torch.inference_mode(False)
def column_template(block: Triple, kernel: Triple, low: Triple, device: torch.device) -> Template:
    """Of the taps that a kernel reads at every voxel of a block, [voxels * taps]."""
    high = (kernel[0] - 1 - low[0], kernel[1] - 1 - low[1], kernel[2] - 1 - low[2])
    window = window_template(block, low, high, torch.device("cpu"))
    z, y, x = (torch.arange(edge)[:, None] + torch.arange(k) for edge, k in zip(block, kernel, strict=True))
    plane = z[:, None, None, :, None, None] * window.edges[1] + y[None, :, None, None, :, None]
    position = (plane * window.edges[2] + x[None, None, :, None, None, :]).flatten()
    cells, places = window.cells[position], window.places[position]
    return replace(window, cells=cells, places=places, counts=cells.bincount(minlength=len(window.counts))).to(device)


@lru_cache(TEMPLATES)
@torch.inference_mode(False)
def column_gradient_template(block: Triple, kernel: Triple, low: Triple, device: torch.device) -> Template:
    """Of the products that add up to the gradient of every voxel, [voxels * taps].

    What tap t carries to an output, the mirrored kernel finds from the input.
    """
    taps = math.prod(kernel)
    high = (kernel[0] - 1 - low[0], kernel[1] - 1 - low[1], kernel[2] - 1 - low[2])
    mirrored = column_template(block, kernel, high, torch.device("cpu"))
    cells = mirrored.cells.view(-1, taps).flip(1).flatten()
    places = mirrored.places.view(-1, taps).flip(1) * taps + torch.arange(taps, dtype=torch.int32)
    return replace(mirrored, cells=cells, places=places.flatten(), rows=mirrored.rows * taps).to(device)


@lru_cache(TEMPLATES)
@torch.inference_mode(False)
def merge_template(block: Triple, factor: Triple, device: torch.device) -> Template:
    """Of the voxels of a block that `factor` blocks along each axis are joined to, in the order of the large block."""
    spans = [torch.arange(edge * joined) for edge, joined in zip(block, factor, strict=True)]
    cells = [span // edge for span, edge in zip(spans, block, strict=True)]
    places = [span % edge for span, edge in zip(spans, block, strict=True)]
    return _template(_numbered(cells, factor), _numbered(places, block), block, factor).to(device)


@lru_cache(TEMPLATES)
@torch.inference_mode(False)
def split_template(block: Triple, factor: Triple, device: torch.device) -> Tensor:
    """Where the voxels of each of the joined blocks lie in the large one, int32 [joined blocks, block voxels]."""
    merged = merge_template(block, factor, torch.device("cpu"))
    rows = torch.empty(math.prod(factor) * merged.rows, dtype=torch.int32)
    rows[merged.cells * merged.rows + merged.places] = torch.arange(len(rows), dtype=torch.int32)
    return copied(rows.view(-1, merged.rows), device)


@lru_cache(TEMPLATES)
@torch.inference_mode(False)
def volume_template(block: Triple, height: int, width: int, device: torch.device) -> Tensor:
    """How far the voxels of a block lie behind its first, in a volume of such planes, flattened; int64 [voxels]."""
    z, y, x = (torch.arange(edge) for edge in block)
    return copied(((z[:, None, None] * height + y[:, None]) * width + x).flatten(), device)


def _numbered(axes: list[Tensor], edges: Triple) -> Tensor:
    """Number the places of a grid of ``edges``, one index an axis, row by row; flat."""
    return ((axes[0][:, None, None] * edges[1] + axes[1][:, None]) * edges[2] + axes[2]).flatten()


def _template(cells: Tensor, places: Tensor, block: Triple, columns: Triple) -> Template:
    counts = cells.bincount(minlength=math.prod(columns))
    return Template(cells=cells, places=places.int(), rows=math.prod(block), counts=counts)
