"""DeepLesion: runs of 16-bit PNG slices, whose spacing is looked up for each run."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Reason, Rejection
from harmonize.limits import check_claim
from harmonize.raw_tree import Folder, RawTree, suffix_of
from harmonize.scan import AIR_HU, HU, LeftOut, Scan, ScanRef, annotations_of, raise_if_rejected
from harmonize.sources.deeplesion_spacing import Size, contradicts, for_size, one_spacing, size_of, size_of_png
from harmonize.sources.first_look import check_root, misnamed, nothing_found
from harmonize.sources.tables import age_of, merge, read_table, sex_of

TABLE, IMAGES = "DL_info.csv", "Images_png"
NEEDED = ("File_name", "Slice_range", "Spacing_mm_px_")
WANTED = ("Image_size", "Patient_gender", "Patient_age")

HU_OFFSET = 32768
"""HU = pixel value - 32768, says the data set's README."""

HU_RANGE = (AIR_HU, 3071)
"""What a 12-bit scanner can say; padding outside the field of view lies below."""

MAX_SIDE = 4096
DEPTH_16_MODES = ("I;16", "I;16B", "I")
SUFFIX = ".png"
NO_SLICES = "none of their slices is there"
"""Said of rows of the table."""

_SERIES = re.compile(r"[0-9]{6}_[0-9]{2}_[0-9]{2}")
_FILE_NAME = re.compile(rf"(?:.*[/\\])?({_SERIES.pattern})[_/\\][^_/\\]*")
"""Of the table: ``000001_01_01_109.png``, or the file's own path."""

