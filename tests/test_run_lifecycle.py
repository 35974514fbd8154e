"""What pretraining's runs alone have: trackers that write early, pictures, exports, and the hold on their folder."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import headspark.train as module
from harmonize.errors import UserError
from headspark.config import from_plain
from headspark.hub.export import export_run
from headspark.recipe import Recipe
from headspark.run.claim import claim, read_metrics, read_state
from headspark.run.diverged import Diverged
from headspark.run.folder import metrics_line
from headspark.train import train

TOY: dict[str, dict[str, Any]] = {
    "data": {"patch": 16, "workers": 0, "val_share": 0.3},
    "encoder": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
    "mask": {"block": 8, "ratio": 0.5},
    "decoder": {"stop_stride": 2, "width": 8},
    "train": {
        "steps": 3, "batch": 2, "threads": 1, "log_every": 1, "checkpoint_every": 1, "validate_every": 0,
        "val_samples": 2, "picture_every": 0, "trackers": [],
    },
}  # fmt: skip


def toy(**changes: dict[str, Any]) -> Recipe:
    return from_plain(Recipe, {name: TOY.get(name, {}) | changes.get(name, {}) for name in TOY.keys() | changes.keys()})


def fails_after(step: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    taken = module.train_step

    def failing(training: Any, *rest: Any) -> Any:
        if training.step == step:
            raise error
        return taken(training, *rest)

    monkeypatch.setattr(module, "train_step", failing)


def begun(corpus: Path, run: Path) -> None:
    """A run that failed after a step."""
    with pytest.MonkeyPatch.context() as patch:
        fails_after(1, patch, UserError("a scan has gone"))
        with pytest.raises(UserError, match="has gone"):
            train(toy(), corpus=corpus, out=run)


def test_a_start_that_fails_before_the_first_step_leaves_no_folder(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_after(0, monkeypatch, torch.OutOfMemoryError("too large"))
    with pytest.raises(torch.OutOfMemoryError):
        train(toy(train={"trackers": ["tensorboard"]}), corpus=tiny_corpus, out=tmp_path / "a" / "run")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert train(toy(optim={"lr": 1e-4}), corpus=tiny_corpus, out=tmp_path / "a" / "run")


def test_what_a_killed_start_left_does_not_hold_the_folder(tiny_corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun(tiny_corpus, run)
    for path in (run / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (run / "metrics.jsonl").write_text('{"step": 0, "val_loss": 1.0}\n')
    (run / ".lock").write_text('{"pid": 1, "host": "elsewhere"}')
    assert train(toy(optim={"lr": 1e-4}), corpus=tiny_corpus, out=run)
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == [1, 2, 3]


def test_a_link_to_a_folder_and_the_working_folder_are_folders(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (tmp_path / "link", Path()):
        assert train(toy(train={"steps": 1}), corpus=tiny_corpus, out=out)
    assert (tmp_path / "disk" / "run.json").is_file()
    assert (tmp_path / "link").is_symlink()


def test_a_held_folder_names_the_process_that_holds_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from headspark.run.claim import claim\n"
        "with claim(Path(sys.argv[1]), kind='a', other='b', key='k') as held:\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    wanted = rf"process {process.pid} on {os.uname().nodename}, started \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    with (
        pytest.raises(UserError, match=wanted) as refused,
        claim(tmp_path / "run", kind="a", other="b", key="k"),
    ):
        pass
    assert refused.value.exit_code == 2
    process.communicate()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("optim", "steps", "val_share", "reason"),
    [
        ({"name": "sgd"}, 2, 0.3, "held-out scans"),
        ({"name": "sgd"}, 2, 0.0, "last step was skipped"),
        ({"name": "adamw"}, 3, 0.3, "last 2 steps were skipped"),
    ],
)
def test_a_run_that_diverged_is_not_finished(
    optim: dict[str, Any], steps: int, val_share: float, reason: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    recipe = toy(optim=optim | {"lr": 1e30}, train={"clip": 0, "steps": steps}, data={"val_share": val_share})
    with pytest.raises(Diverged, match=rf"diverged at step {steps}: .*{reason}.*optim\.lr") as given_up:
        train(recipe, corpus=tiny_corpus, out=tmp_path / "run")
    assert given_up.value.exit_code == 1
    state = read_state(tmp_path / "run")
    assert state is not None
    assert state["status"] == "diverged"
    assert state["diverged"]["reason"] in str(given_up.value)

    def no_constant(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    lines = [json.loads(text, parse_constant=no_constant) for text in (tmp_path / "run" / "metrics.jsonl").open()]
    assert lines[-1]["step"] >= 2
    odd = [line for line in lines if "not_finite" in line]
    assert odd
    assert all(line[name] is None for line in odd for name in line["not_finite"])
    assert all(line["scans"] for line in lines if "skipped" in line)


def test_a_diverged_run_is_not_exported_without_a_word(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Diverged):
        train(toy(optim={"lr": 1e30, "name": "sgd"}, train={"clip": 0}), corpus=tiny_corpus, out=tmp_path / "run")
    capsys.readouterr()
    exported = export_run(tmp_path / "run")
    assert "diverged at step" in capsys.readouterr().err
    assert "diverged" in exported.card.text


def test_a_line_of_metrics_names_what_json_cannot_say() -> None:
    line = json.loads(metrics_line({"step": 1, "loss": math.nan, "lr": 0.1, "norm": -math.inf}))
    assert line == {"step": 1, "loss": None, "lr": 0.1, "norm": None, "not_finite": {"loss": "nan", "norm": "-inf"}}
