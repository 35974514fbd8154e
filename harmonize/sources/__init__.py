"""The registry of raw sources: each is one module with `discover(root)` and `load(ref)`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from harmonize.errors import UserError
from harmonize.scan import LeftOut, Scan, ScanRef

SOURCES = {
    "openmind": "harmonize.sources.openmind",
    "tcia": "harmonize.sources.tcia",
    "deeplesion": "harmonize.sources.deeplesion",
    "rsna": "harmonize.sources.rsna",
}


class Source(Protocol):
    """What a source module offers."""

    def discover(self, root: Path) -> Iterator[ScanRef | LeftOut]:
        """Yield one reference a volume, in a deterministic order, without reading pixels; and what was left out."""
        ...

    def load(self, ref: ScanRef) -> Scan:
        """Read one volume; raise `harmonize.errors.Rejection` if it must be refused."""
        ...


def get(name: str) -> Source:
    """Import the source module of that name.

    Raises:
        UserError: No such source.
    """
    if name not in SOURCES:
        raise UserError(f"source {name!r}: unknown; use one of {', '.join(SOURCES)}", exit_code=2)
    return cast(Source, import_module(SOURCES[name]))


def references(name: str, root: Path) -> Iterator[ScanRef]:
    """The references alone of what a source discovers.

    Raises:
        UserError: No such source, or the root is not laid out as the source's.
    """
    return (found for found in get(name).discover(root) if isinstance(found, ScanRef))


def inputs(ref: ScanRef) -> tuple[Path, ...]:
    """The files that `load` reads for a reference, in a fixed order.

    These are its paths and the files that its `meta` names; a source whose `load` looks for more has an ``inputs`` of
    its own.

    Raises:
        UserError: No such source.
    """
    own = getattr(get(ref.source), "inputs", None)
    if own is not None:
        return cast(tuple[Path, ...], own(ref))
    return (*ref.paths, *(value for value in ref.meta.values() if isinstance(value, Path)))


def check_still_there(root: Path) -> None:
    """Raise if the raw folder is gone, or empty as a mount point is when nothing is mounted on it.

    Raises:
        UserError: It is.
    """
    try:
        vanished = next(root.iterdir(), None) is None
    except OSError:
        vanished = True
    if vanished:
        raise UserError(f"{root}: vanished during the run; bring it back and run the same command again")
