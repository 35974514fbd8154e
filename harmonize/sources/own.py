"""Sources of a user's own: files that the environment variable ``HARMONIZE_SOURCES`` names.

Processes that read scans inherit the variable, so they know these sources too, on other machines as well.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

from harmonize.errors import WrongUse

if TYPE_CHECKING:
    from harmonize.sources import Source

VARIABLE = "HARMONIZE_SOURCES"
"""Paths of Python files, parted by a colon (on Windows a semicolon). Each has a `Source` as ``SOURCE``."""


def add(known: dict[str, Source]) -> None:
    """Load the files that are not known yet; a source has the name of its file.

    Args:
        known: The sources by name; those of the files are added.

    Raises:
        UserError: A file cannot be a source; says which and why.
    """
    named: dict[str, Path] = {}
    for word in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        path = Path(word).absolute()
        module = f"harmonize_source_{path.stem}"
        where = f"{VARIABLE}: {word}"
        if named.setdefault(path.stem, path) != path:
            raise WrongUse(f"{where}: {named[path.stem]} has the same name; rename one of the two files")
        if path.stem in known and known[path.stem].module == module:
            continue
        if not re.fullmatch(r"[a-z][a-z0-9_]*", path.stem) or path.suffix != ".py":
            raise WrongUse(f"{where}: give it a name such as mydata.py, which the command is then called by")
        if path.stem in known:
            raise WrongUse(f"{where}: there is a source {path.stem} already; rename the file")
        known[path.stem] = replace(_load(path, module, where), module=module)


def _load(path: Path, module: str, where: str) -> Source:
    from harmonize.sources import Source

    spec = spec_from_file_location(module, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise WrongUse(f"{where}: no such file")
    loaded = module_from_spec(spec)
    sys.modules[module] = loaded
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[module]
        raise WrongUse(f"{where}: cannot be loaded: {type(error).__name__}: {error}") from error
    source = getattr(loaded, "SOURCE", None)
    if not isinstance(source, Source):
        raise WrongUse(f"{where}: has no SOURCE = Source(...); docs/your-data.md has one to begin with")
    for name in ("discover", "load"):
        if not callable(getattr(loaded, name, None)):
            raise WrongUse(f"{where}: has no function {name}; docs/your-data.md has one to begin with")
    return source
