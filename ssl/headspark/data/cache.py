"""Where decoded scans are kept while training: int16 in RAM, once a node in shared memory, or memory-mapped on disk.

Whatever the place, the same scan gives the same voxels, so the choice changes the speed of a run and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headspark.data.config import CacheConfig, CacheMode
from headspark.data.decoders import SCANS, Decoder, decoded_bytes
from headspark.data.memory import SHARED_MEMORY, free_memory, gib
from headspark.data.private import folder_name, own_part
from headspark.data.shared_store import SUFFIX, SharedStore
from headspark.data.stores import FileStore, MappedStore, Store

__all__ = [
    "CacheChoice", "FileStore", "MappedStore", "SharedStore", "Store", "cached", "choose_cache",
]  # fmt: skip

MEMORY_SHARE = 0.6
"""Of the memory that is free now, the cache takes at most this: the rest is for the model, the batches, the others."""

DISK_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheChoice:
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
) -> CacheChoice:
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
    folder = Path(tempfile.gettempdir()) / folder_name() if cache_dir is None else cache_dir
    run = hashlib.sha256(run_name.encode(errors="surrogateescape")).hexdigest()[:16]
    # What others know beforehand, they could put a file of theirs at.
    shared_folder = SHARED_MEMORY / f"headspark-{run}-{secrets.token_hex(8)}"
    if mode != "auto":
        place = {"shared": shared_folder, "disk": folder}.get(mode)
        return CacheChoice(mode=mode, folder=place, reason=f"cache {mode}: as the recipe says, {gib(needed)} decoded")
    facts = f"{gib(needed)} decoded, {gib(memory)} of memory free"
    if needed <= MEMORY_SHARE * memory:
        if local_ranks == 1:
            return CacheChoice(mode="ram", folder=None, reason=f"cache ram: {facts}")
        shared = _free_space(SHARED_MEMORY) if shared is None else shared
        if needed <= MEMORY_SHARE * shared:
            return CacheChoice(
                mode="shared", folder=shared_folder, reason=f"cache shared: {facts}, one copy for {local_ranks} ranks"
            )
        facts += f", {gib(shared)} of it shared between processes"
    disk = _free_space(folder) if disk is None else disk
    if needed <= DISK_SHARE * disk:
        return CacheChoice(mode="disk", folder=folder, reason=f"cache disk: {facts}; {gib(disk)} free in {folder}")
    return CacheChoice(
        mode="none",
        folder=None,
        reason=f"cache none: {facts}, {gib(disk)} free in {folder}; every patch decodes its whole scan, which is "
        "slow: set data.cache_dir to a larger disk",
    )


@contextmanager
def cached(
    scans: Sequence[Any],
    config: CacheConfig,
    *,
    decoder: Decoder[Any, Any] = SCANS,
    run_name: str,
    local_rank: int,
    local_ranks: int,
    agree: Callable[[CacheChoice], CacheChoice],
    wait: Callable[[], object],
    say: Callable[[str], object],
) -> Iterator[Store[Any]]:
    """Choose a cache, fill it and open it; shared memory is given back with the last process that holds it.

    With ``shared`` and ``disk`` each rank of a node decodes its share.

    Args:
        scans: Of the cohort.
        config: What the recipe says.
        decoder: How they are read.
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
            needed=decoded_bytes(scans, decoder),
            local_ranks=local_ranks,
            cache_dir=config.cache_folder,
            run_name=run_name,
        )
    )
    say(choice.reason)
    store: Store[Any]
    if choice.mode == "ram":
        from headspark.data.ram_store import RamStore  # loads MONAI

        store = RamStore(scans, decoder)
    elif choice.folder is None:
        store = FileStore(scans, decoder)
    elif choice.mode == "shared":
        path = choice.folder.with_suffix(SUFFIX)
        store = SharedStore(scans, path, local_rank=local_rank, wait=wait, say=say, decoder=decoder)
        store.fill(local_rank, local_ranks)
    else:
        folder = choice.folder if config.cache_dir is None else own_part(choice.folder)
        store = MappedStore(scans, folder, say, decoder)
        store.fill(local_rank, local_ranks)
    wait()
    yield store


def _free_space(folder: Path) -> int:
    while not os.path.exists(folder):  # noqa: PTH110 - Path.exists raises where another user's folder is in the way
        folder = folder.parent
    return shutil.disk_usage(folder).free
