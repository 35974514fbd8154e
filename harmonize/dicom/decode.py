"""Read the stored pixels of DICOM files: numbers as the scanner wrote them, before any rescaling.

Uncompressed pixels are read straight from the file; compressed ones are decoded by openjpeg, CharLS or
pydicom's own RLE decoder where these are as fast, and otherwise by GDCM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.encaps import generate_fragments, generate_frames, parse_basic_offsets, parse_fragments
from pydicom.filereader import read_partial
from pydicom.pixels import pixel_array
from pydicom.tag import BaseTag

from harmonize.dicom import gdcm_decoder
from harmonize.dicom.codestream import Claim, claim_of
from harmonize.dicom.elements import PARSER_FAULTS, parsing
from harmonize.dicom.layout import DOUBLE_PIXEL_DATA, FLOAT_PIXEL_DATA, NATIVE, PixelLayout
from harmonize.dicom.mosaic import cut_tiles
from harmonize.dicom.tokens import NeedsPydicom, inflated_pixels
from harmonize.errors import Reason, Rejection
from harmonize.limits import check_claim

_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_LARGER = 4
"""A compressed picture may have so many values for each pixel of the header's: colours, and no more."""

_RLE_SLACK = 1 << 20
"""Bytes that a picture packed by RLE may have beside twice its own: each becomes 64 at most."""

_JPEG, _MPEG = "1.2.840.10008.1.2.4.", range(100, 200)
"""How the syntaxes of pictures begin that say their size themselves, and the last number of those that are films."""

_DECODED: list[BaseTag | int] = [
    BaseTag(tag)
    for tag in (
        *(0x00280000 + element for element in (0x2, 0x4, 0x6, 0x8, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103)),
        *(0x7FE00000 + element for element in (0x1, 0x2, 0x8, 0x9, 0x10)),
    )
]
"""What is needed of a file to decode its pictures; of others pydicom makes half a kilobyte of eight bytes."""

_JPEG_LS = frozenset({uid.JPEGLSLossless, uid.JPEGLSNearLossless})
_JPEG_END = b"\xff\xd9"

_LONG_VALUE_REPRESENTATIONS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN")

