"""Files that cost far more than they are, made when a test needs them; as a program, what reading them costs."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from harmonize.labels import LABELS

CT = "1.2.840.10008.5.1.4.1.1.2"
MIB = 1 << 20


def ct_series(
    folder: Path, slices: int, syntax: str = ExplicitVRLittleEndian, *, pixels=None, encapsulated=b"", **more
):
    """Write the files of a small CT."""
    pixels = np.arange(30, dtype=np.int16).reshape(5, 6) if pixels is None else pixels
    for k in range(slices):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        values = {
            "SOPClassUID": CT,
            "SOPInstanceUID": f"1.2.{k + 1}",
            "SeriesInstanceUID": "1.2.3",
            "Modality": "CT",
            "ImagePositionPatient": [0, 0, k],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [1, 1],
            "Rows": pixels.shape[0],
            "Columns": pixels.shape[1],
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
            "PixelData": encapsulate([encapsulated]) if encapsulated else pixels.tobytes(),
        }
        for name, value in (values | more).items():
            setattr(dataset, name, value)
        dataset["PixelData"].VR = "OB" if encapsulated else "OW"
        dataset["PixelData"].is_undefined_length = bool(encapsulated)
        dataset.save_as(folder / f"{k}.dcm", little_endian=True, implicit_vr=False, enforce_file_format=True)


def in_fragments(folder: Path, fragments: list[bytes], *, defined: bool = False) -> None:
    """Give the files of a compressed series these fragments of a picture, in an element of undefined length or not."""
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(part)) + part for part in (b"", *fragments))
    items += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    head = struct.pack("<HH2s", 0x7FE0, 0x10, b"OB")
    for path in folder.iterdir():
        before = path.read_bytes().partition(head)[0]
        path.write_bytes(before + head + struct.pack("<HI", 0, len(items) if defined else 0xFFFFFFFF) + items)


def part10(content: bytes, *, explicit: bool = True, little_endian: bool = True) -> bytes:
    """A DICOM file of a CT with these elements."""
    syntax = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    syntax = syntax if little_endian else ExplicitVRBigEndian
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    order = "<" if little_endian else ">"
    value = CT.encode() + b"\0" * (len(CT) % 2)
    head = (
        struct.pack(f"{order}HH2sH", 8, 0x16, b"UI", len(value))
        if explicit
        else struct.pack("<HHI", 8, 0x16, len(value))
    )
    return bytes(128) + b"DICM" + meta + head + value + content


def nested(depth: int, *, explicit: bool, little_endian: bool) -> bytes:
    """Sequences of undefined length, each in an item of the one before."""
    order = "<" if little_endian else ">"
    open_ = struct.pack(f"{order}HH2sHI", 0x40, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    if not explicit:
        open_ = struct.pack("<HHI", 0x40, 0xA730, 0xFFFFFFFF)
    item, item_end, end = (
        struct.pack(f"{order}HHI", 0xFFFE, element, length)
        for element, length in ((0xE000, 0xFFFFFFFF), (0xE00D, 0), (0xE0DD, 0))
    )
    return (open_ + item) * depth + (item_end + end) * depth


def deflated(head: bytes, zeros_mib: int, *, wbits: int = -zlib.MAX_WBITS) -> bytes:
    """`head` and then so many MiB of zeros: one compressed MiB, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    raw = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = raw.compress(bytes(MIB)) + raw.flush(zlib.Z_FULL_FLUSH)
    return start + block * zeros_mib + b"\x03\0"


def deflated_part10(head: bytes, zeros_mib: int) -> bytes:
    """A deflated DICOM file of these elements and so many MiB of zeros."""
    uid = DeflatedExplicitVRLittleEndian.encode()
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return bytes(128) + b"DICM" + meta + deflated(head, zeros_mib)


def gzipped(head: bytes, zeros_mib: int) -> bytes:
    """A gzip file of `head` and so many MiB of zeros, without a checksum that anybody gets to."""
    return deflated(head, zeros_mib, wbits=zlib.MAX_WBITS | 16) + bytes(8)


