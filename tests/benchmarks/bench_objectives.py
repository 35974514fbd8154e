"""What objectives beside the masked one are worth at equal compute: pretrain with each, and ask frozen features.

    python tests/benchmarks/bench_objectives.py --out BENCH --json objectives.json
    python tests/benchmarks/bench_objectives.py --out BENCH --json objectives.json --arms masked vessels hybrid both
    python tests/benchmarks/bench_objectives.py --out TOY --json toy.json --unlabelled 4 --pairs 6 --steps 4 --seeds 2

Everything is a phantom of RSNA's series, of the hard kind. What is pretrained on has no labels; what is asked are pairs
of series of one head, scanned alike, with a sac and without. An arm is the recipe of `demo.yaml` on patches of 64 with
the section `vessels` of `demo_vessels.yaml`, the section `hybrid` of `demo_hybrid.yaml`, both, or neither; ``random``
is not pretrained. Processor time of a step of each arm is measured first, arms taking turns; `--steps` is the number of
the masked arm, and the others take as many as fit into the same time, less what looking for vessels takes once.

Frozen features at single places, of the encoder's maps of stride 4 and 8, are judged by logistic regressions,
cross-validated over heads:

- `sac`: is there a sac at this place? Asked at the place of each sac, in the series with it and in its twin. Given are
  the area under the ROC curve, and in how many pairs the series with the sac has the higher score;
- `vessel`: does a vessel run here? The mean over series of the area under the curve.

Differences to the masked arm are paired: the same heads and seeds are drawn, 1,000 times. Each cell (arm and seed) is
kept in `--out`, and so are costs; a run that was stopped, or is given more arms or seeds, goes on with those that are
missing, and one of other settings is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from frozen_places import FOLDS, Cell, asked, vessels_found
from paired_arms import differences, summary
from torch import nn

from harmonize.corpus import Corpus, read_volume
from harmonize.files import atomic_path, write_json
from headspark.config import read_recipe, to_yaml
from headspark.data.batches import train_batches
from headspark.data.cohort import read_cohort
from headspark.data.ram_store import RamStore
from headspark.data.samples import TrainSamples
from headspark.encoder import build_encoder
from headspark.hub.export import export_run
from headspark.pretraining.state import prepare
from headspark.recipe import Recipe
from headspark.run.device import make_accelerator
from headspark.run.interrupt import Interrupt
from headspark.train import train_step
from headspark.vessels import find_vessels, look_of

ROOT = Path(__file__).resolve().parents[2]
PATCH, REGION_MM = 64, 112
"""Voxels of a patch, and edge of the boxes that are stored."""

ARMS = {"masked": (), "vessels": ("vessels",), "hybrid": ("hybrid",), "both": ("vessels", "hybrid"), "random": ()}
MEASURED = ("val_loss", "val_vessel_distance", "agreement", "embedding_std")
"""What is kept of the last lines of a run's metrics.jsonl."""

SHARED = ("steps", "unlabelled", "pairs", "size", "threads")
"""Settings that all cells in a folder were made with."""

ROUNDS = 12
"""Steps of each arm that are timed, after two that are not."""


