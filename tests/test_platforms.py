"""Other systems, as far as they can be simulated: what works there works, what does not is said at start."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from harmonize import system

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
MAKE = shutil.which("make")

WINDOWS = """
import importlib.abc, os, sys
import psutil  # whose part for Windows is not here to be imported
ABSENT = {"fcntl", "resource", "pwd", "grp", "termios"}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
for name in ABSENT:
    sys.modules.pop(name, None)
for name in ("fork", "O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "getuid", "sched_getaffinity", "posix_fallocate"):
    if hasattr(os, name):
        delattr(os, name)
os.process_cpu_count = os.cpu_count  # Python 3.13's, as it is where there is no affinity
sys.platform = "win32"
"""
OLD_PYTHON = "import sys\nsys.version_info = (3, 10, 4, 'final', 0)\n"

MAC = """
import os, sys
for name in ("sched_getaffinity", "sched_setaffinity", "posix_fallocate", "posix_fadvise"):
    if hasattr(os, name):
        delattr(os, name)
os.process_cpu_count = os.cpu_count  # Python 3.13's, as it is where there is no affinity
"""
"""For every process, those that are started by ours too: what macOS has not."""

ON_A_MAC = """
import multiprocessing, runpy, sys
from pathlib import Path
import psutil, torch, torch.utils.data, monai.data, accelerate, timm, matplotlib.pyplot, pandas, SimpleITK, tqdm.auto

multiprocessing.get_all_start_methods = lambda: ["spawn"]  # it can fork, and its own libraries must not be forked
import headspark.data.memory
headspark.data.memory.SHARED_MEMORY = Path("/nowhere/shm")
headspark.data.memory.PROCESS = Path("/nowhere/proc")
sys.platform = "darwin"

from finetune.cli import main as finetune
from harmonize.cli import main as harmonize
from headspark.cli import main as headspark

def run(program, *words):
    code = program([str(word) for word in words])
    print(f"code {code}", file=sys.stderr, flush=True)

if __name__ == "__main__":
    raw, recipe, model, series = sys.argv[1:]
    run(harmonize, "openmind", raw, "--out", "corpus", "--spacing", "4", "--workers", "1")
    run(harmonize, "verify", "corpus", "--workers", "0")
    words = ["pretrain", "--config", recipe, "--corpus", "corpus"]
    run(headspark, *words, "--out", "run")
    run(headspark, "push", "run", "--out", "encoder")
    run(finetune, "predict", model, series, "--out", "answers.parquet")
    run(headspark, "doctor", "--json")
    run(headspark, *words, "--out", "run_2", "--data.cache", "shared")
    run(headspark, *words, "--out", "run_3", "--data.worker_kind", "process")
"""

TINY = """{data: {patch: 16, workers: 1, val_share: 0.4}, encoder: {features: [4, 8], blocks: [1, 1], strides: [1, 2]},
  mask: {block: 8}, decoder: {stop_stride: 2, width: 4}, train: {steps: 2, threads: 1, val_samples: 1, trackers: []}}"""


def started(before: str, start: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'ssl'}"}
    return subprocess.run(
        [sys.executable, "-c", before + start], env=environment, cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (WINDOWS, "error: Windows: headspark needs Linux or macOS, whose locks it uses; install it in WSL 2 "),
        (OLD_PYTHON, "error: Python 3.10: headspark needs Python 3.11 or newer; install one, and headspark with it"),
    ],
)
@pytest.mark.parametrize(
    "start",
    [
        "from harmonize.cli import main; main()",
        "from headspark.cli import main; main()",
        "from finetune.cli import main; main()",
        f"import runpy; runpy.run_path({str(ROOT / 'ssl' / 'push.py')!r}, run_name='__main__')",
        f"import runpy; runpy.run_path({str(ROOT / 'ssl' / 'pretrain.py')!r}, run_name='__main__')",
        "import runpy; runpy.run_module('finetune.train', run_name='__main__')",
    ],
)
def test_where_no_program_can_run_each_says_so_in_one_line(before: str, says: str, start: str, tmp_path: Path) -> None:
    done = started(before, start, tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith(says)
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_python_is_the_same_everywhere() -> None:
    oldest = ".".join(map(str, system.OLDEST_PYTHON))
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == f">={oldest}"
    assert f"sys.version_info < ({', '.join(map(str, system.OLDEST_PYTHON))})" in (ROOT / "Makefile").read_text()


@pytest.mark.skipif(MAKE is None, reason="no make here")
def test_make_names_the_python_that_it_needs(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old-python"
    old.write_text(f"#!{sys.executable}\nimport sys\nsys.version_info = (3, 10)\nexec(sys.argv[2])\n")
    old.chmod(0o755)
    done = subprocess.run(["make", "lint", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "headspark needs Python 3.11 or newer; set PYTHON=" in done.stdout + done.stderr
    assert not (tmp_path / ".venv").exists()


def test_on_a_mac_everything_works_but_shared_memory_and_forked_workers(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(MAC)
    (tmp_path / "script.py").write_text(ON_A_MAC)
    (tmp_path / "tiny.yaml").write_text(TINY)
    series = min((FIXTURES / "raw" / "rsna" / "series").iterdir())
    words = [FIXTURES / "raw" / "openmind", tmp_path / "tiny.yaml", FIXTURES / "finetuned", series]
    paths = os.pathsep.join(map(str, (tmp_path / "site", ROOT, ROOT / "ssl")))
    done = subprocess.run(
        [sys.executable, "script.py", *map(str, words)],
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert re.findall(r"^code (\d+)$", done.stderr, re.MULTILINE) == ["0"] * 6 + ["1", "2"], done.stderr
    shared, process = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert shared.startswith("error: shared memory /nowhere/shm/headspark-")
    assert shared.endswith("set data.cache disk or ram")
    assert process == "error: data.worker_kind process: this system cannot fork; take thread"
    assert '"no /nowhere/shm: data.cache shared cannot be used; auto takes ram or disk"' in done.stdout
    assert {"corpus", "run", "encoder", "answers.parquet"} <= {path.name for path in tmp_path.iterdir()}
