"""Volumes larger than the patch: where tiles lie, what they see, and how their answers become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_finetune_patches import affine, case_of
from test_finetune_train import tiny_recipe, write_corpus
from torch import Tensor, nn
from torch.nn import functional as F

from finetune import train as training
from finetune.evaluation import read
from finetune.inference import look_at
from finetune.model_folder import load_model, read_bundle
from finetune.predict.ensemble import Ensemble, Said, read_panel
from finetune.raw.look import Harmonized
from finetune.recipe import Recipe
from finetune.regions import RegionDecoder, RegionStore
from finetune.report.series import cases_of, pictures_of
from finetune.samples import DataConfig
from finetune.series import Region
from finetune.sliding import covered_shape, sliding_maps, tile_starts, tile_steps, tiles_of
from finetune.stages import StageConfig
from finetune.tasks.aneurysm import AneurysmTask
from finetune.validation import predict_cases
from finetune.views import make_view
from finetune.views.box import BoxView
from harmonize.corpus import Corpus, read_volume
from harmonize.errors import UserError
from harmonize.labels import LABELS, LOCATIONS, MASK_VALUES, MIRRORED
from harmonize.pipeline import HarmonizedScan
from harmonize.scan import HU, Scan
from harmonize.voxels.stored import StoredVolume
from headspark.config import parse_recipe, recipe_parser

LEFT_MCA, RIGHT_MCA = LOCATIONS.index("Left Middle Cerebral Artery"), LOCATIONS.index("Right Middle Cerebral Artery")
CPU = torch.device("cpu")
BAG = DataConfig(patch=(16, 16, 16), inference="bag")

PATCH = (16, 16, 16)


@pytest.mark.parametrize(
    ("shape", "overlap", "starts"),
    [
        ((16, 16, 16), 0.25, [(0, 0, 0)]),
        ((10, 16, 3), 0.25, [(0, 0, 0)]),
        ((16, 16, 17), 0.25, [(0, 0, 0), (0, 0, 1)]),
        ((32, 16, 32), 0.0, [(0, 0, 0), (0, 0, 16), (16, 0, 0), (16, 0, 16)]),
        ((16, 40, 16), 0.25, [(0, 0, 0), (0, 12, 0), (0, 24, 0)]),
        ((16, 16, 36), 0.5, [(0, 0, 0), (0, 0, 8), (0, 0, 16), (0, 0, 20)]),
    ],
)
def test_tiles_cover_a_volume_in_order_and_the_last_ends_with_it(
    shape: tuple[int, ...], overlap: float, starts: list[tuple[int, ...]]
) -> None:
    assert tile_starts(shape, PATCH, overlap) == starts


@pytest.mark.parametrize(("overlap", "stride", "step"), [(0.25, 1, 12), (0.25, 8, 8), (0.9, 8, 8), (0.99, 1, 1)])
def test_neighbours_share_at_least_what_was_asked_for(overlap: float, stride: int, step: int) -> None:
    assert tile_steps((16,), overlap, stride) == (step,)


class Cells:
    """Means over cells of three sizes, of which each is the same in any tile that holds the cell whole."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        self.seen.append(tuple(x.shape))
        fine = torch.cat([x, 3 * x], dim=1)
        coarse, middle = F.avg_pool3d(x, 4)[:, 0], F.avg_pool3d(fine, 2)
        return {"coarse": coarse, "middle": middle, "fine": fine, "labels": x.mean((2, 3, 4))}


@pytest.mark.parametrize("at_once", [1, 3])
def test_maps_of_all_sizes_are_stitched_to_those_of_the_whole(at_once: int) -> None:
    x = torch.randn(1, 1, 40, 16, 24, generator=torch.Generator().manual_seed(0))
    network = Cells()
    maps = sliding_maps(network, x, PATCH, 0.25, stride=4, at_once=at_once)
    expected = Cells()(x)
    assert set(maps) == {"coarse", "middle", "fine"}
    for name, found in maps.items():
        torch.testing.assert_close(found, expected[name], msg=name)
    assert sum(shape[0] for shape in network.seen) == 3 * 2
    assert {shape[2:] for shape in network.seen} == {PATCH}


