"""TCIA collections: DICOM in any folder layout, with NBIA's metadata.csv where it is there.

A Subject ID in metadata.csv is public; without that table all ids count as private.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harmonize.dicom import DicomVolume
from harmonize.dicom.traits import PATIENT
from harmonize.errors import UserError
from harmonize.raw_tree import RawTree
from harmonize.scan import LeftOut, ScanRef
from harmonize.sources.dicom_folder import Ids, discover_as, persons_of
from harmonize.sources.dicom_folder import load as load
from harmonize.sources.tables import read_table

SOURCE = "tcia"
METADATA_NAME = "metadata.csv"
"""What the NBIA Data Retriever calls its table."""

_UID = re.compile(r"[0-9][0-9.]{0,63}")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def discover(root: Path) -> Iterator[ScanRef | LeftOut]:
    """Yield one reference a volume under `root`, as `harmonize.sources.dicom_folder.discover` does.

    Raises:
        UserError: `root` is no folder, or nothing in it is DICOM.
    """
    subjects: dict[str, str] = {}
    takes, public = partial(_takes, subjects=subjects), partial(_public_ids, subjects=subjects)
    yield from discover_as(SOURCE, root, takes=takes, public=public)


def _public_ids(volume: DicomVolume, patient: str, study: str, *, subjects: dict[str, str]) -> Ids | None:
    """The ids that the table publishes; it may speak of another of the patients under one UID."""
    public = subjects.get(volume.series_uid)
    if public is None or (persons_of(volume) and patient != public):
        return None
    if not (_SAFE_NAME.fullmatch(public) and _UID.fullmatch(volume.series_uid)):
        return None
    # A digest of what is public already: patients' names and birth dates are no part of it.
    owner = "".join(f"/{value}" for name, value in volume.member if name not in PATIENT)
    suffix = f"_{hashlib.sha256((public + owner).encode()).hexdigest()[:8]}" if volume.member else ""
    suffix += f"_{volume.number}" if volume.number else ""
    session = study if _UID.fullmatch(study) else None
    return Ids(subject=public, session=session, public_id=f"{volume.series_uid}{suffix}")


def _takes(path: Path, tree: RawTree, *, subjects: dict[str, str]) -> bool:
    if path.name.lower() != METADATA_NAME:
        return False
    _add_subjects(path, subjects, tree)
    return True


def _add_subjects(path: Path, subjects: dict[str, str], tree: RawTree) -> None:
    """Add the Subject ID by Series UID of one metadata.csv; a series that has several keeps none."""
    try:
        table = read_table(path, ("Series UID", "Subject ID"))
    except (UserError, OSError):
        # Anybody may call a table so; the ids of one that cannot be read count as private.
        tree.count(METADATA_NAME, "not NBIA's table, so not used")
        return
    tree.count(f"rows of {METADATA_NAME}", "damaged", table.damaged)
    for row in table.rows:
        series, subject = row["Series UID"].strip(), row["Subject ID"].strip()
        if series and subject:
            subjects[series] = subject if subjects.get(series, subject) == subject else ""
