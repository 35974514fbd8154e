"""What a prediction costs by stage: read, harmonize, cut, pose, forward; and a tree of small series, end to end.

    python tests/benchmarks/bench_predict.py --json predict.json
    python tests/benchmarks/bench_predict.py --json predict.json --slices 60 --series 4 --rounds 1   # in seconds

A CT angiogram of 512 x 512 pixels is written as DICOM files of one slice, and predicted from at 0.8 mm on one thread.
The forward pass is that of a small encoder, once: what a model of full size costs is its own matter. The tree is
answered as `finetune predict` answers it, by two workers. Imports are paid once, and told apart. Medians are reported,
of seconds and of processor time, since other work may run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.inference import classify
from finetune.model_folder import Bundle, save_bundle
from finetune.models.assemble import Network
from finetune.models.heads.cells import CellsConfig
from finetune.predict import Predictor
from finetune.predict.ensemble import read_panel
from finetune.predict.run import predict_paths
from finetune.samples import DataConfig
from finetune.tasks.aneurysm import AneurysmTask
from harmonize.phantom.acquisition import make_grid
from harmonize.phantom.dicom_files import CT_UNSIGNED, write_slices
from harmonize.pipeline import harmonize_scan
from harmonize.settings import Settings
from harmonize.sources.dicom_series import load_series
from headspark.encoder import EncoderConfig, build_encoder

T = TypeVar("T")

SPACING_MM = 0.8
STAGES = ("read", "harmonize", "cut", "pose", "forward")
PREPARED = STAGES[:-1]
WORKERS = 2
SMALL = [32, 32, 32]
"""Patch of the model that the tree is answered by, so that it is read and harmonized for the most part."""
ENCODER = EncoderConfig(features=(4, 8, 16, 32), blocks=(1, 1, 1, 1), strides=(1, 2, 2, 2))


def main() -> None:
    """Measure, write JSON, show."""
    arguments = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_model(folder / "model", arguments.patch)
        series = write_cta(folder / "cta", (512, 512, arguments.slices), (0.45, 0.45, 0.625), seed=0)
        result: dict[str, Any] = {
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "torch": torch.__version__},
            "slices": arguments.slices,
            "patch": arguments.patch,
            "import": imports(),
            "stages": stages(model, series, arguments.rounds),
            "tree": tree(save_model(folder / "small", SMALL), folder / "tree", arguments.series),
        }
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    for stage, cost in result["stages"].items():
        print(f"{stage:16s} {cost['s']:6.2f} s {cost['cpu_s']:6.2f} s of processor")
    print(f"{'import':16s} {result['import']['s']:6.2f} s {result['import']['cpu_s']:6.2f} s of processor")
    for name, cost in result["tree"].items():
        print(f"a small series, {name}: {cost['s']:.2f} s {cost['cpu_s']:.2f} s of processor")


class Clock:
    """What stages took: seconds, and processor time."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float]] = {}

    def __call__(self, stage: str, work: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """Do some work and note what it took."""
        began, cpu = time.perf_counter(), time.process_time()
        result = work(*arguments, **more)
        self.found[stage] = (time.perf_counter() - began, time.process_time() - cpu)
        return result


def stages(model: Path, series: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Each stage of one prediction after the other."""
    predictor = Predictor(model, device=torch.device("cpu"))
    # The first round finds the files outside of the page cache, and libraries that load what they need when they do.
    costs = [once(predictor, series, forward=number == 0) for number in range(rounds + 1)]
    medians = {
        stage: {
            key: statistics.median(cost[stage][which] for cost in costs[1:] if stage in cost)
            if stage in costs[1]
            else costs[0][stage][which]
            for which, key in enumerate(("s", "cpu_s"))
        }
        for stage in STAGES
    }
    prepared = {key: sum(medians[stage][key] for stage in PREPARED) for key in ("s", "cpu_s")}
    return {**medians, "all but forward": prepared}


def once(predictor: Predictor, series: Path, *, forward: bool) -> dict[str, tuple[float, float]]:
    """One prediction, by stage."""
    clock, task, view = Clock(), predictor.ensemble.tasks[0], predictor.view
    scan = clock("read", load_series, series)
    found = clock("harmonize", harmonize_scan, scan, predictor.panel.members[0].bundle.settings)
    region = clock("cut", view.cut, found.volume, unit=found.unit, foreground_box=found.foreground_box)
    x = clock("pose", view.sample, region)
    if forward:
        clock("forward", classify, predictor.ensemble.models[0], x[None], mirror=None, values=task.values)
    return clock.found


def tree(model: Path, folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Seconds a series of a tree: in this process, whose imports are paid, and by workers that are started for it."""
    for number in range(count):
        write_cta(folder / str(number), (96, 96, 96), (2.0, 2.0, 1.6), seed=number)
    found = {}
    for name, workers in (("imports paid", 0), (f"{WORKERS} workers, their start included", WORKERS)):
        began, cpu = time.perf_counter(), cpu_of_all()
        done = predict_paths(read_panel([model]), [folder], out=None, devices=[torch.device("cpu")], workers=workers)
        if any(row.reason is not None for row in done.rows) or len(done.rows) != count:
            raise SystemExit("a series of the tree was not answered")
        found[name] = {"s": (time.perf_counter() - began) / count, "cpu_s": (cpu_of_all() - cpu) / count}
    return found


def cpu_of_all() -> float:
    """Processor seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def imports() -> dict[str, float]:
    """What it takes a fresh process to be able to predict."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(
        [sys.executable, "-c", "import finetune.predict; from finetune.tasks import kinds; kinds()"], check=True
    )
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return {"s": time.perf_counter() - began, "cpu_s": cpu}


def save_model(folder: Path, patch: list[int]) -> Path:
    """An untrained model: its weights change no second."""
    head, data = CellsConfig(stride=8, width=16), DataConfig(patch=(patch[0], patch[1], patch[2]), spacing=SPACING_MM)
    network = Network(build_encoder(ENCODER), head, (), AneurysmTask())
    settings = Settings(spacing=(SPACING_MM,) * 3)
    save_bundle(folder, Bundle(encoder=ENCODER, head=head, data=data, settings=settings), network.state_dict())
    return folder


def write_cta(folder: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float], *, seed: int) -> Path:
    """A head of ellipsoids with noise, in files of one slice."""
    grid = make_grid(
        extent_mm=[size * mm for size, mm in zip(shape, spacing, strict=True)],
        spacing_mm=list(spacing), centre_mm=[0.0, 0.0, 0.0], axes="LPS", tilt_deg=[0.0, 0.0, 0.0],
    )  # fmt: skip
    header = {
        "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "PatientID": "A",
        "StudyInstanceUID": f"1.2.{seed}", "SeriesInstanceUID": f"1.2.3.{seed}", "SeriesNumber": 1,
    }  # fmt: skip
    folder.mkdir(parents=True)
    write_slices(
        folder, head_of(shape, spacing, seed), grid, header, CT_UNSIGNED,
        file_name=lambda _, sop: f"{sop}.dcm", head_first=False,
    )  # fmt: skip
    return folder


def head_of(shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int) -> NDArray[np.float32]:
    """HU of a skull with something in it."""
    x, y, z = np.ogrid[tuple(slice(-(n - 1) / 2 * mm, n / 2 * mm, mm) for n, mm in zip(shape, spacing, strict=True))]
    r = np.sqrt((x / 77) ** 2 + (y / 98) ** 2 + (z / 105) ** 2).astype(np.float32)
    noise = np.random.default_rng(seed).normal(0, 12, r.shape).astype(np.float32)
    return np.where(r < 0.88, 40, np.where(r < 0.95, 1200, np.where(r < 1, 30, -1000))).astype(np.float32) + noise


def cpu_name() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description="What a prediction costs by stage.")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--patch", type=int, nargs=3, default=[192, 224, 192], metavar="N")
    parser.add_argument("--series", type=int, default=16, help="of the tree")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
