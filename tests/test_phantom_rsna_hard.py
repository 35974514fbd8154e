"""Hard trees of RSNA's phantom: hospitals, pairs, mistaken labels, and pictures that come slab by slab."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest

from harmonize import phantom
from harmonize.cli import main
from harmonize.errors import WrongUse
from harmonize.labels import LABELS, LOCATIONS, PRESENT
from harmonize.phantom.acquisition import Grid
from harmonize.phantom.anatomy import draw_pose
from harmonize.phantom.randomness import rng_of
from harmonize.phantom.rsna import TreeOptions, beside
from harmonize.phantom.rsna.grids import hospital_grid, would_be
from harmonize.phantom.rsna.hospitals import BY_NAME, HOSPITALS, ODD_HOSPITAL
from harmonize.phantom.rsna.images import hard_picture
from harmonize.phantom.rsna.plan import SeriesPlan, planned
from harmonize.phantom.rsna.prevalence import MODALITIES

HARD = TreeOptions(difficulty="hard")
PAIRED = TreeOptions(difficulty="hard", counterfactuals=True)
SIZE = 40


def plans(count: int, options: TreeOptions = HARD, seed: int = 0) -> list[SeriesPlan]:
    return [planned(index, seed=seed, options=options) for index in range(count)]


def voxels(series: SeriesPlan, **options: int) -> np.ndarray:
    return np.stack(list(hard_picture(series, SIZE, **options).planes), axis=2)


def test_every_hospital_scans_every_modality_of_ill_and_healthy_as_often() -> None:
    series = plans(640)
    count = Counter((one.hospital, one.modality, one.ill) for one in series)
    assert {name for name, _, _ in count} == {hospital.name for hospital in HOSPITALS}
    for modality in ("CTA", "MRA", "MRI T2", "MRI T1post"):
        here = {key: number for key, number in count.items() if key[1] == modality}
        assert len(here) == 2 * len(HOSPITALS)
        expected = sum(here.values()) / len(here)
        assert max(abs(number - expected) for number in here.values()) <= 0.5 * expected + 4


def test_the_odd_hospital_scans_alone_and_heads_of_its_own() -> None:
    odd = plans(40, TreeOptions(difficulty="hard", hospital=ODD_HOSPITAL.name))
    assert {one.hospital for one in odd} == {ODD_HOSPITAL.name}
    assert not {one.uid for one in odd} & {one.uid for one in plans(40)}
    assert not {one.names for one in odd} & {one.names for one in plans(40)}
    easy = plans(40, TreeOptions(difficulty="easy"))
    assert not {one.uid for one in easy} & {one.uid for one in plans(40)}


def test_medium_heads_are_scanned_in_the_same_hospitals_and_are_in_no_hard_tree() -> None:
    medium = plans(160, TreeOptions(difficulty="medium"))
    assert {one.difficulty for one in medium} == {"medium"}
    assert {one.hospital for one in medium} == {hospital.name for hospital in HOSPITALS}
    assert not {one.uid for one in medium} & {one.uid for one in plans(160)}
    assert not {one.names for one in medium} & {one.names for one in plans(160)}
    pair = plans(2, TreeOptions(difficulty="medium", counterfactuals=True))
    with_sac, without = (hard_picture(one, SIZE, "protocol").head.vessels for one in pair)
    assert [len(tree.aneurysms) for tree in (with_sac, without)] == [1, 0]
    assert with_sac.mimics == without.mimics


def test_the_odd_hospital_is_noisier_and_thicker_than_all_others() -> None:
    for modality, protocol in ODD_HOSPITAL.protocols.items():
        others = [hospital.protocols[modality] for hospital in HOSPITALS]
        assert protocol.step_mm[0] >= max(other.step_mm[1] for other in others)
        assert protocol.noise > max(other.noise for other in others)


def test_a_table_may_name_a_hospital(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("modality,prevalence,hospital\nCTA,1,north\nCTA,0.25,\nMRA,0,west\n")
    stated = TreeOptions(difficulty="hard", prevalence=phantom.read_prevalence(path))
    shares: dict[tuple[str, str], list[bool]] = {}
    for one in plans(3200, stated):
        shares.setdefault((one.modality, str(one.hospital)), []).append(one.ill)
    assert all(shares["CTA", "north"])
    assert not any(shares["MRA", "west"])
    assert np.mean(shares["CTA", "east"]) == pytest.approx(0.25, abs=0.08)
    assert np.mean(shares["MRA", "east"]) == pytest.approx(0.5, abs=0.08)
    with pytest.raises(WrongUse, match="column hospital: does nothing with --difficulty easy"):
        TreeOptions(difficulty="easy", prevalence=stated.prevalence)
    path.write_text("modality,prevalence,hospital\nCTA,1,moon\n")
    with pytest.raises(WrongUse, match="'moon' is no hospital; use north, east, south, west, island"):
        phantom.read_prevalence(path)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"difficulty": "harder"}, "--difficulty harder: choose easy, medium or hard"),
        (
            {"difficulty": "easy", "hospital": "west"},
            "--hospital west: does nothing with --difficulty easy",
        ),
        ({"hospital": "moon"}, "--hospital moon: there is no such one; choose north, east,"),
        (
            {"difficulty": "easy", "label_noise": 0.1},
            "--label-noise 0.1: does nothing with --difficulty easy",
        ),
        ({"label_noise": 1.5}, "--label-noise 1.5: give a share"),
        ({"label_noise": float("nan")}, "--label-noise nan: give a share"),
        (
            {"difficulty": "easy", "counterfactuals": True},
            "--counterfactuals: does nothing with --difficulty easy",
        ),
        ({"counterfactuals": True, "label_noise": 0.1}, "leave one out"),
        ({"counterfactuals": True, "scans": 3}, "--scans 3 with --counterfactuals: ask"),
        ({"difficulty": "easy", "source": "tcia"}, "--difficulty easy: does nothing with --source tcia"),
        ({"hospital": "west", "source": "tcia"}, "--hospital west: does nothing with --source tcia"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    tmp_path: Path, options: dict[str, object], fault: str
) -> None:
    asked = {"source": "rsna", "scans": 2, "size": 24, "seed": 0, **options}
    with pytest.raises(WrongUse, match=fault) as refusal:
        phantom.write(out=tmp_path / "raw", **asked)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("difficulty", ["medium", "hard"])
def test_the_command_hands_its_options_on(tmp_path: Path, difficulty: str) -> None:
    told = ["phantom", "--source", "rsna", "--out", str(tmp_path), "--scans", "2", "--size", "24"]
    assert main([*told, "--difficulty", difficulty, "--hospital", "island", "--counterfactuals"]) == 0
    sizes = pd.read_csv(tmp_path / "rsna_sizes.csv")
    assert len(sizes) == 1
    assert {"shape", "at_branching"} <= set(sizes.columns)
    assert (tmp_path / "rsna_mimics.csv").is_file()
    (pair,) = pd.read_csv(tmp_path / "rsna_counterfactuals.csv").itertuples()
    assert pair.hospital == "island"
    assert set(pd.read_csv(tmp_path / "rsna_hospitals.csv")["hospital"]) == {"island"}
    assert main([*told, "--difficulty", "easy", "--label-noise", "0.2"]) == 2


@pytest.mark.parametrize("index", [0, 2, 4, 6])
def test_a_picture_is_the_same_in_any_slabs(index: int) -> None:
    """One of each modality: slice by slice, some at once, and all at once."""
    series = plans(8)[index]
    whole = voxels(series, slab_voxels=10**9)
    assert whole.std() > 1
    for slab_voxels in (1, 7 * SIZE * SIZE):
        np.testing.assert_array_equal(voxels(series, slab_voxels=slab_voxels), whole)


@pytest.mark.parametrize(("size", "widest_mm"), [(160, 220), (96, 192)])
def test_the_field_of_view_holds_every_site_and_tells_neither_illness_nor_modality_nor_hospital(
    size: int, widest_mm: float
) -> None:
    """What a picture shows from side to side, front to back and top to bottom; slices may differ in thickness."""
    shown = []
    for one in plans(64):
        grid = phantom_grid(one, size)
        healthy = phantom_grid(replace(one, ill=not one.ill), size)
        assert grid.shape == healthy.shape
        np.testing.assert_array_equal(grid.affine, healthy.affine)
        for sac in would_be(one, draw_pose(*one.names)).aneurysms:
            inside_mm = np.minimum(grid.index(sac.centre_mm), np.subtract(grid.shape, 1) - grid.index(sac.centre_mm))
            assert (inside_mm * grid.spacing > 8).all()
        sides_mm, voxel_mm = sides(grid)
        for modality in MODALITIES:
            for hospital in BY_NAME:
                other_mm, step_mm = sides(phantom_grid(replace(one, modality=modality, hospital=hospital), size))
                assert (np.abs(other_mm - sides_mm) <= np.maximum(voxel_mm, step_mm)).all()
        shown.append(sides_mm)
    lowest, highest = np.min(shown, axis=0), np.max(shown, axis=0)
    assert lowest == pytest.approx((140, 140, 90), abs=4)
    assert highest == pytest.approx((widest_mm, widest_mm, 170), abs=4)


def sides(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """What a grid shows along R, A and S, or whichever of its own axes is nearest, and its voxels' size there."""
    order = np.argsort(np.argmax(np.abs(grid.affine[:3, :3]) / grid.spacing, axis=0))
    return (np.array(grid.shape) * grid.spacing)[order], np.array(grid.spacing)[order]


