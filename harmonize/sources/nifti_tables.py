"""Which rows of which table speak of which NIfTI image: the user's one, or BIDS's own of each data set in a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harmonize.errors import UserError
from harmonize.raw_tree import RawTree
from harmonize.sources import own_rows
from harmonize.sources.nifti_masks import Image
from harmonize.sources.nifti_names import read_name
from harmonize.sources.own_table import OwnTable, Row, read_own_table
from harmonize.sources.tables import EmptyTable

PARTICIPANTS = "participants.tsv"
"""BIDS's table of people, at the top of a data set."""

log = logging.getLogger(__name__)


def rows_of(
    images: Sequence[Image], table: Path | None, tables: Mapping[str, Path], tree: RawTree
) -> tuple[list[tuple[Image, Row]], bool]:
    """(what the table says of each image, whether that is whose it is); rows that speak of none are counted.

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
        read = {"": read_own_table(table, tree, option="--table")}
    else:
        read = {folder: own for folder in tables if (own := _read_in(folder, tables[folder], tree))}
    # All are asked, so that each knows which of its rows have an image.
    said = {folder: _said_of(own, folder, images, tree) for folder, own in read.items()}
    found = [(image, _row_of(image, said)) for image in images]
    silent = sum(row == Row() for _, row in found)
    if read and silent:
        log.warning("%d of %d images have no row in the table", silent, len(images))
    return found, all(own.says_whose for own in read.values())


def _said_of(table: OwnTable, folder: str, images: Sequence[Image], tree: RawTree) -> dict[str, Row]:
    """The rows of the table of a folder, by the paths of the folder's images."""
    if not folder:
        return own_rows.rows_of(table, images, tree.root, tree)
    inside = [
        replace(image, name=read_name(tuple(image.relative[len(folder) + 1 :].split("/")[:-1]), image.case))
        for image in images
        if image.relative.startswith(f"{folder}/")
    ]
    found = own_rows.rows_of(table, inside, tree.root / folder, tree)
    # Other data sets of the tree may call other people the same.
    return {
        relative: replace(row, subject=f"{folder}/{row.subject}") if table.by_file and row.subject else row
        for relative, row in found.items()
    }


def _row_of(image: Image, said: Mapping[str, Mapping[str, Row]]) -> Row:
    """The first row that says something of an image: of the root's table, else of the nearest folder's."""
    parts = image.relative.split("/")
    # The root's comes first, as it did when it was the only one that was read.
    folders = ("", *("/".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)))
    rows = [said[folder].get(image.relative, Row()) for folder in folders if folder in said]
    return next((row for row in rows if row != Row()), Row())


def _read_in(folder: str, path: Path, tree: RawTree) -> OwnTable | None:
    """The table of a folder, which nobody named; one of many data sets that cannot be read stops none of the others."""
    try:
        return read_own_table(path, tree)
    except OSError as error:
        if not folder:
            raise
        tree.reject_unread(path, "a table of people", error)
        return None
    except UserError as error:
        if folder:
            tree.count(f"tables {PARTICIPANTS} of data sets", "not read: damaged, or without a column participant_id")
        elif isinstance(error, EmptyTable):
            log.warning("%s is empty: it says nothing of any image", PARTICIPANTS)
        else:
            raise
        return None
