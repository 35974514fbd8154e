"""Runs on a tiny corpus: they learn, stop, resume bit for bit, and refuse what is wrong."""

from __future__ import annotations

import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from standin_disk import file_size_limit

import headspark.train as module
from harmonize.errors import UserError
from headspark.config import from_plain, read_recipe, run_command, to_yaml
from headspark.hub.export import export_run
from headspark.pretraining.state import make_model
from headspark.recipe import Recipe
from headspark.run.checkpoint import load_checkpoint, load_newest
from headspark.run.folder import read_metrics, read_state
from headspark.train import train

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "tests" / "fixtures" / "v0_1_0"
PRETRAIN = str(ROOT / "ssl" / "pretrain.py")
TOY: dict[str, dict[str, object]] = {
    "data": {"patch": 16, "workers": 0, "val_share": 0.3},
    "encoder": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
    "mask": {"block": 8, "ratio": 0.5},
    "decoder": {"stop_stride": 2, "width": 8},
    "optim": {"lr": 5e-3},
    "train": {
        "steps": 6, "batch": 2, "threads": 1, "log_every": 1, "checkpoint_every": 2, "validate_every": 3,
        "val_samples": 2, "picture_every": 0, "trackers": [],
    },
}  # fmt: skip


def toy(**changes: dict[str, object]) -> Recipe:
    sections = {name: TOY.get(name, {}) | changes.get(name, {}) for name in TOY.keys() | changes.keys()}
    return from_plain(Recipe, sections)


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_newest(run / "checkpoints", say=print)
    assert checkpoint is not None
    average = {f"average {name}": value for name, value in (checkpoint.ema or {}).items()}
    return {**checkpoint.model, **average}


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run) if "loss" in line]


def held_out_losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["val_loss"]) for line in read_metrics(run) if "val_loss" in line]


def command(recipe: Recipe, corpus: Path, out: Path, *extra: str) -> list[str]:
    path = out.with_suffix(".yaml")
    path.write_text(to_yaml(recipe))
    return [PRETRAIN, "--config", str(path), "--corpus", str(corpus), "--out", str(out), *extra]