def phantom_grid(series: SeriesPlan, size: int) -> Grid:
    return hospital_grid(series, size, rng_of(*series.names, "grid"))


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paired")
    phantom.write("rsna", out, scans=8, size=56, seed=3, difficulty="hard", counterfactuals=True)
    return out


def values_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values of a series, and LPS mm of each voxel."""
    files = sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda one: int(one.InstanceNumber))
    if "NumberOfFrames" in files[0]:
        shared = files[0].SharedFunctionalGroupsSequence[0]
        origins = [
            frame.PlanePositionSequence[0].ImagePositionPatient for frame in files[0].PerFrameFunctionalGroupsSequence
        ]
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        spacing = shared.PixelMeasuresSequence[0].PixelSpacing
        planes = files[0].pixel_array
    else:
        origins = [one.ImagePositionPatient for one in files]
        orientation, spacing = files[0].ImageOrientationPatient, files[0].PixelSpacing
        planes = np.stack([one.pixel_array for one in files])
    x, y = np.asarray(orientation, dtype=float).reshape(2, 3)
    rows, columns = (float(value) for value in spacing)
    r, c = np.mgrid[: planes.shape[1], : planes.shape[2]]
    flat = (r[..., None] * rows * y + c[..., None] * columns * x)[None]
    return planes.astype(int), flat + np.asarray(origins, dtype=float)[:, None, None, :]


def test_a_pair_differs_where_its_sac_is_and_nowhere_else(paired: Path) -> None:
    pairs = pd.read_csv(paired / "rsna_counterfactuals.csv")
    train = pd.read_csv(paired / "rsna" / "train.csv").set_index("SeriesInstanceUID")
    assert len(pairs) == 4
    assert set(pairs["with_sac"]) | set(pairs["without_sac"]) == set(train.index)
    for row in pairs.itertuples():
        assert train.loc[row.with_sac, row.location] == train.loc[row.with_sac, PRESENT] == 1
        assert not train.loc[row.without_sac, list(LABELS)].any()
        assert train.loc[row.with_sac, "Modality"] == train.loc[row.without_sac, "Modality"] == row.modality
        ill, places = values_of(paired / "rsna" / "series" / row.with_sac)
        healthy, same = values_of(paired / "rsna" / "series" / row.without_sac)
        np.testing.assert_allclose(places, same, atol=1e-6)
        change = np.abs(ill - healthy)
        away = np.linalg.norm(places - np.array([-row.x_mm, -row.y_mm, row.z_mm]), axis=-1)
        near = away < 3 * row.diameter_mm + 8
        assert change[near].max() > 0
        if row.modality == "CTA":  # elsewhere ghosts of what pulses and moves show the sac again, faintly
            assert not change[~near].any()
        assert change[~near].mean() < 0.02 * change[near].max()


def test_pairs_have_sites_of_their_own_and_nothing_else_in_common_with_the_plain_tree(paired: Path) -> None:
    series = plans(256, PAIRED)
    assert [one.ill for one in series] == [True, False] * 128
    assert all(len(one.sites) == 1 for one in series)
    assert {site for one in series for site in one.sites} == set(LOCATIONS)
    for ill, healthy in zip(series[::2], series[1::2], strict=True):
        assert (ill.names, ill.sites, ill.modality, ill.hospital) == (
            healthy.names, healthy.sites, healthy.modality, healthy.hospital,
        )  # fmt: skip
        assert (ill.multiframe, ill.segmented) == (healthy.multiframe, healthy.segmented)
        assert ill.uid != healthy.uid
    assert not {one.names for one in series} & {one.names for one in plans(256)}
    assert (paired / "rsna_counterfactuals.csv").name in beside(PAIRED)


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mislabelled")
    phantom.write("rsna", out, scans=12, size=24, seed=2, difficulty="hard", label_noise=0.5)
    return out


def test_mistaken_labels_are_told_beside_the_tree(mislabelled: Path) -> None:
    train = pd.read_csv(mislabelled / "rsna" / "train.csv").set_index("SeriesInstanceUID")
    truth = pd.read_csv(mislabelled / "rsna_truth.csv", keep_default_na=False).set_index("SeriesInstanceUID")
    points = pd.read_csv(mislabelled / "rsna" / "train_localizers.csv")
    sizes = pd.read_csv(mislabelled / "rsna_sizes.csv")
    assert list(truth.index) == list(train.index)
    by_plan = {one.uid: one for one in plans(12, TreeOptions(difficulty="hard", label_noise=0.5), seed=2)}
    for uid, right in truth.iterrows():
        said = train.loc[uid, list(LABELS)]
        assert {name for name in LOCATIONS if right[name]} == set(by_plan[str(uid)].locations)
        assert set(sizes.loc[sizes["SeriesInstanceUID"] == uid, "location"]) == set(by_plan[str(uid)].locations)
        assert (right["mistake"] == "") == bool((said == right[list(LABELS)]).all())
        assert set(points.loc[points["SeriesInstanceUID"] == uid, "location"]) == {n for n in LOCATIONS if said[n]}
        assert said[PRESENT] == int(any(said[list(LOCATIONS)]))
    assert 2 <= (truth["mistake"] != "").sum() <= 10


def test_a_hard_tree_is_read_as_any_other(mislabelled: Path) -> None:
    """Tables beside it name every series and place what merely looks like a sac in its pictures."""
    root = mislabelled / "rsna"
    hospitals = pd.read_csv(mislabelled / "rsna_hospitals.csv").set_index("SeriesInstanceUID")["hospital"]
    assert set(hospitals) <= set(BY_NAME) - {ODD_HOSPITAL.name}
    assert set(hospitals.index) == {path.name for path in (root / "series").iterdir()}
    mimics = pd.read_csv(mislabelled / "rsna_mimics.csv")
    assert mimics["SeriesInstanceUID"].nunique() == 12
    for row in mimics.groupby("SeriesInstanceUID").head(1).itertuples():
        dataset = pydicom.dcmread(root / "series" / row.SeriesInstanceUID / f"{row.SOPInstanceUID}.dcm")
        assert set(ast.literal_eval(row.coordinates)) == (
            {"x", "y", "f"} if "NumberOfFrames" in dataset else {"x", "y"}
        )
    masks = sorted((root / "segmentations").rglob("*_cowseg.nii"))
    assert masks
    for path in masks:
        mask, image = nibabel.load(path), nibabel.load(path.with_name(path.name.replace("_cowseg", "")))
        np.testing.assert_array_equal(mask.affine, image.affine)
        values, series = np.asarray(image.dataobj), root / "series" / path.name.removesuffix("_cowseg.nii")
        planes, _ = values_of(series)
        assert values.shape == mask.shape == planes.shape[::-1]
        assert 5 <= len(np.unique(np.asarray(mask.dataobj))) <= 14


def test_mimics_are_told_of_where_the_picture_shows_them(mislabelled: Path) -> None:
    """Outside of it there is no slice to name; the nearest shows nothing of the kind."""
    told = pd.read_csv(mislabelled / "rsna_mimics.csv").groupby("SeriesInstanceUID")["kind"].agg(list)
    outside = 0
    for series in plans(12, TreeOptions(difficulty="hard", label_noise=0.5), seed=2):
        grid = hospital_grid(series, 24, rng_of(*series.names, "grid"))
        mimics = would_be(series, draw_pose(*series.names)).mimics
        places_N3 = np.array([grid.index(mimic.centre_mm) for mimic in mimics])
        shown_N = ((places_N3 > -0.5) & (places_N3 < np.array(grid.shape) - 0.5)).all(axis=1)
        assert told.get(series.uid, []) == [mimic.kind for mimic, shown in zip(mimics, shown_N, strict=True) if shown]
        outside += int((~shown_N).sum())
    assert outside


def test_two_processes_write_the_same_bytes(tmp_path: Path, mislabelled: Path) -> None:
    phantom.write("rsna", tmp_path, scans=3, size=24, seed=2, difficulty="hard", label_noise=0.5, workers=2)
    series = {path.name for path in (tmp_path / "rsna" / "series").iterdir()}
    assert series < {path.name for path in (mislabelled / "rsna" / "series").iterdir()}
    files = [path.relative_to(tmp_path) for path in (tmp_path / "rsna").rglob("*.*") if path.suffix in (".dcm", ".nii")]
    assert len(files) > 3
    assert all((tmp_path / path).read_bytes() == (mislabelled / path).read_bytes() for path in files)
