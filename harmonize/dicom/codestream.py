"""The size that a compressed picture gives of itself: JPEG, JPEG-LS and JPEG 2000."""

from __future__ import annotations

import struct

_JPEG2000 = b"\xff\x4f\xff\x51"
_JPEG = b"\xff\xd8"
_BOXES = b"\0\0\0\x0cjP  "
_BOXED = 4096
"""A JPEG 2000 stream may lie in the boxes of its file format, which are small."""

_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment."""

_SIZES = struct.Struct(">IIII")
_FRAME = struct.Struct(">HHB")


def codestream_size(head: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) of a picture from the first bytes of its stream; None where they do not tell.

    Example:
        >>> codestream_size(bytes.fromhex("ffd8 ffc0 000b 08 0002 0003 01 011100"))
        (2, 3, 1)
    """
    if head[:2] == _JPEG:
        return _jpeg(head)
    start = head.find(_JPEG2000, 0, _BOXED if head.startswith(_BOXES) else len(_JPEG2000))
    if start < 0 or len(head) < start + 42:
        return None
    right, lower, left, upper = _SIZES.unpack_from(head, start + 8)
    (components,) = struct.unpack_from(">H", head, start + 40)
    return max(0, lower - upper), max(0, right - left), components


def _jpeg(head: bytes) -> tuple[int, int, int] | None:
    at = 2
    while at + 4 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAME_HEADERS:
            return _FRAME.unpack_from(head, at + 5) if at + 10 <= len(head) else None
        else:
            at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None
