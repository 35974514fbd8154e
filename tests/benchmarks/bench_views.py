"""What a sample of each view of pictures costs: what is done once a series, an upright box, a turned one.

    python tests/benchmarks/bench_views.py --json views.json
    python tests/benchmarks/bench_views.py --json views.json --edge 48 --rounds 1   # in seconds

A head of ellipsoids at 0.5 mm, as a CT and as an MRI, seen by the recipes of docs/baselines.md, on one thread. Medians
are reported, of processor time, since other work may run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench_predict import cpu_name, head_of

from finetune.augment import draw_pose
from finetune.recipe import Recipe
from finetune.tasks import make_task
from finetune.views import make_view
from harmonize.scan import HU
from harmonize.voxels.stored import StoredVolume
from headspark.config import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("rsna_mip", "rsna_dual_stream", "rsna_stack32", "rsna_attention_mil")
SPACING_MM = 0.5
AROUND = 1.25
"""Edge of the head over that of the box: more than poses reach."""


def main() -> None:
    """Measure, write JSON, show."""
    parser = argparse.ArgumentParser(description="What a sample of each view of pictures costs.")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--edge", type=int, default=224, help="of the box in voxels")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: cost_of(name, arguments.edge, arguments.rounds) for name in NAMES}
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "torch": torch.__version__}
    arguments.json.write_text(json.dumps({"machine": machine, "edge": arguments.edge, "cpu_s": found}, indent=2) + "\n")
    for name, kinds in found.items():
        for kind, costs in kinds.items():
            print(f"{name:20s} {kind:4s} " + "  ".join(f"{what} {s:.2f} s" for what, s in costs.items()))


def cost_of(name: str, edge: int, rounds: int) -> dict[str, dict[str, float]]:
    """Processor seconds of a recipe's view, of a CT and an MRI."""
    recipe = read_recipe(Recipe, RECIPES / f"{name}.yaml")
    data = replace(recipe.data, patch=(edge,) * 3, spacing=None).completed(recipe.data.ct_windows, "soft")
    view = make_view(recipe.view, data, make_task(recipe.task))
    size = round(edge * AROUND)
    hu_XYZ = head_of((size,) * 3, (SPACING_MM,) * 3, 0)
    costs = {}
    for kind, unit in (("CT", HU), ("MRI", "zscore")):
        volume = StoredVolume(
            stored_XYZ=hu_XYZ.astype(np.int16), affine=np.diag([*(SPACING_MM,) * 3, 1.0]), slope=1.0, inter=0.0
        )
        box = (0, size) * 3
        region = view.cut(volume, unit=unit, foreground_box=box)
        drawn = view.draw(region, np.random.default_rng(0), 0)
        pose = draw_pose(recipe.augment, np.random.default_rng(0))
        cut = partial(view.cut, volume, unit=unit, foreground_box=box)
        costs[kind] = {
            "once a series": cpu_of(cut, rounds),
            "upright": cpu_of(partial(view.sample, drawn), rounds),
            "turned": cpu_of(partial(view.sample, drawn, pose), rounds),
        }
    return costs


def cpu_of(work: Callable[[], Any], rounds: int) -> float:
    """Median processor seconds, after once that does not count."""
    costs = []
    for _ in range(rounds + 1):
        began = time.process_time()
        work()
        costs.append(time.process_time() - began)
    return statistics.median(costs[1:])


if __name__ == "__main__":
    main()
