"""What made a result: library versions, Python, and the git revision of the code."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    "headspark", "torch", "monai", "nibabel", "numpy", "SimpleITK", "pydicom", "python-gdcm", "isal", "pandas",
    "pyarrow", "intensity-normalization", "accelerate", "timm", "datasets", "huggingface-hub", "scikit-learn",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a result, by distribution name; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit of the checkout this code runs from, with ``-dirty`` for local changes; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
