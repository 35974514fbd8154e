"""RSNA 2025 intracranial aneurysm detection: one DICOM series a patient, with labels, localizers and vessel masks."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from harmonize.decisions import Decision, DecisionKind
from harmonize.dicom import find_volumes, is_dicom_name
from harmonize.dicom.geometry import pixel_to_ras
from harmonize.dicom.headers import Frame
from harmonize.errors import Reason, Rejection
from harmonize.labels import LOCATIONS
from harmonize.raw_tree import VOLUME_SUFFIXES, RawTree, suffix_of
from harmonize.scan import LeftOut, Point, Scan, ScanRef, annotations_of, raise_if_rejected
from harmonize.sources.dicom_series import RULES, SAFE_UID, load_largest
from harmonize.sources.first_look import check_root
from harmonize.sources.rsna_masks import find_masks, read_mask
from harmonize.sources.rsna_tables import LOCALIZERS, TRAIN, read_localizers, read_train

SERIES = "series"


def discover(root: Path) -> Iterator[ScanRef | LeftOut]:
    """Yield one reference for each series of ``train.csv``, in its order; then what was not taken.

    No DICOM file is opened. Rows of one series that contradict each other take what they differ in from each other;
    what a series without usable labels is worth stands in its decisions and in the counts.

    Raises:
        UserError: `root` is not laid out as the competition's download.
    """
    check_root("rsna", root)
    tree = RawTree(root, claims=_may_be_dicom)
    rows = read_train(root, tree)
    localizers = read_localizers(root, tree, rows)
    masks = find_masks(root, tree, rows)
    for uid, said in rows.items():
        yield _reference(root, tree, uid, said, {"localizers": localizers.get(uid, ()), "mask": masks.get(uid)})
    _leave_strangers(root, tree)
    yield from tree.rest("rsna")


def load(ref: ScanRef) -> Scan:
    """Read a series with what the tables say about it; points and mask are in the scan's own world coordinates.

    Raises:
        Rejection: The series is missing, or none of its volumes can be used.
    """
    raise_if_rejected(ref)
    if not ref.paths:
        raise Rejection(Reason.MISSING_FILE, "the series has no files")
    scan, frames = load_largest(find_volumes(ref.paths, RULES), estimate=None)  # points are told by frame
    decisions = list(scan.decisions)
    if ref.modality is not None and (ref.modality == "CTA") != (scan.modality == "CT"):
        decisions.append(DecisionKind.MODALITY_DIFFERS(said=ref.modality, read=scan.modality))
    decisions += cast(tuple[Decision, ...], ref.meta.get("notes", ()))
    points, dropped = _points(ref.meta.get("localizers", ()), frames)  # type: ignore[arg-type]
    annotations = annotations_of(ref.meta, points)
    labels = annotations.labels
    negative = {point.label for point in points if labels is not None and not labels[point.label]}
    decisions += [*dropped, *(DecisionKind.POINT_WITHOUT_LABEL(location=label) for label in sorted(negative))]
    mask_path, mask = ref.meta.get("mask"), None
    if isinstance(mask_path, Path):
        mask, unfit = read_mask(mask_path, scan)
        decisions += unfit
    return replace(
        scan,
        modality=ref.modality or scan.modality,
        annotations=annotations,
        masks={} if mask is None else {"vessels": mask},
        decisions=tuple(decisions),
    )


def _points(localizers: Sequence[tuple[str, str, str]], frames: Sequence[Frame]) -> tuple[list[Point], list[Decision]]:
    """The places of localizers, and those that were dropped."""
    points: list[Point] = []
    dropped: list[Decision] = []
    by_sop: dict[str, list[Frame]] = {}
    for frame in frames:
        by_sop.setdefault(frame.header.sop_uid, []).append(frame)
    for sop_uid, coordinates, location in localizers:
        place = _coordinates(coordinates)
        if place is None or location not in LOCATIONS:
            dropped.append(DecisionKind.LOCALIZER_UNREADABLE())
            continue
        column, row, number = place
        pictures = by_sop.get(sop_uid, [])
        picture = (
            next((p for p in pictures if p.index == number), None) if len(pictures) > 1 else next(iter(pictures), None)
        )
        if picture is None:
            dropped.append(DecisionKind.LOCALIZER_DROPPED(location=location, why="its picture is not in the series"))
        elif not _has_geometry(picture):
            dropped.append(DecisionKind.LOCALIZER_DROPPED(location=location, why="its picture has no geometry"))
        else:
            x, y, z = pixel_to_ras(picture.position, picture.orientation, picture.spacing, column, row).tolist()
            points.append(Point(label=location, xyz_mm=(x, y, z)))
    return points, dropped


def _has_geometry(picture: Frame) -> bool:
    numbers = (picture.position, picture.orientation, picture.spacing)
    return [len(each) for each in numbers] == [3, 6, 2] and all(
        math.isfinite(value) for each in numbers for value in each
    )


def _coordinates(text: str) -> tuple[float, float, int | None] | None:
    """(x, y, frame) from a Python dict literal; None where it is not one."""
    try:
        found = ast.literal_eval(text)
        x, y, frame = float(found["x"]), float(found["y"]), found.get("f")
        number = None if frame is None else int(frame)
    except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, MemoryError, RecursionError):
        return None
    return (x, y, number) if math.isfinite(x) and math.isfinite(y) else None


def _reference(
    root: Path, tree: RawTree, uid: str, said: Mapping[str, object], beside: Mapping[str, object]
) -> ScanRef:
    meta: dict[str, object] = {name: said[name] for name in ("age", "sex", "labels", "notes")} | dict(beside)
    is_safe = SAFE_UID.fullmatch(uid) is not None
    paths: tuple[Path, ...] = ()
    rejection: Rejection | None = None
    if is_safe:
        unread = len(tree.unread)
        packed: list[str] = []
        paths = _files(tree, root / SERIES / uid, packed)
        if len(tree.unread) > unread:
            rejection = tree.unread[unread][1]
            del tree.unread[unread:]
        elif packed and not paths:
            message = "the series holds packed or foreign images only"
            rejection = Rejection(Reason.UNSUPPORTED_ENCODING, message)
    else:
        rejection = Rejection(Reason.UNSAFE_NAME, "a series id that is no file name")
    return ScanRef(
        source="rsna",
        key=uid,
        root=root,
        paths=paths,
        subject=uid,
        modality=cast(str | None, said["modality"]),
        public_id=uid if is_safe else None,
        meta=meta,
        rejection=rejection,
    )


def _files(tree: RawTree, folder: Path, others: list[str] | None = None) -> tuple[Path, ...]:
    """The files of a series that may be DICOM; `tree` keeps account of the rest, `others` of images among it."""
    if not folder.is_dir():
        return ()
    found = []
    for path in tree.files(folder):
        if _may_be_dicom(path.name):
            found.append(path)
        else:
            tree.dismiss(path, "no DICOM")
            if others is not None and suffix_of(path.name) in VOLUME_SUFFIXES:
                others.append(path.name)
    return tuple(sorted(found))


def _may_be_dicom(name: str) -> bool:
    """By the name alone: the competition's files are ``<SOPInstanceUID>.dcm``, some mirrors drop the suffix."""
    return is_dicom_name(name) or (not suffix_of(name) and name.upper() != "DICOMDIR")


def _leave_strangers(root: Path, tree: RawTree) -> None:
    """Account for what lies beside the series of ``train.csv``: a row for each folder of DICOM files."""
    for folder in tree.folders():
        images = [name for name in folder.names if is_dicom_name(name)]
        strange = folder.relative.startswith(f"{SERIES}/")
        if strange and not images:
            images = [name for name in folder.names if _may_be_dicom(name)]
        if images:
            files = "this file" if len(images) == 1 else f"these {len(images)} files"
            message = f"no row of {TRAIN} names {files}"
            tree.reject(folder.path, Reason.MISSING_METADATA, message)
        for name in set(folder.names).difference(images):
            if folder.relative or name not in (TRAIN, LOCALIZERS):
                tree.dismiss(folder.path / name, "no DICOM of a series")
