"""Rows of a long measurement in a file that begins with what they are of, so that one that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from harmonize import __version__
from harmonize.errors import WrongUse


def version_of(files: Iterable[Path]) -> dict[str, str]:
    """The version, and what changes with any of the files that make the rows."""
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files)))
    return {"version": __version__, "code": code.hexdigest()}


def resumed(kept: Path, about: Mapping[str, object]) -> list[str]:
    """The rows that a run has left, for more to be added; a last one that is half written is dropped.

    Args:
        kept: Where they are; is begun where there are none.
        about: What the rows are of.

    Raises:
        WrongUse: They are of something else.
    """
    written = kept.read_bytes() if kept.exists() else b""
    whole = written[: written.rfind(b"\n") + 1]
    if not whole:
        kept.write_text(f"{json.dumps(about)}\n")
        return []
    first, *rows = whole.decode().splitlines()
    said = _read(first)
    other = next((name for name in about if said.get(name) != about[name]), None)
    if other:
        raise WrongUse(f"{kept}: its rows are of another {other}; delete it and run again")
    os.truncate(kept, len(whole))
    return rows


def _read(line: str) -> dict[str, object]:
    try:
        said = json.loads(line)
    except json.JSONDecodeError:
        said = None
    return said if isinstance(said, dict) else {}
