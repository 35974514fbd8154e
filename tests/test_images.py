"""The images of slurm/, which are not built here: both install the same, what this repository has, and it works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
AT = "/opt/headspark"


def docker() -> tuple[str, list[str]]:
    """What an image starts from, and the commands that make it."""
    lines = (ROOT / "slurm/Dockerfile").read_text().splitlines()
    (base,) = [line.removeprefix("FROM ") for line in lines if line.startswith("FROM ")]
    assert f"COPY .git {AT}.git" in lines
    return base, [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ")]


def apptainer() -> tuple[str, list[str]]:
    text = (ROOT / "slurm/headspark.def").read_text()
    sections = dict(re.findall(r"^%(\w+)\n((?: {4}.*\n)+)", text, re.MULTILINE))
    assert sections["files"].split() == [".git", f"{AT}.git"]
    (base,) = re.findall(r"^From: (.*)$", text, re.MULTILINE)
    return base, [line.strip() for line in sections["post"].splitlines()]


def pip_words() -> list[str]:
    """The command that installs headspark, without the interpreter."""
    (command,) = [
        words for line in docker()[1] if (words := shlex.split(line))[:4] == ["python", "-m", "pip", "install"]
    ]
    return command[1:]


def test_both_images_are_made_by_the_same_commands() -> None:
    assert docker() == apptainer()
    assert len(docker()[1]) == 3


def test_what_lies_in_the_checkout_and_is_not_of_it_stays_at_home(tmp_path: Path) -> None:
    (clone,) = [shlex.split(line) for line in docker()[1] if line.startswith("git ")]
    checkout, image = tmp_path / "checkout", tmp_path / "image"
    subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    (checkout / "CORPUS").mkdir()
    (checkout / "CORPUS/scan.nii.gz").touch()
    shutil.copytree(checkout / ".git", f"{image}{AT}.git")
    subprocess.run([word.replace(AT, f"{image}{AT}") for word in clone], check=True)
    assert (image / AT.strip("/") / "pyproject.toml").is_file()
    assert not list(image.rglob("scan.nii.gz"))


def test_what_they_install_is_what_this_repository_has() -> None:
    base, _ = docker()
    python = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert python is not None
    assert Version(python[1]) in SpecifierSet(PROJECT["requires-python"])
    *options, headspark = pip_words()
    assert options == ["-m", "pip", "install", "--no-cache-dir", "--constraint", f"{AT}/constraints.txt"]
    folder, _, extras = headspark.rstrip("]").partition("[")
    assert folder == AT
    extras = extras.split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    pinned = {one.name: one for line in (ROOT / "constraints.txt").read_text().splitlines() if (one := pin(line))}
    wanted = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]
    for requirement in map(Requirement, wanted):
        (version,) = pinned[requirement.name.lower()].specifier
        assert version.version in requirement.specifier, requirement


def pin(line: str) -> Requirement | None:
    return None if line.startswith("#") or not line else Requirement(line)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_installation_of_the_images_works_in_a_clean_environment(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    copy = tmp_path / "headspark"
    subprocess.run(["git", "clone", "--quiet", ROOT, copy], check=True)
    words = [word.replace(AT, str(copy)) for word in pip_words()]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [tmp_path / "venv/bin/python", *words], env=clean, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    for program in PROJECT["scripts"]:
        said = subprocess.run(
            [tmp_path / "venv/bin" / program, "--version"], cwd=tmp_path, env=clean, capture_output=True, text=True
        )
        assert said.returncode == 0, said.stderr
        assert said.stdout.startswith(program)
    raw = ["phantom", "--source", "nifti", "--out", "RAW", "--scans", "2", "--size", "32"]
    for arguments in (raw, ["nifti", "RAW/nifti", "--out", "CORPUS", "--spacing", "4"]):
        ran = subprocess.run(
            [tmp_path / "venv/bin/harmonize", *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
    listed = [str(tmp_path / "venv/bin/python"), "-m", "pip", "list", "--format=json"]
    found = {one["name"].lower() for one in json.loads(subprocess.run(listed, capture_output=True, check=True).stdout)}
    assert {"dask-jobqueue", "nipreps-synthstrip", "torch"} <= found
