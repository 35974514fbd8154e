"""Segmentation beside nnU-Net's own trainer: mean Dice on brains of phantoms, at the same network, patch and steps.

    python -m venv NNUNET && NNUNET/bin/pip install -e . nnunetv2
    python tests/benchmarks/bench_masks_parity.py --json parity.json --nnunet-python NNUNET/bin/python

Both learn from the same series of one harmonized corpus, split alike and on the same grid; nnU-Net is handed the
channels that headspark's network sees, so neither normalises by itself. Both have nnU-Net's residual encoder U-Net,
Dice and cross-entropy at the same scales and weights, SGD with Nesterov's momentum and the polynomial rate, patches of
which half lie around the structure (what nnU-Net makes of its 0.33 in batches of two), and only left and right swapped.
Held-out series are segmented whole, by tiles that overlap by half, and their mirror images.

Not the same: nnU-Net's Dice counts classes that a patch lacks, headspark's leaves them out.
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
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
import yaml

from harmonize.corpus import Corpus, read_volume
from headspark.channels import to_network_input

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/masks_segmentation.yaml"
STRIDES = (1, 2, 2, 2)
WINDOWS = ("brain",)
RATE, MOMENTUM, DECAY, CLIP = 1e-2, 0.99, 3e-5, 12.0
EPOCHS = 100
"""Of nnU-Net's, which changes the rate after each; headspark does so after each step. With few of them nnU-Net's rate
would be higher all along, and end at a tenth."""


def main() -> None:
    """Measure what the command line asks for and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--nnunet-python", type=Path, help="a Python that has nnunetv2 and what headspark needs")
    parser.add_argument("--raw", type=Path, help="tree of `harmonize phantom --source nifti`; default: writes one")
    parser.add_argument("--scans", type=int, default=24, help="images")
    parser.add_argument("--size", type=int, default=56, help="voxels along an image's longest side")
    parser.add_argument("--spacing", type=float, default=4.0, help="mm, of the corpus")
    parser.add_argument("--patch", type=int, default=32, help="voxels along each edge")
    parser.add_argument("--features", type=int, nargs=4, default=[8, 16, 32, 64], help="channels of the four stages")
    parser.add_argument("--steps", type=int, default=800, help=f"of two patches; a multiple of {EPOCHS}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer is not None:
        train_peer(arguments.peer, json.loads((arguments.peer / "job.json").read_text()))
        return
    if arguments.json is None or arguments.nnunet_python is None:
        parser.error("--json and --nnunet-python are needed")
    if arguments.steps % EPOCHS:
        parser.error(f"--steps {arguments.steps}: must be a multiple of {EPOCHS}")
    with tempfile.TemporaryDirectory() as scratch:
        compare(arguments, Path(scratch))


def compare(arguments: argparse.Namespace, scratch: Path) -> None:
    """Train both, seed by seed, and write the figures after each."""
    corpus = make_corpus(arguments, scratch)
    names = ("scans", "size", "spacing", "patch", "features", "steps")
    settings = {name: getattr(arguments, name) for name in names} | {"nnunet_epochs": EPOCHS}
    found: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        began = time.perf_counter()
        ours = train_ours(corpus, arguments, seed, scratch / f"ours_{seed}")
        middle = time.perf_counter()
        held_out = sorted(ours["scan_id"])
        theirs = peer(corpus, arguments, seed, held_out, scratch / f"peer_{seed}")
        line: dict[str, Any] = {
            "seed": seed,
            "headspark": float(ours["dice: brain"].mean()),
            "nnunet": theirs["dice"],
            "headspark_seconds": middle - began,
            "nnunet_seconds": time.perf_counter() - middle,
            "held_out": len(held_out),
            "training": theirs["training"],
        }
        found.append(line | {"difference": line["headspark"] - line["nnunet"]})
        print(json.dumps(found[-1]), flush=True)
        means = {name: statistics.mean(one[name] for one in found) for name in ("headspark", "nnunet", "difference")}
        arguments.json.write_text(
            json.dumps({"settings": settings, "nnunetv2": theirs["version"], "seeds": found, "mean": means}, indent=2)
            + "\n"
        )
    print(f"mean Dice: headspark {means['headspark']:.3f}, nnU-Net {means['nnunet']:.3f}: {means['difference']:+.3f}")


def make_corpus(arguments: argparse.Namespace, scratch: Path) -> Corpus:
    """Phantoms with one structure, the brain: mirrored without a swap, the hemispheres could not be told apart."""
    raw = arguments.raw
    if raw is None:
        raw = scratch / "raw"
        sizes = ("--scans", arguments.scans, "--size", arguments.size)
        call("-m", "harmonize", "phantom", "--source", "nifti", "--out", raw, *sizes, "--workers", 1)
    masks = scratch / "masks"
    labels = raw / "nifti/derivatives/hemispheres"
    for path in sorted(labels.rglob("*.nii.gz")):
        image = nib.load(path)
        target = masks / path.relative_to(labels)
        target.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8), image.affine), target)
    (masks / "dseg.tsv").write_text("index\tname\n1\tbrain\n")
    out = scratch / "corpus"
    given = ("--masks", masks, "--out", out, "--spacing", arguments.spacing, "--workers", 0)
    call("-m", "harmonize", "nifti", raw / "nifti", *given)
    return Corpus.open(out)


