"""Write a raw tree as TopCoW publishes it: a CTA and an MRA of each person, and the arteries of their circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmonize.phantom.acquisition import (
    CIRCLE_OF_WILLIS_MM,
    HEAD_CENTRE_MM,
    Grid,
    label_vessels,
    make_grid,
    place_of,
    resolution_for,
    scan_head,
)
from harmonize.phantom.anatomy import Head, make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.openmind import save_nifti
from harmonize.phantom.randomness import rng_of
from harmonize.phantom.vessels import Flow, Vessel
from harmonize.phantom.vessels.tubes import Tube

LABELS = {
    1: "BA", 2: "R-PCA", 3: "L-PCA", 4: "R-ICA", 5: "R-MCA", 6: "L-ICA", 7: "L-MCA", 8: "R-Pcom", 9: "L-Pcom",
    10: "Acom", 11: "R-ACA", 12: "L-ACA", 15: "3rd-A2",
}  # fmt: skip
"""TopCoW's own values and names; 13 and 14 are not used."""

KINDS = (("ct", "CTA"), ("mr", "MRA"))
"""How the two images of a person are called, and what they look like."""

FIELD_MM = {"ct": (195.0, 225.0, 180.0), "mr": (190.0, 215.0, 110.0)}
"""Fields of view, right to left, front to back, up and down: a CTA of the head, a slab of the MRA."""

ROI_MM = (90.0, 90.0, 56.0)
"""The box around the circle within which arteries were annotated; farther branches of the same arteries were not."""

_ARTERY = {
    "basilar": "BA", "tip": "BA", "acom": "Acom", "ica_supra": "ICA", "mca": "MCA", "m2_up": "MCA",
    "m2_low": "MCA", "m2_front": "MCA", "a1": "ACA", "a2": "ACA", "pcom": "Pcom", "p1": "PCA", "p2": "PCA",
    "third a2": "3rd-A2",
}  # fmt: skip
_SIDES = {"left": "L-", "right": "R-"}
_VALUES = {name: value for value, name in LABELS.items()}
_A_THIRD_A2 = 5
"""One of so many people has three second segments of the anterior cerebral artery."""


def write_scan(index: int, *, root: Path, scans: int, size: int, seed: int) -> None:
    """Write image `index` and the labels of its arteries.

    Args:
        index: From 0; every two images are the CTA and the MRA of one person.
        root: The source's raw root.
        scans: Number of images.
        size: Voxels along the largest axis.
        seed: What makes it repeatable.
    """
    number, (kind, contrast) = index // 2, KINDS[index % 2]
    names = (seed, "topcow", number)
    rng = rng_of(*names, kind)
    field = FIELD_MM[kind]
    step = max(field) / size
    head = _with_third_a2(make_head(*names, resolution_mm=resolution_for(step)), number)
    grid = make_grid(
        extent_mm=field,
        spacing_mm=(step, step, 1.5 * step),
        centre_mm=place_of(
            head.pose, HEAD_CENTRE_MM if kind == "ct" else CIRCLE_OF_WILLIS_MM, rng.uniform(-4, 4, size=3)
        ),
        axes="LPS",
        tilt_deg=rng.uniform((-8, -2, -2), (4, 2, 2)),
    )
    values = scan_head(head, grid, CONTRASTS[contrast].varied(rng), rng)
    case = f"topcow_{kind}_{number + 1:03d}"
    save_nifti(root / "imagesTr" / f"{case}_0000.nii.gz", np.clip(np.rint(values), -1024, 32767).astype(np.int16), grid)
    save_nifti(root / "cow_seg_labelsTr" / f"{case}.nii.gz", artery_mask(head, grid), grid)


def write_tables(root: Path, rows: Sequence[None]) -> None:
    """TopCoW has no table that is needed."""


def artery_mask(head: Head, grid: Grid) -> NDArray[np.uint8]:
    """The arteries of the circle of Willis by TopCoW's values, within the box where they were annotated."""
    labels = label_vessels(head, grid, _value)
    to_template = np.linalg.inv(head.pose) @ grid.affine
    i, j, k = np.ogrid[: grid.shape[0], : grid.shape[1], : grid.shape[2]]
    for axis, edge in enumerate(ROI_MM):
        row = to_template[axis]
        place = row[0] * i + row[1] * j + row[2] * k + row[3]
        labels[np.abs(place - CIRCLE_OF_WILLIS_MM[axis]) > edge / 2] = 0
    return labels


def _value(vessel: Vessel) -> int | None:
    side, _, branch = vessel.branch.rpartition(" ") if vessel.branch != "third a2" else ("", "", vessel.branch)
    artery = _ARTERY.get(branch)
    return None if artery is None else _VALUES[f"{_SIDES.get(side, '')}{artery}"]


def _with_third_a2(head: Head, number: int) -> Head:
    """The same head, in one of `_A_THIRD_A2` people with a third A2 between the two."""
    if number % _A_THIRD_A2:
        return head
    sides = [vessel.tube for vessel in head.vessels.vessels if vessel.branch.endswith(" a2")]
    count = min(len(tube.points_N3) for tube in sides)
    points = np.mean([tube.points_N3[:count] for tube in sides], axis=0)
    # In front of its neighbours, which lie so close that it would vanish between them.
    front = head.pose[:3, :3] @ np.array((0.0, 2.5, 0.0))
    shift = np.linspace(0, 1, count)[:, None] * front if count > 1 else front
    third = Tube(points_N3=points + shift, radii_N=np.full(count, 1.0))
    vessel = Vessel(tube=third, location=None, flow=Flow.ARTERY, branch="third a2")
    return replace(head, vessels=replace(head.vessels, vessels=(*head.vessels.vessels, vessel)))
