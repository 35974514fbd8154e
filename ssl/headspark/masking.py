"""Which blocks of a patch the encoder may see."""

from __future__ import annotations

import math
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
    low, high = ratio_bounds(ratio)
    hidden = low if low == high else low + (high - low) * torch.rand((), generator=generator).item()
    cells, count = grid[0] * grid[1] * grid[2], visible_count(grid, hidden)
    order_BL = torch.rand(batch, cells, generator=generator).argsort(dim=1, stable=True)
    mask_BL = torch.zeros(batch, cells, dtype=torch.bool).scatter_(1, order_BL[:, :count], True)
    return mask_BL.view(batch, *grid)


def visible_count(grid: tuple[int, int, int], hidden: float) -> int:
    """How many blocks of a patch are visible; at least one is, and one is not.

    Args:
        grid: Blocks along each axis.
        hidden: Share that is hidden.

    Raises:
        UserError: There is one block only.
    """
    cells = grid[0] * grid[1] * grid[2]
    if cells < 2:
        raise UserError(f"a mask grid of {grid} has nothing to hide: use a larger patch or a smaller mask.block")
    return min(max(round(cells * (1 - hidden)), 1), cells - 1)


def draw_uneven_mask(marked_dhw: Tensor, hidden: float, odds: float, generator: torch.Generator) -> Tensor:
    """Draw a mask that hides some blocks more often than others, and as many in all as `draw_mask` does.

    Each block's chance is exact: blocks are drawn systematically (Madow 1949, Annals of Mathematical Statistics
    20:333) from a random order.

    Args:
        marked_dhw: bool; the blocks that are hidden more often.
        hidden: Share of blocks that is hidden.
        odds: The odds (chance by counter-chance) that a marked block is hidden, by those of another. Chances
            themselves cannot rise without end: at a share of 0.75, every block is hidden 1.33 times as often at most.
        generator: Source of the randomness, on the CPU.

    Returns:
        mask_dhw: True where the encoder sees the block.

    Example:
        >>> marked = torch.arange(64).view(4, 4, 4) < 16
        >>> int(draw_uneven_mask(marked, 0.75, 3.0, torch.Generator().manual_seed(0)).sum())
        16
    """
    grid = (marked_dhw.shape[0], marked_dhw.shape[1], marked_dhw.shape[2])
    marked_L, count = marked_dhw.flatten(), visible_count(grid, hidden)
    shown, rarely = visible_chances(len(marked_L), int(marked_L.sum()), count, odds)
    order_L = torch.randperm(len(marked_L), generator=generator)
    chances_L = torch.where(marked_L[order_L], rarely, shown).double()
    # Each whole number that the running sum passes makes a block visible; rounding may not cost or give the last.
    ends_L = chances_L.cumsum(0).sub(torch.rand((), generator=generator, dtype=torch.float64))
    passed_L = ends_L.floor().long().add(1).clamp(max=count)
    passed_L[-1] = count
    mask_L = torch.zeros(len(marked_L), dtype=torch.bool)
    mask_L[order_L] = passed_L.diff(prepend=passed_L.new_zeros(1)) > 0
    return mask_L.view(grid)


def visible_chances(cells: int, marked: int, count: int, odds: float) -> tuple[float, float]:
    """The chances of blocks that are not marked and of those that are to be visible, of which `count` shall be.

    Args:
        cells: Blocks.
        marked: Of them.
        count: Visible ones, less than all.
        odds: Of being hidden, of a marked block by those of another.

    Example:
        >>> [round(chance, 3) for chance in visible_chances(64, 16, 16, 3.0)]
        [0.293, 0.121]
    """
    # With the odds x of an unmarked block to be visible: (cells - marked) x / (1 + x) + marked x / (odds + x) = count.
    second, first, last = cells - count, (cells - marked - count) * odds + marked - count, -count * odds
    x = (-first + math.sqrt(first * first - 4 * second * last)) / (2 * second)
    return x / (1 + x), x / (odds + x)


def draw_second_mask(mask_dhw: Tensor, preferred_dhw: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Draw a second mask of the same patch, whose visible blocks are hidden under the first.

    Args:
        mask_dhw: The first, True where the encoder sees the block.
        preferred_dhw: bool; blocks that are taken before others: those with something to see.
        share: Visible blocks, by those of the first mask.
        generator: Source of the randomness, on the CPU.

    Returns:
        second_dhw: True where the encoder sees the block the second time.

    Example:
        >>> first = draw_mask(1, (4, 4, 4), 0.75, torch.Generator().manual_seed(0))[0]
        >>> second = draw_second_mask(first, torch.ones_like(first), 0.25, torch.Generator().manual_seed(0))
        >>> int(second.sum()), int((first & second).sum())
        (4, 0)
    """
    count = second_count(mask_dhw.numel(), int(mask_dhw.sum()), share)
    drawn_L = torch.rand(mask_dhw.numel(), generator=generator) + preferred_dhw.flatten() - 2 * mask_dhw.flatten().int()
    second_L = torch.zeros_like(mask_dhw.flatten())
    second_L[drawn_L.argsort(descending=True, stable=True)[:count]] = True
    return second_L.view(mask_dhw.shape)


def second_count(cells: int, visible: int, share: float) -> int:
    """How many blocks a second mask shows: one at least, and no more than the first hides.

    Args:
        cells: Blocks of a patch.
        visible: Of them, under the first mask.
        share: As of `draw_second_mask`.
    """
    return min(max(round(share * visible), 1), cells - visible)


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
