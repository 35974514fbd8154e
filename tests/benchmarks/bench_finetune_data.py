"""Processor time that a sample of fine-tuning costs: in the loader, and in being made of what the loader hands over.

    python tests/benchmarks/bench_finetune_data.py --json data.json
    python tests/benchmarks/bench_finetune_data.py --json data.json --patch 64 64 64 --samples 8   # in seconds

The corpus is one of noise, on disk, with vessel masks. The loader reads through each kind of cache; a sample is made on
one thread of the processor, where an accelerator would do it otherwise: upright, posed, posed with a mask, and with all
changes of intensity. Medians are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from finetune.augment import AugmentConfig
from finetune.regions import RegionDecoder, RegionStore
from finetune.samples import DataConfig, Drawn, TrainingSamples, join, make_inputs, make_targets
from finetune.series import UPRIGHT, Case, Spot
from finetune.tasks.aneurysm import AneurysmTask
from finetune.views import make_view
from finetune.views.box import BoxConfig
from harmonize.corpus import write_volume
from harmonize.scan import HU
from harmonize.voxels.stored import StoredVolume
from headspark.data.cache import cached

SPACING_MM = 0.8
ROOM = 1.3
"""Edge of a series over that of the patch."""

Mode = Literal["ram", "disk", "none"]


def main() -> None:
    """Measure, write JSON, show."""
    arguments = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cases = write_cases(Path(folder), arguments.patch, arguments.series)
        result = {
            "machine": {"cpu": platform.processor(), "cores": os.cpu_count(), "torch": torch.__version__},
            "patch": arguments.patch,
            "loader_cpu_s": {mode: loader(cases, mode, arguments, Path(folder)) for mode in ("ram", "disk", "none")},
            "made_cpu_s": made(cases, arguments),
        }
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"a sample of {' x '.join(map(str, arguments.patch))} voxels, seconds of one core:")
    for part in ("loader_cpu_s", "made_cpu_s"):
        for name, seconds in result[part].items():
            print(f"  {part.removesuffix('_cpu_s'):<8} {name:<24} {seconds:.3f}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--patch", type=int, nargs=3, default=[192, 224, 192])
    parser.add_argument("--series", type=int, default=4)
    parser.add_argument("--samples", type=int, default=12, help="measured; two more warm up")
    return parser.parse_args()


def write_cases(folder: Path, patch: list[int], count: int) -> list[Case]:
    """Series of noise with a mask and a point each."""
    generator = np.random.default_rng(0)
    shape = [round(edge * ROOM) for edge in patch]
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    cases = []
    for number in range(count):
        voxels = generator.normal(40, 200, shape).astype(np.int16)
        mask = np.zeros(shape, np.uint8)
        mask[tuple(slice(edge // 2, edge // 2 + 4) for edge in shape)] = 1 + number % 13
        for name, array in (("image", voxels), ("mask", mask)):
            write_volume(folder / f"{name}{number}.nii.gz", StoredVolume(stored_XYZ=array, affine=affine))
        x, y, z = (SPACING_MM * edge / 2 for edge in shape)
        cases.append(
            Case(
                scan_id=str(number),
                subject=str(number),
                modality="CTA",
                unit=HU,
                image=folder / f"image{number}.nii.gz",
                mask=folder / f"mask{number}.nii.gz",
                foreground_box=tuple(bound for edge in shape for bound in (0, edge)),
                labels=tuple(int(n in (0, 13)) for n in range(14)),
                spots=(Spot(label=0, xyz_mm=(x, y, z)),),
                shape=tuple(shape),
                spacing=(SPACING_MM,) * 3,
                sha256=f"{number:064d}",
                mask_sha256=f"{number:064d}",
            )
        )
    return cases


def settings(arguments: argparse.Namespace, **more: Any) -> DataConfig:
    """The section of the recipe."""
    return DataConfig(patch=tuple(arguments.patch), **more)


def loader(cases: list[Case], mode: Mode, arguments: argparse.Namespace, folder: Path) -> float:
    """What drawing a sample and reading its region costs."""
    task = AneurysmTask()
    data = settings(arguments, cache=mode, cache_dir=str(folder / "cache"))
    view = make_view(BoxConfig(), data, task)
    with cached(
        cases, data, decoder=RegionDecoder(view), run_name="bench", local_rank=0, local_ranks=1,
        agree=lambda choice: choice, wait=lambda: None, say=lambda line: None,
    ) as regions:  # fmt: skip
        samples = TrainingSamples(RegionStore(cases, view, regions), task, data, AugmentConfig(), seed=0)
        return median_cpu(lambda number: join([samples[number]]), arguments.samples)


def made(cases: list[Case], arguments: argparse.Namespace) -> dict[str, float]:
    """What making samples costs, by what is done."""
    task, data = AneurysmTask(), settings(arguments)
    view = make_view(BoxConfig(), data, task)
    everything = AugmentConfig(elastic=4.0, gamma=0.3, blur=3.0, low_resolution=1.0)
    plain = AugmentConfig(noise=0.0, contrast=0.0, brightness=0.0)
    found = {}
    for name, config, upright, masks in (
        ("upright", plain, True, False),
        ("posed", plain, False, False),
        ("posed, with mask", plain, False, True),
        ("posed, noise", AugmentConfig(), False, False),
        ("all of augment", everything, False, True),
    ):
        chosen = cases if masks else [drop_mask(case) for case in cases]
        samples = TrainingSamples(RegionStore(chosen, view), task, data, config, seed=0)
        drawn = [samples[number] for number in range(arguments.samples + 2)]
        if upright:
            drawn = [set_upright(one) for one in drawn]

        def make(number: int, drawn: list[Drawn] = drawn) -> object:
            batch = join([drawn[number]])
            targets = make_targets(batch, view, task, cells={"presence": 4, "territory": 4})
            return targets, make_inputs(batch, view)

        found[name] = median_cpu(make, arguments.samples)
    return found


def drop_mask(case: Case) -> Case:
    """The same without a mask."""
    return Case(**{name: getattr(case, name) for name in case.__slots__} | {"mask": None})


def set_upright(drawn: Drawn) -> Drawn:
    """The same in the pose of validation."""
    return Drawn(**{name: getattr(drawn, name) for name in drawn.__slots__} | {"pose": UPRIGHT})


def median_cpu(work: Callable[[int], object], samples: int) -> float:
    """Median processor time of some work, numbered from 0."""
    seconds = []
    for number in range(samples + 2):
        began = time.process_time()
        work(number)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    main()
