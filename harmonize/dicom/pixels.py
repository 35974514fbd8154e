"""Turn stored DICOM pixels into values: Hounsfield units, activity, or an MR signal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom.bits import is_open, settle_bits
from harmonize.dicom.decode import stored_pictures
from harmonize.dicom.layout import Picture, PixelLayout, check_layout
from harmonize.dicom.mosaic import tiles_across
from harmonize.errors import Reason, Rejection
from harmonize.limits import check_claim
from harmonize.scan import AIR_HU

TISSUE_HU = (-900.0, 3000.0)
"""A padding value inside this range would blot out tissue, so it is not believed."""

_WHOLE = float(1 << 62)
"""Values from here on are not computed in whole numbers."""


def read_values(pictures: Sequence[Picture], *, modality: str) -> tuple[NDArray[Any], list[Decision]]:
    """Read pictures of one size into a volume.

    CT is int16 HU wherever slope and intercept are whole numbers, with padding and everything below `AIR_HU` set to
    `AIR_HU`. Others keep whole numbers as int16 or uint16 where these hold them, and are float32 otherwise.

    Args:
        pictures: In slice order.
        modality: ``CT`` has its special rules.

    Returns:
        (voxels_ZYX, decisions).

    Raises:
        Rejection: The pixels are truncated, undecodable or too many.
    """
    first = pictures[0].layout
    across = tiles_across(first.tiles)
    shape = (len(pictures), first.rows // across, first.columns // across)
    check_claim(reversed(shape))
    for layout in {id(picture.layout): picture.layout for picture in pictures}.values():
        check_layout(layout)
    if not all(math.isfinite(picture.slope) and math.isfinite(picture.intercept) for picture in pictures):
        raise Rejection(Reason.BAD_INTENSITY, "the rescale slope or intercept is not a finite number")
    if any(picture.slope == 0 for picture in pictures):
        raise Rejection(Reason.BAD_INTENSITY, "the rescale slope is zero")

    if any(_reach(picture) > float(np.finfo(np.float32).max) for picture in pictures):
        raise Rejection(Reason.BAD_INTENSITY, "the rescale slope or intercept leads beyond the range of 32-bit floats")

    settled_bits: list[Decision] = []
    if any(map(is_open, pictures)):
        pictures, settled_bits = settle_bits(pictures, modality=modality)
    voxels_ZYX, decisions, suspects = _read(pictures, shape, modality)
    if suspects:
        settled, more = settle_bits(pictures, modality=modality, suspects=suspects)
        settled_bits += more
        if settled != pictures:
            voxels_ZYX, decisions, _ = _read(settled, shape, modality)
    return voxels_ZYX, settled_bits + decisions


def _reach(picture: Picture) -> float:
    """The greatest value, whatever its sign, that whole stored numbers may be rescaled to."""
    if picture.layout.floating:
        return 0.0
    return max(map(abs, picture.layout.stored_range)) * abs(picture.slope) + abs(picture.intercept)


def _read(
    pictures: Sequence[Picture], shape: tuple[int, int, int], modality: str
) -> tuple[NDArray[Any], list[Decision], set[int]]:
    """(voxels_ZYX, decisions, numbers of the pictures whose bits contradict the header)."""
    voxels_ZYX = np.empty(shape, _result_dtype(pictures, modality))
    padded = distrusted = 0
    suspects: set[int] = set()
    stored_ones = stored_pictures((picture.path, picture.layout, picture.index) for picture in pictures)
    for number, (out, picture, (stored, stray)) in enumerate(zip(voxels_ZYX, pictures, stored_ones, strict=True)):
        if stored.shape != out.shape:
            raise Rejection(Reason.TRUNCATED, "a picture is smaller than its header says")
        if stray or (stored.dtype == np.uint16 and _uses_sign_bit(stored, picture.layout)):
            suspects.add(number)
        padding = _padding_mask(stored, picture)
        _rescale(stored, picture, out, least=AIR_HU if modality == "CT" else None)
        if padding is None:
            continue
        if _is_among_values(stored, picture, modality):
            distrusted += 1
            continue
        count = int(np.count_nonzero(padding))
        if count:
            np.copyto(out, AIR_HU if modality == "CT" else 0, where=padding)
            padded += count
    if distrusted and padded:  # in some slices the value looks like padding, in others like tissue
        bare = [replace(picture, layout=replace(picture.layout, padding=None)) for picture in pictures]
        voxels_ZYX, decisions, suspects = _read(bare, shape, modality)
        return voxels_ZYX, [*decisions, DecisionKind.PADDING_NOT_APPLIED()], suspects
    return voxels_ZYX, _decisions(pictures, padded, distrusted, modality), suspects


def _uses_sign_bit(stored: NDArray[Any], layout: PixelLayout) -> bool:
    return layout.bits_stored == 16 and bool(stored.max() > np.iinfo(np.int16).max)


def _decisions(pictures: Sequence[Picture], padded: int, distrusted: int, modality: str) -> list[Decision]:
    found = []
    slopes = {(picture.slope, picture.intercept) for picture in pictures}
    if len(slopes) > 1:
        found.append(DecisionKind.RESCALED_SLICEWISE(count=len(slopes)))
    if padded:
        found.append(DecisionKind.PADDING_SET(count=padded, value=AIR_HU if modality == "CT" else 0))
    if distrusted:
        found.append(DecisionKind.PADDING_NOT_APPLIED())
    return found


def _result_dtype(pictures: Sequence[Picture], modality: str) -> np.dtype:
    scalings = {(p.slope, p.intercept, p.layout.stored_range, p.layout.bits_stored) for p in pictures}
    floats = any(picture.layout.floating for picture in pictures)
    whole = all(slope.is_integer() and intercept.is_integer() for slope, intercept, _, _ in scalings)
    if floats or not whole or max(map(_reach, pictures)) >= _WHOLE:
        return np.dtype(np.float32)
    if modality == "CT":
        return np.dtype(np.int16)
    ends = [edge * slope + intercept for slope, intercept, stored_range, _ in scalings for edge in stored_range]
    for candidate in (np.int16, np.uint16):
        limits = np.iinfo(candidate)
        if limits.min <= min(ends) and max(ends) <= limits.max:
            return np.dtype(candidate)
    return np.dtype(np.float32)


def _rescale(stored: NDArray[Any], picture: Picture, out: NDArray[Any], *, least: int | None) -> None:
    """Write the values of a picture into `out`, none below `least`, and none outside an integer `out`'s range."""
    if out.dtype == np.float32:
        if stored.dtype == np.float64:
            _check_doubles(stored, picture)
        np.multiply(stored, np.float32(picture.slope), out=out, casting="unsafe")
        out += np.float32(picture.intercept)
        if least is not None:
            np.maximum(out, least, out=out)
        return
    limits = np.iinfo(out.dtype)
    least = limits.min if least is None else least
    slope, intercept = int(picture.slope), int(picture.intercept)
    low, high = map(int, picture.layout.stored_range)
    if slope != 1:
        out[...] = np.clip(stored.astype(np.int64) * slope + intercept, least, limits.max)
        return
    kept_low, kept_high = max(low, least - intercept), min(high, limits.max - intercept)
    if kept_low > kept_high:
        raise Rejection(Reason.BAD_INTENSITY, "the rescale intercept moves every value out of range")
    # What is kept fits once the intercept is added, so that integers may wrap around before it is.
    if kept_high < high:
        stored = np.minimum(stored, stored.dtype.type(kept_high))
    if kept_low > low:
        np.maximum(stored, stored.dtype.type(kept_low), out=out, casting="unsafe")
    else:
        out[...] = stored
    if intercept:
        out += np.array(intercept).astype(out.dtype)


