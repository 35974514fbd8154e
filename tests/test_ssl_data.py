"""What is drawn from a corpus: pure in seed and number, from any cache, scored only where there is head."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harmonize.corpus import Corpus
from harmonize.errors import UserError
from headspark.data.augment import AugmentConfig
from headspark.data.batches import Plan, network_input, stack, train_batches
from headspark.data.cache import FileStore, MappedStore, choose_cache
from headspark.data.cohort import Cohort, idle_weights, read_cohort
from headspark.data.config import DataConfig, WorkerKind
from headspark.data.crops import Crop, ScanOrder, box_mask, central_crop, cut, draw_crop, generator
from headspark.data.decoders import decode, decoded_bytes
from headspark.data.ram_store import RamStore
from headspark.data.samples import Sample, TrainSamples, ValidationSamples
from headspark.data.split import held_out
from headspark.encoder import EncoderConfig
from headspark.masking import MaskConfig, expand_cells
from headspark.recipe import Recipe

GIB = 2**30


@pytest.fixture
def cohort(tiny_corpus: Path) -> Cohort:
    return read_cohort(Corpus.open(tiny_corpus), DataConfig(val_share=0.3))


def recipe(
    patch: int = 32,
    workers: int = 0,
    kind: WorkerKind = "thread",
    ratio: float | tuple[float, float] = 0.5,
    **augment: Any,
) -> Recipe:
    return Recipe(
        data=DataConfig(patch=patch, workers=workers, worker_kind=kind),
        augment=AugmentConfig(**augment),
        encoder=EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2)),
        mask=MaskConfig(block=16, ratio=ratio),
    )


# Splits


def test_no_subject_is_on_both_sides(cohort: Cohort) -> None:
    sides = [{cohort.scans[index].subject for index in side} for side in (cohort.train, cohort.val)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert len(cohort.train) + len(cohort.val) == 6


def test_a_growing_corpus_keeps_its_held_out_subjects() -> None:
    small = [f"sub-{number}" for number in range(100)]
    large = [*small, *(f"new-{number}" for number in range(100))]
    assert held_out(small, share=0.2, seed=0) == held_out(large, share=0.2, seed=0) & set(small)
    assert 10 <= len(held_out(small, share=0.2, seed=0)) <= 30


# Weights


def test_equal_weights_see_every_scan_once_an_epoch_in_a_new_order() -> None:
    order = ScanOrder([2.0, 2.0, 2.0, 2.0, 2.0], seed=1)
    epochs = [[order(index) for index in range(5 * epoch, 5 * epoch + 5)] for epoch in range(6)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_weights_are_the_shares_of_what_is_drawn() -> None:
    order = ScanOrder([1.0, 3.0, 0.0], seed=0)
    drawn = np.bincount([order(index) for index in range(4000)], minlength=3) / 4000
    assert drawn == pytest.approx([0.25, 0.75, 0.0], abs=0.03)


def test_weights_of_source_and_modality_multiply_and_zero_leaves_out(tiny_corpus: Path) -> None:
    weights = {"openmind": 2.0, "T1w": 3.0, "tcia/CT": 0.0, "deeplesion": 1.0}
    cohort = read_cohort(Corpus.open(tiny_corpus), DataConfig(val_share=0.0, weights=weights))
    assert set(cohort.weights) == {6.0}
    assert {scan.source for scan in cohort.scans} == {"openmind"}
    assert idle_weights(cohort.scans, weights) == ["deeplesion", "tcia/CT"]


def test_nothing_left_to_train_on_is_an_error(tiny_corpus: Path) -> None:
    with pytest.raises(UserError, match="no scan to train on"):
        read_cohort(Corpus.open(tiny_corpus), DataConfig(weights={"openmind": 0.0, "tcia": 0.0}))


# Crops


def test_cubes_lie_within_the_foreground_where_they_fit() -> None:
    box = (10, 40, 5, 37, 0, 32)
    for number in range(50):
        crop = draw_crop(
            generator(0, 0, number), shape=(60, 60, 60), box=box, size=24, foreground_share=1.0, mirror=0.5
        )
        assert all(box[2 * a] <= crop.start[a] <= box[2 * a + 1] - 24 for a in range(3))


def test_a_foreground_smaller_than_the_cube_lies_within_it() -> None:
    for number in range(50):
        crop = draw_crop(
            generator(0, 0, number), shape=(60, 60, 60), box=(20, 30) * 3, size=24, foreground_share=1.0, mirror=0.0
        )
        assert all(start <= 20 and start + 24 >= 30 for start in crop.start)


def test_a_scan_smaller_than_the_cube_is_padded_on_both_sides() -> None:
    volume = np.ones((10, 40, 12), np.int16)
    crop = draw_crop(
        generator(0, 0, 0), shape=(10, 40, 12), box=(0, 10, 0, 40, 0, 12), size=16, foreground_share=1.0, mirror=0.0
    )
    piece = cut(volume, crop, fill=-7)
    assert piece.shape == (16, 16, 16)
    assert (piece[:3] == -7).all()
    assert (piece[13:] == -7).all()
    assert (piece[3:13, :, 2:14] == 1).all()


def test_flips_turn_voxels_and_box_alike() -> None:
    volume = np.zeros((20, 20, 20), np.int16)
    volume[4:9, 3:15, 10:18] = 1
    for flips in [(False, True, True), (True, False, False)]:
        crop = Crop(start=(2, -3, 5), size=16, flips=flips)
        assert (cut(volume, crop, fill=0) == 1).tolist() == box_mask(crop, (4, 9, 3, 15, 10, 18)).tolist()


def test_the_central_cube_is_in_the_middle_of_the_foreground() -> None:
    crop = central_crop(shape=(100, 100, 8), box=(0, 20, 40, 60, 0, 8), size=16)
    assert crop.start == (2, 42, -4)


# Samples


def test_a_sample_is_a_function_of_its_number_alone(cohort: Cohort) -> None:
    store = FileStore(cohort.scans)
    one = TrainSamples(cohort, store, recipe(noise=0.1).sampling, samples_per_step=4)
    other = TrainSamples(cohort, store, recipe(noise=0.1).sampling, samples_per_step=4)
    _ = [other[index] for index in range(5)]
    for index in (7, 3):
        a, b = one[index], other[index]
        assert a.scan_id == b.scan_id
        assert np.array_equal(a.voxels.stored_XYZ, b.voxels.stored_XYZ)
        assert torch.equal(a.mask_dhw, b.mask_dhw)
        assert a.variation == b.variation


def test_samples_of_a_step_share_their_ratio_and_steps_differ(cohort: Cohort) -> None:
    samples = TrainSamples(
        cohort, FileStore(cohort.scans), recipe(patch=64, ratio=(0.3, 0.9)).sampling, samples_per_step=3
    )
    counts = [int(samples[index].mask_dhw.sum()) for index in range(12)]
    steps = [set(counts[first : first + 3]) for first in range(0, 12, 3)]
    assert all(len(step) == 1 for step in steps)
    assert len(set.union(*steps)) > 1


def test_defaced_and_background_voxels_are_not_scored(cohort: Cohort) -> None:
    masked = next(index for index, scan in enumerate(cohort.scans) if scan.mask is not None)
    decoded = decode(cohort.scans[masked])
    assert decoded.scored_XYZ is not None
    assert decoded.scored_XYZ[20, 20, 22]  # head
    assert not decoded.scored_XYZ[20, 32, 22]  # defaced
    assert not decoded.scored_XYZ[0, 0, 0]  # background


def test_without_a_mask_the_foreground_box_is_scored(cohort: Cohort) -> None:
    only = Cohort(scans=cohort.scans[-1:], train=(0,), val=(), weights=(1.0,))
    sample = TrainSamples(only, FileStore(only.scans), recipe(patch=64).sampling, samples_per_step=1)[0]
    assert sample.scored_XYZ.sum() == 36 * 32 * 40


def test_validation_is_the_same_every_time_and_of_held_out_scans(cohort: Cohort) -> None:
    samples = ValidationSamples(cohort, FileStore(cohort.scans), recipe().sampling)
    held = {cohort.scans[index].scan_id for index in cohort.val}
    assert {samples[index].scan_id for index in range(len(samples))} == held
    assert torch.equal(samples[1].mask_dhw, samples[1].mask_dhw)
    assert samples[1].variation is None


def test_fewer_validation_samples_than_scans_are_spread_over_all_sources(cohort: Cohort) -> None:
    # The manifest is in the order of sources: the first ones alone would say nothing of the others.
    everything = replace(cohort, train=cohort.val, val=tuple(range(len(cohort.scans))))
    samples = ValidationSamples(everything, FileStore(cohort.scans), replace(recipe().sampling, val_samples=2))
    middle = cohort.scans[len(cohort.scans) // 2]
    assert [samples[index].scan_id for index in range(len(samples))] == [cohort.scans[0].scan_id, middle.scan_id]


def test_padding_is_air_in_ct(cohort: Cohort) -> None:
    ct = next(index for index, scan in enumerate(cohort.scans) if scan.unit == "HU")
    only = Cohort(scans=cohort.scans[ct : ct + 1], train=(0,), val=(), weights=(1.0,))
    batch = stack([TrainSamples(only, FileStore(only.scans), recipe(patch=64).sampling, samples_per_step=1)[0]])
    assert batch.stored_BXYZ[0, 0, 0, 0] == -1024
    x_BCDHW, _ = network_input(batch, ("brain", "blood", "bone"), AugmentConfig(), patch=64)
    assert x_BCDHW.shape == (1, 3, 64, 64, 64)
    assert (x_BCDHW[0, :, 0, 0, 0] == -1).all()


def test_the_loader_knows_which_hidden_blocks_are_scored_if_it_is_asked(cohort: Cohort) -> None:
    small = recipe()
    samples = TrainSamples(cohort, RamStore(cohort.scans), small.sampling, samples_per_step=2)
    left = np.arange(small.data.patch)[:, None, None] < small.data.patch // 2
    half = replace(samples[0], scored_XYZ=samples[0].scored_XYZ & left)
    batch = stack([half, samples[1]], find_wanted=True)
    _, scored_B1DHW = network_input(batch, ("brain",), AugmentConfig(), patch=small.data.patch)
    hidden_B1DHW = scored_B1DHW & ~expand_cells(batch.geometry.mask_Bdhw, tuple(scored_B1DHW.shape[2:]))
    expected_Bdhw = expand_cells(hidden_B1DHW[:, 0], batch.geometry.grid)[:, 0]
    assert batch.wanted is not None
    assert torch.equal(batch.wanted.mask_Bdhw, expected_Bdhw)
    assert 0 < batch.wanted.blocks < (~batch.geometry.mask_Bdhw).sum()
    assert stack([samples[0]]).wanted is None


def test_the_loader_gives_the_plan_in_order_with_any_number_of_workers(cohort: Cohort) -> None:
    plan = Plan(steps=5, batch=2, accumulate=1, rank=1, ranks=2)
    assert list(plan.batches(3)) == [[14, 15], [18, 19]]
    seen = []
    kinds: list[tuple[int, WorkerKind]] = [(0, "thread"), (2, "process"), (2, "thread")]
    for workers, kind in kinds:
        small = recipe(workers=workers, kind=kind)
        samples = TrainSamples(cohort, RamStore(cohort.scans), small.sampling, samples_per_step=plan.samples_per_step)
        seen.append([batch.stored_BXYZ for batch in train_batches(samples, plan, small.data, first_step=3, pin=False)])
    for first, *others in zip(*seen, strict=True):
        assert all(torch.equal(first, other) for other in others)


def test_worker_processes_are_refused_where_nothing_can_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    assert recipe(workers=2).data.worker_kind == "thread"
    with pytest.raises(UserError, match=r"data\.worker_kind process: this system cannot fork"):
        recipe(workers=2, kind="process")


def test_threads_leave_the_process_as_it_was_and_end_with_the_loader(cohort: Cohort) -> None:
    plan = Plan(steps=50, batch=1, accumulate=1, rank=0, ranks=1)
    small = recipe(workers=2, kind="thread")
    samples = TrainSamples(cohort, RamStore(cohort.scans), small.sampling, samples_per_step=1)
    state = torch.get_rng_state()
    batches = train_batches(samples, plan, small.data, first_step=0, pin=False)
    next(batches)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("data")]
    batches.close()
    assert torch.equal(torch.get_rng_state(), state)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("data")] == []


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_an_unreadable_scan_ends_the_loader_with_one_line_that_names_it(
    cohort: Cohort, tmp_path: Path, kind: WorkerKind
) -> None:
    broken = replace(cohort.scans[0], image=tmp_path / "gone.nii.gz")
    only = Cohort(scans=(broken,), train=(0,), val=(), weights=(1.0,))
    plan = Plan(steps=1, batch=1, accumulate=1, rank=0, ranks=1)
    small = recipe(workers=1, kind=kind)
    samples = TrainSamples(only, FileStore(only.scans), small.sampling, samples_per_step=1)
    with pytest.raises(UserError, match=r"^scan scan-0: .*harmonize verify.*$") as failed:
        list(train_batches(samples, plan, small.data, first_step=0, pin=False))
    assert "\n" not in str(failed.value)


class Dying(TrainSamples):
    """A sample that the system kills the process for, as it does when memory runs out."""

    def __getitem__(self, index: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_is_killed_ends_the_loader_with_one_line(cohort: Cohort) -> None:
    small = recipe(workers=1, kind="process")
    samples = Dying(cohort, FileStore(cohort.scans), small.sampling, samples_per_step=1)
    plan = Plan(steps=1, batch=1, accumulate=1, rank=0, ranks=1)
    with pytest.raises(UserError, match=r"a data worker died, perhaps for want of memory") as failed:
        list(train_batches(samples, plan, small.data, first_step=0, pin=False))
    assert "\n" not in str(failed.value)


# Caches


def test_every_cache_gives_the_same_voxels(cohort: Cohort, tmp_path: Path) -> None:
    mapped = MappedStore(cohort.scans, tmp_path)
    for rank in (0, 1):
        mapped.fill(rank, 2)
    stores = [RamStore(cohort.scans), mapped, FileStore(cohort.scans)]
    for index, scan in enumerate(cohort.scans):
        first, *others = [store[index] for store in stores]
        for other in others:
            assert np.array_equal(first.voxels.stored_XYZ, other.voxels.stored_XYZ)
            assert (first.voxels.slope, first.voxels.inter) == (other.voxels.slope, other.voxels.inter)
            assert (first.scored_XYZ is None) == (other.scored_XYZ is None) == (scan.mask is None)
    assert isinstance(stores[1][0].voxels.stored_XYZ, np.memmap)
    assert stores[0][0].voxels.stored_XYZ.dtype == np.int16


def test_a_filled_disk_cache_is_used_again(cohort: Cohort, tmp_path: Path) -> None:
    MappedStore(cohort.scans, tmp_path).fill(0, 1)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    MappedStore(cohort.scans, tmp_path).fill(0, 1)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}


@pytest.mark.parametrize(
    ("memory", "shared", "disk", "ranks", "mode"),
    [
        (64 * GIB, 0, 0, 1, "ram"),
        (64 * GIB, 32 * GIB, 0, 4, "shared"),
        (64 * GIB, GIB // 16, 100 * GIB, 4, "disk"),
        (8 * GIB, 0, 100 * GIB, 1, "disk"),
        (8 * GIB, 0, 8 * GIB, 1, "none"),
    ],
)
def test_auto_takes_the_fastest_cache_that_fits(memory: int, shared: int, disk: int, ranks: int, mode: str) -> None:
    choice = choose_cache(
        "auto", needed=10 * GIB, local_ranks=ranks, cache_dir=Path("/tmp/cache"), run_name="r",
        memory=memory, shared=shared, disk=disk,
    )  # fmt: skip
    assert choice.mode == mode
    assert "10.0 GiB decoded" in choice.reason


def test_decoded_bytes_count_voxels_and_masks(cohort: Cohort) -> None:
    scales = 6 * 2 * 8
    assert decoded_bytes(cohort.scans) == (6 * 2 + 1) * 40 * 36 * 44 + scales
