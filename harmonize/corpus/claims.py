"""What a corpus was made with, in its corpus.json: whether a run may add to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harmonize.corpus.layout import SCHEMA_VERSION
from harmonize.corpus.reading import Corpus
from harmonize.corpus.target import INFO, check_ours
from harmonize.errors import WrongUse
from harmonize.files import write_json
from harmonize.provenance import library_versions
from harmonize.salt import is_known_by
from harmonize.settings import PERCENTILES, Settings

SALT = "salt_fingerprint"
ANOTHER_SALT = "another --salt; give the same one, in HARMONIZE_SALT or --salt-file"


def check_claim(path: Path, source: str, settings: Settings) -> dict[str, Any]:
    """Check that a corpus is new, or was made with the same settings; nothing is written.

    Returns:
        The content of corpus.json, or what a new one begins with.

    Raises:
        WrongUse: The corpus holds scans made otherwise; names the first difference.
    """
    info: dict[str, Any] = {"settings": settings.shared(), "sources": {}}
    if check_ours(path):
        info = Corpus.open(path).info
    there = info["settings"]
    if not is_known_by(settings.salt, there.get(SALT)):
        raise WrongUse(f"{path}: was made with {ANOTHER_SALT}")
    _refuse_difference(path, there, settings.shared() | {SALT: there[SALT]})
    _refuse_difference(path, info["sources"].get(source, settings.of_source()), settings.of_source())
    return info


def claim(path: Path, source: str, settings: Settings) -> None:
    """Create corpus.json, or add the source to what is there.

    Raises:
        WrongUse: See `check_claim`.
    """
    info = check_claim(path, source, settings)
    sources = info["sources"] | {source: settings.of_source()}
    fresh = {
        "schema_version": SCHEMA_VERSION,
        "settings": info["settings"],
        "sources": dict(sorted(sources.items())),
        "percentiles": list(PERCENTILES),
        "libraries": library_versions(),
    }
    if fresh != info:
        write_json(path / INFO, fresh)


def _refuse_difference(path: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise WrongUse(
                f"{path}: was made with {name} {there.get(name)}, now {wanted.get(name)} is asked for; "
                "use the same settings or another --out"
            )
