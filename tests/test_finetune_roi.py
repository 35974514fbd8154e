"""The finder of the arteries' box: what it sees, what it learns, and the views that look where it says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from standin_hub import Hub

from finetune.cli import main
from finetune.finder import Finder, Found, read_finder
from finetune.finder.beside import BESIDE_FILES
from finetune.finder.landmarks import places_of_mask, shows_outline
from finetune.finder.network import CELLS, FinderNetwork, cell_centres_mm, heat_targets, places_mm
from finetune.finder.survey import SHAPE, SPACING_MM, Survey, fixed_centre_mm, look, survey_of
from finetune.hub import fetch_model, push_model
from finetune.inference import voxels_to_mm
from finetune.kaggle.pack import PACK_FILES
from finetune.models.condition import Condition, SpacingCondition
from finetune.models.maps import Maps
from finetune.predict import Predictor
from finetune.recipe import Recipe
from finetune.regions import RegionDecoder
from finetune.roi import Lesson, finder_notes, held, teach
from finetune.samples import DataConfig
from finetune.series import UPRIGHT, Case, Pose, Region, Spot, told_of
from finetune.tasks.aneurysm import AneurysmTask
from finetune.train import train
from finetune.views import make_view
from finetune.views.box import BoxConfig
from finetune.views.roi import ResizedConfig, RoiConfig, RoiView
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.scan import AIR_HU, HU
from harmonize.voxels.stored import StoredVolume
from headspark.encoder import EncoderConfig

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
TASK = AneurysmTask()
ORIGIN = np.array([-70.0, 12.0, 33.0])


class OnePlace(AneurysmTask):
    """Is there a sac at the one place?"""

    labels: tuple[str, ...] = ("there", "any")
    mirror: tuple[int, ...] | None = (0, 1)
    places: int = 1
    any_label: int | None = 1
    label_weights: tuple[float, ...] = (1.0, 1.0)
    mask_values: tuple[int, ...] = (1,)


def told(centre_mm: tuple[float, float, float], *, scale: float = 1.0, laid: str = "found") -> Finder:
    """A finder that finds a box there in every scan."""

    class Saying(Finder):
        def find(self, volume: StoredVolume, **_: object) -> Found:
            return Found(centre_mm=centre_mm, scale=scale, doubt_mm=0.0, laid=laid)

    return Saying(network=FinderNetwork(1), template_P3=np.zeros((1, 3)), most_doubt_mm=1.0, facts={})


def ramp(shape: tuple[int, int, int], spacing: float) -> StoredVolume:
    """A volume whose values are 2 x + 3 y + 5 z of its voxels' mm from the first one."""
    x, y, z = (np.arange(edge) * spacing for edge in shape)
    values = 2 * x[:, None, None] + 3 * y[None, :, None] + 5 * z
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = ORIGIN
    return StoredVolume(stored_XYZ=np.rint(values).astype(np.int16), affine=affine)


def case_of(volume: StoredVolume, *points_mm: NDArray[np.float64]) -> Case:
    """A CT with points, by their mm from the first voxel."""
    shape = volume.stored_XYZ.shape
    return Case(
        scan_id="a",
        subject="a",
        modality="CTA",
        unit=HU,
        image=Path("a.nii.gz"),
        mask=None,
        foreground_box=tuple(bound for edge in shape for bound in (0, edge)),
        labels=(1.0,) * len(TASK.labels),
        spots=tuple(Spot(label=0, xyz_mm=tuple(map(float, point + ORIGIN))) for point in points_mm),  # type: ignore[arg-type]
        shape=shape,
        spacing=volume.spacing,
        sha256="0",
    )


def view_of(finder: Finder | None, *, resized: bool = False, patch: tuple[int, int, int] = (16, 12, 8)) -> RoiView:
    return RoiView(
        patch,
        finder=finder,
        finder_sha256="f",
        resized=resized,
        spacing=2.0,
        windows=[{"name": "all", "width": 2000.0, "level": 0.0}],
        mask_values=TASK.mask_values,
        mirror=TASK.mirror,
    )


def cut(view: RoiView, volume: StoredVolume, *points_mm: NDArray[np.float64]) -> Region:
    case = case_of(volume, *points_mm)
    return view.cut(volume, unit=HU, foreground_box=case.foreground_box, case=case)


