"""Foreign NIfTI files: one volume with the affine that the standard prefers, or the reason why not."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Reason, Rejection
from harmonize.limits import check_claim

GZIP_MAGIC, BZIP2_MAGIC = b"\x1f\x8b", b"BZh"
OTHER_PACKERS = {b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"\x04\x22\x4d\x18": "lz4"}
NIFTI1_SIZE, NIFTI2_SIZE = 348, 540
MAGICS = {b"n+1\0": nib.Nifti1Header, b"n+2\0": nib.Nifti2Header}
PAIR_MAGICS = {b"ni1\0": nib.Nifti1Header, b"ni2\0": nib.Nifti2Header}
"""Of a header whose voxels lie in a file of their own."""

_ANALYZE = (NIFTI1_SIZE.to_bytes(4, "little"), NIFTI1_SIZE.to_bytes(4, "big"))

SAME_AFFINE_MM = 0.1
"""qform and sform agree if no corner of the volume moves by more: the quaternion alone costs a hundredth."""

MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
"""By the header's code of spatial units: metre, millimetre, micrometre."""

LAST_CODE = 5
"""NIFTI_XFORM_TEMPLATE_OTHER; 0 means that there is no such form."""

MOST_BEYOND_UNIT = 0.01
"""By how much b2 + c2 + d2 of a quaternion may exceed 1: what few digits make; more is no rotation."""

_UNIT_BITS = 7

MAX_EXPONENT = 60
"""The squares of values beyond 2^60 leave float32, as those of values below 2^-60 do."""

_WIDE = 2.0**MAX_EXPONENT


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiVolume:
    """What one file holds.

    Attributes:
        voxels_XYZ: With the header's scale applied (then float), else in the stored dtype, native byte order.
        affine: (4, 4) float64, voxel index to RAS+ mm.
        decisions: What was found and chosen.
        exponent: The file's values are 2^exponent times these; 0 unless they lie beyond float32.
        intent: The header's code of what the values mean; 0 where it says nothing, as for nearly all images.
    """

    voxels_XYZ: NDArray[Any]
    affine: NDArray[np.float64]
    decisions: tuple[Decision, ...] = ()
    exponent: int = 0
    intent: int = 0


def read_nifti(path: Path, header: Path | None = None, *, most: int | None = None) -> NiftiVolume:
    """Read a NIfTI-1 or -2 file of either byte order, plain or packed by gzip or bzip2.

    Args:
        path: The ``.nii``, or the ``.img`` of a pair.
        header: The ``.hdr`` of a pair.
        most: Voxels that the header may claim, where that is less than what is believed of any scan.

    Raises:
        Rejection: The file is cut, damaged, too large, no NIfTI, not 3D, or without a usable affine.
        OSError: The disk failed.
    """
    from isal import igzip_lib  # what a DICOM series needs nothing of

    try:
        with path.open("rb") as raw:
            if header is None:
                found, stored = _read(raw, None, most)
            else:
                with header.open("rb") as beside:
                    found, stored = _read(raw, beside, most)
    except FileNotFoundError as error:
        raise Rejection(Reason.MISSING_FILE, "the file is not there") from error
    except (gzip.BadGzipFile, zlib.error, igzip_lib.IsalError) as error:  # type: ignore[misc]
        raise Rejection(Reason.UNREADABLE, "damaged gzip") from error
    except EOFError as error:
        raise Rejection(Reason.TRUNCATED, "the packed stream ends early") from error
    except OSError as error:
        # Those of bzip2 have no errno; those of the file system have.
        if error.errno is not None:
            raise
        raise Rejection(Reason.UNREADABLE, "damaged bzip2") from error
    dimensions = len(found.get_data_shape())
    one_of_many = [DecisionKind.ONE_VOLUME(count=dimensions)] if dimensions > 3 else []
    values, scaled = _scaled(stored.reshape(stored.shape[:3], order="F"), found)
    voxels, exponent, shrunk = within_float32(values)
    affine, placed = _affine(found)
    return NiftiVolume(
        voxels_XYZ=voxels,
        affine=affine,
        decisions=(*one_of_many, *scaled, *shrunk, *placed),
        exponent=exponent,
        intent=int(found["intent_code"]),
    )


