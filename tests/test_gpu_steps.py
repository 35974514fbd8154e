"""Training steps on a GPU, counted on one that is not there: nothing is waited for, and little is launched and moved.

``python tests/test_gpu_steps.py CASE ...`` records the numbers of these cases anew; do that for a change that is meant
to change them, and look at what it did to them. ``--account`` before them records nothing, and lists instead which
lines of the code launch and move how much.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fake_gpu
import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("golden") / "gpu_steps.json"
REQUIRED = "HEADSPARK_FAKE_GPU"
"""Set to ``required`` where these tests must not be skipped."""

QUICK = (
    "demo", "demo_unet", "demo_group", "demo_batch", "demo_drop_path", "demo_scored", "demo_vessels", "demo_hybrid",
    "resenc_l", "finetune", "finetune_vessels", "finetune_masks",
)  # fmt: skip
SLOW = ("resenc_l_160", "resenc_l_160_unet")
MARGIN = 1.05
"""How much more than recorded is taken: versions of PyTorch differ in how they divide up an operation."""


def counted_in(folder: Path, cases: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What a step of each case does on the GPU, counted in a process that believes in one."""
    paths = (ROOT, ROOT / "ssl", ROOT / "tests")
    environment = os.environ | fake_gpu.build(folder) | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "gpu_steps.py"), *cases],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def skip_or_fail(reason: str) -> None:
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    try:
        return counted_in(tmp_path_factory.mktemp("gpu"), QUICK)
    except fake_gpu.NoGpuToFake as reason:
        skip_or_fail(str(reason))
        raise


@pytest.mark.parametrize("case", QUICK)
def test_a_step_is_waited_for_once_and_copies_nothing_that_is_not_page_locked(
    case: str, quick: dict[str, dict[str, Any]]
) -> None:
    check(case, quick[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_a_step_of_full_size_is_waited_for_once_too(case: str, tmp_path: Path) -> None:
    try:
        counted = counted_in(tmp_path, (case,))
    except fake_gpu.NoGpuToFake as reason:
        skip_or_fail(str(reason))
        raise
    check(case, counted[case])


def test_a_machine_without_a_compiler_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(fake_gpu.NoGpuToFake, match="needs a C compiler"):
        fake_gpu.build(tmp_path)


def check(case: str, counted: dict[str, Any]) -> None:
    assert counted["elsewhere"] == [], "parameters that are not on the GPU"
    assert counted["mixed"] == [], "operations with operands on both sides"
    assert counted["pageable"] == [], "copies of memory that is not page-locked"
    assert counted["other_layout"] == [], "maps that a convolution copies"
    (wait,) = counted["waits"]
    assert wait.startswith("update: "), "the host may wait for the numbers of the step, at its end"
    recorded = json.loads(GOLDEN.read_text())[case]
    for what in ("launches", "moved"):
        most = {phase: round(MARGIN * number) for phase, number in recorded[what].items()}
        assert counted[what].keys() == most.keys()
        over = {phase: number for phase, number in counted[what].items() if number > most[phase]}
        assert over == {}, f"{what}: more than recorded ({recorded[what]})"


def record(cases: tuple[str, ...]) -> None:
    """Write what is counted today."""
    with tempfile.TemporaryDirectory() as folder:
        counted = counted_in(Path(folder), cases)
    keep(counted)


def keep(counted: dict[str, dict[str, Any]]) -> None:
    """Write what was counted into the record, beside what is there."""
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for case, one in counted.items():
        recorded[case] = {what: one[what] for what in ("launches", "moved")}
    lines = [f'  "{case}": {json.dumps(recorded[case])}' for case in (*QUICK, *SLOW) if case in recorded]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def account(cases: tuple[str, ...]) -> None:
    """List what each line launches and moves, the most bytes first."""
    with tempfile.TemporaryDirectory() as folder:
        counted = counted_in(Path(folder), cases)
    for case, one in counted.items():
        sys.stdout.write(f"{case}: {one['launches']}, {sum(one['moved'].values()) / 1e9:.1f} GB\n")
        for place, (launches, moved) in sorted(one["places"].items(), key=lambda item: -item[1][1]):
            sys.stdout.write(f"{moved / 1e9:9.3f} GB {launches:5d}  {place}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--account"]:
        account(tuple(sys.argv[2:]))
        sys.exit()
    record(tuple(sys.argv[1:]) or (*QUICK, *SLOW))
