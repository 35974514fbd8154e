"""Crops a second from each way to keep scans: headspark's caches, a plain MONAI CacheDataset chain, nnssl's blosc2.

    python tests/benchmarks/bench_data.py --json data.json
    python tests/benchmarks/bench_data.py --json data.json --scans 4 --shape 160 --patch 96 --crops 20    # in a minute

The same synthetic volumes and the same size of cube for all, one process, one thread, the ways taking turns; medians of
the rounds are reported, with the bytes that each keeps for a scan. headspark's loader gives int16 cubes with their
masks and cuts the CT windows on the accelerator; "windows cut" does that too, here on the CPU. blosc2 is measured where
it is installed, with the chunks, blocks and compression that nnssl's preprocessing writes. What a crop reads from the
disk when nothing of the files is in memory (`cold_mb_per_crop`) is counted by Linux, on file systems that forget.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from bench_harmonize import describe_machine
from monai.data import CacheDataset, PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandSpatialCropd, ScaleIntensityRanged

from harmonize.corpus import write_volume
from harmonize.files import sha256_of
from harmonize.voxels.stored import StoredVolume
from headspark.data import crops as cutting
from headspark.data.augment import AugmentConfig
from headspark.data.batches import Plan, network_input, stack, train_batches
from headspark.data.cache import FileStore, MappedStore, Store
from headspark.data.cohort import Cohort, ScanItem
from headspark.data.ram_store import RamStore
from headspark.data.read_ahead import advise
from headspark.data.samples import TrainSamples
from headspark.encoder import EncoderConfig
from headspark.recipe import DataConfig, Recipe

WINDOWS = ("brain", "blood", "bone")
PLAIN = "plain memory map"
PLACES = ("json", "folder")
"""What is asked on the command line but is no setting: paths of this machine."""
Crop = Callable[[int], object]


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--shape", type=int, default=224, help="edge of a scan, voxels")
    parser.add_argument("--patch", type=int, default=128, help="edge of a crop, voxels")
    parser.add_argument("--crops", type=int, default=40, help="crops of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to put the volumes; a local disk")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        ways, sizes = make_ways(folder, arguments)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        processor: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(arguments.rounds):
            for name, crop in ways.items():
                began, worked = time.perf_counter(), time.process_time()
                for index in range(arguments.crops):
                    crop(turn * arguments.crops + index)
                rates[name].append(arguments.crops / (time.perf_counter() - began))
                processor[name].append(1e3 * (time.process_time() - worked) / arguments.crops)
        cold = {name: cold_mb(folder, ways[name]) for name in ("headspark disk", PLAIN, "nnssl blosc2") if name in ways}
        result = {
            "machine": describe_machine(),
            "settings": {k: v for k, v in vars(arguments).items() if k not in PLACES},
            "crops_per_second": {name: statistics.median(values) for name, values in rates.items()},
            "spread": {name: [min(values), max(values)] for name, values in rates.items()},
            "processor_ms_per_crop": {name: statistics.median(values) for name, values in processor.items()},
            "warm_speed_of_plain_mmap": warm_ratio(ways["headspark disk"], ways[PLAIN]),
            "bytes_a_scan": sizes,
            "cold_mb_per_crop": cold,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2))
    finally:
        shutil.rmtree(folder)


def warm_ratio(ours: Crop, plain: Crop, crops: int = 200) -> float:
    """How fast crops are beside those of a plain memory map, all pages in memory: crop by crop, in processor time."""
    took: dict[Crop, list[float]] = {ours: [], plain: []}
    for index in range(crops):
        for crop in (ours, plain) if index % 2 else (plain, ours):
            worked = time.process_time()
            crop(index)
            took[crop].append(time.process_time() - worked)
    return statistics.median(took[plain]) / statistics.median(took[ours])


def as_plain_mmap(samples: TrainSamples) -> Crop:
    """The same crops with what the kernel reads ahead by itself."""

    def crop(index: int) -> object:
        cutting.advise = _nothing
        try:
            return stack([samples[index]])
        finally:
            cutting.advise = advise

    return crop


def _nothing(*_: object) -> None:
    return None


def cold_mb(folder: Path, crop: Crop, crops: int = 9) -> float | None:
    """Megabytes that a crop reads from the disk with none of the files in memory; None where nobody counts them."""
    counts = Path("/proc/self/io")
    if not counts.exists():
        return None

    def so_far() -> int:
        return next(int(line.split()[1]) for line in counts.read_text().splitlines() if line.startswith("read_bytes"))

    read = []
    for index in range(crops):
        gc.collect()  # pages that are still mapped stay in memory
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = so_far()
        crop(index)
        read.append((so_far() - before) / 1e6)
    return statistics.median(read)


def make_ways(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, Crop], dict[str, float]]:
    """Write the volumes and give each way as a function from the number of a crop; and what each keeps of a scan."""
    shape = (arguments.shape,) * 3
    rng = np.random.default_rng(0)
    scans = []
    for number in range(arguments.scans):
        smooth = rng.normal(size=(arguments.shape // 8,) * 3).repeat(8, 0).repeat(8, 1).repeat(8, 2)
        path = folder / f"scan-{number}.nii.gz"
        voxels = np.zeros(shape, np.int16)
        voxels[tuple(slice(edge) for edge in smooth.shape)] = 40 + 30 * smooth + rng.normal(0, 10, smooth.shape)
        write_volume(path, StoredVolume(stored_XYZ=voxels, affine=np.eye(4)))
        scans.append(item(path, shape))
    cohort = Cohort(scans=tuple(scans), train=tuple(range(len(scans))), val=(), weights=(1.0,) * len(scans))
    mapped = MappedStore(scans, folder / "mapped")
    mapped.fill(0, 1)
    voxels_a_scan = float(np.prod(shape))
    stores: dict[str, Store] = {"ram": RamStore(scans), "disk": mapped, "none": FileStore(scans)}
    ways: dict[str, Crop] = {}
    for name, store in stores.items():
        samples = samples_of(cohort, store, arguments.patch)
        ways[f"headspark {name}"] = lambda index, samples=samples: stack([samples[index]])
        ways[f"headspark {name}, windows cut"] = lambda index, samples=samples: network_input(
            stack([samples[index]]), WINDOWS, AugmentConfig(), patch=arguments.patch
        )
    ways[PLAIN] = as_plain_mmap(samples_of(cohort, mapped, arguments.patch))
    for kind in ("thread", "process"):
        ways[f"headspark ram, one {kind} ahead"] = ahead(cohort, stores["ram"], arguments, kind)
    ways["monai PersistentDataset"] = persistent(scans, folder / "persistent", arguments.patch)
    ways["monai CacheDataset, windows cut"] = monai_chain(scans, arguments.patch)
    sizes = {
        "headspark ram and disk": 2 * voxels_a_scan,
        "headspark none": float(statistics.mean(scan.image.stat().st_size for scan in scans)),
        "monai CacheDataset": 3 * 4 * voxels_a_scan,
    }
    if find_spec("blosc2"):
        ways["nnssl blosc2"], sizes["nnssl blosc2"] = blosc2_loader(scans, folder, arguments.patch)
    return ways, sizes


def samples_of(cohort: Cohort, store: Store, patch: int) -> TrainSamples:
    """headspark's samples of that size."""
    return TrainSamples(cohort, store, recipe_of(patch, "thread").sampling, samples_per_step=1)


