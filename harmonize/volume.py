"""One NIfTI file of a corpus: int16 or uint8 voxels with their scale, RAS, no text, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from harmonize.files import atomic_path

GZIP_LEVEL = 1
"""igzip's level: 1.1 s for 210 MB against zlib's 21 s at its default, for a tenth more size."""

SCANNER_CODE = 1
"""NIFTI_XFORM_SCANNER_ANAT: the affine gives the scanner's own coordinates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """What one file holds; the real value of a voxel is ``stored * slope + inter``.

    Attributes:
        stored_XYZ: As on disk, int16 (images) or uint8 (masks), shape (X, Y, Z), or (X, Y, Z, 3) where the three
            CT windows were baked in. In Fortran order, as in the file.
        slope: 1 for CT and masks.
        inter: 0 for CT and masks.
        affine: (4, 4) float64, voxel index to RAS+ mm.
    """

    stored_XYZ: NDArray[np.int16] | NDArray[np.uint8]
    slope: float
    inter: float
    affine: NDArray[np.float64]

    def values(self) -> NDArray[np.float32]:
        """Real values as float32, shape of `stored_XYZ`."""
        return self.stored_XYZ.astype(np.float32) * np.float32(self.slope) + np.float32(self.inter)


def write_volume(
    path: Path,
    stored_XYZ: NDArray[np.int16] | NDArray[np.uint8],
    *,
    affine: NDArray[np.float64],
    slope: float = 1.0,
    inter: float = 0.0,
) -> str:
    """Write a ``.nii.gz`` atomically; equal arguments give equal bytes.

    Args:
        path: Target, ending in ``.nii.gz``.
        stored_XYZ: int16 or uint8, shape (X, Y, Z) or (X, Y, Z, 3).
        affine: (4, 4), voxel index to RAS+ mm; becomes both sform and qform, code 1.
        slope: Goes to ``scl_slope``.
        inter: Goes to ``scl_inter``.

    Returns:
        Hex SHA-256 of the file.
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(stored_XYZ.dtype.newbyteorder("<"))
    header.set_data_shape(stored_XYZ.shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, SCANNER_CODE)
    header.set_qform(header.get_sform(), SCANNER_CODE)
    header.set_slope_inter(slope, inter)
    stream = io.BytesIO()
    header.write_to(stream)
    stream.write(bytes(int(header["vox_offset"]) - stream.tell()))
    stream.write(np.asarray(stored_XYZ, dtype=stored_XYZ.dtype.newbyteorder("<")).tobytes(order="F"))
    packed = igzip.compress(stream.getbuffer(), GZIP_LEVEL, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed)
    return hashlib.sha256(packed).hexdigest()


def read_volume(path: Path | str) -> Volume:
    """Read what `write_volume` wrote.

    Raises:
        OSError: The file is not there.
        ValueError: It is cut, damaged, or no single-file NIfTI-1.
    """
    packed = Path(path).read_bytes()
    try:
        raw = igzip.decompress(packed)
    except (EOFError, OSError, igzip_lib.IsalError) as error:  # type: ignore[misc]
        raise ValueError(f"{path}: damaged gzip") from error
    try:
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(raw))
    except (nib.wrapstruct.WrapStructError, nib.spatialimages.HeaderDataError) as error:
        raise ValueError(f"{path}: no NIfTI-1 header") from error
    shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header["vox_offset"])
    if len(raw) - offset < dtype.itemsize * int(np.prod(shape)):
        raise ValueError(f"{path}: fewer voxels than its header claims")
    stored = np.frombuffer(raw, dtype=dtype, count=int(np.prod(shape)), offset=offset).reshape(shape, order="F")
    slope, inter = header.get_slope_inter()
    return Volume(
        stored_XYZ=stored.copy(order="F"),
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        affine=header.get_best_affine(),
    )