def train_ours(corpus: Corpus, arguments: argparse.Namespace, seed: int, out: Path) -> pd.DataFrame:
    """The held-out series of a run of `finetune train`, with the Dice of each."""
    plain = yaml.safe_load(RECIPE.read_text())
    plain["data"] |= {"ct_windows": list(WINDOWS), "patch": [arguments.patch] * 3, "spacing": None, "workers": 0}
    plain["augment"] = {
        "mirror": 0.5, **dict.fromkeys(("rotate", "scale", "shift", "contrast", "brightness", "noise"), 0.0),
    }  # fmt: skip
    plain["scratch"] = {
        "in_channels": len(WINDOWS), "features": arguments.features, "blocks": [1] * 4, "strides": list(STRIDES),
    }  # fmt: skip
    plain["view"]["foreground_share"] = 0.5
    plain["head"]["deep_supervision"] = 1
    plain["losses"] = [
        {"kind": "dice_ce", "of": "masks", "weight": 2 / 3},
        {"kind": "dice_ce", "of": "masks_2", "weight": 1 / 3},
    ]
    plain["stages"] = [
        {
            "name": "all", "steps": arguments.steps, "head_lr": RATE, "encoder_lr": RATE, "layers": "all",
            "schedule": "poly",
        }
    ]  # fmt: skip
    plain["train"] |= {
        "batch": 2, "precision": "fp32", "momentum": MOMENTUM, "weight_decay": DECAY, "clip": CLIP, "seed": seed,
        "validate_every": arguments.steps, "checkpoint_every": arguments.steps, "threads": 1,
    }  # fmt: skip
    recipe = out.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(plain))
    call("-m", "finetune.train", "--config", recipe, "--corpus", corpus.path, "--out", out)
    return pd.read_parquet(out / "predictions.parquet")


def peer(corpus: Corpus, arguments: argparse.Namespace, seed: int, held_out: list[str], folder: Path) -> dict[str, Any]:
    """Dice of nnU-Net on the same held-out series, trained on the others."""
    base = folder / "nnUNet_raw/Dataset001_Parity"
    for part in ("imagesTr", "labelsTr"):
        (base / part).mkdir(parents=True)
    training = []
    for row in corpus.scans[corpus.scans["mask_file_name"].notna()].to_dict("records"):
        image, mask = (read_volume(corpus.path / row[f"{kind}_file_name"]) for kind in ("image", "mask"))
        values = torch.from_numpy(np.ascontiguousarray(image.values()))
        x_XYZ = to_network_input(values, row["unit"], WINDOWS)[0].numpy()
        name = row["scan_id"]
        nib.save(nib.Nifti1Image(x_XYZ, image.affine), base / f"imagesTr/{name}_0000.nii.gz")
        truth = np.asarray(mask.stored_XYZ).astype(np.uint8)
        nib.save(nib.Nifti1Image(truth, image.affine), base / f"labelsTr/{name}.nii.gz")
        if name not in held_out:
            training.append(name)
    dataset = {
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, "brain": 1},
        "numTraining": len(training) + len(held_out),
        "file_ending": ".nii.gz",
    }
    (base / "dataset.json").write_text(json.dumps(dataset))
    sizes = {name: getattr(arguments, name) for name in ("patch", "features", "steps", "spacing")}
    job = {"seed": seed, "split": {"train": sorted(training), "val": held_out}, **sizes}
    (folder / "job.json").write_text(json.dumps(job))
    folders = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    call(
        __file__,
        "--peer",
        folder,
        python=arguments.nnunet_python,
        **folders,
        nnUNet_n_proc_DA="1",
        nnUNet_def_n_proc="1",
    )
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result | {"training": len(training)}