def _check_doubles(stored: NDArray[Any], picture: Picture) -> None:
    largest = np.abs(stored, where=np.isfinite(stored), out=np.zeros_like(stored)).max(initial=0.0)
    if largest * max(1.0, abs(picture.slope)) > np.finfo(np.float32).max:
        raise Rejection(Reason.BAD_INTENSITY, "double values beyond the range of 32-bit floats")


def _padding_mask(stored: NDArray[Any], picture: Picture) -> NDArray[np.bool_] | None:
    if picture.layout.padding is None:
        return None
    low, high = _padding_range(picture.layout)
    return (stored >= low) & (stored <= high) if low != high else stored == low


def _is_among_values(stored: NDArray[Any], picture: Picture, modality: str) -> bool:
    """Whether padding would blot out tissue: HU where tissue lies, or values with others on both sides."""
    low, high = _padding_range(picture.layout)
    if modality != "CT":
        return bool(stored.min() < low and stored.max() > high) or picture.layout.inverted
    scaled = sorted(edge * picture.slope + picture.intercept for edge in (low, high))
    return scaled[0] < TISSUE_HU[1] and scaled[1] > TISSUE_HU[0]


def _padding_range(layout: PixelLayout) -> tuple[float, float]:
    low, high = sorted(_wrapped(value, layout) for value in layout.padding or ())
    return low, high


def _wrapped(value: float, layout: PixelLayout) -> float:
    """A padding value as the stored pixels show it: writers confuse its sign (63536 for -2000 and the reverse)."""
    if layout.floating:
        return value
    low, high = layout.stored_range
    whole = 1 << layout.bits_allocated
    if value > high and value - whole >= low:
        return value - whole
    if value < low and value + whole <= high:
        return value + whole
    return value
