"""What lies in a raw folder: its regular files in a fixed order, and an account of everything that is not taken."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harmonize.errors import Reason, Rejection, Stage, WrongUse
from harmonize.scan import LeftOut, ScanRef
from harmonize.terminal import printable as printable

BROKEN = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}
"""What following a link that leads nowhere ends in."""

CORPUS_FILE = "corpus.json"
CORPUS_PARTS = frozenset({"records", "metadata.parquet"})
"""What a corpus of ours holds, and one of these beside it; nothing in one is raw."""

HIDDEN = {False: ("hidden files", "their names begin with a dot"), True: ("hidden folders", "not looked into")}

PACKERS = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".z")
VOLUME_SUFFIXES = frozenset(
    suffix + packer
    for suffix in (
        ".nii", ".img", ".hdr", ".mgh", ".mgz", ".mnc", ".head", ".brik", ".par", ".rec", ".nrrd", ".nhdr", ".mha",
        ".mhd", ".dcm", ".dicom", ".ima",
    )
    for packer in ("", *PACKERS)
)  # fmt: skip
"""Of files that claim to hold a volume, whoever can read it."""

_PACKABLE = {suffix for suffix in VOLUME_SUFFIXES if suffix.count(".") == 1} | {".tar", ".json", ".csv", ".tsv"}
_LONGEST = 5
_SPECIAL = {stat.S_IFIFO: "named pipes", stat.S_IFSOCK: "sockets", stat.S_IFBLK: "devices", stat.S_IFCHR: "devices"}


@lru_cache(maxsize=4096)
def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case, a packer's together with what it packs; "" where there is none.

    A number is no suffix, because UIDs are full of dots; nor are more than five letters, because a name may be.

    Example:
        >>> [suffix_of(name) for name in ("a.NII.gz", "b.PNG", "1.2.840.10008", "README", "scan.Waldorf")]
        ['.nii.gz', '.png', '', '', '']
    """
    stem, _, last = name.rpartition(".")
    if not stem or not last.isalnum() or not last.isascii() or last.isdecimal() or len(last) > _LONGEST:
        return ""
    suffix = f".{last.lower()}"
    if suffix in PACKERS:
        inner = f".{stem.rpartition('.')[2].lower()}"
        if inner in _PACKABLE and len(stem) > len(inner):
            return inner + suffix
    return suffix


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder of a raw tree.

    Attributes:
        where: Its path.
        relative: Its path relative to the root, with slashes; empty for the root itself.
        names: Its regular files and links to such, sorted; hidden ones are left out.
    """

    where: str
    relative: str
    names: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The folder as a path; most folders of a tree hold no file, so it is made only when asked for."""
        return Path(self.where)

    def key(self, name: str) -> str:
        """Path of a file relative to the root."""
        return f"{self.relative}/{name}" if self.relative else name


