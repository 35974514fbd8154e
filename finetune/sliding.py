"""Volumes larger than the patch: tiles that overlap and cover them, and the maps that are stitched of what they say.

Tiles lie where MONAI's sliding window has them: one after the other from the first voxel on, the last one moved back to
end with the volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.series import Region

OVERLAP = 0.25
"""Share of its edge that a tile has in common with the next."""

DENSE_AXES = 4
"""Of an output (B, d, h, w) of one channel, and more: below that it is pooled over the tile."""


def tile_steps(patch: Sequence[int], overlap: float, stride: int = 1) -> tuple[int, ...]:
    """Voxels from a tile to the next along each axis: at least one, and a multiple of `stride`.

    Args:
        patch: Size of a tile.
        overlap: Share of a tile's edge that neighbours have in common, at least; 0 <= overlap < 1.
        stride: Divides each edge of the patch.

    Example:
        >>> tile_steps((96, 96, 64), 0.25), tile_steps((96, 96, 64), 0.3, stride=16)
        ((72, 72, 48), (64, 64, 32))
    """
    return tuple(max(1, math.floor(edge * (1 - overlap) / stride + 1e-9)) * stride for edge in patch)


def tile_starts(shape: Sequence[int], patch: Sequence[int], overlap: float) -> list[tuple[int, ...]]:
    """First voxels of the tiles that cover a volume, the last axis running fastest.

    Args:
        shape: Of the volume; where it is smaller than the patch, there is one tile, and it sticks out at the end.
        patch: Size of a tile.
        overlap: As for `tile_steps`.

    Example:
        >>> tile_starts((16, 40, 12), (16, 16, 16), 0.25)
        [(0, 0, 0), (0, 12, 0), (0, 24, 0)]
    """
    from monai.data.utils import dense_patch_slices  # slow to load, and a single box needs none

    covered = [max(edge, tile) for edge, tile in zip(shape, patch, strict=True)]
    slices = dense_patch_slices(covered, patch, tile_steps(patch, overlap))
    return [tuple(int(one.start) for one in tile) for tile in slices]


def covered_shape(region: Region, patch: Sequence[int]) -> tuple[int, int, int]:
    """Voxels from the first tile of a region to the end of the last; at least those of a patch."""
    left = (size - first for size, first in zip(region.stored_XYZ.shape, region.start, strict=True))
    x, y, z = (max(edge, rest) for edge, rest in zip(patch, left, strict=True))
    return x, y, z


def tiles_of(region: Region, patch: Sequence[int], overlap: float) -> list[Region]:
    """The tiles that cover a region from its `start` on: each is the same voxels with another start.

    Args:
        region: One that was cut whole.
        patch: Size of the network's input.
        overlap: As for `tile_steps`.
    """
    tiles = []
    for offset in tile_starts(covered_shape(region, patch), patch, overlap):
        x, y, z = (first + more for first, more in zip(region.start, offset, strict=True))
        tiles.append(replace(region, start=(x, y, z)))
    return tiles


@torch.inference_mode()
def sliding_maps(
    model: Callable[[Tensor], Mapping[str, Tensor]],
    x_BCDHW: Tensor,
    patch: Sequence[int],
    overlap: float = OVERLAP,
    *,
    stride: int = 1,
    at_once: int = 1,
    stitch_on: torch.device | None = None,
) -> dict[str, Tensor]:
    """What a network says of each cell of a volume of any size, by MONAI's sliding window.

    Where tiles overlap, the mean counts, each voxel weighted by a Gaussian around its tile's middle: what lies near the
    edge of a tile lacks its surroundings. The mean is taken of what the network gives, as a rule logits; for a mean of
    probabilities, or with mirror images, hand over a function that calls the network and does that to each tile.

    Args:
        model: Takes tiles (at_once, C, *patch) and gives outputs by name, as `finetune.models.assemble.Network` in eval
            mode does; one that wants the modality as well: ``lambda x: network(x, group_B)``.
        x_BCDHW: The whole input, as a view's `whole` makes it, on the model's device. What a tile wants beyond its end
            is the last plane again.
        patch: Size of a tile, as in training.
        overlap: Share of a tile's edge that neighbours have in common, at least; 0 <= overlap < 1.
        stride: The encoder's total stride: tiles begin at multiples of it, so that cells of neighbours coincide.
        at_once: Tiles of a forward pass.
        stitch_on: Where the maps of the whole are kept; None: where the input is.

    Returns:
        The outputs that have cells, float32: (B, K, d, h, w), or (B, d, h, w) where the network has no axis for
        channels; d is that of the input divided by the edge of a cell, rounded up. Pooled outputs are left out.

    Raises:
        ValueError: The edge of an output's cells does not divide `stride`.

    Example:
        >>> maps = sliding_maps(lambda x: {"twice": 2 * x}, torch.ones(1, 1, 20, 16, 40), (16, 16, 16))
        >>> maps["twice"].shape, maps["twice"].unique().tolist()
        (torch.Size([1, 1, 20, 16, 40]), [2.0])
    """
    from monai.inferers import sliding_window_inference  # slow to load, and a single box needs none

    shape, patch = tuple(x_BCDHW.shape[2:]), tuple(patch)
    steps = tile_steps(patch, overlap, stride)
    covered = [max(tile, -(-edge // stride) * stride) for edge, tile in zip(shape, patch, strict=True)]
    beyond = [size - edge for size, edge in zip(covered, shape, strict=True)]
    if any(beyond):
        x_BCDHW = F.pad(x_BCDHW, [side for more in reversed(beyond) for side in (0, more)], mode="replicate")
    names: list[str] = []
    without_channels: set[str] = set()

    def dense(x: Tensor) -> tuple[Tensor, ...]:
        found = {name: value for name, value in model(x).items() if value.ndim >= DENSE_AXES}
        # MONAI shrinks the weights from one output to the next, so the finest comes first; and it writes into them.
        names[:] = sorted(found, key=lambda name: -found[name].shape[-1])
        without_channels.update(name for name in names if found[name].ndim == DENSE_AXES)
        for name in names:
            _check_cells(name, found[name].shape[-3:], patch, stride if covered != list(patch) else 0)
        return tuple(
            (found[name][:, None] if name in without_channels else found[name]).float().clone() for name in names
        )

    # MONAI takes the share that is common and rounds the step down: half a voxel more keeps it from one too few.
    common = [max(0.0, (edge - step - 0.5) / edge) for edge, step in zip(patch, steps, strict=True)]
    stitched = sliding_window_inference(
        x_BCDHW, patch, at_once, dense, overlap=common, mode="gaussian", device=stitch_on
    )
    maps = {}
    for name, map_BKdhw in zip(names, [stitched] if isinstance(stitched, Tensor) else stitched, strict=True):
        sizes = zip(shape, covered, map_BKdhw.shape[2:], strict=True)
        inside = tuple(slice(-(-edge * cells // size)) for edge, size, cells in sizes)
        cut = map_BKdhw[(..., *inside)]
        maps[name] = cut[:, 0] if name in without_channels else cut
    return maps


def _check_cells(name: str, cells: Sequence[int], patch: Sequence[int], stride: int) -> None:
    """Whether an output's cells lie on one grid in all tiles; `stride` is 0 where there is one tile alone."""
    edges = [tile / count for tile, count in zip(patch, cells, strict=True)]
    if any(edge != int(edge) or stride % edge for edge in edges):
        raise ValueError(f"{name}: cells of {edges} voxels lie on one grid only in tiles at multiples of that: stride")
