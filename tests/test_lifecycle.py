"""How a run starts, stops, goes on and ends: one story, told by pretraining and by fine-tuning."""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from toy_runs import ENCODER, FINE_TUNING, PRETRAINING, TIMES

import finetune.recipe
import finetune.state
import finetune.train
import finetune.validation
import headspark.pretraining.evaluate
import headspark.pretraining.state
import headspark.recipe
import headspark.run.fit
import headspark.train
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from headspark.config import from_plain, run_command, to_yaml
from headspark.run.checkpoint import load_checkpoint, load_newest
from headspark.run.claim import read_metrics, read_state
from headspark.run.diverged import Diverged

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Program:
    """One of the two.

    Attributes:
        module: Where its `train_step` stands.
        config: Its recipe's class.
        toy: A recipe.
        evaluating: Where, and under which name, it calls what looks at held-out scans.
    """

    module: ModuleType
    config: Any
    toy: dict[str, Any]
    evaluating: tuple[Any, str]

    def recipe(self, **train: Any) -> Any:
        return from_plain(self.config, self.toy | {"train": self.toy["train"] | train})

    def run(self, recipe: Any, corpus: Path, out: Path) -> bool:
        """Whether it came to its end."""
        if self.module is headspark.train:
            return headspark.train.train(recipe, corpus=corpus, out=out)
        opened = Corpus.open(corpus)
        return finetune.train.train(recipe, corpus=opened, encoder_folder=None, out=out) is not None

    def command(self, words: list[str]) -> int:
        """The exit code of the command, without a process of its own."""
        if self.module is headspark.train:
            return run_command(runpy.run_path(str(ROOT / "ssl" / "pretrain.py"))["main"], words)
        return finetune.train.main(words)


PROGRAMS = {
    "pretraining": Program(
        module=headspark.train,
        config=headspark.recipe.Recipe,
        toy=PRETRAINING,
        evaluating=(headspark.pretraining.evaluate.Evaluator, "validation_losses"),
    ),
    "fine-tuning": Program(
        module=finetune.train,
        config=finetune.recipe.Recipe,
        toy=FINE_TUNING,
        evaluating=(finetune.validation, "predict_cases"),
    ),
}


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> Program:
    return PROGRAMS[request.param]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(FIXTURES / "corpus", tmp_path_factory.mktemp("lifecycle") / "corpus"))


@pytest.fixture(scope="module", autouse=True)
def no_report() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.train, "write_report", lambda run, corpus: run)
        yield