def recipe_of(patch: int, kind: str) -> Recipe:
    """A recipe for crops of that size and one worker."""
    return Recipe(
        data=DataConfig(patch=patch, workers=1, worker_kind=kind),  # type: ignore[arg-type]
        encoder=EncoderConfig(features=(8, 8), blocks=(1, 1), strides=(1, 2)),
    )


def ahead(cohort: Cohort, store: Store, arguments: argparse.Namespace, kind: str) -> Crop:
    """Crops that one worker has cut by the time they are asked for, or not: what a training step would wait for."""
    plan = Plan(steps=10**6, batch=1, accumulate=1, rank=0, ranks=1)
    recipe = recipe_of(arguments.patch, kind)
    batches = train_batches(
        TrainSamples(cohort, store, recipe.sampling, samples_per_step=1), plan, recipe.data, first_step=0, pin=False
    )
    return lambda index: next(batches)


def persistent(scans: list[ScanItem], folder: Path, patch: int) -> Crop:
    """MONAI's cache on disk: the decoded scan is read whole for each crop."""
    transforms = Compose(
        [
            LoadImaged(keys="image", image_only=True, dtype=np.int16),
            EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
            RandSpatialCropd(keys="image", roi_size=(patch,) * 3, random_size=False),
        ]
    )
    kept = PersistentDataset(
        [{"image": str(scan.image)} for scan in scans], transforms, cache_dir=folder, hash_transform=pickle_hashing
    )
    return lambda index: kept[index % len(scans)]["image"]


