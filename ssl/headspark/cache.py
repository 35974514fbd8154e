"""Where decoded scans are kept while training: int16 in RAM, once a node in shared memory, or memory-mapped on disk.

Whatever the place, the same scan gives the same voxels, so the choice changes the speed of a run and nothing else.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from monai.data import CacheDataset
from monai.transforms import Transform
from numpy.typing import NDArray

from harmonize.corpus import read_volume
from harmonize.errors import UserError
from harmonize.files import atomic_path
from harmonize.pipeline import HEAD
from harmonize.progress import Progress
from headspark.cohort import Cohort, ScanItem
from headspark.memory import free_memory
from headspark.recipe import CacheMode, DataConfig

MEMORY_SHARE = 0.6
"""Of the memory that is free now, the cache takes at most this: the rest is for the model, the batches, the others."""

DISK_SHARE = 0.9
SHARED_MEMORY = Path("/dev/shm")
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A scan as its file holds it.

    Attributes:
        stored_XYZ: int16; the real value is ``stored * slope + inter``.
        scored_XYZ: bool, where the loss may look; None: within the foreground box.
        slope: See above.
        inter: See above.
    """

    stored_XYZ: NDArray[np.int16]
    scored_XYZ: NDArray[np.bool_] | None
    slope: float
    inter: float


class Store(Protocol):
    """Decoded scans by number."""

    def __getitem__(self, scan: int) -> Decoded:
        """Scan number `scan` of the cohort."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which cache, in which folder, and why: one line for the user."""

    mode: Literal["ram", "shared", "disk", "none"]
    folder: Path | None
    reason: str


def choose_cache(
    mode: CacheMode,
    *,
    needed: int,
    local_ranks: int,
    cache_dir: Path | None,
    run_name: str,
    memory: int | None = None,
    shared: int | None = None,
    disk: int | None = None,
) -> Choice:
    """Decide where decoded scans are kept.

    Args:
        mode: What the recipe says.
        needed: Bytes of all decoded scans.
        local_ranks: Training processes on this node.
        cache_dir: The recipe's folder for ``disk``.
        run_name: Names this run's part of the shared memory.
        memory: Free memory in bytes; None: measured.
        shared: Free shared memory in bytes; None: measured.
        disk: Free bytes in the cache folder; None: measured.
    """
    memory = free_memory() if memory is None else memory
    folder = Path(tempfile.gettempdir()) / "headspark-cache" if cache_dir is None else cache_dir
    shared_folder = SHARED_MEMORY / f"headspark-{hashlib.sha256(run_name.encode()).hexdigest()[:16]}"
    if mode != "auto":
        place = {"shared": shared_folder, "disk": folder}.get(mode)
        return Choice(mode=mode, folder=place, reason=f"cache {mode}: as the recipe says, {_gib(needed)} decoded")
    facts = f"{_gib(needed)} decoded, {_gib(memory)} of memory free"
    if needed <= MEMORY_SHARE * memory:
        if local_ranks == 1:
            return Choice(mode="ram", folder=None, reason=f"cache ram: {facts}")
        shared = _free_space(SHARED_MEMORY) if shared is None else shared
        if needed <= MEMORY_SHARE * shared:
            return Choice(
                mode="shared", folder=shared_folder, reason=f"cache shared: {facts}, one copy for {local_ranks} ranks"
            )
        facts += f", {_gib(shared)} of it shared between processes"
    disk = _free_space(folder) if disk is None else disk
    if needed <= DISK_SHARE * disk:
        return Choice(mode="disk", folder=folder, reason=f"cache disk: {facts}; {_gib(disk)} free in {folder}")
    return Choice(
        mode="none",
        folder=None,
        reason=f"cache none: {facts}, {_gib(disk)} free in {folder}; every cube decodes its whole scan, which is slow: "
        "set data.cache_dir to a larger disk",
    )


@contextmanager
def cached(
    cohort: Cohort,
    config: DataConfig,
    *,
    run_name: str,
    local_rank: int,
    local_ranks: int,
    agree: Callable[[Choice], Choice],
    wait: Callable[[], object],
    say: Callable[[str], object],
) -> Iterator[Store]:
    """Choose a cache, fill it, and give it back afterwards.

    Args:
        cohort: The scans.
        config: What the recipe says.
        run_name: Names this run's part of the shared memory.
        local_rank: This process's number on this node.
        local_ranks: Training processes on this node.
        agree: Gives the first rank's choice to all: each of them measures a little different memory.
        wait: Returns when all ranks have called it.
        say: Told what was chosen and why.
    """  # fmt: skip
    choice = agree(
        choose_cache(
            config.cache,
            needed=decoded_bytes(cohort.scans),
            local_ranks=local_ranks,
            cache_dir=None if config.cache_dir is None else Path(config.cache_dir),
            run_name=run_name,
        )
    )
    say(choice.reason)
    try:
        store = open_store(choice, cohort.scans, local_rank=local_rank, local_ranks=local_ranks)
        wait()
        yield store
    finally:
        if local_rank == 0:
            close_store(choice)


