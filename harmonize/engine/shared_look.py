"""One look at a raw folder for all shards of a corpus: the first writes down what it found, the others read it.

What a look finds holds raw names and ids of patients, and a corpus is made to be passed on. So it is encrypted (Fernet)
with a key made of the salt and of the name, size and time of every file of the raw folder: who can open it has that
folder, or a full listing of it, and once a file is another, the key is too. Nothing is read that a stranger could have
written. `harmonize merge` removes it; nothing of the folder of records is ever published.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import pickle
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harmonize import __version__, limits, sources
from harmonize.corpus import RECORDS, journal, lock
from harmonize.corpus.target import LOCK, LOOK
from harmonize.engine.hold import SHARD_IS_AHEAD, make_folder
from harmonize.errors import Reason
from harmonize.files import atomic_path, room_in
from harmonize.raw_tree import RawTree
from harmonize.scan import LeftOut, ScanRef

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

Item = ScanRef | LeftOut

MAX_BYTES = 1 << 32
"""A larger look (some ten million files) is neither written nor believed: it is encrypted and read as a whole."""

_PASSING = frozenset({Reason.IO_ERROR, Reason.WORKER_DIED})
"""Rejections that another look may not give: a look with one is not shared."""

_PLAIN = ("harmonize.scan", "harmonize.errors", "harmonize.decisions", "pathlib")
"""Modules whose classes references are made of."""

_UNUSABLE = (OSError, zlib.error, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, ImportError)
"""Not there, another user's, cut, or of other code: a new look is made, as where the raw folder has changed since."""

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
    for path in _looks(out):
        path.unlink(missing_ok=True)


def strays(out: Path) -> list[str]:
    """Sources whose shards looked through the raw folder and were all stopped before they began a scan."""
    begun = journal.sources_in(out / RECORDS)
    return [source for path in _looks(out) if (source := path.name.removesuffix(LOOK)) not in begun]


def _looks(out: Path) -> list[Path]:
    return sorted((out / RECORDS).glob(f"*{LOOK}"))


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


def _write(path: Path, key: bytes, found: list[Item]) -> None:
    content = _pickled(found)
    if len(content) > MAX_BYTES:
        return
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600, exist_ok=False)
        temporary.write_bytes(_cipher(key).encrypt(zlib.compress(content, level=1)))


def _cipher(key: bytes) -> Fernet:
    from cryptography.fernet import Fernet

    return Fernet(base64.urlsafe_b64encode(key))


def _pickled(found: list[Item]) -> bytes:
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=5)
    # Each class as it says itself: dask teaches pickle to write every exception with its traceback.
    pickler.dispatch_table = {}
    pickler.dump(found)
    return stream.getvalue()


def _read(path: Path, key: bytes) -> list[Item] | None:
    """What another shard found; None where there is nothing that this one can use."""
    from cryptography.fernet import InvalidToken

    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        packed = _cipher(key).decrypt(path.read_bytes())
        content = zlib.decompressobj().decompress(packed, MAX_BYTES)
        found: list[Item] = _Plain(io.BytesIO(content)).load()
    except (*_UNUSABLE, InvalidToken):
        return None
    return found


class _Plain(pickle.Unpickler):
    """Makes nothing but what references consist of."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module.partition("._")[0] in _PLAIN else None
        if not isinstance(found, type) and (module, name) != _REBUILDS_REJECTIONS:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a reference")
        return found
