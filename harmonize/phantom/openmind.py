"""Write a raw tree as the OpenMind dataset has it: NIfTI images by data set, their masks, and one table."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harmonize.phantom.acquisition import (
    HEAD_CENTRE_MM,
    Grid,
    face_mask,
    head_mask,
    make_grid,
    place_of,
    resolution_for,
    scan_head,
)
from harmonize.phantom.anatomy import Head, make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.randomness import rng_of

COLUMNS = (
    "unique_id", "image_path", "modality", "anon_mask_path", "anat_mask_path", "image_quality_score", "derived_from",
    "is_brain_extract", "age", "sex", "handedness", "race", "weight", "bmi", "health_status", "manufacturer",
    "model_name", "phase_encoding_direction", "magnetic_field_strength", "repetition_time", "echo_time",
)  # fmt: skip
"""The columns of openneuro_metadata.csv that public code reads."""

MODALITIES = ("T1w", "T2w", "FLAIR", "T1w", "T1w", "T2w", "PDw", "T1w", "angio", "T2starw")
"""OpenMind's own strings; two neighbours share a subject."""

AXES = ("RAS", "LPS", "LAS", "PSR", "RSA", "ASL", "LIA", "SPL", "PIR", "IAR")
"""Voxel orders met in the wild: NIfTI allows all 48."""

FIELD_MM = {"R": 184.0, "A": 232.0, "S": 216.0}
"""Field of view along the anatomical axes, before it varies."""

_CONTRAST_OF = {"angio": "MRA"}
_GZIP_LEVEL = 1
_APPLE_DOUBLE = bytes.fromhex("00051607000200004d6163204f5320582020202020202020") + bytes(40)
"""What macOS leaves beside a file on a foreign disk; OpenNeuro trees hold many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """One image of the tree. A session's second image shares grid and masks with its first."""

    index: int
    modality: str
    dataset: str
    subject: str
    session: str | None
    suffix: str

    @property
    def stem(self) -> str:
        return "_".join(part for part in (self.subject, self.session, self.modality) if part)

    @property
    def folder(self) -> str:
        return "/".join(part for part in (self.dataset, self.subject, self.session, "anat") if part)


def write_scan(index: int, *, root: Path, scans: int, size: int, seed: int) -> dict[str, object]:
    """Write image `index` into ``OpenMind/`` under `root`, and give its row of the table.

    Args:
        index: From 0; every two images share a subject.
        root: The source's raw root.
        scans: Number of images.
        size: Voxels along the largest axis.
        seed: What makes it repeatable.
    """
    return _write_image(root / "OpenMind", seed, index, size)


def write_tables(root: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write ``openneuro_metadata.csv`` and what else lies beside the images."""
    first = root / "OpenMind" / str(rows[0]["image_path"])
    first.with_name(f"._{first.name}").write_bytes(_APPLE_DOUBLE)
    (root / "README.md").write_text(
        "A phantom in the layout of the OpenMind dataset. No person is in it.\n", encoding="utf-8"
    )
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(root / "openneuro_metadata.csv", index=False, lineterminator="\n")


def _plan(index: int) -> _Image:
    pair = index // 2
    # Two images of a pair lie in one session and share their masks; every third pair has no session folder.
    return _Image(
        index=index,
        modality=MODALITIES[index % len(MODALITIES)],
        dataset=f"ds{900001 + pair // 2:06d}",
        subject=f"sub-{pair + 1:02d}",
        session=None if pair % 3 == 2 else f"ses-{1 + pair % 3}",
        suffix=".nii" if index % 5 == 4 else ".nii.gz",
    )


def _write_image(root: Path, seed: int, index: int, size: int) -> dict[str, object]:
    image, first = _plan(index), _plan(index - index % 2)
    names = (seed, "openmind", index // 2)
    rng = rng_of(*names, index % 2, "image")
    grid_rng = rng_of(*names, "grid")
    spacing = max(FIELD_MM.values()) / size
    head = make_head(*names, resolution_mm=resolution_for(spacing))
    grid = _draw_grid(head, size, grid_rng)
    values = scan_head(head, grid, CONTRASTS[_CONTRAST_OF.get(image.modality, image.modality)].varied(rng), rng)

    defaced = bool(grid_rng.random() < 0.6)
    face = face_mask(head, grid) if defaced else np.zeros(grid.shape, dtype=bool)
    values[face] = 0
    relative = f"{image.folder}/{image.stem}{image.suffix}"
    masks = f"{first.folder}/{first.stem}__Data"
    save_nifti(root / relative, _as_stored(values, rng), grid, description=f"Doe^Ada {1930 + index} 00{index}-77")
    if image is first or image.index == first.index:
        save_nifti(root / masks / "deface_mask.nii.gz", face.astype(np.uint8), grid)
        # OpenMind's polarity: 1 is background.
        save_nifti(root / masks / "fb_mask.nii.gz", (~head_mask(head, grid)).astype(np.uint8), grid)
    subject_rng = rng_of(*names, "subject")
    return {
        "unique_id": f"{image.dataset}_{image.stem}",
        "image_path": relative,
        "modality": image.modality,
        "anon_mask_path": f"{masks}/deface_mask.nii.gz",
        "anat_mask_path": f"{masks}/fb_mask.nii.gz",
        "image_quality_score": round(float(rng_of(seed, image.dataset, image.modality).uniform(1, 4.5)), 2),
        "derived_from": None,
        "is_brain_extract": False,
        "age": float(subject_rng.integers(18, 85)),
        "sex": str(subject_rng.choice(["M", "F"])),
        "handedness": "R",
        "health_status": "healthy",
        "manufacturer": "Phantom",
        "model_name": "Invented",
        "magnetic_field_strength": float(rng.choice([1.5, 3.0])),
    }


def _draw_grid(head: Head, size: int, rng: np.random.Generator) -> Grid:
    axes = str(rng.choice(AXES))
    letter_of = {"R": "R", "L": "R", "A": "A", "P": "A", "S": "S", "I": "S"}
    field = [FIELD_MM[letter_of[letter]] * float(rng.uniform(0.9, 1.1)) for letter in axes]
    fine = max(field) / size
    thick = [1.0, 1.0, 1.0]
    if rng.random() < 0.3:
        thick[2] = max(1.0, float(rng.uniform(2.5, 5.0)) / fine)
    tilt = rng.uniform(-9, 9, size=3) if rng.random() < 0.7 else np.zeros(3)
    centre = place_of(head.pose, HEAD_CENTRE_MM, rng.uniform(-6, 6, size=3))
    return make_grid(
        extent_mm=field, spacing_mm=[fine * factor for factor in thick], centre_mm=centre, axes=axes, tilt_deg=tilt
    )


def _as_stored(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.generic]:
    """Integers from the scanner, or floats from somebody's script."""
    if rng.random() < 0.25:
        return values / np.float32(values.max())
    return np.clip(np.rint(values), 0, 32767).astype(np.int16)


def save_nifti(path: Path, array: NDArray[np.generic], grid: Grid, *, description: str = "") -> None:
    """Write a NIfTI file, compressed if its name says so, the same bytes each time.

    Args:
        path: ``*.nii`` or ``*.nii.gz``.
        array: Shape `grid.shape`.
        grid: The geometry; written as sform and qform.
        description: Free text of the header, where scanners and scripts leave names.
    """
    image = nibabel.Nifti1Image(array, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(grid.affine, code=1)
    image.header["descrip"] = description.encode("ascii")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content, _GZIP_LEVEL, mtime=0) if path.suffix == ".gz" else content)