# What the network sees


@pytest.mark.parametrize("spacing", [1.0, 4.0])
def test_a_place_lies_in_the_look_where_its_pose_puts_it(spacing: float) -> None:
    shape = tuple(round(240 / spacing) for _ in range(3))
    place_mm, half = np.array([136.0, 88.0, 168.0]), round(8 / spacing)
    hu_XYZ = np.full(shape, -500, dtype=np.int16)
    low = np.rint(place_mm / spacing - (half - 1) / 2 - 0.5).astype(int)
    hu_XYZ[tuple(slice(at - half, at + half + 1) for at in low)] = 600
    middle_mm = low * spacing
    volume = StoredVolume(stored_XYZ=hu_XYZ, affine=np.diag([spacing, spacing, spacing, 1.0]))
    survey = survey_of(volume, unit=HU, foreground_box=[0, shape[0], 0, shape[1], 0, shape[2]])
    angle = np.radians(20)
    linear = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) * 0.9
    linear = linear @ np.diag([-1.0, 1.0, 1.0])
    shift = np.array([10.0, -5.0, 7.0])
    x = look(survey, linear, shift)[2].clamp(min=-0.9).numpy() + 0.9  # the window of vessels
    index_N3 = np.argwhere(x > 0)
    found = (index_N3 * x[tuple(index_N3.T)][:, None]).sum(0) / x.sum()
    wanted_mm = np.linalg.inv(linear) @ (middle_mm - survey.anchor_mm - shift)
    np.testing.assert_allclose((found - (np.array(SHAPE) - 1) / 2) * SPACING_MM, wanted_mm, atol=1.5)


def test_what_was_not_measured_is_told_from_air() -> None:
    volume = StoredVolume(stored_XYZ=np.zeros((40, 40, 20), np.int16), affine=np.diag([4.0, 4.0, 4.0, 1.0]))
    x = look(survey_of(volume, unit=HU, foreground_box=[0, 40, 0, 40, 0, 20]))
    measured = x[-1]
    assert measured.sum().item() == pytest.approx(160 * 160 * 80 / SPACING_MM**3, rel=0.15)
    assert (x[1][measured == 0] == x[1].min()).all()
    cut_in_half = look(
        survey_of(volume, unit=HU, foreground_box=[0, 40, 0, 40, 0, 20]),
        cut_mm=[(-np.inf, 78.0), (-np.inf, np.inf), (-np.inf, np.inf)],
    )[-1]
    assert cut_in_half.sum().item() == pytest.approx(measured.sum().item() / 2, rel=0.1)


def test_the_fixed_box_is_where_the_view_box_lays_it() -> None:
    head = [10, 160, 10, 190, 0, 250]  # of 1 mm: the circle lies 100 mm below the vertex
    assert fixed_centre_mm([1.0] * 3, head) == (84.5, 99.5, 149.5)
    assert fixed_centre_mm([2.0] * 3, [5, 80, 5, 95, 0, 60]) == (85.0, 99.0, 59.0)


def test_a_heat_map_that_is_taught_says_where_a_place_lies() -> None:
    wanted = torch.tensor([[[13.0, -40.0, 21.0], [0.0, 0.0, 60.0]]])
    heat = heat_targets(wanted, 12.0)
    assert heat.sum(-1).tolist() == [pytest.approx([1.0, 1.0])]
    found, spread = places_mm(heat.log().reshape(1, 2, *CELLS))
    torch.testing.assert_close(found, wanted, atol=0.2, rtol=0)
    assert spread.tolist() == [pytest.approx([12.0, 12.0], abs=0.5)]
    assert cell_centres_mm().reshape(*CELLS, 3)[1, 0, 0, 0] - cell_centres_mm()[0, 0] == 2 * SPACING_MM


# What it learns from


