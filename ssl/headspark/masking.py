"""Which blocks of a patch the encoder may see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harmonize.errors import UserError, WrongUse


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskConfig:
    """Random blocks are hidden.

    Attributes:
        block: Edge of a block in voxels.
        ratio: Share of blocks that is hidden; one number, or a pair between which it is drawn at every step. Shares
            of 0.6 to 0.9 have been found alike (arXiv 2410.23132).
    """

    block: int = 16
    ratio: float | tuple[float, float] = 0.75

    def __post_init__(self) -> None:
        if self.block < 1:
            raise WrongUse(f"mask.block is {self.block}: it is an edge in voxels")
        low, high = ratio_bounds(self.ratio)
        if not 0 < low <= high < 1:
            raise WrongUse(f"mask.ratio is {self.ratio}: between 0 and 1, the smaller bound first")


def mask_grid(shape_DHW: tuple[int, ...], block: int) -> tuple[int, int, int]:
    """Return the number of blocks along each axis of a patch.

    Args:
        shape_DHW: Edges of the patch in voxels.
        block: Edge of a block in voxels.

    Raises:
        UserError: The blocks do not tile the patch.

    Example:
        >>> mask_grid((96, 64, 32), 16)
        (6, 4, 2)
    """
    if any(edge % block for edge in shape_DHW):
        raise WrongUse(f"a patch of {tuple(shape_DHW)} voxels is not tiled by mask.block {block}")
    depth, height, width = (edge // block for edge in shape_DHW)
    return depth, height, width


def draw_mask(
    batch: int,
    grid: tuple[int, int, int],
    ratio: float | tuple[float, float],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one mask a sample; every sample of the batch sees the same number of blocks.

    Equal counts keep every shape of a step known beforehand, whatever the mask.

    Args:
        batch: Samples.
        grid: Blocks along each axis.
        ratio: Share of blocks that is hidden, or the bounds between which it is drawn.
        generator: Source of the randomness, on the CPU.

    Returns:
        mask_Bdhw: True where the encoder sees the block. At least one block is visible and one is hidden.

    Example:
        >>> mask = draw_mask(2, (4, 4, 4), 0.75, torch.Generator().manual_seed(0))
        >>> mask.shape, mask.flatten(1).sum(1).tolist()
        (torch.Size([2, 4, 4, 4]), [16, 16])
    """
    cells = grid[0] * grid[1] * grid[2]
    if cells < 2:
        raise UserError(f"a mask grid of {grid} has nothing to hide: use a larger patch or a smaller mask.block")
    low, high = ratio_bounds(ratio)
    hidden = low if low == high else low + (high - low) * torch.rand((), generator=generator).item()
    count = min(max(round(cells * (1 - hidden)), 1), cells - 1)
    order_BL = torch.rand(batch, cells, generator=generator).argsort(dim=1, stable=True)
    mask_BL = torch.zeros(batch, cells, dtype=torch.bool).scatter_(1, order_BL[:, :count], True)
    return mask_BL.view(batch, *grid)


def expand_cells(cells_Bdhw: Tensor, shape_DHW: tuple[int, ...]) -> Tensor:
    """Bring a mask over cells to another grid: repeat where that is finer, "any child" where it is coarser.

    Args:
        cells_Bdhw: Boolean mask over blocks.
        shape_DHW: The grid wanted; along each axis a multiple or a divisor of the mask's.

    Returns:
        mask_B1DHW: The mask on that grid.

    Raises:
        ValueError: The grids do not divide each other.
    """
    mask_B1DHW = cells_Bdhw.unsqueeze(1)
    for axis, (edge, wanted) in enumerate(zip(cells_Bdhw.shape[1:], shape_DHW, strict=True), start=2):
        if wanted % edge == 0:
            mask_B1DHW = mask_B1DHW.repeat_interleave(wanted // edge, axis)
        elif edge % wanted == 0:
            mask_B1DHW = mask_B1DHW.unflatten(axis, (wanted, edge // wanted)).any(axis + 1)
        else:
            raise ValueError(f"a mask of {tuple(cells_Bdhw.shape[1:])} cells does not fit a grid of {tuple(shape_DHW)}")
    return mask_B1DHW


def ratio_bounds(ratio: float | tuple[float, float]) -> tuple[float, float]:
    """Return the lowest and highest share that may be hidden."""
    if isinstance(ratio, int | float):
        return float(ratio), float(ratio)
    low, high = ratio
    return float(low), float(high)
