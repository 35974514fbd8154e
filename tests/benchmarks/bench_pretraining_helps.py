"""Whether pretraining helps, and whether the `light` decoder costs quality: on phantoms, beside a random encoder.

    make demo                                                                  # writes the two corpora that are used
    python tests/benchmarks/bench_pretraining_helps.py --demo demo --json helps.json

For every seed an encoder is pretrained once with each decoder, by the recipes and the commands of the demo, and a third
stays as it was drawn. All three are judged twice:

- frozen: a linear classifier on the features of single cells says where a vessel runs, in series it has not seen;
- fine-tuned: the competition's score on the validation fold of the demo.

Reported are mean and standard deviation over the seeds. A handful of seeds on the few series of the demo proves
nothing: the modality of a series alone scores as high there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from harmonize.corpus import Corpus, read_volume
from headspark.channels import to_network_input
from headspark.config import read_recipe
from headspark.encoder import build_encoder
from headspark.hub.encoder_folder import Encoder
from headspark.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE, RECIPE_RSNA = ROOT / "recipes/demo.yaml", ROOT / "recipes/demo_rsna.yaml"
VARIANTS = ("light", "unet", "random")
EDGE = 64
"""Voxels of the cube that is probed, around the middle of the vessels."""

STRIDE = 2
"""Edge of a probed cell in voxels."""

CELLS = 1500
"""Of each kind and scan, at most."""


def main() -> None:
    """Measure what the command line asks for and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--demo", type=Path, required=True, help="folder of a finished demo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of pretraining")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    arguments.demo = arguments.demo.resolve()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.variants}
    for seed in range(arguments.seeds):
        for name in arguments.variants:
            with tempfile.TemporaryDirectory() as scratch:
                found[name].append(judge(name, seed, arguments, Path(scratch)))
            print(f"seed {seed}, {name}: {found[name][-1]}", flush=True)
            settings = {"steps": arguments.steps, "recipe": RECIPE.read_text(), "recipe_rsna": RECIPE_RSNA.read_text()}
            arguments.json.write_text(json.dumps({"settings": settings, "found": found}, indent=2) + "\n")
    show(found)


def judge(name: str, seed: int, arguments: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Pretrain one encoder and judge it."""
    result: dict[str, float] = {}
    if name == "random":
        torch.manual_seed(seed)
        encoder: nn.Module = build_encoder(read_recipe(Recipe, RECIPE).encoder).eval()
        starting_point: list[str] = []
    else:
        result |= pretrain(name, seed, arguments, scratch)
        encoder = Encoder.from_pretrained(str(scratch / "encoder"))
        starting_point = ["--encoder", str(scratch / "encoder")]
    result["vessel_auc"] = vessel_auc(encoder, Corpus.open(arguments.demo / "corpus_rsna"))
    call(
        *("-m", "finetune.train", "--config", RECIPE_RSNA, "--corpus", arguments.demo / "corpus_rsna"),
        *("--out", scratch / "finetuned", "--train.seed", seed, *starting_point),
    )
    last = metrics(scratch / "finetuned")[-1]
    return result | {"score": last["score"], "auc_present": last["auc_present"]}


def pretrain(decoder: str, seed: int, arguments: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Pretrain with a decoder, and export the encoder."""
    call(
        *("ssl/pretrain.py", "--config", RECIPE, "--corpus", arguments.demo / "corpus", "--out", scratch / "run"),
        *("--decoder.kind", decoder, "--train.seed", seed, "--train.steps", arguments.steps),
    )
    call("ssl/push.py", scratch / "run", "--folder", scratch / "encoder")
    lines = metrics(scratch / "run")
    return {
        "val_loss": [line["val_loss"] for line in lines if "val_loss" in line][-1],
        "step_seconds": statistics.median(line["seconds"] for line in lines if "seconds" in line),
    }


@torch.inference_mode()
def vessel_auc(encoder: nn.Module, corpus: Corpus) -> float:
    """How well frozen features of single cells tell vessels from the rest of the head, in scans that are new.

    Args:
        encoder: As exported.
        corpus: With vessel masks; every other masked scan is learnt from, the rest is asked about.
    """
    rows = corpus.scans[corpus.scans["mask_kind"] == "vessels"].sort_values("scan_id")
    cells = [
        cells_of(encoder, corpus.path / row.image_file_name, corpus.path / row.mask_file_name, row.unit, seed)
        for seed, row in enumerate(rows.itertuples())
    ]
    learnt, asked = cells[::2], cells[1::2]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    classifier.fit(np.concatenate([x for x, _ in learnt]), np.concatenate([y for _, y in learnt]))
    return statistics.mean(float(roc_auc_score(y, classifier.decision_function(x))) for x, y in asked)


def cells_of(
    encoder: nn.Module, image: Path, mask: Path, unit: str, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features (N, C) and truth (N,) of as many cells with a vessel as without."""
    vessels_XYZ = read_volume(mask).stored_XYZ > 0
    volume = read_volume(image)
    middle = [int(places.mean()) for places in np.nonzero(vessels_XYZ)]
    starts = [
        min(max(place - EDGE // 2, 0), max(size - EDGE, 0))
        for place, size in zip(middle, vessels_XYZ.shape, strict=True)
    ]
    cube = tuple(slice(start, start + EDGE) for start in starts)
    values_XYZ = torch.from_numpy(np.ascontiguousarray(volume.values()[cube]))
    padding = [pad for size in reversed(values_XYZ.shape) for pad in (0, EDGE - size)]
    values_XYZ = F.pad(values_XYZ, padding, value=float(values_XYZ.min()))
    truth_XYZ = F.pad(torch.from_numpy(np.ascontiguousarray(vessels_XYZ[cube])), padding)
    x_1CDHW = to_network_input(values_XYZ, unit, read_recipe(Recipe, RECIPE).data.ct_windows)[None]
    grid = (EDGE // STRIDE,) * 3
    maps = [F.interpolate(map_, grid, mode="trilinear") for map_ in encoder(x_1CDHW)]
    features_NC = torch.cat(maps, 1)[0].flatten(1).t().numpy()
    truth_N = F.max_pool3d(truth_XYZ[None, None].float(), STRIDE).flatten().numpy() > 0
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(truth_N), np.flatnonzero(~truth_N)]
    count = min(CELLS, *(len(kind) for kind in kinds))
    chosen = np.concatenate([rng.choice(kind, count, replace=False) for kind in kinds])
    return features_NC[chosen], truth_N[chosen]


def call(*arguments: object) -> None:
    """Run a Python command at the root of the repository."""
    command = [sys.executable, *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Read what a run wrote down."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Print the figures as a Markdown table."""
    names = sorted({name for results in found.values() for result in results for name in result})
    print(f"| encoder | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for variant, results in found.items():
        columns = [[result[name] for result in results if name in result] for name in names]
        cells = ["" if not values else f"{statistics.mean(values):.3f} ± {np.std(values):.3f}" for values in columns]
        print(f"| {variant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
