"""What a table of a corpus may name: files below its own folders, and ids that no path can be made of.

A corpus comes from strangers too. A row that names ``../outside`` would have whoever reads the corpus open that file,
and whoever publishes it upload that file; it is refused once, where the tables are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from harmonize.errors import UserError
from harmonize.terminal import printable

FOLDER_OF = {"image_file_name": "images", "mask_file_name": "masks", "brain_mask_file_name": "masks"}
"""Columns of the manifest that name files, and the folder of the corpus that these lie in."""

SUFFIX = ".nii.gz"
IDS = ("source", "subject", "session", "scan_id", "raw_hash")
SHOWN = 60


def check(table: pa.Table, *, where: str, folders: Mapping[str, str]) -> None:
    """Check the ids of a table, and the files that it names.

    Args:
        table: Any table of a corpus.
        where: Its path, for the message.
        folders: By column that names files: the folder of the corpus that they lie in.

    Raises:
        UserError: Names the first that is not as harmonize writes it.
    """
    for column in (name for name in IDS if name in table.column_names):
        for text in _texts(table, column):
            if not is_id(text):
                raise _refused(where, column, text, "no id that harmonize gives")
    if "image_file_name" in folders and table["image_file_name"].null_count:
        raise UserError(f"{where}: has a row without image_file_name; restore the table")
    for column, folder in folders.items():
        for text in _texts(table, column):
            if not is_file_below(text, folder):
                raise _refused(where, column, text, f"no file *{SUFFIX} below {folder}/ of the corpus")


def check_row(row: Mapping[str, Any], *, where: str) -> None:
    """Check the files that one row of the manifest names, as `check` does a table: they are opened, and removed.

    Raises:
        UserError: Names the first that is not as harmonize writes it.
    """
    for column, folder in FOLDER_OF.items():
        name = row.get(column)
        if name is not None and not (isinstance(name, str) and is_file_below(name, folder)):
            raise _refused(where, column, str(name), f"no file *{SUFFIX} below {folder}/ of the corpus")


def is_id(text: str) -> bool:
    """Whether a text can be a name in a corpus: it is neither hidden nor a path, and has nothing a terminal obeys.

    Example:
        >>> [is_id(text) for text in ("sub-01", "1.2.840", "..", "a/b", ".hidden", "")]
        [True, True, False, False, False, False]
    """
    return text.isprintable() and not text.startswith(".") and text != "" and "/" not in text and "\\" not in text


def is_file_below(name: str, folder: str) -> bool:
    """Whether a text is the path of a NIfTI file below a folder of the corpus, relative to the corpus.

    Example:
        >>> names = "images/a/b.nii.gz", "images/../b.nii.gz", "/images/b.nii.gz", "masks/b.nii.gz", "images/b.txt"
        >>> [is_file_below(name, "images") for name in names]
        [True, False, False, False, False]
    """
    first, *rest = name.split("/")
    return first == folder and len(rest) > 0 and all(map(is_id, rest)) and PurePosixPath(name).name.endswith(SUFFIX)


def _texts(table: pa.Table, column: str) -> Iterable[str]:
    return pc.unique(table[column]).drop_null().to_pylist()


def _refused(where: str, column: str, text: str, fault: str) -> UserError:
    shown = printable(text[:SHOWN]) + ("..." if len(text) > SHOWN else "")
    return UserError(f"{where}: {column} {shown or 'without a letter'} is {fault}; restore what was there")
