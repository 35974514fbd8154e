"""Read stored DICOM pixels and turn them into values: Hounsfield units, activity, or an MR signal.

Uncompressed pixels are read straight from the file; compressed ones are decoded by openjpeg, an RLE and a JPEG-LS
codec where these are faster, and otherwise by GDCM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.encaps import parse_basic_offsets, parse_fragments
from pydicom.pixels import pixel_array

from harmonize.dicom_elements import PARSER_FAULTS
from harmonize.dicom_mosaic import cut_tiles, tiles_across
from harmonize.errors import Reason, Rejection

AIR_HU = -1024
"""Least value of a CT in the corpus: what lies outside the field of view, and nothing physical is below."""
MAX_HU = 32767

TISSUE_HU = (-900.0, 3000.0)
"""A padding value inside this range would blot out tissue, so it is not believed."""

MAX_VOXELS = 2**30
"""Refused before anything is allocated: 1024 x 1024 x 1024, twice the largest head CT in use."""

_PIXEL_DATA = 0x7FE00010
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LONG_VALUE_REPRESENTATIONS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN")

_DECODERS: dict[str, tuple[str, ...]] = {
    uid.RLELossless: ("pylibjpeg", "pydicom"),
    uid.JPEG2000Lossless: ("pylibjpeg", "gdcm"),
    uid.JPEG2000: ("pylibjpeg", "gdcm"),
    uid.HTJ2KLossless: ("pylibjpeg",),
    uid.HTJ2KLosslessRPCL: ("pylibjpeg",),
    uid.HTJ2K: ("pylibjpeg",),
    uid.JPEGLSLossless: ("pyjpegls", "gdcm"),
    uid.JPEGLSNearLossless: ("pyjpegls", "gdcm"),
    uid.JPEGLosslessSV1: ("gdcm",),
    uid.JPEGLossless: ("gdcm",),
    uid.JPEGExtended12Bit: ("gdcm",),
    uid.JPEGBaseline8Bit: ("gdcm",),
}
_IMPLICIT_GE = "1.2.840.113619.5.2"
"""GE's private syntax: little-endian header, big-endian pixels."""
_NATIVE = ("", uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, _IMPLICIT_GE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLayout:
    """How the pixels of a file are stored.

    Attributes:
        transfer_syntax: UID; empty for a file without meta information.
        offset: Where the pixel data element begins in the file.
        rows: Rows of the stored picture.
        columns: Columns of the stored picture.
        frames: Pictures in the file.
        bits_allocated: 8, 16 or 32.
        bits_stored: Bits that belong to the pixel.
        high_bit: Place of the highest of them.
        signed: Two's complement.
        samples: 1 for grey.
        padding: (value, limit) of PixelPaddingValue and -RangeLimit, or None.
        has_lookup_table: There is a modality lookup table instead of a slope.
        tiles: Slices tiled in each stored picture (Siemens mosaic).
    """

    transfer_syntax: str
    offset: int
    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    samples: int
    padding: tuple[float, float] | None
    has_lookup_table: bool
    tiles: int = 1

    @property
    def picture_bytes(self) -> int:
        """Bytes of one uncompressed picture."""
        return self.rows * self.columns * self.bits_allocated // 8

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored pixels in the file."""
        order = ">" if self.transfer_syntax in (uid.ExplicitVRBigEndian, _IMPLICIT_GE) else "<"
        return np.dtype(f"{order}{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def stored_range(self) -> tuple[int, int]:
        """Least and greatest value that `bits_stored` can hold."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Which picture to read and how to scale it: ``value = stored * slope + intercept``."""

    path: Path
    layout: PixelLayout
    index: int
    slope: float
    intercept: float


def check_layout(layout: PixelLayout) -> None:
    """Refuse what cannot be read as a grey picture.

    Raises:
        Rejection: Colour, odd bit depths, lookup tables, unknown encodings.
    """
    if layout.samples != 1:
        raise Rejection(Reason.DERIVED, "a colour picture")
    if layout.bits_allocated not in (8, 16, 32):
        raise Rejection(Reason.UNSUPPORTED_ENCODING, f"{layout.bits_allocated} bits for each pixel")
    if not 0 < layout.bits_stored <= layout.bits_allocated or not (
        layout.bits_stored - 1 <= layout.high_bit < layout.bits_allocated
    ):
        raise Rejection(Reason.UNSUPPORTED_ENCODING, "contradictory bit depths")
    if layout.has_lookup_table:
        raise Rejection(Reason.UNSUPPORTED_ENCODING, "values behind a modality lookup table")


def count_frames(stream: BinaryIO, layout: PixelLayout) -> PixelLayout:
    """Count the frames of a multi-frame file that lost its NumberOfFrames, from the length of its pixel data.

    Args:
        stream: The file.
        layout: Its layout with ``frames=1``.

    Returns:
        The layout with the true number of frames; unchanged where it cannot be told.
    """
    stream.seek(layout.offset)
    length = _pixel_data_length(stream, layout)
    if length is None or not layout.picture_bytes:
        return layout
    if length != _UNDEFINED_LENGTH:
        return replace(layout, frames=max(1, length // layout.picture_bytes))
    try:
        offsets = parse_basic_offsets(stream)
        fragments, _ = parse_fragments(stream)
    except PARSER_FAULTS:
        return layout
    return replace(layout, frames=max(1, len(offsets) or fragments))


def read_values(pictures: Sequence[Picture], *, modality: str) -> tuple[NDArray[Any], list[str]]:
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
    if math.prod(shape) > MAX_VOXELS:
        raise Rejection(Reason.TOO_LARGE, f"the header claims {shape[2]} x {shape[1]} x {shape[0]} voxels")
    for layout in {id(picture.layout): picture.layout for picture in pictures}.values():
        check_layout(layout)
    if not all(math.isfinite(picture.slope) and math.isfinite(picture.intercept) for picture in pictures):
        raise Rejection(Reason.BAD_INTENSITY, "the rescale slope or intercept is not a finite number")
    if any(picture.slope == 0 for picture in pictures):
        raise Rejection(Reason.BAD_INTENSITY, "the rescale slope is zero")

    dtype = _result_dtype(pictures, modality)
    voxels_ZYX = np.empty(shape, dtype)
    padded = distrusted = 0
    for out, picture, stored in zip(voxels_ZYX, pictures, _stored_pictures(pictures), strict=True):
        if stored.shape != out.shape:
            raise Rejection(Reason.TRUNCATED, "a picture is smaller than its header says")
        padding = _padding_mask(stored, picture)
        _rescale(stored, picture, out)
        if modality == "CT":
            np.maximum(out, out.dtype.type(AIR_HU), out=out)
        if padding is None:
            continue
        if modality == "CT" and TISSUE_HU[0] < _scaled_padding(picture) < TISSUE_HU[1]:
            distrusted += 1
            continue
        count = int(np.count_nonzero(padding))
        if count:
            out[padding] = AIR_HU if modality == "CT" else 0
            padded += count
    return voxels_ZYX, _decisions(pictures, padded, distrusted, modality)


def _decisions(pictures: Sequence[Picture], padded: int, distrusted: int, modality: str) -> list[str]:
    lines = []
    slopes = {(picture.slope, picture.intercept) for picture in pictures}
    if len(slopes) > 1:
        lines.append(f"rescaled slice by slice ({len(slopes)} different slopes or intercepts)")
    if padded:
        lines.append(f"{padded} padding voxels set to {AIR_HU if modality == 'CT' else 0}")
    if distrusted:
        lines.append("padding value lies among tissue values: not applied")
    return lines


def _result_dtype(pictures: Sequence[Picture], modality: str) -> np.dtype:
    scalings = {(p.slope, p.intercept, p.layout.stored_range, p.layout.bits_stored) for p in pictures}
    if not all(slope.is_integer() and intercept.is_integer() for slope, intercept, _, _ in scalings):
        return np.dtype(np.float32)
    if modality == "CT":
        return np.dtype(np.int16)
    ends = [edge * slope + intercept for slope, intercept, stored_range, _ in scalings for edge in stored_range]
    for candidate in (np.int16, np.uint16):
        limits = np.iinfo(candidate)
        if limits.min <= min(ends) and max(ends) <= limits.max:
            return np.dtype(candidate)
    return np.dtype(np.float32)


def _rescale(stored: NDArray[Any], picture: Picture, out: NDArray[Any]) -> None:
    if out.dtype == np.float32:
        np.multiply(stored, np.float32(picture.slope), out=out, casting="unsafe")
        out += np.float32(picture.intercept)
        return
    limits = np.iinfo(out.dtype)
    slope, intercept = int(picture.slope), int(picture.intercept)
    low, high = picture.layout.stored_range
    if slope != 1:
        out[...] = np.clip(stored.astype(np.int64) * slope + intercept, limits.min, limits.max)
        return
    kept = max(low, limits.min - intercept), min(high, limits.max - intercept)
    if kept[0] > kept[1]:
        raise Rejection(Reason.BAD_INTENSITY, "the rescale intercept moves every value out of range")
    # What is kept fits after the intercept is added, so that integers may wrap around before it is.
    out[...] = stored if kept == (low, high) else np.clip(stored, *kept)
    if intercept:
        out += np.array(intercept).astype(out.dtype)


def _padding_mask(stored: NDArray[Any], picture: Picture) -> NDArray[np.bool_] | None:
    if picture.layout.padding is None:
        return None
    low, high = sorted(_wrapped(value, picture.layout) for value in picture.layout.padding)
    return (stored >= low) & (stored <= high) if low != high else stored == low


def _scaled_padding(picture: Picture) -> float:
    assert picture.layout.padding is not None
    return _wrapped(picture.layout.padding[0], picture.layout) * picture.slope + picture.intercept


def _wrapped(value: float, layout: PixelLayout) -> float:
    """A padding value as the stored pixels show it: writers confuse its sign (63536 for -2000 and the reverse)."""
    low, high = layout.stored_range
    whole = 1 << layout.bits_allocated
    if value > high and value - whole >= low:
        return value - whole
    if value < low and value + whole <= high:
        return value + whole
    return value


def _stored_pictures(pictures: Sequence[Picture]) -> Iterator[NDArray[Any]]:
    """Yield the stored pixels of each picture; the array may be reused for the next one."""
    reader: Callable[[int], NDArray[Any]] | None = None
    path: Path | None = None
    scratch: NDArray[Any] | None = None
    for picture in pictures:
        layout = picture.layout
        if layout.transfer_syntax in _NATIVE and layout.tiles == 1:
            if scratch is None or scratch.dtype != layout.dtype or scratch.shape != (layout.rows, layout.columns):
                scratch = np.empty((layout.rows, layout.columns), layout.dtype)
            _read_native(picture.path, layout, picture.index, scratch)
            yield _clean_bits(scratch, layout)
            continue
        if reader is None or path != picture.path:
            reader, path = _open_whole(picture.path, layout), picture.path
        yield reader(picture.index)


def _open_whole(path: Path, layout: PixelLayout) -> Callable[[int], NDArray[Any]]:
    if layout.transfer_syntax in _NATIVE:
        whole = np.empty((layout.rows, layout.columns), layout.dtype)
        _read_native(path, layout, 0, whole)
        pictures = whole[None]
    else:
        pictures = _decode(path, layout)
    pictures = _clean_bits(pictures, layout)
    stack = cut_tiles(pictures[0], layout.tiles) if layout.tiles > 1 else pictures
    return lambda index: stack[index]


def _read_native(path: Path, layout: PixelLayout, index: int, out: NDArray[Any]) -> None:
    with path.open("rb") as stream:
        stream.seek(layout.offset)
        length = _pixel_data_length(stream, layout)
        if length is None:
            raise Rejection(Reason.TRUNCATED, "a file has no pixels")
        if length == _UNDEFINED_LENGTH:
            raise Rejection(Reason.UNSUPPORTED_ENCODING, "compressed pixels in a file that says it is uncompressed")
        if length < (index + 1) * layout.picture_bytes:
            raise Rejection(Reason.TRUNCATED, "a file has fewer pixels than its header says")
        stream.seek(index * layout.picture_bytes, 1)
        if stream.readinto(out.data.cast("B")) != layout.picture_bytes:  # type: ignore[attr-defined]
            raise Rejection(Reason.TRUNCATED, "a file ends before its last pixel")


def _pixel_data_length(stream: BinaryIO, layout: PixelLayout) -> int | None:
    """Read the head of the pixel data element; None where the stream does not stand before one."""
    order = "big" if layout.transfer_syntax == uid.ExplicitVRBigEndian else "little"
    head = stream.read(8)
    if len(head) < 8:
        return None
    group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
    if (group << 16 | element) != _PIXEL_DATA:
        return None
    if head[4:6] in _LONG_VALUE_REPRESENTATIONS:
        return int.from_bytes(stream.read(4), order)  # type: ignore[arg-type]
    return int.from_bytes(head[4:], order)  # type: ignore[arg-type]


def _decode(path: Path, layout: PixelLayout) -> NDArray[Any]:
    """Decode compressed pixels, shape (frames, rows, columns)."""
    try:
        dataset = dcmread(path, force=True)
        dataset.NumberOfFrames = layout.frames
    except PARSER_FAULTS as error:
        raise Rejection(Reason.UNREADABLE, "a file cannot be parsed to its end") from error
    if "PixelData" not in dataset:
        raise Rejection(Reason.TRUNCATED, "a file has no pixels")
    if layout.transfer_syntax == uid.DeflatedExplicitVRLittleEndian:
        return _from_bytes(dataset.PixelData, layout)
    fault: Exception | None = None
    for plugin in _DECODERS.get(layout.transfer_syntax, ()):
        try:
            decoded = pixel_array(dataset, raw=True, decoding_plugin=plugin)
            return decoded.reshape(layout.frames, layout.rows, layout.columns)
        except (RuntimeError, *PARSER_FAULTS) as error:
            fault = error
    decoded_by_gdcm = _decode_with_gdcm(path, layout)
    if decoded_by_gdcm is not None:
        return decoded_by_gdcm
    if fault is None:
        raise Rejection(Reason.UNSUPPORTED_ENCODING, "a pixel encoding that no decoder knows")
    raise Rejection(Reason.TRUNCATED, "the compressed pixels are damaged or cut short") from fault


def _decode_with_gdcm(path: Path, layout: PixelLayout) -> NDArray[Any] | None:
    """Let GDCM read the whole file, for syntaxes that pydicom does not know; None where GDCM cannot either."""
    import gdcm  # slow to load, and needed by rare files only

    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        return None
    image = reader.GetImage()
    expected = layout.frames * layout.picture_bytes
    if image.GetBufferLength() != expected:
        return None
    content = image.GetBuffer().encode("utf-8", errors="surrogateescape")
    native = replace(layout, transfer_syntax=uid.ExplicitVRLittleEndian)
    return _from_bytes(content, native) if len(content) == expected else None


def _from_bytes(content: bytes, layout: PixelLayout) -> NDArray[Any]:
    wanted = layout.frames * layout.picture_bytes
    if len(content) < wanted:
        raise Rejection(Reason.TRUNCATED, "a file has fewer pixels than its header says")
    return np.frombuffer(content[:wanted], layout.dtype).reshape(layout.frames, layout.rows, layout.columns)


def _clean_bits(stored: NDArray[Any], layout: PixelLayout) -> NDArray[Any]:
    """Native byte order, and only the bits that belong to the pixel, with their sign."""
    if not stored.dtype.isnative:
        stored = stored.astype(stored.dtype.newbyteorder("="))
    if layout.bits_stored == layout.bits_allocated:
        return stored
    integers = stored.astype(np.int64) if stored.dtype.kind == "f" else stored
    shift = layout.high_bit + 1 - layout.bits_stored
    if not layout.signed:
        return (integers >> shift) & integers.dtype.type((1 << layout.bits_stored) - 1)
    to_top = layout.bits_allocated - 1 - layout.high_bit
    return (integers << to_top) >> (layout.bits_allocated - layout.bits_stored)
