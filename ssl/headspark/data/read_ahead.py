"""Telling the kernel which pages of a memory map a crop is about to read: it guesses otherwise, and reads most of all.

After each page that is missing the kernel reads many around it, in the hope that they are wanted next. Of a crop that
is a small part of each plane they are not: a crop of 2 MB out of a scan of 22 MB then reads 17 MB from the disk.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ADVICE = hasattr(mmap, "MADV_RANDOM") and hasattr(mmap, "MADV_WILLNEED")  # not on Windows


def advise(volume_XYZ: NDArray[Any], low: Sequence[int], high: Sequence[int]) -> None:
    """Ask for the pages of a box of a memory-mapped volume, and for no others; of other arrays nothing is asked.

    Args:
        volume_XYZ: In row-major order; may have further axes, of which all is read.
        low: First voxel of the box along each of the three axes, within the volume.
        high: One more than its last voxel.
    """
    mapped = volume_XYZ.base
    if not (_ADVICE and isinstance(volume_XYZ, np.memmap) and isinstance(mapped, mmap.mmap)):
        return
    if any(b <= a for a, b in zip(low, high, strict=True)):
        return
    planes, rows, columns = volume_XYZ.strides[:3]
    begin = volume_XYZ.offset % mmap.ALLOCATIONGRANULARITY  # NumPy maps from the granule before
    begin += low[1] * rows + low[2] * columns
    length = (high[1] - 1 - low[1]) * rows + (high[2] - low[2]) * columns
    mapped.madvise(mmap.MADV_RANDOM)
    # Where the pages are in memory already this is all that it costs, a microsecond a plane.
    ask, wanted, within_page = mapped.madvise, mmap.MADV_WILLNEED, mmap.PAGESIZE - 1
    for first in range(begin + low[0] * planes, begin + high[0] * planes, planes):
        ask(wanted, first & ~within_page, length + (first & within_page))
