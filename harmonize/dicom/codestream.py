"""What a compressed picture says of its own size: JPEG, JPEG-LS and JPEG 2000."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_JPEG2000 = b"\xff\x4f\xff\x51"
_JPEG = b"\xff\xd8"
_BOXES = b"\0\0\0\x0cjP  "
_BOXED = 4096
"""A JPEG 2000 stream may lie in the boxes of its file format, which are small."""

_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers without a segment."""

_NOT_HERE = frozenset({*range(0xC0), 0xD8, 0xD9}) - {0x01}
"""No markers, and the beginning and the end of a picture."""

_SCAN = 0xDA

_SIZES = struct.Struct(">IIII")
_COMPONENTS = struct.Struct(">HB")
_FRAME = struct.Struct(">BHHB")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a picture says of itself.

    Attributes:
        shape: (rows, columns, components).
        bits: Of a value; of JPEG 2000, whose components may differ, of the first.
    """

    shape: tuple[int, int, int]
    bits: int


def claim_of(stream: bytes) -> Claim | None:
    """What a picture's stream says of its size; None where it does not tell, or is damaged before its first scan.

    Example:
        >>> claim_of(bytes.fromhex("ffd8 ffc0 000b 08 0002 0003 01 011100 ffda 0008"))
        Claim(shape=(2, 3, 1), bits=8)
    """
    if stream[:2] == _JPEG:
        return _jpeg(stream)
    start = stream.find(_JPEG2000, 0, _BOXED if stream.startswith(_BOXES) else len(_JPEG2000))
    if start < 0 or len(stream) < start + 43:
        return None
    right, lower, left, upper = _SIZES.unpack_from(stream, start + 8)
    components, depth = _COMPONENTS.unpack_from(stream, start + 40)
    return Claim((max(0, lower - upper), max(0, right - left), components), (depth & 0x7F) + 1)


def _jpeg(stream: bytes) -> Claim | None:
    """What its one frame header says; None unless all up to the first scan is whole, of which GDCM may die."""
    claim: Claim | None = None
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in _ALONE:
            at += 2
            continue
        if marker == _SCAN:
            return claim
        if marker in _NOT_HERE:
            return None
        if marker in _FRAME_HEADERS:
            if claim is not None or at + 10 > len(stream):
                return None
            bits, *shape = _FRAME.unpack_from(stream, at + 4)
            claim = Claim((shape[0], shape[1], shape[2]), bits)
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None
