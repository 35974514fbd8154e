"""OpenMind: a BIDS-like tree of MRI NIfTI files, their defacing and anatomy masks, and one table."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Reason, Rejection, reading
from harmonize.limits import TIMES_NORMAL
from harmonize.raw_tree import VOLUME_SUFFIXES, Folder, RawTree, printable, suffix_of
from harmonize.scan import LeftOut, Mask, Scan, ScanRef, annotations_of, raise_if_rejected
from harmonize.sources.contrast_words import contrast_of
from harmonize.sources.first_look import check_root, misnamed, nothing_found
from harmonize.sources.nifti_contrast import settled
from harmonize.sources.tables import age_of, is_absent, merge, read_table, sex_of
from harmonize.sources.volume_files import SINGLE, read_volume_file, stem_of
from harmonize.sources.volume_tree import MADE, volumes_in

TABLE, TREE = "openneuro_metadata.csv", "OpenMind"
NEEDED = ("image_path", "modality")
MASK_COLUMNS = ("anon_mask_path", "anat_mask_path")
WANTED = (*MASK_COLUMNS, "age", "sex")

ANATOMY, DEFACE = "fb_mask", "deface_mask"
"""Stems of the masks in ``<image>__Data/``. In a deface mask 1 is what was removed; in an fb mask 1 is background."""

MASKS = (("anatomy", ANATOMY, "anat_mask_path"), ("deface", DEFACE, "anon_mask_path"))
USED = {"anatomy": DecisionKind.ANATOMY_USED, "deface": DecisionKind.DEFACE_USED}
"""Kind, stem, and the column of the table that may name another place."""

MODALITIES = (
    "T1w", "T2w", "FLAIR", "PDw", "T2starw", "T1map", "T2map", "T2starmap", "inplaneT1", "inplaneT2", "MP2RAGE",
    "UNIT1", "FLASH", "SWI", "minIP", "angio", "sbref", "PET", "DWI", "ADC", "FA", "MD", "TRACE", "CT",
)  # fmt: skip
"""What a BIDS suffix may say where the table is silent."""

_BY_SUFFIX = {name.casefold(): name for name in MODALITIES}
_BY_WORD = _BY_SUFFIX | {"unit1_denoised": "UNIT1_denoised"}
"""What the table may say. These keep OpenMind's own names in a corpus, other words those of the other sources."""

_DATA_SET = re.compile(r"ds\d{6}")
_PUBLIC = re.compile(rf"{_DATA_SET.pattern}/sub-[A-Za-z0-9]+/")

log = logging.getLogger(__name__)


def discover(root: Path) -> Iterator[ScanRef | LeftOut]:
    """Yield every image of the tree, ordered by path; the table says what it is where it lists it.

    Files that are not called ``.nii`` or ``.nii.gz`` in lower case come after all others, so that of two files of one
    name these are the scan; at last comes what was not taken.

    Args:
        root: The folder with ``OpenMind/`` and ``openneuro_metadata.csv``, or ``OpenMind/`` itself.

    Raises:
        UserError: The table lacks a needed column or is damaged, or there is no image.
    """
    check_root("openmind", root)
    top = root / TREE if (root / TREE).is_dir() else root
    tree = RawTree(top, claims=lambda name: suffix_of(name) in VOLUME_SUFFIXES)
    table = next((path for path in (root / TABLE, top.parent / TABLE, top / TABLE) if path.is_file()), None)
    rows = _rows(table, tree)
    listed = {_relative(str(row[name])) for row in rows.values() for name in MASK_COLUMNS if row[name]}
    stems: set[str] = set()
    masks: list[str] = []
    later: list[ScanRef] = []
    seen, known = 0, False
    for folder in tree.folders():
        for paths in _images(tree, folder, masks):
            relative = folder.key(paths[0].name)
            if not listed.isdisjoint(_names_of(relative)):
                continue
            names = (name for path in paths for name in _names_of(folder.key(path.name)))
            row = next((rows[name] for name in names if name in rows), None)
            seen += row is not None
            stems.add(stem_of(relative))
            ref = _reference(top, paths, relative, row or {})
            known |= ref.modality is not None
            if relative.endswith((".nii", ".nii.gz")):
                yield ref
            else:
                later.append(ref)
    if not (known or tree.unread) and (not stems or tree.seen()[".dcm"] > len(stems)):
        raise nothing_found("openmind", root, tree.seen())
    yield from later
    if table is None:
        hint = printable(misnamed(root, TABLE))
        log.warning("no %s beside the tree%s: the names of the files alone say what they show", TABLE, hint)
    if seen < len(rows):
        log.warning(
            "%d of %d rows of %s name no file under %s", len(rows) - seen, len(rows), TABLE, printable(str(top))
        )
    orphans = (name for name in masks if listed.isdisjoint(_names_of(name)) and _owner(name) not in stems)
    tree.count("masks", "no image beside them", sum(1 for _ in orphans))
    yield from tree.rest("openmind")
    if top != root:
        yield from _outside(root)


