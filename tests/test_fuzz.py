"""Every kind of file that is read, damaged some hundred times: no traceback, no crash, 2 GB and 10 s at most."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from fuzz import damage, worker
from fuzz.kinds import KINDS, Kind, make

from harmonize.errors import Reason, Rejection, UserError

ROOT = Path(__file__).resolve().parents[1]

CASES = 200
"""Of each kind; `python tests/fuzz --forever` goes on."""


@pytest.mark.parametrize("module", KINDS)
def test_damaged_files_of_every_kind_are_read_or_refused(module: str, tmp_path: Path) -> None:
    words = [sys.executable, "tests/fuzz", *KINDS[module], f"--cases={CASES}", f"--kept={tmp_path / 'found'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(KINDS[module])


def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_command", ROOT / "tests/fuzz/__main__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def raises(error: BaseException) -> Callable[[], None]:
    def read() -> None:
        raise error

    return read


def busy() -> None:
    while True:
        pass


@pytest.fixture
def kind(tmp_path: Path) -> Callable[[Callable[[], object]], Kind]:
    return lambda read: Kind(target=tmp_path / "file", damage=damage.of_bytes, read=read)


def test_what_is_read_or_refused_in_one_line_is_right(kind: Callable[..., Kind]) -> None:
    assert worker.watched(kind(lambda: None), b"x") == worker.Found(None, False)
    for error in (UserError("one line"), Rejection(Reason.UNREADABLE, "one line")):
        assert worker.watched(kind(raises(error)), b"x") == worker.Found(None, True)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (raises(ValueError("odd")), "ValueError: odd"),
        (raises(RecursionError()), "RecursionError"),
        (raises(MemoryError()), "MemoryError"),
        (raises(SystemExit(2)), "SystemExit"),
        (raises(UserError("two\nlines")), "2 lines"),
        (busy, "Overtime"),
        (lambda: bytearray(8 << 30), "MemoryError"),
    ],
)
def test_all_else_is_a_fault(
    kind: Callable[..., Kind], read: Callable[[], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SECONDS", 0.05 if read is busy else 10.0)
    found = worker.watched(kind(read), b"x")
    assert found.fault is not None
    assert said in found.fault


def test_much_memory_is_a_fault_although_it_was_given_back(
    kind: Callable[..., Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 150 << 20
    assert worker.watched(kind(lambda: None), b"x").fault is None
    monkeypatch.setattr(worker, "GIGABYTES", (worker._status("VmRSS") + size // 2) / (1 << 30))
    assert worker.watched(kind(lambda: None), b"x").fault is None
    found = worker.watched(kind(lambda: len(b"x" * size)), b"x")
    assert found.fault is not None
    assert "GB" in found.fault


WORKER = """
import os, sys
start = next((int(word[8:]) for word in sys.argv if word.startswith("--start=")), 0)
print("kind", sys.argv[1], flush=True)
for case in range(start, 4):
    print("begin", case, flush=True)
    if case == 1:
        os.kill(os.getpid(), 11)
    if case == 2:
        print("fault 2 ValueError: odd", flush=True)
    print("read", case, flush=True)
"""


def test_a_file_that_kills_its_process_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    tally = command().run(["dicom"], options=[], worker=[sys.executable, str(script)])["dicom"]
    assert tally.outcomes == {"read": 3}
    assert [fault.partition(":")[0] for fault in tally.faults] == ["--only 1", "--only 2"]
    assert "ended its process with -11" in tally.faults[0]


def test_a_process_that_cannot_begin_is_a_fault(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("raise SystemExit('no')")
    tallies = command().run(["dicom", "png"], options=[], worker=[sys.executable, str(script)])
    assert all("ended its process with 1 (no)" in tally.faults[0] for tally in tallies.values())


@pytest.mark.parametrize("name", ["dicom", "deflated", "enhanced", "nifti-gz", "png", "train-csv", "corpus-json"])
def test_a_case_is_the_same_each_time_and_cases_differ(name: str, tmp_path: Path) -> None:
    kind = make(name, tmp_path)
    valid = kind.target.read_bytes()
    made = [[worker.damaged(kind, name, 0, case, valid) for case in range(12)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 8
    assert sum(content == valid for content in made[0]) <= 3


def test_plain_values_change_in_one_place_and_the_original_does_not() -> None:
    value = {"a": [1, 2, {"b": "x"}], "c": None}
    changed = [damage.of_plain(value, random.Random(case)) for case in range(60)]
    assert value == {"a": [1, 2, {"b": "x"}], "c": None}
    assert sum(one != value for one in changed) > 50