def test_a_volume_of_odd_size_has_cells_to_its_end_and_no_more() -> None:
    x = torch.arange(18.0).expand(1, 1, 5, 30, 18).contiguous()
    maps = sliding_maps(Cells(), x, PATCH, 0.5, stride=4)
    assert {name: tuple(found.shape) for name, found in maps.items()} == {
        "coarse": (1, 2, 8, 5), "middle": (1, 2, 3, 15, 9), "fine": (1, 2, 5, 30, 18),
    }  # fmt: skip
    torch.testing.assert_close(maps["fine"][:, :1], x)
    # Past the end the last plane goes on: (16 + 17 + 17 + 17) / 4.
    torch.testing.assert_close(maps["coarse"][0, 0, 0], torch.tensor([1.5, 5.5, 9.5, 13.5, 16.75]))


def test_where_tiles_overlap_the_one_whose_middle_is_nearer_counts_more() -> None:
    def numbered(x: Tensor) -> dict[str, Tensor]:
        numbers.append(float(len(numbers)))
        return {"tile": torch.full_like(x, numbers[-1])}

    numbers: list[float] = []
    tile = sliding_maps(numbered, torch.zeros(1, 1, 16, 16, 24), PATCH, 0.5)["tile"][0, 0, 8, 8]
    assert tile[:8].tolist() == [0.0] * 8
    assert tile[16:].tolist() == [1.0] * 8
    assert (tile[8:16].diff() > 0).all()
    assert float(tile[8]) < 0.1
    assert float(tile[8:16].mean()) == pytest.approx(0.5)


def test_cells_that_would_not_coincide_are_refused() -> None:
    with pytest.raises(ValueError, match="middle: cells of"):
        sliding_maps(Cells(), torch.zeros(1, 1, 40, 16, 24), PATCH, 0.25)
    assert sliding_maps(Cells(), torch.zeros(1, 1, 16, 16, 16), PATCH, 0.25)["coarse"].shape == (1, 4, 4, 4)


def view_of(spacing: float | None = None) -> BoxView:
    return BoxView(PATCH, spacing=spacing, windows=("bone",), mask_values=MASK_VALUES, mirror=MIRRORED)


def head(shape: tuple[int, int, int], sac: Sequence[int] | None = None, *, spacing: float = 1.0) -> StoredVolume:
    """Soft tissue of noise all over, and one bright voxel."""
    voxels = np.random.default_rng(0).integers(20, 60, shape).astype(np.int16)
    if sac is not None:
        voxels[tuple(sac)] = 2000
    return StoredVolume(stored_XYZ=voxels, affine=affine(spacing))


def cut(volume: StoredVolume, *, whole: bool = True, box: Sequence[int] = (), spacing: float | None = None) -> Region:
    x, y, z = volume.stored_XYZ.shape
    return view_of(spacing).cut(volume, unit=HU, foreground_box=box or (0, x, 0, y, 0, z), whole=whole)


class Sees(nn.Module):
    """Says of a tile's left half whether it is bright, as the left artery, and of all of it, as the last label."""

    def forward(self, x: Tensor, group_B: Tensor | None = None) -> dict[str, Tensor]:
        logits_BL = torch.full((len(x), len(LABELS)), -9.0)
        logits_BL[:, LEFT_MCA] = 9 * x[:, 0, : x.shape[2] // 2].amax((1, 2, 3))
        logits_BL[:, -1] = 9 * x[:, 0].amax((1, 2, 3))
        return {"labels": logits_BL}


def answer(regions: Sequence[Region], data: DataConfig = BAG) -> Tensor:
    found = look_at(Sees(), regions, data, AneurysmTask(), view_of(), CPU, where=False)
    return torch.stack([one.values_L for one in found])


@pytest.mark.parametrize("sac", [(3, 3, 3), (44, 20, 2), (22, 10, 60)])
def test_a_sac_outside_of_the_box_is_seen_by_the_bag_alone(sac: tuple[int, int, int]) -> None:
    volume = head((45, 24, 64), sac)
    data = dataclasses.replace(BAG, mirror=False)
    box = answer([cut(volume, whole=False)], dataclasses.replace(data, inference="box"))
    bag = answer([cut(volume)], data)
    assert float(box[0, -1]) < 0.5
    assert float(bag[0, -1]) > 0.99
    assert float(answer([cut(head((45, 24, 64)))], data)[0, -1]) < 0.5


def test_a_bag_takes_the_surest_answer_to_each_label_whatever_else_is_asked_at_once() -> None:
    few, many = cut(head((16, 16, 16))), cut(head((45, 24, 64), (44, 20, 2)))
    data = dataclasses.replace(BAG, mirror=False)
    each = torch.cat([Sees()(view_of().sample(tile)[None])["labels"] for tile in tiles_of(many, PATCH, data.overlap)])
    found = answer([few, many, few], data)
    torch.testing.assert_close(found[1], each.amax(0).sigmoid())
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1:2], answer([many], data))


