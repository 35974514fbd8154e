"""The examples in docstrings, in every room of the packages, give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"harmonize": ROOT, "headspark": ROOT / "ssl", "finetune": ROOT, "fuzz": ROOT / "tests"}
WITH_EXAMPLES = [
    (path, ".".join(path.relative_to(above).with_suffix("").parts).removesuffix(".__init__"))
    for package, above in PACKAGES.items()
    for path in sorted((above / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize(("path", "name"), WITH_EXAMPLES, ids=[name for _, name in WITH_EXAMPLES])
def test_the_examples_of_a_module_give_what_they_say(path: Path, name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.failed == 0
    written = path.read_text(encoding="utf-8").count(">>> ")
    assert found.attempted == written, "an example stands where none is looked for"
