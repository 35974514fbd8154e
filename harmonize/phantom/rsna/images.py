"""The picture of a planned series of RSNA's phantom: its head, where its slices lie, and their values one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.acquisition import Grid, resolution_for, scan_head
from harmonize.phantom.anatomy import Head, draw_pose, make_head
from harmonize.phantom.artefacts import RATES, Artefacts, draw_artefacts
from harmonize.phantom.canvas import Tissue
from harmonize.phantom.contrast import CONTRASTS, Contrast
from harmonize.phantom.dicom_files import planes_of
from harmonize.phantom.randomness import rng_of
from harmonize.phantom.rsna.coverage import turned
from harmonize.phantom.rsna.grids import MAX_SPACING_MM, MIN_FIELD_MM, draw_grid, hospital_grid, varied_grid_of
from harmonize.phantom.rsna.options import Coverage
from harmonize.phantom.rsna.plan import SeriesPlan
from harmonize.phantom.slabs import SLAB_VOXELS, scan_slabs

_GREY_HU = 36.5
"""8.5 HU above white matter: 7 to 9 were measured (Nakamura, Advances in Computed Tomography 2019; 8)."""

CONTRAST_OF = {"CTA": "CTA", "MRA": "MRA", "MRI T2": "T2w", "MRI T1post": "T1post"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What a scanner gives.

    Attributes:
        head: What was scanned.
        grid: Where its slices lie.
        planes: Their values in turn, (X, Y) float32; they may be had once.
    """

    head: Head
    grid: Grid
    planes: Iterator[NDArray[np.float32]]


def easy_picture(series: SeriesPlan, size: int, coverage: Coverage, rng: np.random.Generator) -> Picture:
    """Scan the head of an easy series in one piece.

    Args:
        series: What is scanned.
        size: Voxels along the largest axis.
        coverage: Which fields of view there are.
        rng: Where the chance of the acquisition comes from.
    """
    spacing = float(np.clip(rng.uniform(180, 220) / size, 0.4, max(MAX_SPACING_MM, MIN_FIELD_MM / size)))
    if coverage == "varied":
        turn = turned(draw_pose(*series.names), rng)
        grid = varied_grid_of(series, turn, size, rng)
        spacing = float(np.median(grid.spacing))
    else:
        turn, grid = None, draw_grid(series, size, spacing, rng)
    head = _head(series, spacing, turn)
    contrast = CONTRASTS[CONTRAST_OF[series.modality]].varied(rng)
    return Picture(head=head, grid=grid, planes=iter(planes_of(scan_head(head, grid, contrast, rng))))


def hard_picture(
    series: SeriesPlan, size: int, coverage: Coverage = "protocol", *, slab_voxels: int = SLAB_VOXELS
) -> Picture:
    """Scan the head of a medium or hard series in its hospital, slab by slab.

    Args:
        series: What is scanned.
        size: Voxels along the largest axis.
        coverage: Which fields of view there are.
        slab_voxels: How many voxels are made at once; changes no value.
    """
    rng = rng_of(*series.names, "grid")
    if coverage == "varied":
        turn = turned(draw_pose(*series.names), rng)
        grid = varied_grid_of(series, turn, size, rng)
    else:
        turn, grid = None, hospital_grid(series, size, rng)
    head = _head(series, float(np.median(grid.spacing)), turn)
    contrast, artefacts = hard_look(series, head, grid)
    planes = scan_slabs(
        head, grid, contrast, artefacts, series.names, grain=series.protocol.grain, slab_voxels=slab_voxels
    )
    return Picture(head=head, grid=grid, planes=planes)


def hard_look(series: SeriesPlan, head: Head, grid: Grid) -> tuple[Contrast, Artefacts]:
    """How a series looks on its day in its hospital, and what its scanner adds or loses; a sac changes neither."""
    chance, rates = rng_of(*series.names, "artefacts"), RATES[series.difficulty]
    return _look(series), draw_artefacts(series.modality, grid, head.vessels.vessels, chance, rates)


def _look(series: SeriesPlan) -> Contrast:
    """The modality in the series' hospital on its day; in hard heads blood is as bright in a sac as in its artery."""
    contrast, chance = CONTRASTS[CONTRAST_OF[series.modality]], rng_of(*series.names, "look")
    if series.difficulty != "hard":
        return series.protocol.look(contrast, chance)
    if contrast.family == "CT":
        contrast = contrast.with_tissue(Tissue.GREY, _GREY_HU)
    return series.protocol.look(contrast, chance).with_sacs_as_arteries()


def _head(series: SeriesPlan, spacing: float, turn: NDArray[np.float64] | None) -> Head:
    head = make_head(
        *series.names,
        resolution_mm=resolution_for(spacing),
        locations=series.locations,
        difficulty=series.difficulty,
    )
    return head if turn is None else replace(head, pose=turn @ head.pose, vessels=head.vessels.moved(turn))
