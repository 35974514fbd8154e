"""Fields of view beyond the protocols': all sites inside, slices of every direction, and localizers where sacs are."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest

from harmonize import phantom
from harmonize.errors import WrongUse
from harmonize.phantom.acquisition import CIRCLE_OF_WILLIS_MM, Grid, place_of
from harmonize.phantom.anatomy import draw_pose, draw_vessels
from harmonize.phantom.randomness import rng_of
from harmonize.phantom.rsna.coverage import MARGIN_MM, turned, varied_grid
from harmonize.phantom.rsna.grids import hospital_grid
from harmonize.phantom.rsna.images import hard_picture
from harmonize.phantom.rsna.options import TreeOptions
from harmonize.phantom.rsna.plan import plan_series, planned

SEED = 11


def drawn(index: int) -> tuple[Grid, np.ndarray, np.ndarray]:
    """A field of view, the circle of Willis and the sites of a head."""
    series, rng = plan_series(index, seed=SEED), rng_of(SEED, "coverage", index)
    pose = turned(draw_pose(*series.names), rng) @ draw_pose(*series.names)
    sites = draw_vessels(*series.names, pose=pose, locations=series.sites).aneurysms
    sites_N3 = np.array([sac.centre_mm for sac in sites])
    circle_mm = place_of(pose, CIRCLE_OF_WILLIS_MM)
    return varied_grid(series.modality, circle_mm, sites_N3, 48, rng), circle_mm, sites_N3


def test_varied_fields_of_view_hold_all_sites_and_differ_in_all_else() -> None:
    directions, below, above = set(), [], []
    for index in range(120):
        grid, circle_mm, sites_N3 = drawn(index)
        for site in sites_N3:
            inside_mm = np.minimum(grid.index(site) + 0.5, np.array(grid.shape) - 0.5 - grid.index(site)) * grid.spacing
            # Whole voxels may leave a field of view smaller by one than it was drawn.
            assert (inside_mm >= MARGIN_MM - np.array(grid.spacing)).all()
        assert max(grid.shape) <= 48
        directions.add(int(np.argmax(abs(grid.affine[:3, 2]))))
        corners = [grid.world(np.array(corner) * (np.array(grid.shape) - 1))[2] for corner in np.ndindex(2, 2, 2)]
        below.append(circle_mm[2] - min(corners))
        above.append(max(corners) - circle_mm[2])
    assert directions == {0, 1, 2}
    assert min(below) < 60 < 115 < max(below)  # from just below the circle to the neck
    assert min(above) < 60 < 110 < max(above)  # from a cut vertex to air above it


def test_localizers_of_a_turned_head_lie_on_its_sacs(tmp_path: Path) -> None:
    table = tmp_path / "ill.csv"
    table.write_text("modality,prevalence\nCTA,1\n")
    asked: dict[str, Any] = {"scans": 2, "size": 24, "seed": SEED, "prevalence": table, "coverage": "varied"}
    (root,) = phantom.write("rsna", tmp_path, difficulty="easy", **asked)
    points = pd.read_csv(root / "train_localizers.csv")
    for index in range(2):
        series = plan_series(index, seed=SEED)
        rng = rng_of(*series.names, "series")
        rng.uniform(180, 220)  # what the protocols draw first
        pose = turned(draw_pose(*series.names), rng) @ draw_pose(*series.names)
        sacs = draw_vessels(*series.names, pose=pose, locations=series.sites).aneurysms
        for sac in sacs:
            (row,) = points[
                (points["SeriesInstanceUID"] == series.uid) & (points["location"] == sac.location)
            ].itertuples()
            at = ast.literal_eval(row.coordinates)
            if "f" in at:
                continue
            header = pydicom.dcmread(root / "series" / series.uid / f"{row.SOPInstanceUID}.dcm")
            along, down = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
            rows, columns = map(float, header.PixelSpacing)
            place = (
                np.array(header.ImagePositionPatient, dtype=float) + along * columns * at["x"] + down * rows * at["y"]
            )
            assert np.linalg.norm(place * (-1, -1, 1) - sac.centre_mm) < 6.0  # half a slice of 24


def test_a_varied_hard_series_has_a_field_of_no_hospital_and_the_look_of_its_own() -> None:
    options = TreeOptions(difficulty="hard", coverage="varied")
    series = next(one for index in range(8) if (one := planned(index, seed=SEED, options=options)).ill)
    picture, island = (hard_picture(one, 32, "varied") for one in (series, replace(series, hospital="island")))
    values, noisy = (np.stack(list(one.planes), axis=2) for one in (picture, island))
    grid, protocol = picture.grid, hospital_grid(series, 32, rng_of(*series.names, "grid"))
    assert values.shape == grid.shape
    np.testing.assert_array_equal(grid.affine, island.grid.affine)
    assert not np.array_equal(values, noisy)
    assert not np.allclose(grid.affine, protocol.affine)
    assert picture.head.vessels.aneurysms
    for sac in picture.head.vessels.aneurysms:
        at = grid.index(sac.centre_mm)
        inside_mm = np.minimum(at + 0.5, np.array(grid.shape) - 0.5 - at) * grid.spacing
        assert (inside_mm >= MARGIN_MM - np.array(grid.spacing)).all()


def test_varied_fields_and_a_hospitals_slices_are_not_asked_for_at_once(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"--coverage varied with --hospital west: .* leave one out"):
        phantom.write("rsna", tmp_path, scans=1, size=24, seed=0, difficulty="hard", coverage="varied", hospital="west")


def test_coverage_is_of_one_source_alone(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="--coverage varied: does nothing with --source tcia"):
        phantom.write("tcia", tmp_path, scans=1, size=24, seed=0, coverage="varied")