_SLICE = re.compile(r"[0-9]{1,5}")
_LONGEST = 9
"""Digits of a slice number that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """What a row of the table says of the slices `first` to `last` of its series."""

    first: int
    last: int
    spacing: str
    size: Size | None
    age: float | None
    sex: str | None
    notes: tuple[Decision, ...]


def discover(root: Path) -> Iterator[ScanRef | LeftOut]:
    """Yield every run of consecutive slices, ordered by folder and slice; then what was not taken.

    A series may hold several runs, and the runs different spacings, so a row of the table speaks for its own
    ``Slice_range`` alone.

    Args:
        root: The folder with ``Images_png/`` and ``DL_info.csv``.

    Raises:
        UserError: The table is missing or lacks a needed column, or no folder is a series.
    """
    check_root("deeplesion", root)
    tree = RawTree(root, claims=lambda name: suffix_of(name) == SUFFIX)
    rows = _rows(root, tree)
    series: set[str] = set()
    for folder in tree.folders():
        name = folder.where.rpartition("/")[2]
        if not _SERIES.fullmatch(name):
            _leave_strangers(tree, folder)
        elif name in series:
            tree.reject(folder.path, Reason.DUPLICATE, "the series lies in another folder too")
        else:
            series.add(name)
            yield from _series(tree, folder, rows.get(name, []))
    if not series and not tree.unread:
        raise nothing_found("deeplesion", root, tree.seen())
    # Archives that were never unpacked, most often.
    absent = sum(len(found) for name, found in rows.items() if name not in series)
    tree.count(f"rows of {TABLE}", NO_SLICES, absent)
    yield from tree.rest("deeplesion")


def load(ref: ScanRef) -> Scan:
    """Read one run: rows go to posterior, columns to left, slices from head to feet.

    Raises:
        Rejection: A slice is damaged or of another size, or the table gives no single spacing, or one for others.
    """
    raise_if_rejected(ref)
    first, last = ref.paths[0].stem, ref.paths[-1].stem
    spacing = one_spacing(ref.meta["spacings"])
    other_sizes = cast(tuple[Size, ...], ref.meta.get("other_sizes", ()))
    resized: list[Decision] = []
    slices_ZYX: NDArray[np.int16] | None = None
    low, high = HU_RANGE
    padding = clipped = 0
    for index, path in enumerate(ref.paths):
        pixels = _read(path, len(ref.paths), None if slices_ZYX is None else slices_ZYX.shape[1:])
        if slices_ZYX is None:
            spacing, resized = for_size(spacing, other_sizes, (pixels.shape[1], pixels.shape[0]))
            slices_ZYX = np.empty((len(ref.paths), *pixels.shape), dtype=np.int16)
        slices_ZYX[index] = (pixels.astype(np.int32) - HU_OFFSET).astype(np.int16)
        padding += int((slices_ZYX[index] < low).sum())
        clipped += int((slices_ZYX[index] > high).sum())
    if slices_ZYX is None:
        raise Rejection(Reason.EMPTY, "no slices")
    decisions = [DecisionKind.PNG_RUN(first=int(first), last=int(last)), *resized, DecisionKind.ORIGIN_UNKNOWN()]
    if padding:
        decisions.append(DecisionKind.PADDING_SET(count=padding, value=low))
    if clipped:
        decisions.append(DecisionKind.CLIPPED_ABOVE(count=clipped, high=high))
    decisions += cast(tuple[Decision, ...], ref.meta.get("notes", ()))
    x, y, z = spacing
    return Scan(
        voxels_XYZ=np.clip(slices_ZYX, low, high, out=slices_ZYX).transpose(2, 1, 0),
        affine=np.diag([-x, -y, -z, 1.0]),
        modality="CT",
        unit=HU,
        annotations=annotations_of(ref.meta),
        decisions=tuple(decisions),
    )


def _rows(root: Path, tree: RawTree) -> dict[str, list[_Row]]:
    """By series what the rows of the table say; rows that name no slices are counted."""
    path = root / TABLE
    if not path.is_file():
        lacking = f"{TABLE} beside {IMAGES}/, which holds the spacings{misnamed(root, TABLE)}"
        raise nothing_found("deeplesion", root, lacking=lacking)
    table = read_table(path, NEEDED, WANTED)
    found: dict[str, list[_Row]] = {}
    nameless = unusable = 0
    for row in table.rows:
        series = _FILE_NAME.fullmatch(row["File_name"].strip())
        limits = sorted(int(text[:_LONGEST]) for text in re.findall(r"[0-9]+", row["Slice_range"]))
        if len(limits) != 2 or series is None:
            unusable += len(limits) != 2
            nameless += len(limits) == 2
            continue
        (age, odd_age), (sex, odd_sex) = age_of(row["Patient_age"]), sex_of(row["Patient_gender"])
        entry = _Row(
            first=limits[0],
            last=limits[1],
            spacing=row["Spacing_mm_px_"],
            size=size_of(row["Image_size"]),
            age=age,
            sex=sex,
            notes=(*odd_age, *odd_sex),
        )
        found.setdefault(series[1], []).append(entry)
    tree.count(f"rows of {TABLE}", "their Slice_range is not two numbers", unusable)
    tree.count(f"rows of {TABLE}", "their File_name names no series", nameless)
    tree.count(f"rows of {TABLE}", "damaged", table.damaged)
    return found


def _leave_strangers(tree: RawTree, folder: Folder) -> None:
    """Account for the files of a folder that is no series."""
    for name in folder.names:
        if suffix_of(name) == SUFFIX:
            tree.reject(folder.path / name, Reason.MISSING_METADATA, "a PNG file outside a series folder")
        elif folder.relative or name != TABLE:
            tree.dismiss(folder.path / name, "no slice")


def _series(tree: RawTree, folder: Folder, rows: list[_Row]) -> Iterator[ScanRef]:
    """A reference for each run of slices of one series."""
    slices: dict[int, list[str]] = {}
    for name in folder.names:
        stem = name[: -len(SUFFIX)]
        if suffix_of(name) == SUFFIX and _SLICE.fullmatch(stem):
            slices.setdefault(int(stem), []).append(name)
        elif suffix_of(name) == SUFFIX:
            tree.reject(folder.path / name, Reason.MISSING_METADATA, "a PNG file whose name is no slice number")
        else:
            tree.dismiss(folder.path / name, "no slice")
    if not slices:
        tree.count("series folders", "they hold no slices")
    numbers = sorted(slices)
    tree.count(f"rows of {TABLE}", NO_SLICES, sum(not _present(numbers, row.first, row.last) for row in rows))
    for run in _runs(numbers, rows):
        yield _reference(tree, folder, {number: slices[number] for number in run}, rows, numbers)


def _runs(numbers: list[int], rows: list[_Row]) -> Iterator[list[int]]:
    """Consecutive numbers, parted also where the table changes its spacing."""
    run: list[int] = []
    for number in numbers:
        if run and (number != run[-1] + 1 or _differ(_said(run[-1], rows), _said(number, rows))):
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _present(numbers: Sequence[int], first: int, last: int) -> int:
    """How many of sorted numbers lie from `first` to `last`."""
    return bisect_right(numbers, last) - bisect_left(numbers, first)


def _lacking(numbers: Sequence[int], rows: Iterable[_Row]) -> list[Decision]:
    """What is said of slices that rows of the table give, and that are not there: a download was cut, say.

    Args:
        numbers: Of all slices of the series, sorted.
        rows: That speak of the run in question.
    """
    given = there = 0
    reached = -1
    for first, last in sorted((row.first, row.last) for row in rows):
        start = max(first, reached + 1)
        if start <= last:
            given, there = given + last - start + 1, there + _present(numbers, start, last)
            reached = last
    return [DecisionKind.SLICES_LACKING(count=given - there, total=given)] if there < given else []


def _said(number: int, rows: list[_Row]) -> frozenset[str]:
    return frozenset(row.spacing for row in rows if row.first <= number <= row.last)


def _differ(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether both are spoken for, and differently."""
    return bool(one) and bool(other) and one != other


