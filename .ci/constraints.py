"""Write constraints.txt: the versions of this environment of all that headspark and its extras need, one a line.

Run by `make constraints`, after the tests have passed in that environment. Versions only, so that the file holds for
every index: no addresses, no hashes, and of `2.8.0+cpu` the public part.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Versions with which the tests of this release pass, for `pip install -c constraints.txt .`
# Written by `make constraints`.
"""


def named(pyproject: Path) -> list[str]:
    """What pyproject.toml asks for: dependencies and all extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]


def needed(requirements: Iterable[str]) -> dict[str, str]:
    """Public version of each installed library that these need, and those again, by name.

    Raises:
        PackageNotFoundError: One is not installed.
    """
    versions: dict[str, str] = {}
    waiting = [Requirement(each) for each in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        found = importlib.metadata.distribution(name)
        versions[name] = Version(found.version).public
        for extra in ("", *wanted.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in found.requires or ():
                below = Requirement(text)
                if below.marker is None or below.marker.evaluate({"extra": extra}):
                    waiting.append(below)
    return versions


def main() -> int:
    """Write the file; the exit code says whether everything was installed."""
    try:
        versions = needed(named(ROOT / "pyproject.toml"))
    except importlib.metadata.PackageNotFoundError as error:
        print(f"{error.name} is not installed; give `make constraints`, which installs all extras", file=sys.stderr)
        return 1
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    (ROOT / "constraints.txt").write_text(HEAD + "".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
