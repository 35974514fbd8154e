"""OpenMind: a BIDS-like tree of MRI NIfTI files, their defacing and anatomy masks, and one table."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from harmonize.errors import Reason, Rejection, UserError
from harmonize.nifti import read_nifti
from harmonize.scan import ARBITRARY, HU, Mask, Scan, ScanRef

TABLE, TREE = "openneuro_metadata.csv", "OpenMind"
NEEDED = ("image_path", "modality")
WANTED = ("anon_mask_path", "anat_mask_path", "age", "sex")

ANATOMY, DEFACE = "fb_mask", "deface_mask"
"""Stems of the masks in ``<image>__Data/``. In a deface mask 1 is what was removed; in an fb mask 1 is background."""

MASKS = (("anatomy", ANATOMY, "anat_mask_path"), ("deface", DEFACE, "anon_mask_path"))
"""Kind, stem, and the column of the table that may name another place."""

MODALITIES = (
    "T1w", "T2w", "FLAIR", "PDw", "T2starw", "T1map", "T2map", "T2starmap", "inplaneT1", "inplaneT2", "MP2RAGE",
    "UNIT1", "FLASH", "SWI", "minIP", "angio", "sbref", "PET", "DWI", "ADC", "FA", "MD", "TRACE", "CT",
)  # fmt: skip
"""What a BIDS suffix may say where the table is silent."""

SUFFIXES = (".nii.gz", ".nii")
_BY_SUFFIX = {name.casefold(): name for name in MODALITIES}
_PUBLIC = re.compile(r"ds\d{6}/sub-[A-Za-z0-9]+/")
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}

log = logging.getLogger(__name__)


def discover(root: Path) -> Iterator[ScanRef]:
    """Yield every image of the tree, ordered by path; the table says what it is where it lists it.

    Args:
        root: The folder with ``OpenMind/`` and ``openneuro_metadata.csv``, or ``OpenMind/`` itself.

    Raises:
        UserError: The table lacks a needed column.
    """
    tree = root / TREE if (root / TREE).is_dir() else root
    rows = _rows(next((path for path in (root / TABLE, tree.parent / TABLE) if path.is_file()), None))
    masks = {_relative(row[name]) for row in rows.values() for name in WANTED[:2] if row.get(name)}
    seen = 0
    for path in _images(tree):
        relative = path.relative_to(tree).as_posix()
        if relative in masks:
            continue
        row = rows.get(relative)
        seen += row is not None
        yield _reference(tree, path, relative, row or {})
    if seen < len(rows):
        log.warning("%d of %d rows of %s name no file under %s", len(rows) - seen, len(rows), TABLE, tree)


def load(ref: ScanRef) -> Scan:
    """Read one image with its masks.

    Raises:
        Rejection: See `harmonize.nifti.read_nifti`; or no known contrast.
    """
    if ref.modality is None:
        raise Rejection(Reason.UNSUPPORTED_MODALITY, "neither the table nor the BIDS suffix names the contrast")
    image = read_nifti(ref.paths[0])
    decisions = list(image.decisions)
    masks = {}
    for kind, stem, column in MASKS:
        mask = _mask(ref, kind, stem, str(ref.meta.get(column) or ""), decisions)
        if mask is not None:
            masks[kind] = mask
    return Scan(
        voxels_XYZ=image.voxels_XYZ,
        affine=image.affine,
        modality=ref.modality,
        unit=HU if ref.modality == "CT" else ARBITRARY,
        masks=masks,
        age=_age(str(ref.meta.get("age") or "")),
        sex=_SEXES.get(str(ref.meta.get("sex") or "").strip().casefold()),
        decisions=decisions,
    )


def _rows(table: Path | None) -> dict[str, Mapping[str, str]]:
    """The table's rows by image path relative to the tree."""
    if table is None:
        return {}
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        reader = csv.DictReader(stream)
        columns = reader.fieldnames or []
        absent = [name for name in NEEDED if name not in columns]
        if absent:
            raise UserError(f"{table}: lacks the columns {', '.join(absent)}; restore it from the dataset", exit_code=2)
        unsaid = [name for name in WANTED if name not in columns]
        if unsaid:
            log.warning("%s lacks the columns %s; what they would say is left out", table.name, ", ".join(unsaid))
        kept = (*NEEDED, *WANTED)
        return {
            _relative(row["image_path"]): {name: row.get(name) or "" for name in kept}
            for row in reader
            if row["image_path"]
        }


