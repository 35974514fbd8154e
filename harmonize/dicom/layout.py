"""Say how the pixels of a DICOM file are stored: their size, type, bits and sign, as far as the header tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import uid

from harmonize.dicom.elements import Elements
from harmonize.errors import Reason, Rejection

MAX_FRAMES = 20_000
"""More frames in one file than any scanner writes; a larger claim is a damaged header."""

_MANY_FRAMES = 512
"""So many pictures more are only described once the file is known to be large enough for them."""

_LEAST_HIGH_BIT = 9
"""A scanner's pixels have ten bits at least; a lower HighBit beside more BitsStored is no depth of any."""

_INFLATED = 1032
"""What deflate makes of a byte at most."""

PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA = 0x7FE00010, 0x7FE00008, 0x7FE00009

IMPLICIT_GE = "1.2.840.113619.5.2"
"""GE's private syntax: little-endian header, big-endian pixels."""

NATIVE = ("", uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, IMPLICIT_GE)
"""Syntaxes whose pixels lie in the file as they are."""

_SIGNED_ELSEWHERE = (0x00280106, 0x00280108, 0x00280107, 0x00280109, 0x00280120, 0x00280121)
"""Smallest and largest pixel value and the padding: written as SS where the pixels are signed, as US where not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLayout:
    """How the pixels of a file are stored.

    Attributes:
        transfer_syntax: UID; empty for a file without meta information.
        offset: Where the pixel data element begins in the file.
        rows: Rows of the stored picture.
        columns: Columns of the stored picture.
        frames: Pictures in the file.
        bits_allocated: 8, 16 or 32; 32 or 64 for floats.
        bits_stored: Bits that belong to the pixel.
        high_bit: Place of the highest of them.
        signed: Two's complement; None where the header does not say.
        samples: 1 for grey.
        padding: (value, limit) of PixelPaddingValue and -RangeLimit, or None.
        has_lookup_table: There is a modality lookup table instead of a slope.
        tiles: Slices tiled in each stored picture (Siemens mosaic).
        floating: IEEE floats instead of whole numbers.
        photometric: PhotometricInterpretation, or empty.
        inverted: The header wants the least value shown white.
        overlay_bits: Bits beside those of the pixel hold an overlay.
        sign_hint: ``SS`` or ``US``, how other elements that share the pixels' sign are written; empty where none is.
    """

    transfer_syntax: str
    offset: int
    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool | None
    samples: int
    padding: tuple[float, float] | None
    has_lookup_table: bool
    tiles: int = 1
    floating: bool = False
    photometric: str = ""
    inverted: bool = False
    overlay_bits: bool = False
    sign_hint: str = ""

    @property
    def picture_bytes(self) -> int:
        """Bytes of one uncompressed picture."""
        return self.rows * self.columns * self.bits_allocated // 8

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored pixels in the file; unsigned where the header does not say."""
        order = ">" if self.transfer_syntax in (uid.ExplicitVRBigEndian, IMPLICIT_GE) else "<"
        kind = "f" if self.floating else "i" if self.signed else "u"
        return np.dtype(f"{order}{kind}{self.bits_allocated // 8}")

    @property
    def pixel_tag(self) -> int:
        """Tag of the element that holds the pixels."""
        if not self.floating:
            return PIXEL_DATA
        return FLOAT_PIXEL_DATA if self.bits_allocated == 32 else DOUBLE_PIXEL_DATA

    @property
    def stored_range(self) -> tuple[float, float]:
        """Least and greatest value that `bits_stored` can hold."""
        if self.floating:
            return -math.inf, math.inf
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
    if layout.bits_allocated not in ((32, 64) if layout.floating else (8, 16, 32)):
        raise Rejection(Reason.UNSUPPORTED_ENCODING, f"{layout.bits_allocated} bits for each pixel")
    if not 0 < layout.bits_stored <= layout.bits_allocated or not (
        layout.bits_stored - 1 <= layout.high_bit < layout.bits_allocated
    ):
        raise Rejection(Reason.UNSUPPORTED_ENCODING, "contradictory bit depths")
    if layout.has_lookup_table:
        raise Rejection(Reason.UNSUPPORTED_ENCODING, "values behind a modality lookup table")


