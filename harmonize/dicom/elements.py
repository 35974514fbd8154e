"""Read the elements of a DICOM file up to its pixels, as plain text and numbers."""

from __future__ import annotations

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO, cast

import numpy as np
import pydicom.config
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from harmonize.dicom.tokens import PIXEL_TAGS, NeedsPydicom, OddDeflatedError, RawElements, scan_file, scan_items
from harmonize.errors import Reason, Rejection
from harmonize.limits import MAX_DEPTH, MAX_HEADER_BYTES, MAX_ODD_READS, MAX_VALUE_BYTES

PARSER_FAULTS = (
    InvalidDicomError, BytesLengthException, EOFError, struct.error, zlib.error, ValueError, TypeError, KeyError,
    IndexError, AttributeError, NotImplementedError, OverflowError, RecursionError, MemoryError, AssertionError,
)  # fmt: skip
"""What pydicom is known to raise on damaged files."""

# What pydicom says about odd values quotes them, and a header's values are patient text; faults become rejections.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

_BINARY = {"US": "u2", "SS": "i2", "UL": "u4", "SL": "i4", "FL": "f4", "FD": "f8"}
_PREAMBLE = 128
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_GROUP_LENGTHS = (b"UL\x04\x00", b"\x04\x00\x00\x00", b"UL\x00\x04", b"\x00\x00\x00\x04")
"""What follows the tag of an element (gggg,0000), with and without its value representation, in either byte order."""

_CACHED_VALUES = 4096
"""The files of a series repeat most of their values, so that parsing each different one once is enough."""

_CACHED_BYTES = 2048
"""Of one value; a longer one is parsed each time, because so many of them could fill the memory."""


_ABSENT: tuple[str, bytes] = ("", b"")


class Elements:
    """The elements of one DICOM dataset (or sequence item) by tag, e.g. ``0x00280010`` for Rows.

    Absent elements come back empty (``""``, ``()``, NaN, None); what cannot be parsed as a number comes back as NaN,
    so that the geometry checks reject it.

    Args:
        scanned: Value representation and bytes by tag.
        explicit: Nested sequences have explicit value representations.
        little_endian: Byte order of binary values.

    Example:
        >>> elements = Elements({0x00280030: ("DS", b"0.5\\\\0.75")})
        >>> elements.numbers(0x00280030)
        (0.5, 0.75)
    """

    __slots__ = ("_explicit", "_little_endian", "_scanned")

    def __init__(self, scanned: RawElements, *, explicit: bool = True, little_endian: bool = True) -> None:
        self._scanned, self._explicit, self._little_endian = scanned, explicit, little_endian

    def __contains__(self, tag: int) -> bool:
        return tag in self._scanned

    def present(self, tags: Set[int]) -> Set[int]:
        """Those of `tags` that are there."""
        return self._scanned.keys() & tags

    def text(self, tag: int) -> str:
        """The whole value as text."""
        value = self._scanned.get(tag, _ABSENT)[1]
        if not value or not isinstance(value, bytes):
            return ""
        return _joined(value) if len(value) <= _CACHED_BYTES else _unkept(_joined, value)

    def texts(self, tag: int) -> tuple[str, ...]:
        """The value's parts as text, stripped of padding.

        Raises:
            Rejection: It is longer than any text; `text` and `numbers` raise that too.
        """
        value = self._scanned.get(tag, _ABSENT)[1]
        if not value or not isinstance(value, bytes):
            return ()
        return _parts(value) if len(value) <= _CACHED_BYTES else _unkept(_parts, value)

    def numbers(self, tag: int) -> tuple[float, ...]:
        """The value's parts as numbers; NaN for a part that is none."""
        kind, value = self._scanned.get(tag, _ABSENT)
        if not value or not isinstance(value, bytes):
            return ()
        if kind in ("", "UN"):
            kind = _representation(tag)
        if kind in _BINARY:
            known = _BINARY[kind], self._little_endian
            return (
                _binary_numbers(value, *known)
                if len(value) <= _CACHED_BYTES
                else _unkept(_binary_numbers, value, *known)
            )
        return _decimal_numbers(value) if len(value) <= _CACHED_BYTES else _unkept(_decimal_numbers, value)

    def number(self, tag: int, default: float = math.nan) -> float:
        """The first number of the value, or `default` where the element is absent or empty."""
        if tag not in self._scanned:
            return default
        numbers = self.numbers(tag)
        return numbers[0] if numbers else default

    def integer(self, tag: int) -> int | None:
        """The first number as an integer; None where it is absent or no integer."""
        if tag not in self._scanned:
            return None
        value = self.number(tag)
        return int(value) if math.isfinite(value) and value == int(value) else None

    def items(self, tag: int) -> list[Elements]:
        """The items of a sequence.

        Raises:
            Rejection: The value is no sequence.
        """
        if tag not in self._scanned:
            return []
        value = self._scanned[tag][1]
        found = value if isinstance(value, list) else _parse_items(value, self._explicit, self._little_endian)
        return [Elements(item, explicit=self._explicit, little_endian=self._little_endian) for item in found]

    def representation(self, tag: int) -> str:
        """The value representation that the file gives; empty where it gives none, or has no such element."""
        return self._scanned.get(tag, _ABSENT)[0]

    def raw(self, tag: int) -> bytes:
        """The value's bytes; empty where it is absent."""
        value = self._scanned.get(tag, ("", b""))[1]
        return value if isinstance(value, bytes) else b""


