"""What a file may cost: caps on nesting, voxels and unpacked bytes, compared with its header before memory is taken.

A few bytes can claim any size, and a thousandth of the bytes can unpack to all of them. A normal scan claims at most
512 x 512 x 256 voxels; eight times as much is believed, and HARMONIZE_MAX_VOXELS changes that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from functools import lru_cache

from harmonize.errors import Reason, Rejection, WrongUse

VARIABLE = "HARMONIZE_MAX_VOXELS"
"""Environment variable; all caps on voxels and unpacked bytes follow it."""

NORMAL_SCAN = 512 * 512 * 256
TIMES_NORMAL = 8
VOXEL_BYTES = 4

MAX_DEPTH = 64
"""Sequences within sequences: enhanced pictures have four, structured reports some twenty."""

MAX_ELEMENTS = 2**22
"""Elements and items of a DICOM header: two hundred for each of 20,000 frames."""

MAX_TAGS = 2**16
"""Elements of one data set or item, without those of its sequences."""

MAX_HEADER_BYTES = 2**26
"""What a DICOM header may unpack to."""

MAX_VALUE_BYTES = 2**20
"""What a value of a DICOM header may have that is read as text or numbers: 50 letters for each of 20,000 frames."""

MAX_ROWS = 2**20
"""Rows of a source's table; the largest, OpenMind's, has 115 thousand."""

MAX_ODD_READS = 2**21
"""Reads, two an element, of a header that only pydicom understands, which takes ten times the memory."""


def max_voxels() -> int:
    """The most voxels that one scan may claim.

    Raises:
        UserError: HARMONIZE_MAX_VOXELS is no whole number above zero (exit code 2).
    """
    return _parse(os.environ.get(VARIABLE, ""))


def max_bytes() -> int:
    """The most bytes that the voxels of one file may unpack to."""
    return max_voxels() * VOXEL_BYTES


def max_unpacked(packed: int) -> int:
    """The most bytes that the files of an archive of `packed` bytes may claim: a normal scan's, or 100 times its own.

    Slices shrink to a third at best; what shrinks to a hundredth is a mask, which is small.
    """
    return max(max_bytes() // (2 * TIMES_NORMAL), 100 * packed)


def check_claim(shape: Iterable[int], *, bytes_each: int = 1, most: int | None = None) -> None:
    """Refuse a claim of more voxels than are believed.

    Args:
        shape: What the header says, any number of axes.
        bytes_each: Bytes of one voxel, in the file or as it is read.
        most: Voxels, where less is believed of this file.

    Raises:
        Rejection: `Reason.TOO_LARGE`.
    """
    sizes = tuple(int(count) for count in shape)
    voxels = math.prod(sizes)
    allowed = max_voxels()
    if most is not None and voxels > min(most, allowed):
        raise Rejection(Reason.TOO_LARGE, f"the header claims {_spelled(sizes)} voxels, far more than its image has")
    if voxels > allowed or voxels * bytes_each > max_bytes():
        unit = "" if voxels > allowed else f" of {bytes_each} bytes"
        message = f"the header claims {_spelled(sizes)} voxels{unit}; {VARIABLE} says how many are believed"
        raise Rejection(Reason.TOO_LARGE, message)


def _spelled(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


@lru_cache(maxsize=8)
def _parse(text: str) -> int:
    if not text:
        return NORMAL_SCAN * TIMES_NORMAL
    try:
        voxels = int(float(text))
    except (ValueError, OverflowError):
        voxels = 0
    if voxels < 1:
        raise WrongUse(f"{VARIABLE}={text[:40]!r}: give a number of voxels, such as 1e9")
    return voxels
