"""constraints.txt: one exact version of everything that pyproject.toml asks for, and nothing but versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PINNED = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([0-9][0-9a-z.]*)")
spec = importlib.util.spec_from_file_location("constraints", ROOT / ".ci/constraints.py")
assert spec
assert spec.loader
constraints = importlib.util.module_from_spec(spec)
spec.loader.exec_module(constraints)


def pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = [PINNED.fullmatch(line) for line in lines]
    assert [line for line, match in zip(lines, found, strict=True) if match is None] == []
    return {match[1]: match[2] for match in found if match}


def test_each_dependency_and_extra_is_pinned_to_a_version_that_pyproject_allows() -> None:
    asked = [Requirement(text) for text in constraints.named(ROOT / "pyproject.toml")]
    assert len(asked) > 30
    there = pins()
    assert [str(each) for each in asked if canonicalize_name(each.name) not in there] == []
    assert [str(each) for each in asked if not each.specifier.contains(there[canonicalize_name(each.name)])] == []


def test_the_pins_allow_each_other() -> None:
    there = pins()
    wrong = []
    for name in there:
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of an extra that is not installed here
            continue
        for text in requires:
            below = Requirement(text)
            if below.marker is not None and not below.marker.evaluate({"extra": ""}):
                continue
            pin = there.get(canonicalize_name(below.name))
            if pin is None or not below.specifier.contains(pin):
                wrong.append(f"{name} needs {below}, pinned is {pin}")
    assert wrong == []


def test_a_local_label_is_not_written_because_no_index_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local:
        version, requires = "2.8.0+cpu", None

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Local())
    assert constraints.needed(["torch>=2.8"]) == {"torch": "2.8.0"}
    assert all(Version(version).local is None for version in pins().values())


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_hands_the_constraints_to_pip() -> None:
    command = ["make", "--dry-run", "--always-make", "test", "PIP_ARGS=-c constraints.txt"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(r"pip install --quiet -c constraints\.txt --editable", said)
