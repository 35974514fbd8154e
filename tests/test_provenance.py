"""The commit that is recorded is headspark's own, or none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harmonize import provenance
from harmonize.provenance import git_revision

OWN = '[project]\nname = "headspark"\n'
COMMIT = 40


def package_in(folder: Path) -> Path:
    package = folder / "harmonize"
    package.mkdir(parents=True)
    shutil.copy(provenance.__file__, package)
    return package


def commit_all(folder: Path) -> None:
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--allow-empty", "-m", "x"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *words], cwd=folder, check=True)


def checkout(folder: Path, *, project: str = OWN) -> Path:
    package = package_in(folder)
    (folder / "pyproject.toml").write_text(project)
    commit_all(folder)
    return package


def test_its_own_checkout_has_a_commit_and_says_whether_it_was_changed(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    clean = git_revision(package)
    assert clean is not None
    assert len(clean) == COMMIT
    (package / "provenance.py").write_text("changed")
    assert git_revision(package) == f"{clean}-dirty"


def test_this_checkout_has_one() -> None:
    root = Path(provenance.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    found = git_revision()
    assert found is not None
    assert len(found.removesuffix("-dirty")) == COMMIT


@pytest.mark.parametrize("place", ["venv/lib/python3.11/site-packages", "third_party/headspark", "."])
def test_the_repository_of_a_user_is_not_recorded(tmp_path: Path, place: str) -> None:
    package = package_in(tmp_path / place)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "my-thesis"\n')
    commit_all(tmp_path)
    assert git_revision(package) is None


def test_a_copy_that_a_users_repository_ignores_is_not_recorded(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n")
    package = checkout(tmp_path)
    assert git_revision(package) is None


def test_an_unpacked_archive_within_a_users_repository_is_not_recorded(tmp_path: Path) -> None:
    package = package_in(tmp_path / "headspark-0.1.0")
    (tmp_path / "headspark-0.1.0" / "pyproject.toml").write_text(OWN)
    commit_all(tmp_path)
    assert git_revision(package) is None


def test_outside_of_any_repository_there_is_none(tmp_path: Path) -> None:
    assert git_revision(package_in(tmp_path)) is None


def test_a_hook_of_another_repository_does_not_lend_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = checkout(tmp_path / "headspark")
    clean = git_revision(package)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/text").write_text("mine")
    commit_all(tmp_path / "thesis")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "thesis/.git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "thesis"))
    assert git_revision(package) == clean
    assert git_revision(package_in(tmp_path / "installed")) is None


def test_without_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = checkout(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(package) is None
