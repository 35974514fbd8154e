"""Only a task knows what is asked: nothing else in finetune or headspark names a label, a source, or counts labels."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from harmonize.labels import LABELS, LOCATIONS

ROOT = Path(__file__).resolve().parents[1]
OWN = ("finetune/tasks/aneurysm.py", "finetune/kaggle/", "finetune/demo/", "finetune/study/", "finetune/raw/trees.py")
"""The last knows which files of the competition's download are scans."""
FILES = [
    path
    for folder in ("finetune", "ssl/headspark")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.relative_to(ROOT).as_posix().startswith(OWN)
]
COUNTS = (len(LOCATIONS), len(LABELS))


def documentation(tree: ast.Module) -> set[int]:
    """The constants that are docstrings, of names too."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def faults(text: str) -> list[str]:
    """What code says that only a task may say."""
    tree = ast.parse(text)
    ignored = documentation(tree)
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and id(node) not in ignored:
            value = node.value
            if type(value) is int and value in COUNTS:
                found.append(f"line {line}: the number {value}")
            if isinstance(value, str) and ("rsna" in value.lower() or any(label in value for label in LABELS)):
                found.append(f"line {line}: {value[:60]!r}")
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if any("rsna" in name or name in ("harmonize.labels", "finetune.tasks.aneurysm") for name in named):
                found.append(f"line {line}: imports {node.module}")
        names = [getattr(node, name, None) for name in ("id", "attr", "arg", "name")]
        if any(isinstance(name, str) and "rsna" in name.lower() for name in names):
            found.append(f"line {line}: a name with rsna")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_but_a_tasks_knows_what_is_asked(path: Path) -> None:
    assert faults(path.read_text()) == []


def test_each_kind_of_fault_is_found() -> None:
    for code in (
        "x = 13",
        "y = f(14)",
        'label = "Basilar Tip"',
        'source = "rsna"',
        "from harmonize.labels import LABELS",
        "from finetune.tasks.aneurysm import AneurysmTask",
        "from harmonize.sources import rsna",
        "rsna_case = 1",
    ):
        assert len(faults(code)) >= 1, code
    assert faults('"""13 of the RSNA\'s labels, such as Basilar Tip."""\nx = 12  # not 13\n') == []
