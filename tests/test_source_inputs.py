"""Which files a scan is made from: its own, and those that its source looks for beside them."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import pytest

from harmonize import phantom, sources
from harmonize.errors import Rejection


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    phantom.write("all", folder, scans=2, size=24, seed=0)
    return folder


@pytest.mark.parametrize("source", [name for name, entry in sources.SOURCES.items() if entry.phantom])
def test_every_file_that_loading_opens_is_named(source: str, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own audit events say which files are opened."""
    opened: set[Path] = set()
    with monkeypatch.context() as patched:
        patched.setitem(AUDITED, "to", opened)
        for ref in sources.references(source, raw / source):
            opened.clear()
            if ref.rejection is not None:
                continue
            with suppress(Rejection):
                sources.get(source).load(ref)
            read = {path for path in opened if path.is_relative_to(raw)}
            assert set() < read <= set(sources.inputs(ref))


AUDITED: dict[str, set[Path]] = {}


@pytest.fixture(scope="module", autouse=True)
def audit() -> None:
    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and "to" in AUDITED and isinstance(arguments[0], str):
            AUDITED["to"].add(Path(arguments[0]))

    sys.addaudithook(note)


def test_a_mask_that_appears_later_is_one_of_the_files(raw: Path) -> None:
    ref = next(iter(sources.references("openmind", raw / "openmind")))
    stem = ref.paths[0].name.removesuffix(".gz").removesuffix(".nii")
    folder = ref.paths[0].with_name(f"{stem}__Data")
    mask = next(path for path in sources.inputs(ref) if path.parent == folder)
    mask.rename(mask.with_name("elsewhere"))
    assert mask not in sources.inputs(ref)
    mask.with_name("elsewhere").rename(mask)
    assert mask in sources.inputs(ref)
