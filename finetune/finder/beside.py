"""The finder that a model looks through, in the model's own folder: the two travel together."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from finetune.finder.folder import FINDER_FILES, finder_sha256, folder_of_fold
from harmonize.errors import UserError
from harmonize.files import atomic_path

FOLDER = "roi"
"""Of a model's folder."""
BESIDE_FILES = tuple(f"{FOLDER}/{name}" for name in FINDER_FILES)
SHA256 = "finder_sha256"
"""In a model's config.json: of the finder beside it; absent where its view has none."""

V = TypeVar("V")


def finder_of(view: object) -> Path | None:
    """The folder that a part of a recipe names as its view's finder; None where it has none."""
    model = getattr(view, "model", None)
    return None if model is None else Path(model)


def copy_finder(view: object, fold: int, folder: Path) -> dict[str, str]:
    """Copy the finder of a view into a model's folder.

    Args:
        view: The part of a recipe that picks it.
        fold: That the model held out.
        folder: The model's.

    Returns:
        What its config.json says of it.

    Raises:
        UserError: There is no finder any more.
    """
    named = finder_of(view)
    if named is None:
        return {}
    source, target = folder_of_fold(named, fold), folder / FOLDER
    sha256 = finder_sha256(source)
    if source.resolve() != target.resolve():
        target.mkdir(exist_ok=True)
        for name in FINDER_FILES:
            with atomic_path(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
    return {SHA256: sha256}


def without_finder(plain: dict[str, Any]) -> dict[str, Any]:
    """The view of a model as its config.json has it: whose path the finder had before says nothing to others."""
    return plain if plain.get("model") is None else {**plain, "model": FOLDER}


def with_finder(view: V, sha256: object, folder: Path) -> V:
    """The view of a model that was read, which looks through the finder beside it.

    Args:
        view: As its config.json has it.
        sha256: What that says of the finder.
        folder: The model's.

    Raises:
        UserError: It is missing, or another one.
    """
    if finder_of(view) is None:
        return view
    beside = folder / FOLDER
    if not all((beside / name).is_file() for name in FINDER_FILES) or finder_sha256(beside) != sha256:
        raise UserError(f"the finder of boxes beside it ({FOLDER}/) is missing or damaged")
    return replace(view, model=str(beside))  # type: ignore[type-var]