def test_an_artery_that_runs_far_does_not_move_the_middle_of_its_place() -> None:
    mask = np.zeros((60, 60, 120), np.uint8)
    values = TASK.mask_values
    for number, value in enumerate(values):  # a row of dots, 2 mm apart at 1 mm
        mask[20 + number, 30, 60] = value
    mask[20 + len(values) // 2, 30, :] = values[len(values) // 2]  # from the neck to the vertex
    case = case_of(StoredVolume(stored_XYZ=mask.astype(np.int16), affine=np.eye(4)))
    found = places_of_mask(mask, [1.0] * 3, case, values)
    np.testing.assert_allclose(found[:, 0], 20 + np.arange(len(values)))
    np.testing.assert_allclose(found[:, 2], 60)
    none = places_of_mask(np.zeros_like(mask), [1.0] * 3, case, values)
    assert np.isnan(none).all()


def test_an_outline_counts_where_sides_and_vertex_are_in_sight() -> None:
    case = replace(case_of(ramp((40, 40, 40), 2.0)), foreground_box=(5, 35, 5, 35, 0, 35))
    assert shows_outline(case)
    assert not shows_outline(replace(case, foreground_box=(5, 35, 5, 35, 0, 40)))
    assert not shows_outline(replace(case, foreground_box=(0, 35, 5, 35, 0, 35)))


def toy_lesson(number: int) -> Lesson:
    """A head in a field of view that ends anywhere, with a bright place that the outline does not tell."""
    rng = np.random.default_rng([7, number])
    edges = rng.integers(22, 32, 3)
    middle = edges / 2 + rng.uniform(-5, 5, 3)
    grid = np.stack(np.meshgrid(*map(np.arange, edges), indexing="ij"), -1)
    head = np.linalg.norm((grid - middle) / (10, 12, 11), axis=-1) < 1
    place = middle + np.array([0, 3, -2])
    values = np.where(head, 40.0, -1000.0) + 400.0 * (np.linalg.norm(grid - place, axis=-1) < 2.5)
    survey = Survey(
        values_XYZ=torch.from_numpy(values).float(),
        first_mm=(0.0, 0.0, 0.0),
        spacing=(8.0, 8.0, 8.0),
        anchor_mm=tuple((edges - 1) / 2 * 8.0),
        unit=HU,
        extent_mm=tuple((edges - 1) * 8.0),
    )
    return Lesson(survey=survey, places_P3=place[None] * 8.0, points_K3=place[None] * 8.0, outlined=False)


@pytest.fixture(scope="module")
def taught() -> Finder:
    finder = teach([toy_lesson(number) for number in range(12)], OnePlace(), steps=30)
    assert finder is not None
    return finder


def test_it_learns_to_find_the_place_in_heads_that_it_never_saw(taught: Finder) -> None:
    lessons = [toy_lesson(number) for number in range(100, 124)]
    off = [np.linalg.norm(np.array(taught.find_in(one.survey).centre_mm) - one.points_K3[0]) for one in lessons]
    fixed = [np.linalg.norm(np.array(one.survey.anchor_mm) - one.points_K3[0]) for one in lessons]
    assert np.median(off) < 10 < 30 < np.median(fixed)
    judged = held(taught, lessons, [48.0, 48.0, 48.0])
    assert judged["points"] == 24
    assert int(str(judged["found_lost"])) <= 2 < 12 <= int(str(judged["fixed_lost"]))


def test_noise_makes_it_unsure_and_the_outline_lays_the_box(taught: Finder) -> None:
    survey = toy_lesson(0).survey
    noise = torch.randn(survey.values_XYZ.shape, generator=torch.Generator().manual_seed(0)) * 300
    shows_nothing = replace(survey, values_XYZ=noise)
    sure, unsure = taught.find_in(survey).doubt_mm, taught.find_in(shows_nothing).doubt_mm
    assert unsure > 1.5 * sure
    strict = replace(taught, most_doubt_mm=(sure + unsure) / 2)
    found = strict.find_in(shows_nothing)
    assert (found.laid, found.centre_mm, found.scale) == ("unsure", survey.anchor_mm, 1.0)
    assert strict.find_in(survey).laid == "found"
    assert taught.find_in(replace(survey, extent_mm=(1.0, 1.0, 1.0))).laid == "outside"


def test_nothing_to_learn_from_is_refused() -> None:
    bare = replace(toy_lesson(0), places_P3=np.full((1, 3), np.nan))
    with pytest.raises(UserError, match="mask or a point"):
        teach([bare], OnePlace(), steps=1)


# Views


def test_the_box_lies_where_the_finder_says() -> None:
    volume, centre = ramp((60, 50, 40), 2.0), np.array([50.0, 61.0, 33.0])
    point = centre + np.array([4.0, -6.0, 2.0])
    view = view_of(told(tuple(centre)))
    region = cut(view, volume, point)
    x = view.sample(region)
    corner = np.rint(centre / 2.0 - (np.array(view.patch) - 1) / 2).astype(int)
    wanted = volume.stored_XYZ[tuple(slice(a, a + edge) for a, edge in zip(corner, view.patch, strict=True))]
    np.testing.assert_allclose(x[0].numpy() * 1000, wanted, atol=0.01)
    assert region.laid == "found"
    np.testing.assert_allclose(view.findings(region).points_K3[0], point / 2.0 - corner)
    assert tuple(region.stored_XYZ.shape) == view.region_shape(case_of(volume))


def test_a_box_that_leaves_the_scan_is_filled_and_as_large_as_any() -> None:
    volume = ramp((60, 50, 40), 2.0)
    view = view_of(told((0.0, 0.0, 0.0)))
    region = cut(view, volume)
    assert tuple(region.stored_XYZ.shape) == view.region_shape(case_of(volume))
    x = view.sample(region)[0]
    assert x[0, 0, 0] == -1.0  # air
    assert AIR_HU < -1000
    np.testing.assert_allclose(x[8:, 6:, 4:].numpy() * 1000, volume.stored_XYZ[:8, :6, :4], atol=0.01)


@pytest.mark.parametrize("scale", [1.0, 1.2, 0.85])
def test_a_resized_box_shows_each_place_at_its_millimetres(scale: float) -> None:
    volume, centre = ramp((60, 50, 60), 2.0), np.array([50.0, 51.0, 63.0])
    point = centre + np.array([4.3, -6.1, 2.7])
    view = view_of(told(tuple(centre), scale=scale), resized=True)
    region = cut(view, volume, point)
    edges_mm = np.array(view.patch) * np.array(region.input_spacing)
    np.testing.assert_allclose(edges_mm, np.rint(np.array(view.patch) * scale) * 2.0)
    assert told_of([region]).tolist() == [pytest.approx([0.0, *np.log(region.input_spacing)], abs=1e-6)]
    # Back to millimetres, exactly.
    (index_3,) = view.findings(region).points_K3
    to_mm = voxels_to_mm(view, region)
    assert to_mm is not None
    np.testing.assert_allclose(to_mm[:3, :3] @ index_3 + to_mm[:3, 3], point + ORIGIN, atol=1e-9)
    x = view.sample(region)[0]
    for at in ((0, 0, 0), (15, 11, 7), (7, 3, 5)):
        place = to_mm[:3, :3] @ np.array(at) + to_mm[:3, 3] - ORIGIN
        assert x[at].item() * 1000 == pytest.approx(place @ (2, 3, 5), abs=1.0)
    mirrored = view.sample(region, Pose(linear=np.diag([-1.0, 1.0, 1.0])))
    torch.testing.assert_close(mirrored, view.sample(region, UPRIGHT).flip(1), atol=1e-3, rtol=0)


def test_a_resized_box_ends_where_the_field_of_view_does() -> None:
    volume = ramp((60, 50, 10), 2.0)  # a slab of 20 mm
    view = view_of(told((60.0, 50.0, 9.0)), resized=True, patch=(16, 12, 16))
    region = cut(view, volume)
    assert region.input_spacing == pytest.approx((2.0, 2.0, 20.0 / 16))
    assert view.sample(region).shape == (1, 16, 12, 16)
    thin = cut(view, ramp((60, 50, 4), 2.0))  # 8 mm are too few: half of the box is kept
    assert thin.input_spacing == pytest.approx((2.0, 2.0, 1.0))


def test_without_a_finder_the_outline_lays_the_box_that_is_resized() -> None:
    volume = ramp((60, 50, 40), 2.0)
    region = cut(view_of(None, resized=True), volume)
    assert (region.laid, region.zoom) == ("fixed", (1.0, 1.0, 1.0))
    plain = make_view(BoxConfig(), DataConfig(patch=(16, 12, 8), spacing=2.0, ct_windows=("vessel",)), TASK)
    box = plain.cut(volume, unit=HU, foreground_box=case_of(volume).foreground_box)
    wide = replace(region, zoom=None)
    torch.testing.assert_close(plain.sample(box), plain.sample(wide))


def test_a_cache_gives_back_how_a_box_was_laid_and_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = ramp((60, 50, 40), 2.0)
    view = view_of(told((50.0, 51.0, 33.0), scale=1.1, laid="unsure"), resized=True)
    region, case = cut(view, volume), case_of(volume)
    monkeypatch.setattr(view, "load", lambda case: region)
    decoder = RegionDecoder(view)
    arrays = decoder.decode(case, row_major=True)
    assert [(part.dtype, part.shape) for part in decoder.parts(case)] == [(one.dtype, one.shape) for one in arrays]
    again = decoder.assemble(case, arrays)
    assert (again.zoom, again.laid, again.start) == (region.zoom, "unsure", region.start)
    other = view_of(told((50.0, 51.0, 33.0)))
    other.finder_sha256 = "another"
    assert len({one.key(case) for one in (view, other, view_of(told((50.0, 51.0, 33.0))))}) == 3


def test_a_network_is_told_the_size_of_the_voxels() -> None:
    maps = Maps(strides=(1,), channels=(2,))
    condition = Condition(SpacingCondition(), maps, TASK)
    with torch.no_grad():
        condition.maps.shift[0][3] = torch.tensor([1.0, -2.0])  # of the logarithm along A
    known = torch.tensor([[0.0, 0.1, 0.5, 0.2], [1.0, 0.1, -0.5, 0.2]])
    shares = condition.shares({}, known)
    (told_,) = condition.of_maps([torch.zeros(2, 2, 1, 1, 1)], shares)
    assert told_.flatten(1).tolist() == [pytest.approx([0.5, -1.0]), pytest.approx([-0.5, 1.0])]
    with pytest.raises(ValueError, match="size of the voxels"):
        condition.shares({}, torch.tensor([0, 1]))
    with pytest.raises(WrongUse, match=r"condition\.kind spacing: voxels of view\.kind box have one size"):
        Recipe(condition=SpacingCondition())


def test_a_recipe_that_finds_no_finder_is_refused_in_a_line(tmp_path: Path) -> None:
    data = DataConfig(patch=(16, 16, 16), ct_windows=("vessel",))
    with pytest.raises(WrongUse, match=r"view\.kind roi: wants view\.model"):
        make_view(RoiConfig(), data, TASK)
    with pytest.raises(WrongUse, match=r"no finder of boxes there .* no such file"):
        make_view(RoiConfig(model=str(tmp_path / "none")), data, TASK)
    with pytest.raises(WrongUse, match=r"data\.inference bag: view\.kind resized has one box"):
        make_view(ResizedConfig(), replace(data, inference="bag"), TASK)
    assert make_view(ResizedConfig(), data, TASK).zooms


# Folders and runs


def test_a_damaged_finder_is_named(finder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(finder_folder, tmp_path / "roi")
    config = json.loads((tmp_path / "roi" / "config.json").read_text())
    (tmp_path / "roi" / "config.json").write_text(json.dumps({**config, "template_mm": [[0.0, 0.0]]}))
    with pytest.raises(UserError, match="damaged, or of another version"):
        read_finder(tmp_path / "roi")
    shutil.copyfile(finder_folder / "config.json", tmp_path / "roi" / "config.json")
    (tmp_path / "roi" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="no safetensors file"):
        read_finder(tmp_path / "roi")


def test_the_finder_of_a_fold_is_taken_and_another_ones_is_noted(finder_folder: Path, tmp_path: Path) -> None:
    for fold in (0, 1):
        shutil.copytree(finder_folder, tmp_path / f"fold_{fold}")
    config = json.loads((tmp_path / "fold_1" / "config.json").read_text())
    config["facts"]["fold"] = 1
    (tmp_path / "fold_1" / "config.json").write_text(json.dumps(config))
    data = DataConfig(patch=(16, 16, 16), ct_windows=("vessel",), folds=2)
    view = RoiConfig(model=str(tmp_path))
    for fold in (0, 1):
        own = replace(data, fold=fold)
        assert finder_notes(make_view(view, own, TASK), own) == []
    wrong = replace(data, fold=1)
    (note,) = finder_notes(make_view(RoiConfig(model=str(finder_folder)), wrong, TASK), wrong)
    assert "it left out fold 0 of 2" in note


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, finder_folder: Path) -> Path:
    """A finished run whose finder has gone; half of it is unsure."""
    folder = tmp_path_factory.mktemp("roi_run")
    shutil.copytree(FIXTURES / "corpus", folder / "corpus")
    shutil.copytree(finder_folder, folder / "finder")
    recipe = Recipe(
        view=RoiConfig(model=str(folder / "finder")),
        data=DataConfig(patch=(16, 16, 16), folds=2, workers=0),
        scratch=EncoderConfig(features=(4, 4, 8), blocks=(1, 1, 1), strides=(1, 2, 2)),
        head=replace(Recipe().head, stride=2, width=8),
        stages=(replace(Recipe().stages[0], steps=1, warmup=0),),
        train=replace(Recipe().train, threads=1),
    )
    train(recipe, corpus=Corpus.open(folder / "corpus"), encoder_folder=None, out=folder / "run")
    shutil.rmtree(folder / "finder")
    return folder / "run"


def test_a_model_holds_its_finder_and_says_how_boxes_were_laid(run: Path, tmp_path: Path) -> None:
    said = pd.read_parquet(run / "predictions.parquet")
    assert set(said["box"]) == {"found"}
    shutil.copytree(run, tmp_path / "copied")
    series = min((FIXTURES / "raw" / "rsna" / "series").iterdir())
    answer = Predictor(tmp_path / "copied").answer(series)
    assert answer.probabilities == Predictor(run).answer(series).probabilities
    assert not any("outline" in line for line in answer.warnings)
    names = [path.relative_to(run).as_posix() for path in (run / "roi").iterdir()]
    assert sorted(names) == sorted(BESIDE_FILES)
    assert all(any(fnmatch(f"models/0/{name}", pattern) for pattern in PACK_FILES) for name in names)
    assert str(run.parent) not in (run / "config.json").read_text()


def test_a_model_travels_with_its_finder(run: Path, hub: Hub) -> None:
    push_model(run, "ann/arteries")
    series = min((FIXTURES / "raw" / "rsna" / "series").iterdir())
    found = Predictor(fetch_model("ann/arteries")).answer(series)
    assert found.probabilities == Predictor(run).answer(series).probabilities


def test_an_answer_says_that_the_outline_laid_the_box(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copied")
    finder = json.loads((tmp_path / "copied" / "roi" / "config.json").read_text())
    (tmp_path / "copied" / "roi" / "config.json").write_text(json.dumps({**finder, "most_doubt_mm": 0.0}))
    with pytest.raises(UserError, match=r"the finder of boxes beside it \(roi/\) is missing or damaged"):
        Predictor(tmp_path / "copied")
    from finetune.finder import finder_sha256

    config = json.loads((tmp_path / "copied" / "config.json").read_text())
    config["finder_sha256"] = finder_sha256(tmp_path / "copied" / "roi")
    (tmp_path / "copied" / "config.json").write_text(json.dumps(config))
    answer = Predictor(tmp_path / "copied").answer(min((FIXTURES / "raw" / "rsna" / "series").iterdir()))
    line = "the box of the arteries was laid by the head's outline: the network that finds it is unsure"
    assert line in answer.decisions
    assert line in answer.warnings


def test_a_finder_is_made_by_a_command_and_only_of_what_is_not_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(FIXTURES / "corpus", tmp_path / "corpus")
    words = ["roi", "--corpus", str(tmp_path / "corpus"), "--data.folds", "2", "--steps", "1"]
    assert main([*words, "--out", str(tmp_path / "roi"), "--data.fold", "1"]) == 0
    assert "held-out points" in capsys.readouterr().err
    facts = read_finder(tmp_path / "roi").facts
    assert (facts["fold"], facts["folds"]) == (1, 2)
    corpus = Corpus.open(tmp_path / "corpus")
    assert isinstance(facts["held_out"], dict)
    assert facts["series"] + facts["held_out"]["series"] == len(TASK.cases(corpus).cases)  # type: ignore[operator]
    assert main([*words, "--out", str(tmp_path / "roi"), "--every-fold"]) == 0
    assert sorted(path.name for path in (tmp_path / "roi").iterdir()) == ["fold_0", "fold_1"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert main([*words, "--out", str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert main([*words[:-1], "0", "--out", str(tmp_path / "other")]) == 2
    assert "--steps 0: must be 1 or more" in capsys.readouterr().err