def load(ref: ScanRef) -> Scan:
    """Read one image with its masks.

    Raises:
        Rejection: See `harmonize.nifti.read_nifti`; or no known contrast, or a CT that is not in HU.
    """
    raise_if_rejected(ref)
    if ref.modality is None:
        raise Rejection(Reason.UNSUPPORTED_MODALITY, "neither the table nor the BIDS suffix names the contrast")
    image = read_volume_file(*ref.paths)
    voxels, modality, unit, decided = settled(image, ref.modality)
    decisions = [*cast(tuple[Decision, ...], ref.meta.get("notes", ())), *image.decisions, *decided]
    masks = {}
    for kind, stem, column in MASKS:
        most = TIMES_NORMAL * image.voxels_XYZ.size
        mask, decided = _mask(ref, kind, stem, str(ref.meta.get(column) or ""), most)
        decisions += decided
        if mask is not None:
            masks[kind] = mask
    return Scan(
        voxels_XYZ=voxels,
        affine=image.affine,
        modality=modality,
        unit=unit,
        masks=masks,
        annotations=annotations_of(ref.meta),
        decisions=tuple(decisions),
    )


def _rows(path: Path | None, tree: RawTree) -> dict[str, dict[str, object]]:
    """What the table says of each image, by its path relative to the tree."""
    if path is None:
        return {}
    table = read_table(path, NEEDED, WANTED)
    unsaid = [name for name in WANTED if name not in table.columns]
    if unsaid:
        log.warning("%s lacks the columns %s; what they would say is left out", path.name, ", ".join(unsaid))
    tree.count(f"rows of {TABLE}", "damaged", table.damaged)
    found: dict[str, list[dict[str, object]]] = {}
    for row in table.rows:
        if row["image_path"].strip():
            found.setdefault(_relative(row["image_path"]), []).append(_typed(row))
    return {name: rows[0] if len(rows) == 1 else _merged(rows) for name, rows in found.items()}


def _typed(row: Mapping[str, str]) -> dict[str, object]:
    (age, odd_age), (sex, odd_sex) = age_of(row["age"]), sex_of(row["sex"])
    said = {name: row[name].strip() for name in ("modality", *MASK_COLUMNS)}
    return {**said, "age": age, "sex": sex, "notes": (*odd_age, *odd_sex)}


def _merged(rows: list[dict[str, object]]) -> dict[str, object]:
    said, differing = merge(rows)
    notes = tuple(DecisionKind.TABLE_CONTRADICTS(name=name) for name in differing if name != "notes")
    return said | {"notes": notes}


def _relative(path: str) -> str:
    """A path of the table, relative to the tree."""
    text = path.strip().replace("\\", "/")
    if text.startswith(".") or "/." in text or "//" in text:
        text = PurePosixPath(text).as_posix()
    return text.removeprefix(f"{TREE}/")


def _names_of(relative: str) -> tuple[str, ...]:
    """What the table may call a file: by its path in the tree, or from its data set on where that lies deeper.

    Example:
        >>> _names_of("disk1/ds000001/sub-01/anat/a.nii.gz")
        ('disk1/ds000001/sub-01/anat/a.nii.gz', 'ds000001/sub-01/anat/a.nii.gz')
        >>> _names_of("ds000001/sub-01/anat/a.nii.gz")
        ('ds000001/sub-01/anat/a.nii.gz',)
    """
    parts = relative.split("/")
    depth = next((depth for depth, part in enumerate(parts[:-1]) if _DATA_SET.fullmatch(part)), 0)
    return (relative, "/".join(parts[depth:])) if depth else (relative,)


def _images(tree: RawTree, folder: Folder, masks: list[str]) -> Iterator[tuple[Path, ...]]:
    """The images of a folder, each with the file of its header where that is another; masks are put aside."""
    if not folder.names:
        return
    names = []
    for name in folder.names:
        if suffix_of(name) in SINGLE and stem_of(name) in (ANATOMY, DEFACE):
            masks.append(folder.key(name))
        else:
            names.append(name)
    yield from volumes_in(tree, folder, names)


def _owner(mask: str) -> str:
    """The image, without its suffix, in whose ``__Data`` folder a mask lies."""
    return mask.rpartition("/")[0].removesuffix("__Data")


def _outside(root: Path) -> Iterator[LeftOut]:
    """Count what lies beside the tree."""
    beside = RawTree(root)
    beside.pass_over(root / TREE)
    for path in beside.files():
        if path != root / TABLE:
            beside.leave(path.name, f"outside {TREE}/")
    return (found for found in beside.rest("openmind") if isinstance(found, LeftOut))


