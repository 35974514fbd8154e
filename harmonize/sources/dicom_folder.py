"""CT, MR and PET DICOM in any folder layout, whoever made it; all ids count as private.

Folder names are never trusted: download tools and archives shorten them, drop accents and put spaces into them. Series
are found by what the files say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from harmonize.decisions import Decision
from harmonize.dicom import DicomVolume, find_volumes, is_dicom_name, reload_volume, take
from harmonize.dicom.owners import one_patient
from harmonize.dicom.traits import PATIENT
from harmonize.progress import Progress
from harmonize.raw_tree import RawTree
from harmonize.scan import LeftOut, Scan, ScanRef, raise_if_rejected
from harmonize.sources.first_look import check_root, nothing_found

SOURCE = "dicom"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ids:
    """Whose a volume is.

    Attributes:
        subject: As the files or a table say.
        session: Likewise, or None.
        public_id: A name for the scan that is public already, or None.
    """

    subject: str
    session: str | None
    public_id: str | None = None


PublicIds = Callable[[DicomVolume, str, str], Ids | None]
"""What is public of a volume, its patient and its study; None where nothing is."""


def discover(root: Path) -> Iterator[ScanRef | LeftOut]:
    """Yield one reference a volume under `root`, from the headers of its DICOM files; then what was not taken.

    Raises:
        UserError: `root` is no folder, or nothing in it is DICOM.
    """
    yield from discover_as(SOURCE, root)


def discover_as(
    source: str,
    root: Path,
    *,
    takes: Callable[[Path, RawTree], bool] = lambda path, tree: False,
    public: PublicIds = lambda volume, patient, study: None,
) -> Iterator[ScanRef | LeftOut]:
    """As `discover`, for a source of another name.

    Volumes that are rejected by their headers (scouts, captures, reformats, PET without attenuation correction, damaged
    files ...) are yielded too, for `load` to raise; objects that are no pictures are counted.

    Args:
        source: The name.
        root: The raw folder.
        takes: Whether the source reads a file itself, as its tables; asked before any file is opened.
        public: What is public of a volume.

    Raises:
        UserError: `root` is no folder, or nothing in it is DICOM.
    """
    check_root(source, root)
    tree = RawTree(root, is_dicom_name)
    files = [path for path in tree.files() if not takes(path, tree) and take(path, tree)]
    if not files and not tree.unread:
        raise nothing_found(source, root, tree.seen())
    with Progress("read headers", total=len(files), unit="file") as progress:
        volumes = find_volumes(_counted(files, progress))
    for volume in volumes:
        yield _reference(source, root, volume, public)
    pictures = {path for volume in volumes for path in volume.paths}
    tree.count("DICOM objects", "they hold no pictures", sum(path not in pictures for path in files))
    yield from tree.rest(source)


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


def persons_of(volume: DicomVolume) -> dict[str, str]:
    """What tells the patients apart whose pictures stand under one series UID; nothing where there is one patient."""
    return {name: value for name, value in volume.member if name in PATIENT}


def _counted(files: Iterable[Path], progress: Progress) -> Iterator[Path]:
    for file in files:
        yield file
        progress.advance()


def _reference(source: str, root: Path, volume: DicomVolume, public: PublicIds) -> ScanRef:
    first = volume.paths[0]
    series = volume.series_uid or first.relative_to(root).as_posix()
    member = "".join(f"/{name}={value}" for name, value in volume.member)
    ids = _ids(root, volume, public)
    return ScanRef(
        source=source,
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


def _ids(root: Path, volume: DicomVolume, public: PublicIds) -> Ids:
    if not volume.stack.frames:
        return Ids(subject=volume.paths[0].parent.relative_to(root).as_posix(), session=None)
    headers = [frame.header for frame in volume.stack.frames]
    patient = one_patient(header.patient_id for header in headers)
    study = _shared(header.study_uid for header in headers)
    known = public(volume, patient, study)
    if known is not None:
        return known
    person = "".join(f"/{value}" for name, value in sorted(persons_of(volume).items()) if name != "patient")
    return Ids(subject=(patient or study or volume.series_uid or "unknown") + person, session=study or None)


def _shared(values: Iterable[str]) -> str:
    """The one value of all pictures; none where an anonymiser drew one for each file."""
    found = set(values)
    return found.pop() if len(found) == 1 else ""
