"""Vessels found without labels: blocks near them are hidden more often, and how near they are is predicted."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import headspark.train as module
from harmonize import corpus as corpora
from harmonize.errors import WrongUse
from harmonize.files import sha256_of
from harmonize.pipeline import WINDOWED
from harmonize.scan import HU
from harmonize.settings import PERCENTILES, Settings
from harmonize.voxels.intensity import CT_WINDOWS, window
from harmonize.voxels.stored import StoredVolume
from harmonize.voxels.vesselness import brightest_tubes
from headspark.config import from_plain
from headspark.data.augment import draw_variation, turn
from headspark.data.batches import stack, vessel_steps
from headspark.data.blocks import marked_in_blocks
from headspark.data.cache import FileStore
from headspark.data.cohort import read_cohort
from headspark.data.samples import TrainSamples
from headspark.decoder import DecoderConfig
from headspark.encoder import EncoderConfig, build_encoder
from headspark.hub.export import export_run
from headspark.masking import draw_mask, draw_uneven_mask, visible_chances, visible_count
from headspark.packed import MaskGeometry
from headspark.recipe import Recipe
from headspark.run.checkpoint import load_newest
from headspark.run.folder import read_metrics
from headspark.spark import SparK, SparKConfig
from headspark.train import train
from headspark.vessels import STEP_MM, UNKNOWN, VesselConfig, distance_map, nearness

EDGE, SPACING, RADIUS_MM = 44, 1.5, 1.8
"""Of the heads here: a ball, and in it an artery that runs straight up."""

MODALITIES = ("MRA", "MRA", "T2w", "MRA", "FLAIR")


def head(number: int, *, dark: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Values, and the true distance to the artery's wall in mm, 0 within."""
    rng = np.random.default_rng(number)
    line = (np.arange(EDGE) - EDGE / 2) * SPACING
    x, y, z = np.meshgrid(line, line, line, indexing="ij")
    axis_mm = np.hypot(x - rng.uniform(-6, 6), y - rng.uniform(-6, 6))
    values = np.where(x**2 + y**2 + z**2 < 32**2, 1.0, -2.0) + rng.normal(scale=0.05, size=x.shape)
    values[axis_mm < RADIUS_MM] += -2.0 if dark else 3.0
    values[x**2 + y**2 + z**2 >= 32**2] = -2.0
    return values.astype(np.float32), np.maximum(axis_mm - RADIUS_MM, 0)


