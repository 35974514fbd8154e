"""How a fine-tuning run starts, stops, goes on and ends: its signals, its encoder, its skipped steps, its folder."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import train as training
from finetune import validation
from finetune.losses import LossConfig
from finetune.models.assemble import HeadConfig
from finetune.origin import weights_sha256
from finetune.recipe import Recipe, TrainConfig
from finetune.samples import DataConfig, RegionStore, TrainingSamples, training_batches
from finetune.stages import StageConfig
from finetune.tasks.aneurysm import select
from harmonize.corpus import Corpus
from harmonize.errors import UserError, WrongUse
from headspark.config import from_plain
from headspark.data.batches import Plan
from headspark.encoder import EncoderConfig, build_encoder
from headspark.hub.encoder_folder import save_encoder
from headspark.optim import OptimConfig
from headspark.recipe import TrainConfig as PretrainingConfig
from headspark.run.checkpoint import load_checkpoint, load_newest
from headspark.run.claim import read_metrics, read_state
from headspark.run.diverged import Diverged

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
        head=HeadConfig(stride=2, width=4, top=2, dropout=0.2),
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

    def step_and_signal(trainer: Any, *rest: Any) -> Any:
        if trainer.step == step - 1:
            signal.raise_signal(number)
        return taken(trainer, *rest)

    patch.setattr(training, "train_step", step_and_signal)


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_report", lambda run, corpus: run)
        assert run(tiny(), corpus, out) is not None
    return out


def test_a_run_that_is_asked_to_stop_in_any_step_saves_it_and_ends_as_an_undisturbed_one(
    undisturbed: Path, corpus: Corpus, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1]
    for step, number in enumerate(numbers, start=1):
        with pytest.MonkeyPatch.context() as patch:
            signalled_in_step(step, number, patch)
            assert run(tiny(), corpus, out) is None
        state = read_state(out)
        assert state is not None
        assert (state["status"], state["step"]) == ("interrupted", step)
        newest = load_newest(out / "checkpoints", say=print)
        assert newest is not None
        assert newest.step == step
    assert run(tiny(), corpus, out) is not None
    expected, found = (load_file(folder / "model.safetensors") for folder in (undisturbed, out))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert without_times(read_metrics(out)) == without_times(read_metrics(undisturbed))


@pytest.mark.parametrize("at", [2, 6])
def test_a_validation_that_a_signal_cuts_short_is_made_up_for(
    at: int, undisturbed: Path, corpus: Corpus, tmp_path: Path
) -> None:
    out, predict = tmp_path / "run", validation.predict_cases

    def interrupted(model: Any, *rest: Any, **options: Any) -> Any:
        if read_metrics(out)[-1]["step"] >= at - 2:
            signal.raise_signal(signal.SIGTERM)
        return predict(model, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "predict_cases", interrupted)
        for _ in range(3):  # in each of the three validations that come, the last of them at the end
            if run(tiny(), corpus, out) is None and read_state(out)["step"] >= at:  # type: ignore[index]
                break
    assert read_state(out)["status"] == "interrupted"  # type: ignore[index]
    assert run(tiny(), corpus, out) is not None
    assert without_times(read_metrics(out)) == without_times(read_metrics(undisturbed))


def test_a_signal_ends_the_command_with_the_exit_code_that_asks_for_another_start(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--corpus", str(corpus.path), "--data.patch", "[16, 16, 16]", "--data.folds", "2"]
    words += ["--scratch", json.dumps({"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]})]
    words += ["--head.stride", "2", "--train.threads", "1"]
    signalled_in_step(2, signal.SIGTERM, monkeypatch)
    assert training.main([*words, "--out", str(tmp_path / "run")]) == 75
    assert load_newest(tmp_path / "run" / "checkpoints", say=print).step == 2  # type: ignore[union-attr]
    monkeypatch.undo()
    # While the series are read there is nothing to save, and the folder stays what it was.
    monkeypatch.setattr(training, "RegionStore", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    capsys.readouterr()
    assert training.main([*words, "--out", str(tmp_path / "other")]) == 75
    assert "stopped before the first step" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


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


# ----------------------------------------------------------------------------------------------- what is not finite


def poisoned_steps(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of these steps NaN."""
    loss, taken, now = training.finetune_loss, training.train_step, [0]

    def taking(trainer: Any, *rest: Any) -> Any:
        now[0] = trainer.step + 1
        return taken(trainer, *rest)

    def odd(*arguments: Any) -> Any:
        losses = loss(*arguments)
        return losses._replace(total=losses.total * math.nan) if now[0] in steps else losses

    monkeypatch.setattr(training, "train_step", taking)
    monkeypatch.setattr(training, "finetune_loss", odd)


