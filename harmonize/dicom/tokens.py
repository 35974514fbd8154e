"""Scan the bytes of a little-endian DICOM file for its elements, without making sense of them.

pydicom does the same and more, at about 0.6 ms a file; a folder of a hundred thousand files is opened in a quarter of
that by this scan. Whatever is out of the ordinary raises `NeedsPydicom`, and is left to pydicom.
"""

from __future__ import annotations

import struct
import zlib
from itertools import repeat
from typing import BinaryIO

from pydicom import uid

from harmonize.errors import Reason, Rejection
from harmonize.limits import MAX_DEPTH, MAX_ELEMENTS, MAX_HEADER_BYTES, MAX_TAGS

PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})

_Value = bytes | list["RawElements"]
RawElements = dict[int, tuple[str, _Value]]
"""Value representation (empty if implicit) and bytes by tag; a sequence of undefined length comes as its items."""

_FIRST_READ = 1 << 16
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"})
_SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
    | {b"ST", b"TM", b"UI", b"UL", b"US"}
)
_UNUSUAL_SYNTAXES = frozenset({"", uid.ExplicitVRBigEndian})
_TAG = struct.Struct("<HH")
_PIXELS, _PIXELS_HEAD = (0x7FE0, 0x0010), 12
_U2, _U4 = struct.Struct("<H"), struct.Struct("<I")


class NeedsPydicom(Exception):
    """The bytes are not those of an ordinary file; they may still be DICOM."""


class OddDeflatedError(NeedsPydicom):
    """As that, of what a deflated file holds.

    Attributes:
        content: The beginning of it, as far as a header may reach.
    """

    def __init__(self, message: str, content: bytes) -> None:
        super().__init__(message)
        self.content = content


class _MoreError(Exception):
    """The bytes end inside an element."""


class Inflated:
    """The inflated bytes of a deflated stream, no more than are asked for.

    Args:
        packed: The first deflated bytes.
        stream: The others.
    """

    def __init__(self, packed: bytes, stream: BinaryIO) -> None:
        self._packed, self._stream = packed, stream
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def read(self, size: int) -> bytes:
        """Read so many bytes; fewer at the end.

        Raises:
            Rejection: The deflated bytes are damaged.
        """
        parts = []
        while size > 0 and not self._inflater.eof:
            packed = self._packed or self._stream.read(_FIRST_READ)
            try:
                part = self._inflater.decompress(packed, size)
            except zlib.error as error:
                raise Rejection(Reason.UNREADABLE, "damaged deflated bytes") from error
            if not packed and not part:
                break
            self._packed = self._inflater.unconsumed_tail
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def scan_file(stream: BinaryIO) -> tuple[RawElements, RawElements, bool]:
    """Scan a file up to its pixels, where `stream` is left.

    Returns:
        (file meta information, dataset, whether the dataset has explicit value representations).

    Raises:
        NeedsPydicom: No Part 10 header, another byte order, or inconsistent.
        Rejection: The header is nested too deep or too large.
    """
    buffer = stream.read(_FIRST_READ)
    if buffer[128:132] != b"DICM":
        raise NeedsPydicom("no preamble")
    while True:
        try:
            meta, at = _scan(buffer, 132, explicit=True, only_group=0x0002)
            syntax = bytes_of(meta, 0x00020010).decode("latin-1").strip(" \0")
            if syntax in _UNUSUAL_SYNTAXES or not syntax.startswith("1.2.840.10008.1.2"):
                raise NeedsPydicom("byte order")
            if syntax == uid.DeflatedExplicitVRLittleEndian:
                dataset = _scan_deflated(Inflated(buffer[at:], stream))
                stream.seek(0, 2)
                return meta, dataset, True
            explicit = syntax != uid.ImplicitVRLittleEndian
            dataset, at = _scan(buffer, at, explicit=explicit)
        except _MoreError:
            buffer += _more(buffer, stream)
            continue
        stream.seek(at)
        return meta, dataset, explicit


def _scan_deflated(stream: Inflated) -> RawElements:
    buffer = stream.read(_FIRST_READ)
    while True:
        try:
            return _scan(buffer, 0, explicit=True)[0]
        except _MoreError:
            buffer += _more(buffer, stream)
        except NeedsPydicom as error:
            content = buffer + stream.read(MAX_HEADER_BYTES - len(buffer))
            raise OddDeflatedError(str(error), content) from error


def inflated_pixels(stream: BinaryIO, size: int) -> bytes | None:
    """The first `size` bytes of a deflated file's pixels, fewer where it ends before; None where it has none.

    Raises:
        NeedsPydicom: The file is no ordinary deflated one.
        Rejection: The deflated bytes are damaged, or the header is too large.
    """
    buffer = stream.read(_FIRST_READ)
    while True:
        try:
            _, at = _scan(buffer, 132, explicit=True, only_group=0x0002)
            break
        except _MoreError:
            buffer += _more(buffer, stream)
    content = Inflated(buffer[at:], stream)
    head = content.read(_FIRST_READ)
    while True:
        try:
            _, at = _scan(head, 0, explicit=True)
            break
        except _MoreError:
            head += _more(head, content)
    if at + _PIXELS_HEAD > len(head):
        head += content.read(_PIXELS_HEAD)
    element = head[at : at + _PIXELS_HEAD]
    if len(element) < _PIXELS_HEAD or _TAG.unpack(element[:4]) != _PIXELS or element[4:6] not in _LONG:
        return None
    size = min(size, _U4.unpack_from(element, 8)[0])
    there = head[at + _PIXELS_HEAD :][:size]
    return there + content.read(size - len(there))


