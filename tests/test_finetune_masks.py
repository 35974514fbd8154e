"""Segmentation: classes by the corpus's masks, patches around structures, Dice, and the way back to the scan's grid."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_finetune_recipes import FIXTURES, ROOT, TOY, toy
from torch import Tensor, nn

from finetune.cli import main
from finetune.evaluation.overlap import compare_overlaps, overlap, score_overlap, structures
from finetune.losses import TotalLoss
from finetune.losses.dense import DiceCrossEntropyConfig
from finetune.models.assemble import Network
from finetune.models.condition import HeaderCondition
from finetune.models.heads.cells import CellsConfig
from finetune.models.heads.segmentation import SegmentationConfig
from finetune.origin import read_given
from finetune.recipe import Recipe
from finetune.samples import DataConfig
from finetune.segmentation import on_raw_grid, segment, true_classes
from finetune.series import Region, Sample
from finetune.tasks import MASKS
from finetune.tasks.aneurysm import AneurysmTask
from finetune.tasks.masks import MasksConfig, MasksTask, mirrored_names, voxel_classes
from finetune.train import train
from finetune.views import make_view
from finetune.views.box import BoxConfig
from finetune.views.patches import PatchesConfig, PatchesView, is_due
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from harmonize.scan import HU
from harmonize.sources.dicom_series import load_series
from harmonize.voxels.grids import target_grid
from harmonize.voxels.spatial import resample_labels
from harmonize.voxels.stored import StoredVolume
from headspark.config import read_recipe
from headspark.encoder import EncoderConfig, build_encoder
from headspark.run.claim import read_metrics

LEFT_RIGHT = MasksConfig(sources=("x",), masks="labels", labels={"left ball": 7, "right ball": 300}, modalities=("CT",))
TASK = MasksTask(LEFT_RIGHT)
TINY = EncoderConfig(features=(8, 8, 16), blocks=(1, 1, 1), strides=(1, 2, 2))


def ball(shape: Sequence[int], centre: Sequence[float], radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return ((grid - np.array(centre)) ** 2).sum(-1) <= radius**2


def volumes(shape: Sequence[int] = (40, 24, 28), spacing: float = 1.0) -> tuple[StoredVolume, StoredVolume]:
    """A CT with a bright ball on the left and another on the right, and its mask; RAS, so that left comes first."""
    mask = np.zeros(shape, np.uint16)
    mask[ball(shape, (9, 12, 14), 5)] = 7
    mask[ball(shape, (30, 10, 12), 4)] = 300
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (-20, -12, -9)
    values = np.where(mask > 0, 80, 0).astype(np.int16)
    return StoredVolume(stored_XYZ=values, affine=affine), StoredVolume(stored_XYZ=mask, affine=affine)


def view_of(
    patch: tuple[int, int, int] = (16, 16, 16), share: float = 1.0, spacing: float | None = None
) -> PatchesView:
    data = DataConfig(patch=patch, spacing=spacing, ct_windows=("brain",))
    found = make_view(PatchesConfig(foreground_share=share), data, TASK)
    assert isinstance(found, PatchesView)
    return found


def region_of(view: PatchesView, shape: Sequence[int] = (40, 24, 28)) -> Region:
    image, mask = volumes(shape)
    return view.cut(image, unit=HU, foreground_box=(), mask=mask)


def test_names_that_tell_a_side_are_swapped_and_one_without_its_other_forbids_mirror_images() -> None:
    assert TASK.mirror == (1, 0)
    assert mirrored_names(["R-ICA", "BA", "L-ICA", "3rd ventricle"]) == (2, 1, 0, 3)
    assert mirrored_names(["left ventricle", "brainstem"]) is None


def test_a_region_is_the_whole_volume_and_values_beyond_a_byte_are_told_apart() -> None:
    region = region_of(view_of())
    assert tuple(region.stored_XYZ.shape) == (40, 24, 28)
    assert region.mask_XYZ is not None
    assert region.mask_XYZ[9, 12, 14] == 1
    assert region.mask_XYZ[30, 10, 12] == 2
    assert np.count_nonzero(region.mask_XYZ) == np.count_nonzero(volumes()[1].stored_XYZ)


def test_drawn_patches_lie_around_each_structure_alike_and_stay_inside() -> None:
    view, generator = view_of(), np.random.default_rng(0)
    region = region_of(view)
    seen = [view.findings(view.draw(region, generator, number)).mask_XYZ for number in range(60)]
    assert all(one is not None and one.any() for one in seen)
    left = sum(bool((one == 1).any()) for one in seen)
    assert 20 <= left <= 40
    values = {float(view.sample(view.draw(region, generator, number)).min()) for number in range(20)}
    assert min(values) >= -1  # no air of beyond the volume, where the whole patch fits


def test_without_oversampling_patches_lie_anywhere_and_a_patch_larger_than_the_volume_holds_all_of_it() -> None:
    view, generator = view_of((8, 8, 8), share=0.0), np.random.default_rng(0)
    region = region_of(view)
    empty = sum(not view.findings(view.draw(region, generator, number)).mask_XYZ.any() for number in range(60))
    assert empty > 15
    large = view_of((48, 32, 32))
    found = large.findings(large.draw(region_of(large), generator, 0)).mask_XYZ
    assert np.count_nonzero(found) == np.count_nonzero(volumes()[1].stored_XYZ)


def test_each_batch_has_its_share_of_patches_around_a_structure() -> None:
    dealt = [is_due(number, 0.4) for number in range(50)]
    assert [sum(dealt[first : first + 5]) for first in range(0, 50, 5)] == [2] * 10
    view = view_of((8, 8, 8), share=0.5)
    region, generator = region_of(view), np.random.default_rng(0)
    found = [view.findings(view.draw(region, generator, number)).mask_XYZ for number in range(40)]
    middles = np.array([mask[4, 4, 4] > 0 for mask in found]).reshape(20, 2)
    assert middles[:, 1].all()
    assert middles[:, 0].mean() < 0.3  # anywhere: most of the volume is none


def test_a_drawn_patch_holds_the_same_voxels_as_the_whole() -> None:
    view, generator = view_of(), np.random.default_rng(3)
    region = region_of(view)
    drawn = view.draw(region, generator, 0)
    values, mask = view.sample(drawn)[0], view.findings(drawn).mask_XYZ
    assert torch.equal(values > 0.5, mask > 0)


def test_classes_of_coarser_cells_are_those_of_the_voxels_in_their_middles() -> None:
    view = view_of()
    drawn = view.draw(region_of(view), np.random.default_rng(1), 0)
    sample = Sample(
        findings=view.findings(drawn), shape=(16, 16, 16), spacing=(1, 1, 1), cells={"masks": 1, "masks_4": 4}
    )
    targets = TASK.targets(sample)
    mask = sample.findings.mask_XYZ.long()
    assert torch.equal(targets["masks"], mask)
    assert torch.equal(targets["masks_4"], mask[2::4, 2::4, 2::4])
    assert voxel_classes(sample, stride=5).shape == (4, 4, 4)


def test_overlap_is_that_of_balls_moved_by_a_voxel_and_undefined_where_there_is_nothing() -> None:
    true = ball((24, 24, 24), (12, 12, 12), 6).astype(np.uint8)
    moved = np.roll(true, 1, 0)
    both = np.count_nonzero(true & moved)
    dice, distance = overlap(moved, true, 1, (2.0, 1.0, 1.0))
    assert dice == pytest.approx(2 * both / (2 * np.count_nonzero(true)))
    assert 0.3 < distance < 2.0
    assert overlap(moved, true, 1, (4.0, 1.0, 1.0))[1] > distance
    assert np.isnan(overlap(true, true, 2, (1, 1, 1))).all()
    assert overlap(0 * true, true, 1, (1, 1, 1))[0] == 0


def test_means_leave_out_structures_that_no_series_has_and_intervals_are_over_patients() -> None:
    table = pd.DataFrame(
        {
            "subject": ["a", "a", "b", "c"],
            "dice: one": [0.5, 0.7, 0.9, np.nan],
            "dice: two": [np.nan] * 4,
            "surface distance: one": [1.0, 2.0, 3.0, np.nan],
            "surface distance: two": [np.nan] * 4,
            "missed: one": [False] * 4,
            "missed: two": [False, False, False, True],
        }
    )
    score = score_overlap(table, ["one", "two"])
    assert score.score == pytest.approx(0.7)
    assert score.undefined == ("two",)
    assert score.headline()["surface_distance_mm"] == pytest.approx(2.0)
    one, two, mean = structures(table, ["one", "two"])
    assert (one.series, one.dice.value, mean.dice.value) == (3, pytest.approx(0.7), pytest.approx(0.7))
    assert one.dice.interval.low == pytest.approx(0.6)  # patient a alone
    assert one.dice.interval.high == pytest.approx(0.9)
    assert (two.missed, np.isnan(two.dice.value)) == (1, True)


def test_runs_are_compared_on_the_series_of_both_with_the_same_draws_of_patients() -> None:
    dice = np.array([[0.5, 0.2], [0.7, 0.6], [0.9, np.nan], [0.4, 0.8]])
    table = pd.DataFrame({"scan_id": list("wxyz"), "subject": ["a", "a", "b", "c"]})
    for place, label in enumerate(("one", "two")):
        table[f"dice: {label}"] = dice[:, place]
        table[f"surface distance: {label}"] = 2.0
    better = table.assign(**{"dice: one": table["dice: one"] + 0.05, "surface distance: two": 1.0})
    found = compare_overlaps({"first": table, "second": better[1:][::-1]}, ["one", "two"])
    assert found.notes == ("first: 1 of its 4 series were not segmented by all runs and are left out.",)
    assert (found.series, found.patients) == (3, 3)
    assert found.runs[0].scores["mean Dice"].value == pytest.approx((2 / 3 + 0.7) / 2)
    difference = found.differences[0].differences
    # Each series gains as much, so that the paired interval has no width where those of the runs are wide.
    assert difference["dice: one"].value == pytest.approx(0.05)
    assert difference["dice: one"].interval.low == pytest.approx(difference["dice: one"].interval.high)
    assert difference["dice: two"].value == 0
    assert difference["mean surface distance, mm"].value == pytest.approx(-0.5)
    with pytest.raises(WrongUse, match="no series was segmented by all of them"):
        compare_overlaps({"first": table[:1], "second": table[1:]}, ["one", "two"])


def network(deep_supervision: int = 1, stride: int = 1) -> Network:
    torch.manual_seed(0)
    shape = dataclasses.replace(TINY, in_channels=1)
    head = SegmentationConfig(stride=stride, deep_supervision=deep_supervision)
    return Network(build_encoder(shape), head, (), TASK)


def test_it_learns_and_a_mirrored_input_gives_the_other_side() -> None:
    model = network()
    terms = (DiceCrossEntropyConfig(of="masks"), DiceCrossEntropyConfig(of="masks_2", weight=0.5))
    loss = TotalLoss(terms, TASK)
    whole = view_of((40, 24, 28))
    x = torch.stack([whole.sample(region_of(whole))] * 2)
    x[1] = x[1].flip(1)
    found = whole.findings(region_of(whole))
    # The sides differ by where they lie alone, which a patch does not know: each has an own shade here.
    classes = found.mask_XYZ.long()
    x[0, 0][classes == 2] += 1
    x[1, 0][classes.flip(0) == 1] += 1
    targets = torch.stack([classes, torch.tensor([0, 2, 1])[classes].flip(0)])
    of_all = {"masks": targets, "masks_2": targets[:, 1::2, 1::2, 1::2]}
    constant = torch.zeros(3, requires_grad=True)

    def everywhere() -> dict[str, Tensor]:
        return {name: constant.view(1, 3, 1, 1, 1).expand(2, 3, *one.shape[1:]) for name, one in of_all.items()}

    values = []
    for answer, parameters in ((everywhere, [constant]), (lambda: model(x), list(model.parameters()))):
        optimizer = torch.optim.Adam(parameters, lr=0.02)
        for _ in range(40):
            value = loss(answer(), of_all)[0]
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        values.append(float(value.detach()))
    assert values[1] < values[0] / 2
    said = model.eval()(x)
    assert list(said) == ["masks"]
    assert (said["masks"].argmax(1)[0] == classes).float().mean() > 0.98
    assert (said["masks"].argmax(1)[1] == targets[1]).float().mean() > 0.98


class Threshold(nn.Module):
    """Sees what is bright; by where it lies in its tile, it says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = {MASKS: 1}

    def forward(self, x: Tensor, group_B: Tensor) -> dict[str, Tensor]:
        bright = (x[:, 0] > 0.5).float() * 20 - 10
        return {MASKS: torch.stack([-bright, bright, bright - 1], 1)}


