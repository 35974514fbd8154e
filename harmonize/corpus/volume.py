"""One NIfTI file of a corpus: int16 or uint8 voxels with their scale, RAS, no text, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from harmonize.errors import Rejection
from harmonize.files import atomic_path, naming
from harmonize.limits import check_claim
from harmonize.voxels.stored import StoredVolume

GZIP_LEVEL = 1
"""igzip's level: 1.1 s for 210 MB against zlib's 21 s at its default, for a tenth more size."""

SCANNER_CODE = 1
"""NIFTI_XFORM_SCANNER_ANAT: the affine gives the scanner's own coordinates."""

HEADER_BYTES, OFFSET, MAX_OFFSET = 348, 352, 2**20
"""Bytes of the header; where voxels begin at the least, and at the most."""

WINDOWS = 3
"""Channels of a volume with baked CT windows."""


def write_volume(path: Path, volume: StoredVolume) -> str:
    """Write a ``.nii.gz`` atomically; equal arguments give equal bytes.

    Args:
        path: Target, ending in ``.nii.gz``.
        volume: Its affine becomes both sform and qform, code 1; slope and inter go to ``scl_slope`` and ``scl_inter``.

    Returns:
        Hex SHA-256 of the file.
    """
    from isal import igzip  # here, for whoever only predicts writes no corpus

    stored_XYZ = volume.stored_XYZ
    header = nib.Nifti1Header()
    header.set_data_dtype(stored_XYZ.dtype.newbyteorder("<"))
    header.set_data_shape(stored_XYZ.shape)
    header.set_xyzt_units("mm")
    header.set_sform(volume.affine, SCANNER_CODE)
    header.set_qform(header.get_sform(), SCANNER_CODE)
    header.set_slope_inter(volume.slope, volume.inter)
    stream = io.BytesIO()
    header.write_to(stream)
    stream.write(bytes(int(header["vox_offset"]) - stream.tell()))
    stream.write(np.asarray(stored_XYZ, dtype=stored_XYZ.dtype.newbyteorder("<")).tobytes(order="F"))
    packed = igzip.compress(stream.getbuffer(), GZIP_LEVEL, mtime=0)
    with atomic_path(path) as temporary, naming(path):
        temporary.write_bytes(packed)
    return hashlib.sha256(packed).hexdigest()


class WrongShapeError(ValueError):
    """The file claims another shape than it should have.

    Attributes:
        shape: The claim.
    """

    def __init__(self, path: Path | str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        super().__init__(f"{path} has {shape} voxels, the manifest says {wanted}")
        self.shape = shape


def read_volume(path: Path | str, *, shape: Sequence[int] | None = None) -> StoredVolume:
    """Read what `write_volume` wrote; no more is unpacked than the header claims.

    Args:
        path: The file.
        shape: (X, Y, Z) that the manifest gives, if it is known; checked before the voxels are unpacked.

    Raises:
        OSError: The file is not there.
        WrongShapeError: It claims another shape.
        ValueError: It is cut, damaged, too large, or no single-file NIfTI-1.
    """
    return read_with_header(path, shape=shape)[0]


def _affine(header: nib.Nifti1Header, path: Path | str) -> NDArray[np.float64]:
    try:
        return np.asarray(header.get_best_affine(), np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: the quaternion of its header is none") from error


def read_with_header(
    path: Path | str, *, shape: Sequence[int] | None = None
) -> tuple[StoredVolume, nib.Nifti1Header, bool]:
    """As `read_volume`, with the header, and whether there is text beside it."""
    from isal import igzip_lib

    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    try:
        head = inflater.decompress(Path(path).read_bytes(), OFFSET)
        if len(head) < OFFSET:
            raise ValueError(f"{path}: damaged gzip, or no NIfTI-1 header")
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(head[:HEADER_BYTES] + bytes(4)))
        claimed, dtype, offset = header.get_data_shape(), header.get_data_dtype(), float(header["vox_offset"])
        (slope, inter), affine = header.get_slope_inter(), _affine(header, path)
        wanted = None if shape is None else tuple(map(int, shape))
        if wanted is not None and claimed[:3] != wanted:
            raise WrongShapeError(path, claimed, wanted)
        check_claim(claimed[:3], bytes_each=dtype.itemsize * math.prod(claimed[3:]))
        if claimed[3:] not in ((), (WINDOWS,)) or min(claimed, default=0) < 1:
            raise ValueError(f"{path}: {' x '.join(map(str, claimed))} voxels are no volume of a corpus")
        if not OFFSET <= offset <= MAX_OFFSET:
            raise ValueError(f"{path}: the header puts the voxels in an impossible place")
        between, size = int(offset) - OFFSET, dtype.itemsize * int(np.prod(claimed))
        raw = inflater.decompress(b"", between + size) if between + size else b""
        whole = inflater.eof or (not inflater.decompress(b"", 1) and inflater.eof)
    except (EOFError, OSError, igzip_lib.IsalError) as error:  # type: ignore[misc]
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: damaged gzip") from error
    except (nib.wrapstruct.WrapStructError, nib.spatialimages.HeaderDataError) as error:
        raise ValueError(f"{path}: no NIfTI-1 header") from error
    except Rejection as rejection:
        raise ValueError(f"{path}: {rejection.message}") from rejection
    if len(raw) < between + size and not inflater.eof:
        raise ValueError(f"{path}: damaged gzip")
    if len(raw) < between + size:
        raise ValueError(f"{path}: fewer voxels than its header claims")
    if not whole:
        raise ValueError(f"{path}: damaged gzip, or more than the voxels that its header claims")
    stored = np.frombuffer(raw, dtype=dtype, offset=between).reshape(claimed, order="F")
    volume = StoredVolume(
        stored_XYZ=stored.copy(order="F"),
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        affine=affine,
    )
    return volume, header, any(head[HEADER_BYTES:])
