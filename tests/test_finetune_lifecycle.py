"""What fine-tuning's runs alone have: the encoder that they began with, their series, their rates."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import train as training
from finetune.losses.cells import HeatConfig
from finetune.models.heads.cells import CellsConfig
from finetune.recipe import Recipe, TrainConfig
from finetune.regions import RegionDecoder, RegionStore
from finetune.report import _states as finished_runs
from finetune.samples import (
    DataConfig,
    TrainingSamples,
    make_inputs,
    make_targets,
    training_batches,
)
from finetune.stages import StageConfig
from finetune.tasks.aneurysm import AneurysmTask
from finetune.views import make_view
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from headspark.config import from_plain
from headspark.data.batches import Plan
from headspark.data.cache import cached
from headspark.data.decoders import decoded_bytes
from headspark.encoder import EncoderConfig, build_encoder
from headspark.hub.encoder_folder import save_encoder
from headspark.optim import OptimConfig
from headspark.recipe import TrainConfig as PretrainingConfig
from headspark.run.claim import read_metrics, read_state
from headspark.run.diverged import Diverged
from headspark.weights import weights_sha256

TIMES = {"seconds", "samples_per_second", "data_wait_share"}
FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
TINY = EncoderConfig(features=(4, 8), blocks=(1, 1), strides=(1, 2))
STAGES = (
    StageConfig(name="head", steps=2, head_lr=1e-2),
    StageConfig(name="deep", steps=2, head_lr=1e-2, encoder_lr=1e-3, layers=1),
    StageConfig(name="all", steps=2, head_lr=1e-2, encoder_lr=1e-2, layers="all"),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("lifecycle") / "corpus"
    shutil.copytree(FIXTURES / "corpus", folder)
    return Corpus.open(folder)


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "write_report", lambda run, corpus: run)


def tiny(stages: tuple[StageConfig, ...] = STAGES, **train: Any) -> Recipe:
    settings = {"batch": 2, "log_every": 4, "validate_every": 2, "checkpoint_every": 100, "threads": 1, "ema": 0.5}
    return Recipe(
        data=DataConfig(patch=(16, 16, 16), folds=2, mirror=False),
        scratch=TINY,
        head=CellsConfig(stride=2, width=4, top=2, dropout=0.2),
        stages=stages,
        train=TrainConfig(**(settings | train)),
    )


def run(recipe: Recipe, corpus: Corpus, out: Path, encoder: object = None) -> Any:
    return training.train(recipe, corpus=corpus, encoder_folder=None if encoder is None else str(encoder), out=out)


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def signalled_in_step(step: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    taken = training.train_step

    def step_and_signal(state: Any, *rest: Any) -> Any:
        if state.step == step - 1:
            signal.raise_signal(number)
        return taken(state, *rest)

    patch.setattr(training, "train_step", step_and_signal)


# ------------------------------------------------------------------------------------------------------- the encoder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    preprocessing = {"spacing_mm": [4.0] * 3, "ct_windows": ["brain", "blood", "bone"], "mri_norms": {}}
    save_encoder(build_encoder(TINY), tmp_path / "encoder", preprocessing=preprocessing)
    return tmp_path / "encoder"


@pytest.fixture
def begun(encoder: Path, corpus: Corpus, tmp_path: Path) -> Path:
    """A run that was asked to stop in the middle of its second stage."""
    with pytest.MonkeyPatch.context() as patch:
        signalled_in_step(3, signal.SIGTERM, patch)
        assert run(tiny(), corpus, tmp_path / "begun", encoder) is None
    return tmp_path / "begun"


def test_a_run_names_no_folder_of_its_machine(begun: Path, encoder: Path, corpus: Corpus) -> None:
    told = [
        path.name for path in begun.rglob("*.*") if path.is_file() and bytes(corpus.path.parent) in path.read_bytes()
    ]
    told += [path.name for path in begun.rglob("*.*") if path.is_file() and bytes(encoder.parent) in path.read_bytes()]
    assert told == []
    assert read_state(begun)["origin"]["encoder"]["name"] == encoder.name  # type: ignore[index]


def test_an_encoder_is_known_by_its_weights_however_it_is_spelt_packed_or_moved(
    begun: Path, encoder: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(encoder)
    shutil.copytree(encoder, tmp_path / "copy")
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    save_file(dict(reversed(weights.items())), tmp_path / "copy" / "model.safetensors", {"format": "pt", "by": "me"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    results = []
    for number, spelt in enumerate(("encoder/", tmp_path / "link", "copy", tmp_path / "gone", "user/name")):
        out = tmp_path / f"run{number}"
        shutil.copytree(begun, out)
        if number == 3:
            shutil.rmtree(encoder)
        assert run(tiny(), corpus, out, spelt) is not None, spelt
        results.append(load_file(out / "model.safetensors"))
    first, *others = results
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_other_weights_another_start_and_other_ranks_are_refused_and_leave_the_run_as_it_was(
    begun: Path, encoder: Path, corpus: Corpus, tmp_path: Path
) -> None:
    before = content(begun)
    weights = load_file(encoder / "model.safetensors")
    save_file({name: value + 1e-3 for name, value in weights.items()}, encoder / "model.safetensors")
    for given, message in ((encoder, "weights of --encoder .* are not those"), (None, "another encoder")):
        with pytest.raises(UserError, match=message) as refused:
            run(tiny(), corpus, begun, given)
        assert refused.value.exit_code == 2
        assert content(begun) == before
    state = json.loads((begun / "run.json").read_text())
    state["origin"]["ranks"] = 2
    (begun / "run.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="began with 2 ranks, now 1") as refused:
        run(tiny(), corpus, begun, encoder)
    assert refused.value.exit_code == 2


def test_a_run_of_version_0_1_0_knows_its_encoder_by_its_path(
    begun: Path, encoder: Path, corpus: Corpus, tmp_path: Path
) -> None:
    state = json.loads((begun / "run.json").read_text())
    state["origin"]["encoder"] = str(encoder)
    (begun / "run.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"version 0\.1\.0 knew by name") as refused:
        run(tiny(), corpus, begun, tmp_path / "other")
    assert refused.value.exit_code == 2
    assert run(tiny(), corpus, begun, f"{encoder.parent}/./{encoder.name}/") is not None
    assert read_state(begun)["origin"]["encoder"]["sha256"] == weights_sha256(  # type: ignore[index]
        load_file(encoder / "model.safetensors")
    )


def test_a_start_that_fails_leaves_no_folder(encoder: Path, corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "below" / "run"
    with pytest.raises(UserError, match="misspelt"):
        run(tiny(), corpus, out, f"{encoder}-misspelt")
    recipe = tiny()
    odd = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, patch=(17, 17, 17)))
    with pytest.raises(UserError, match=r"data\.patch"):
        run(odd, corpus, out, encoder)
    assert not out.parent.exists()
    out.parent.mkdir()
    (out.parent / "file").write_text("mine")
    for place in (out.parent / "file", out.parent):
        before = content(tmp_path)
        with pytest.raises(UserError, match=r"not a folder|no run") as refused:
            run(tiny(), corpus, place, encoder)
        assert refused.value.exit_code == 2
        assert content(tmp_path) == before


VARIED = (
    StageConfig(name="head", epochs=1, warmup=0.5, head_lr=1e-2, schedule="constant", dropout=0.0, weight_decay=0.1),
    StageConfig(name="deep", steps=3, head_lr=1e-2, encoder_lr=1e-3, layers=1, schedule="poly", dropout=0.5),
    StageConfig(name="all", epochs=1.5, head_lr=1e-2, encoder_lr=1e-2, layers="all", schedule="cosine"),
)
"""2, 3 and 3 steps: an epoch of the three training series has two steps of two samples."""


def varied() -> Recipe:
    return tiny(VARIED, optimizer="sgd", momentum=0.9)


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_report", lambda run, corpus: run)
        assert run(varied(), corpus, out) is not None
    return out


def same_weights(one: Path, other: Path) -> bool:
    expected, found = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_a_run_that_stops_in_any_stage_goes_on_bit_for_bit(
    step: int, undisturbed: Path, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        signalled_in_step(step, signal.SIGTERM, patch)
        assert run(varied(), corpus, tmp_path / "run") is None
    assert run(varied(), corpus, tmp_path / "run") is not None
    assert same_weights(undisturbed, tmp_path / "run")


def test_the_length_of_an_epoch_stays_what_it_was_when_the_run_began(
    undisturbed: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert read_state(undisturbed)["steps_per_epoch"] == 2  # type: ignore[index]
    assert max(line["step"] for line in read_metrics(undisturbed)) == 8
    with pytest.MonkeyPatch.context() as patch:
        signalled_in_step(2, signal.SIGTERM, patch)
        assert run(varied(), corpus, out) is None
    written = (out / "run.json").read_text()
    for damaged in ("2", 0, True, None):
        (out / "run.json").write_text(json.dumps(json.loads(written) | {"steps_per_epoch": damaged}))
        with pytest.raises(WrongUse, match=r"damaged .*steps_per_epoch"):
            run(varied(), corpus, out)
    (out / "run.json").write_text(written)
    monkeypatch.setattr(training, "steps_of_epoch", lambda series, samples: 99)
    assert run(varied(), corpus, out) is not None
    assert read_state(out)["steps_per_epoch"] == 2  # type: ignore[index]
    assert same_weights(undisturbed, out)


def test_rates_that_overflow_the_weights_end_as_diverged(corpus: Corpus, tmp_path: Path) -> None:
    stage = StageConfig(name="all", steps=4, head_lr=1e30, encoder_lr=1e30, layers="all")
    with pytest.raises(Diverged):
        run(tiny((stage,), validate_every=0), corpus, tmp_path / "run")


# --------------------------------------------------------------------------------------------- data and recipes


@pytest.mark.parametrize(("workers", "kind"), [(2, "thread"), (1, "process")])
def test_samples_are_the_same_whoever_makes_them(workers: int, kind: Any, corpus: Corpus) -> None:
    recipe = tiny()
    cases = AneurysmTask().cases(corpus, every_label=False).cases
    task = AneurysmTask()
    store = RegionStore(cases, make_view(recipe.view, recipe.data, task))
    samples = TrainingSamples(store, task, recipe.data, recipe.augment, seed=1)
    plan = Plan(steps=4, batch=2, accumulate=1, rank=0, ranks=1)
    helped = dataclasses.replace(recipe.data, workers=workers, worker_kind=kind)
    plain = list(training_batches(samples, plan, recipe.data, first_step=1))
    found = list(training_batches(samples, plan, helped, first_step=1))
    assert len(plain) == len(found) == 3
    for one, other in zip(plain, found, strict=True):
        assert one.scan_ids == other.scan_ids
        assert torch.equal(make_inputs(one, store.view)[0], make_inputs(other, store.view)[0])
        targets = [
            make_targets(drawn, store.view, task, cells={"presence": 2, "territory": 2}) for drawn in (one, other)
        ]
        assert set(targets[0]) >= {"labels", "presence", "presence_known", "territory"}
        assert all(torch.equal(target, targets[1][name]) for name, target in targets[0].items())


@pytest.mark.parametrize("spacing", [None, 3.0])
def test_a_region_is_the_same_wherever_it_is_kept(spacing: float | None, corpus: Corpus, tmp_path: Path) -> None:
    data = dataclasses.replace(tiny().data, spacing=spacing, cache_dir=str(tmp_path / "cache"))
    task = AneurysmTask()
    view = make_view(tiny().view, data, task)
    cases = task.cases(corpus).cases
    assert any(case.mask is not None for case in cases)
    wanted = [view.load(case) for case in cases]
    said: list[str] = []
    assert decoded_bytes(cases, RegionDecoder(view)) >= sum(region.nbytes for region in wanted)
    for mode in ("ram", "shared", "disk", "none"):
        config = dataclasses.replace(data, cache=mode)
        with cached(
            cases, config, decoder=RegionDecoder(view), run_name=str(tmp_path), local_rank=0, local_ranks=1,
            agree=lambda choice: choice, wait=lambda: None, say=said.append,
        ) as regions:  # fmt: skip
            store = RegionStore(cases[3:], view, regions, range(3, len(cases)))
            for number, region in enumerate(wanted[3:]):
                found = store[number]
                assert torch.equal(found.stored_XYZ, region.stored_XYZ), mode
                assert (found.mask_XYZ is None) == (region.mask_XYZ is None)
                assert region.mask_XYZ is None or torch.equal(found.mask_XYZ, region.mask_XYZ)
                for name in ("slope", "inter", "spacing", "fill", "unit", "start"):
                    assert getattr(found, name) == getattr(region, name), (mode, name)
                for name in ("points_K3", "places_K", "labels_L", "points_complete"):
                    assert np.array_equal(getattr(found.findings, name), getattr(region.findings, name)), (mode, name)
    assert len(said) == 4, "nothing had to be made again"


def test_a_region_on_disk_is_known_by_all_that_it_depends_on(corpus: Corpus) -> None:
    recipe, task = tiny(), AneurysmTask()
    case = next(case for case in task.cases(corpus).cases if case.mask is not None)
    names = set()
    for change in ({}, {"patch": (20, 16, 16)}, {"spacing": 3.0}):
        view = make_view(recipe.view, dataclasses.replace(recipe.data, **change), task)
        names.add(RegionDecoder(view).parts(case)[0].name)
    view = make_view(recipe.view, recipe.data, task)
    for change in ({"sha256": "0" * 64}, {"mask_sha256": "0" * 64}, {"spots": ()}, {"foreground_box": (1, 9) * 3}):
        names.add(RegionDecoder(view).parts(dataclasses.replace(case, **change))[0].name)
    assert len(names) == 7


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0, 1e31, float("1e400")])
def test_a_rate_that_no_step_survives_is_refused_by_its_key(value: float) -> None:
    for name in ("lr", "weight_decay", "min_lr", "momentum"):
        with pytest.raises(UserError, match=rf"optim\.{name} .*must be 0 or more") as refused:
            OptimConfig(**{name: value})
        assert refused.value.exit_code == 2
    with pytest.raises(WrongUse, match="stage 'head': head_lr"):
        StageConfig(name="head", steps=1, head_lr=value)
    with pytest.raises(WrongUse, match="stage 'all': encoder_lr"):
        StageConfig(name="all", steps=1, head_lr=0.1, encoder_lr=value, layers="all")
    with pytest.raises(WrongUse, match=r"train\.weight_decay"):
        TrainConfig(weight_decay=value)
    if value != 1e31:
        with pytest.raises(WrongUse, match=r"losses: weight .* of presence"):
            HeatConfig(weight=value)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_a_seed_that_overflows_is_refused_by_its_key(seed: int) -> None:
    for config in (PretrainingConfig, TrainConfig):
        with pytest.raises(WrongUse, match=r"train\.seed"):
            config(seed=seed)
    with pytest.raises(UserError, match=r"train\.seed"):
        from_plain(Recipe, {"train": {"seed": seed}})


def test_the_largest_seed_trains(corpus: Corpus, tmp_path: Path) -> None:
    assert run(tiny(STAGES[:1], seed=2**63 - 1, validate_every=0), corpus, tmp_path / "run") is not None


def test_a_run_that_dies_while_it_draws_its_report_is_taken_up_and_draws_it(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def dying(folder: Path, corpus: Corpus) -> Path:
        drawn.append(read_state(folder)["status"])  # type: ignore[index]
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_report", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), corpus, tmp_path)
    before = read_metrics(tmp_path)
    assert finished_runs(tmp_path)  # all that it is drawn from is there, for `finetune report`
    monkeypatch.setattr(training, "write_report", lambda folder, corpus: drawn.append("again") or folder)
    assert run(tiny(), corpus, tmp_path) is not None
    assert drawn == ["running", "again"]
    assert read_state(tmp_path)["status"] == "finished"  # type: ignore[index]
    assert read_metrics(tmp_path) == before  # the last score does not stand there twice


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.RunFolder, "end", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tiny(), corpus, tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    kept = [f".tmp-{os.getppid()}-0123456789abcdef-report.html", ".tmp-notes.txt", "notes.txt"]
    for name in (*kept, f".tmp-{dead.pid}-0123456789abcdef-predictions.parquet"):
        (tmp_path / name).touch()
    assert run(tiny(), corpus, tmp_path) is not None
    left = {path.name for path in tmp_path.iterdir() if path.stat().st_size == 0 and path.name != ".lock"}
    assert left == set(kept)
