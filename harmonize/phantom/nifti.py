"""Write a raw tree as a lab may have it: NIfTI images with BIDS names and sidecars, masks of their own, and a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.acquisition import (
    HEAD_CENTRE_MM,
    Grid,
    hemisphere_mask,
    make_grid,
    place_of,
    resolution_for,
    scan_head,
)
from harmonize.phantom.anatomy import make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.openmind import FIELD_MM, save_nifti
from harmonize.phantom.randomness import rng_of

PAIRS = (("T1w", "ct"), ("T2w", "FLAIR"))
"""What a subject's images show, by their suffixes."""

MASKS, HALVES = "derivatives/labels", "derivatives/hemispheres"
"""Where the masks lie, of lesions and of the halves of the brain; BIDS keeps what people drew apart from what a scanner
gave."""

LABELS = {1: "left lesion", 2: "right lesion"}
HEMISPHERES = {1: "left hemisphere", 2: "right hemisphere"}
_HEADER = ("participant_id", "age", "sex", "lesion", "volume_ml", "participant_name")
_RADIUS_MM = (9.0, 16.0)
_BRIGHTER = {"ct": 45.0, "T1w": 0.55, "T2w": 1.9, "FLAIR": 2.0}
"""HU that a lesion has more than its place, or how many times the place's value it has."""


def write_scan(index: int, *, root: Path, scans: int, size: int, seed: int) -> dict[str, object]:
    """Write image `index`, its sidecar, its hemispheres and, in one of two subjects, its lesion; the subject's row.

    Args:
        index: From 0; every two images share a subject and its lesion.
        root: The source's raw root.
        scans: Number of images.
        size: Voxels along the largest axis.
        seed: What makes it repeatable.
    """
    number = index // 2
    names = (seed, "nifti", number)
    contrast = PAIRS[(number + number // 2) % 2][index % 2]
    subject, rng = f"sub-{number + 1:03d}", rng_of(*names, contrast, "image")
    step = max(FIELD_MM.values()) / size
    head = make_head(*names, resolution_mm=resolution_for(step))
    grid = make_grid(
        extent_mm=[FIELD_MM[axis] * float(rng.uniform(0.95, 1.05)) for axis in "RAS"],
        spacing_mm=(step, step, 2 * step if contrast == "ct" else step),
        centre_mm=place_of(head.pose, HEAD_CENTRE_MM, rng.uniform(-5, 5, size=3)),
        axes="LPS" if contrast == "ct" else "RAS",
        tilt_deg=rng.uniform(-8, 8, size=3),
    )
    values = scan_head(head, grid, CONTRASTS["CT" if contrast == "ct" else contrast].varied(rng), rng)
    person = rng_of(*names, "subject")
    # One of each two subjects, so that few subjects have both.
    ill = number % 2 == int(rng_of(seed, "nifti", "pair", number // 2).integers(2))
    right, radius_mm = person.random() < 0.5, float(person.uniform(*_RADIUS_MM))
    lesion = _ball(grid, place_of(head.pose, (26.0 if right else -26.0, -14.0, 24.0)), radius_mm)
    stem = f"{subject}/anat/{subject}_{contrast}"
    if ill:
        brighter = _BRIGHTER[contrast]
        values[lesion] = values[lesion] + brighter if contrast == "ct" else values[lesion] * brighter
        save_nifti(root / MASKS / f"{stem}.nii.gz", lesion.astype(np.uint8) * (2 if right else 1), grid)
    save_nifti(root / HALVES / f"{stem}.nii.gz", hemisphere_mask(head, grid), grid)
    save_nifti(root / f"{stem}.nii.gz", np.clip(np.rint(values), -1024, 32767).astype(np.int16), grid)
    sidecar = {
        "Modality": "CT" if contrast == "ct" else "MR",
        "Manufacturer": str(person.choice(["Siemens", "GE", "Philips"])),
        "InstitutionName": f"Phantom^{number} hospital",
    } | ({} if contrast == "ct" else {"MagneticFieldStrength": float(person.choice([1.5, 3.0]))})
    (root / f"{stem}.json").write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
    return {
        "participant_id": subject,
        "age": int(person.integers(18, 85)),
        "sex": str(person.choice(["M", "F"])),
        "lesion": "yes" if ill else "no",
        "volume_ml": f"{4 / 3 * np.pi * radius_mm**3 / 1000:.1f}" if ill else "0.0",
        "participant_name": f"Ada{number} Doe",
    }


def write_tables(root: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write ``participants.tsv``, the names of the masks' values, and what makes the tree a BIDS data set."""
    people = {str(row["participant_id"]): row for row in rows}
    lines = ["\t".join(_HEADER), *("\t".join(str(row[name]) for name in _HEADER) for row in people.values())]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "A phantom; no person is in it", "BIDSVersion": "1.9.0"}) + "\n", encoding="utf-8"
    )
    for folder, labels in ((MASKS, LABELS), (HALVES, HEMISPHERES)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        names = "".join(f"{value}\t{name}\n" for value, name in labels.items())
        (root / folder / "dseg.tsv").write_text(f"index\tname\n{names}", encoding="utf-8")


def _ball(grid: Grid, centre_mm: NDArray[np.float64], radius_mm: float) -> NDArray[np.bool_]:
    i, j, k = np.ogrid[: grid.shape[0], : grid.shape[1], : grid.shape[2]]
    matrix = grid.affine
    squares = sum(
        np.square(matrix[axis, 0] * i + matrix[axis, 1] * j + matrix[axis, 2] * k + matrix[axis, 3] - centre_mm[axis])
        for axis in range(3)
    )
    return np.asarray(squares < radius_mm**2)
