"""The standard histograms that scans of a corpus were normalised with: the scans to come need the same ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harmonize.corpus.target import NYUL
from harmonize.errors import UserError
from harmonize.voxels import nyul

UNIT = "nyul"
"""Of scans that one was used for, in the manifest."""


def used_by(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """The files of the histograms that rows of the manifest were made with, relative to the corpus; how many each."""
    made = (row.get("modality") for row in rows if row.get("unit") == UNIT)
    # A damaged manifest may say of none what it shows.
    return Counter(nyul.histogram_path(Path(NYUL), name).as_posix() for name in made if isinstance(name, str))


def lost(path: Path, used: Mapping[str, int]) -> Iterator[str]:
    """A line for each histogram of a corpus that is gone or damaged, though scans were made with it.

    Args:
        path: The corpus.
        used: What `used_by` gives of its scans.
    """
    for name, count in sorted(used.items()):
        try:
            nyul.load(path / name)
        except UserError:
            fault = "cannot be read" if (path / name).exists() else "missing"
            scans = "1 scan was" if count == 1 else f"{count} scans were"
            yield f"{name}: {fault}, and {scans} normalised with it"
