"""Versions, whether what headspark needs can be imported, and whether it is what it seems to be."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import sysconfig
import time
import warnings
from importlib import metadata, util
from importlib.machinery import PathFinder
from pathlib import Path

from harmonize import __version__
from harmonize.provenance import DISTRIBUTION, git_revision, library_versions
from harmonize.system import NEWEST_PYTHON
from headspark.data.memory import GIB, address_limit, gib
from headspark.doctor.section import Section

PACKAGES = ("harmonize", "headspark", "finetune")
NEEDED = ("harmonize.engine", "headspark.train")
"""What loads all that harmonizing and pretraining need."""
LEAST_ADDRESSES = 5 * GIB
"""What these take of addresses, with a PyTorch for CUDA: its libraries are mapped as a whole."""


def examine_software() -> Section:
    """Versions of headspark, Python, the system and the libraries, and where the packages lie."""
    found = Section(name="versions")
    libraries = {name: version for name, version in library_versions().items() if name != "python"}
    python = platform.python_version()
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    revision = git_revision()
    places = _places()
    found.facts = {
        "headspark": __version__, "revision": revision, "python": python, "system": system, "libraries": libraries,
        "places": places,
    }  # fmt: skip
    found.text = [
        f"headspark {__version__}" + (f" ({revision})" if revision else ""),
        f"Python {python} on {system}",
        ", ".join(f"{name} {version}" for name, version in libraries.items() if name != DISTRIBUTION),
        ", ".join(f"{name} in {place}" for name, place in places.items()),
    ]
    if sys.version_info[:2] > NEWEST_PYTHON:
        newest = ".".join(map(str, NEWEST_PYTHON))
        found.findings.append(
            f"Python {python} is newer than {newest}, the newest that is known to have wheels of every library"
        )
    roots = {Path(place).parent for name, place in places.items() if name != "headspark"}
    if len(roots) > 1:
        found.findings.append("harmonize and finetune come from different folders: is an old copy on PYTHONPATH?")
    found.findings += _unmet()
    return found


def examine_imports() -> Section:
    """Whether the programs can be loaded at all, and how long that takes."""
    found = Section(name="imports")
    began = time.monotonic()
    for name in NEEDED:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
            found.fatal = True
            found.findings.append(f"{name} cannot be imported: {type(error).__name__}: {lines[0]}; {_mend()}")
    seconds = round(time.monotonic() - began, 1)
    found.facts = {"works": not found.fatal, "seconds": seconds}
    found.text = ["broken" if found.fatal else f"work, in {seconds} s"]
    return found


def examine_ssl() -> Section:
    """Whether ``import ssl`` gives Python's own, here and in this folder: headspark's folder has the same name."""
    found = Section(name="ssl")
    own = Path(sysconfig.get_path("stdlib")) / "ssl.py"
    places = {}
    for where, path in (("this command", sys.path), ("the current folder", [str(Path.cwd()), *sys.path])):
        spec = PathFinder.find_spec("ssl", path)
        places[where] = None if spec is None or spec.origin is None else str(Path(spec.origin).resolve())
    shadowed = [where for where, place in places.items() if place != str(own.resolve())]
    found.facts = {"shadowed": bool(shadowed), "places": places}
    found.text = ["shadowed" if shadowed else "Python's own"]
    found.findings = [
        f"`import ssl` in {where} finds {places[where] or 'nothing'}, not Python's own: nothing can be fetched or "
        "pushed; change to another folder, or take it out of PYTHONPATH or rename it"
        for where in shadowed
    ]
    return found


def _mend() -> str:
    limit = address_limit()
    if limit is None or limit >= LEAST_ADDRESSES:
        return "install headspark again"
    return (
        f"`ulimit -v` leaves a process {gib(limit)} of addresses, and the libraries alone take about "
        f"{gib(LEAST_ADDRESSES)}: raise it, or have memory limited by the job"
    )


def _places() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        spec = util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found[name] = os.path.normpath(Path(spec.origin).parent)
    return found


def _unmet() -> list[str]:
    """Requirements of headspark that are not met, one line each."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return ["headspark is not installed, only found: `pip install headspark` brings its libraries and commands"]
    faults = []
    for text in wanted:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is not installed: `pip install '{requirement}'`")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} {version} is installed, {requirement.specifier} is needed")
    return faults