@pytest.fixture(scope="module")
def undisturbed(program: Program, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert program.run(program.recipe(), corpus, out)
    return out


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def before_step(step: int, happen: Callable[[], object], patch: pytest.MonkeyPatch, program: Program) -> None:
    """Let something happen when `step` steps are done and the next one begins."""
    taken = program.module.train_step  # type: ignore[attr-defined]

    def step_after(state: Any, *rest: Any) -> Any:
        if state.step == step:
            happen()
        return taken(state, *rest)

    patch.setattr(program.module, "train_step", step_after)


def fails_after(step: int, error: BaseException, patch: pytest.MonkeyPatch, program: Program) -> None:
    def fail() -> None:
        raise error

    before_step(step, fail, patch, program)


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, moving average, optimizer and counters, bit for bit; and the same lines, but for times."""
    first, second = (load_newest(run / "checkpoints", say=print) for run in (one, other))
    assert first is not None
    assert second is not None
    assert first.step == second.step == STEPS
    for mine, theirs in ((first.model, second.model), (first.ema or {}, second.ema or {})):
        assert mine.keys() == theirs.keys()
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    moments = [found.training["optimizer"]["state"] for found in (first, second)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moments[0][key]["exp_avg_sq"], moments[1][key]["exp_avg_sq"]) for key in moments[0])
    lines = [
        [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(run)]
        for run in (one, other)
    ]
    assert lines[0] == lines[1]
    assert any("loss" in line for line in lines[0])


# ------------------------------------------------------------------------------------------------------ stop and go on


def test_a_run_that_is_asked_to_stop_in_any_step_saves_it_and_ends_as_an_undisturbed_one(
    program: Program, undisturbed: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1]
    for step, number in enumerate(numbers, start=1):
        with pytest.MonkeyPatch.context() as patch:
            before_step(step - 1, lambda number=number: signal.raise_signal(number), patch, program)
            done = program.run(program.recipe(), corpus, out)
        state = read_state(out)
        assert state is not None
        assert (done, state["status"], state["step"]) == (False, "interrupted", step)
        newest = load_newest(out / "checkpoints", say=print)
        assert newest is not None
        assert newest.step == step
    assert program.run(program.recipe(), corpus, out)
    assert_same_run(undisturbed, out)


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_run_that_dies_between_two_passes_of_a_step_ends_as_an_undisturbed_one(
    step: int, program: Program, undisturbed: Path, corpus: Path, tmp_path: Path
) -> None:
    out, backward, passes = tmp_path / "run", Accelerator.backward, []

    def dying(accelerator: Accelerator, loss: torch.Tensor) -> None:
        passes.append(loss)
        if len(passes) == 2 * step:
            raise RuntimeError("the machine went down")
        backward(accelerator, loss)

    recipe = program.recipe(checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "backward", dying)
        with pytest.raises(RuntimeError, match="went down"):
            program.run(recipe, corpus, out)
    assert read_state(out)["status"] == "running"  # type: ignore[index]
    with (out / "metrics.jsonl").open("a") as stream:  # what it had measured since the last checkpoint, and half a line
        stream.write(f'{{"step": {step}, "stage": "all", "loss": 7.0}}\n{{"step": 1')
    assert program.run(recipe, corpus, out)
    assert_same_run(undisturbed, out)


@pytest.mark.parametrize("at", [2, STEPS])
def test_a_validation_that_a_signal_cuts_short_is_made_up_for(
    at: int, program: Program, undisturbed: Path, corpus: Path, tmp_path: Path
) -> None:
    out, (owner, name) = tmp_path / "run", program.evaluating
    found, asked = getattr(owner, name), []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        begun = [line["step"] for line in read_metrics(out)] if out.exists() else []
        if begun and not asked and max(begun) >= at - 2:
            asked.append(signal.raise_signal(signal.SIGTERM))
        return found(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        assert program.run(program.recipe(), corpus, out) is False
    assert asked
    assert read_state(out)["status"] == "interrupted"  # type: ignore[index]
    assert program.run(program.recipe(), corpus, out)
    assert_same_run(undisturbed, out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_command_with_the_exit_code_that_asks_for_another_start(
    number: signal.Signals, program: Program, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(to_yaml(program.recipe()))
    words = ["--config", str(tmp_path / "recipe.yaml"), "--corpus", str(corpus), "--out", str(tmp_path / "run")]
    before_step(1, lambda: signal.raise_signal(number), monkeypatch, program)
    assert program.command(words) == 75
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000002"]
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.train, "write_report", lambda run, corpus: run)
        assert program.command(words) == 0


def test_a_signal_before_the_first_step_ends_the_start_and_leaves_the_folder(
    program: Program, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = {"pretraining": "fill_cache", "fine-tuning": "fill_cache"}
    monkeypatch.setattr(
        program.module,
        next(name for name in reader.values() if hasattr(program.module, name)),
        lambda *_, **__: signal.raise_signal(signal.SIGTERM),
    )
    assert program.run(program.recipe(), corpus, tmp_path / "run") is False
    assert not (tmp_path / "run").exists()
    assert "stopped before the first step" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ what may not change


@pytest.fixture
def begun(program: Program, corpus: Path, tmp_path: Path) -> Path:
    """A run that was asked to stop in its third step."""
    with pytest.MonkeyPatch.context() as patch:
        before_step(2, lambda: signal.raise_signal(signal.SIGTERM), patch, program)
        assert not program.run(program.recipe(), corpus, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 5}, "began with train.seed 0, now 5 is asked for; give --out a new folder"),
        ({"clip": 0.25}, r"began with train.clip \S+, now 0.25 is asked for; give --out a new folder"),
        ({"ema": 0.25}, "began with train.ema 0.5, now 0.25 is asked for; give --out a new folder"),
        (
            {"batch": 2},
            "began with 2 samples per step, now 4: set train.batch, train.accumulate and the number of ranks so that "
            "their product is the same",
        ),
    ],
)
def test_a_changed_setting_is_refused_with_the_same_sentence_and_leaves_the_run_as_it_was(
    change: dict[str, Any], says: str, program: Program, begun: Path, corpus: Path
) -> None:
    before = content(begun)
    with pytest.raises(UserError, match=rf"^{begun}: {says}$") as refused:
        program.run(program.recipe(**change), corpus, begun)
    assert refused.value.exit_code == 2
    assert content(begun) == before


def test_another_corpus_and_a_finished_run_are_refused_with_the_same_sentence(
    program: Program, begun: Path, undisturbed: Path, corpus: Path, tmp_path: Path
) -> None:
    state = json.loads((begun / "run.json").read_text())
    if "origin" in state:
        state["origin"]["corpus"] = "another"
    else:
        state["corpus"]["manifest_sha256"] = "another"
    (begun / "run.json").write_text(json.dumps(state))
    other = "the corpus is not the one that this run began with; give --out a new folder"
    for run, says in ((begun, other), (undisturbed, "this run is finished; give --out a new folder")):
        before = content(run)
        with pytest.raises(UserError, match=f"^{run}: {says}$") as refused:
            program.run(program.recipe(), corpus, run)
        assert refused.value.exit_code == 2
        assert content(run) == before


def test_what_changes_nothing_that_is_computed_may_change_between_the_parts_of_a_run(
    program: Program, begun: Path, undisturbed: Path, corpus: Path
) -> None:
    recipe = program.recipe(checkpoint_every=1, keep=1, non_finite_patience=3)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, workers=2))
    assert program.run(recipe, corpus, begun)
    assert_same_run(undisturbed, begun)


def test_a_folder_of_the_other_kind_of_run_is_refused_by_name(program: Program, corpus: Path, tmp_path: Path) -> None:
    ours, other = (
        ("pretraining", "fine-tuning") if program.module is headspark.train else ("fine-tuning", "pretraining")
    )
    key = {"pretraining": "corpus", "fine-tuning": "origin"}[other]
    (tmp_path / "run.json").write_text(json.dumps({"status": "interrupted", key: {}}))
    with pytest.raises(UserError, match=f"holds a run of {other}, not of {ours}"):
        program.run(program.recipe(), corpus, tmp_path)


@pytest.mark.parametrize("kind", ["file", "below a file", "dangling link", "own files", "foreign run.json", "proc"])
def test_a_place_that_can_be_no_runs_folder_is_refused_in_one_line_and_left_alone(
    kind: str, program: Program, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if kind in ("file", "below a file"):
        out.write_text("mine")
    elif kind == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    elif kind in ("own files", "foreign run.json"):
        out.mkdir()
        (out / ("run.json" if kind == "foreign run.json" else "thesis.tex")).write_text('{"runs": 3}')
    before = content(tmp_path)
    where = {"below a file": out / "run", "proc": Path("/proc/run")}.get(kind, out)
    with pytest.raises(UserError) as refused:
        program.run(program.recipe(), corpus, where)
    assert refused.value.exit_code == 2
    assert str(out if kind != "proc" else where) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert content(tmp_path) == before


def test_a_failed_start_leaves_no_folder_an_empty_one_empty_and_a_begun_run_as_it_was(
    program: Program, begun: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, new = tmp_path / "empty", tmp_path / "a" / "run"
    empty.mkdir()
    before = content(begun)
    fails_after(0, torch.OutOfMemoryError("too large"), monkeypatch, program)
    for out in (empty, new):
        with pytest.raises(torch.OutOfMemoryError):
            program.run(program.recipe(), corpus, out)
    fails_after(3, UserError("a scan has gone"), monkeypatch, program)
    with pytest.raises(UserError, match="has gone"):
        program.run(program.recipe(keep=7), corpus, begun)
    assert content(begun) == before
    assert content(empty) == {}
    assert not new.parent.exists()
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        before_step(0, lambda: signal.raise_signal(signal.SIGTERM), patch, program)
        assert not program.run(program.recipe(seed=5), corpus, new)  # nothing holds it to another recipe
    assert (new / "run.json").is_file()


# -------------------------------------------------------------------------------------------- memory, and skipped steps


def test_a_batch_that_does_not_fit_is_divided_and_gives_the_same_steps(
    program: Program, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = program.toy | {"encoder": ENCODER} if "encoder" in program.toy else program.toy
    if "head" in toy:
        toy = toy | {"head": toy["head"] | {"dropout": 0.0}}
    recipe = from_plain(program.config, toy | {"train": toy["train"] | {"batch": 4, "log_every": 1}})
    assert program.run(recipe, corpus, tmp_path / "whole")

    def too_large(*arguments: Any) -> None:
        if arguments[-1] > 1:
            raise torch.OutOfMemoryError

    state = headspark.pretraining.state if program.module is headspark.train else finetune.state
    monkeypatch.setattr(state, "try_step", too_large)
    monkeypatch.setattr(headspark.run.fit, "on_gpu", lambda accelerator: True)
    capsys.readouterr()
    assert program.run(recipe, corpus, tmp_path / "divided")
    assert (
        "out of memory with train.batch 4: going on with 1 and train.accumulate 8, which gives the same steps more "
        "slowly" in capsys.readouterr().out
    )
    for run in ("whole", "divided"):
        assert read_state(tmp_path / run)["effective_batch"] == 8  # type: ignore[index]
    one, other = (
        [[line[name] for name in line if name in ("loss", "labels", "presence", "territory", "grad_norm")] for line in
         read_metrics(tmp_path / run) if "loss" in line]
        for run in ("whole", "divided")
    )  # fmt: skip
    assert len(one) == STEPS
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-3, atol=1e-5)


def poisoned(steps: set[int], patch: pytest.MonkeyPatch, program: Program) -> None:
    """Make the gradient of these steps NaN."""
    taken, backward, now = program.module.train_step, Accelerator.backward, [0]  # type: ignore[attr-defined]

    def taking(state: Any, *rest: Any) -> Any:
        now[0] = state.step + 1
        return taken(state, *rest)

    def odd(accelerator: Accelerator, loss: torch.Tensor) -> None:
        backward(accelerator, loss * math.nan if now[0] in steps else loss)

    patch.setattr(program.module, "train_step", taking)
    patch.setattr(Accelerator, "backward", odd)


def test_a_skipped_step_changes_nothing_is_counted_and_named(
    program: Program, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned({3}, monkeypatch, program)
    out = tmp_path / "run"
    recipe = program.recipe(checkpoint_every=1, keep=9, log_every=1, validate_every=0)
    assert program.run(recipe, corpus, out)
    before, after, later = (load_checkpoint(out / "checkpoints" / f"step_00000{step}") for step in (2, 3, 4))
    assert before.ema is not None
    assert after.ema is not None
    assert all(torch.equal(before.ema[name], after.ema[name]) for name in before.ema)
    assert all(torch.equal(before.model[name], after.model[name]) for name in before.model)
    assert not all(torch.equal(after.model[name], later.model[name]) for name in later.model)
    lines = read_metrics(out)
    (named,) = [line for line in lines if "skipped" in line]
    assert (named["step"], named["skipped"]) == (3, "its loss or gradient is not finite")
    assert set(named["scans"]) <= set(Corpus.open(corpus).scans["scan_id"])
    assert 1 <= len(named["scans"]) <= 2
    assert [line["skipped_steps"] for line in lines if "skipped_steps" in line] == [0, 0, 1, 1, 1, 1]
    said = f"step 3 skipped: its loss or gradient is not finite; it saw {', '.join(named['scans'])}"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "patience", "reason"),
    [
        ({1, 2, 3, 4, 5, 6}, 10, "not one step had a finite loss and gradient"),
        ({5, 6}, 10, "its last 2 steps were skipped"),
        ({2, 3, 4}, 3, "not finite in 3 steps in a row, lastly on"),
    ],
)
def test_a_run_that_diverged_is_not_finished(
    steps: set[int],
    patience: int,
    reason: str,
    program: Program,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poisoned(steps, monkeypatch, program)
    recipe = program.recipe(non_finite_patience=patience, validate_every=0, log_every=1)
    with pytest.raises(Diverged, match=rf"diverged at step {max(steps)}: .*{reason}.*; .*lower .*") as given_up:
        program.run(recipe, corpus, tmp_path / "run")
    assert given_up.value.exit_code == 1
    state = read_state(tmp_path / "run")
    assert state is not None
    assert state["status"] == "diverged"
    assert state["diverged"]["step"] == max(steps)
    assert state["diverged"]["reason"] in str(given_up.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_weights_that_are_not_finite_replace_no_checkpoint(
    program: Program, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = program.module.train_step  # type: ignore[attr-defined]

    def poisoning(state: Any, *rest: Any) -> Any:
        result = taken(state, *rest)
        if state.step == 3:
            next(state.unwrapped.parameters()).data[0] = math.inf
        return result

    monkeypatch.setattr(program.module, "train_step", poisoning)
    with pytest.raises(Diverged, match="step 3: its weights are not finite"):
        program.run(program.recipe(checkpoint_every=1, keep=1, validate_every=0), corpus, tmp_path / "run")
    newest = load_newest(tmp_path / "run" / "checkpoints", say=print)
    assert newest is not None
    assert newest.step == 2
