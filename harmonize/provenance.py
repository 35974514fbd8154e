"""What made a result: library versions, Python, and the git revision of the code."""

from __future__ import annotations

import os
import platform
import subprocess
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTION = "headspark"
PACKAGE = Path(__file__).parent

ELSEWHERE = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE",
)  # fmt: skip
"""Variables that a hook of another repository sets, and that git believes rather than the folder it is asked in."""

LIBRARIES = (
    DISTRIBUTION, "torch", "monai", "nibabel", "numpy", "SimpleITK", "pydicom", "python-gdcm", "isal", "pandas",
    "pyarrow", "intensity-normalization", "accelerate", "timm", "datasets", "huggingface-hub", "scikit-learn",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a result, by distribution name; absent ones are left out."""
    return dict(_library_versions())


@cache  # a run asks several times, and each time it would be 18 files to parse: 14 ms
def _library_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_revision(package: Path = PACKAGE) -> str | None:
    """The commit of the checkout that this code runs from, with ``-dirty`` for local changes; None outside of its own.

    A user's repository is none of ours: an environment may lie in it, or a copy of this package.

    Args:
        package: This package's folder.
    """
    home = package.resolve().parent
    top = _git(home, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != home or _project_name(home / "pyproject.toml") != DISTRIBUTION:
        return None
    # An environment or an unpacked archive at the top of another repository would be there without being in it.
    if _git(home, "ls-files", "--error-unmatch", f"{package.name}/{Path(__file__).name}") is None:
        return None
    return _git(home, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *words: str) -> str | None:
    """What git says about a folder; None where there is no git, or it refuses."""
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _project_name(path: Path) -> str | None:
    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8"))["project"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
