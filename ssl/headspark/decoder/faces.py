"""What a convolution makes of a map that has one value in the volume and is zero beyond it.

It is one vector of channels, but at the faces of the volume, where the kernel of three reaches beyond: 27 vectors,
[C, 3, 3, 3], at the low face, between, and at the high face along each axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from headspark.packed.geometry import MaskGeometry
from headspark.packed.layout import Triple
from headspark.packed.tables import OUTSIDE, positions, side_template
from headspark.page_locked import copied

BETWEEN = 27 // 2
"""Of the 27: at no face."""

PLACES = 64
"""Lines of places that are kept: a decoder needs one a scale and axis."""


def convolved_constant(weight: Tensor, value_C: Tensor | None, bias: Tensor | None) -> Tensor:
    """Convolve a map that has one value in the volume.

    Args:
        weight: [C_out, C, 3, 3, 3].
        value_C: The value; None: zero.
        bias: [C_out] or None.

    Returns:
        [C_out, 3, 3, 3], in at least float32.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    faces = weight.new_zeros(len(weight), 3, 3, 3, dtype=wide)
    with torch.autocast(weight.device.type, enabled=False):
        if value_C is not None:
            taps = torch.einsum("oczyx,c->ozyx", weight.to(wide), value_C.to(wide))
            faces = F.conv3d(taps.new_ones(1, 1, 3, 3, 3), taps[:, None], padding=1)[0]
    return faces if bias is None else faces + bias.to(wide).view(-1, 1, 1, 1)


def add_faces(map_BDHWC: Tensor, faces: Tensor) -> None:
    """Add [C, 3, 3, 3] to a map, in place; its edges are two voxels at least."""
    vectors = faces.permute(1, 2, 3, 0).to(map_BDHWC.dtype)
    depth = map_BDHWC.shape[1]
    height, width = (_places_at(edge, map_BDHWC.device) for edge in map_BDHWC.shape[2:4])
    for z, planes in enumerate((slice(0, 1), slice(1, depth - 1), slice(depth - 1, None))):
        map_BDHWC[:, planes] += vectors[z].index_select(0, height).index_select(1, width)


def sum_of_faces(map_BDHWC: Tensor) -> Tensor:
    """Sum a map over the voxels of each low face, of each high face and of what lies between: [C, 3, 3, 3]."""
    total, wide = map_BDHWC, torch.promote_types(map_BDHWC.dtype, torch.float32)
    for axis in (3, 2, 1):
        edge = total.shape[axis]
        between = total.narrow(axis, 1, edge - 2).sum(axis, dtype=wide)
        total = torch.stack([total.select(axis, 0), between, total.select(axis, edge - 1)], axis)
    return total.sum(0).permute(3, 0, 1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceTable:
    """The voxels of packed blocks that lie at a face of the volume.

    Attributes:
        rows: int64; the row of each, packed.
        faces: int64; which of the 27 it is.
    """

    rows: Tensor
    faces: Tensor


def add_faces_of_blocks(rows: Tensor, faces: Tensor, geometry: MaskGeometry, block: Triple) -> None:
    """Add [C, 3, 3, 3] to the voxels of the blocks of a mask, [blocks * block voxels, C], in place."""
    vectors = faces.flatten(1).t().to(rows.dtype)
    table = geometry.here(("faces", block), lambda: _make_table(geometry, block))
    rows += vectors[BETWEEN]
    rows.index_copy_(
        0,
        table.rows,
        rows.index_select(0, table.rows) + (vectors - vectors[BETWEEN]).index_select(0, table.faces),
    )


def _make_table(geometry: MaskGeometry, block: Triple) -> FaceTable:
    sides = side_template(block, geometry.device)
    faces_N27 = geometry.small(("faces",), lambda: _faces_at_sides(geometry))
    faces = geometry.small_here(("faces",), lambda: faces_N27).index_select(1, sides).flatten()
    at_face = (faces_N27 != BETWEEN).long() @ side_template(block, torch.device("cpu")).bincount(minlength=27)
    rows = positions(faces != BETWEEN, int(at_face.sum()))
    return FaceTable(rows=rows, faces=faces.index_select(0, rows))


def _faces_at_sides(geometry: MaskGeometry) -> Tensor:
    """Tell at which faces of the volume the voxels at each side of each block lie, int64 [blocks, 27], on the CPU."""
    outside_N333 = (geometry.neighbours() == OUTSIDE).view(-1, 3, 3, 3)
    beyond = outside_N333[:, :, 1, 1], outside_N333[:, 1, :, 1], outside_N333[:, 1, 1, :]
    z, y, x = (torch.where(beyond_N3, torch.arange(3), 1) for beyond_N3 in beyond)
    return ((z[:, :, None, None] * 3 + y[:, None, :, None]) * 3 + x[:, None, None, :]).flatten(1)


@lru_cache(PLACES)
@torch.inference_mode(False)
def _places_at(edge: int, device: torch.device) -> Tensor:
    """Return 0 for the first voxel along an axis, 2 for the last, 1 between; on a device, where it stays."""
    places = torch.ones(edge, dtype=torch.long)
    places[0], places[-1] = 0, 2
    return copied(places, device)
