"""Time of a fine-tuning step: encoder frozen, its deeper blocks free, all of it free; beside another checkout.

    python tests/benchmarks/bench_finetune_step.py --json step.json
    git worktree add ../before COMMIT
    python tests/benchmarks/bench_finetune_step.py --json step.json --against ../before
    python tests/benchmarks/bench_finetune_step.py --json step.json --preset demo --patch 32 --rounds 2   # in a minute

Each checkout runs its own `finetune train` in one process, on the tests' small corpus, with a recipe whose stages last
a step each: frozen, deeper, all, and again. So what is measured is the step that a user has: forward, backward,
clipping and optimizer; making the samples is left out. Two checkouts take turns, a round each, in one order and the
reverse. Medians are reported, and how much faster a step is than one in which all trains; look at processor time where
others share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from bench_harmonize import THREADS, describe_machine

from headspark.config import to_plain
from headspark.encoder import PRESETS

HERE = Path(__file__).resolve().parents[2]
CORPUS = HERE / "tests" / "fixtures" / "v0_1_0" / "corpus"
"""Every version since 0.1.0 reads it."""

OURS, THEIRS = "this", "other"
KINDS = ("frozen", "deeper", "all")
CLOCKS = ("cpu_s", "wall_s")
WANTED_FASTER, WANTED_RATIO = 1.5, 1.05
DEEPER_LAYERS = 2

WORKER = """
import json, os, sys, time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import finetune
from finetune import train

take = train.train_step
waited = [0.0, 0.0]

def clocks():
    return time.perf_counter(), time.process_time()

def timed(batches):
    while True:
        began = clocks()
        batch = next(batches)
        waited[:] = [total + now - then for total, now, then in zip(waited, clocks(), began)]
        yield batch

def train_step(state, batches, *rest):
    if not sys.stdin.readline():
        os._exit(0)
    waited[:] = [0.0, 0.0]
    began = clocks()
    result = take(state, timed(batches), *rest)
    wall, cpu = (now - then - wait for now, then, wait in zip(clocks(), began, waited))
    print(json.dumps({"wall_s": wall, "cpu_s": cpu}), file=answers, flush=True)
    return result

train.train_step = train_step
print(json.dumps(finetune.__file__), file=answers, flush=True)
sys.exit(train.main(sys.argv[1:]))
"""
"""Trains with the checkout on PYTHONPATH, a step for each line that it reads."""


def main() -> None:
    """Measure what the command line asks for and write it as JSON."""
    arguments = parse()
    checkouts = {OURS: HERE} | ({} if arguments.against is None else {THEIRS: arguments.against.resolve()})
    places = ("json", "against")
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "settings": {name: value for name, value in vars(arguments).items() if name not in places},
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        sides = {side: Worker(checkout, Path(scratch) / side, arguments) for side, checkout in checkouts.items()}
        steps: dict[str, list[dict[str, dict[str, float]]]] = {side: [] for side in sides}
        for turn in range(arguments.rounds + 1):
            for side in sides if turn % 2 else reversed(sides):
                steps[side].append({kind: sides[side].step() for kind in KINDS})
        for worker in sides.values():
            worker.close()
    for side, rounds in steps.items():
        result[side] = {kind: summarise([one[kind] for one in rounds[1:]]) for kind in KINDS}
        result[side]["faster_than_all"] = {
            kind: {clock: result[side]["all"][clock] / result[side][kind][clock] for clock in CLOCKS} for kind in KINDS
        }
    if THEIRS in result:
        result["ratio"] = {
            kind: {clock: result[OURS][kind][clock] / result[THEIRS][kind][clock] for clock in CLOCKS} for kind in KINDS
        }
    result["load_at_end"] = os.getloadavg()
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--against", type=Path, help="another checkout's folder")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="resenc_s")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds; one more warms up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    return parser.parse_args()


class Worker:
    """A process that fine-tunes with one checkout, step by step.

    Args:
        checkout: The checkout's folder.
        folder: Gets the recipe, a copy of the corpus, the run and the log.
        arguments: Sizes.
    """

    def __init__(self, checkout: Path, folder: Path, arguments: argparse.Namespace) -> None:
        folder.mkdir()
        shutil.copytree(CORPUS, folder / "corpus")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(arguments)))
        self._log = folder / "log"
        environment = {"PYTHONPATH": os.pathsep.join(str(path) for path in (checkout, checkout / "ssl"))}
        environment |= dict.fromkeys(THREADS, str(arguments.threads))
        if arguments.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, "--config", "recipe.yaml", "--corpus", "corpus", "--out", "run"],
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
        )
        found = Path(self._answer())
        if not found.is_relative_to(checkout):
            sys.exit(f"error: {checkout}: holds no finetune; python took {found}")

    def step(self) -> dict[str, float]:
        """Take the next step; seconds of it on each clock."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"error: the process ended:\n{self._log.read_text()[-2000:]}")
        return json.loads(line)


def recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    """A fine-tuning recipe with keys that every version knows; one step more than is measured keeps it from ending."""
    encoder = to_plain(PRESETS[arguments.preset])
    rates = {
        "frozen": {"head_lr": 1e-4},
        "deeper": {"head_lr": 1e-4, "encoder_lr": 1e-6, "layers": DEEPER_LAYERS},
        "all": {"head_lr": 1e-4, "encoder_lr": 1e-5, "layers": "all"},
    }
    return {
        "data": {"patch": [arguments.patch] * 3, "spacing": 2.0, "folds": 2, "mirror": False, "workers": 0},
        "scratch": {key: encoder[key] for key in ("features", "blocks", "strides")},
        "head": {"stride": 4, "width": 64},
        "stages": [
            {"name": f"{kind} {number}", "steps": 1, **rates[kind]}
            for number in range(arguments.rounds + 2)
            for kind in KINDS
        ],
        "train": {"batch": arguments.batch, "threads": arguments.threads, "checkpoint_every": 10**6},
    }


def summarise(steps: list[dict[str, float]]) -> dict[str, Any]:
    """Give the median of each clock, the lowest processor time, and all that was measured."""
    medians = {clock: statistics.median(step[clock] for step in steps) for clock in CLOCKS}
    return {**medians, "lowest cpu_s": min(step["cpu_s"] for step in steps), "all": steps}


def show(result: dict[str, Any]) -> None:
    """Print the figures as a Markdown table."""
    print(
        "| checkout | step | processor s | faster than all | wall s | faster than all |\n|---|---|---:|---:|---:|---:|"
    )
    for side in (OURS, THEIRS):
        for kind in KINDS if side in result else ():
            figures = [
                f"{result[side][kind][clock]:.3f} | {result[side]['faster_than_all'][kind][clock]:.2f}"
                for clock in CLOCKS
            ]
            print(f"| {side} | {kind} | {' | '.join(figures)} |")
    print(f"wanted: frozen at least {WANTED_FASTER} times faster than all")
    for kind, ratio in result.get("ratio", {}).items():
        print(f"{kind}: {ratio['cpu_s']:.3f} of the other checkout's processor time; wanted: at most {WANTED_RATIO}")


if __name__ == "__main__":
    main()
