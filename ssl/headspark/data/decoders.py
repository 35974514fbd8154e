"""How scans of a corpus become the arrays that caches keep, and arrays what a program works with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from harmonize.corpus import read_volume
from harmonize.errors import UserError
from harmonize.pipeline import HEAD
from harmonize.voxels.stored import StoredVolume, StoredVoxels
from headspark.data.cohort import ScanItem
from headspark.vessels import VERSION, Look, distance_map, look_of

T_contra = TypeVar("T_contra", contravariant=True)
D_co = TypeVar("D_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A scan as training needs it.

    Attributes:
        voxels: int16, as its file holds them.
        scored_XYZ: bool, where the loss may look; None: within the foreground box.
        steps_XYZ: uint8, distances to vessels as of `headspark.vessels.distance_map`; None: nobody asks for them, or
            vessels do not stand out.
    """

    voxels: StoredVoxels
    scored_XYZ: NDArray[np.bool_] | None
    steps_XYZ: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An array that a store keeps of a scan.

    Attributes:
        name: Of its file in a cache on disk: two letters, a slash, and a name that nothing else has.
        dtype: Of its values.
        shape: Of the array.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.dtype.itemsize * math.prod(self.shape)


class Decoder(Protocol[T_contra, D_co]):
    """How scans become arrays, and arrays what a program works with. Arrays are what stores keep."""

    def parts(self, item: T_contra) -> list[Part]:
        """What is kept of a scan, known before anything is read."""
        ...

    def decode(self, item: T_contra, *, row_major: bool) -> list[NDArray[Any]]:
        """Read a scan: an array for each of its parts.

        Args:
            item: The scan.
            row_major: Lay the voxels out along Z first, for many reads; else as they come, for one.

        Raises:
            UserError: A file is gone or damaged; names the scan.
        """
        ...

    def assemble(self, item: T_contra, arrays: Sequence[NDArray[Any]]) -> D_co:
        """What the program works with, of arrays that may be memory maps."""
        ...


class ScanDecoder:
    """Whole scans with the mask of where the loss may look, as pretraining needs them; methods as of `Decoder`.

    Args:
        vessels: Whether the distances to vessels are wanted too, where these stand out.
    """

    def __init__(self, *, vessels: bool = False) -> None:
        self._vessels = vessels

    def parts(self, item: ScanItem) -> list[Part]:
        """Voxels, slope and intercept, the mask, and the distances to vessels."""
        name = f"{item.sha256[:2]}/{item.sha256}"
        parts = [
            Part(name=f"{name}.npy", dtype=np.dtype(np.int16), shape=stored_shape(item)),
            Part(name=f"{name}.scale.npy", dtype=np.dtype(np.float64), shape=(2,)),
        ]
        if item.mask is not None:
            parts.append(Part(name=f"{name}.{item.mask_sha256}.npy", dtype=np.dtype(np.bool_), shape=item.shape))
        look = self._look(item)
        if look is not None:
            parts.append(Part(name=f"{name}.{look}-{VERSION}.npy", dtype=np.dtype(np.uint8), shape=item.shape))
        return parts

    def decode(self, item: ScanItem, *, row_major: bool) -> list[NDArray[Any]]:
        """Read a scan and its mask, and look for its vessels.

        NIfTI runs along X first, patches for the network along Z: turned once, a patch is copied three times as fast.
        """
        decoded = decode(item)
        scale = np.array([decoded.voxels.slope, decoded.voxels.inter])
        arrays = [decoded.voxels.stored_XYZ, scale]
        if decoded.scored_XYZ is not None:
            arrays.append(decoded.scored_XYZ)
        look = self._look(item)
        if look is not None:
            arrays.append(distance_map(decoded.voxels.values(), item.spacing, unit=item.unit, look=look))
        return [np.ascontiguousarray(array) for array in arrays] if row_major else arrays

    def assemble(self, item: ScanItem, arrays: Sequence[NDArray[Any]]) -> Decoded:
        """Voxels with their scale, the mask, and the distances."""
        stored_XYZ, (slope, inter), *further = arrays
        return Decoded(
            voxels=StoredVoxels(stored_XYZ=stored_XYZ, slope=float(slope), inter=float(inter)),
            scored_XYZ=None if item.mask is None else further[0],
            steps_XYZ=None if self._look(item) is None else further[-1],
        )

    def _look(self, item: ScanItem) -> Look | None:
        return look_of(item.modality) if self._vessels else None


SCANS = ScanDecoder()
SCANS_WITH_VESSELS = ScanDecoder(vessels=True)


def stored_shape(scan: ScanItem) -> tuple[int, ...]:
    """Shape of a scan's voxels: X, Y, Z, and the windows that were baked in, if any were."""
    return scan.shape if scan.channels == 1 else (*scan.shape, scan.channels)


def decoded_bytes(scans: Sequence[Any], decoder: Decoder[Any, Any] = SCANS) -> int:
    """Bytes that all scans take when decoded."""
    return sum(part.nbytes for scan in scans for part in decoder.parts(scan))


def read_corpus_file(path: Path, *, scan_id: str, shape: tuple[int, ...] | None = None) -> StoredVolume:
    """Read a volume of a corpus; its first three axes are compared with `shape` before they are unpacked.

    Raises:
        UserError: It is gone or damaged; names the scan and the file.
    """
    try:
        return read_volume(path, shape=shape)
    except FileNotFoundError as error:
        raise _broken(scan_id, f"{path} is gone") from error
    except OSError as error:
        raise _broken(scan_id, f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, OverflowError, HeaderDataError) as error:
        raise _broken(scan_id, " ".join(str(error).split()) or f"{path} is damaged") from error


def decode(scan: ScanItem) -> Decoded:
    """Read one scan from the corpus.

    Raises:
        UserError: A file is gone or damaged, or not the one of the manifest; names the scan and the file.
    """
    image, mask = scan.image, scan.mask
    volume = read_corpus_file(image, scan_id=scan.scan_id, shape=scan.shape)
    labels_XYZ = None
    if mask is not None:
        labels_XYZ = read_corpus_file(mask, scan_id=scan.scan_id, shape=scan.shape).stored_XYZ
    if volume.stored_XYZ.dtype != np.int16:
        raise _broken(scan.scan_id, f"{image} holds {volume.stored_XYZ.dtype} voxels, int16 expected")
    for path, found, wanted in (
        (image, volume.stored_XYZ.shape, stored_shape(scan)),
        (mask, None if labels_XYZ is None else labels_XYZ.shape, scan.shape),
    ):
        if path is not None and found != wanted:
            raise _broken(scan.scan_id, f"{path} has {found} voxels, the manifest says {wanted}")
    return Decoded(voxels=volume, scored_XYZ=None if labels_XYZ is None else labels_XYZ == HEAD)


def _broken(scan_id: str, fault: str) -> UserError:
    return UserError(f"scan {scan_id}: {fault}; run `harmonize verify` on the corpus")