def within_float32(values: NDArray[Any]) -> tuple[NDArray[Any], int, list[Decision]]:
    """Values whose arithmetic float32 can hold: those given, or in float32 divided by a power of two.

    Returns:
        (values, exponent of that power, what was decided); 0 and nothing where there was no need.

    Example:
        >>> values, exponent, _ = within_float32(np.array([1e300, -2e300]))
        >>> values.dtype, np.allclose(values.astype(float) * 2.0**exponent, [1e300, -2e300])
        (dtype('float32'), True)
    """
    if values.dtype.kind != "f" or values.size == 0:
        return values, 0, []
    largest = max(abs(float(values.max())), abs(float(values.min())))
    if not math.isfinite(largest):
        largest = float(np.abs(values).max(where=np.isfinite(values), initial=0.0))
    exponent = math.frexp(largest)[1]
    if largest == 0 or abs(exponent) <= MAX_EXPONENT:
        return values, 0, []
    # In place of a division, because 2^exponent may be beyond float64 where the values are not.
    divided = np.ldexp(values, -exponent).astype(np.float32)
    return divided, exponent, [DecisionKind.BEYOND_FLOAT32(exponent=exponent)]


def _read(raw: BinaryIO, beside: BinaryIO | None, most: int | None) -> tuple[nib.Nifti1Header, NDArray[Any]]:
    stream = _unpacked(raw)
    header = _header((stream if beside is None else _unpacked(beside)).read(NIFTI2_SIZE), pair=beside is not None)
    shape, dtype, offset = _layout(header, pair=beside is not None)
    check_claim(shape, bytes_each=dtype.itemsize, most=most)
    stream.seek(offset)
    size = dtype.itemsize * int(np.prod([float(count) for count in shape]))
    content = stream.read(size)
    if len(content) < size:
        raise Rejection(Reason.TRUNCATED, f"{len(content)} of {size} bytes of voxels are there")
    if stream is not raw:
        # Reading on to the end makes the unpacker compare its checksum.
        stream.read(1)
    return header, np.frombuffer(content, dtype=dtype).reshape(shape, order="F")


def _unpacked(raw: BinaryIO) -> Any:
    start = raw.read(6)
    raw.seek(0)
    if start.startswith(GZIP_MAGIC):
        from isal import igzip

        return igzip.IGzipFile(fileobj=raw, mode="rb")
    if start.startswith(BZIP2_MAGIC):
        return bz2.BZ2File(raw)
    for magic, name in OTHER_PACKERS.items():
        if start.startswith(magic):
            raise Rejection(Reason.UNSUPPORTED_ENCODING, f"packed by {name}; unpack it")
    return raw


def _header(start: bytes, *, pair: bool) -> nib.Nifti1Header:
    if not start:
        raise Rejection(Reason.EMPTY, "the file is empty")
    if len(start) < NIFTI1_SIZE:
        raise Rejection(Reason.TRUNCATED, "the file ends within its header")
    magics = PAIR_MAGICS if pair else MAGICS
    if start[344:348] in magics:
        kind, size = nib.Nifti1Header, NIFTI1_SIZE
    elif start[4:8] in magics:
        kind, size = nib.Nifti2Header, NIFTI2_SIZE
    elif pair and start[:4] in _ANALYZE:
        raise Rejection(Reason.MISSING_METADATA, "an Analyze pair has no orientation: left and right are unknown")
    else:
        raise Rejection(Reason.NOT_AN_IMAGE, "no header of a NIfTI pair" if pair else "not a single-file NIfTI")
    if len(start) < size:
        raise Rejection(Reason.TRUNCATED, "the file ends within its header")
    try:
        return kind.from_fileobj(io.BytesIO(start[:size]), check=False)
    except (nib.wrapstruct.WrapStructError, nib.spatialimages.HeaderDataError, ValueError) as error:
        raise Rejection(Reason.UNREADABLE, "the header makes no sense") from error


