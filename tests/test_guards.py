"""The shape of the house, and of its test runs: what must hold of the repository as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
SSL_SCRIPTS = {"pretrain.py", "push.py"}
TOP = {
    "harmonize", "ssl", "finetune", "recipes", "slurm", "tests", "docs",
    "pyproject.toml", "README.md", "Makefile", "LICENSE", "CITATION.cff", "constraints.txt",
    "CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml",
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


def test_a_run_that_saw_no_real_scans_says_so(request: pytest.FixtureRequest) -> None:
    conftest = next(plugin for plugin in request.config.pluginmanager.get_plugins() if hasattr(plugin, "NO_REAL_DATA"))
    said: list[str] = []

    def summary(*reasons: str) -> list[str]:
        skipped = [SimpleNamespace(longrepr=("file.py", 1, f"Skipped: {reason}")) for reason in reasons]
        reporter = SimpleNamespace(stats={"skipped": skipped}, write_line=lambda line, **style: said.append(line))
        conftest.pytest_terminal_summary(reporter)
        return said

    assert summary() == []
    assert summary("needs a GPU") == []
    (line,) = summary("needs a GPU", conftest.NO_REAL_DATA, conftest.NO_REAL_DATA)
    assert line.startswith("skipped tests on real scans: 2 (no real scans at ")