class RawTree:
    """Walks a raw folder, and keeps account of what it saw and what nobody took.

    Links to folders are followed, each real folder once; where a folder of the tree is also linked, it is seen under
    its own name. Pipes, sockets and devices are never opened. Whatever cannot be read is remembered as rejected.

    Args:
        root: The raw folder.
        claims: Whether a file of that name claims to be an image of this source; such a link that leads nowhere is
            handed out like a file, so that its reader rejects it.
    """

    def __init__(self, root: Path, claims: Callable[[str], bool] = lambda name: False) -> None:
        self.root, self._claims = root, claims
        self.unread: list[tuple[Path, Rejection]] = []
        """Folders and files that cannot be read, each with why."""
        self._rejected: list[tuple[Path, Rejection]] = []
        self._left: Counter[tuple[str, str]] = Counter()
        self._real: set[str] = set()
        self._visited: set[str] = set()

    def folders(self, top: Path | None = None) -> Iterator[Folder]:
        """Yield `top` (the root) and the folders below it that were not yielded before.

        Raises:
            UserError: The root itself cannot be read.
        """
        top = self.root if top is None else top
        links = deque([(str(top), self._relative(top))])
        while links:
            path, relative = links.popleft()
            yield from self._below(path, relative, os.path.realpath(path), links)

    def files(self, top: Path | None = None) -> Iterator[Path]:
        """Yield the regular files below `top` (the root)."""
        for folder in self.folders(top):
            yield from (Path(folder.where, name) for name in folder.names)

    def pass_over(self, folder: Path) -> None:
        """Leave out a folder without a count, because it is looked at elsewhere."""
        self._visited.add(str(folder))

    def leave(self, name: str, why: str) -> None:
        """Count a file that is not taken, by its suffix."""
        self._left[suffix_of(name) or "without suffix", why] += 1

    def dismiss(self, path: Path, why: str) -> None:
        """Reject a file that claims to be a volume of another format; count any other."""
        if suffix_of(path.name) in VOLUME_SUFFIXES:
            self.reject(path, Reason.UNSUPPORTED_ENCODING, "an image of another format than this source's")
        else:
            self.leave(path.name, why)

    def count(self, what: str, why: str, count: int = 1) -> None:
        """Count what is not taken and goes by another name than a suffix."""
        if count:
            self._left[what, why] += count

    def reject(self, path: Path, reason: Reason, message: str) -> None:
        """Remember a file or folder that claims to be an image and cannot be taken."""
        self._rejected.append((path, Rejection(reason, message, stage=Stage.DISCOVER)))

    def reject_unread(self, path: Path, what: str, error: OSError) -> None:
        """Remember what the file system does not let us read."""
        message = f"{what} cannot be read: {error.strerror or type(error).__name__}"
        self.unread.append((path, Rejection(Reason.IO_ERROR, message, stage=Stage.DISCOVER)))

    def seen(self) -> Counter[str]:
        """Everything that was not taken, by suffix."""
        found = Counter(suffix_of(path.name) or "without suffix" for path, _ in self._rejected)
        for (what, _), count in self._left.items():
            found[what] += count
        return found

    def rest(self, source: str) -> Iterator[ScanRef | LeftOut]:
        """Yield a reference for each rejection, then the counts of all that was left out."""
        for path, rejection in sorted((*self._rejected, *self.unread), key=lambda found: found[0]):
            # The slash tells a folder from a file of a series that has the same name.
            key = self._relative(path) + ("/" if str(path) in self._visited else "")
            # All that it says of its names in the corpus is a hash.
            yield ScanRef(source=source, key=key, root=self.root, paths=(path,), subject=key, rejection=rejection)
        for (what, why), count in sorted(self._left.items()):
            yield LeftOut(what=what, why=why, count=count)

    def _below(self, path: str, relative: str, real: str, links: deque[tuple[str, str]]) -> Iterator[Folder]:
        """Walk real folders depth first; links to folders are queued."""
        stack = [(path, relative, real)]
        while stack:
            path, relative, real = stack.pop()
            if path in self._visited:
                continue
            self._visited.add(path)
            if real in self._real:
                self._left["linked folders", "the folder was seen already"] += 1
                continue
            self._real.add(real)
            found = self._list(path)
            if found is None:
                continue
            names, folders, linked = found
            if relative and is_corpus((*names, *folders)):
                self._left["corpora of harmonize", "not raw data"] += 1
                continue
            yield Folder(path, relative, tuple(names))
            prefix = f"{relative}/" if relative else ""
            stack += [(f"{path}/{name}", prefix + name, f"{real}/{name}") for name in reversed(folders)]
            links += [(f"{path}/{name}", prefix + name) for name in linked]

    def _list(self, path: str) -> tuple[list[str], list[str], list[str]] | None:
        """Names of a folder's files, folders and links to folders, each sorted; None where it cannot be read."""
        names: list[str] = []
        folders: list[str] = []
        linked: list[str] = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    name = entry.name
                    # The type stands in the folder itself: only links cost a look at the file.
                    if name.startswith("."):
                        self._left[HIDDEN[entry.is_dir(follow_symlinks=False)]] += 1
                    elif entry.is_file(follow_symlinks=False):
                        names.append(name)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(name)
                    else:
                        self._sort_in(entry, names, linked)
        except OSError as error:
            if not self.unread and path == str(self.root):
                raise WrongUse(f"{path}: cannot be read: {error.strerror}") from error
            self.reject_unread(Path(path), "a folder", error)
            return None
        return sorted(names), sorted(folders), sorted(linked)

    def _sort_in(self, entry: os.DirEntry[str], names: list[str], linked: list[str]) -> None:
        """Tell what a link leads to; count what is neither file nor folder."""
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            if self._claims(entry.name):
                names.append(entry.name)
            elif error.errno in BROKEN:
                self._left["broken links", "they lead nowhere"] += 1
            else:
                self.reject_unread(Path(entry.path), "a link", error)
            return
        if stat.S_ISREG(mode):
            names.append(entry.name)
        elif stat.S_ISDIR(mode):
            linked.append(entry.name)
        else:
            self._left[_SPECIAL.get(stat.S_IFMT(mode), "special files"), "never opened"] += 1

    def _relative(self, path: Path) -> str:
        relative = path.relative_to(self.root).as_posix()
        return "" if relative == "." else relative


def is_corpus(names: Collection[str]) -> bool:
    """Whether a folder that holds these names is a corpus of ours."""
    return CORPUS_FILE in names and not CORPUS_PARTS.isdisjoint(names)
