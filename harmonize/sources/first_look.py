"""What a raw folder should look like and what it looks like instead: the mistakes of the first hour, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from harmonize.dicom.elements import looks_like_dicom
from harmonize.errors import UserError, WrongUse
from harmonize.raw_tree import RawTree, is_corpus, suffix_of
from harmonize.sources import entry

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_DICOM = "DICOM without suffix"
_LOOKED_AT = 2000
"""Files that a look at a strange folder goes through at most."""

_NAMED = 4
"""Kinds of file that are named."""


def check_root(source: str, root: Path) -> None:
    """Refuse what cannot be the raw folder of any source.

    Raises:
        UserError: No folder, an archive, unreadable, or a corpus of ours.
    """
    if _is_file(root):
        kind = "an archive: unpack it and give its folder" if suffix_of(root.name) in _ARCHIVES else "a file, no folder"
        raise WrongUse(f"{root}: {kind}; expected is {entry(source).expected}")
    try:
        names = [path.name for path in root.iterdir()]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WrongUse(f"{root}: no such folder; expected is {entry(source).expected}") from error
    except OSError as error:
        raise WrongUse(f"{root}: cannot be read: {error.strerror}") from error
    if is_corpus(names):
        raise WrongUse(f"{root}: is a corpus that harmonize wrote; give the raw folder it was made from")
    if source != "rsna" and _is_rsna(root):
        raise WrongUse(
            f"{root}: is the RSNA competition's download; give it to harmonize rsna, or {root / 'series'} to harmonize "
            "dicom to do without its labels",
        )


def nothing_found(source: str, root: Path, seen: Mapping[str, int] | None = None, *, lacking: str = "") -> UserError:
    """The error that says what a folder holds instead of the source's files.

    Args:
        source: Registry name.
        root: The raw folder.
        seen: Its files by suffix; None to look.
        lacking: What the source cannot do without, where that is missing.
    """
    found = _look(root)
    if seen and not found[_DICOM]:
        found = Counter(seen)
    fault = f"no {lacking}" if lacking else f"no {source} scans found"
    named = ", ".join(f"{count} {what}" for what, count in found.most_common(_NAMED))
    holds = f"it holds {named}{', ...' if len(found) > _NAMED else ''}" if found else "it is empty"
    advice = _advice(source, root, found, lacking)
    return WrongUse(f"{root}: {fault}; {holds}{advice}; expected is {entry(source).expected}")


def misnamed(folder: Path, name: str) -> str:
    """A hint at a table that is called nearly as it should be, as browsers call a second download; "" without one.

    Args:
        folder: Where the table should lie.
        name: What it should be called.
    """
    stem, _, suffix = name.casefold().rpartition(".")
    found = sorted(path.name for path in folder.iterdir() if path.name != name)
    alike = [one for one in found if one.casefold().startswith(stem) and one.casefold().endswith(f".{suffix}")]
    return f" (is it {alike[0]}? then rename it)" if alike else ""


def _advice(source: str, root: Path, seen: Counter[str], lacking: str) -> str:
    other = _looks_like(source, root, seen)
    if other and other != source:
        return f" and looks like {entry(other).kind}: try harmonize {other}"
    if any(seen[suffix] for suffix in _ARCHIVES):
        return ": unpack the archives"
    if source == "deeplesion" and seen[".png"] and not lacking:
        return ", but none in a folder of its series"
    return ""


def _looks_like(source: str, root: Path, seen: Counter[str]) -> str | None:
    if _is_rsna(root):
        return "rsna"
    if _is_file(root / "DL_info.csv") or "Images_png" in (root.name, *(path.name for path in root.iterdir())):
        return "deeplesion"
    dicom = sum(seen[kind] for kind in (".dcm", ".dicom", ".ima", _DICOM))
    nifti = sum(seen[kind] for kind in (".nii", ".nii.gz"))
    if max(dicom, nifti) == 0:
        return None
    if dicom > nifti:
        return "tcia" if source == "tcia" or _is_file(root / "metadata.csv") else "dicom"
    return "openmind" if _is_file(root / "openneuro_metadata.csv") or (root / "OpenMind").is_dir() else "nifti"


def _is_rsna(root: Path) -> bool:
    return _is_file(root / "train.csv") and any(path.name == "series" for path in root.iterdir())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _look(root: Path) -> Counter[str]:
    """The first files below a folder by suffix, DICOM without one told by its bytes; then what is no file."""
    tree = RawTree(root)
    found = Counter(_kind(path) for path in islice(tree.files(), _LOOKED_AT))
    return found + tree.seen()


def _kind(path: Path) -> str:
    suffix = suffix_of(path.name)
    if not suffix:
        try:
            with path.open("rb") as stream:
                return _DICOM if looks_like_dicom(stream) else "without suffix"
        except OSError:
            return "unreadable"
    return suffix