def _reference(
    tree: RawTree, folder: Folder, run: Mapping[int, list[str]], rows: list[_Row], numbers: Sequence[int]
) -> ScanRef:
    first, last = min(run), max(run)
    name = f"{folder.path.name}_{first:03d}-{last:03d}"
    patient, study, _ = folder.path.name.split("_")
    speaking = [row for row in rows if row.first <= last and row.last >= first]
    said, differing = merge([{"sex": row.sex, "age": row.age} for row in speaking] or [{"sex": None, "age": None}])
    notes = [note for row in speaking for note in row.notes]
    notes += [DecisionKind.TABLE_CONTRADICTS(name=name) for name in differing]
    files, doubled = zip(*(_slice_name(number, names) for number, names in run.items()), strict=True)
    notes += _lacking(numbers, speaking)
    if any(doubled):
        notes.append(DecisionKind.SLICES_TWICE(count=sum(doubled)))
    meta: dict[str, object] = said | {
        "spacings": tuple(sorted({row.spacing for row in speaking})),
        "notes": tuple(dict.fromkeys(notes)),
    }
    sizes = tuple(sorted({row.size for row in speaking if row.size is not None}))
    if contradicts(sizes, size_of_png(folder.path / run[first][0])):
        # Only then, so that a corpus of an earlier version is not made again where nothing is amiss.
        meta["other_sizes"] = sizes
    twice = Rejection(Reason.REPEATED_POSITIONS, "a slice number stands on several files") if None in files else None
    taken = {file for file in files if file is not None}
    for names in run.values():
        for other in names if None not in files else ():
            if other not in taken:
                tree.leave(other, "another file has the same slice number")
    return ScanRef(
        source="deeplesion",
        key=name,
        root=tree.root,
        paths=tuple(Path(folder.where, file or names[0]) for file, names in zip(files, run.values(), strict=True)),
        subject=patient,
        session=study,
        modality="CT",
        public_id=name,
        meta=meta,
        rejection=twice,
    )


def _slice_name(number: int, names: list[str]) -> tuple[str | None, bool]:
    """The file of a slice, and whether others claim its number; None where no name is the data set's own."""
    if len(names) == 1:
        return names[0], False
    return next((name for name in names if name == f"{number:03d}{SUFFIX}"), None), True


def _read(path: Path, slices: int, shape: tuple[int, ...] | None) -> NDArray[np.uint16]:
    """The pixels of one 16-bit PNG of a run of so many, shape (rows, columns): that of the first, if there is one."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if max(image.size) > MAX_SIDE:
                raise Rejection(Reason.TOO_LARGE, f"a slice of {image.size[0]} x {image.size[1]} pixels")
            if image.mode not in DEPTH_16_MODES:
                raise Rejection(Reason.UNSUPPORTED_ENCODING, f"a slice of mode {image.mode} instead of 16-bit grey")
            if shape is None:
                check_claim((*image.size, slices))
            elif image.size != shape[::-1]:
                raise Rejection(Reason.MIXED_GEOMETRY, "the slices differ in size")
            return np.asarray(image).astype(np.uint16)
    except FileNotFoundError as error:
        raise Rejection(Reason.MISSING_FILE, "a slice is not there") from error
    except UnidentifiedImageError as error:
        raise Rejection(Reason.UNREADABLE, "a slice is no PNG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Rejection(Reason.TRUNCATED, "a slice is cut or damaged") from error
