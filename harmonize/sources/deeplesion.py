"""DeepLesion: runs of 16-bit PNG slices, whose spacing is looked up for each run."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from harmonize.errors import Reason, Rejection, UserError
from harmonize.scan import HU, Scan, ScanRef

TABLE, IMAGES = "DL_info.csv", "Images_png"
NEEDED = ("File_name", "Slice_range", "Spacing_mm_px_")

HU_OFFSET = 32768
"""HU = pixel value - 32768, says the data set's README."""

HU_RANGE = (-1024, 3071)
"""What a 12-bit scanner can say; padding outside the field of view lies below."""

MAX_SIDE = 4096
DEPTH_16_MODES = ("I;16", "I;16B", "I")
_SERIES = re.compile(r"\d{6}_\d{2}_\d{2}")
_SLICE = re.compile(r"\d{1,5}")

Spacing = tuple[float, float, float]


def discover(root: Path) -> Iterator[ScanRef]:
    """Yield every run of consecutive slices, ordered by series and slice.

    A series may hold several runs, and the runs different spacings, so a row of the table speaks for its own
    ``Slice_range`` alone.

    Args:
        root: The folder with ``Images_png/`` and ``DL_info.csv``.

    Raises:
        UserError: The table is missing or lacks a needed column.
    """
    rows = _rows(root)
    images = root / IMAGES if (root / IMAGES).is_dir() else root
    for folder in sorted(images.iterdir()):
        if not folder.is_dir() or not _SERIES.fullmatch(folder.name):
            continue
        numbers = sorted(
            int(path.stem) for path in folder.glob("*.png") if _SLICE.fullmatch(path.stem) and path.is_file()
        )
        own = rows.get(folder.name, [])
        for run in _runs(numbers, own):
            yield _reference(root, folder, run, own)


def load(ref: ScanRef) -> Scan:
    """Read one run: rows go to posterior, columns to left, slices from head to feet.

    Raises:
        Rejection: A slice is damaged or of another size, or the table gives no single spacing.
    """
    first, last = ref.paths[0].stem, ref.paths[-1].stem
    spacing = _one_spacing(ref.meta["spacings"])
    slices_ZYX: NDArray[np.int16] | None = None
    for index, path in enumerate(ref.paths):
        pixels = _read(path)
        if slices_ZYX is None:
            slices_ZYX = np.empty((len(ref.paths), *pixels.shape), dtype=np.int16)
        if pixels.shape != slices_ZYX.shape[1:]:
            raise Rejection(Reason.MIXED_GEOMETRY, "the slices differ in size")
        slices_ZYX[index] = (pixels.astype(np.int32) - HU_OFFSET).astype(np.int16)
    if slices_ZYX is None:
        raise Rejection(Reason.EMPTY, "no slices")
    low, high = HU_RANGE
    padding, clipped = int((slices_ZYX < low).sum()), int((slices_ZYX > high).sum())
    decisions = [f"slices {first} to {last}, spacing from the table", "origin unknown, set to 0"]
    if padding:
        decisions.append(f"{padding} padding voxels set to {low}")
    if clipped:
        decisions.append(f"{clipped} voxels above {high} HU were clipped")
    x, y, z = spacing
    return Scan(
        voxels_XYZ=np.clip(slices_ZYX, low, high, out=slices_ZYX).transpose(2, 1, 0),
        affine=np.diag([-x, -y, -z, 1.0]),
        modality="CT",
        unit=HU,
        age=_age(str(ref.meta.get("age") or "")),
        sex={"F": "F", "M": "M"}.get(str(ref.meta.get("sex") or "")),
        decisions=decisions,
    )