def nifti_header(shape: tuple[int, ...], dtype: type = np.uint8) -> bytes:
    """The 352 bytes before the voxels."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header.set_qform(np.eye(4), 1)
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4)


def nifti(path: Path, shape: tuple[int, ...], voxel: int = 1) -> Path:
    """An honest file, all of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full(shape, voxel, np.uint8), np.eye(4)), path)
    return path


def empty_files(root: Path, source: str, count: int) -> None:
    """A raw folder of a source whose scans are `count` files without a byte."""
    names = {
        "tcia": "d/{}.dcm",
        "openmind": "OpenMind/sub-1/x{}_T1w.nii.gz",
        "deeplesion": "Images_png/{:06d}_01_01/001.png",
        "rsna": "series/1.2.{}/1.dcm",
    }
    for number in range(count):
        path = root / names[source].format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if source == "deeplesion":
        lines = (f'{number:06d}_01_01_001.png,"1, 1","1, 1, 1"' for number in range(count))
        (root / "DL_info.csv").write_text("\n".join(("File_name,Slice_range,Spacing_mm_px_", *lines)))
    if source == "rsna":
        head = ",".join(("SeriesInstanceUID,PatientAge,PatientSex,Modality", *(f'"{name}"' for name in LABELS)))
        lines = (f"1.2.{number},50,Female,CTA" + ",0" * len(LABELS) for number in range(count))
        (root / "train.csv").write_text("\n".join((head, *lines)))
        (root / "train_localizers.csv").write_text("SeriesInstanceUID,SOPInstanceUID,coordinates,location\n")


def _spend(folder: Path) -> None:
    """Read bombs, and say what became of each and how much memory this process had at its peak, in kB."""
    from harmonize.corpus import read_volume
    from harmonize.dicom import find_volumes, load_volume
    from harmonize.errors import Rejection
    from harmonize.nifti import read_nifti
    from harmonize.scan import Scan
    from harmonize.sources import references
    from harmonize.sources.openmind import load
    from harmonize.sources.rsna_masks import read_mask

    plain = folder / "plain"
    plain.mkdir()
    ct_series(plain, 4)
    start, end = struct.pack("<HH2s", 8, 0x16, b"UI"), struct.pack("<HH", 0x7FE0, 0x10)
    for path in plain.iterdir():
        content = path.read_bytes()
        head = content[content.index(start) : content.index(end)]
        pixels = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 0xFFFFFFF0)
        path.write_bytes(deflated_part10(head + pixels, 1500))
    (volume,) = find_volumes(sorted(plain.iterdir()))
    print("deflated:", volume.rejection or "found")
    print("deflated:", load_volume(volume).voxels_XYZ.shape)

    long = folder / "long.dcm"
    long.write_bytes(deflated_part10(struct.pack("<HH2sHI", 9, 0x1010, b"OB", 0, 0xFFFFFFF0), 1500))
    (volume,) = find_volumes([long])
    print("deflated header:", volume.rejection.reason.value)

    tree = folder / "tree"
    image = nifti(tree / "sub-1/sub-1_T1w.nii.gz", (8, 9, 10))
    mask = image.with_name("sub-1_T1w__Data") / "fb_mask.nii.gz"
    mask.parent.mkdir()
    mask.write_bytes(gzipped(nifti_header((1000, 1000, 500)), 1500))
    (ref,) = references("openmind", tree)
    found = load(ref)
    print("mask:", "left out" if not found.masks else "used")
    vessels = Scan(voxels_XYZ=np.zeros((8, 9, 10), np.int16), affine=np.eye(4), modality="CT")
    print("vessels:", "dropped" if read_mask(mask, vessels)[0] is None else "used")
    large = folder / "large.nii.gz"
    large.write_bytes(gzipped(nifti_header((1500, 1500, 1500)), 1500))
    try:
        read_nifti(large)
    except Rejection as rejection:
        print("image:", rejection.reason.value)
    try:
        read_volume(large)
    except ValueError:
        print("corpus:", "too large")
    large.write_bytes(gzipped(nifti_header((4, 5, 6)) + bytes(120), 1500))
    try:
        read_volume(large)
    except ValueError:
        print("corpus tail:", "damaged")
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))


if __name__ == "__main__":
    _spend(Path(sys.argv[1]))
