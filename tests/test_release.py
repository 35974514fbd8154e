"""What a release is made of: a version, a wheel that works anywhere, and files about it that agree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import harmonize
from harmonize.errors import WrongUse
from headspark.cli import main
from headspark.config import read_recipe
from headspark.config.shipped import locate_recipe, purpose, shipped_recipes
from headspark.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
TOY = """--data.patch 16 --data.workers 0 --encoder.features [4,8] --encoder.blocks [1,1] --encoder.strides [1,2]
         --mask.block 8 --decoder.stop_stride 2 --decoder.width 4 --train.steps 1 --train.val_samples 1
         --optim.warmup 0 --train.trackers []"""


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def build(source: Path, out: Path, *options: str) -> None:
    """As `make dist` does, with the tools of this environment."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SETUPTOOLS_SCM")}
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a release holds, copied out of this checkout and without its history."""
    folder = tmp_path_factory.mktemp("source") / "headspark"
    for name in ("harmonize", "finetune", "ssl", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "version.txt"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    return folder


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def released(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of a commit with a tag."""
    folder = tmp_path_factory.mktemp("tagged") / "headspark"
    shutil.copytree(copy, folder)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["tag", "v7.8.9"]):
        git(folder, *words)
    build(folder, folder.parent / "dist")
    return folder.parent / "dist"


@pytest.fixture(scope="module")
def installed(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own; the libraries are those of the tests."""
    target = tmp_path_factory.mktemp("installed") / "site"
    (wheel,) = released.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True)
    return target


def run(installed: Path, *words: str, cwd: Path) -> str:
    """A command of the installed wheel, in a folder that holds nothing of this repository."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(name: str) -> list[str]:
    """What the console script of this name does, before anything of this checkout is looked at."""
    module, _, function = project()["project"]["scripts"][name].partition(":")  # type: ignore[index]
    code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
    return ["-c", code]


def test_the_wheel_has_the_version_of_the_tag_and_runs_outside_of_the_repository(
    installed: Path, tmp_path: Path, tiny_corpus: Path
) -> None:
    assert run(installed, *script("headspark"), "--version", cwd=tmp_path) == "headspark 7.8.9\n"
    listed = run(installed, *script("headspark"), "recipes", cwd=tmp_path).splitlines()
    assert {line.split()[0] for line in listed if not line.startswith("#")} == RECIPES
    printed = run(installed, *script("headspark"), "recipes", "demo", cwd=tmp_path)
    assert printed == (ROOT / "recipes/demo.yaml").read_text()
    words = ["pretrain", "--config", "recipes/demo.yaml", "--corpus", str(tiny_corpus), "--out", "run", *TOY.split()]
    run(installed, *script("headspark"), *words, cwd=tmp_path)
    state = json.loads((tmp_path / "run/run.json").read_text())
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["mask"]["ratio"] == 0.7  # as recipes/demo.yaml
    assert state["status"] == "finished"
    assert state["libraries"]["headspark"] == "7.8.9"
    assert state["revision"] is None
    assert "--out" in run(installed, "-m", "finetune.demo", "--help", cwd=tmp_path)


def test_the_sdist_says_its_version_again_where_there_is_no_history(released: Path, tmp_path: Path) -> None:
    (sdist,) = released.glob("*.tar.gz")
    assert sdist.name == "headspark-7.8.9.tar.gz"
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    build(tmp_path / "headspark-7.8.9", tmp_path / "again", "-t", "wheel")
    (wheel,), (first,) = (tmp_path / "again").glob("*.whl"), released.glob("*.whl")
    assert wheel.name == first.name
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(first) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_a_copy_without_history_and_a_clone_without_tags_can_be_built(copy: Path, tmp_path: Path) -> None:
    build(copy, tmp_path / "bare", "-t", "wheel")
    assert [path.name for path in (tmp_path / "bare").iterdir()] == [f"headspark-{fallback()}-py3-none-any.whl"]
    clone = shutil.copytree(copy, tmp_path / "clone")
    git(clone, "init", "-q")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "one")
    build(clone, tmp_path / "untagged", "-t", "wheel")
    (wheel,) = (tmp_path / "untagged").iterdir()
    assert Version(wheel.name.split("-")[1]) > Version(fallback())


