"""Foreign volume files of every format that nibabel reads: NIfTI and its pairs, MGH, AFNI, MINC, Philips PAR/REC."""

from __future__ import annotations

import logging
import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.minc1 import MincError
from nibabel.openers import ImageOpener
from nibabel.parrec import PARRECError
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.tripwire import TripWireError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from harmonize.decisions import DecisionKind
from harmonize.errors import Reason, Rejection
from harmonize.limits import check_claim
from harmonize.nifti import NiftiVolume, read_nifti, within_float32
from harmonize.raw_tree import suffix_of

PACKED = ("", ".gz", ".bz2")
SINGLE = frozenset(f".nii{packer}" for packer in PACKED)
_PAIRS = {".img": ".hdr", ".brik": ".head", ".rec": ".par"}
PARTNERS = {voxels + packer: header for voxels, header in _PAIRS.items() for packer in PACKED}
"""Suffix of the header, which may be packed itself, by that of the voxels, where a volume is two files."""

HEADERS = frozenset(header + packer for header in _PAIRS.values() for packer in PACKED)
READ = SINGLE | PARTNERS.keys() | {".mgh", ".mgz", ".mgh.gz", ".mnc"}
"""Suffixes of what `read_volume_file` reads; the headers of pairs are read with their voxels."""

NIFTI_PAIR = ".img"
_MGH_FLAG = slice(28, 30)
"""Where an MGH header says whether it has an orientation: after seven numbers of four bytes."""

_CHECKED = (".mgz", ".gz", ".bz2")
"""Ends of suffixes of what is packed."""
_BESIDE_VOXELS, _PIECE = 1 << 20, 1 << 20
"""Bytes that headers and footers have at most, and that are read at once."""

_SCALED_BYTES = 8
_ORIENTED = "the header says no orientation: left and right are unknown"

NIBABEL_FAULTS = (
    ImageFileError, HeaderDataError, WrapStructError, zlib.error, EOFError, ValueError, TypeError, KeyError, IndexError,
    AttributeError, OverflowError, MemoryError, AssertionError, ImageDataError, MincError, PARRECError,
)  # fmt: skip
"""What nibabel is known to raise on damaged files."""


def stem_of(name: str) -> str:
    """A file name without its suffix; a packer's suffix goes too."""
    return name[: len(name) - len(suffix_of(name))]


def read_volume_file(path: Path, header: Path | None = None, *, most: int | None = None) -> NiftiVolume:
    """Read one volume with its affine.

    Args:
        path: The file, or the one with the voxels where there are two.
        header: The file with the header, where there are two.
        most: Voxels that the header may claim, where that is less than what is believed of any scan.

    Raises:
        Rejection: The file is cut, damaged, too large, of another format, not 3D, or without a usable affine.
        OSError: The disk failed.
    """
    suffix = suffix_of(path.name)
    if suffix in SINGLE:
        return read_nifti(path, most=most)
    if suffix in PARTNERS and header is None:
        raise Rejection(Reason.MISSING_FILE, f"the {PARTNERS[suffix]} of a {suffix} is not there")
    if suffix.startswith(NIFTI_PAIR) and header is not None:
        return read_nifti(path, header, most=most)
    return _read_by_nibabel(suffix, path, header, most)


def _read_by_nibabel(suffix: str, path: Path, header: Path | None, most: int | None) -> NiftiVolume:
    _check_readable(path, header)
    log = logging.getLogger("nibabel.global")
    level = log.level
    try:
        # What nibabel says about odd headers quotes them.
        log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _open(suffix, path, header)
            shape = tuple(int(count) for count in image.shape)
            if len(shape) < 3 or any(count != 1 for count in shape[3:]):
                raise Rejection(Reason.NOT_3D, f"{' x '.join(map(str, shape))} voxels are not one volume")
            if min(shape) < 1:
                raise Rejection(Reason.EMPTY, "the header claims no voxels")
            # All but MGH have scales, which nibabel applies in float64.
            each = image.get_data_dtype().itemsize if suffix.startswith(".mg") else _SCALED_BYTES
            check_claim(shape, bytes_each=each, most=most)
            stored: NDArray[Any] = np.asanyarray(image.dataobj).reshape(shape[:3])
            affine = np.asarray(image.affine, np.float64)
            _check_unpacked(suffix, path, most_bytes=stored.nbytes + _BESIDE_VOXELS)
    except (ImportError, TripWireError) as error:
        raise Rejection(Reason.UNSUPPORTED_ENCODING, f"a {suffix} file that nibabel reads with h5py only") from error
    except NIBABEL_FAULTS as error:
        raise Rejection(Reason.UNREADABLE, f"a damaged {suffix} file ({type(error).__name__})") from error
    except OSError as error:
        # nibabel's own have no errno; those of the file system have.
        if error.errno is not None:
            raise
        raise Rejection(Reason.TRUNCATED, f"a {suffix} file that is cut or damaged") from error
    finally:
        log.setLevel(level)
    if stored.dtype.kind not in "iuf" or stored.dtype.itemsize > 8:
        raise Rejection(Reason.UNSUPPORTED_ENCODING, "voxels that are no intensities")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) == 0:
        raise Rejection(Reason.BAD_GEOMETRY, "the header's affine is singular")
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    voxels, exponent, shrunk = within_float32(native)
    decisions = (DecisionKind.READ_AS(format=suffix.removeprefix(".")), *shrunk)
    return NiftiVolume(voxels_XYZ=voxels, affine=affine, decisions=decisions, exponent=exponent)


def _check_unpacked(suffix: str, path: Path, *, most_bytes: int) -> None:
    """Read a packed file on to its end, where the unpacker compares its checksum; nibabel stops at the last voxel."""
    if not suffix.endswith(_CHECKED):
        return
    with ImageOpener(os.fspath(path)) as stream:
        left = most_bytes
        while left > 0 and (piece := stream.read(min(left, _PIECE))):
            left -= len(piece)


def _open(suffix: str, path: Path, header: Path | None) -> Any:
    if suffix.startswith(".mg"):
        # nibabel invents an orientation where the header has none, and says that it was there.
        with ImageOpener(os.fspath(path)) as stream:
            flag = stream.read(_MGH_FLAG.stop)[_MGH_FLAG]
        if flag == bytes(2):
            raise Rejection(Reason.MISSING_METADATA, _ORIENTED)
        return nib.MGHImage.from_file_map({"image": FileHolder(filename=os.fspath(path))})
    if suffix == ".mnc":
        return nib.load(path)
    holders = {"image": FileHolder(filename=os.fspath(path)), "header": FileHolder(filename=os.fspath(header or path))}
    if suffix.startswith(".rec"):
        return nib.parrec.PARRECImage.from_file_map(holders)
    return nib.brikhead.AFNIImage.from_file_map(holders)


def _check_readable(*paths: Path | None) -> None:
    for path in paths:
        try:
            if path is not None and path.stat().st_size == 0:
                raise Rejection(Reason.EMPTY, "the file is empty")
        except FileNotFoundError as error:
            raise Rejection(Reason.MISSING_FILE, "the file is not there") from error
