"""The vessel masks of the RSNA 2025 competition: which series each belongs to, and whether it fits."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from harmonize.labels import MASK_VALUES
from harmonize.raw_tree import RawTree, suffix_of
from harmonize.scan import Mask, Scan
from harmonize.sources.rsna_tables import TRAIN

SEGMENTATIONS, MASK_ENDING = "segmentations", "_cowseg"

MAX_MASK_DISTANCE_MM = 10.0
"""A vessel mask whose centre is farther from the image's centre belongs to another image."""

HEADER_BYTES = 348
_OTHER_SHAPE = "its shape is not the volume's"

NIFTI_FAULTS = (
    ImageFileError, HeaderDataError, WrapStructError, zlib.error, OSError, EOFError, ValueError, TypeError,
    OverflowError, MemoryError,
)  # fmt: skip
"""What nibabel is known to raise on damaged files."""


def find_masks(root: Path, tree: RawTree, rows: Iterable[str]) -> dict[str, Path]:
    """The vessel mask by series; those of no series are counted."""
    known, found = set(rows), dict[str, Path]()
    if not (root / SEGMENTATIONS).is_dir():
        return found
    for path in sorted(tree.files(root / SEGMENTATIONS), key=lambda path: (len(path.parts), path)):
        suffix = suffix_of(path.name)
        uid, ending, _ = path.name[: len(path.name) - len(suffix)].partition(MASK_ENDING)
        if suffix not in (".nii", ".nii.gz"):
            tree.dismiss(path, "no vessel mask")
        elif not ending:
            tree.leave(path.name, f"{SEGMENTATIONS}/ holds the image too: the DICOM files are read")
        elif uid not in known:
            tree.count("vessel masks", f"no row of {TRAIN} names their series")
        elif uid in found:
            tree.count("vessel masks", "the series has another")
        else:
            found[uid] = path
    return found


def read_mask(path: Path, scan: Scan) -> Mask | None:
    """The vessel mask, or None with a decision where it does not belong to the volume."""
    try:
        header = _header(path)
        # Compared before the voxels are read: a few bytes may claim any number of them.
        if sorted(size for size in header.get_data_shape() if size != 1) != sorted(scan.voxels_XYZ.shape):
            scan.decisions.append(f"mask dropped: {_OTHER_SHAPE}")
            return None
        labels = np.asanyarray(ArrayProxy(os.fspath(path), header, mmap=False)).squeeze()
        affine = np.asarray(header.get_best_affine(), np.float64)
    except NIFTI_FAULTS as error:
        scan.decisions.append(f"mask dropped: it cannot be read ({type(error).__name__})")
        return None
    fault = _mask_fault(labels, affine, scan)
    if fault:
        scan.decisions.append(f"mask dropped: {fault}")
        return None
    return Mask(labels_XYZ=labels.astype(np.uint8), affine=affine)


def _header(path: Path) -> nib.Nifti1Header:
    """The header alone: nibabel reads what is said beside it too, as large as it claims to be."""
    with ImageOpener(os.fspath(path)) as stream:
        return nib.Nifti1Header.from_fileobj(io.BytesIO(stream.read(HEADER_BYTES).ljust(HEADER_BYTES + 4, b"\0")))


def _mask_fault(labels: NDArray[Any], affine: NDArray[np.float64], scan: Scan) -> str:
    # Converters may turn a sagittal stack round, so the axes' order may differ; the affine says where they lie.
    if sorted(labels.shape) != sorted(scan.voxels_XYZ.shape):
        return _OTHER_SHAPE
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