_DECODERS: dict[str, tuple[str, ...]] = {
    uid.RLELossless: ("pydicom",),  # pylibjpeg-rle is faster, and aborts on damaged data
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


def count_frames(stream: BinaryIO, layout: PixelLayout) -> PixelLayout:
    """Count the frames of a multi-frame file that lost its NumberOfFrames, from the length of its pixel data.

    Args:
        stream: The file.
        layout: Its layout with ``frames=1``.

    Returns:
        The layout with the true number of frames; unchanged where there are no pixels.

    Raises:
        Rejection: The list of compressed frames is damaged.
    """
    stream.seek(layout.offset)
    length = _pixel_data_length(stream, layout)
    if length is None or not layout.picture_bytes:
        return layout
    if length != _UNDEFINED_LENGTH:
        return replace(layout, frames=max(1, length // layout.picture_bytes))
    with parsing("the list of compressed frames"):
        offsets = parse_basic_offsets(stream)
        fragments, _ = parse_fragments(stream)
    return replace(layout, frames=max(1, len(offsets) or fragments))


def stored_pictures(pictures: Iterable[tuple[Path, PixelLayout, int]]) -> Iterator[tuple[NDArray[Any], bool]]:
    """Yield the stored pixels of each (file, layout, 0-based number in the file); the array is reused for the next.

    With them comes whether bits are in use that, as the layout says, do not belong to the pixel.

    Raises:
        Rejection: The pixels are truncated or cannot be decoded.
    """
    reader: Callable[[int], tuple[NDArray[Any], bool]] | None = None
    path: Path | None = None
    scratch: NDArray[Any] | None = None
    for file, layout, index in pictures:
        if layout.transfer_syntax in NATIVE and layout.tiles == 1:
            if scratch is None or scratch.dtype != layout.dtype or scratch.shape != (layout.rows, layout.columns):
                scratch = np.empty((layout.rows, layout.columns), layout.dtype)
            _read_native(file, layout, index, scratch)
            yield clean_bits(scratch, layout)
            continue
        if reader is None or path != file:
            reader, path = _open_whole(file, layout), file
        yield reader(index)


def _open_whole(path: Path, layout: PixelLayout) -> Callable[[int], tuple[NDArray[Any], bool]]:
    if layout.transfer_syntax in NATIVE:
        whole = np.empty((layout.rows, layout.columns), layout.dtype)
        _read_native(path, layout, 0, whole)
        pictures = whole[None]
    else:
        pictures = _decode(path, layout)
    pictures, stray = clean_bits(pictures, layout)
    stack = cut_tiles(pictures[0], layout.tiles) if layout.tiles > 1 else pictures
    return lambda index: (stack[index], stray)


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
    tag = group << 16 | element
    if tag in (FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA) and not layout.floating:
        raise Rejection(Reason.UNSUPPORTED_ENCODING, f"float pixel data of {layout.bits_allocated} bits")
    if tag != layout.pixel_tag:
        return None
    if head[4:6] in _LONG_VALUE_REPRESENTATIONS:
        return int.from_bytes(stream.read(4), order)  # type: ignore[arg-type]
    return int.from_bytes(head[4:], order)  # type: ignore[arg-type]


def _decode(path: Path, layout: PixelLayout) -> NDArray[Any]:
    """Decode compressed pixels, shape (frames, rows, columns)."""
    check_claim((layout.frames, layout.rows, layout.columns), bytes_each=layout.bits_allocated // 8)
    if layout.transfer_syntax == uid.DeflatedExplicitVRLittleEndian:
        return _from_bytes(_deflated_pixels(path, layout), layout)
    native = _native_pixels(path, layout)
    if native is not None:
        return _from_bytes(native, replace(layout, transfer_syntax=uid.ExplicitVRLittleEndian))
    _check_fragments(path, layout)
    with parsing("a file with compressed pixels"):
        with path.open("rb") as stream:
            dataset = read_partial(stream, _is_behind_pixels, force=True, specific_tags=_DECODED)
        dataset.NumberOfFrames = layout.frames
        _complete(dataset, layout)
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise Rejection(Reason.UNSUPPORTED_ENCODING, "float pixel data in a compressed file")
        if "PixelData" not in dataset:
            raise Rejection(Reason.TRUNCATED, "a file has no pixels")
        _check_pictures(dataset, layout)
        return _decompress(dataset, layout)


def _is_behind_pixels(tag: BaseTag, *_: object) -> bool:
    return tag > _DECODED[-1]


def _check_pictures(dataset: Dataset, layout: PixelLayout) -> None:
    """Refuse pictures that say themselves that they are larger than the header says: the decoders believe them."""
    last = layout.transfer_syntax.removeprefix(_JPEG)
    says_size = last != layout.transfer_syntax and last.isdecimal() and int(last) not in _MPEG
    for picture in _encoded(dataset, layout):
        if layout.transfer_syntax == uid.RLELossless:
            if len(picture) > 2 * layout.picture_bytes + _RLE_SLACK:
                raise Rejection(Reason.TOO_LARGE, "a picture packed by RLE that is far larger than its pixels")
            continue
        claim = claim_of(picture)
        if claim is not None and math.prod(claim.shape) > _LARGER * layout.rows * layout.columns:
            raise Rejection(Reason.TOO_LARGE, f"a compressed picture of {' x '.join(map(str, claim.shape))} values")
        is_cut = says_size if claim is None else not _fits(claim, layout)
        # Behind the end of a JPEG-LS picture CharLS may look for more in two milliards of zeros.
        if is_cut or (layout.transfer_syntax in _JPEG_LS and not picture.rstrip(b"\0").endswith(_JPEG_END)):
            raise Rejection(Reason.TRUNCATED, "the compressed pixels are damaged or cut short")


def _fits(claim: Claim, layout: PixelLayout) -> bool:
    """Whether a picture is what the header says: decoders write more bits than they have room for."""
    shape = (layout.rows, layout.columns, layout.samples)
    return claim.shape == shape and claim.bits <= layout.bits_allocated


def _encoded(dataset: Dataset, layout: PixelLayout) -> Iterator[bytes]:
    """The compressed pictures as the decoders put them together of their fragments."""
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    extended = (offsets[0], offsets[1]) if all(offsets) else None
    try:
        yield from generate_frames(dataset.PixelData, number_of_frames=layout.frames, extended_offsets=extended)
    except PARSER_FAULTS:
        # Where these give up, GDCM takes the fragments as they come.
        try:
            yield b"".join(generate_fragments(dataset.PixelData))
        except PARSER_FAULTS:
            yield b""


def _native_pixels(path: Path, layout: PixelLayout) -> bytes | None:
    """The pixels of a file that says it is compressed and is not: some tools decompress and keep the syntax."""
    if layout.transfer_syntax not in _DECODERS:
        return None
    wanted = layout.frames * layout.picture_bytes
    with path.open("rb") as stream:
        stream.seek(layout.offset)
        if _pixel_data_length(stream, layout) not in (wanted, wanted + wanted % 2):
            return None
        content = stream.read(wanted)
    return None if content[:4] == _ITEM else content


def _deflated_pixels(path: Path, layout: PixelLayout) -> bytes:
    """The pixels of a deflated file, inflated as far as the header's claim goes."""
    try:
        with path.open("rb") as stream:
            content = inflated_pixels(stream, layout.frames * layout.picture_bytes)
    except NeedsPydicom as error:
        raise Rejection(Reason.UNSUPPORTED_ENCODING, "a deflated file with an odd header") from error
    if content is None:
        raise Rejection(Reason.TRUNCATED, "a file has no pixels")
    return content


def _complete(dataset: Dataset, layout: PixelLayout) -> None:
    """Give a dataset what the decoders insist on, where the file lacks it."""
    found = {
        "SamplesPerPixel": layout.samples,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsStored": layout.bits_stored,
        "HighBit": layout.high_bit,
        "PixelRepresentation": int(layout.signed or False),
    }
    for keyword, value in found.items():
        if dataset.get(keyword) in (None, ""):
            setattr(dataset, keyword, value)


def _decompress(dataset: Dataset, layout: PixelLayout) -> NDArray[Any]:
    fault: Exception | None = None
    for plugin in _DECODERS.get(layout.transfer_syntax, ()):
        try:
            decoded = pixel_array(dataset, raw=True, decoding_plugin=plugin)
            decoded = decoded.reshape(layout.frames, layout.rows, layout.columns)
            return decoded.view(layout.dtype) if decoded.dtype.itemsize == layout.dtype.itemsize else decoded
        except (RuntimeError, *PARSER_FAULTS) as error:
            fault = error
    content = gdcm_decoder.decode(_encoded(dataset, layout), layout)
    if content is not None:
        return _from_bytes(content, replace(layout, transfer_syntax=uid.ExplicitVRLittleEndian))
    if fault is None:
        raise Rejection(Reason.UNSUPPORTED_ENCODING, "a pixel encoding that no decoder knows")
    raise Rejection(Reason.TRUNCATED, "the compressed pixels are damaged or cut short") from fault


def _check_fragments(path: Path, layout: PixelLayout) -> None:
    """Refuse compressed pixels that are cut short: some decoders fill the rest of the picture up and say nothing."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(layout.offset)
        length = _pixel_data_length(stream, layout)
        if length is None:
            raise Rejection(Reason.TRUNCATED, "a file has no pixels")
        if length != _UNDEFINED_LENGTH:
            return
        while (at := stream.tell()) < size:
            head = stream.read(8)
            if head[:4] == _SEQUENCE_END:
                return
            fragment = int.from_bytes(head[4:], "little")
            if head[:4] != _ITEM or at + 8 + fragment > size:
                raise Rejection(Reason.TRUNCATED, "the compressed pixels are damaged or cut short")
            stream.seek(at + 8 + fragment)


def _from_bytes(content: bytes, layout: PixelLayout) -> NDArray[Any]:
    wanted = layout.frames * layout.picture_bytes
    if len(content) < wanted:
        raise Rejection(Reason.TRUNCATED, "a file has fewer pixels than its header says")
    return np.frombuffer(content[:wanted], layout.dtype).reshape(layout.frames, layout.rows, layout.columns)


def clean_bits(stored: NDArray[Any], layout: PixelLayout) -> tuple[NDArray[Any], bool]:
    """Native byte order, and only the bits that belong to the pixel, with their sign; and whether others are in use.

    The bits above a negative number may repeat its sign or be zero.
    """
    if not stored.dtype.isnative:
        stored = stored.astype(stored.dtype.newbyteorder("="))
    if layout.bits_stored == layout.bits_allocated:
        return stored, False
    integers = stored.astype(np.int64) if stored.dtype.kind == "f" else stored
    shift = layout.high_bit + 1 - layout.bits_stored
    low, high = layout.stored_range
    if not shift:
        least, most = int(integers.min()) if layout.signed else 0, int(integers.max())
        if low <= least and most <= high:
            return integers, False
    if not layout.signed:
        mask = integers.dtype.type((1 << layout.bits_stored) - 1)
        stray = bool((integers & ~(mask << shift)).any()) if shift else True
        return (integers >> shift) & mask, stray
    stray = not shift and (least < low or most >> layout.bits_stored != 0)
    to_top = layout.bits_allocated - 1 - layout.high_bit
    return (integers << to_top) >> (layout.bits_allocated - layout.bits_stored), stray