def read_layout(stream: BinaryIO, syntax: str, elements: Elements, *, tiles: int) -> tuple[PixelLayout, bool]:
    """Read how the pixels are stored; `stream` stands before them, and is left there.

    Args:
        stream: The file.
        syntax: Transfer syntax UID.
        elements: Its header.
        tiles: Slices tiled in each picture.

    Returns:
        (layout, whether the header gives the number of frames).

    Raises:
        Rejection: The size is missing, or cannot be true.
    """
    rows, columns = elements.integer(0x00280010), elements.integer(0x00280011)
    bits_allocated = elements.integer(0x00280100)
    if not rows or not columns or not bits_allocated or min(rows, columns) < 1:
        raise Rejection(Reason.MISSING_METADATA, "the header does not say how large the picture is")
    frames = elements.integer(0x00280008) or None  # of 0 frames there would be no file: it says nothing
    if frames is not None and not 1 <= frames <= MAX_FRAMES:
        raise Rejection(Reason.MISSING_METADATA, f"the header claims {frames} frames")
    offset = stream.tell()
    tag = _next_tag(stream, syntax) if bits_allocated in (32, 64) else PIXEL_DATA
    floating = tag in (FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA)
    if floating:
        bits_allocated = 32 if tag == FLOAT_PIXEL_DATA else 64
    bits_stored = bits_allocated if floating else elements.integer(0x00280101) or bits_allocated
    high_bit = None if floating else elements.integer(0x00280102)
    if high_bit is not None and bits_stored == bits_allocated and _LEAST_HIGH_BIT <= high_bit < bits_stored:
        # BitsStored repeats BitsAllocated; should the pixels use more than HighBit leaves, they are asked as ever.
        bits_stored = high_bit + 1
    photometric = elements.text(0x00280004).upper()
    representation = elements.integer(0x00280103)
    layout = PixelLayout(
        transfer_syntax=syntax,
        offset=offset,
        rows=rows,
        columns=columns,
        frames=frames or 1,
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else high_bit,
        signed=representation == 1 if representation in (0, 1) else None,
        samples=elements.integer(0x00280002) or 1,
        padding=_padding(elements, floating),
        has_lookup_table=bool(0x00283000 in elements and elements.items(0x00283000)),
        tiles=tiles,
        floating=floating,
        photometric=photometric,
        inverted=photometric == "MONOCHROME1" or (0x20500020 in elements and elements.text(0x20500020) == "INVERSE"),
        overlay_bits=0x60000100 in elements and (elements.integer(0x60000100) or 1) > 1,
        sign_hint="" if representation in (0, 1) or floating else _sign_hint(elements),
    )
    return layout, frames is not None


def check_frames(stream: BinaryIO, layout: PixelLayout) -> None:
    """Refuse a file that claims far more pictures than it can hold.

    Raises:
        Rejection: It does.
    """
    if layout.frames <= _MANY_FRAMES:
        return
    least = layout.frames * layout.picture_bytes
    if layout.transfer_syntax == uid.DeflatedExplicitVRLittleEndian:
        least //= _INFLATED
    elif layout.transfer_syntax not in NATIVE:
        least = layout.frames
    if stream.seek(0, 2) < least:
        raise Rejection(Reason.TRUNCATED, "a file has fewer pixels than its header says")


def _padding(elements: Elements, floating: bool) -> tuple[float, float] | None:
    if not floating:
        if 0x00280120 not in elements:
            return None
        value = elements.number(0x00280120)
        limit = elements.number(0x00280121, value)
    else:
        value = elements.number(0x00280122, elements.number(0x00280123))
        limit = elements.number(0x00280124, elements.number(0x00280125, value))
    return (value, limit) if math.isfinite(value) and math.isfinite(limit) else None


def _sign_hint(elements: Elements) -> str:
    kinds = {elements.representation(tag) for tag in _SIGNED_ELSEWHERE if tag in elements} & {"SS", "US"}
    return kinds.pop() if len(kinds) == 1 else ""


def _next_tag(stream: BinaryIO, syntax: str) -> int:
    """The tag that the stream stands before; 0 at its end."""
    order = "big" if syntax == uid.ExplicitVRBigEndian else "little"
    at = stream.tell()
    head = stream.read(4)
    stream.seek(at)
    return int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
