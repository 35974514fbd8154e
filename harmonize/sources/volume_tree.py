"""The volumes in the folders of a raw tree: single files, and pairs of a header and its voxels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from harmonize.errors import Reason
from harmonize.raw_tree import Folder, RawTree, suffix_of
from harmonize.sources.volume_files import HEADERS, PACKED, PARTNERS, READ, stem_of

BIDS = "dataset_description.json"
"""At the root of a BIDS tree."""

MADE = frozenset({"derivatives", "sourcedata", "code", "stimuli"})
"""Folders of a BIDS tree that hold what was made of the raw images, or what these were made of."""

RAW = "rawdata"
"""Where the raw images of a study lie that keeps them beside what was made of them."""


class BesideRaw:
    """Tells which folders of a tree hold no raw images: those for what was made, of each BIDS tree in it.

    There may be many BIDS trees in one folder.

    Args:
        root: Of the tree.
        by_subjects: Whether folders of subjects show a BIDS tree, too, and not only its description.
    """

    def __init__(self, root: Path, *, by_subjects: bool) -> None:
        self._root, self._by_subjects = root, by_subjects
        self._known: dict[str, bool] = {}

    def name_of(self, folder: Folder) -> str | None:
        """The folder for what was made that a folder is or lies in, or None where it may hold raw images."""
        parts = folder.relative.split("/")
        for depth, part in enumerate(parts):
            above = "/".join(parts[:depth])
            # BIDS's own advice for a whole study: rawdata/ beside derivatives/ and sourcedata/.
            if part in MADE and (self._is_bids(above) or self._is_bids("/".join((*parts[:depth], RAW)))):
                return part
        return None

    def _is_bids(self, relative: str) -> bool:
        if relative not in self._known:
            self._known[relative] = _is_bids(self._root / relative, by_subjects=self._by_subjects)
        return self._known[relative]


def _is_bids(folder: Path, *, by_subjects: bool) -> bool:
    try:
        if not by_subjects:
            return (folder / BIDS).is_file()
        with os.scandir(folder) as entries:
            return any(entry.name == BIDS or (entry.name.startswith("sub-") and entry.is_dir()) for entry in entries)
    except OSError:
        # Whoever walks the tree says so.
        return False


def volumes_in(tree: RawTree, folder: Folder, names: Iterable[str]) -> Iterator[tuple[Path, ...]]:
    """The volumes among files of a folder, each with the file of its header where that is another.

    Args:
        tree: Gets an account of what is no volume.
        folder: The folder.
        names: Those of its files that are looked at, sorted.
    """
    path = folder.path
    names = list(names)
    headers = {name.casefold(): name for name in names if suffix_of(name) in HEADERS}
    for name in names:
        suffix = suffix_of(name)
        if suffix in PARTNERS:
            header = _header_of(name, headers)
            yield (path / name,) if header is None else (path / name, path / header)
        elif suffix in READ:
            yield (path / name,)
        elif suffix not in HEADERS:
            tree.dismiss(path / name, "no image")
    for name in headers.values():
        tree.reject(path / name, Reason.MISSING_FILE, "a header whose voxels are not there")


def _header_of(name: str, headers: dict[str, str]) -> str | None:
    """Take the header that belongs to a file of voxels out of those of its folder."""
    candidates = (f"{stem_of(name)}{PARTNERS[suffix_of(name)]}{packer}".casefold() for packer in PACKED)
    return next((headers.pop(candidate) for candidate in candidates if candidate in headers), None)
