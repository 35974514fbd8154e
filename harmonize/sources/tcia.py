"""TCIA collections: CT, MR and PET DICOM in any folder layout, with NBIA's metadata.csv where it is there.

Folder names are never trusted: the download tools shorten them, drop accents and put spaces into them. Series are
found by what the files say. A Subject ID in metadata.csv is public; without that table all ids count as private.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from harmonize.dicom import Volume, find_files, find_volumes, raise_if_refused, reload_volume, walk
from harmonize.dicom_traits import PATIENT
from harmonize.errors import UserError
from harmonize.progress import Progress
from harmonize.scan import Scan, ScanRef

METADATA_NAME = "metadata.csv"
"""What the NBIA Data Retriever calls its table."""

_UID = re.compile(r"[0-9][0-9.]{0,63}")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ids:
    subject: str
    session: str | None
    public_id: str | None


def discover(root: Path) -> Iterator[ScanRef]:
    """Yield one reference a volume under `root`, from the headers of its DICOM files.

    Volumes that are refused by their headers (scouts, captures, reformats, PET without attenuation correction, damaged
    files ...) are yielded too, for `load` to raise; objects that are no pictures are not.

    Raises:
        UserError: `root` is no folder, or a metadata.csv is not NBIA's.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of the TCIA download", exit_code=2)
    subjects = _public_subjects(root)
    files = find_files(root)
    with Progress("read headers", total=len(files), unit="file") as progress:
        volumes = find_volumes(_counted(files, progress))
    for volume in volumes:
        yield _reference(root, volume, subjects)


def load(ref: ScanRef) -> Scan:
    """Read one volume that `discover` found.

    Raises:
        Rejection: The volume is refused, damaged, or has gone.
    """
    raise_if_refused(ref.meta)
    scan = reload_volume(ref.paths, cast(int, ref.meta.get("part", 0)))
    # How the volume was split from its series is seen only beside the series' other files.
    found = cast(tuple[str, ...], ref.meta.get("decisions", ()))
    scan.decisions[:0] = [line for line in found if line not in scan.decisions]
    return scan


def _counted(files: Iterable[Path], progress: Progress) -> Iterator[Path]:
    for file in files:
        yield file
        progress.advance()


def _reference(root: Path, volume: Volume, subjects: dict[str, str]) -> ScanRef:
    first = volume.paths[0]
    series = volume.series_uid or first.relative_to(root).as_posix()
    member = "".join(f"/{name}={value}" for name, value in volume.member)
    ids = _ids(root, volume, subjects)
    meta: dict[str, object] = {"part": volume.part, "decisions": volume.stack.decisions}
    if volume.refusal:
        meta["refused"] = (volume.refusal[0].value, volume.refusal[1])
    return ScanRef(
        source="tcia",
        key=f"{series}{member}/{volume.number}",
        root=root,
        paths=volume.paths,
        subject=ids.subject,
        session=ids.session,
        modality=volume.stack.frames[0].header.contrast if volume.stack.frames else None,
        public_id=ids.public_id,
        meta=meta,
    )


def _ids(root: Path, volume: Volume, subjects: dict[str, str]) -> _Ids:
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


def _public_subjects(root: Path) -> dict[str, str]:
    """Subject ID by Series UID from every metadata.csv below `root`."""
    subjects: dict[str, str] = {}
    for path in (path for path in walk(root) if path.name == METADATA_NAME):
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            table = csv.DictReader(stream)
            missing = {"Series UID", "Subject ID"} - set(table.fieldnames or ())
            if missing:
                raise UserError(f"{path}: no column {', '.join(sorted(missing))}; use the metadata.csv of the download")
            try:
                subjects |= {
                    row["Series UID"].strip(): row["Subject ID"].strip()
                    for row in table
                    if row["Series UID"] and row["Subject ID"]
                }
            except csv.Error as error:
                raise UserError(f"{path}: not a CSV table ({error}); download it again") from error
    return subjects