@pytest.mark.parametrize(("x", "side", "other"), [(1, LEFT_MCA, RIGHT_MCA), (38, RIGHT_MCA, LEFT_MCA)])
def test_the_mirror_image_of_a_tile_answers_with_swapped_sides(x: int, side: int, other: int) -> None:
    found = answer([cut(head((40, 16, 16), (x, 8, 8)))])[0]
    # The network knows the left alone: it sees the one on the right in the mirror image, and the mean counts.
    assert float(found[side]) == pytest.approx(0.5, abs=0.01)
    assert float(found[other]) < 0.2
    assert float(found[-1]) > 0.99


@pytest.mark.parametrize("box", [(0, 15, 2, 18, 4, 20), (3, 11, 0, 12, 10, 24), (0, 2, 0, 2, 0, 2)])
def test_a_head_that_the_box_holds_is_one_tile_in_its_place(box: tuple[int, ...]) -> None:
    volume = head((21, 20, 30))
    whole, alone = cut(volume, box=box), cut(volume, whole=False, box=box)
    (tile,) = tiles_of(whole, PATCH, 0.25)
    expected = view_of().sample(alone)
    assert torch.equal(view_of().sample(tile), expected)
    assert torch.equal(view_of().whole(whole), expected)


def test_a_neck_that_the_box_leaves_out_is_covered_too() -> None:
    volume = head((16, 16, 64), spacing=5.0)  # 320 mm, of which the box is laid by the vertex
    assert [tile.start[2] for tile in tiles_of(cut(volume), PATCH, 0.0)] == [0, 16, 32, 48]
    short = head((16, 16, 14), spacing=20.0)  # held by a box, but not by the one that is laid by the vertex
    whole = cut(short)
    assert covered_shape(whole, PATCH) == PATCH
    assert view_of().whole(whole).shape[1:] == PATCH
    assert torch.equal(whole.stored_XYZ, torch.from_numpy(short.stored_XYZ))


@pytest.mark.parametrize("spacing", [None, 1.5])
def test_tiles_are_parts_of_the_whole_and_points_lie_in_both(spacing: float | None) -> None:
    view, volume = view_of(spacing), head((45, 24, 64), (30, 20, 5))
    case = case_of()
    point = np.array(case.spots[0].xyz_mm)
    region = view.cut(volume, unit=HU, foreground_box=(2, 44, 0, 24, 1, 60), case=case, whole=True)
    whole = view.whole(region)
    starts = tile_starts(covered_shape(region, PATCH), PATCH, 0.25)
    tiles = tiles_of(region, PATCH, 0.25)
    assert len(tiles) == len(starts) > 8
    for (x, y, z), tile in zip(starts, tiles, strict=True):
        assert torch.equal(view.sample(tile), whole[:, x : x + 16, y : y + 16, z : z + 16])
        np.testing.assert_allclose(
            view.findings(tile).points_K3, view.findings(region).points_K3 - (x, y, z), atol=1e-9
        )
    if spacing is None:
        np.testing.assert_allclose(view.findings(region).points_K3[0], point - affine(1.0)[:3, 3] - (2, 0, 1))


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 7.0])
def test_an_overlap_out_of_bounds_is_refused_by_its_key(overlap: float) -> None:
    parser = recipe_parser(Recipe, prog="finetune train", description="")
    with pytest.raises(UserError, match=r"data\.overlap .*: must be 0 or more, and less than 1"):
        parse_recipe(parser, Recipe, [f"--data.overlap={overlap}"])


