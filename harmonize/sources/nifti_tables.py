"""Which rows of which table speak of which NIfTI image: the user's one, or BIDS's own of each data set in a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harmonize.errors import UserError
from harmonize.raw_tree import RawTree, suffix_of
from harmonize.sources.nifti_masks import Image
from harmonize.sources.nifti_names import read_name
from harmonize.sources.own_table import OwnTable, Row, read_own_table

PARTICIPANTS = "participants.tsv"
"""BIDS's table of people, at the top of a data set."""

log = logging.getLogger(__name__)


def rows_of(
    images: Sequence[Image], table: Path | None, tables: Mapping[str, Path], tree: RawTree
) -> list[tuple[Image, Row]]:
    """What the table says of each image; rows that speak of none are counted.

    Args:
        images: All of the tree.
        table: The user's, which is the only one if it is there.
        tables: BIDS's own by their folders relative to the root. That of the root counts, then the nearest: of what
            it says nothing of, the table of the data set that the image lies in does.
        tree: Gets an account of what is of no use.

    Raises:
        UserError: The user's table or the root's does not say what its rows are about.
    """
    if table is not None:
        read = {"": _Rows(read_own_table(table, tree), "", images)}
    else:
        read = {folder: rows for folder in tables if (rows := _read_in(folder, tables[folder], images, tree))}
    found = [(image, _row_of(image, read)) for image in images]
    for rows in read.values():
        own = rows.table
        tree.count(f"rows of {own.path.name}", "no image of theirs", len(own.rows.keys() - own.used))
    silent = sum(row == Row() for _, row in found)
    if read and silent:
        log.warning("%d of %d images have no row in the table", silent, len(images))
    return found


class _Rows:
    """A table, and what it may call the images of its folder.

    Args:
        table: As it was read.
        folder: Where it lies, relative to the root; empty for a table that is about the whole tree.
        images: All of the tree.
    """

    def __init__(self, table: OwnTable, folder: str, images: Sequence[Image]) -> None:
        self.table, self._folder = table, folder
        self._known: Mapping[str, list[str]] = {}
        if table.by_file:
            inside = f"{folder}/" if folder else ""
            self._known = _file_names([image for image in images if image.relative.startswith(inside)])

    def of(self, image: Image) -> Row:
        """What the table says of an image of its folder, or an empty row."""
        if self.table.by_file:
            row = self.table.of_file(self._known[image.relative])
            # Other data sets of the tree may call other people the same.
            of_others = self._folder and row.subject
            return replace(row, subject=f"{self._folder}/{row.subject}") if of_others else row
        name = image.name
        if self._folder:
            name = read_name(tuple(image.relative[len(self._folder) + 1 :].split("/")[:-1]), image.case)
        return self.table.of_subject(name.subject, name.session)


def _row_of(image: Image, read: Mapping[str, _Rows]) -> Row:
    """The first row that says something of an image: of the root's table, else of the nearest folder's."""
    parts = image.relative.split("/")
    # The root's comes first, as it did when it was the only one that was read.
    folders = ("", *("/".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)))
    # All are asked, so that each knows which of its rows have an image.
    said = [read[folder].of(image) for folder in folders if folder in read]
    return next((row for row in said if row != Row()), Row())


def _read_in(folder: str, path: Path, images: Sequence[Image], tree: RawTree) -> _Rows | None:
    """The table of a folder; one of many data sets that cannot be read stops none of the others."""
    try:
        return _Rows(read_own_table(path, tree), folder, images)
    except UserError:
        if not folder:
            raise
        tree.count(f"tables {PARTICIPANTS} of data sets", "not read: damaged, or without a column participant_id")
        return None


def _file_names(images: Sequence[Image]) -> Mapping[str, list[str]]:
    """What a table may call each image, by its path: the path, an end of it, the case; no end that others share."""
    names: dict[str, set[str]] = {}
    for image in images:
        path = image.relative[: len(image.relative) - len(suffix_of(image.relative))]
        parts = path.split("/")
        for name in {image.case, *("/".join(parts[start:]) for start in range(len(parts)))}:
            names.setdefault(name, set()).add(image.relative)
    found: dict[str, list[str]] = {image.relative: [] for image in images}
    cases = {image.case: None for image in images}
    for name, owners in sorted(names.items(), key=lambda item: -len(item[0])):
        for owner in owners if len(owners) == 1 or name in cases else ():
            found[owner].append(name)
    return found