def train_peer(folder: Path, job: dict[str, Any]) -> None:
    """Plan, preprocess, train and validate with nnU-Net; in its own process, for the environment names its folders."""
    from importlib.metadata import version

    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class MirrorAlone(nnUNetTrainer):
        """nnU-Net's, with no augmentation but left and right (the last axis as SimpleITK reads)."""

        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
            rotation, dummy, _, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            self.inference_allowed_mirroring_axes = (2,)
            return rotation, dummy, self.configuration_manager.patch_size, (2,)

        @staticmethod
        def get_training_transforms(
            patch_size: Any,
            rotation_for_DA: Any,
            deep_supervision_scales: Any,
            mirror_axes: Any,
            *rest: Any,
            **more: Any,
        ) -> Any:
            from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

            transforms = nnUNetTrainer.get_validation_transforms(deep_supervision_scales)
            transforms.transforms.insert(0, MirrorTransform(allowed_axes=mirror_axes))
            return transforms

    torch.set_num_threads(1)
    extract_fingerprints([1], num_processes=1)
    plan_experiments([1], experiment_planner_class_name="nnUNetPlannerResEncM")
    base = folder / "nnUNet_preprocessed/Dataset001_Parity"
    path = base / "nnUNetResEncUNetMPlans.json"
    plans = json.loads(path.read_text())
    full = plans["configurations"]["3d_fullres"]
    full |= {"patch_size": [job["patch"]] * 3, "batch_size": 2, "spacing": [job["spacing"]] * 3, "batch_dice": False}
    full["architecture"]["arch_kwargs"] |= {
        "n_stages": 4,
        "features_per_stage": job["features"],
        "kernel_sizes": [[3] * 3] * 4,
        "strides": [[stride] * 3 for stride in STRIDES],
        "n_blocks_per_stage": [1] * 4,
        "n_conv_per_stage_decoder": [1] * 3,
    }
    path.write_text(json.dumps(plans))
    DefaultPreprocessor(verbose=False).run(1, "3d_fullres", path.stem, num_processes=1)
    shutil.copytree(folder / "nnUNet_raw/Dataset001_Parity/labelsTr", base / "gt_segmentations")
    (base / "splits_final.json").write_text(json.dumps([job["split"]]))
    dataset = json.loads((folder / "nnUNet_raw/Dataset001_Parity/dataset.json").read_text())
    os.environ.update(nnUNet_n_proc_DA="0")  # batches are made in this process, from the seed; planning wants one more
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])  # noqa: NPY002 - nnU-Net draws its patches from it
    plans["continue_training"] = False
    trainer = MirrorAlone(plans, "3d_fullres", 0, dataset, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = EPOCHS, job["steps"] // EPOCHS
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation/summary.json").read_text())
    result = {"dice": summary["foreground_mean"]["Dice"], "version": version("nnunetv2")}
    (folder / "result.json").write_text(json.dumps(result))


def call(*arguments: object, python: Path | str = sys.executable, **environment: str) -> None:
    """Run a Python command at the root of the repository; what it said is shown if it fails."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "ssl")))
    done = subprocess.run(
        [str(python), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))}\n{done.stdout[-4000:]}")


if __name__ == "__main__":
    main()
