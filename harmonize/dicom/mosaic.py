"""Find the slices in a Siemens mosaic: one picture that tiles all slices of an echo-planar volume.

The number of tiles and the direction in which the slices advance are in Siemens' private CSA header. The position in
the header is that of a picture as large as the whole mosaic around the centre of the slice, so the first slice begins
half of the difference further in. (The layout is described at nipy.org/nibabel/dicom/siemens_csa.html and
dicom_mosaic.html.)
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.dicom.elements import Elements, number_of
from harmonize.dicom.geometry import is_plausible_step, slice_normal
from harmonize.errors import Reason, Rejection, Stage

_MAX_CSA_TAGS = 512
_UNCUT = Rejection(
    Reason.MISSING_METADATA, "a mosaic whose header does not say how to cut it into slices and how far apart"
)
_CSA_TAG = struct.Struct("<64si4s3i")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mosaic:
    """The slices of a mosaic.

    Attributes:
        tiles: Number of slices.
        first_position: LPS mm of the first pixel of the first slice.
        advance: LPS mm from one slice to the next.
    """

    tiles: int
    first_position: NDArray[np.float64]
    advance: NDArray[np.float64]

    def tile_position(self, tile: int) -> tuple[float, ...]:
        """ImagePositionPatient that slice number `tile` would have in a file of its own."""
        return tuple((self.first_position + tile * self.advance).tolist())


def read_mosaic(elements: Elements, image_type: tuple[str, ...]) -> Mosaic | None:
    """Read the mosaic's layout, or None where the picture is no mosaic, whatever it is called.

    Several frames, no number of tiles, or a size that is not a multiple of the tiles' are an ordinary picture's:
    Siemens' XA software keeps the word in the ImageType of enhanced files.

    Raises:
        Rejection: It is a mosaic, but the header does not say how to cut it.
    """
    if "MOSAIC" not in image_type or (elements.integer(0x00280008) or 1) > 1:
        return None
    csa = parse_csa(elements.raw(0x00291010))
    counts = [elements.integer(0x0019100A), *(_integer(text) for text in csa.get("NumberOfImagesInMosaic", []))]
    tiles = next((count for count in counts if count), 0)
    rows, columns = elements.integer(0x00280010) or 0, elements.integer(0x00280011) or 0
    position, orientation = elements.numbers(0x00200032), elements.numbers(0x00200037)
    spacing = elements.numbers(0x00280030)
    steps = [elements.number(0x00180088), *(number_of(text) for text in csa.get("SpacingBetweenSlices", []))]
    # The direction is that of SliceNormalVector; a negative spacing is a distance all the same.
    step = next((step for step in map(abs, steps) if is_plausible_step(step)), math.nan)
    across = tiles_across(tiles)
    if not 0 < tiles <= rows * columns or rows % across or columns % across:
        return None
    if len(position) != 3 or len(spacing) != 2 or math.isnan(step):
        raise _UNCUT.at(Stage.LOAD)
    normal = slice_normal(orientation)
    if _direction(csa.get("SliceNormalVector", [])) @ normal < 0:
        normal = -normal
    directions = np.asarray(orientation, np.float64).reshape(2, 3)
    inset = np.array([(columns - columns // across) / 2 * spacing[1], (rows - rows // across) / 2 * spacing[0]])
    return Mosaic(tiles=tiles, first_position=np.asarray(position) + inset @ directions, advance=normal * step)


def doubt(image_type: tuple[str, ...]) -> Rejection | None:
    """Why a picture that cannot be cut is no slice of its own, unless it lies in a full stack of slices."""
    return _UNCUT if "MOSAIC" in image_type else None


def tiles_across(tiles: int) -> int:
    """Number of tiles in each row (and column) of a mosaic.

    Example:
        >>> tiles_across(35)
        6
    """
    return math.isqrt(max(tiles, 1) - 1) + 1


def cut_tiles(mosaic_RC: NDArray[Any], tiles: int) -> NDArray[Any]:
    """Cut a mosaic (rows, columns) into its slices (tiles, rows, columns), row by row from the upper left.

    Example:
        >>> cut_tiles(np.arange(4).reshape(2, 2), 3).ravel()
        array([0, 1, 2])
    """
    across = tiles_across(tiles)
    rows, columns = mosaic_RC.shape[0] // across, mosaic_RC.shape[1] // across
    grid = mosaic_RC.reshape(across, rows, across, columns).transpose(0, 2, 1, 3)
    return grid.reshape(across * across, rows, columns)[:tiles]


def parse_csa(csa: bytes) -> dict[str, list[str]]:
    """Parse a Siemens CSA header of type 2 (``SV10``) into its values as text; what is damaged is left out."""
    found: dict[str, list[str]] = {}
    if csa[:4] != b"SV10" or len(csa) < 16:
        return found
    count = min(struct.unpack_from("<I", csa, 8)[0], _MAX_CSA_TAGS)
    at = 16
    for _ in range(count):
        if at + _CSA_TAG.size > len(csa):
            return found
        name, _, _, _, items, _ = _CSA_TAG.unpack_from(csa, at)
        at += _CSA_TAG.size
        values = []
        for _ in range(max(items, 0)):
            if at + 16 > len(csa):
                return found
            length = struct.unpack_from("<4i", csa, at)[1]
            at += 16
            if not 0 <= length <= len(csa) - at:
                return found
            values.append(csa[at : at + length].split(b"\0")[0].decode("latin-1").strip())
            at += (length + 3) // 4 * 4
        found[name.split(b"\0")[0].decode("latin-1")] = [value for value in values if value]
    return found


def _direction(parts: list[str]) -> NDArray[np.float64]:
    try:
        return np.array([float(part) for part in parts]).reshape(3)
    except ValueError:
        return np.zeros(3)


def _integer(text: str) -> int | None:
    return int(text) if text.isdigit() else None
