"""Write a raw tree as the ADAM challenge publishes it: TOF-MRA, structural images, masks, and places with radii."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.acquisition import CIRCLE_OF_WILLIS_MM, Grid, make_grid, place_of, resolution_for, scan_head
from harmonize.phantom.anatomy import make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.openmind import save_nifti
from harmonize.phantom.randomness import rng_of
from harmonize.phantom.rsna.plan import SITE_STRATA
from harmonize.phantom.vessels import LOCATION_WEIGHTS, Aneurysm, draw_locations

FIELD_MM = (190.0, 215.0, 110.0)
"""A slab of the head, right to left, front to back, up and down."""

HEALTHY_EVERY = 5
"""One case of so many has no aneurysm (20 of ADAM's 113), ..."""

TREATED_EVERY = 5
"""... and one an aneurysm that was treated."""

_HEALTHY, _ILL = 20001, 10001
_VISITS = "BF"


def write_scan(index: int, *, root: Path, scans: int, size: int, seed: int) -> None:
    """Write case `index`: images as acquired and as the organisers correct them, mask, and text file.

    Args:
        index: From 0; every two ill ones are two visits of one patient.
        root: The source's raw root.
        scans: Number of cases.
        size: Voxels along the largest axis.
        seed: What makes it repeatable.
    """
    healthy = index % HEALTHY_EVERY == HEALTHY_EVERY - 1
    person, visit = (index, "") if healthy else (index // 2, _VISITS[index % 2])
    names = (seed, "adam", "healthy" if healthy else "ill", person)
    rng = rng_of(*names, visit)
    where = rng_of(*names, "site")
    sites = () if healthy else draw_locations(where, (person + 0.5) % SITE_STRATA / SITE_STRATA, LOCATION_WEIGHTS)
    step = max(FIELD_MM) / size
    head = make_head(*names, resolution_mm=resolution_for(step), locations=sites)
    grid = make_grid(
        extent_mm=FIELD_MM,
        spacing_mm=(step, step, step),
        centre_mm=place_of(head.pose, CIRCLE_OF_WILLIS_MM, rng.uniform(-4, 4, size=3)),
        axes="LPS",
        tilt_deg=rng.uniform((-8, -2, -2), (4, 2, 2)),
    )
    treated = 0 if healthy or person % TREATED_EVERY != TREATED_EVERY - 1 else 1
    aneurysms = head.vessels.aneurysms
    mask = np.zeros(grid.shape, dtype=np.uint8)
    for number, aneurysm in enumerate(aneurysms):
        mask[_ball(grid, aneurysm)] = 2 if number < treated else 1
    folder = root / f"{_HEALTHY + person if healthy else _ILL + person}{visit}"
    for image, contrast in (("TOF", "MRA"), ("struct_aligned", "T1w")):
        values = scan_head(head, grid, CONTRASTS[contrast].varied(rng), rng)
        stored = np.clip(np.rint(values), 0, 32767).astype(np.int16)
        for place in ("orig", "pre"):
            save_nifti(folder / place / f"{image}.nii.gz", stored, grid)
    save_nifti(folder / "aneurysms.nii.gz", mask, grid)
    lines = [_line(grid, aneurysm) for aneurysm in aneurysms[treated:]]
    (folder / "location.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_tables(root: Path, rows: Sequence[None]) -> None:
    """ADAM has no table."""


def _ball(grid: Grid, aneurysm: Aneurysm) -> NDArray[np.bool_]:
    """The voxels of a sac, at least the one of its centre."""
    index = np.stack(np.meshgrid(*(np.arange(edge) for edge in grid.shape), indexing="ij"), axis=-1)
    world = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside: NDArray[np.bool_] = (
        np.linalg.norm(world - np.array(aneurysm.centre_mm), axis=-1) <= aneurysm.diameter_mm / 2
    )
    x, y, z = np.clip(np.rint(grid.index(aneurysm.centre_mm)), 0, np.array(grid.shape) - 1).astype(int)
    inside[x, y, z] = True
    return inside


def _line(grid: Grid, aneurysm: Aneurysm) -> str:
    x, y, z = grid.index(aneurysm.centre_mm)
    return f"{x:.2f}, {y:.2f}, {z:.2f}, {aneurysm.diameter_mm / 2:.2f}"