def test_tiles_are_put_together_and_mirror_images_swap_the_sides() -> None:
    view = view_of((16, 16, 16))
    region = region_of(view)
    data = DataConfig(patch=(16, 16, 16), ct_windows=("brain",), overlap=0.5, mirror=False)
    device = torch.device("cpu")
    alone = segment(Threshold(), region, data, TASK, view, device)
    true = torch.from_numpy(true_classes(region, (40, 24, 28)).astype(int))
    assert torch.equal(alone.argmax(0) > 0, true > 0)
    assert alone.sum(0).sub(1).abs().max() < 1e-5
    both = segment(Threshold(), region, dataclasses.replace(data, mirror=True), TASK, view, device)
    assert torch.allclose(both[1], both[2], atol=1e-5)
    assert torch.allclose(both[1] + both[2], alone[1] + alone[2], atol=1e-5)


def rotated(degrees: float, sizes: Sequence[float], shear: float = 0.0) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    found = np.eye(4)
    found[:3, :3] = turn @ tilt @ np.array([[1, 0, 0], [0, 1, shear], [0, 0, 1]]) @ np.diag(sizes)
    found[:3, 3] = (12, -30, 7)
    return found


GRIDS = {
    "as it is": (np.diag([1.0, 1, 1, 1]), 1.0),
    "left to right": (np.diag([-1.0, 1, 1, 1]), 1.0),
    "other axes": (np.array([[0, 0, 1.0, 3], [-1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 0, 1]]), 1.0),
    "anisotropic": (np.diag([0.7, 0.7, 2.5, 1]), 0.94),
    "oblique": (rotated(17, (0.9, 0.9, 1.0)), 0.94),
    "oblique, thick slices": (rotated(12, (0.8, 0.8, 2.0)), 0.92),
    "sheared": (rotated(0, (0.8, 0.8, 1.5), shear=0.3), 0.93),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_mask_that_goes_through_harmonize_comes_back_on_the_grid_of_its_scan(name: str) -> None:
    raw_affine, least = GRIDS[name]
    shape = (36, 30, 26)
    raw = np.zeros(shape, np.uint8)
    raw[ball(shape, (11, 14, 12), 8)] = 1
    raw[ball(shape, (26, 16, 13), 6)] = 2
    grid = target_grid(shape, raw_affine, (1.0, 1.0, 1.0))
    harmonized = resample_labels(raw, raw_affine, grid)
    one_hot = torch.stack([torch.from_numpy((harmonized == value).astype(np.float32)) for value in range(3)])
    back = on_raw_grid(one_hot, grid.affine, raw_affine, shape)
    assert back.shape == shape
    for value in (1, 2):
        dice = overlap(back, raw, value, (1, 1, 1))[0]
        assert dice >= least, (name, value, dice)


def test_slices_that_are_not_evenly_spaced_come_back_where_they_were() -> None:
    shape, offsets = (20, 20, 6), np.array([0.0, 1.0, 2.0, 5.0, 6.0, 7.0])
    probabilities = torch.zeros(2, 20, 20, 8)
    probabilities[0, :, :, :4] = 1
    probabilities[1, :, :, 4:] = 1
    back = on_raw_grid(probabilities, np.eye(4), np.eye(4), shape, slice_offsets=offsets)
    assert back[5, 5].tolist() == [0, 0, 0, 1, 1, 1]


def test_the_view_of_boxes_and_heads_of_labels_are_refused_and_so_is_the_other_way_round() -> None:
    with pytest.raises(WrongUse, match=r"^view\.kind box: "):
        make_view(BoxConfig(), DataConfig(), TASK)
    with pytest.raises(WrongUse, match=r"^head\.kind cells: "):
        Network(build_encoder(TINY), CellsConfig(stride=2, width=8), (), TASK)
    with pytest.raises(WrongUse, match=r"^head\.kind segmentation: "):
        Network(build_encoder(TINY), SegmentationConfig(), (), AneurysmTask())
    with pytest.raises(WrongUse, match=r"^head\.deep_supervision 2: this encoder has 1 at most"):
        network(deep_supervision=2)
    with pytest.raises(WrongUse, match=r"^condition\.of labels: "):
        Network(build_encoder(TINY), SegmentationConfig(), (), TASK, HeaderCondition(of="labels"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("masks") / "corpus"
    shutil.copytree(FIXTURES / "corpus", folder)
    return Corpus.open(folder)


def test_what_a_recipe_leaves_open_the_corpus_says_or_it_is_asked_for(corpus: Corpus) -> None:
    with pytest.raises(WrongUse, match=r"^task\.masks: the corpus has masks of kind anatomy, vessels; name one"):
        MasksConfig().settled(corpus)
    found = MasksConfig(masks="vessels").settled(corpus)
    assert found.sources == ("rsna",)
    assert list(found.labels.values()) == list(range(1, 14))
    assert found.modalities == ("CTA", "T1post", "T2w")
    assert MasksTask(found).mirror is not None
    assert len(MasksTask(found).cases(corpus).cases) == 3
    assert MasksConfig(sources=("openmind",)).settled(corpus).labels == {"head": 1, "defaced": 2}
    with pytest.raises(UserError, match="no scan of tcia has a mask"):
        MasksConfig(sources=("tcia",)).settled(corpus)
    with pytest.raises(WrongUse, match=r"^task\.labels: \[3, 3\]: each value once"):
        MasksConfig(labels={"a": 3, "b": 3})


def masks_recipe() -> Recipe:
    recipe: Any = toy(read_recipe(Recipe, ROOT / "masks_segmentation.yaml"))
    return dataclasses.replace(
        recipe,
        task=MasksConfig(masks="vessels"),
        scratch=dataclasses.replace(TOY, in_channels=recipe.scratch.in_channels),
        head=SegmentationConfig(deep_supervision=1),
        losses=recipe.losses[:2],
    )


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("masks_run") / "run"
    assert train(masks_recipe(), corpus=corpus, encoder_folder=None, out=out) is not None
    return out


def test_the_recipe_goes_through_its_stages_to_the_report(
    finished: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [line for line in read_metrics(finished) if "loss" in line]
    assert [line["stage"] for line in steps] == ["decoder", "all"]
    assert all({"masks", "masks_2"} <= line.keys() for line in steps)
    page = (finished / "report.html").read_text()
    assert all(f">{name}</h2>" in page for name in ("By structure", "By modality", "Best and worst series"))
    assert page.count("<figure") >= 3
    assert main(["evaluate", str(finished)]) == 0
    assert "Left Middle Cerebral Artery" in capsys.readouterr().out
    assert main(["compare", str(finished), str(finished), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["runs"]] == ["run (1)", "run (2)"]
    assert told["differences"][0]["differences"]["mean Dice"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert main(["report", str(finished), "--corpus", str(corpus.path)]) == 0
    capsys.readouterr()
    assert main(["compare", str(finished), str(FIXTURES / "finetuned")]) == 2
    assert "do not segment the same structures" in capsys.readouterr().err


def test_its_decoder_travels_with_its_encoder_and_the_next_run_begins_with_it(finished: Path, tmp_path: Path) -> None:
    assert main(["export", str(finished), "--out", str(tmp_path / "encoder")]) == 0
    recipe = read_recipe(Recipe, finished / "recipe.yaml")
    given = read_given(str(tmp_path / "encoder"), decoder=recipe.has_decoder)
    head = Network(given.network, recipe.head, (), MasksTask(recipe.task)).head
    head.begin_with(given.decoder)
    assert head.note == "the decoder begins as it was pretrained"
    trained = load_file(finished / "model.safetensors")
    own = head.decoder.state_dict()
    assert all(torch.equal(own[name], trained[f"head.decoder.{name}"]) for name in own)


def test_prediction_draws_masks_on_the_grid_of_dicom_series_and_of_images_and_goes_on_where_it_was(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = min((FIXTURES / "raw" / "rsna" / "series").iterdir())
    affine = rotated(20, (4.0, 4.0, 5.0))
    values = np.where(ball((24, 26, 22), (12, 13, 11), 9), 300, 0).astype(np.int16)
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(values, affine), image)
    out = tmp_path / "masks"
    command = ["predict", str(finished), str(series), str(image), "--masks", str(out), "--device", "cpu"]
    assert main(command) == 0
    scan = load_series(series)
    drawn = sorted(out.glob("*.nii.gz"))
    assert [path.name for path in drawn] == sorted([f"{series.name}.nii.gz", "image.nii.gz"])
    for name, shape, wanted in (
        (series.name, scan.voxels_XYZ.shape, scan.affine),
        ("image", values.shape, affine),
    ):
        mask = nib.load(out / f"{name}.nii.gz")
        assert mask.shape == shape
        np.testing.assert_allclose(mask.affine, wanted, atol=1e-4)
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(np.asanyarray(mask.dataobj))) <= set(range(14))
    before = [path.stat().st_mtime_ns for path in drawn]
    assert main(command) == 0
    assert [path.stat().st_mtime_ns for path in drawn] == before
    assert "2 were there before" in capsys.readouterr().err
    assert json.loads((out / "masks.json").read_text())["labels"]["background"] == 0
    assert main(["predict", str(finished), str(series)]) == 2
    assert "give --masks FOLDER" in capsys.readouterr().err