def fallback() -> str:
    return str(project()["tool"]["hatch"]["version"]["fallback-version"])  # type: ignore[index]


def test_the_files_about_a_release_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    about = project()["project"]
    changes = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes[0] == "Unreleased"
    assert citation["version"] == changes[1] == fallback()
    assert project()["tool"]["hatch"]["version"]["raw-options"]["fallback_version"] == fallback()  # type: ignore[index]
    assert citation["license"] == about["license"] == "Apache-2.0"  # type: ignore[index]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    name, _, subject = citation["title"].partition(": ")
    assert name == about["name"]  # type: ignore[index]
    assert about["description"].lower().startswith(subject.split(" for ")[0].lower())  # type: ignore[index]


def test_code_that_was_never_installed_says_the_version_of_the_last_release(tmp_path: Path) -> None:
    shutil.copy(ROOT / "harmonize/__init__.py", tmp_path / "bare.py")
    code = "import bare; print(bare.__version__)"
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == fallback()
    assert Version(harmonize.__version__) >= Version(fallback())


# Recipes by name


def test_a_recipe_is_found_by_name_and_a_file_of_ones_own_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(shipped_recipes()) == RECIPES
    for given in ("demo", "demo.yaml", "recipes/demo.yaml"):
        assert locate_recipe(Path(given)) == ROOT / "recipes/demo.yaml"
    assert read_recipe(Recipe, Path("demo")).train.steps == read_recipe(Recipe, ROOT / "recipes/demo.yaml").train.steps
    Path("demo").mkdir()  # as `make demo` does
    assert locate_recipe(Path("demo")) == ROOT / "recipes/demo.yaml"
    Path("demo.yaml").write_text("train: {steps: 3}")
    assert read_recipe(Recipe, Path("demo.yaml")).train.steps == 3
    for path in ("elsewhere/demo.yaml", "/recipes/demo.yaml", "none.yaml"):
        assert locate_recipe(Path(path)) == Path(path)


def test_a_name_that_no_recipe_has_is_refused_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongUse, match=r"--config dmeo: no such file.*did you mean demo\?"):
        locate_recipe(Path("dmeo"))
    with pytest.raises(WrongUse, match="`headspark recipes` lists"):
        locate_recipe(Path("zzzz"))


@pytest.mark.parametrize("words", [("dmeo",), ("none.yaml",), ("/none",), ("dmeo", "--debug")])
def test_a_recipe_that_cannot_be_printed_is_one_line_about_what_was_given(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--debug" in words:
        with pytest.raises(WrongUse, match="dmeo"):
            main(["recipes", *words])
        return
    assert main(["recipes", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {words[0]}: no such file")


def test_each_recipe_says_in_a_sentence_what_it_is_for() -> None:
    said = {name: purpose(path) for name, path in shipped_recipes().items()}
    assert [name for name, text in said.items() if not 15 < len(text) < 220 or not text.endswith(".")] == []
    assert len(set(said.values())) == len(said)


# What GitHub reads


def test_the_forms_for_issues_ask_for_what_doctor_prints() -> None:
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) >= 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert set(form) >= {"name", "description", "body"}
        assert any("headspark doctor" in part["attributes"].get("label", "") for part in form["body"])
        ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids))


def test_workflows_call_what_a_user_calls_and_make_knows_it() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = []
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            commands += [step["run"] for step in job["steps"] if "run" in step]
    assert ".ci/run" in commands
    made = {command.removeprefix("make ") for command in commands if command.startswith("make ")}
    assert {"demo", "dist", "site"} <= made <= targets


def test_hooks_are_local_and_call_what_make_lint_calls() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    entries = " ".join(hook["entry"] for hook in repos[0]["hooks"])
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nlint:")[1].split("\n\n")[0]
    for tool in re.findall(r"\$\(BIN\)/([a-z-]+)", lint):
        assert f".venv/bin/{tool}" in entries


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_hands_its_options_to_every_pip_that_installs() -> None:
    command = ["make", "--dry-run", "--always-make", "test", "site", "constraints", "dist", "PIP_ARGS=--some-option"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pips = [line for line in said.splitlines() if "pip install" in line]
    assert len(pips) >= 4
    assert [line for line in pips if "--some-option" not in line] == []
