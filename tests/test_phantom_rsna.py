"""The RSNA tree: localizers on the aneurysm, masks with the competition's values, files that pydicom reads."""

from __future__ import annotations

import ast
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest

from finetune.evaluation.detection import read_sizes
from harmonize import phantom
from harmonize.labels import LABELS, LOCATIONS, MASK_VALUES, PRESENT
from harmonize.phantom.acquisition import CIRCLE_OF_WILLIS_MM, make_grid, place_of, scan_head, vessel_mask
from harmonize.phantom.anatomy import draw_pose, draw_vessels, make_head
from harmonize.phantom.contrast import CONTRASTS
from harmonize.phantom.dicom_files import CT_UNSIGNED, pixels_of, write_slices
from harmonize.phantom.randomness import rng_of
from harmonize.phantom.rsna.plan import plan_series

SCANS, SEED = 4, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rsna")
    phantom.write("rsna", out, scans=SCANS, size=40, seed=SEED, difficulty="easy")
    return out / "rsna"


def world_of(dataset: pydicom.Dataset, coordinates: dict[str, float]) -> np.ndarray:
    """LPS mm of a localizer, by the geometry in the file alone."""
    if "f" in coordinates:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        position = dataset.PerFrameFunctionalGroupsSequence[int(coordinates["f"])].PlanePositionSequence[0]
        corner = np.asarray(position.ImagePositionPatient, dtype=float)
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        rows, columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    else:
        corner = np.asarray(dataset.ImagePositionPatient, dtype=float)
        orientation = dataset.ImageOrientationPatient
        rows, columns = (float(v) for v in dataset.PixelSpacing)
    along_row, along_column = np.asarray(orientation, dtype=float).reshape(2, 3)
    return corner + along_row * columns * coordinates["x"] + along_column * rows * coordinates["y"]


def test_the_sizes_beside_the_tree_are_those_of_the_sacs_that_were_drawn(root: Path) -> None:
    table = pd.read_csv(root.parent / "rsna_sizes.csv")
    points = pd.read_csv(root / "train_localizers.csv")
    assert table[["SeriesInstanceUID", "location"]].equals(points[["SeriesInstanceUID", "location"]])
    drawn = {}
    for index in range(SCANS):
        series = plan_series(index, seed=SEED)
        for sac in draw_vessels(*series.names, pose=draw_pose(*series.names), locations=series.locations).aneurysms:
            drawn[series.uid, sac.location] = sac.diameter_mm
    said = table.set_index(["SeriesInstanceUID", "location"])["diameter_mm"].to_dict()
    assert said == pytest.approx(drawn, abs=0.005)
    largest = table.groupby("SeriesInstanceUID")["diameter_mm"].max().to_dict()
    assert read_sizes(root.parent / "rsna_sizes.csv") == largest
    assert set(largest) <= {path.name for path in (root / "series").iterdir()}


def test_half_of_the_series_have_an_aneurysm_and_the_labels_agree_with_the_localizers(root: Path) -> None:
    train = pd.read_csv(root / "train.csv").set_index("SeriesInstanceUID")
    points = pd.read_csv(root / "train_localizers.csv")
    assert len(train) == SCANS
    assert train[PRESENT].sum() == SCANS // 2
    assert set(points["location"]) <= set(LOCATIONS)
    for uid, row in train.iterrows():
        named = set(points.loc[points["SeriesInstanceUID"] == uid, "location"])
        assert named == {location for location in LOCATIONS if row[location] == 1}
        assert row[PRESENT] == int(bool(named))
    assert set(train["Modality"]) <= {"CTA", "MRA", "MRI T2", "MRI T1post"}
    assert set(train["PatientSex"]) <= {"Female", "Male"}
    assert list(train.columns[3:]) == list(LABELS)


def test_each_localizer_names_a_file_and_a_pixel_inside_it(root: Path) -> None:
    for row in pd.read_csv(root / "train_localizers.csv").itertuples():
        dataset = pydicom.dcmread(root / "series" / row.SeriesInstanceUID / f"{row.SOPInstanceUID}.dcm")
        coordinates = ast.literal_eval(row.coordinates)
        assert row.SOPInstanceUID == dataset.SOPInstanceUID
        assert 0 <= coordinates["x"] < dataset.Columns
        assert 0 <= coordinates["y"] < dataset.Rows
        assert ("f" in coordinates) == ("NumberOfFrames" in dataset)


