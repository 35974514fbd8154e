"""DICOM series in any folder, without a table: which there are, and each of them as one scan."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harmonize.decisions import DecisionKind
from harmonize.dicom import DicomVolume, Rules, find_files, find_volumes, load_volume
from harmonize.dicom.elements import PARSER_FAULTS, read_elements
from harmonize.dicom.estimate import Estimator, estimate_stack
from harmonize.dicom.headers import Frame
from harmonize.errors import Reason, Rejection, Stage, WrongUse
from harmonize.scan import Scan
from harmonize.time_limit import ONE_TURN

RULES = Rules(keep_derived=True, assume_geometry=True)
"""Whoever hands a series over has chosen it; and gateways strip the geometry of multi-frame files."""

SAFE_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
"""SeriesInstanceUIDs, and what stands in their place, that may be file names."""

_IDENTITY = (0x00100020, 0x0020000D, 0x0020000E)
"""PatientID, StudyInstanceUID, SeriesInstanceUID."""


def load_series(folder: Path, estimate: Estimator = estimate_stack) -> Scan:
    """Read a folder as one DICOM series: of several volumes the largest.

    The modality is ``CT``, or what an MR header tells.

    Args:
        folder: The folder.
        estimate: Of the geometry that files do not say.

    Raises:
        UserError: There is no such folder.
        Rejection: None of its volumes can be used.
    """
    return load_files(find_files(_checked(folder)), estimate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One of the series of a folder; its headers have been read, its pixels have not.

    Attributes:
        name: The folder that holds it and no other, relative to the folder that was looked at (``.`` for that itself),
            or its SeriesInstanceUID; unique among those found together.
        volumes: What its files hold.
    """

    name: str
    volumes: tuple[DicomVolume, ...]

    @property
    def uid(self) -> str:
        """Its SeriesInstanceUID; empty where the files do not say, or say what is no UID."""
        uid = self.volumes[0].series_uid
        return uid if SAFE_UID.fullmatch(uid) else ""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files, those that cannot be read included, sorted."""
        return tuple(sorted({path for volume in self.volumes for path in volume.paths}))

    def load(self, estimate: Estimator = estimate_stack) -> Scan:
        """Read its largest usable volume.

        Args:
            estimate: Of the geometry that its file does not say.

        Raises:
            Rejection: None can be used.
        """
        return load_largest(self.volumes, estimate=estimate)[0]


def find_series(folder: Path) -> list[Series]:
    """The DICOM series in a folder and below: pictures of one patient, study and series number each.

    Files without a SeriesInstanceUID are taken by folder, as the test gateway hands them out. A file that cannot be
    read counts to the series that it lies among, if that is one.

    Raises:
        UserError: There is no such folder.
    """
    return group_files(find_files(_checked(folder)), folder)


def group_files(paths: Iterable[Path], folder: Path) -> list[Series]:
    """The DICOM series that files hold, as `find_series` tells them apart.

    Args:
        paths: The files, all of them below `folder`.
        folder: Whose are named relative to it.
    """
    by_identity: dict[tuple[str, ...], list[DicomVolume]] = {}
    damaged: list[DicomVolume] = []
    for volume in find_volumes(paths, RULES):
        if volume.stack.frames:
            header = volume.stack.frames[0].header
            home = "" if header.series_uid else header.path.parent.as_posix()
            identity = (header.patient_id, header.study_uid, header.series_uid, home)
            by_identity.setdefault(identity, []).append(volume)
        else:
            damaged.append(volume)
    neighbours: dict[Path, list[list[DicomVolume]]] = {}
    for found in by_identity.values():
        for place in _folders(found):
            neighbours.setdefault(place, []).append(found)
    strays: dict[Path, list[DicomVolume]] = {}
    for volume in damaged:
        place = volume.paths[0].parent
        among = neighbours.get(place, [])
        (among[0] if len(among) == 1 else strays.setdefault(place, [])).append(volume)
    groups = [*by_identity.values(), *strays.values()]
    names = _names(groups, folder)
    return sorted((Series(name=n, volumes=tuple(g)) for n, g in zip(names, groups, strict=True)), key=lambda s: s.name)


def load_files(paths: Iterable[Path], estimate: Estimator = estimate_stack) -> Scan:
    """Read files as one DICOM series, as `load_series` does those of a folder.

    Raises:
        Rejection: None of their volumes can be used.
    """
    return load_largest(find_volumes(paths, RULES), estimate=estimate)[0]


def read_identity(path: Path) -> tuple[str, str, str] | None:
    """Patient, study and series that a DICOM file says it is of; None where it says no series, or cannot be read.

    It is for comparison alone: the patient's id is never to be written anywhere.
    """
    try:
        with ONE_TURN, path.open("rb") as stream:
            _, elements = read_elements(stream)
            patient, study, series = (elements.text(tag) for tag in _IDENTITY)
    except (Rejection, OSError, *PARSER_FAULTS):
        return None  # whoever reads the whole file says what is wrong with it
    return (patient, study, series) if series else None


def load_largest(
    volumes: Sequence[DicomVolume], *, estimate: Estimator | None = estimate_stack
) -> tuple[Scan, list[Frame]]:
    """Load the largest volume of a series that is not rejected: (scan, all pictures of the series).

    Args:
        volumes: Of the series.
        estimate: As `load_volume` takes it; then the pictures may lie elsewhere than their frames say.

    Raises:
        Rejection: There is none.
    """
    usable = [volume for volume in volumes if volume.rejection is None]
    if not usable:
        largest = max(volumes, key=_picture_count, default=None)
        if largest is None or largest.rejection is None:
            raise Rejection(Reason.NOT_AN_IMAGE, "the series holds no pictures")
        raise largest.rejection.at(Stage.LOAD)
    best = max(usable, key=_picture_count)
    scan = load_volume(best, estimate=estimate)
    left_out = sum(len(volume.stack.frames) for volume in volumes) - len(best.stack.frames)
    decided = [DecisionKind.PICTURES_LEFT_OUT(count=left_out)] if left_out else []
    damaged = Counter(volume.rejection.message for volume in volumes if not volume.stack.frames and volume.rejection)
    decided += [DecisionKind.FILES_LEFT_OUT(count=count, fault=fault) for fault, count in sorted(damaged.items())]
    frames = [frame for volume in volumes for frame in volume.stack.frames]
    return replace(scan, decisions=(*scan.decisions, *decided)), frames


def _folders(volumes: Sequence[DicomVolume]) -> set[Path]:
    return {path.parent for volume in volumes for path in volume.paths}


def _names(groups: Sequence[Sequence[DicomVolume]], root: Path) -> list[str]:
    """A name for each series: its folder where it has that alone, else its SeriesInstanceUID, numbered where shared."""
    holders = Counter(place for group in groups for place in _folders(group))
    names: list[str] = []
    for group in groups:
        places, uid = _folders(group), group[0].series_uid
        if len(places) == 1 and holders[next(iter(places))] == 1:
            name = next(iter(places)).relative_to(root).as_posix()
        else:
            name = uid if SAFE_UID.fullmatch(uid) else min(places).relative_to(root).as_posix()
        names.append(name)
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _picture_count(volume: DicomVolume) -> int:
    return max(1, len(volume.stack.frames))


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        fault = "a file; give the folder that holds it" if folder.exists() else "no such folder; give that of a series"
        raise WrongUse(f"{folder}: {fault}")
    return folder
