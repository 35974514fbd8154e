"""However a launcher ends, its ranks save what they have done and end too."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from headspark.run.checkpoint import load_newest
from headspark.run.claim import read_metrics, read_state

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures" / "v0_1_0"
BIN = Path(sys.executable).parent
ENDS_WITHIN_S = 15
MANY = 1_000_000
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
LAUNCHERS = {
    "accelerate": [BIN / "accelerate", "launch", "--num_processes", "1", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no"],
    "torchrun": [BIN / "torchrun", "--standalone", "--nproc_per_node", "2"],
}  # fmt: skip
PRETRAINING: dict[str, Any] = {
    "data": {"patch": 16, "workers": 0, "val_share": 0.3},
    "encoder": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
    "mask": {"block": 8, "ratio": 0.5},
    "decoder": {"stop_stride": 2, "width": 8},
    "train": {
        "steps": MANY, "batch": 1, "threads": 1, "log_every": 1, "checkpoint_every": MANY, "validate_every": 0,
        "val_samples": 1, "picture_every": 0, "trackers": [],
    },
}  # fmt: skip
FINE_TUNING: dict[str, Any] = {
    "data": {"patch": [16, 16, 16], "folds": 2},
    "scratch": {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
    "head": {"stride": 2, "width": 4, "top": 4},
    "stages": [{"name": "head", "steps": MANY, "head_lr": 0.001}],
    "train": {"batch": 1, "log_every": 1, "checkpoint_every": MANY, "threads": 1},
}


def wait_for(happened: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def launched(launcher: str, program: list[object], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher with its ranks, in a session of its own; nothing of it outlives the test."""
    words = [*LAUNCHERS[launcher], *program]
    process = subprocess.Popen([str(word) for word in words], env=ENVIRONMENT, start_new_session=True, **options)
    try:
        yield process
    finally:
        end_everything(Path(str(program[-1])))
        process.wait()


def end_everything(run: Path) -> None:
    for process in psutil.process_iter():
        if str(run) in _words(process):
            process.kill()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def ranks_of(run: Path) -> list[psutil.Process]:
    """Processes that train into a folder, wherever they hang in the tree of processes."""
    return [
        process
        for process in psutil.process_iter()
        if str(run) in (words := _words(process))
        and not {"launch", "--standalone"} & set(words)
        and process.status() != psutil.STATUS_ZOMBIE
    ]


def command(kind: str, corpus: Path, tmp_path: Path) -> list[object]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(PRETRAINING if kind == "pretraining" else FINE_TUNING))  # JSON is YAML
    if kind == "fine-tuning":
        corpus = tmp_path / "corpus"
        shutil.copytree(FIXTURES / "corpus", corpus)
    program = [ROOT / "ssl" / "pretrain.py"] if kind == "pretraining" else ["-m", "finetune.train"]
    return [*program, "--config", recipe, "--corpus", corpus, "--out", tmp_path / "run"]


def taken(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run)), default=0)


def assert_saved_and_ended(run: Path, log: Path) -> None:
    assert wait_for(lambda: not ranks_of(run), ENDS_WITHIN_S), f"{ranks_of(run)} still run\n{log.read_text()}"
    checkpoint = load_newest(run / "checkpoints", say=print)
    assert checkpoint is not None, log.read_text()
    state = read_state(run)
    assert state is not None
    assert (state["status"], state["step"]) == ("interrupted", checkpoint.step)
    assert checkpoint.step == taken(run) >= 3


@pytest.mark.parametrize(
    ("kind", "launcher", "ending"),
    [
        ("pretraining", "accelerate", signal.SIGKILL),
        ("fine-tuning", "torchrun", signal.SIGTERM),
        pytest.param("pretraining", "torchrun", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("fine-tuning", "accelerate", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_ranks_save_and_end_with_their_launcher(
    kind: str, launcher: str, ending: signal.Signals, tiny_corpus: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    with (
        log.open("wb") as stream,
        launched(launcher, command(kind, tiny_corpus, tmp_path), stdout=stream, stderr=stream) as process,
    ):
        assert wait_for(lambda: taken(run) >= 3, 120), log.read_text()
        process.send_signal(ending)
        assert_saved_and_ended(run, log)


def test_a_run_whose_terminal_hangs_up_saves_and_ends(tiny_corpus: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [str(word) for word in [*LAUNCHERS["accelerate"], *command("pretraining", tiny_corpus, tmp_path)]]
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe(words[0], words, ENVIRONMENT)
    try:
        os.set_blocking(terminal, False)

        def look() -> bool:
            with suppress(OSError), log.open("ab") as stream:
                stream.write(os.read(terminal, 65536))
            return taken(run) >= 3

        assert wait_for(look, 120), log.read_text()
        os.close(terminal)
        os.waitpid(process, 0)
        assert_saved_and_ended(run, log)
    finally:
        end_everything(run)
