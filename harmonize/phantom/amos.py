"""Write a raw tree as AMOS publishes it: CT and MRI in nnU-Net's layout, with ellipsoids where organs would be.

There is no anatomy: a body is an ellipse, and each organ an ellipsoid of its own brightness that lies where there was
room for it, those of a side on that side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.acquisition import Grid, make_grid
from harmonize.phantom.openmind import save_nifti
from harmonize.phantom.randomness import rng_of, rotation, smooth_field

Vector = NDArray[np.float64]

LABELS = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gall bladder", 5: "esophagus", 6: "liver", 7: "stomach",
    8: "aorta", 9: "postcava", 10: "pancreas", 11: "right adrenal gland", 12: "left adrenal gland", 13: "duodenum",
    14: "bladder", 15: "prostate/uterus",
}  # fmt: skip
"""AMOS's own values and names."""

FIRST_MR = 501
"""Numbers of cases below are CT."""

FIELD_MM = (360.0, 280.0, 300.0)
"""Field of view, right to left, front to back, up and down."""

_BODY_MM, _FAT_MM = (155.0, 115.0), 14.0
"""Half axes of the body, and how thick its fat is."""

_HALF_MM, _GAP_MM = (16.0, 34.0), 4.0
"""Half axes of organs, and how far apart they lie at least."""

_CT = (-1000.0, -100.0, 50.0)
_MR = (4.0, 700.0, 240.0)
"""What air, fat and muscle have in HU, and in an MRI."""

_ORGANS_CT = (125.0, 165.0, 165.0, 8.0, 30.0, 105.0, 62.0, 210.0, 140.0, 85.0, 72.0, 72.0, 20.0, 0.0, 95.0)
_ORGANS_MR = (470.0, 640.0, 640.0, 900.0, 190.0, 330.0, 520.0, 120.0, 150.0, 400.0, 290.0, 290.0, 440.0, 980.0, 560.0)
"""What each organ has, by its value."""

_NOISE_CT, _NOISE_MR = 12.0, 14.0
_TRIES = 300


def write_scan(index: int, *, root: Path, scans: int, size: int, seed: int) -> dict[str, str]:
    """Write case `index` and its organs; gives its entry in dataset.json.

    Args:
        index: From 0; every third is an MRI. Each is a person of its own.
        root: The source's raw root.
        scans: Number of cases.
        size: Voxels along the largest axis.
        seed: What makes it repeatable.
    """
    is_mr = index % 3 == 2
    number = FIRST_MR + index // 3 if is_mr else index - index // 3 + 1
    rng = rng_of(seed, "amos", index)
    step = max(FIELD_MM) / size
    grid = make_grid(
        extent_mm=FIELD_MM, spacing_mm=(step, step, 1.3 * step), centre_mm=rng.uniform(-150, 150, size=3),
        axes="RPS" if is_mr else "LPS", tilt_deg=rng.uniform(-3, 3, size=3),
    )  # fmt: skip
    air, fat, muscle = _MR if is_mr else _CT
    places = _places(grid)
    depth = 1 - np.hypot(places[0] / _BODY_MM[0], places[1] / _BODY_MM[1])
    values = np.where(depth * min(_BODY_MM) > _FAT_MM, muscle, fat)
    labels = np.zeros(grid.shape, dtype=np.uint8)
    for value, (centre, half, turn) in _organs(rng).items():
        along = np.tensordot(turn.T, places - centre[:, None, None, None], axes=1)
        inside = (np.square(along / half[:, None, None, None]).sum(0) < 1) & (depth > 0)
        labels[inside] = value
        values[inside] = (_ORGANS_MR if is_mr else _ORGANS_CT)[value - 1]
    values = np.where(depth > 0, values, air)
    noise = rng.standard_normal(grid.shape) * (_NOISE_MR if is_mr else _NOISE_CT)
    if is_mr:
        axes = [np.arange(count) * mm for count, mm in zip(grid.shape, grid.spacing, strict=True)]
        values = np.abs(values * np.exp(0.15 * smooth_field(axes, 300.0, rng)) * rng.uniform(0.7, 1.4) + noise)
    else:
        values = values + noise
    case = f"amos_{number:04d}.nii.gz"
    save_nifti(root / "imagesTr" / case, np.clip(np.rint(values), -1024, 32767).astype(np.int16), grid)
    save_nifti(root / "labelsTr" / case, labels, grid)
    return {"image": f"./imagesTr/{case}", "label": f"./labelsTr/{case}"}


def write_tables(root: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write dataset.json, which calls every image a CT, as AMOS's does."""
    said = {
        "name": "AMOS, a phantom; no person is in it",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background"} | {str(value): name for value, name in LABELS.items()},
        "numTraining": len(rows),
        "training": sorted(rows, key=lambda row: row["image"]),
    }
    (root / "dataset.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _places(grid: Grid) -> NDArray[np.float64]:
    """RAS+ mm from the middle of the grid, (3, X, Y, Z)."""
    index = np.stack(np.meshgrid(*(np.arange(count) for count in grid.shape), indexing="ij"))
    middle = (np.asarray(grid.shape) - 1) / 2
    return np.asarray(np.tensordot(grid.affine[:3, :3], index - middle[:, None, None, None], axes=1))


def _organs(
    rng: np.random.Generator,
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Centre, half axes and turn of each organ by its value; one that finds no room is not there."""
    found: dict[int, tuple[Vector, Vector, Vector]] = {}
    for value in rng.permutation(list(LABELS)).tolist():
        half = rng.uniform(*_HALF_MM, size=3)
        side = LABELS[value].split()[0]
        for _ in range(_TRIES):
            centre = rng.uniform(-1, 1, size=3) * (*_BODY_MM, FIELD_MM[2] / 2)
            if side in ("left", "right"):
                centre[0] = abs(centre[0]) * (1 if side == "right" else -1)
            reach = float(half.max())
            apart = all(
                np.linalg.norm(centre - other) > reach + float(size.max()) + _GAP_MM
                for other, size, _ in found.values()
            )
            room = [edge - _FAT_MM - reach for edge in (*_BODY_MM, FIELD_MM[2] / 2)]
            if apart and np.hypot(centre[0] / room[0], centre[1] / room[1]) < 1 and abs(centre[2]) < room[2]:
                found[value] = (centre, half, rotation(rng.uniform(-40, 40, size=3)))
                break
    return found