def test_a_skipped_step_changes_nothing_is_counted_and_named(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned_steps({3}, monkeypatch)
    recipe = tiny(checkpoint_every=1, keep=9, log_every=1, validate_every=0)
    assert run(recipe, corpus, tmp_path / "run") is not None
    before, after, later = (load_checkpoint(tmp_path / "run" / "checkpoints" / f"step_00000{n}") for n in (2, 3, 4))
    assert before.ema is not None
    assert after.ema is not None
    assert all(torch.equal(before.ema[name], after.ema[name]) for name in before.ema)
    assert all(torch.equal(before.model[name], after.model[name]) for name in before.model)
    assert not all(torch.equal(after.model[name], later.model[name]) for name in later.model)
    lines = read_metrics(tmp_path / "run")
    (named,) = [line for line in lines if "skipped" in line]
    assert named["step"] == 3
    assert set(named["scans"]) <= {case.scan_id for case in select(corpus, every_label=False).cases}
    assert [line["skipped_steps"] for line in lines if "loss" in line] == [0, 0, 1, 1, 1, 1]
    (odd,) = [line for line in lines if line.get("not_finite", {}).get("loss")]
    assert (odd["step"], odd["loss"]) == (3, None)
    assert f"step 3 skipped: its loss or gradient is not finite; it saw {', '.join(named['scans'])}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("steps", "patience", "reason"),
    [
        ({1, 2, 3, 4, 5, 6}, 10, "not one step"),
        ({5, 6}, 10, "last 2 steps were skipped"),
        ({2, 3, 4}, 3, "not finite in 3 steps in a row, lastly on"),
    ],
)
def test_a_run_that_diverged_is_not_finished_and_leaves_no_model(
    steps: set[int], patience: int, reason: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned_steps(steps, monkeypatch)
    recipe = tiny(non_finite_patience=patience, validate_every=0, log_every=1)
    with pytest.raises(Diverged, match=rf"diverged at step {max(steps)}: .*{reason}.*rates") as given_up:
        run(recipe, corpus, tmp_path / "run")
    assert given_up.value.exit_code == 1
    state = read_state(tmp_path / "run")
    assert state is not None
    assert state["status"] == "diverged"
    assert state["diverged"]["step"] == max(steps)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_rates_that_overflow_the_weights_end_as_diverged(corpus: Corpus, tmp_path: Path) -> None:
    stage = StageConfig(name="all", steps=4, head_lr=1e30, encoder_lr=1e30, layers="all")
    with pytest.raises(Diverged):
        run(tiny((stage,), validate_every=0), corpus, tmp_path / "run")


# --------------------------------------------------------------------------------------------- data and recipes


@pytest.mark.parametrize(("workers", "kind"), [(2, "thread"), (1, "process")])
def test_samples_are_the_same_whoever_makes_them(workers: int, kind: Any, corpus: Corpus) -> None:
    recipe = tiny()
    cases = select(corpus, every_label=False).cases
    samples = TrainingSamples(
        RegionStore(cases, recipe.data, label="series"), recipe.data, recipe.augment, stride=2, seed=1
    )
    plan = Plan(steps=4, batch=2, accumulate=1, rank=0, ranks=1)
    helped = dataclasses.replace(recipe.data, workers=workers, worker_kind=kind)
    plain = list(training_batches(samples, plan, recipe.data, first_step=1))
    found = list(training_batches(samples, plan, helped, first_step=1))
    assert len(plain) == len(found) == 3
    for one, other in zip(plain, found, strict=True):
        assert torch.equal(one.x_BCDHW, other.x_BCDHW)
        assert tuple(one.scan_ids) == tuple(other.scan_ids)
        assert all(torch.equal(a, b) for a, b in zip(one.targets, other.targets, strict=True))


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
        with pytest.raises(WrongUse, match=r"loss\.presence"):
            LossConfig(presence=value)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_a_seed_that_overflows_is_refused_by_its_key(seed: int) -> None:
    for config in (PretrainingConfig, TrainConfig):
        with pytest.raises(WrongUse, match=r"train\.seed"):
            config(seed=seed)
    with pytest.raises(UserError, match=r"train\.seed"):
        from_plain(Recipe, {"train": {"seed": seed}})


def test_the_largest_seed_trains(corpus: Corpus, tmp_path: Path) -> None:
    assert run(tiny(STAGES[:1], seed=2**63 - 1, validate_every=0), corpus, tmp_path / "run") is not None