def _rows(root: Path) -> dict[str, list[tuple[int, int, str, str, str]]]:
    """By series: first and last slice, spacing, sex and age of each row, as the table has them."""
    table = root / TABLE
    if not table.is_file():
        raise UserError(f"{table}: missing; it holds the spacings, put it beside {IMAGES}/", exit_code=2)
    found: dict[str, list[tuple[int, int, str, str, str]]] = {}
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        reader = csv.DictReader(stream)
        absent = [name for name in NEEDED if name not in (reader.fieldnames or [])]
        if absent:
            raise UserError(f"{table}: lacks the columns {', '.join(absent)}; restore it from the dataset", exit_code=2)
        for row in reader:
            series = (row["File_name"] or "").rpartition("_")[0]
            limits = re.findall(r"\d+", row["Slice_range"] or "")
            if len(limits) != 2:
                continue
            entry = (
                int(limits[0]),
                int(limits[1]),
                row["Spacing_mm_px_"] or "",
                row.get("Patient_gender") or "",
                row.get("Patient_age") or "",
            )
            found.setdefault(series, []).append(entry)
    return found


def _runs(numbers: list[int], rows: list[tuple[int, int, str, str, str]]) -> Iterator[list[int]]:
    """Consecutive numbers, parted also where the table changes its spacing."""
    run: list[int] = []
    for number in numbers:
        if run and (number != run[-1] + 1 or _differ(_said(run[-1], rows), _said(number, rows))):
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _said(number: int, rows: list[tuple[int, int, str, str, str]]) -> frozenset[str]:
    return frozenset(spacing for first, last, spacing, _, _ in rows if first <= number <= last)


def _differ(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether both are spoken for, and differently."""
    return bool(one) and bool(other) and one != other


def _reference(root: Path, folder: Path, run: list[int], rows: list[tuple[int, int, str, str, str]]) -> ScanRef:
    name = f"{folder.name}_{run[0]:03d}-{run[-1]:03d}"
    patient, study, _ = folder.name.split("_")
    speaking = [row for row in rows if row[0] <= run[-1] and row[1] >= run[0]]
    return ScanRef(
        source="deeplesion",
        key=name,
        root=root,
        paths=tuple(_slice_path(folder, number) for number in run),
        subject=patient,
        session=study,
        modality="CT",
        public_id=name,
        meta={
            "spacings": tuple(sorted({row[2] for row in speaking})),
            "sex": speaking[0][3] if speaking else "",
            "age": speaking[0][4] if speaking else "",
        },
    )


def _slice_path(folder: Path, number: int) -> Path:
    return folder / f"{number:03d}.png"


def _one_spacing(spacings: object) -> Spacing:
    if not isinstance(spacings, tuple) or not spacings:
        raise Rejection(Reason.MISSING_METADATA, "no row of the table covers these slices, so their spacing is unknown")
    parsed = {_parse_spacing(text) for text in spacings}
    if len(parsed) > 1:
        raise Rejection(Reason.MIXED_GEOMETRY, "the table gives these slices several spacings")
    return parsed.pop()


def _parse_spacing(text: str) -> Spacing:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise Rejection(Reason.MISSING_METADATA, "the table's spacing is not three numbers") from error
    if not all(np.isfinite(mm) and mm > 0 for mm in (x, y, z)):
        raise Rejection(Reason.BAD_GEOMETRY, "the table's spacing is not positive")
    return x, y, z


def _read(path: Path) -> NDArray[np.uint16]:
    """The pixels of one 16-bit PNG, shape (rows, columns)."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if max(image.size) > MAX_SIDE:
                raise Rejection(Reason.TOO_LARGE, f"a slice of {image.size[0]} x {image.size[1]} pixels")
            if image.mode not in DEPTH_16_MODES:
                raise Rejection(Reason.UNSUPPORTED_ENCODING, f"a slice of mode {image.mode} instead of 16-bit grey")
            return np.asarray(image).astype(np.uint16)
    except FileNotFoundError as error:
        raise Rejection(Reason.MISSING_FILE, "a slice is not there") from error
    except UnidentifiedImageError as error:
        raise Rejection(Reason.UNREADABLE, "a slice is no PNG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Rejection(Reason.TRUNCATED, "a slice is cut or damaged") from error


def _age(text: str) -> float | None:
    try:
        years = float(text)
    except ValueError:
        return None
    return years if 0 <= years <= 120 else None