@pytest.fixture(scope="module")
def bag_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a run on it that was judged by bags."""
    folder = tmp_path_factory.mktemp("bag")
    recipe = tiny_recipe(validate_every=0, ema=None)
    stage = StageConfig(name="all", steps=2, head_lr=1e-2, encoder_lr=1e-2, layers="all")
    data = dataclasses.replace(recipe.data, inference="bag", cache_dir=str(folder / "cache"), cache="disk")
    corpus = write_corpus(folder / "corpus", scans=8)
    recipe = dataclasses.replace(recipe, data=data, stages=(stage,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_report", lambda run, corpus: run)
        training.train(recipe, corpus=corpus, encoder_folder=None, out=folder / "run")
    return folder


def test_prediction_says_of_a_held_out_series_what_the_run_said(bag_run: Path) -> None:
    corpus = Corpus.open(bag_run / "corpus")
    said = pd.read_parquet(bag_run / "run" / "predictions.parquet").set_index("scan_id")
    assert read_bundle(bag_run / "run").data.inference == "bag"
    cases = [case for case in AneurysmTask().cases(corpus).cases if case.scan_id in said.index]
    ensemble = Ensemble(read_panel([bag_run / "run"]), CPU)
    found = ensemble.answer([harmonized(case.image, case.foreground_box) for case in cases])
    assert len(found) == len(said) > 1
    for case, one in zip(cases, found, strict=True):
        assert isinstance(one, Said)
        np.testing.assert_allclose(
            [one.probabilities[label] for label in LABELS], said.loc[case.scan_id, list(LABELS)], rtol=1e-5
        )
    # A box of 64 mm does not hold a head of 80 mm.
    bundle = read_bundle(bag_run / "run")
    data, task = dataclasses.replace(bundle.data, inference="box"), AneurysmTask()
    boxes = predict_cases(
        load_model(bag_run / "run", bundle), RegionStore(cases, make_view(bundle.view, data, task)), data, task, CPU
    ).set_index("scan_id")
    assert (boxes[LABELS[-1]] < said[LABELS[-1]]).any()


def test_the_heat_map_of_a_bag_spans_the_whole_head(bag_run: Path) -> None:
    corpus = Corpus.open(bag_run / "corpus")
    predictions, cases = read(bag_run / "run"), cases_of(corpus, AneurysmTask())
    picture = pictures_of(bag_run / "run", predictions, cases, predictions.scan_ids_N[:1])[predictions.scan_ids_N[0]]
    assert picture.values_XYZ.shape == (20, 20, 20)
    assert picture.heat_dhw is not None
    assert picture.heat_dhw.shape == (5, 5, 5)


def test_the_region_of_a_series_says_its_size_beforehand_and_is_known_apart_from_its_box(bag_run: Path) -> None:
    case = AneurysmTask().cases(Corpus.open(bag_run / "corpus")).cases[1]
    for spacing in (None, 3.0):
        view = view_of(spacing)
        parts = []
        for one in (case, dataclasses.replace(case, whole=True)):
            parts.append(RegionDecoder(view).parts(one))
            arrays = RegionDecoder(view).decode(one, row_major=True)
            assert [part.shape for part in parts[-1]] == [array.shape for array in arrays]
        assert {part.name for part in parts[0]}.isdisjoint(part.name for part in parts[1])


def harmonized(image: Path, foreground_box: Any) -> Harmonized:
    """What `finetune predict` gets of a series whose voxels a corpus holds."""
    volume = read_volume(image)
    found = HarmonizedScan(
        volume=volume,
        mask_XYZ=None,
        mask_kind=None,
        modality="CT",
        unit=HU,
        foreground_box=foreground_box,
        percentiles=(),
        raw_percentiles=(),
        raw_shape=volume.stored_XYZ.shape,
        raw_spacing=volume.spacing,
    )
    scan = Scan(voxels_XYZ=np.empty((0, 0, 0)), affine=np.eye(4), modality="CT", unit=HU)
    return Harmonized(scan=scan, volumes=(found,))