def _layout(header: nib.Nifti1Header, *, pair: bool) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and offset of the voxels, once they are plausible."""
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7:
        raise Rejection(Reason.UNREADABLE, f"the header claims {dimensions} dimensions")
    shape = tuple(int(count) for count in header["dim"][1 : dimensions + 1])
    if dimensions < 3 or any(count != 1 for count in shape[3:]):
        raise Rejection(Reason.NOT_3D, f"{' x '.join(map(str, shape))} voxels are not one volume")
    if min(shape) < 1:
        raise Rejection(Reason.EMPTY, "the header claims no voxels")
    try:
        dtype = header.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError) as error:
        raise Rejection(Reason.UNSUPPORTED_ENCODING, "the header's data type is unknown") from error
    if dtype.kind not in "iuf" or not 1 <= dtype.itemsize <= 8:
        code = int(header["datatype"])
        raise Rejection(Reason.UNSUPPORTED_ENCODING, f"voxels of NIfTI data type {code} are no intensities")
    offset = float(header["vox_offset"])
    if not (0 if pair else NIFTI1_SIZE) <= offset < 2**24:
        raise Rejection(Reason.UNREADABLE, "the header puts the voxels in an impossible place")
    return shape, dtype, int(offset)


def _scaled(stored_XYZ: NDArray[Any], header: nib.Nifti1Header) -> tuple[NDArray[Any], list[Decision]]:
    decisions: list[Decision] = []
    native = stored_XYZ.astype(stored_XYZ.dtype.newbyteorder("="), copy=False)
    if native is not stored_XYZ and stored_XYZ.dtype.byteorder not in "=|":
        decisions.append(DecisionKind.BIG_ENDIAN())
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    # A slope of zero means that there is no scale.
    if slope == 0 or not np.isfinite(slope) or (slope, inter) == (1, 0):
        return native, decisions
    inter = inter if np.isfinite(inter) else 0.0
    decisions.append(DecisionKind.HEADER_SCALE(slope=slope, inter=inter))
    if native.dtype.itemsize > 4 or abs(inter) > _WIDE or not 1 / _WIDE < abs(slope) < _WIDE:
        return native.astype(np.float64) * slope + inter, decisions
    return native.astype(np.float32) * np.float32(slope) + np.float32(inter), decisions


def _affine(header: nib.Nifti1Header) -> tuple[NDArray[np.float64], list[Decision]]:
    """The sform where its code is set, else the qform, as nifti1.h orders them."""
    decisions: list[Decision] = []
    says_sform, says_qform = (1 <= int(header[name]) <= LAST_CODE for name in ("sform_code", "qform_code"))
    sform = _usable(header.get_sform()) if says_sform else None
    qform = _qform(header) if says_qform else None
    if sform is None and says_sform and qform is not None:
        decisions.append(DecisionKind.SFORM_SINGULAR())
    if sform is not None and qform is not None and not _agree(sform, qform, header):
        decisions.append(DecisionKind.FORMS_DISAGREE())
    if qform is not None and not says_sform:
        decisions.append(DecisionKind.NO_SFORM())
    if sform is not None and qform is None:
        decisions.append(DecisionKind.NO_QFORM())
    chosen = sform if sform is not None else qform
    if chosen is None:
        if says_sform or says_qform:
            raise Rejection(Reason.BAD_GEOMETRY, "neither the sform nor the qform is a usable affine")
        raise Rejection(Reason.MISSING_METADATA, "neither sform nor qform: left and right are unknown")
    unit = MM_PER_UNIT.get(int(header["xyzt_units"]) & _UNIT_BITS, 1.0)
    if unit != 1:
        decisions.append(DecisionKind.OTHER_LENGTH_UNIT(unit_mm=unit))
        chosen = np.diag([unit, unit, unit, 1]) @ chosen
    return chosen, decisions


def _qform(header: nib.Nifti1Header) -> NDArray[np.float64] | None:
    if not (header["pixdim"][1:4] > 0).all():
        return None
    # nifti1.h: "if pixdim[0] = 0 (which should not occur), we take qfac = 1"; its reader takes the sign of any other.
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    beyond = sum(float(header[name]) ** 2 for name in ("quatern_b", "quatern_c", "quatern_d")) - 1.0
    if 0 < beyond <= MOST_BEYOND_UNIT:
        # A rounded half turn: a = 0 and b, c, d divided by their length, as the standard's own reader has it.
        header.quaternion_threshold = np.float64(2 * MOST_BEYOND_UNIT)
    try:
        return _usable(header.get_qform())
    except (nib.spatialimages.HeaderDataError, ValueError):
        return None


def _usable(affine: NDArray[Any]) -> NDArray[np.float64] | None:
    matrix = np.asarray(affine, dtype=np.float64)
    return matrix if np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:3, :3])) > 0 else None


def _agree(sform: NDArray[np.float64], qform: NDArray[np.float64], header: nib.Nifti1Header) -> bool:
    last = header["dim"][1:4].astype(float) - 1
    corners = np.array([[i, j, k, 1] for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[2])])
    return bool(np.abs(corners @ (sform - qform).T).max() <= SAME_AFFINE_MM)
