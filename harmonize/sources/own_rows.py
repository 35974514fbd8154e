"""Which row of a user's own table speaks of which image: by its path, an end of that, its case, or whose it is.

Names are compared letter by letter first. Rows that speak of no image so are tried without regard to case, and as paths
that begin above the raw folder, where that can mean one image alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from harmonize.raw_tree import RawTree, printable, suffix_of
from harmonize.sources.nifti_labels import IMAGES_OF
from harmonize.sources.nifti_masks import Image
from harmonize.sources.own_table import Key, OwnTable, Row, bare, composed

Fold = Callable[[str], str]
"""How texts are made alike before they are compared."""

_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")

log = logging.getLogger(__name__)


def rows_of(table: OwnTable, images: Sequence[Image], top: Path, tree: RawTree) -> dict[str, Row]:
    """The rows of a table by the paths of the images that they are about.

    Args:
        table: As it was read.
        images: Those that it may speak of.
        top: The folder that its paths are relative to.
        tree: Gets an account of rows that speak of no image, or of no image alone.
    """
    keys, shared = _keys(images, composed, table)
    taken = {image.relative: key for image in images if (key := _first(keys[image.relative], table.rows))}
    unused = table.rows.keys() - set(taken.values())
    taken |= _loosely([image for image in images if image.relative not in taken], images, table, unused, top)
    unused -= set(taken.values())
    several = sum(key[0] in shared for key in unused)
    what = f"rows of {table.path.name}"
    tree.count(what, "several images could be meant", several)
    tree.count(what, "no image of theirs", len(unused) - several)
    silent = [image for image in images if image.relative not in taken]
    hint = _hint(silent, table, unused, none_fits=not taken) if len(unused) > several else ""
    if hint:
        log.warning("%s: %s", printable(table.path.name), hint)
    return {relative: table.rows[key] for relative, key in taken.items()}


def _keys(images: Sequence[Image], fold: Fold, table: OwnTable) -> tuple[Mapping[str, Sequence[Key]], Collection[str]]:
    """(what a table may call each image, by its path, the surest first; names that several images have)."""
    if table.by_file:
        names, shared = _file_names(images, fold)
        return {relative: [(name, "") for name in own] for relative, own in names.items()}, shared
    people: dict[str, set[str]] = {}
    for image in images:
        people.setdefault(_person(image, fold), set()).add(_person(image, composed))
    found = {}
    for image in images:
        person, when = _person(image, fold), bare(fold(image.name.session or ""), "ses-")
        found[image.relative] = [(person, when), (person, "")] if len(people[person]) == 1 else []
    return found, frozenset()


def _person(image: Image, fold: Fold) -> str:
    return bare(fold(image.name.subject), "sub-")


def _file_names(images: Sequence[Image], fold: Fold) -> tuple[Mapping[str, list[str]], Collection[str]]:
    """(names of each image, by its path; those that several images have, which are nobody's).

    A name is the path, with nnU-Net's case in place of the file or without, or an end of it.
    """
    names: dict[str, dict[str, Image]] = {}
    for image in images:
        for last in {image.case, _stem(image)}:
            parts = (*image.folders, last)
            for start in range(len(parts)):
                names.setdefault(fold("/".join(parts[start:])), {})[image.relative] = image
    found: dict[str, list[str]] = {image.relative: [] for image in images}
    shared = {name for name, owners in names.items() if not _is_one(owners.values())}
    for name in sorted(names.keys() - shared, key=lambda name: (-len(name), name)):
        for owner in names[name]:
            found[owner].append(name)
    return found, shared


def _stem(image: Image) -> str:
    name = image.relative.rpartition("/")[2]
    return name[: len(name) - len(suffix_of(name))]


def _is_one(owners: Collection[Image]) -> bool:
    """Whether images are one, or the channels of one of nnU-Net's cases."""
    places = {(image.folders, image.case) for image in owners}
    return len(owners) == 1 or (
        len(places) == 1 and all(image.folders and IMAGES_OF.fullmatch(image.folders[-1]) for image in owners)
    )


def _first(keys: Iterable[Key], rows: Collection[Key]) -> Key | None:
    return next((key for key in keys if key in rows), None)


def _loosely(
    silent: Sequence[Image], images: Sequence[Image], table: OwnTable, unused: Collection[Key], top: Path
) -> dict[str, Key]:
    """Rows of images that none speaks of letter by letter, by the images' paths, where one row and image fit alone."""
    if not silent or not unused:
        return {}
    paths = {_folded("/".join((*image.folders, _stem(image)))) for image in images}
    above = _folded(f"{top.as_posix()}/")
    rows: dict[Key, list[Key]] = {}
    for key in unused:
        person, session = _folded(key[0]), _folded(key[1])
        same = (
            (_below(person, above[:-1], paths), "") if table.by_file else (bare(person, "sub-"), bare(session, "ses-"))
        )
        rows.setdefault(same, []).append(key)
    # Of several tables put together, the paths below this very folder are the ones that are meant.
    surest = {same: [key for key in own if _folded(key[0]).startswith(above)] or own for same, own in rows.items()}
    alone = {same: own[0] for same, own in surest.items() if len(own) == 1}
    keys, _ = _keys(images, _folded, table)
    found = {image.relative: _first(keys[image.relative], alone) for image in silent}
    return {relative: alone[key] for relative, key in found.items() if key is not None}


def _folded(text: str) -> str:
    return composed(text).casefold()


def _below(name: str, top: str, paths: Collection[str]) -> str:
    """A path of a table as it is below the raw folder, where it goes through a folder of that name, here or elsewhere.

    Example:
        >>> _below("/scratch/raw/p1/t1", "/home/ada/raw", {"p1/t1"}), _below("raw/p1/t1", "/home/ada/raw", {"p1/t1"})
        ('p1/t1', 'p1/t1')
        >>> _below("/scratch/other/p1/t1", "/home/ada/raw", {"p1/t1"})
        '/scratch/other/p1/t1'
    """
    own = top.rpartition("/")[2]
    parts = name.split("/")
    for start in range(1, len(parts)):
        below = "/".join(parts[start:])
        if below in paths and parts[start - 1] == own:
            return below
    return name


def _hint(silent: Sequence[Image], table: OwnTable, unused: Collection[Key], *, none_fits: bool) -> str:
    """What may be amiss with rows that speak of no image; empty where they may well be about others."""
    names, _ = _keys(silent, _without_zeros, table)
    known = {key[0] for own in names.values() for key in own}
    count = sum(bare(_without_zeros(key[0]), "" if table.by_file else "sub-") in known for key in unused)
    if count:
        return f"{count} rows differ from the images' names in leading zeros alone; write ids as the names have them"
    if not none_fits:
        return ""
    if table.by_file:
        return "its rows name images otherwise than by their path below the folder, or an end of it that no other has"
    return "its rows name people otherwise than the images' folders or names do"


def _without_zeros(text: str) -> str:
    return _LEADING_ZEROS.sub("", _folded(text))