def _relative(path: str) -> str:
    """A path of the table, relative to the tree."""
    return PurePosixPath(path.strip().replace("\\", "/")).as_posix().removeprefix(f"{TREE}/")


def _images(tree: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(tree, followlinks=False):
        folders.sort()
        for name in sorted(names):
            # macOS leaves `._` twins, and other hidden files are nobody's images either.
            if name.startswith(".") or not name.endswith(SUFFIXES):
                continue
            if _stem(name) not in (ANATOMY, DEFACE):
                yield Path(folder) / name


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")


def _reference(tree: Path, path: Path, relative: str, row: Mapping[str, str]) -> ScanRef:
    stem = _stem(path.name)
    folders = PurePosixPath(relative).parts[:-1]
    subject = next((part for part in folders if part.startswith("sub-")), stem)
    dataset = folders[0] if folders else ""
    said = row.get("modality", "").strip()
    return ScanRef(
        source="openmind",
        key=relative,
        root=tree,
        paths=(path,),
        subject=f"{dataset}_{subject}",
        session=next((part for part in folders if part.startswith("ses-")), None),
        modality=said or _BY_SUFFIX.get(re.split(r"[_-]", stem)[-1].casefold()),
        public_id=_public_id(folders, stem) if _PUBLIC.match(relative) else None,
        meta=dict(row),
    )


def _public_id(folders: tuple[str, ...], stem: str) -> str:
    """Data set, what the stem does not say itself, and the stem: ``ds001486__sub-001_ses-T1_T1w``."""
    said = {*stem.split("_"), "anat"}
    return "__".join((*(part for part in folders if part not in said), stem))


def inputs(ref: ScanRef) -> tuple[Path, ...]:
    """The files that `load` reads: the image, and the masks that are there."""
    if "refused" in ref.meta:
        return ref.paths
    masks = (
        next((path for path in _mask_candidates(ref, stem, str(ref.meta.get(column) or "")) if path.is_file()), None)
        for _, stem, column in MASKS
    )
    return (*ref.paths, *(path for path in masks if path is not None))


def _mask(ref: ScanRef, kind: str, stem: str, listed: str, decisions: list[str]) -> Mask | None:
    if listed and not _stays_in_tree(listed):
        raise Rejection(Reason.UNSAFE_NAME, f"the {kind} mask's path leaves the tree")
    path = next((path for path in _mask_candidates(ref, stem, listed) if path.is_file()), None)
    if path is None:
        if listed:
            decisions.append(f"the {kind} mask is listed but missing")
        return None
    try:
        found = read_nifti(path)
    except Rejection as rejection:
        decisions.append(f"the {kind} mask was left out: {rejection.message}")
        return None
    is_set = found.voxels_XYZ > 0
    decisions.append(f"{kind} mask used")
    return Mask(labels_XYZ=(~is_set if kind == "anatomy" else is_set).astype(np.uint8), affine=found.affine)


def _mask_candidates(ref: ScanRef, stem: str, listed: str) -> Iterator[Path]:
    """Where a mask may lie, the place that the table names first."""
    if listed and _stays_in_tree(listed):
        yield ref.root / _relative(listed)
    beside = ref.paths[0].with_name(f"{_stem(ref.paths[0].name)}__Data")
    yield from (beside / f"{stem}{suffix}" for suffix in SUFFIXES)


def _stays_in_tree(path: str) -> bool:
    relative = PurePosixPath(_relative(path))
    return not relative.is_absolute() and ".." not in relative.parts


def _age(text: str) -> float | None:
    try:
        years = float(text)
    except ValueError:
        return None
    return years if 0 <= years <= 120 else None
