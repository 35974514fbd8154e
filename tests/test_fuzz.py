"""Every kind of file that is read, damaged some hundred times: no traceback, no crash, 2 GB and 10 s at most."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import worker
from fuzz.kinds import KINDS, NAMES, Kind
from harmonize.errors import Reason, Rejection, UserError

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "dicom": 200, "deflated": 200, "enhanced": 200, "nifti": 100, "nifti-gz": 100, "png": 200, "nbia-json": 200,
    "zip-archive": 200, "parquet": 120, "recipe": 120,
}  # fmt: skip
"""Files of a kind; of the others, which share what reads them with several, some less."""


def fuzz(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tests/fuzz", *words, "--kept", str(folder / "found")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("module", KINDS)
def test_damaged_files_of_every_kind_are_read_or_refused(module: str, tmp_path: Path) -> None:
    done = fuzz(*KINDS[module], folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(KINDS[module])
