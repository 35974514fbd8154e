"""The shape of the house: what must hold of the repository as a whole."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "harmonize": (ROOT / "harmonize", {"headspark", "finetune"}),
    "headspark": (ROOT / "ssl" / "headspark", {"finetune"}),
}
SSL_SCRIPTS = {"pretrain.py", "push.py"}
TOP = {
    "harmonize", "ssl", "finetune", "recipes", "slurm", "tests", "docs",
    "pyproject.toml", "README.md", "Makefile", "LICENSE", "CITATION.cff", "constraints.txt",
}  # fmt: skip


def imported_packages(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_from_those_above_it(floor: str) -> None:
    folder, forbidden = FLOORS[floor]
    files = sorted(folder.rglob("*.py"))
    assert files
    assert [(file.name, name) for file in files for name in imported_packages(file) & forbidden] == []


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