def test_localizers_of_the_tree_lie_where_its_heads_have_their_aneurysms(root: Path) -> None:
    train = pd.read_csv(root / "train.csv")
    points = pd.read_csv(root / "train_localizers.csv")
    for index, row in train.iterrows():
        locations = tuple(location for location in LOCATIONS if row[location] == 1)
        if not locations:
            continue
        head = make_head(SEED, "rsna", index, resolution_mm=2.5, locations=locations)
        for aneurysm in head.vessels.aneurysms:
            chosen = points[
                (points["SeriesInstanceUID"] == row["SeriesInstanceUID"]) & (points["location"] == aneurysm.location)
            ]
            (point,) = chosen.itertuples()
            folder = root / "series" / point.SeriesInstanceUID
            found = world_of(
                pydicom.dcmread(folder / f"{point.SOPInstanceUID}.dcm"), ast.literal_eval(point.coordinates)
            )
            # Within a slice it is exact; across, the nearest slice (at most 5 mm apart) is named.
            assert np.linalg.norm(found - np.asarray(aneurysm.centre_mm) * (-1, -1, 1)) <= 2.6


def test_a_localizer_lands_on_the_bright_aneurysm_of_a_cta(tmp_path: Path) -> None:
    names = ("Left Middle Cerebral Artery", "Basilar Tip", "Right Posterior Communicating Artery")
    head = make_head(11, "cta", resolution_mm=2.0, locations=names)
    grid = make_grid(
        extent_mm=(90, 90, 70),
        spacing_mm=(1, 1, 1),
        centre_mm=place_of(head.pose, CIRCLE_OF_WILLIS_MM),
        tilt_deg=(5, -3, 4),
    )
    voxels = scan_head(head, grid, CONTRASTS["CTA"], rng_of(0))
    header = {"Modality": "CT", "SeriesInstanceUID": "1.2.3", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}
    files = write_slices(tmp_path, voxels, grid, header, CT_UNSIGNED, file_name=lambda _, sop: f"{sop}.dcm")
    for aneurysm in head.vessels.aneurysms:
        column, line, k = pixels_of(grid, aneurysm.centre_mm)
        dataset = pydicom.dcmread(files[k].path)
        hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        assert hounsfield[round(line), round(column)] > 250
        assert abs(world_of(dataset, {"x": column, "y": line})[0] + aneurysm.centre_mm[0]) < 0.5
        if aneurysm.location.startswith("Left"):
            # LPS: left is positive x.
            assert world_of(dataset, {"x": column, "y": line})[0] > 10


def test_mask_values_name_the_branches_on_their_side() -> None:
    head = make_head(5, "mask", resolution_mm=2.5)
    grid = make_grid(
        extent_mm=(110, 100, 90), spacing_mm=(1, 1, 1), centre_mm=place_of(head.pose, CIRCLE_OF_WILLIS_MM), axes="RAS"
    )
    mask = vessel_mask(head, grid)
    assert set(np.unique(mask)) == set(range(14))
    for location, value in zip(LOCATIONS, MASK_VALUES, strict=True):
        x = grid.world(np.argwhere(mask == value).mean(axis=0))[0]
        if location.startswith("Left"):
            assert x < 0
        elif location.startswith("Right"):
            assert x > 0
        else:
            assert abs(x) < 6


def test_segmentations_share_the_geometry_of_their_image(root: Path) -> None:
    masks = sorted((root / "segmentations").rglob("*_cowseg.nii"))
    assert len(masks) == SCANS // 2
    for path in masks:
        mask = nibabel.load(path)
        image = nibabel.load(path.with_name(path.name.replace("_cowseg", "")))
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert mask.shape == image.shape
        values = np.asarray(mask.dataobj)
        assert values.dtype == np.uint8
        assert 5 <= len(np.unique(values)) <= 14


def test_a_series_that_is_planned_so_is_one_enhanced_file(root: Path) -> None:
    planned = [plan_series(index, seed=SEED) for index in range(SCANS)]
    files = {folder.name: list(folder.iterdir()) for folder in (root / "series").iterdir()}
    single = {uid for uid, found in files.items() if len(found) == 1}
    assert single == {series.uid for series in planned if series.multiframe}
    assert 0 < len(single) < SCANS
    for uid in single:
        dataset = pydicom.dcmread(files[uid][0])
        assert dataset.pixel_array.shape == (dataset.NumberOfFrames, dataset.Rows, dataset.Columns)
        assert len(dataset.PerFrameFunctionalGroupsSequence) == dataset.NumberOfFrames
