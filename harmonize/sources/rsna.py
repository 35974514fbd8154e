"""RSNA 2025 intracranial aneurysm detection: one DICOM series a patient, with labels, localizers and vessel masks."""

from __future__ import annotations

import ast
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from harmonize.aneurysm_labels import LABELS, LOCATIONS, MASK_VALUES
from harmonize.dicom import Rules, Volume, find_files, find_volumes, load_volume, raise_if_refused
from harmonize.dicom_geometry import pixel_to_ras
from harmonize.dicom_headers import Frame
from harmonize.errors import Reason, Rejection, UserError
from harmonize.scan import Mask, Point, Scan, ScanRef

RULES = Rules(keep_derived=True, assume_geometry=True)
"""The series were chosen by the organisers, and the test gateway strips the geometry of multi-frame files."""

MODALITIES = {"CTA": "CTA", "MRA": "MRA", "MRI T2": "T2w", "MRI T1post": "T1post"}
"""Names in train.csv, by the corpus's names."""

MAX_MASK_DISTANCE_MM = 10.0
"""A vessel mask whose centre is farther from the image's centre belongs to another image."""

NIFTI_FAULTS = (
    ImageFileError, HeaderDataError, WrapStructError, zlib.error, OSError, EOFError, ValueError, TypeError,
    OverflowError, MemoryError,
)  # fmt: skip
"""What nibabel is known to raise on damaged files."""

LOCALIZER_DROPPED = "localizer dropped"
"""How a decision begins that loses a labelled place."""

_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_SEXES = {"Female": "F", "Male": "M"}


