"""Read the elements of a DICOM file up to its pixels, as plain text and numbers.

pydicom parses; the values are converted here from the raw bytes, because a series repeats some forty elements in
hundreds of files and pydicom's typed values cost more than the parsing itself.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from typing import BinaryIO

import numpy as np
import pydicom.config
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError

from harmonize.errors import Reason, Rejection

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


class Elements:
    """The elements of one DICOM dataset (or sequence item) by tag, e.g. ``0x00280010`` for Rows.

    Absent elements come back empty (``""``, ``()``, NaN, None); what cannot be parsed as a number comes back as NaN,
    so that the geometry checks refuse it.

    Example:
        >>> dataset = Dataset()
        >>> dataset.PixelSpacing = [0.5, 0.75]
        >>> Elements(dataset).numbers(0x00280030)
        (0.5, 0.75)
    """

    __slots__ = ("_dataset",)

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __contains__(self, tag: int) -> bool:
        return tag in self._dataset

    def text(self, tag: int) -> str:
        """The whole value as text."""
        return "\\".join(self.texts(tag))

    def texts(self, tag: int) -> tuple[str, ...]:
        """The value's parts as text, stripped of padding."""
        value = self._value(tag)
        if value is None:
            return ()
        if isinstance(value, bytes):
            return tuple(part.strip(" \0") for part in value.decode("latin-1").split("\\"))
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            return tuple(str(value).strip(" \0").split("\\"))
        return tuple(str(part).strip(" \0") for part in value)

    def numbers(self, tag: int) -> tuple[float, ...]:
        """The value's parts as numbers; NaN for a part that is none."""
        element = self._item(tag)
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
            kind = _BINARY.get(_representation(element))
            if kind is not None:
                width = int(kind[1])
                usable = len(element.value) // width * width
                order = "<" if element.is_little_endian else ">"
                return tuple(np.frombuffer(element.value[:usable], order + kind).tolist())
        return tuple(_number(part) for part in self.texts(tag) if part)

    def number(self, tag: int, default: float = math.nan) -> float:
        """The first number of the value, or `default` where the element is absent or empty."""
        return next(iter(self.numbers(tag)), default)

    def integer(self, tag: int) -> int | None:
        """The first number as an integer; None where it is absent or no integer."""
        value = self.number(tag)
        return int(value) if math.isfinite(value) and value == int(value) else None

    def items(self, tag: int) -> list[Elements]:
        """The items of a sequence."""
        if tag not in self._dataset:
            return []
        try:
            value = self._dataset[tag].value
        except PARSER_FAULTS as error:
            raise Rejection(Reason.UNREADABLE, "a DICOM sequence cannot be parsed") from error
        return (
            [Elements(item) for item in value] if isinstance(value, (list, tuple)) or hasattr(value, "append") else []
        )

    def raw(self, tag: int) -> bytes:
        """The value's bytes; empty where it is absent."""
        value = self._value(tag)
        return value if isinstance(value, bytes) else b""

    def _item(self, tag: int) -> object:
        return self._dataset.get_item(tag) if tag in self._dataset else None

    def _value(self, tag: int) -> object:
        return getattr(self._item(tag), "value", None)


def looks_like_dicom(stream: BinaryIO) -> bool:
    """Whether the first bytes are those of a DICOM file, with or without the Part 10 preamble; rewinds the stream."""
    stream.seek(0)
    head = stream.read(_PREAMBLE + 4)
    stream.seek(0)
    return head[_PREAMBLE:] == b"DICM" or (len(head) > 8 and head[:2] in _FIRST_GROUPS and head[2:4] != b"\0\0")


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(stream, stop_before_pixels=True, force=True)
        if not len(dataset):
            raise Rejection(Reason.UNREADABLE, "a DICOM file without content")
        return Elements(getattr(dataset, "file_meta", Dataset())), Elements(dataset)
    except PARSER_FAULTS as error:
        raise Rejection(Reason.UNREADABLE, "the DICOM header cannot be parsed") from error


def _representation(element: RawDataElement) -> str:
    if element.VR and element.VR != "UN":
        return str(element.VR)
    try:
        return dictionary_VR(element.tag)
    except KeyError:
        return "UN"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
