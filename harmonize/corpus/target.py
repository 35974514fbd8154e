"""The folder that a corpus is written to: whose it is, and which of its files are ours to remove."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harmonize.bounded_files import read_small_json
from harmonize.errors import UserError, WrongUse
from harmonize.files import TEMPORARY, target_of_temporary

INFO = "corpus.json"
LOCK = ".lock"
RECORDS, NYUL = "records", "nyul"
FILES = (INFO, "metadata.parquet", "rejected.parquet", "labels.parquet", "README.md")
"""What a corpus holds besides folders."""

LOOK = ".look"
"""How the names of files end in which shards share what one of them found in the raw folder; merging removes them."""

FOLDERS = {
    "images": (".nii.gz",),
    "masks": (".nii.gz",),
    NYUL: (".npy",),
    RECORDS: (".jsonl", LOOK),
    "report": (".html",),
}
"""Its folders, and how the names of the files in each end."""

ELSEWHERE = "give --out a new folder, an empty one or a corpus"


def check_folder(out: Path) -> None:
    """Check that `out` is a folder that may be written to, or can become one; nothing is written.

    Raises:
        UserError: It cannot (exit code 2).
    """
    if os.path.lexists(out) and not out.is_dir():
        what = "a link that leads nowhere" if out.is_symlink() and not out.exists() else "a file"
        raise WrongUse(f"{out}: {what}, not a folder; choose another --out")
    place = Path(os.path.realpath(out))
    there = next(folder for folder in (place, *place.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise WrongUse(f"{out}: {there} is a file, not a folder; choose another --out")
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise WrongUse(f"{out}: {there} may not be written to; choose another --out")


def check_place(out: Path, root: Path) -> None:
    """Check that a corpus may lie at `out`, beside the raw folder `root`; nothing is written.

    Raises:
        UserError: See `check_folder`; or it lies inside the raw folder or around it (exit code 2).
    """
    check_folder(out)
    place, raw = Path(os.path.realpath(out)), Path(os.path.realpath(root))
    if place.is_relative_to(raw):
        raise WrongUse(f"{out}: lies inside the raw folder {root}; give --out a place outside")
    if raw.is_relative_to(place):
        raise WrongUse(f"{out}: the raw folder {root} lies inside it; give --out a place of its own")


def check_ours(out: Path) -> bool:
    """Whether a corpus lies at `out` (else the folder is new or empty); nothing is written.

    Raises:
        UserError: The folder is somebody else's (exit code 2).
    """
    if not out.is_dir():
        return False
    if os.path.lexists(out / INFO):
        fault = fault_of_info(read_info(out))
        if fault:
            raise WrongUse(f"{out}: not a corpus of harmonize ({INFO} {fault}); {ELSEWHERE}")
        return True
    if not all(_is_left_by_a_start(entry) for entry in out.iterdir()):
        if os.path.lexists(out / INFO):
            # Another shard has just made the corpus: what was seen first was its beginning.
            return check_ours(out)
        raise WrongUse(f"{out}: not empty and no corpus; {ELSEWHERE}")
    return False


def read_info(path: Path) -> Any:
    """The content of corpus.json, whatever it is.

    Raises:
        UserError: It cannot be read, or is not JSON.
    """
    file = path / INFO
    try:
        return read_small_json(file)
    except ValueError as error:
        raise UserError(f"{file}: {error}; restore it or start a new corpus") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def fault_of_info(info: Any) -> str:
    """What shows that a corpus.json is not harmonize's; empty for one of ours, of any schema version."""
    if not isinstance(info, dict):
        return "holds no settings"
    settings, sources = info.get("settings"), info.get("sources")
    if not isinstance(info.get("schema_version"), int):
        return "has no schema_version"
    if not isinstance(settings, dict) or not {"spacing", "salt_fingerprint"} <= settings.keys():
        return "has no settings of harmonize"
    if not _is_three_mm(settings["spacing"]):
        return "names no spacing"
    if not all(isinstance(settings.get(name, False), bool) for name in ("crop_foreground", "bake_windows", "n4")):
        return "has settings that are not harmonize's"
    if settings.get("circle_mm") is not None and not _is_three_mm(settings["circle_mm"]):
        return "names no box around the circle of Willis"
    if not isinstance(sources, dict) or not all(isinstance(chosen, dict) for chosen in sources.values()):
        return "has no sources"
    if not all(isinstance(chosen.get("mri_norm"), str) for chosen in sources.values()):
        return "does not say how its MRI was normalised"
    return ""


def _is_three_mm(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(mm) in (int, float) and 0 < mm < math.inf for mm in value)


def remove_temporaries(out: Path) -> None:
    """Remove what killed runs left half-written in a corpus; only while nobody else writes to it.

    Only names that `harmonize.files.atomic_path` gives, for files that a corpus has at that place.
    """
    for path in _own_temporaries(out):
        path.unlink(missing_ok=True)


def _own_temporaries(out: Path) -> Iterator[Path]:
    for name in FILES:
        yield from (path for path in out.glob(f"{TEMPORARY}*-{name}") if _target_of(path) == name)
    for part, suffixes in FOLDERS.items():
        for folder, _, names in os.walk(out / part):
            yield from (path for name in names if _target_of(path := Path(folder, name)).endswith(suffixes))


def _target_of(path: Path) -> str:
    """The file that a temporary one was to become; empty for what is no temporary file of ours."""
    target = target_of_temporary(path.name)
    return target if target is not None and path.is_file() and not path.is_symlink() else ""


def _is_left_by_a_start(path: Path) -> bool:
    """Whether a run that was killed before it could write corpus.json left this in its new folder."""
    if path.is_symlink():
        return False
    if path.name == RECORDS and path.is_dir():
        return all(_is_a_first_record(entry) for entry in path.iterdir())
    if path.name == NYUL and path.is_dir():
        return all(entry.suffix == ".npy" and entry.is_file() for entry in path.iterdir())
    if path.name == LOCK:
        return _is_empty_file(path)
    return _target_of(path) == INFO


def _is_a_first_record(path: Path) -> bool:
    if path.suffix == LOOK:
        return path.is_file() and not path.is_symlink()
    return _is_empty_file(path) and (path.name == LOCK or path.suffix == ".jsonl")


def _is_empty_file(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0
