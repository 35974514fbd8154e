"""The benchmark of a GPU runs without one, says why a part measured nothing, and tells of runs that end early."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_gpu
import pytest
import torch
from gpu.parts import NO_GPU, PARTS
from gpu.traces import covered

SCRIPT = Path(bench_gpu.__file__)
NO_PEER = "no checkout of nnssl (--peer)"


def run_of(folder: Path, *names: str) -> bench_gpu.Run:
    """A run of some parts that is not begun."""
    arguments = argparse.Namespace(json=folder / "gpu.json", reduced=True, seconds=60.0, peer=None, parts=list(names))
    return bench_gpu.Run(arguments)


def followed(run: bench_gpu.Run, left: list[str], code: str) -> list[str]:
    """Which parts are left after a process that does what the code says."""
    command = [sys.executable, "-c", code]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True)
        try:
            return run._follow(process, left, said)
        finally:
            bench_gpu.stop(process)


def written(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "gpu.json").read_text())
    assert isinstance(found, dict)
    return found


def test_all_parts_run_at_toy_size_and_those_for_a_gpu_say_that_there_is_none(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--json", str(tmp_path / "gpu.json"), "--reduced"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = written(tmp_path)
    assert result["toy"]
    for part in PARTS:
        expected = f"not measured: {NO_GPU}" if part.needs_gpu else "measured"
        if part.name.startswith("nnssl"):
            expected = f"not measured: {NO_PEER}"
        assert result["parts"][part.name]["said"] == expected, part.name
    assert result["parts"]["step_160"]["figures"]["light"]["ms"] > 0
    assert result["parts"]["backends"]["figures"]["unet"]["gradient"] < 1e-3
    assert {row["found"] for row in result["wanted"]} == {"not measured"}


def test_a_part_that_kills_its_process_keeps_its_figures_and_leaves_the_others(tmp_path: Path) -> None:
    run = run_of(tmp_path, "step_160", "geometry")
    code = """
import os, sys
print('{"begins": "step_160"}', flush=True)
print('{"figures": {"light": 1}}', flush=True)
print("CUDA error: an illegal memory access", file=sys.stderr, flush=True)
os.kill(os.getpid(), 9)
"""
    assert followed(run, ["step_160", "geometry"], code) == ["geometry"]
    parts = written(tmp_path)["parts"]
    assert parts["step_160"]["said"] == "not measured: its process ended (-9): CUDA error: an illegal memory access"
    assert parts["step_160"]["figures"] == {"light": 1}
    assert parts["geometry"]["said"] == bench_gpu.NOT_REACHED


def test_a_part_that_takes_longer_than_it_may_is_stopped(tmp_path: Path) -> None:
    run = run_of(tmp_path, "step_160", "geometry")
    run.result["parts"]["step_160"]["may_take"] = 0.5
    code = """
import time
print('{"begins": "step_160"}', flush=True)
time.sleep(60)
"""
    assert followed(run, ["step_160", "geometry"], code) == ["geometry"]
    assert written(tmp_path)["parts"]["step_160"]["said"] == "not measured: it took longer than 0.5 s"


def test_time_in_which_kernels_overlap_counts_once() -> None:
    assert covered([(5.0, 6.0), (0.0, 4.0), (1.0, 2.0), (3.0, 4.5)]) == pytest.approx(5.5)


def test_it_ends_within_eight_minutes_whatever_its_parts_take() -> None:
    assert bench_gpu.SECONDS < 480
    decisive = ("device", "backends", "devices", "step_160", "nnssl_160", "dense_160", "kernels", "waits", "geometry")
    assert [part.name for part in PARTS[: len(decisive)]] == list(decisive)
    assert sum(part.seconds for part in PARTS[: len(decisive)]) <= bench_gpu.SECONDS


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_sizes_are_a_toys_whatever_is_asked_for() -> None:
    assert bench_gpu.is_toy(argparse.Namespace(reduced=False))