def looks_like_dicom(stream: BinaryIO) -> bool:
    """Whether the first bytes are those of a DICOM file, with or without the Part 10 preamble; rewinds the stream."""
    stream.seek(0)
    head = stream.read(_PREAMBLE + 4)
    stream.seek(0)
    if head[_PREAMBLE:] == b"DICM":
        return True
    if len(head) <= 8 or head[:2] not in _FIRST_GROUPS:
        return False
    # The length of the group may come first; two small numbers alone are many a file's beginning.
    return head[2:4] != b"\0\0" or (head[4:8] in _GROUP_LENGTHS and head[12:14] == head[:2] and head[14:16] != b"\0\0")


def read_elements(stream: BinaryIO) -> tuple[Elements, Elements]:
    """Read a file's meta information and its dataset up to the pixels, where `stream` is left.

    Returns:
        (meta, dataset).

    Raises:
        Rejection: The bytes are no DICOM.
    """
    if not looks_like_dicom(stream):
        raise Rejection(Reason.UNREADABLE, "not a DICOM file")
    try:
        meta, scanned, explicit = scan_file(stream)
    except OddDeflatedError as odd:
        return _read_deflated_by_pydicom(odd.content)
    except NeedsPydicom:
        stream.seek(0)
        return _read_by_pydicom(stream)
    if not scanned:
        raise Rejection(Reason.UNREADABLE, "a DICOM file without content")
    return Elements(meta), Elements(scanned, explicit=explicit)


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn what pydicom raises on damaged bytes into a rejection, and keep its warnings quiet (they quote file names).

    Raises:
        Rejection: `what` cannot be parsed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except OSError as error:
            # pydicom's own have no errno; those of the file system have.
            if error.errno is not None:
                raise
            raise Rejection(Reason.UNREADABLE, f"{what} cannot be parsed") from error
        except PARSER_FAULTS as error:
            raise Rejection(Reason.UNREADABLE, f"{what} cannot be parsed") from error


