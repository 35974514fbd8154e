"""The volumes in the folders of a raw tree: single files, and pairs of a header and its voxels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from harmonize.errors import Reason
from harmonize.raw_tree import Folder, RawTree, suffix_of
from harmonize.sources.volume_files import HEADERS, PACKED, PARTNERS, READ, stem_of

BIDS = "dataset_description.json"
"""At the root of a BIDS tree."""


def beside_raw(root: Path) -> tuple[str, ...]:
    """The folders at the top of a tree that hold no raw images: of a BIDS tree those for what was made of them."""
    return ("derivatives", "sourcedata", "code", "stimuli") if (root / BIDS).is_file() else ()


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
