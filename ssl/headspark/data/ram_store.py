"""Decoded scans in memory, by MONAI's cache: a file of its own, for MONAI is slow to load and few commands need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.data import CacheDataset
from monai.transforms import Transform

from harmonize.errors import UserError
from harmonize.progress import Progress
from headspark.data.decoders import SCANS, Decoder


class RamStore:
    """All scans in this process's memory, by MONAI's CacheDataset; forked workers read the same pages.

    Args:
        scans: Of the cohort.
        decoder: How they are read.
    """

    def __init__(self, scans: Sequence[Any], decoder: Decoder[Any, Any] = SCANS) -> None:
        with Progress("cache", total=len(scans)) as progress:
            decode_one = _Decode(decoder, progress.advance)
            try:
                self._scans = CacheDataset(list(scans), decode_one, copy_cache=False, progress=False, num_workers=None)
            except RuntimeError as error:  # MONAI's own, around what the decoder raised
                raise (error.__cause__ if isinstance(error.__cause__, UserError | MemoryError) else error) from None
            decode_one.report = _nothing

    def __getitem__(self, scan: int) -> Any:
        """Scan number `scan`."""
        return self._scans[scan]


class _Decode(Transform):
    """Decoding as the deterministic transform that CacheDataset keeps the result of."""

    def __init__(self, decoder: Decoder[Any, Any], report: Callable[[], object]) -> None:
        self._decoder, self.report = decoder, report

    def __call__(self, scan: Any) -> Any:
        decoded = self._decoder.assemble(scan, self._decoder.decode(scan, row_major=True))
        self.report()
        return decoded


def _nothing() -> None:
    return None
