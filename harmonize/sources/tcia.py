"""TCIA collections: CT, MR and PET DICOM in any folder layout, with NBIA's metadata.csv where it is there.

Folder names are never trusted: the download tools shorten them, drop accents and put spaces into them. Series are
found by what the files say. A Subject ID in metadata.csv is public; without that table all ids count as private.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from harmonize.decisions import Decision
from harmonize.dicom import DicomVolume, find_volumes, is_dicom_name, reload_volume, take
from harmonize.dicom.traits import PATIENT
from harmonize.errors import UserError
from harmonize.progress import Progress
from harmonize.raw_tree import RawTree
from harmonize.scan import LeftOut, Scan, ScanRef, raise_if_rejected
from harmonize.sources.first_look import check_root, nothing_found
from harmonize.sources.tables import read_table

METADATA_NAME = "metadata.csv"
"""What the NBIA Data Retriever calls its table."""

_UID = re.compile(r"[0-9][0-9.]{0,63}")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ids:
    subject: str
    session: str | None
    public_id: str | None


def discover(root: Path) -> Iterator[ScanRef | LeftOut]:
    """Yield one reference a volume under `root`, from the headers of its DICOM files; then what was not taken.

    Volumes that are rejected by their headers (scouts, captures, reformats, PET without attenuation correction, damaged
    files ...) are yielded too, for `load` to raise; objects that are no pictures are counted.

    Raises:
        UserError: `root` is no folder, or nothing in it is DICOM.
    """
    check_root("tcia", root)
    tree = RawTree(root, is_dicom_name)
    files: list[Path] = []
    subjects: dict[str, str] = {}
    for path in tree.files():
        if path.name.lower() == METADATA_NAME:
            _add_subjects(path, subjects, tree)
        elif take(path, tree):
            files.append(path)
    if not files and not tree.unread:
        raise nothing_found("tcia", root, tree.seen())
    with Progress("read headers", total=len(files), unit="file") as progress:
        volumes = find_volumes(_counted(files, progress))
    for volume in volumes:
        yield _reference(root, volume, subjects)
    pictures = {path for volume in volumes for path in volume.paths}
    tree.count("DICOM objects", "they hold no pictures", sum(path not in pictures for path in files))
    yield from tree.rest("tcia")


def load(ref: ScanRef) -> Scan:
    """Read one volume that `discover` found.

    Raises:
        Rejection: The volume is rejected, damaged, or has gone.
    """
    raise_if_rejected(ref)
    scan = reload_volume(ref.paths, cast(int, ref.meta.get("part", 0)))
    # How the volume was split from its series is seen only beside the series' other files.
    found = cast(tuple[Decision, ...], ref.meta.get("decisions", ()))
    first = tuple(line for line in found if line not in scan.decisions)
    return replace(scan, decisions=first + scan.decisions)


def _counted(files: Iterable[Path], progress: Progress) -> Iterator[Path]:
    for file in files:
        yield file
        progress.advance()


def _reference(root: Path, volume: DicomVolume, subjects: dict[str, str]) -> ScanRef:
    first = volume.paths[0]
    series = volume.series_uid or first.relative_to(root).as_posix()
    member = "".join(f"/{name}={value}" for name, value in volume.member)
    ids = _ids(root, volume, subjects)
    return ScanRef(
        source="tcia",
        key=f"{series}{member}/{volume.number}",
        root=root,
        paths=volume.paths,
        subject=ids.subject,
        session=ids.session,
        modality=volume.stack.frames[0].header.contrast if volume.stack.frames else None,
        public_id=ids.public_id,
        meta={"part": volume.part, "decisions": volume.stack.decisions},
        rejection=volume.rejection,
    )


def _ids(root: Path, volume: DicomVolume, subjects: dict[str, str]) -> _Ids:
    if not volume.stack.frames:
        return _Ids(subject=volume.paths[0].parent.relative_to(root).as_posix(), session=None, public_id=None)
    headers = [frame.header for frame in volume.stack.frames]
    patient, study = (_shared(getattr(header, name) for header in headers) for name in ("patient_id", "study_uid"))
    public = subjects.get(volume.series_uid)
    persons = {name: value for name, value in volume.member if name in PATIENT}
    if persons and patient != public:
        public = None  # the table speaks of another of the patients under this UID
    if public is not None and _SAFE_NAME.fullmatch(public) and _UID.fullmatch(volume.series_uid):
        # A digest of what is public already: patients' names and birth dates are no part of it.
        owner = "".join(f"/{value}" for name, value in volume.member if name not in PATIENT)
        suffix = f"_{hashlib.sha256((public + owner).encode()).hexdigest()[:8]}" if volume.member else ""
        suffix += f"_{volume.number}" if volume.number else ""
        session = study if _UID.fullmatch(study) else None
        return _Ids(subject=public, session=session, public_id=f"{volume.series_uid}{suffix}")
    person = "".join(f"/{value}" for name, value in sorted(persons.items()) if name != "patient")
    return _Ids(
        subject=(patient or study or volume.series_uid or "unknown") + person,
        session=study or None,
        public_id=None,
    )


def _shared(values: Iterable[str]) -> str:
    """The one value of all pictures; none where an anonymiser drew one for each file."""
    found = set(values)
    return found.pop() if len(found) == 1 else ""


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