def discover(root: Path) -> Iterator[ScanRef]:
    """Yield one reference for each row of ``train.csv``, in its order; no DICOM file is opened.

    Raises:
        UserError: `root` is not laid out as the competition's download.
    """
    train = _read_table(root / "train.csv", ("SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS))
    localizers = _localizers(root)
    seen: set[str] = set()
    for row in train.to_dict("records"):
        uid = str(row["SeriesInstanceUID"]).strip()
        meta: dict[str, object] = {
            "age": _age(row["PatientAge"]),
            "sex": _SEXES.get(str(row["PatientSex"]).strip()),
            "labels": _labels(row),
            "localizers": localizers.get(uid, ()),
        }
        if not _UID.fullmatch(uid):
            meta["refused"] = (Reason.UNSAFE_NAME.value, "a series id that is no file name")
        elif uid in seen:
            meta["refused"] = (Reason.DUPLICATE.value, "the series stands twice in train.csv")
        refused = "refused" in meta
        seen.add(uid)
        yield ScanRef(
            source="rsna",
            key=uid,
            root=root,
            paths=() if refused else _files(root / "series" / uid),
            subject=uid,
            modality=MODALITIES.get(str(row["Modality"]).strip()),
            public_id=None if refused else uid,
            meta=meta if refused else meta | {"mask": _mask_path(root / "segmentations", uid)},
        )


def load(ref: ScanRef) -> Scan:
    """Read a series with what the tables say about it; points and mask are in the scan's own world coordinates.

    Raises:
        Rejection: The series is missing, or none of its volumes can be used.
    """
    raise_if_refused(ref.meta)
    if not ref.paths:
        raise Rejection(Reason.MISSING_FILE, "the series has no files")
    scan, frames = load_largest(find_volumes(ref.paths, RULES))
    if ref.modality is not None:
        if (ref.modality == "CTA") != (scan.modality == "CT"):
            scan.decisions.append(f"train.csv says {ref.modality}, the DICOM header {scan.modality}")
        scan.modality = ref.modality
    scan.labels = _dict_or_none(ref.meta.get("labels"))
    scan.age, scan.sex = ref.meta.get("age"), ref.meta.get("sex")  # type: ignore[assignment]
    scan.points = tuple(_points(ref.meta.get("localizers", ()), frames, scan.decisions))  # type: ignore[arg-type]
    mask_path = ref.meta.get("mask")
    if isinstance(mask_path, Path):
        mask = _read_mask(mask_path, scan)
        if mask is not None:
            scan.masks["vessels"] = mask
    return scan


def load_series(folder: Path) -> Scan:
    """Read a folder as one DICOM series, as `load` does, but without the competition's tables.

    The four-way modality is not known then: it is ``CT`` or what the MR header tells.

    Raises:
        UserError: There is no such folder.
        Rejection: None of its volumes can be used.
    """
    return load_largest(find_volumes(_files(_checked(folder)), RULES))[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One of the series of a folder; its headers have been read, its pixels have not.

    Attributes:
        name: The folder that holds it and no other, relative to the folder that was looked at (``.`` for that itself),
            or its SeriesInstanceUID; unique among those found together.
        volumes: What its files hold.
    """

    name: str
    volumes: tuple[Volume, ...]

    def load(self) -> Scan:
        """Read its largest usable volume.

        Raises:
            Rejection: None can be used.
        """
        return load_largest(self.volumes)[0]


def find_series(folder: Path) -> list[Series]:
    """The DICOM series in a folder and below: pictures of one patient, study and series number each.

    Files without a SeriesInstanceUID are taken by folder, as the test gateway hands them out. A file that cannot be
    read counts to the series that it lies among, if that is one.

    Raises:
        UserError: There is no such folder.
    """
    by_identity: dict[tuple[str, ...], list[Volume]] = {}
    damaged: list[Volume] = []
    for volume in find_volumes(find_files(_checked(folder)), RULES):
        if volume.stack.frames:
            header = volume.stack.frames[0].header
            home = "" if header.series_uid else header.path.parent.as_posix()
            identity = (header.patient_id, header.study_uid, header.series_uid, home)
            by_identity.setdefault(identity, []).append(volume)
        else:
            damaged.append(volume)
    neighbours: dict[Path, list[list[Volume]]] = {}
    for found in by_identity.values():
        for place in _folders(found):
            neighbours.setdefault(place, []).append(found)
    strays: dict[Path, list[Volume]] = {}
    for volume in damaged:
        place = volume.paths[0].parent
        among = neighbours.get(place, [])
        (among[0] if len(among) == 1 else strays.setdefault(place, [])).append(volume)
    groups = [*by_identity.values(), *strays.values()]
    names = _names(groups, folder)
    return sorted((Series(name=n, volumes=tuple(g)) for n, g in zip(names, groups, strict=True)), key=lambda s: s.name)


def load_largest(volumes: Sequence[Volume]) -> tuple[Scan, list[Frame]]:
    """Load the largest volume of a series that is not refused: (scan, all pictures of the series).

    Raises:
        Rejection: There is none.
    """
    usable = [volume for volume in volumes if volume.refusal is None]
    if not usable:
        largest = max(volumes, key=_picture_count, default=None)
        if largest is None or largest.refusal is None:
            raise Rejection(Reason.NOT_AN_IMAGE, "the series holds no pictures")
        raise Rejection(*largest.refusal)
    best = max(usable, key=_picture_count)
    scan = load_volume(best)
    left_out = sum(len(volume.stack.frames) for volume in volumes) - len(best.stack.frames)
    if left_out:
        scan.decisions.append(f"{left_out} other pictures of the series left out")
    unreadable = sum(not volume.stack.frames for volume in volumes)
    if unreadable:
        scan.decisions.append(f"{unreadable} files of the series that cannot be read left out")
    return scan, [frame for volume in volumes for frame in volume.stack.frames]


def _folders(volumes: Sequence[Volume]) -> set[Path]:
    return {path.parent for volume in volumes for path in volume.paths}


def _names(groups: Sequence[Sequence[Volume]], root: Path) -> list[str]:
    """A name for each series: its folder where it has that alone, else its SeriesInstanceUID, numbered where shared."""
    holders = Counter(place for group in groups for place in _folders(group))
    names: list[str] = []
    for group in groups:
        places, uid = _folders(group), group[0].series_uid
        if len(places) == 1 and holders[next(iter(places))] == 1:
            name = next(iter(places)).relative_to(root).as_posix()
        else:
            name = uid if _UID.fullmatch(uid) else min(places).relative_to(root).as_posix()
        names.append(name)
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _picture_count(volume: Volume) -> int:
    return max(1, len(volume.stack.frames))


def _points(
    localizers: Sequence[tuple[str, str, str]], frames: Sequence[Frame], decisions: list[str]
) -> Iterator[Point]:
    by_sop: dict[str, list[Frame]] = {}
    for frame in frames:
        by_sop.setdefault(frame.header.sop_uid, []).append(frame)
    for sop_uid, coordinates, location in localizers:
        place = _coordinates(coordinates)
        if place is None or location not in LOCATIONS:
            decisions.append(f"{LOCALIZER_DROPPED}: its coordinates or location cannot be read")
            continue
        column, row, number = place
        pictures = by_sop.get(sop_uid, [])
        picture = (
            next((p for p in pictures if p.index == number), None) if len(pictures) > 1 else next(iter(pictures), None)
        )
        if picture is None:
            decisions.append(f"{LOCALIZER_DROPPED} ({location}): its picture is not in the series")
        elif not picture.position or not picture.orientation or not picture.spacing:
            decisions.append(f"{LOCALIZER_DROPPED} ({location}): its picture has no geometry")
        else:
            x, y, z = pixel_to_ras(picture.position, picture.orientation, picture.spacing, column, row).tolist()
            yield Point(label=location, xyz_mm=(x, y, z))


def _coordinates(text: str) -> tuple[float, float, int | None] | None:
    """(x, y, frame) from a Python dict literal; None where it is not one."""
    try:
        found = ast.literal_eval(text)
        x, y, frame = float(found["x"]), float(found["y"]), found.get("f")
        number = None if frame is None else int(frame)
    except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, MemoryError, RecursionError):
        return None
    return (x, y, number) if math.isfinite(x) and math.isfinite(y) else None


def _read_mask(path: Path, scan: Scan) -> Mask | None:
    """The vessel mask, or None with a decision where it does not belong to the volume."""
    try:
        image = nib.Nifti1Image.from_filename(path)
        labels = np.asanyarray(image.dataobj).squeeze()
        affine = np.asarray(image.affine, np.float64)
    except NIFTI_FAULTS as error:
        scan.decisions.append(f"mask dropped: it cannot be read ({type(error).__name__})")
        return None
    fault = _mask_fault(labels, affine, scan)
    if fault:
        scan.decisions.append(f"mask dropped: {fault}")
        return None
    return Mask(labels_XYZ=labels.astype(np.uint8), affine=affine)


def _mask_fault(labels: NDArray[Any], affine: NDArray[np.float64], scan: Scan) -> str:
    # Converters may turn a sagittal stack round, so the axes' order may differ; the affine says where they lie.
    if sorted(labels.shape) != sorted(scan.voxels_XYZ.shape):
        return "its shape is not the volume's"
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        return "its affine is singular"
    last = np.array(scan.voxels_XYZ.shape) - 1.0
    if scan.slice_offsets is not None:
        last[2] = scan.slice_offsets[-1]
    centre = scan.affine @ [*(last / 2), 1]
    mask_centre = affine @ [*((np.array(labels.shape) - 1) / 2), 1]
    if np.linalg.norm(centre - mask_centre) > MAX_MASK_DISTANCE_MM:
        return "it lies elsewhere than the volume"
    if not np.isin(np.unique(labels), (0, *MASK_VALUES)).all():
        return "it has values that name no vessel"
    return ""


def _mask_path(folder: Path, uid: str) -> Path | None:
    candidates = (
        directory / f"{uid}_cowseg{suffix}" for directory in (folder, folder / uid) for suffix in (".nii", ".nii.gz")
    )
    return next((path for path in candidates if path.is_file()), None)


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of one DICOM series", exit_code=2)
    return folder


def _files(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")))


def _localizers(root: Path) -> dict[str, tuple[tuple[str, str, str], ...]]:
    """(SOP instance, coordinates as text, location) of each localizer by series; none without the table."""
    path = root / "train_localizers.csv"
    if not path.is_file():
        return {}
    table = _read_table(path, ("SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location"))
    found: dict[str, list[tuple[str, str, str]]] = {}
    for row in table.to_dict("records"):
        entry = (str(row["SOPInstanceUID"]).strip(), str(row["coordinates"]), str(row["location"]).strip())
        found.setdefault(str(row["SeriesInstanceUID"]).strip(), []).append(entry)
    return {uid: tuple(entries) for uid, entries in found.items()}


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path}: not found; give the folder that holds the competition's train.csv and series/")
    try:
        table = pd.read_csv(path, dtype={"SeriesInstanceUID": str, "SOPInstanceUID": str})
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a CSV table ({type(error).__name__}); download it again") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; is it the competition's table?")
    return table


def _labels(row: Mapping[Any, Any]) -> dict[str, int] | None:
    try:
        values = {name: int(row[name]) for name in LABELS}
    except (ValueError, TypeError):
        return None
    return values if set(values.values()) <= {0, 1} else None


def _age(value: object) -> float | None:
    try:
        age = float(str(value))
    except ValueError:
        return None
    return age if math.isfinite(age) and 0 <= age <= 130 else None


def _dict_or_none(value: object) -> dict[str, int] | None:
    return dict(value) if isinstance(value, Mapping) else None
