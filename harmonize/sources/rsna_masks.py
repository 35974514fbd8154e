"""The vessel masks of the RSNA 2025 competition: which series each belongs to, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmonize.decisions import Decision, DecisionKind
from harmonize.errors import Rejection
from harmonize.labels import MASK_VALUES
from harmonize.limits import TIMES_NORMAL
from harmonize.nifti import read_nifti
from harmonize.raw_tree import RawTree, suffix_of
from harmonize.scan import Mask, Scan
from harmonize.sources.rsna_tables import TRAIN

SEGMENTATIONS, MASK_ENDING = "segmentations", "_cowseg"

MAX_MASK_DISTANCE_MM = 10.0
"""A vessel mask whose centre is farther from the image's centre belongs to another image."""


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


def read_mask(path: Path, scan: Scan) -> tuple[Mask | None, list[Decision]]:
    """The vessel mask, or None with a decision where it does not belong to the volume."""
    try:
        found = read_nifti(path, most=TIMES_NORMAL * scan.voxels_XYZ.size)
    except Rejection as rejection:
        return None, [DecisionKind.VESSELS_DROPPED(why=rejection.message)]
    except OSError as error:
        return None, [DecisionKind.VESSELS_DROPPED(why=f"it cannot be read ({type(error).__name__})")]
    fault = _mask_fault(found.voxels_XYZ, found.affine, scan)
    if fault:
        return None, [DecisionKind.VESSELS_DROPPED(why=fault)]
    return Mask(labels_XYZ=found.voxels_XYZ.astype(np.uint8), affine=found.affine), []


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
