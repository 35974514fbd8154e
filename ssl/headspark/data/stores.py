"""Decoded scans by number: from the corpus's own files, from memory, or memory-mapped from a folder of a local disk."""

from __future__ import annotations

import math
import os
import threading
import time
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from monai.data import CacheDataset
from monai.transforms import Transform
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from harmonize.corpus import read_volume
from harmonize.errors import UserError
from harmonize.files import TEMPORARY
from harmonize.pipeline import HEAD
from harmonize.progress import Progress
from harmonize.voxels.stored import StoredVolume, StoredVoxels
from headspark.data.cohort import ScanItem
from headspark.data.private import NotOurs, claim, open_own, private_file

_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError, tokenize.TokenError)
"""What NumPy raises for an array file that is gone, cut short or something else."""

_DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A scan as training needs it.

    Attributes:
        voxels: int16, as its file holds them.
        scored_XYZ: bool, where the loss may look; None: within the foreground box.
    """

    voxels: StoredVoxels
    scored_XYZ: NDArray[np.bool_] | None


class Store(Protocol):
    """Decoded scans by number."""

    def __getitem__(self, scan: int) -> Decoded:
        """Scan number `scan` of the cohort."""
        ...


def stored_shape(scan: ScanItem) -> tuple[int, ...]:
    """Shape of a scan's voxels: X, Y, Z, and the windows that were baked in, if any were."""
    return scan.shape if scan.channels == 1 else (*scan.shape, scan.channels)


def decoded_bytes(scans: Sequence[ScanItem]) -> int:
    """Bytes that all scans take when decoded."""
    return sum(int(np.prod(scan.shape)) * (2 * scan.channels + (scan.mask is not None)) for scan in scans)


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


def decode_row_major(scan: ScanItem) -> Decoded:
    """`decode` for a cache. NIfTI runs along X first, patches for the network along Z: turned once, a patch is copied
    three times as fast."""
    decoded = decode(scan)
    voxels, scored = decoded.voxels, decoded.scored_XYZ
    return Decoded(
        voxels=replace(voxels, stored_XYZ=np.ascontiguousarray(voxels.stored_XYZ)),
        scored_XYZ=None if scored is None else np.ascontiguousarray(scored),
    )


class RamStore:
    """All scans in this process's memory, by MONAI's CacheDataset; forked workers read the same pages."""

    def __init__(self, scans: Sequence[ScanItem]) -> None:
        with Progress("cache", total=len(scans)) as progress:
            decoder = _Decode(progress.advance)
            try:
                self._scans = CacheDataset(list(scans), decoder, copy_cache=False, progress=False, num_workers=None)
            except RuntimeError as error:  # MONAI's own, around what the decoder raised
                raise (error.__cause__ if isinstance(error.__cause__, UserError | MemoryError) else error) from None
            decoder.report = _nothing

    def __getitem__(self, scan: int) -> Decoded:
        """Scan number `scan`."""
        return self._scans[scan]


class FileStore:
    """No cache: each access decodes the corpus's own file."""

    def __init__(self, scans: Sequence[ScanItem]) -> None:
        self._scans = scans

    def __getitem__(self, scan: int) -> Decoded:
        """Scan number `scan`."""
        return decode(self._scans[scan])