@pytest.fixture(scope="module")
def vessel_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five heads with an artery each: three MRA, a T2w, and a FLAIR, in which vessels do not stand out."""
    folder, rows = tmp_path_factory.mktemp("vessels"), []
    corpora.claim(folder, "openmind", Settings())
    for number, modality in enumerate(MODALITIES):
        values, _ = head(number, dark=modality == "T2w")
        image = corpora.image_name("openmind", f"sub-{number}", f"scan-{number}")
        stored, affine = (values / 1e-3).astype(np.int16), np.diag([SPACING] * 3 + [1.0])
        corpora.write_volume(folder / image, StoredVolume(stored_XYZ=stored, affine=affine, slope=1e-3))
        rows.append(dict.fromkeys(corpora.SCAN_SCHEMA.names) | {
            "image_file_name": image, "scan_id": f"scan-{number}", "source": "openmind", "subject": f"sub-{number}",
            "modality": modality, "shape": [EDGE] * 3, "spacing": [SPACING] * 3, "unit": "zscore",
            "sha256": sha256_of(folder / image), "foreground_box": [1, EDGE - 1] * 3, "decisions": [],
            "intensity_percentiles": np.percentile(values, PERCENTILES).tolist(), "raw_hash": f"hash-{number}",
            "raw_shape": [EDGE] * 3, "raw_spacing": [SPACING] * 3,
        })  # fmt: skip
    corpora.write_manifest(folder, rows, [])
    return folder


def toy(**changes: dict[str, object]) -> Recipe:
    sections: dict[str, dict[str, object]] = {
        "data": {"patch": 32, "workers": 0, "val_share": 0.2, "val_seed": 1},
        "encoder": {"features": [8, 16], "blocks": [1, 1], "strides": [1, 2]},
        "mask": {"block": 8, "ratio": 0.6},
        "decoder": {"stop_stride": 2, "width": 16},
        "optim": {"lr": 5e-3},
        "vessels": {"mask_odds": 4.0, "distance_weight": 1.0},
        "train": {
            "steps": 4, "batch": 2, "threads": 1, "log_every": 1, "checkpoint_every": 2, "validate_every": 0,
            "val_samples": 2, "picture_every": 0, "trackers": [],
        },
    }  # fmt: skip
    return from_plain(Recipe, {name: sections.get(name, {}) | changes.get(name, {}) for name in {*sections, *changes}})


@pytest.mark.parametrize(("hidden", "odds"), [(0.75, 3.0), (0.5, 10.0), (0.6, 0.5)])
def test_marked_blocks_are_hidden_by_the_stated_odds_and_as_many_in_all(hidden: float, odds: float) -> None:
    marked = torch.zeros(4, 4, 4, dtype=torch.bool)
    marked[1, :, 2:] = True
    draws, many = torch.Generator().manual_seed(0), 4000
    masks = torch.stack([draw_uneven_mask(marked, hidden, odds, draws) for _ in range(many)])
    evenly = draw_mask(1, (4, 4, 4), hidden, draws)
    assert masks.flatten(1).sum(1).unique().tolist() == [int(evenly.sum())]
    near, far = ((~masks[:, where]).float().mean(0) for where in (marked, ~marked))
    found = near.mean() / (1 - near.mean()) / (far.mean() / (1 - far.mean()))
    assert found.item() == pytest.approx(odds, rel=0.1)
    # Each block of a kind alike: none is favoured by its place.
    for chances in (near, far):
        error = (chances.mean() * (1 - chances.mean()) / many).sqrt()
        assert (chances - chances.mean()).abs().max() < 4.5 * error


@pytest.mark.parametrize("odds", [0.001, 0.5, 7.0, 1000.0])
def test_chances_add_up_however_few_blocks_there_are(odds: float) -> None:
    for marked in (0, 1, 26, 27):
        for count in (1, 13, 26):
            shown, rarely = visible_chances(27, marked, count, odds)
            assert 0 < shown < 1
            assert (27 - marked) * shown + marked * rarely == pytest.approx(count, abs=1e-9)
            mask = draw_uneven_mask(torch.arange(27).view(3, 3, 3) < marked, 1 - count / 27, odds, torch.Generator())
            assert mask.sum() == count


def test_a_tube_and_a_ball_are_found_and_a_plate_is_not() -> None:
    x, y, z = np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij")
    tube = np.hypot(x - 10, y - 10) < 2
    ball = (x - 28) ** 2 + (y - 10) ** 2 + (z - 20) ** 2 < 3**2
    plate = np.abs(y - 28) < 2
    values = (tube | ball) * 1.0 + plate * 1.5 + np.random.default_rng(0).normal(scale=0.05, size=x.shape)
    within = np.zeros(x.shape, dtype=bool)
    within[4:-4, 4:-4, 4:-4] = True
    share = ((tube | ball) & within).sum() / within.sum()
    found = brightest_tubes(values, (1.0, 1.0, 1.0), within_XYZ=within, share=share)
    assert found.sum() == pytest.approx(share * within.sum(), abs=1)
    assert found[tube & within].mean() > 0.9
    assert found[ball].mean() > 0.6
    assert found[plate].mean() < 0.01
    assert not found[~within].any()


@pytest.mark.parametrize("dark", [False, True])
def test_distances_to_an_artery_are_those_of_its_tube(dark: bool) -> None:
    values, true_mm = head(1, dark=dark)
    found_mm = distance_map(values, [SPACING] * 3, unit="zscore", look="dark" if dark else "bright") * STEP_MM
    inner = np.zeros(values.shape, dtype=bool)
    inner[12:-12, 12:-12, 12:-12] = True
    assert np.abs(found_mm - true_mm)[inner].mean() < SPACING / 2
    assert np.quantile(np.abs(found_mm - true_mm)[inner], 0.99) < 1.5 * SPACING


def test_bone_of_a_ct_is_no_vessel() -> None:
    values, true_mm = head(2)
    hu = np.where(values < -1, -1000, 40 + 100 * (values - 1)).astype(np.float32)
    hu[20:24, 30:33] = 1200
    windowed = np.stack([window(hu, *one) for one in CT_WINDOWS.values()], axis=-1)
    for values_of_ct, unit in ((hu, HU), (windowed, WINDOWED)):
        found = distance_map(values_of_ct, [SPACING] * 3, unit=unit, look="bright") == 0
        assert found.any()
        assert not found[18:26, 29:34].any()
        assert (true_mm[found] < SPACING).mean() > 0.9


def test_blocks_are_counted_where_a_turned_patch_has_them() -> None:
    recipe = toy(augment={"rotate": 15.0, "scale": 0.2})
    size = recipe.augment.read_size(32)
    for number in range(3):
        rng = np.random.default_rng(number)
        variation = draw_variation(rng, recipe.augment)
        middle = rng.integers(14, 26, 3)
        marked = (np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1) - middle).__pow__(2).sum(-1) < 30
        assert variation.matrix is not None
        seen = turn(
            torch.from_numpy(marked)[None, None].float(), torch.tensor(variation.matrix)[None], size=32, mode="nearest"
        )
        expected = marked_in_blocks(seen[0, 0].numpy() > 0.5, patch=32, block=8, matrix=None)
        found = marked_in_blocks(marked, patch=32, block=8, matrix=variation.matrix)
        magnified = abs(np.linalg.det(variation.matrix)) ** -1
        assert found.sum() * magnified == pytest.approx(expected.sum(), rel=0.1)
        assert np.abs(found * magnified - expected).max() < 0.15 * expected.max() + 3


def test_samples_of_heads_with_known_vessels_hide_them_more_often_and_others_evenly(vessel_corpus: Path) -> None:
    recipe = toy(data={"foreground_share": 1.0})
    corpus = corpora.Corpus.open(vessel_corpus)
    cohort = replace(read_cohort(corpus, recipe.data), train=tuple(range(5)), weights=(1.0,) * 5, val=())
    scans, plain_scans = [FileStore(cohort.scans, one.decoder_of_scans) for one in (recipe, toy(vessels={}))]
    kept = [scans[number] for number in range(5)]
    assert [one.steps_XYZ is None for one in kept] == [modality == "FLAIR" for modality in MODALITIES]
    samples = TrainSamples(cohort, kept, recipe.sampling, samples_per_step=2)  # type: ignore[arg-type]
    even = replace(recipe.sampling, vessels=VesselConfig())
    plain = TrainSamples(cohort, [plain_scans[number] for number in range(5)], even, samples_per_step=2)  # type: ignore[arg-type]
    hidden, blocks = np.zeros(2), np.zeros(2)
    for number in range(150):
        sample, other = samples[number], plain[number]
        assert sample.steps_XYZ is not None
        assert np.array_equal(sample.voxels.stored_XYZ, other.voxels.stored_XYZ)
        assert sample.mask_dhw.sum() == other.mask_dhw.sum() == visible_count((4, 4, 4), 0.6)
        if sample.scan_id == "scan-4":
            assert torch.equal(sample.mask_dhw, other.mask_dhw)
            assert (sample.steps_XYZ == UNKNOWN).all()
            continue
        near = marked_in_blocks(sample.steps_XYZ == 0, patch=32, block=8, matrix=None) > 0.005 * 8**3
        for kind, where in enumerate((near, ~near)):
            hidden[kind] += (~sample.mask_dhw.numpy())[where].sum()
            blocks[kind] += where.sum()
    odds = hidden / (blocks - hidden)
    assert odds[0] / odds[1] == pytest.approx(4.0, rel=0.25)


def test_distances_grow_with_a_patch_that_is_magnified(vessel_corpus: Path) -> None:
    recipe = toy(augment={"scale": [1.2, 1.2], "mirror": 0.0}, data={"foreground_share": 1.0})
    cohort = read_cohort(corpora.Corpus.open(vessel_corpus), recipe.data)
    samples = TrainSamples(
        cohort, FileStore(cohort.scans, recipe.decoder_of_scans), recipe.sampling, samples_per_step=1
    )
    sample = next(one for one in map(samples.__getitem__, range(20)) if one.scan_id != "scan-4")
    steps = vessel_steps(stack([sample]), recipe.augment, patch=32)
    assert steps is not None
    middle = sample.steps_XYZ[18:22, 18:22, 18:22].mean()  # type: ignore[index]
    assert steps[0, 0, 14:18, 14:18, 14:18].mean().item() == pytest.approx(1.2 * middle, rel=0.2, abs=1)


@pytest.mark.parametrize("kind", ["light", "unet"])
def test_both_backends_predict_distances_alike_and_only_known_ones_count(kind: str) -> None:
    x, steps = torch.randn(2, 2, 16, 16, 16, dtype=torch.float64), torch.rand(2, 1, 16, 16, 16).double() * 60
    steps[0] = UNKNOWN
    geometry = MaskGeometry(draw_mask(2, (4, 4, 4), 0.7, torch.Generator().manual_seed(0)))
    found = []
    for backend in ("packed", "emulated"):
        torch.manual_seed(0)
        encoder = build_encoder(EncoderConfig(in_channels=2, features=(4, 8), blocks=(1, 1), strides=(1, 2)))
        decoder = DecoderConfig(kind=kind, stop_stride=2, width=8)  # type: ignore[arg-type]
        vessels = VesselConfig(distance_weight=0.5)
        model = SparK(encoder, decoder, SparKConfig(backend=backend), in_channels=2, vessels=vessels).double()  # type: ignore[arg-type]
        out = model(x, geometry, None, None, steps)
        out.loss.backward()
        found.append((out, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (packed, gradient), (emulated, other) = found
    torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-9)
    hidden = ~geometry.mask_Bdhw[1].repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    term = packed.terms["vessel_distance"]
    assert int(term.weight) == int(hidden.sum())
    assert packed.prediction_BCDHW.shape == x.shape
    expected = packed.error + 0.5 * term.value * term.weight / packed.scored_voxels
    torch.testing.assert_close(packed.loss, expected)
    torch.testing.assert_close(packed.loss, emulated.loss)
    silent = model(x, geometry, None, None, torch.full_like(steps, UNKNOWN))
    torch.testing.assert_close(silent.loss, silent.error)
    if kind == "unet":
        volume = model.volume_decoder()
        assert volume is not None
        assert volume.seg_layers[-1].weight.shape[0] == 2
        assert torch.equal(volume.seg_layers[-1].weight, model.decoder.seg_layers[-1].weight[:2])  # type: ignore[union-attr,index]


def test_nearness_falls_evenly_to_nothing() -> None:
    steps = torch.tensor([0.0, 8.0, 16.0, 254.0])
    assert nearness(steps, 4.0).tolist() == [1.0, 0.5, 0.0, 0.0]


def test_a_run_learns_where_vessels_are_says_what_it_knows_nothing_of_and_resumes_bit_for_bit(
    vessel_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toy(
        encoder={"features": [8, 16, 32], "blocks": [1, 1, 1], "strides": [1, 2, 2]},
        mask={"block": 4, "ratio": 0.4},
        vessels={"mask_odds": 2.0, "distance_weight": 10.0},
        decoder={"stop_stride": 2, "width": 32},
        optim={"lr": 1e-2},
        train={"steps": 60, "checkpoint_every": 30, "log_every": 5, "validate_every": 30},
    )
    assert train(recipe, corpus=vessel_corpus, out=tmp_path / "whole")
    said = [line for line in capsys.readouterr().err.splitlines() if "vessels: " in line]
    assert len(said) == 1
    assert "not looked for in 1 of 5 scans" in said[0]
    assert "(1 FLAIR)" in said[0]
    lines = read_metrics(tmp_path / "whole")
    distances = [line["vessel_distance"] for line in lines if "vessel_distance" in line]
    held_out = [line["val_vessel_distance"] for line in lines if "val_vessel_distance" in line]
    assert np.mean(distances[-3:]) < 0.5 * distances[0]
    assert held_out[-1] < 0.8 * held_out[0]
    with pytest.MonkeyPatch.context() as patch:
        record = module.record

        def record_and_stop(state, log, result) -> None:  # type: ignore[no-untyped-def]
            record(state, log, result)
            if state.step == 46:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(module, "record", record_and_stop)
        assert train(recipe, corpus=vessel_corpus, out=tmp_path / "stopped") is False
    assert train(recipe, corpus=vessel_corpus, out=tmp_path / "stopped")
    whole, stopped = (load_newest(tmp_path / name / "checkpoints", say=print) for name in ("whole", "stopped"))
    assert whole is not None
    assert stopped is not None
    assert [name for name, value in whole.model.items() if not torch.equal(value, stopped.model[name])] == []
    exported = export_run(tmp_path / "whole")
    assert exported.model.terms == ("vessel_distance",)
    assert "How near vessels are was predicted too (weight 10)." in exported.card.text


def test_caches_keep_distances_beside_the_voxels(vessel_corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for name in ("first", "again"):
        disk = {"cache": "disk", "cache_dir": str(folder)}
        assert train(toy(data=disk), corpus=vessel_corpus, out=tmp_path / name)
    kept = [path.name for path in folder.rglob("*.npy") if "bright" in path.name or "dark" in path.name]
    assert len(kept) == 4
    assert train(toy(), corpus=vessel_corpus, out=tmp_path / "memory")
    first, again, memory = (
        [line.get("loss") for line in read_metrics(tmp_path / name)] for name in ("first", "again", "memory")
    )
    assert first == again == memory


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"mask_odds": 0.0}, r"vessels.mask_odds 0.0: must lie in 0.001 to 1000; the nearest is 0.001"),
        ({"mask_odds": 1e6}, r"the nearest is 1000"),
        ({"distance_weight": -1.0}, r"vessels.distance_weight -1.0: must be 0 or more"),
        ({"reach_mm": 90.0}, r"vessels.reach_mm 90.0: must lie in 1 to 63.5; the nearest is 63.5"),
        ({"mask_odd": 3.0}, r"did you mean vessels.mask_odds"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(section: dict[str, object], said: str) -> None:
    with pytest.raises(WrongUse, match=said):
        from_plain(Recipe, {"vessels": section})
