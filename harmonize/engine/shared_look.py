"""One look at a raw folder for all shards of a corpus: the first writes down what it found, the others read it.

What a look finds holds raw names and ids of patients, and a corpus is made to be passed on. So it is sealed, with a key
made of the salt and of the name, size and time of every file of the raw folder: who can open it has that folder, or a
full listing of it, and once a file is another, the key is too. Nothing is read that a stranger could have written.
`harmonize merge` removes it; nothing of the folder of records is ever published.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from harmonize import __version__, limits, sources
from harmonize.corpus import RECORDS, lock
from harmonize.corpus.target import LOCK, LOOK
from harmonize.engine.hold import SHARD_IS_AHEAD, make_folder
from harmonize.engine.sealed import MAX_PART_BYTES, seal, unseal
from harmonize.errors import Reason
from harmonize.files import atomic_path, room_in
from harmonize.raw_tree import RawTree
from harmonize.scan import LeftOut, ScanRef

Item = ScanRef | LeftOut

AT_ONCE = 1000
"""References that are written in one part."""

_PASSING = frozenset({Reason.IO_ERROR, Reason.WORKER_DIED})
"""Rejections that another look may not give: a look with one is not shared."""

_PLAIN = ("harmonize.scan", "harmonize.errors", "harmonize.decisions", "pathlib")
"""Modules whose classes references are made of."""

_REBUILDS_REJECTIONS = ("harmonize.errors", "_rebuild_rejection")


def discover(source: str, root: Path, out: Path, salt: str) -> Iterable[Item]:
    """What the source discovers in a raw folder, looked for once by all shards that write to `out`.

    Raises:
        UserError: As the source does; or the corpus cannot be made.
    """
    listing = _listing(root)
    if listing is None:
        # Nothing there: the source says so, before anything is written.
        return sources.get(source).discover(root)
    make_folder(out)
    path = out / RECORDS / f"{source}{LOOK}"
    with room_in(out), lock.turn(out / RECORDS / LOCK, waiting=SHARD_IS_AHEAD):
        key = _key(source, root, salt, listing)
        found = _read(path, key)
        if found is None:
            found = list(sources.get(source).discover(root))
            if not any(_is_passing(item) for item in found):
                _write(path, key, found)
    return found


def forget(out: Path) -> None:
    """Remove what shards shared; only while none of them runs."""
    for path in (out / RECORDS).glob(f"*{LOOK}"):
        path.unlink(missing_ok=True)


def _listing(root: Path) -> bytes | None:
    """A digest of the name, size and time of every file, without opening one; None where there is none."""
    digest, count = hashlib.sha256(), 0
    tree = RawTree(root, claims=lambda name: True)
    top = len(os.fspath(root))
    for folder in tree.folders():
        for name in folder.names:
            place = f"{folder.where}/{name}"
            try:
                found = os.stat(place)  # noqa: PTH116 - twice as fast as the Path's own, and there may be millions
                said = f"{place[top:]}\0{found.st_size}\0{found.st_mtime_ns}\n"
            except OSError as error:
                said = f"{place[top:]}\0{error.errno}\n"
            digest.update(os.fsencode(said))
            count += 1
    for path, why in tree.unread:
        digest.update(os.fsencode(f"{path}\0{why}\n"))
    return digest.digest() if count or tree.unread else None


def _key(source: str, root: Path, salt: str, listing: bytes) -> bytes:
    said = (source, str(root), os.path.realpath(root), salt, __version__, str(limits.max_voxels()))
    digest = hashlib.blake2b(listing, digest_size=32)
    for part in said:
        digest.update(hashlib.sha256(os.fsencode(part)).digest())
    return digest.digest()


def _is_passing(item: Item) -> bool:
    return isinstance(item, ScanRef) and item.rejection is not None and item.rejection.reason in _PASSING


def _write(path: Path, key: bytes, found: Iterable[Item]) -> None:
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600, exist_ok=False)
        with temporary.open("wb") as stream:
            stream.writelines(seal(_parts(found), key))


def _parts(found: Iterable[Item]) -> Iterator[bytes]:
    items = iter(found)
    while part := list(islice(items, AT_ONCE)):
        yield zlib.compress(_pickled(part), level=1)


def _pickled(part: list[Item]) -> bytes:
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=5)
    # Each class as it says itself: dask teaches pickle to write every exception with its traceback.
    pickler.dispatch_table = {}
    pickler.dump(part)
    return stream.getvalue()


def _read(path: Path, key: bytes) -> list[Item] | None:
    """What another shard found; None where there is nothing that this one can use."""
    try:
        with path.open("rb", buffering=1 << 20) as stream:
            return list(_items(stream, key))
    except (OSError, ValueError, zlib.error, pickle.UnpicklingError, AttributeError, ImportError, TypeError):
        # Not there, of a raw folder that has changed since, another user's, cut, or of other code: a new look is made.
        return None


def _items(stream: BinaryIO, key: bytes) -> Iterator[Item]:
    for part in unseal(stream, key):
        yield from _Plain(io.BytesIO(zlib.decompressobj().decompress(part, MAX_PART_BYTES))).load()


class _Plain(pickle.Unpickler):
    """Makes nothing but what references consist of."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module.partition("._")[0] in _PLAIN else None
        if not isinstance(found, type) and (module, name) != _REBUILDS_REJECTIONS:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a reference")
        return found