class MappedStore:
    """Uncompressed arrays in a folder, memory-mapped: a patch reads its own pages, and all processes share them.

    Files are named by the hash of what they hold, so a changed corpus never finds an old scan. The folder is only a
    copy: what vanishes from it or is cut short is made again from the corpus, with the same voxels, and said once.

    Args:
        scans: Of the cohort.
        folder: Of the cache.
        say: Told, once, that files had to be made again.
    """

    def __init__(self, scans: Sequence[ScanItem], folder: Path, say: Callable[[str], object] = print) -> None:
        self._scans, self._folder, self._say = scans, folder, say
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def fill(self, local_rank: int, local_ranks: int) -> None:
        """Decode this rank's share of the scans that are not there yet, or no longer whole.

        Raises:
            UserError: The cache cannot be written, or others may write to its folder.
        """
        try:
            claim(self._folder)
        except OSError as error:
            raise self._refused(error) from error
        if local_rank == 0:
            self._remove_temporaries()
        mine = [scan for scan in self._scans[local_rank::local_ranks] if not self._is_whole(scan)]
        with Progress(f"cache {self._folder}", total=len(mine)) as progress:
            for scan in mine:
                if any(path.exists() for path in self._paths(scan)):
                    self._say_once("files are damaged; they are made again from the corpus")
                try:
                    self._write(scan, decode_row_major(scan))
                except OSError as error:
                    raise self._refused(error) from error
                progress.advance()

    def __getitem__(self, scan: int) -> Decoded:
        """Scan number `scan`; its arrays are memory maps, unless the folder can no longer be written."""
        item = self._scans[scan]
        try:
            return self._open(item)
        except _UNREADABLE:
            return self._make_again(item)

    def _make_again(self, item: ScanItem) -> Decoded:
        with self._lock:  # several threads want it at once
            try:
                return self._open(item)
            except _UNREADABLE:
                decoded = decode_row_major(item)
            self._say_once("files vanished or were cut short; they are made again from the corpus")
            try:
                self._write(item, decoded)
            except OSError as error:
                fault = error.strerror or error
                self._say_once(f"{fault}; going on without it, which is slow: set data.cache_dir to a safer place")
            return decoded

    def _refused(self, error: OSError) -> UserError:
        advice = (
            "set data.cache_dir to a folder of your own"
            if isinstance(error, NotOurs)
            else ("make room, or set data.cache or data.cache_dir")
        )
        return UserError(f"cache {self._folder}: {error.strerror or error}; {advice}")

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(f"cache {self._folder}: {line}")

    def _paths(self, scan: ScanItem) -> list[Path]:
        image = self._folder / scan.sha256[:2] / scan.sha256
        paths = [image.with_suffix(".npy"), image.with_suffix(".scale.npy")]
        return paths if scan.mask is None else [*paths, image.with_suffix(f".{scan.mask_sha256}.npy")]

    def _is_whole(self, scan: ScanItem) -> bool:
        try:
            self._open(scan)
        except _UNREADABLE:
            return False
        return True

    def _open(self, scan: ScanItem) -> Decoded:
        image, scale, *mask = self._paths(scan)
        slope, inter = _array(scale, np.dtype(np.float64), (2,))
        stored_XYZ = _array(image, np.dtype(np.int16), stored_shape(scan))
        return Decoded(
            voxels=StoredVoxels(stored_XYZ=stored_XYZ, slope=float(slope), inter=float(inter)),
            scored_XYZ=_array(mask[0], np.dtype(np.bool_), scan.shape) if mask else None,
        )

    def _write(self, scan: ScanItem, decoded: Decoded) -> None:
        image, scale, *mask = self._paths(scan)
        arrays: list[tuple[Path, Any]] = [
            (scale, np.array([decoded.voxels.slope, decoded.voxels.inter])),
            (image, decoded.voxels.stored_XYZ),
        ]
        arrays += [(path, decoded.scored_XYZ) for path in mask]
        claim(self._folder)  # it may have been removed since, and anybody may have made another
        for path, array in arrays:
            with private_file(path) as stream:
                np.save(stream, array, allow_pickle=False)

    def _remove_temporaries(self) -> None:
        """Remove what killed runs left half written: under our name for it, and a day old, for others may share it."""
        for path in self._folder.glob(f"??/{TEMPORARY}*.npy"):
            try:
                if time.time() - path.lstat().st_mtime > _DAY:
                    path.unlink()
            except OSError:  # another run was faster, or it is another user's
                continue


class _Decode(Transform):
    """`decode` as the deterministic transform that CacheDataset keeps the result of."""

    def __init__(self, report: Callable[[], object]) -> None:
        self.report = report

    def __call__(self, scan: ScanItem) -> Decoded:
        decoded = decode_row_major(scan)
        self.report()
        return decoded


def _array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Map an array that must be the one expected, and written by this user; `_UNREADABLE` tells where it is not."""
    with open_own(path) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{path}: another format than expected")
        found = np.lib.format.read_array_header_1_0(stream)
        begin = stream.tell()
        size = os.fstat(stream.fileno()).st_size
        if found != (shape, False, dtype) or size != begin + dtype.itemsize * math.prod(shape):
            raise ValueError(f"{path}: another array than expected")
        return np.memmap(stream, dtype, "r", begin, shape)


def _broken(scan_id: str, fault: str) -> UserError:
    return UserError(f"scan {scan_id}: {fault}; run `harmonize verify` on the corpus")


def _nothing() -> None:
    return None