def main() -> None:
    """Measure what the command line asks for and write it as JSON."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    check_settings(arguments)
    unlabelled = corpus_of(arguments, "unlabelled", arguments.unlabelled, seed=1)
    pairs = corpus_of(arguments, "pairs", 2 * arguments.pairs, seed=2, extra=["--counterfactuals"])
    recipes = {arm: recipe_of(arm, arguments) for arm in arguments.arms}
    costs = costs_of(recipes, arguments.out / "costs.json", lambda some: measured_costs(some, unlabelled))
    budget = arguments.steps * costs["step_seconds"]["masked"]
    result: dict[str, Any] = {
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("json", "out")},
        "torch": torch.__version__,
        "costs": costs,
        "vessels_found": kept(arguments.out / "found.json", lambda: vessels_found(pairs)),
        "steps": {arm: steps_within(budget, arm, recipe, costs) for arm, recipe in recipes.items()},
    }
    cells: dict[str, list[Cell]] = {arm: [] for arm in arguments.arms}
    for seed in range(arguments.seeds):
        for arm, recipe in recipes.items():
            ready = of_length(recipe, max(result["steps"][arm], 1), seed)
            cells[arm].append(kept(
                arguments.out / "cells" / f"{arm}_{seed}.json",
                lambda arm=arm, seed=seed, ready=ready: judged(arm, seed, ready, unlabelled, pairs, arguments),
            ))  # fmt: skip
            print(f"{arm}, seed {seed}: {summary(cells[arm][-1:])}", flush=True)
    result["found"] = {arm: summary(ones) for arm, ones in cells.items()}
    result["differences"] = {arm: differences(ones, cells["masked"]) for arm, ones in cells.items() if arm != "masked"}
    result["cells"] = cells
    with atomic_path(arguments.json) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--out", type=Path, required=True, help="folder of corpora, runs and finished cells")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["masked", "vessels", "hybrid", "random"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="of the masked arm; default %(default)s")
    parser.add_argument("--unlabelled", type=int, default=160, help="series to pretrain on; default %(default)s")
    parser.add_argument("--pairs", type=int, default=60, help="heads that are asked about; default %(default)s")
    parser.add_argument("--size", type=int, default=160, help="voxels of a raw scan's longest side")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if "masked" not in arguments.arms:
        parser.error("--arms: masked must be one of them, for the others are compared with it")
    if arguments.pairs < FOLDS:
        parser.error(f"--pairs {arguments.pairs}: give {FOLDS} or more, for as many folds")
    return arguments


def check_settings(arguments: argparse.Namespace) -> None:
    """Keep what all cells of a folder share, or leave with one line where it is not what they began with."""
    now = {name: getattr(arguments, name) for name in SHARED}
    before = kept(arguments.out / "settings.json", lambda: now)
    for name, value in now.items():
        if before.get(name) != value:
            sys.exit(f"{arguments.out}: began with --{name} {before.get(name)}, not {value}; give --out a new folder")


# What is trained ---------------------------------------------------------------------------------------------------


def corpus_of(arguments: argparse.Namespace, name: str, scans: int, *, seed: int, extra: Sequence[str] = ()) -> Path:
    """Write a hard phantom and harmonize it, unless that was done; the corpus, beside its raw tree."""
    raw, corpus, done = (arguments.out / part for part in (f"{name}_raw", name, f"{name}.done"))
    if not done.exists():
        source = ["--source", "rsna", "--difficulty", "hard", "--size", arguments.size, "--seed", seed, *extra]
        call("-m", "harmonize", "phantom", *source, "--scans", scans, "--out", raw)
        box = ["--region", "circle", "--region-mm", REGION_MM, "--spacing", "1"]
        call("-m", "harmonize", "rsna", raw / "rsna", "--out", corpus, *box)
        done.touch()
    return corpus


def recipe_of(arm: str, arguments: argparse.Namespace) -> Recipe:
    """The recipe of an arm: that of the demo, with the sections of the recipes that show them."""
    base = read_recipe(Recipe, ROOT / "recipes" / "demo.yaml")
    sections = {name: getattr(read_recipe(Recipe, ROOT / "recipes" / f"demo_{name}.yaml"), name) for name in ARMS[arm]}
    data = replace(base.data, patch=PATCH, workers=0, val_share=0.05, cache="ram")
    seldom: dict[str, Any] = {
        "log_every": 50,
        "validate_every": 0,
        "picture_every": 0,
        "checkpoint_every": 200,
        "trackers": (),
    }
    return of_length(replace(base, data=data, **sections), arguments.steps, 0, **seldom, threads=arguments.threads)


def of_length(recipe: Recipe, steps: int, seed: int, **train: Any) -> Recipe:
    """A recipe of so many steps, of which a tenth warms up, but not more than its own."""
    warmup = min(recipe.optim.warmup, steps // 10)
    return replace(
        recipe, optim=replace(recipe.optim, warmup=warmup), train=replace(recipe.train, steps=steps, seed=seed, **train)
    )


def costs_of(
    recipes: Mapping[str, Recipe], path: Path, measure: Callable[[Mapping[str, Recipe]], dict[str, Any]]
) -> dict[str, Any]:
    """What each arm costs: what was kept, and what is measured of the arms that are not in it.

    A machine is not always as fast, so those are timed beside the masked arm again, and take from it their ratio alone.

    Args:
        recipes: By arm.
        path: Where costs are kept.
        measure: As `measured_costs`, of some of them.
    """
    costs: dict[str, Any] = kept(path, lambda: measure(recipes))
    missing = [arm for arm in recipes if arm != "random" and arm not in costs["ratio"]]
    if missing:
        found = measure({arm: recipes[arm] for arm in ("masked", *missing)})
        for arm in missing:
            costs["ratio"][arm] = found["ratio"][arm]
            costs["step_seconds"][arm] = found["ratio"][arm] * costs["step_seconds"]["masked"]
            costs["all_seconds"][arm] = found["all_seconds"][arm]
        write_json(path, costs)
    return costs


def measured_costs(recipes: Mapping[str, Recipe], corpus: Path) -> dict[str, Any]:
    """Processor time of a whole step of each arm, data included, in turns; and of looking for vessels, a scan."""
    steps = {arm: steps_of(recipe, corpus) for arm, recipe in recipes.items() if arm != "random"}
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    for turn in range(ROUNDS + 2):
        for arm in steps if turn % 2 else reversed(steps):
            began = time.process_time()
            next(steps[arm])
            seconds[arm].append(time.process_time() - began)
    medians = {arm: statistics.median(values[2:]) for arm, values in seconds.items()}
    opened, looks = Corpus.open(corpus), []
    for row in opened.scans.head(ROUNDS).to_dict("records"):
        volume, look = read_volume(opened.path / row["image_file_name"]), look_of(row["modality"])
        if look is not None:
            began = time.process_time()
            find_vessels(volume.values(), volume.spacing, unit=row["unit"], look=look)
            looks.append(time.process_time() - began)
    return {
        "step_seconds": medians,
        "ratio": {arm: value / medians["masked"] for arm, value in medians.items()},
        "all_seconds": seconds,
        "look_seconds_a_scan": statistics.mean(looks) if looks else 0.0,
        "scans": len(opened.scans),
        "load": os.getloadavg(),
    }


def steps_of(recipe: Recipe, corpus: Path) -> Iterator[object]:
    """Steps of a run, one after the other, as `headspark pretrain` takes them."""
    accelerator = make_accelerator(precision=recipe.train.precision, threads=recipe.train.threads, out=corpus)
    cohort = read_cohort(Corpus.open(corpus), recipe.data)
    few = replace(
        cohort,
        scans=cohort.scans[:8],
        train=tuple(range(min(8, len(cohort.scans)))),
        val=(),
        weights=(1.0,) * min(8, len(cohort.scans)),
    )
    state = prepare(of_length(recipe, ROUNDS + 2, 0), accelerator)
    samples = TrainSamples(
        few, RamStore(few.scans, recipe.decoder_of_scans), recipe.sampling,
        samples_per_step=state.plan.samples_per_step,
    )  # fmt: skip
    with closing(train_batches(samples, state.plan, recipe.data, first_step=0, pin=False)) as batches:
        while True:
            yield train_step(state, batches, Interrupt())


def steps_within(budget: float, arm: str, recipe: Recipe, costs: Mapping[str, Any]) -> int:
    """How many steps of an arm fit into a time, less what looking for vessels takes."""
    if arm == "random":
        return 0
    once = costs["scans"] * costs["look_seconds_a_scan"] if recipe.vessels.wanted else 0.0
    return max(round((budget - once) / costs["step_seconds"][arm]), 1)


def judged(arm: str, seed: int, recipe: Recipe, unlabelled: Path, pairs: Path, arguments: argparse.Namespace) -> Cell:
    """Pretrain an encoder, unless the arm does not, and ask its features."""
    cell: Cell = {}
    if arm == "random":
        torch.manual_seed(seed)
        encoder: nn.Module = build_encoder(recipe.encoder)
    else:
        run = arguments.out / "runs" / f"{arm}_{seed}"
        run.parent.mkdir(exist_ok=True)
        config = run.with_suffix(".yaml")
        config.write_text(to_yaml(recipe))
        if not (run / "run.json").exists() or json.loads((run / "run.json").read_text())["status"] != "finished":
            call(ROOT / "ssl" / "pretrain.py", "--config", config, "--corpus", unlabelled, "--out", run)
        encoder = export_run(run).model.encoder
        last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for line in last:
            cell |= {name: line[name] for name in MEASURED if name in line}
    return cell | asked(encoder.eval(), recipe, pairs)


# How it is kept and shown ---------------------------------------------------------------------------------------------


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What lies in a file, or is made and put there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return json.loads(path.read_text())


def call(*arguments: object) -> None:
    """Run a Python command at the root of the repository."""
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def show(result: Mapping[str, Any]) -> None:
    """Print the figures as a Markdown table."""
    names = ("sac_auc", "sac_pairs", "vessel_auc")
    print(f"| arm | steps | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for arm, found in result["found"].items():
        cells = [f"{found[name]:.3f}" for name in names]
        if arm in result["differences"]:
            gaps = [result["differences"][arm][name] for name in names]
            cells = [f"{cell} ({gap['difference']:+.3f}, {gap['low']:+.3f} to {gap['high']:+.3f})"
                     for cell, gap in zip(cells, gaps, strict=True)]  # fmt: skip
        print(f"| {arm} | {result['steps'][arm]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
