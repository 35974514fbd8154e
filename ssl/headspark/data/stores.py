"""Decoded scans by number: from the corpus's own files, from memory, or memory-mapped from a folder of a local disk."""

from __future__ import annotations

import math
import os
import threading
import time
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from harmonize.errors import UserError
from harmonize.files import TEMPORARY
from harmonize.progress import Progress
from headspark.data.decoders import (
    SCANS,
    Decoder,
)
from headspark.data.private import NotOurs, claim, open_own, private_file

_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError, tokenize.TokenError)
"""What NumPy raises for an array file that is gone, cut short or something else."""

_DAY = 86400.0

D_co = TypeVar("D_co", covariant=True)


class Store(Protocol[D_co]):
    """Decoded scans by number."""

    def __getitem__(self, scan: int) -> D_co:
        """Scan number `scan`."""
        ...


class FileStore:
    """No cache: each access decodes the corpus's own file; arguments as of `RamStore`."""

    def __init__(self, scans: Sequence[Any], decoder: Decoder[Any, Any] = SCANS) -> None:
        self._scans, self._decoder = scans, decoder

    def __getitem__(self, scan: int) -> Any:
        """Scan number `scan`."""
        item = self._scans[scan]
        return self._decoder.assemble(item, self._decoder.decode(item, row_major=False))


class MappedStore:
    """Uncompressed arrays in a folder, memory-mapped: a patch reads its own pages, and all processes share them.

    Files are named by the hash of what they hold, so a changed corpus never finds an old scan. The folder is only a
    copy: what vanishes from it or is cut short is made again from the corpus, with the same voxels, and said once.

    Args:
        scans: Of the cohort.
        folder: Of the cache.
        say: Told, once, that files had to be made again.
        decoder: How scans are read.
    """

    def __init__(
        self,
        scans: Sequence[Any],
        folder: Path,
        say: Callable[[str], object] = print,
        decoder: Decoder[Any, Any] = SCANS,
    ) -> None:
        self._scans, self._folder, self._say, self._decoder = scans, folder, say, decoder
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
                    self._write(scan, self._decoder.decode(scan, row_major=True))
                except OSError as error:
                    raise self._refused(error) from error
                progress.advance()

    def __getitem__(self, scan: int) -> Any:
        """Scan number `scan`; its arrays are memory maps, unless the folder can no longer be written."""
        item = self._scans[scan]
        try:
            arrays = self._open(item)
        except _UNREADABLE:
            arrays = self._make_again(item)
        return self._decoder.assemble(item, arrays)

    def _make_again(self, item: Any) -> list[NDArray[Any]]:
        with self._lock:  # several threads want it at once
            try:
                return self._open(item)
            except _UNREADABLE:
                decoded = self._decoder.decode(item, row_major=True)
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

    def _paths(self, scan: Any) -> list[Path]:
        return [self._folder / part.name for part in self._decoder.parts(scan)]

    def _is_whole(self, scan: Any) -> bool:
        try:
            self._open(scan)
        except _UNREADABLE:
            return False
        return True

    def _open(self, scan: Any) -> list[NDArray[Any]]:
        return [_array(self._folder / part.name, part.dtype, part.shape) for part in self._decoder.parts(scan)]

    def _write(self, scan: Any, arrays: Sequence[NDArray[Any]]) -> None:
        claim(self._folder)  # it may have been removed since, and anybody may have made another
        # The small ones first: a scan is there with its voxels.
        for path, array in sorted(zip(self._paths(scan), arrays, strict=True), key=lambda pair: pair[1].nbytes):
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