def monai_chain(scans: list[ScanItem], patch: int) -> Crop:
    """What a user writes with MONAI: load, window into three channels, cache as float32, crop at random."""
    keys = ["brain", "blood", "bone"]
    ranges = {"brain": (0, 80), "blood": (-20, 180), "bone": (-800, 2000)}
    chain = Compose(
        [
            LoadImaged(keys=keys, image_only=True),
            EnsureChannelFirstd(keys=keys, channel_dim="no_channel"),
            *(
                ScaleIntensityRanged(keys=key, a_min=low, a_max=high, b_min=-1, b_max=1, clip=True)
                for key, (low, high) in ranges.items()
            ),
            RandSpatialCropd(keys=keys, roi_size=(patch,) * 3, random_size=False),
        ]
    )
    cached = CacheDataset([dict.fromkeys(keys, str(scan.image)) for scan in scans], chain, progress=False)

    def crop(index: int) -> torch.Tensor:
        found = cached[index % len(scans)]
        return torch.cat([found[key].as_tensor() for key in keys])[None]

    return crop


def blosc2_loader(scans: list[ScanItem], folder: Path, patch: int) -> tuple[Crop, float]:
    """nnssl's way: float32 in blosc2 files, memory-mapped, only the blocks that a crop touches decompressed."""
    import blosc2

    from harmonize.corpus import read_volume

    paths = []
    for scan in scans:
        path = folder / f"{scan.scan_id}.b2nd"
        values = read_volume(scan.image).values()[None]
        blosc2.asarray(
            np.ascontiguousarray(values),
            chunks=(1, *(min(patch, edge) for edge in scan.shape)),
            blocks=(1, *(min(patch // 4, edge) for edge in scan.shape)),
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1},
            urlpath=str(path),
        )
        paths.append(path)
    rng = np.random.default_rng(0)

    def crop(index: int) -> torch.Tensor:
        array = blosc2.open(str(paths[index % len(paths)]), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        x, y, z = (int(rng.integers(0, edge - patch + 1)) for edge in array.shape[1:])
        return torch.from_numpy(array[:, x : x + patch, y : y + patch, z : z + patch])[None]

    return crop, statistics.mean(path.stat().st_size for path in paths)


def item(path: Path, shape: tuple[int, int, int]) -> ScanItem:
    """A CT without a mask."""
    name = path.name.removesuffix(".nii.gz")
    return ScanItem(
        scan_id=name, source="bench", subject=name, modality="CT", unit="HU", image=path, mask=None,
        sha256=sha256_of(path), mask_sha256="", shape=shape, spacing=(1.0, 1.0, 1.0), fill=-1024.0,
        channels=1, labels={},
        box=(0, shape[0], 0, shape[1], 0, shape[2]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