def _reference(tree: Path, paths: tuple[Path, ...], relative: str, row: Mapping[str, object]) -> ScanRef:
    stem = stem_of(paths[0].name)
    # Above the data set lie disks, or the tree once more: they are no part of anybody's name.
    named = _names_of(relative)[-1]
    folders = tuple(named.split("/")[:-1])
    subject = next((part for part in folders if part.startswith("sub-")), stem)
    modality, noted = _contrast(str(row.get("modality") or ""), re.split(r"[_-]", stem)[-1])
    return ScanRef(
        source="openmind",
        key=relative,
        root=tree,
        paths=paths,
        subject=f"{_data_set(folders)}_{subject}",
        session=next((part for part in folders if part.startswith("ses-")), None),
        modality=modality,
        public_id=_public_id(folders, stem) if _PUBLIC.match(named) else None,
        meta=dict(row) | ({"notes": (*cast(tuple[Decision, ...], row["notes"]), *noted)} if noted else {}),
    )


def _data_set(folders: Sequence[str]) -> str:
    """Whose the numbers of the subjects are: two sites below one folder have a sub-01 each.

    Example:
        >>> _data_set(["ds000001", "sub-01", "anat"]), _data_set(["lab", "site2", "derivatives", "a", "sub-01"])
        ('ds000001', 'lab/site2')
    """
    above = list(takewhile(lambda part: part not in MADE and not part.startswith("sub-"), folders))
    if _DATA_SET.fullmatch(folders[0] if folders else "") or len(above) in (0, len(folders)):
        return folders[0] if folders else ""
    return "/".join(above)


def _contrast(said: str, suffix: str) -> tuple[str | None, list[Decision]]:
    """What an image shows by the table, else by its BIDS suffix; no other text of the table gets into a corpus."""
    told = None if is_absent(said) else _BY_WORD.get(said.casefold()) or contrast_of(said)
    named = _BY_SUFFIX.get(suffix.casefold())
    unknown = told is None and named is not None and not is_absent(said)
    return told or named, [DecisionKind.CONTRAST_UNKNOWN()] if unknown else []


def _public_id(folders: tuple[str, ...], stem: str) -> str:
    """Data set, what the stem does not say itself, and the stem: ``ds001486__sub-001_ses-T1_T1w``."""
    said = {*stem.split("_"), "anat"}
    return "__".join((*(part for part in folders if part not in said), stem))


def inputs(ref: ScanRef) -> tuple[Path, ...]:
    """The files that `load` reads: the image, and the masks that are there."""
    if ref.rejection is not None:
        return ref.paths
    masks = (
        next((path for path in _mask_candidates(ref, stem, str(ref.meta.get(column) or "")) if path.is_file()), None)
        for _, stem, column in MASKS
    )
    return (*ref.paths, *(path for path in masks if path is not None))


def _mask(ref: ScanRef, kind: str, stem: str, listed: str, most: int) -> tuple[Mask | None, list[Decision]]:
    """One mask, and what was decided; it may have a grid of its own, but no more than `most` voxels."""
    if listed and not _stays_in_tree(listed):
        raise Rejection(Reason.UNSAFE_NAME, f"the {kind} mask's path leaves the tree")
    path = next((path for path in _mask_candidates(ref, stem, listed) if path.is_file()), None)
    if path is None:
        return None, [DecisionKind.MASK_MISSING(mask=kind)] if listed else []
    try:
        with reading(f"{kind} mask"):
            found = read_volume_file(path, most=most)
    except Rejection as rejection:
        return None, [DecisionKind.MASK_LEFT_OUT(mask=kind, why=rejection.message)]
    is_set = found.voxels_XYZ > 0
    labels_XYZ = (~is_set if kind == "anatomy" else is_set).astype(np.uint8)
    return Mask(labels_XYZ=labels_XYZ, affine=found.affine), [USED[kind]()]


def _mask_candidates(ref: ScanRef, stem: str, listed: str) -> Iterator[Path]:
    """Where a mask may lie, the place that the table names first."""
    if listed and _stays_in_tree(listed):
        yield ref.root / _relative(listed)
        yield ref.root / f"{ref.key.removesuffix(_names_of(ref.key)[-1])}{_relative(listed)}"
    yield from _masks_in(ref.paths[0].with_name(f"{stem_of(ref.paths[0].name)}__Data"), stem)


def _stays_in_tree(path: str) -> bool:
    relative = PurePosixPath(_relative(path))
    return not relative.is_absolute() and ".." not in relative.parts


def _masks_in(folder: Path, stem: str) -> list[Path]:
    """The masks of that stem in the folder beside an image; the plain suffixes first."""
    try:
        names = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [name for name in names if suffix_of(name) in SINGLE and stem_of(name) == stem]
    return [folder / name for name in sorted(found, key=lambda name: (name != f"{stem}.nii.gz", name))]
