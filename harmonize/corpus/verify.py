"""Check a corpus against its manifest: every row its file, every file its row, hashes, geometry, voxel type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np

from harmonize.corpus import FILE_COLUMNS, IMAGES, LABEL_TABLE, MASKS, Corpus, StoredVolume, standards
from harmonize.corpus.mending import Fault, Where
from harmonize.corpus.volume import WrongShapeError, read_with_header
from harmonize.errors import Reason
from harmonize.files import TEMPORARY, sha256_of
from harmonize.pipeline import WINDOWED
from harmonize.progress import Progress
from harmonize.scan import AIR_HU, HU

NUMBERS_OF_A_SCAN = {"shape": 3, "spacing": 3, "foreground_box": 6}
"""Columns without which a file cannot be held against its row, and how many numbers each has."""

IMAGE_TYPES = (np.dtype("int16"),)
MASK_TYPES = (np.dtype("uint8"), np.dtype("uint16"))
"""The second is for a user's own labels alone, where they go beyond 255."""

AFFINE_TOLERANCE = 1e-5
"""In mm; the header holds float32, so a metre is good to 6e-5."""


def verify(path: Path, *, workers: int = 1) -> list[Fault]:
    """Every fault of a corpus, one line each; an empty list means that it is whole.

    `harmonize.corpus.mending.mended_by_merge` says which of them a merge mends.

    Args:
        path: The corpus.
        workers: Threads; reading and hashing leave Python's lock.

    Raises:
        UserError: No corpus there, or its tables cannot be read.
    """
    corpus = Corpus.open(path)
    rows = cast(list[dict[str, Any]], corpus.scans.to_dict("records"))
    faults = list(_table_faults(corpus, rows))
    check = partial(_row_faults, path, corpus.spacing)
    with Progress("verify", total=len(rows)) as progress, ThreadPoolExecutor(workers) as threads:
        for row, found in zip(rows, threads.map(check, rows), strict=True):
            faults += (Fault(text, Where.ROW, row=row) for text in found)
            progress.advance(faults=len(faults))
    return faults


def _table_faults(corpus: Corpus, rows: list[dict[str, Any]]) -> Iterator[Fault]:
    known = {reason.value for reason in Reason}
    for reason in sorted(set(corpus.rejected["reason"]) - known):
        yield Fault(f"rejected.parquet: unknown reason {reason}", Where.UNKNOWN, row={"reason": reason})
    yield from (Fault(text, Where.TABLE) for text in _faults_of_rows(corpus, rows))
    yield from (Fault(text, Where.LOST) for text in standards.lost(corpus.path, standards.used_by(rows)))
    named = {row[column] for row in rows for column in FILE_COLUMNS}
    for file in sorted(chain.from_iterable((corpus.path / part).rglob("*") for part in (IMAGES, MASKS))):
        name = file.relative_to(corpus.path).as_posix()
        if file.is_file() and name not in named:
            left = "left by a killed run" if file.name.startswith(TEMPORARY) else "has no row"
            yield Fault(f"{name}: {left}", Where.STRAY, file=name)


def _faults_of_rows(corpus: Corpus, rows: list[dict[str, Any]]) -> Iterator[str]:
    for column in ("image_file_name", "raw_hash"):
        for name, count in Counter(row[column] for row in rows).items():
            if count > 1:
                yield f"metadata.parquet: {column} {name} stands in {count} rows"
    twice = {row["raw_hash"] for row in rows} & set(corpus.rejected["raw_hash"])
    yield from (f"{raw_hash}: accepted and rejected at once" for raw_hash in sorted(twice))
    yield from _label_faults(corpus, rows)


def _label_faults(corpus: Corpus, rows: list[dict[str, Any]]) -> Iterator[str]:
    said = {
        (entry["source"], entry["subject"], entry["scan_id"]): entry
        for entry in cast(list[dict[str, Any]], corpus.labels.to_dict("records"))
    }
    for row in rows:
        entry = said.pop((row["source"], row["subject"], row["scan_id"]), None)
        labels = None if row["labels"] is None else list(row["labels"])
        if entry is None:
            if labels is not None:
                yield f"{LABEL_TABLE}: lacks {row['scan_id']}, which has labels"
        elif not entry["accepted"] or labels != (None if entry["labels"] is None else list(entry["labels"])):
            yield f"{LABEL_TABLE}: says of {row['scan_id']} what metadata.parquet does not"
    for (_, _, scan_id), entry in said.items():
        if entry["accepted"]:
            yield f"{LABEL_TABLE}: says that {scan_id} was accepted, and metadata.parquet does not have it"


