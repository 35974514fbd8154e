"""What a crop of a memory-mapped scan reads from the disk, counted by the kernel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from headspark.data.crops import Crop, cut
from headspark.data.stores import _array

EDGE, PATCH = 224, 96
NONE = (False, False, False)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mapped") / "scan.npy"
    np.save(path, np.random.default_rng(0).integers(-1000, 1000, (EDGE,) * 3).astype(np.int16))
    return path


def mapped(path: Path) -> np.ndarray:
    return _array(path, np.dtype(np.int16), (EDGE,) * 3)


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def cold_bytes(path: Path, crop: Crop) -> int:
    """Bytes that come from the disk for a crop when none of the file is in memory."""
    copy = path.with_name(f"{crop.start}-{crop.size}.npy")
    shutil.copyfile(path, copy)  # the kernel may keep pages that were mapped
    with copy.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = bytes_read()
    cut(mapped(copy), crop, fill=0)
    return bytes_read() - before


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts what Linux counts")
@pytest.mark.parametrize("start", [(64, 64, 64), (0, 0, 0), (128, 128, 128), (-40, 100, 30)])
def test_a_crop_reads_little_more_than_itself(scan: Path, start: tuple[int, int, int]) -> None:
    size = cold_bytes(scan, Crop(start=(0, 0, 0), size=EDGE, flips=NONE))
    if size < scan.stat().st_size // 2:
        pytest.skip("this file system keeps files in memory whatever it is told")
    read = cold_bytes(scan, Crop(start=start, size=PATCH, flips=NONE))
    inside = [max(0, min(EDGE, first + PATCH) - max(0, first)) for first in start]
    assert 2 * np.prod(inside) <= read <= 5e6


@pytest.mark.parametrize("start", [(64, 64, 64), (-40, 100, 200), (223, 223, 223), (300, 0, 0), (-96, -1, 0)])
def test_it_is_the_same_crop_as_from_memory(scan: Path, start: tuple[int, int, int]) -> None:
    volume_XYZ = np.load(scan)
    crop = Crop(start=start, size=PATCH, flips=(True, False, True))
    assert np.array_equal(cut(mapped(scan), crop, fill=-7), cut(volume_XYZ, crop, fill=-7))
    part = mapped(scan)[10:200, 5:]  # a view, of which the map is not the base
    assert np.array_equal(cut(part, crop, fill=-7), cut(volume_XYZ[10:200, 5:], crop, fill=-7))
