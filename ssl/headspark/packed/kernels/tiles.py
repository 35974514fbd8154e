"""How much a program of a kernel holds at a time."""

from __future__ import annotations

TILE = 4096
"""Numbers."""

WIDEST = 64
"""Channels of a tile; 128 bytes of bf16, which memory hands out at once."""

JOINED = 32
"""Channels of a tile whose parts are joined."""

SMALLEST_PRODUCT = 16
"""Edges of the matrices that a GPU multiplies."""

AT_ONCE = 1024
"""Rows of a sample that one program sums, in one launch."""

MOST_PARTS = 256
"""Of a sample that is summed in parts: a program or two for each of a GPU's processors."""


def power_of_2(number: int) -> int:
    """Return the smallest power of two that is not less.

    Example:
        >>> power_of_2(1), power_of_2(64), power_of_2(65)
        (1, 64, 128)
    """
    return 1 << max(number - 1, 0).bit_length()


def tile_of(channels: int, outs: int = 0) -> tuple[int, int]:
    """Return rows and channels of a tile: all channels where they are multiplied with a head of so many outputs."""
    wide = power_of_2(channels)
    width = max(wide, SMALLEST_PRODUCT) if outs else min(wide, WIDEST)
    return max(TILE // width, SMALLEST_PRODUCT), width


def parts_of(rows: int, tile: int) -> int:
    """Return in how many parts the rows of a sample are summed, by tiles of so many."""
    return 1 if rows <= AT_ONCE else min(-(-rows // tile), MOST_PARTS)
