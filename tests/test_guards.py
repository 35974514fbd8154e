"""The shape of the house: what must hold of the repository as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SSL_SCRIPTS = {"pretrain.py", "push.py"}
TOP = {
    "harmonize", "ssl", "finetune", "recipes", "slurm", "tests", "docs",
    "pyproject.toml", "README.md", "Makefile", "LICENSE", "CITATION.cff", "constraints.txt",
}  # fmt: skip


def test_the_standard_librarys_ssl_is_not_shadowed_at_the_root() -> None:
    code = "import ssl, huggingface_hub; ssl.create_default_context(); print(ssl.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "lib/python" in done.stdout


def test_only_thin_scripts_stand_beside_the_package_in_ssl() -> None:
    assert {path.name for path in (ROOT / "ssl").glob("*.py")} == SSL_SCRIPTS


def test_nothing_else_stands_at_the_top() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} == TOP
