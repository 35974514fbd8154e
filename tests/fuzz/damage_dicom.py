"""Damage to DICOM: odd values under their own tags, nested sequences without end, whatever deflates to a lot."""

from __future__ import annotations

import io
import random
import struct
import zlib

import pydicom
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from fuzz.damage import NUMBERS, of_bytes

PREAMBLE = 132
TEXTS = (
    "", " ", "0", "-1", "1", "1e30", "1e-30", "nan", "inf", "4,0", "99999999999999999999", "1\\2", "1\\2\\3", "\\" * 5,
    "1\\0\\0\\0\\1\\0", "0\\0\\0\\0\\0\\0", "1.2.840.10008.1.2.4.90", "../../x", "x" * 70000, "\x00", "\xff\xfe",
    "MR", "PT", "DERIVED\\SECONDARY", "20019999", "RGB", "HU", "US",
)  # fmt: skip
META = struct.Struct("<4x4xI")
SYNTAXES = (
    uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1,
    uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2K,
    uid.MPEG2MPML, uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian,
)  # fmt: skip


def of_dicom(content: bytes, dice: random.Random) -> bytes:
    """One damage of an explicit little-endian file."""
    kind = dice.randrange(12)
    if kind < 5:
        return of_bytes(content, dice)
    if kind == 5:
        place = _after_meta(content) if dice.random() < 0.7 else len(content)
        return content[:place] + nested(dice.choice((20, 60, 520, 5000))) + content[place:]
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        for _ in range(dice.choice((1, 1, 1, 2, 4))):
            _change(dataset, dice)
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
        return stream.getvalue()
    except Exception:  # pydicom cannot write everything that can be wrong
        return of_bytes(content, dice)


def of_deflated(content: bytes, dice: random.Random) -> bytes:
    """Damage before or after it is deflated, or much more than there should be."""
    if dice.random() < 0.3:
        return of_bytes(content, dice)
    place = _after_meta(content)
    head, body = content[:place], zlib.decompress(content[place:], -zlib.MAX_WBITS)
    if dice.random() < 0.04:
        return head + _bomb(body)
    changed = of_dicom(head + body, dice)
    place = min(place, len(changed))
    return changed[:place] + _deflate(changed[place:])


def of_compressed(content: bytes, dice: random.Random) -> bytes:
    """Damage to the picture in a file that is right, a picture for another decoder, or any damage of the file."""
    kind = dice.randrange(10)
    if kind < 3:
        return of_dicom(content, dice)
    dataset = pydicom.dcmread(io.BytesIO(content))
    (picture,) = generate_frames(dataset.PixelData, number_of_frames=1)
    if kind > 3 or dice.random() < 0.3:
        picture = of_bytes(picture, dice)
    pictures = [picture] * dice.choice((1, 1, 1, 1, 2)) if picture else [b"\0\0"]
    pieces = dice.choice((1, 1, 1, min(3, len(picture) // 2 or 1)))
    dataset.PixelData = encapsulate(pictures, fragments_per_frame=pieces, has_bot=dice.random() < 0.5)
    dataset["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
    made = stream.getvalue()
    own = dataset.file_meta.TransferSyntaxUID
    # Of the same length, padded with spaces, so that no length changes.
    fitting = [syntax for syntax in SYNTAXES if len(syntax) <= len(own)]
    return made.replace(own.encode(), dice.choice(fitting).ljust(len(own)).encode()) if kind == 3 else made


def nested(depth: int) -> bytes:
    """Sequences in sequences, all of undefined length."""
    opening = struct.pack("<HH2s2xI", 0x0008, 0x1140, b"SQ", 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return opening * depth + closing * depth


def _after_meta(content: bytes) -> int:
    (length,) = META.unpack_from(content, PREAMBLE)
    return PREAMBLE + META.size + length


def _deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def _bomb(body: bytes) -> bytes:
    """The dataset, and then 1 GB of zeros that claim to be an element, in 1 MB."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = packer.compress(body + struct.pack("<HH2s2xI", 0x7FE1, 0x1010, b"OB", 1 << 30)) + packer.flush(
        zlib.Z_FULL_FLUSH
    )
    # After a full flush a block may be repeated as it is.
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * (1 << 10) + packer.flush()


def _change(dataset: Dataset, dice: random.Random) -> None:
    """Another value, VR or place for one element, at whatever level."""
    places = [(dataset.file_meta, tag) for tag in dataset.file_meta] if "file_meta" in vars(dataset) else []
    places = [(holder, element.tag) for holder, element in places] + list(_places(dataset)) * 3
    holder, tag = dice.choice(places)
    kind = dice.randrange(8)
    vr = dice.choice(("DS", "IS", "US", "UL", "LO", "SQ", "OB", "FD", "UN", "AT", "UI"))
    own = holder[tag].VR
    if kind == 0:
        del holder[tag]
    elif kind == 1:
        other, name = dice.choice(places)
        if other[name].VR != "SQ":
            holder[tag] = RawDataElement(tag, own, None, _raw(other[name].value), 0, False, True)
    else:
        kept = own if own != "SQ" and kind < 7 else vr
        value = _binary(dice) if kept in ("US", "SS", "UL", "SL", "FD", "FL", "AT", "OW", "OB") else _text(dice)
        holder[tag] = RawDataElement(tag, kept, len(value), value, 0, False, True)


def _places(dataset: Dataset):
    for element in dataset:
        yield dataset, element.tag
        if element.VR == "SQ":
            for item in element.value:
                yield from _places(item)


def _text(dice: random.Random) -> bytes:
    text = dice.choice(TEXTS).encode("latin-1")
    return text + b" " * (len(text) % 2)


def _binary(dice: random.Random) -> bytes:
    count, form = dice.choice((0, 1, 1, 1, 2, 9)), dice.choice("HHHId")
    bits = {"H": 16, "I": 32, "d": 53}[form]
    return struct.pack(f"<{count}{form}", *(dice.choice(NUMBERS) & (2**bits - 1) for _ in range(count)))


def _raw(value: object) -> bytes:
    text = value if isinstance(value, bytes) else str(value).encode("latin-1", "replace")
    return text + b" " * (len(text) % 2)
