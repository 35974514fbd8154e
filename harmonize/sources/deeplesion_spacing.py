"""How far apart the voxels of DeepLesion's slices are: by the table, for pictures of the size that it says."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection
from pathlib import Path

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Reason, Rejection

Spacing = tuple[float, float, float]
Size = tuple[int, int]
"""Columns and rows."""

_SIZE = re.compile(r"\s*(\d{1,5})\s*[,;x ]\s*(\d{1,5})\s*")
_PNG = struct.Struct(">8s4x4sII")
_PNG_START = (b"\x89PNG\r\n\x1a\n", b"IHDR")


def one_spacing(spacings: object) -> Spacing:
    """The spacing that all rows about some slices give.

    Args:
        spacings: Their different texts.

    Raises:
        Rejection: There is none, none that makes sense, or several.
    """
    if not isinstance(spacings, tuple) or not spacings:
        raise Rejection(
            Reason.MISSING_METADATA,
            "no row of the table names this series and has these slices in its Slice_range: their spacing is unknown",
        )
    parsed = {_parse(text) for text in spacings}
    if len(parsed) > 1:
        raise Rejection(Reason.MIXED_GEOMETRY, "the table gives these slices several spacings")
    return parsed.pop()


def size_of(text: str) -> Size | None:
    """What the table says of a picture's size, or None where it says nothing.

    Example:
        >>> size_of("512, 512"), size_of("0, 512"), size_of("")
        ((512, 512), None, None)
    """
    found = _SIZE.fullmatch(text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    return size if min(size) > 0 else None


def size_of_png(path: Path) -> Size | None:
    """The size in the header of a PNG file, or None where it cannot be read: whoever reads the pixels says why."""
    try:
        with path.open("rb") as stream:
            start, name, columns, rows = _PNG.unpack(stream.read(_PNG.size))
    except (OSError, struct.error):
        return None
    return (columns, rows) if (start, name) == _PNG_START and min(columns, rows) > 0 else None


def contradicts(said: Collection[Size], found: Size | None) -> bool:
    """Whether the sizes that rows of the table say are all others than the pictures'; it may turn them round."""
    return found is not None and bool(said) and not {found, found[::-1]} & set(said)


def for_size(spacing: Spacing, said: Collection[Size], found: Size) -> tuple[Spacing, list[Decision]]:
    """The spacing of pictures that were made larger or smaller than the table says, and what was decided.

    Example:
        >>> spacing, (line,) = for_size((0.8, 0.8, 5.0), [(512, 512)], (256, 256))
        >>> spacing, str(line)[:43]
        ((1.6, 1.6, 5.0), 'pictures of 256 x 256 pixels, not 512 x 512')

    Raises:
        Rejection: They do not show the same field of view, so what their pixels measure is unknown.
    """
    if not contradicts(said, found):
        return spacing, []
    times = {(columns / found[0], rows / found[1]) for columns, rows in said}
    (across, down), *others = times
    # A side that does not divide is rounded to a whole pixel.
    if others or not math.isclose(across, down, rel_tol=1 / min(found)):
        spelled = " or ".join(map(_spelled, sorted(said)))
        raise Rejection(
            Reason.BAD_GEOMETRY,
            f"the table says {spelled} pixels, the pictures have {_spelled(found)}: what these measure is unknown",
        )
    x, y, z = spacing
    (size,) = said
    told = DecisionKind.SPACING_OF_OTHER_SIZE(said=_spelled(size), found=_spelled(found), times=across)
    return (x * across, y * down, z), [told]


def _spelled(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _parse(text: str) -> Spacing:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise Rejection(Reason.MISSING_METADATA, "the table's spacing is not three numbers") from error
    if not all(math.isfinite(mm) and mm > 0 for mm in (x, y, z)):
        raise Rejection(Reason.BAD_GEOMETRY, "the table's spacing is not positive")
    return x, y, z
