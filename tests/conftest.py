"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; skips where there is none."""
    folder = Path(os.environ.get("HEADSPARK_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}: set HEADSPARK_REAL_DATA")
    return folder