def test_a_run_learns_and_leaves_what_the_next_tools_read(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(toy(train={"steps": 40, "trackers": ["tensorboard"], "log_every": 5}), corpus=tiny_corpus, out=run)
    held_out = dict(held_out_losses(run))
    assert held_out[40] < 0.8 * held_out[0]
    assert read_state(run)["status"] == "finished"
    assert held_out.keys() >= {3, 39}
    assert all(0 < line["data_wait_share"] < 1 for line in read_metrics(run) if "loss" in line)
    assert re.search(r"pretrain: 40/40 step, .* loss=\d\.\d+, data_wait=\d+%", capsys.readouterr().err)
    assert (run / "pictures" / "step_000040.png").stat().st_size > 1000
    assert list((run / "tensorboard").rglob("events.*"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step_000036",
        "step_000038",
        "step_000040",
    ]


def interrupted(recipe: Recipe, corpus: Path, run: Path, *, after_step: int) -> None:
    """Train in this process, with SIGTERM coming while step `after_step` is on its way."""
    with pytest.MonkeyPatch.context() as patch:
        record = module.record

        def record_and_stop(state, log, result) -> None:  # type: ignore[no-untyped-def]
            record(state, log, result)
            if state.step == after_step - 1:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(module, "record", record_and_stop)
        assert train(recipe, corpus=corpus, out=run) is False


def test_a_run_killed_at_a_random_moment_resumes_bit_for_bit(tiny_corpus: Path, tmp_path: Path) -> None:
    counts = {"steps": 40, "checkpoint_every": 3, "log_every": 4, "validate_every": 0, "accumulate": 3}
    recipe = toy(data={"workers": 1}, augment={"noise": 0.1}, train=counts)
    train(recipe, corpus=tiny_corpus, out=tmp_path / "undisturbed")
    run = tmp_path / "killed"
    words = [sys.executable, *command(recipe, tiny_corpus, run)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wait_for(lambda: any((run / "checkpoints").glob("step_*")), process)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    process.wait()
    assert read_state(run)["status"] == "running"
    assert train(recipe, corpus=tiny_corpus, out=run)
    assert_same_weights(tmp_path / "undisturbed", run)
    assert losses(tmp_path / "undisturbed") == losses(run)


def test_a_run_whose_checkpoints_are_gone_says_so(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = toy(train={"steps": 6, "checkpoint_every": 2, "log_every": 1}), tmp_path / "run"
    interrupted(recipe, tiny_corpus, run, after_step=4)
    shutil.rmtree(run / "checkpoints")
    capsys.readouterr()
    assert train(recipe, corpus=tiny_corpus, out=run)
    said = capsys.readouterr().err
    assert "run: had reached step 3, but no checkpoint is left to go on from; begins again" in said


def wait_for(happened, process: subprocess.Popen[bytes]) -> None:  # type: ignore[no-untyped-def]
    until = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until, "no checkpoint in time"
        time.sleep(0.01)


def pretrain(words: list[str]) -> int:
    """What ``python ssl/pretrain.py`` does with these arguments, without a process of its own."""
    return run_command(runpy.run_path(PRETRAIN)["main"], words)


def test_losses_that_are_not_finite_are_skipped_and_in_the_end_named(tiny_corpus: Path, tmp_path: Path) -> None:
    recipe = toy(optim={"lr": 1e30, "name": "sgd"}, train={"non_finite_patience": 3, "steps": 50, "clip": 0})
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row, lastly on .*scan-") as given_up:
        train(recipe, corpus=tiny_corpus, out=tmp_path / "run")
    assert given_up.value.exit_code == 1


def test_the_same_recipe_and_seed_give_the_same_losses_whatever_the_workers_and_the_cache(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    train(toy(), corpus=tiny_corpus, out=tmp_path / "plain")
    for kind in ("thread", "process"):
        disk = {"cache": "disk", "cache_dir": str(tmp_path / "cache")}
        train(toy(data={"workers": 2, "worker_kind": kind} | disk), corpus=tiny_corpus, out=tmp_path / kind)
        assert losses(tmp_path / "plain") == losses(tmp_path / kind)


def test_bf16_checkpointed_activations_probes_and_profiles_are_a_matter_of_the_recipe(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    state = {"precision": "bf16", "activation_checkpointing": True, "ema": 0.9, "profile": 2, "steps": 5}
    probe = {"probe_every": 2, "probe_labels": ["modality", "sex"]}
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    try:
        assert train(toy(data={"val_share": 0.6}, train=state | probe), corpus=tiny_corpus, out=run)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    probes = [line for line in read_metrics(run) if "probe_modality" in line or "probe_sex" in line]
    assert [line["step"] for line in probes] == [0, 2, 4, 5]
    assert all(0 <= value <= 1 for line in probes for name, value in line.items() if name.startswith("probe"))
    assert "Self CPU" in (run / "profile" / "summary.txt").read_text()
    assert (run / "profile" / "trace.json").stat().st_size > 1000


def test_recomputed_activations_and_smaller_passes_give_the_same_losses(tiny_corpus: Path, tmp_path: Path) -> None:
    counts = {"steps": 3, "validate_every": 0}
    train(toy(train=counts | {"batch": 4}), corpus=tiny_corpus, out=tmp_path / "plain")
    for name, change in {
        "recomputed": {"batch": 4, "activation_checkpointing": True},
        "accumulated": {"batch": 1, "accumulate": 4},
    }.items():
        train(toy(train=counts | change), corpus=tiny_corpus, out=tmp_path / name)
        torch.testing.assert_close(losses(tmp_path / "plain"), losses(tmp_path / name), rtol=1e-4, atol=0)


def test_the_moving_average_is_that_of_the_weights(tiny_corpus: Path, tmp_path: Path) -> None:
    recipe = toy(train={"steps": 1, "ema": 0.75, "validate_every": 0})
    train(recipe, corpus=tiny_corpus, out=tmp_path)
    first, found = make_model(recipe).state_dict(), weights(tmp_path)
    for name, value in first.items():
        torch.testing.assert_close(found[f"average {name}"], 0.75 * value + 0.25 * found[name])


def test_the_scaler_of_fp16_skips_what_overflows_and_travels_with_the_checkpoint(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, scalers = module.make_accelerator, []

    def with_scaler(**options: Any) -> Accelerator:
        """What accelerate sets up for fp16 on a GPU, with PyTorch's scaler for CPUs."""
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
        accelerator = make(**options)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=4)
        scalers.append(accelerator.scaler)
        return accelerator

    recipe = toy(train={"steps": 30, "log_every": 1, "non_finite_patience": 30})
    monkeypatch.setattr(module, "make_accelerator", with_scaler)
    try:
        train(recipe, corpus=tiny_corpus, out=tmp_path / "undisturbed")
        interrupted(recipe, tiny_corpus, tmp_path / "interrupted", after_step=15)
        checkpoint = load_newest(tmp_path / "interrupted" / "checkpoints", say=print)
        assert checkpoint is not None
        assert checkpoint.training["scaler"]["scale"] == scalers[-1].get_scale() < 2.0**24
        assert train(recipe, corpus=tiny_corpus, out=tmp_path / "interrupted")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert_same_weights(tmp_path / "undisturbed", tmp_path / "interrupted")
    assert scalers[0].get_scale() == scalers[-1].get_scale()
    lines = [line for line in read_metrics(tmp_path / "undisturbed") if "loss" in line]
    assert 0 < lines[-1]["skipped_steps"] < 15
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.trackers wandbb: accelerate knows .*wandb") as refused:
        train(toy(train={"trackers": ["wandbb"]}), corpus=tmp_path, out=tmp_path / "run")
    assert refused.value.exit_code == 2
    known = {str(getattr(one, "value", one)) for one in LOGGER_TYPE_TO_CLASS}
    missing = min(known - {str(one.value) for one in get_available_trackers()})
    with pytest.raises(UserError, match=rf"train\.trackers {missing}: not installed; pip install {missing}"):
        train(toy(train={"trackers": [missing]}), corpus=tmp_path, out=tmp_path / "run")


def test_weights_and_biases_takes_metrics_and_pictures_offline(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert train(toy(train={"trackers": ["wandb"]}), corpus=tiny_corpus, out=tmp_path / "run")
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/*.png"))


def test_a_disk_that_fills_ends_the_run_with_one_line_and_the_last_checkpoint_intact(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toy(train={"validate_every": 0})
    train(recipe, corpus=tiny_corpus, out=tmp_path / "undisturbed")
    run = tmp_path / "run"
    interrupted(recipe, tiny_corpus, run, after_step=3)
    words = command(recipe, tiny_corpus, run)[1:]
    for size, message in ((10_000, r"step_000004: File too large; step 3 is intact: make room"), (300, "File too")):
        capsys.readouterr()
        with file_size_limit(size):
            assert pretrain(words) == 1
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert re.search(message, errors[0])
        assert load_checkpoint(run / "checkpoints" / "step_000003").step == 3
    assert pretrain(words) == 0
    assert_same_weights(tmp_path / "undisturbed", run)


def test_wrong_use_is_one_line_and_exit_code_2(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(toy(), tiny_corpus, tmp_path / "run", "--train.stepps", "3")
    assert pretrain(words[1:]) == 2
    assert (
        capsys.readouterr().err
        == "error: unknown key --train.stepps on the command line; did you mean --train.steps?\n"
    )


def test_mri_goes_on_as_it_began_and_an_encoder_says_how(tiny_corpus: Path, tmp_path: Path) -> None:
    recipe = toy(train={"steps": 2})
    assert recipe.data.mri_scaling is None
    assert train(recipe, corpus=tiny_corpus, out=tmp_path / "new")
    assert read_recipe(Recipe, tmp_path / "new" / "recipe.yaml").data.mri_scaling == "soft"
    assert export_run(tmp_path / "new").preprocessing["mri_scaling"] == "soft"
    corpus = STORED / "corpus"
    old = shutil.copytree(STORED / "run", tmp_path / "old")  # begun by version 0.1.0
    begun = read_recipe(Recipe, old / "recipe.yaml")
    assert export_run(old).preprocessing["mri_scaling"] == "clip"
    with pytest.raises(UserError, match=r"began with data\.mri_scaling clip, now soft is asked for"):
        train(replace(begun, data=replace(begun.data, mri_scaling="soft")), corpus=corpus, out=old)
    assert train(begun, corpus=corpus, out=old)
    assert read_recipe(Recipe, old / "recipe.yaml").data.mri_scaling == "clip"
    exported = export_run(old)
    assert exported.preprocessing["mri_scaling"] == "clip"
    assert "clipped at 6" in exported.card.text
