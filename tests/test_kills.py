"""Three kills -9 a program at random moments: nothing is lost, and what stands in the end is what would have stood."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kills.py")


@pytest.mark.parametrize("program", ["harmonize", "pretrain", "finetune"])
def test_a_program_that_is_killed_three_times_loses_nothing(program: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    words = [str(SCRIPT), "--programs", program, "--kills", "3", "--json", str(found)]
    done = subprocess.run(
        [sys.executable, *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(found.read_text())["programs"][program]
    assert (outcome["kills"], outcome["faults"]) == (3, [])
    assert outcome["runs"] >= 1