def _row_faults(path: Path, spacing: tuple[float, float, float], row: dict[str, Any]) -> list[str]:
    untold = [name for name, count in NUMBERS_OF_A_SCAN.items() if row[name] is None or len(row[name]) != count]
    if untold:
        return [f"{row['image_file_name']}: the manifest does not say its {', '.join(untold)}"]
    shape = tuple(int(size) for size in row["shape"])
    image, faults = _file_faults(path, row["image_file_name"], row["sha256"], IMAGE_TYPES, shape)
    if image is not None:
        faults += [f"{row['image_file_name']}: {fault}" for fault in _image_faults(image, spacing, row)]
    for kind in ("mask", "brain_mask"):
        name = row[f"{kind}_file_name"]
        if name is None:
            continue
        around = shape if image is None else image.stored_XYZ.shape[:3]
        wide = kind == "mask" and row["mask_kind"] == "labels"
        mask, mask_faults = _file_faults(path, name, row[f"{kind}_sha256"], MASK_TYPES[: 1 + wide], around)
        faults += mask_faults
        if image and mask and not np.allclose(mask.affine, image.affine, atol=AFFINE_TOLERANCE):
            faults.append(f"{name}: not in its image's place")
    return faults


def _file_faults(
    path: Path, name: str, sha256: str, dtypes: tuple[np.dtype[Any], ...], shape: tuple[int, ...]
) -> tuple[StoredVolume | None, list[str]]:
    """What a file holds, None if it cannot be read; and what is wrong with it whatever it is."""
    file = path / name
    if not file.is_file():
        return None, [f"{name}: missing"]
    faults = [] if sha256_of(file) == sha256 else [f"{name}: its content is not what the manifest's hash names"]
    try:
        volume, header, has_text = read_with_header(file, shape=shape)
    except WrongShapeError as error:
        is_image = dtypes is IMAGE_TYPES
        fault = f"shape {error.shape} is not the manifest's {shape}" if is_image else "not of its image's shape"
        return None, [*faults, f"{name}: {fault}"]
    except (ValueError, OSError) as error:
        return None, [*faults, f"{name}: cannot be read ({type(error).__name__})"]
    if volume.stored_XYZ.dtype not in dtypes:
        faults.append(f"{name}: {volume.stored_XYZ.dtype} instead of {' or '.join(map(str, dtypes))}")
    if (int(header["qform_code"]), int(header["sform_code"])) != (1, 1):
        faults.append(f"{name}: qform and sform codes are not both 1")
    elif not _forms_agree(header):
        faults.append(f"{name}: qform and sform differ")
    if header["descrip"].item() or header["aux_file"].item() or header["intent_name"].item() or has_text:
        faults.append(f"{name}: carries text in its header")
    return volume, faults


def _forms_agree(header: nib.Nifti1Header) -> bool:
    try:
        qform = header.get_qform()
    except ValueError:  # three numbers that are no quaternion
        return False
    return np.allclose(qform, header.get_sform(), atol=AFFINE_TOLERANCE)


def _image_faults(image: StoredVolume, spacing: tuple[float, float, float], row: dict[str, Any]) -> Iterator[str]:
    shape = image.stored_XYZ.shape
    if not np.allclose(image.affine[:3, :3], np.diag(spacing), atol=AFFINE_TOLERANCE):
        yield f"not RAS at {' x '.join(f'{mm:g}' for mm in spacing)} mm"
    if not np.allclose(row["spacing"], spacing, atol=AFFINE_TOLERANCE):
        yield "the manifest's spacing is not the corpus's"
    box = np.asarray(row["foreground_box"]).reshape(3, 2)
    if (box[:, 0] < 0).any() or (box[:, 1] > shape[:3]).any() or (box[:, 0] >= box[:, 1]).any():
        yield "the foreground box leaves the volume"
    if not (np.isfinite([image.slope, image.inter]).all() and image.slope > 0):
        yield f"scale {image.slope} and offset {image.inter} give no intensities"
    if row["unit"] == HU and ((image.slope, image.inter) != (1, 0) or image.stored_XYZ.min() < AIR_HU):
        yield "not in Hounsfield units"
    if len(shape) != (4 if row["unit"] == WINDOWED else 3):
        yield f"{len(shape)} dimensions"