def open_store(choice: Choice, scans: Sequence[ScanItem], *, local_rank: int, local_ranks: int) -> Store:
    """Fill the cache, showing progress, and open it.

    With ``shared`` and ``disk`` each rank of a node decodes its share; wait for all of them before reading.
    """
    if choice.mode == "ram":
        return RamStore(scans)
    if choice.folder is None:
        return FileStore(scans)
    store = MappedStore(scans, choice.folder)
    store.fill(local_rank, local_ranks)
    return store


def close_store(choice: Choice) -> None:
    """Give shared memory back; the disk cache stays for the next run."""
    if choice.mode == "shared" and choice.folder is not None:
        shutil.rmtree(choice.folder, ignore_errors=True)


def decoded_bytes(scans: Sequence[ScanItem]) -> int:
    """Bytes that all scans take when decoded."""
    return sum(int(np.prod(scan.shape)) * (2 * scan.channels + (scan.mask is not None)) for scan in scans)


def decode(scan: ScanItem) -> Decoded:
    """Read one scan from the corpus.

    Raises:
        UserError: A file is gone or damaged; names the scan.
    """
    try:
        volume = read_volume(scan.image)
        mask = None if scan.mask is None else read_volume(scan.mask).stored_XYZ == HEAD
    except (OSError, ValueError) as error:
        raise UserError(f"scan {scan.scan_id}: {error}; run `harmonize verify` on the corpus") from error
    if volume.stored_XYZ.dtype != np.int16:
        raise UserError(f"scan {scan.scan_id}: {volume.stored_XYZ.dtype} voxels, int16 expected")
    return Decoded(
        stored_XYZ=volume.stored_XYZ.astype(np.int16, copy=False),
        scored_XYZ=mask,
        slope=volume.slope,
        inter=volume.inter,
    )


class RamStore:
    """All scans in this process's memory, by MONAI's CacheDataset; forked workers read the same pages."""

    def __init__(self, scans: Sequence[ScanItem]) -> None:
        with Progress("cache", total=len(scans)) as progress:
            decoder = _Decode(progress.advance)
            self._scans = CacheDataset(list(scans), decoder, copy_cache=False, progress=False, num_workers=None)
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
    """Uncompressed arrays in a folder, memory-mapped: all processes share the pages that are in memory.

    A page that is not costs more than itself, because the kernel reads around it: a cold cube of 96^3 takes about three
    quarters of a scan of 224^3 from the disk.

    Files are named by the hash of what they hold, so a changed corpus never finds an old scan.
    """

    def __init__(self, scans: Sequence[ScanItem], folder: Path) -> None:
        self._scans, self._folder = scans, folder

    def fill(self, local_rank: int, local_ranks: int) -> None:
        """Decode this rank's share of the scans that are not there yet."""
        mine = [scan for scan in self._scans[local_rank::local_ranks] if not all(map(Path.exists, self._paths(scan)))]
        with Progress(f"cache {self._folder}", total=len(mine)) as progress:
            for scan in mine:
                self._write(scan)
                progress.advance()

    def __getitem__(self, scan: int) -> Decoded:
        """Scan number `scan`; its arrays are memory maps."""
        item = self._scans[scan]
        image, scale, *mask = self._paths(item)
        slope, inter = np.load(scale)
        return Decoded(
            stored_XYZ=np.load(image, mmap_mode="r"),
            scored_XYZ=np.load(mask[0], mmap_mode="r") if mask else None,
            slope=float(slope),
            inter=float(inter),
        )

    def _paths(self, scan: ScanItem) -> list[Path]:
        image = self._folder / scan.sha256[:2] / scan.sha256
        paths = [image.with_suffix(".npy"), image.with_suffix(".scale.npy")]
        return paths if scan.mask is None else [*paths, image.with_suffix(f".{scan.mask_sha256}.npy")]

    def _write(self, scan: ScanItem) -> None:
        decoded = _row_major(decode(scan))
        image, scale, *mask = self._paths(scan)
        arrays: list[tuple[Path, Any]] = [
            (scale, np.array([decoded.slope, decoded.inter])),
            (image, decoded.stored_XYZ),
        ]
        arrays += [(path, decoded.scored_XYZ) for path in mask]
        for path, array in arrays:
            try:
                with atomic_path(path) as temporary:
                    np.save(temporary, array)
            except OSError as error:
                raise UserError(f"cache {self._folder}: {error.strerror}; set data.cache or data.cache_dir") from error


class _Decode(Transform):
    """`decode` as the deterministic transform that CacheDataset keeps the result of."""

    def __init__(self, report: Callable[[], object]) -> None:
        self.report = report

    def __call__(self, scan: ScanItem) -> Decoded:
        decoded = _row_major(decode(scan))
        self.report()
        return decoded


def _row_major(decoded: Decoded) -> Decoded:
    """NIfTI runs along X first, cubes for the network along Z: turned once, a cube is copied three times as fast."""
    scored = decoded.scored_XYZ
    return replace(
        decoded,
        stored_XYZ=np.ascontiguousarray(decoded.stored_XYZ),
        scored_XYZ=None if scored is None else np.ascontiguousarray(scored),
    )


def _nothing() -> None:
    return None


def _free_space(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
