"""Three planes of a harmonized volume as one small picture, with the foreground box and the mask drawn on them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from harmonize.pipeline import DRAWN
from harmonize.scan import HU
from harmonize.settings import PERCENTILES
from harmonize.voxels.stored import StoredVolume, real_value

SIDE = 112
"""Pixels of one plane's square; the picture is three of them in a row: axial, coronal, sagittal."""

CT_WINDOW_HU = (400.0, 40.0)
"""Width and level: soft tissue, with the skull still told from the brain."""

MRI_PERCENTILES = (1, 99.5)
"""Foreground percentiles that become black and white."""

BOX_COLOUR = (255, 176, 0)
HEAD_COLOUR, DEFACED_COLOUR, VESSEL_COLOUR = (64, 224, 208), (255, 64, 64), (255, 80, 80)
BRAIN_COLOUR = (170, 240, 90)
DEFACED = 2
TINT = 0.35
WEBP_QUALITY = 60


def thumbnail(
    image: StoredVolume,
    mask: StoredVolume | None,
    *,
    mask_kind: str | None,
    unit: str,
    box: Sequence[int],
    percentiles: Sequence[float],
    brain: StoredVolume | None = None,
) -> bytes:
    """Draw one scan.

    The planes run through the middle of the foreground box, or where most of what people drew is. They are shown as
    radiologists do: the patient's right is on the left, anterior is up (axial) or left (sagittal).

    Args:
        image: RAS, shape (X, Y, Z) or (X, Y, Z, 3) with baked windows, of which the first is shown.
        mask: On the same grid, or None.
        mask_kind: ``anatomy``, ``vessels``, ``labels`` or None.
        unit: As in the manifest.
        box: Foreground box x0, x1, y0, y1, z0, z1.
        percentiles: Of the foreground, at `harmonize.corpus.PERCENTILES`.
        brain: Brain mask on the same grid, or None.

    Returns:
        A WebP picture of 3 `SIDE` x `SIDE` pixels.
    """
    stored = image.stored_XYZ[..., 0] if image.stored_XYZ.ndim == 4 else image.stored_XYZ
    labels = None if mask is None else mask.stored_XYZ
    spacing = np.asarray(image.spacing)
    sides = np.asarray(box, dtype=int).reshape(3, 2)
    centre = _busiest(labels) if labels is not None and mask_kind in DRAWN else sides.mean(axis=1).astype(int)
    centre = np.clip(centre, 0, np.asarray(stored.shape) - 1)
    low, high = _range(image, unit, percentiles)
    strip = np.zeros((SIDE, 3 * SIDE, 3), dtype=np.uint8)
    # Each plane: the axis it cuts, then the axes that go to the picture's columns and rows, both reversed on screen.
    for place, (cut, across, down) in enumerate(((2, 0, 1), (1, 0, 2), (0, 1, 2))):
        plane = np.take(stored, centre[cut], axis=cut)
        grey = (real_value(plane.T.astype(np.float32), image.slope, image.inter) - low) / (high - low)
        drawn = _Plane(grey, _size_mm(plane.shape, spacing[[across, down]]))
        if labels is not None:
            drawn.mark(np.take(labels, centre[cut], axis=cut).T, mask_kind)
        if brain is not None:
            drawn.outline(np.take(brain.stored_XYZ, centre[cut], axis=cut).T > 0, BRAIN_COLOUR)
        drawn.frame(sides[across], sides[down])
        strip[:, place * SIDE : (place + 1) * SIDE] = drawn.square()
    stream = io.BytesIO()
    Image.fromarray(strip).save(stream, format="WEBP", quality=WEBP_QUALITY)
    return stream.getvalue()


class _Plane:
    """A slice scaled to fit a square; row 0 is the lowest index until `square` turns it."""

    def __init__(self, grey_YX: NDArray[Any], size_mm: tuple[float, float]) -> None:
        scale = SIDE / max(size_mm)
        self.width, self.height = (max(1, round(mm * scale)) for mm in size_mm)
        self.rows, self.columns = grey_YX.shape
        pixels = Image.fromarray((np.clip(grey_YX, 0, 1) * 255).astype(np.uint8))
        scaled = pixels.resize((self.width, self.height), Image.Resampling.BOX)
        self.rgb = np.repeat(np.asarray(scaled)[..., None], 3, axis=2)

    def mark(self, labels_YX: NDArray[Any], kind: str | None) -> None:
        """Outline the head, tint what was defaced, or fill what people drew."""
        labels = self._scaled(labels_YX)
        if kind in DRAWN:
            self.rgb[labels > 0] = VESSEL_COLOUR
            return
        defaced = labels == DEFACED
        self.rgb[defaced] = ((1 - TINT) * self.rgb[defaced] + TINT * np.array(DEFACED_COLOUR)).astype(np.uint8)
        head = (labels > 0) & ~defaced
        self.rgb[head & ~binary_erosion(head)] = HEAD_COLOUR

    def outline(self, mask_YX: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
        """Draw the border of a mask."""
        inside = self._scaled(mask_YX.astype(np.uint8)) > 0
        self.rgb[inside & ~binary_erosion(inside)] = colour

    def _scaled(self, labels_YX: NDArray[Any]) -> NDArray[Any]:
        small = Image.fromarray(np.ascontiguousarray(labels_YX))
        return np.asarray(small.resize((self.width, self.height), Image.Resampling.NEAREST))

    def frame(self, across: NDArray[Any], down: NDArray[Any]) -> None:
        """Draw the foreground box, half-open in voxels."""
        left, right = (across * self.width / self.columns).round().astype(int) - (0, 1)
        bottom, top = (down * self.height / self.rows).round().astype(int) - (0, 1)
        for row in (bottom, top):
            self.rgb[row, left : right + 1] = BOX_COLOUR
        for column in (left, right):
            self.rgb[bottom : top + 1, column] = BOX_COLOUR

    def square(self) -> NDArray[np.uint8]:
        """The finished tile, in the middle of its square."""
        tile = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        row, column = (SIDE - self.height) // 2, (SIDE - self.width) // 2
        tile[row : row + self.height, column : column + self.width] = self.rgb[::-1, ::-1]
        return tile


def _busiest(labels_XYZ: NDArray[Any]) -> NDArray[np.int_]:
    """Along each axis the plane that holds most of a mask."""
    is_set = labels_XYZ > 0
    others = ((1, 2), (0, 2), (0, 1))
    return np.array([int(is_set.sum(axis=axes).argmax()) for axes in others])


def _range(image: StoredVolume, unit: str, percentiles: Sequence[float]) -> tuple[float, float]:
    if unit == HU:
        width, level = CT_WINDOW_HU
        return level - width / 2, level + width / 2
    if image.stored_XYZ.ndim == 4:
        return 0.0, 1.0
    low, high = (float(percentiles[PERCENTILES.index(at)]) for at in MRI_PERCENTILES)
    return low, high if high > low else low + 1


def _size_mm(shape: Sequence[int], spacing: NDArray[Any]) -> tuple[float, float]:
    return float(shape[0] * spacing[0]), float(shape[1] * spacing[1])