class _Bounded(io.RawIOBase):
    """What pydicom may read of a header: so many times and so many bytes, and never all that is left.

    It makes half a kilobyte of eight bytes, and inflates what is deflated at once.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._reads, self._bytes = stream, MAX_ODD_READS, MAX_HEADER_BYTES
        self.seek, self.tell = stream.seek, stream.tell  # type: ignore[method-assign]

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise Rejection(Reason.UNREADABLE, "the DICOM header cannot be parsed")
        self._reads -= 1
        content = self._stream.read(min(size, self._bytes + 1))
        self._bytes -= len(content)
        if self._reads < 0 or self._bytes < 0:
            raise Rejection(Reason.TOO_LARGE, "an odd DICOM header of more elements or bytes than are read")
        return content


def _read_deflated_by_pydicom(content: bytes) -> tuple[Elements, Elements]:
    with parsing("the DICOM header"):
        stream = _Bounded(io.BytesIO(content))
        scanned = _scanned(
            read_dataset(cast(BinaryIO, stream), False, True, stop_when=lambda tag, *_: int(tag) in PIXEL_TAGS)
        )
    if not scanned:
        raise Rejection(Reason.UNREADABLE, "a DICOM file without content")
    meta: RawElements = {0x00020010: ("UI", DeflatedExplicitVRLittleEndian.encode())}
    return Elements(meta), Elements(scanned)


def _read_by_pydicom(stream: BinaryIO) -> tuple[Elements, Elements]:
    with parsing("the DICOM header"):
        dataset = dcmread(_Bounded(stream), stop_before_pixels=True, force=True)
        meta, scanned = _scanned(getattr(dataset, "file_meta", Dataset())), _scanned(dataset)
        implicit, little_endian = dataset.original_encoding
    if not scanned:
        raise Rejection(Reason.UNREADABLE, "a DICOM file without content")
    return Elements(meta), Elements(scanned, explicit=not implicit, little_endian=little_endian is not False)


def _parse_items(value: bytes, explicit: bool, little_endian: bool) -> list[RawElements]:
    if little_endian:
        try:
            return scan_items(value, explicit=explicit)
        except NeedsPydicom:
            pass  # pydicom knows more odd encodings
    stream = cast(BinaryIO, _Bounded(io.BytesIO(value)))
    with parsing("a DICOM sequence"):
        items = read_sequence(stream, not explicit, little_endian, len(value), "iso8859")
        return [_scanned(item) for item in items]


def _scanned(dataset: Dataset, depth: int = 0) -> RawElements:
    if depth > MAX_DEPTH:
        raise Rejection(Reason.UNREADABLE, f"sequences nested more than {MAX_DEPTH} deep")
    found: RawElements = {}
    for tag in dataset.keys():  # noqa: SIM118 - iterating the dataset itself converts every value
        item = dataset.get_item(tag)
        if isinstance(item, RawDataElement):
            found[int(tag)] = str(item.VR or ""), item.value if isinstance(item.value, bytes) else b""
        elif item is not None and item.VR == "SQ":
            found[int(tag)] = "SQ", [_scanned(nested, depth + 1) for nested in item.value]
        elif item is not None:
            values = item.value if isinstance(item.value, (list, tuple)) or item.VM > 1 else [item.value]
            found[int(tag)] = (
                "LO",
                "\\".join("" if part is None else str(part) for part in values).encode("latin-1", "replace"),
            )
    return found


def _unkept(parse: Any, value: bytes, *how: object) -> Any:
    """What one of the functions below makes of a value that is too long to be kept."""
    if len(value) > MAX_VALUE_BYTES:
        raise Rejection(Reason.TOO_LARGE, f"{len(value)} bytes where a text or numbers are expected")
    return parse.__wrapped__(value, *how)


def _split(value: bytes) -> tuple[str, ...]:
    return tuple(part.strip(" \0") for part in value.decode("latin-1").split("\\"))


_parts = lru_cache(maxsize=_CACHED_VALUES)(_split)


@lru_cache(maxsize=_CACHED_VALUES)
def _joined(value: bytes) -> str:
    return "\\".join(_split(value))


@lru_cache(maxsize=_CACHED_VALUES)
def _decimal_numbers(value: bytes) -> tuple[float, ...]:
    return tuple(number_of(part) for part in _split(value) if part)


@lru_cache(maxsize=_CACHED_VALUES)
def _binary_numbers(value: bytes, kind: str, little_endian: bool) -> tuple[float, ...]:
    usable = len(value) // int(kind[1]) * int(kind[1])
    return tuple(np.frombuffer(value[:usable], ("<" if little_endian else ">") + kind).astype(np.float64).tolist())


@lru_cache(maxsize=_CACHED_VALUES)
def _representation(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def number_of(text: str) -> float:
    """Read a decimal string; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