def _more(buffer: bytes, stream: BinaryIO | Inflated) -> bytes:
    """As many bytes as were read already."""
    if len(buffer) >= MAX_HEADER_BYTES:
        raise Rejection(Reason.TOO_LARGE, f"a DICOM header of more than {MAX_HEADER_BYTES >> 20} MiB")
    more = stream.read(len(buffer))
    if not more:
        raise NeedsPydicom("the file ends inside an element")
    return more


def scan_items(value: bytes, *, explicit: bool) -> list[RawElements]:
    """Scan the value of a sequence of defined length.

    Raises:
        NeedsPydicom: The value does not hold whole items.
        Rejection: They are nested too deep, or too many.
    """
    try:
        return _scan_items(value, 0, len(value), explicit, [MAX_DEPTH, MAX_ELEMENTS])[0]
    except _MoreError:
        raise NeedsPydicom("the sequence ends inside an element") from None


def bytes_of(scanned: RawElements, tag: int) -> bytes:
    """The bytes of an element; none where it is absent or a sequence."""
    value = scanned.get(tag, ("", b""))[1]
    return value if isinstance(value, bytes) else b""


def _scan(
    buffer: bytes,
    at: int,
    *,
    explicit: bool,
    only_group: int | None = None,
    nested: bool = False,
    end: int | None = None,
    left: list[int] | None = None,
) -> tuple[RawElements, int]:
    """Scan elements from `at` on, to the pixels, the end of the group, of the item, or of the bytes.

    `left` holds how many levels deeper and how many elements more a file may go.
    """
    found: RawElements = {}
    limit = len(buffer) if end is None else end
    for _ in repeat(None, MAX_TAGS):
        if at >= limit:
            break
        if at + 8 > limit:
            raise _MoreError
        group, element = _TAG.unpack_from(buffer, at)
        tag = group << 16 | element
        if tag in PIXEL_TAGS or (only_group is not None and group != only_group):
            return found, at
        if nested and tag == _ITEM_END:
            return found, at + 8
        if group == 0xFFFE:
            raise NeedsPydicom("a stray delimiter")
        kind = buffer[at + 4 : at + 6]
        if explicit:
            if kind in _SHORT:
                start, length = at + 8, _U2.unpack_from(buffer, at + 6)[0]
            elif kind in _LONG:
                if at + 12 > limit:
                    raise _MoreError
                start, length = at + 12, _U4.unpack_from(buffer, at + 8)[0]
            else:
                raise NeedsPydicom("an unknown value representation")
        elif kind in _SHORT or kind in _LONG:
            raise NeedsPydicom("explicit value representations in a file that says implicit")
        else:
            start, length, kind = at + 8, _U4.unpack_from(buffer, at + 4)[0], b""
        if length == _UNDEFINED:
            if kind not in (b"SQ", b""):
                raise NeedsPydicom("undefined length")
            left = [MAX_DEPTH, MAX_ELEMENTS] if left is None else left
            items, at = _scan_items(buffer, start, None, explicit, left)
            found[tag] = kind.decode(), items
            continue
        at = start + length
        if at > limit:
            raise _MoreError
        found[tag] = kind.decode(), buffer[start:at]
    else:
        raise Rejection(Reason.TOO_LARGE, f"a DICOM header of more than {MAX_TAGS} elements")
    if nested:
        raise _MoreError
    return found, at


def _scan_items(
    buffer: bytes, at: int, end: int | None, explicit: bool, left: list[int]
) -> tuple[list[RawElements], int]:
    """Scan the items of a sequence up to `end`, or to its delimiter where that is None."""
    items: list[RawElements] = []
    left[0] -= 1
    if left[0] < 0:
        raise Rejection(Reason.UNREADABLE, f"sequences nested more than {MAX_DEPTH} deep")
    while end is None or at < end:
        if at + 8 > len(buffer):
            raise _MoreError
        group, element = _TAG.unpack_from(buffer, at)
        length = _U4.unpack_from(buffer, at + 4)[0]
        at += 8
        tag = group << 16 | element
        if tag == _SEQUENCE_END and end is None:
            left[0] += 1
            return items, at
        if tag != _ITEM:
            raise NeedsPydicom("a sequence without items")
        if length == _UNDEFINED:
            item, at = _scan(buffer, at, explicit=explicit, nested=True, left=left)
        else:
            if at + length > len(buffer):
                raise _MoreError
            item, at = _scan(buffer, at, explicit=explicit, end=at + length, left=left)
        items.append(item)
        left[1] -= 1 + len(item)
        if left[1] < 0:
            raise Rejection(Reason.TOO_LARGE, f"a DICOM header of more than {MAX_ELEMENTS} elements")
    left[0] += 1
    return items, at
