"""A finder on disk: ``config.json`` and ``model.safetensors``, with nothing of a scan or a patient in them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from finetune.finder.find import Finder
from finetune.finder.network import FEATURES, FinderNetwork
from finetune.finder.survey import SHAPE, SPACING_MM, WINDOWS
from harmonize.bounded_files import fits
from harmonize.errors import UserError, WrongUse
from harmonize.files import atomic_path, sha256_of, write_json
from headspark.folder_kind import read_json, seen_at
from headspark.weights import build_with, read_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FINDER_FILES = (CONFIG, WEIGHTS)
KIND = "box finder"
SCHEMA_VERSION = 1
MOST_PLACES = 1000
FOLD_FOLDER = "fold_{}"

_LOOK = {"spacing_mm": SPACING_MM, "shape": list(SHAPE), "windows": list(WINDOWS)}
_SHAPE: dict[str, Any] = {
    "schema_version": int,
    "finder": str,
    "features": [int],
    "template_mm": [[float]],
    "most_doubt_mm": float,
    "look": {"spacing_mm": float, "shape": [int], "windows": [str]},
    "facts": dict,
}


def folder_of_fold(folder: Path, fold: int) -> Path:
    """The finder of a fold, where a folder holds one for each; else the folder itself."""
    own = folder / FOLD_FOLDER.format(fold)
    return own if (own / CONFIG).is_file() else folder


def save_finder(folder: Path, finder: Finder) -> None:
    """Write a finder into a folder that is there."""
    weights = {name: value.detach().cpu().contiguous() for name, value in finder.network.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    write_json(
        folder / CONFIG,
        {
            "schema_version": SCHEMA_VERSION,
            "finder": KIND,
            "features": list(FEATURES),
            "template_mm": finder.template_P3.round(3).tolist(),
            "most_doubt_mm": round(finder.most_doubt_mm, 3),
            "look": _LOOK,
            "facts": finder.facts,
        },
    )


def is_finder_config(config: object) -> bool:
    """Whether the content of a config.json is that of a finder."""
    return isinstance(config, dict) and config.get("finder") == KIND


def finder_sha256(folder: Path) -> str:
    """A hash of both files.

    Raises:
        UserError: There is no finder.
    """
    for name in FINDER_FILES:
        if not (folder / name).is_file():
            raise WrongUse(
                f"view.model {folder}: no finder of boxes there ({name} is missing), but {seen_at(folder)}; "
                "`finetune roi` makes one"
            )
    return "".join(sha256_of(folder / name)[:32] for name in FINDER_FILES)


def read_finder(folder: Path) -> Finder:
    """Read a finder; the last few stay in memory.

    Raises:
        UserError: It is damaged; with exit code 2, there is none.
    """
    return _read(folder, finder_sha256(folder))


@lru_cache(maxsize=16)
def _read(folder: Path, sha256: str) -> Finder:
    config = read_json(folder / CONFIG)
    if not is_finder_config(config):
        raise WrongUse(f"view.model {folder}: holds {seen_at(folder)}, no finder of boxes; `finetune roi` makes one")
    damaged = f"{folder / CONFIG}: damaged, or of another version; make the finder again with `finetune roi`"
    if not fits(config, _SHAPE) or config["schema_version"] != SCHEMA_VERSION or config["look"] != _LOOK:
        raise UserError(damaged)
    template, features = config["template_mm"], config["features"]
    places = len(template)
    if not 0 < places <= MOST_PLACES or any(len(place) != 3 for place in template) or features != list(FEATURES):
        raise UserError(damaged)
    template_P3 = np.array(template, dtype=np.float64)
    if not np.isfinite(template_P3).all() or not np.isfinite(config["most_doubt_mm"]):
        raise UserError(damaged)
    network = build_with(
        lambda: FinderNetwork(places), read_weights(folder / WEIGHTS), where=f"{folder / WEIGHTS}", wanted=CONFIG
    )
    return Finder(
        network=network.eval().requires_grad_(False).to(memory_format=torch.channels_last_3d),
        template_P3=template_P3,
        most_doubt_mm=float(config["most_doubt_mm"]),
        facts=config["facts"],
    )


def is_finder_folder(folder: Path) -> bool:
    """Whether a folder holds a finder, or one of each fold, and was written by `finetune roi`."""
    configs = [folder / CONFIG, *folder.glob(f"{FOLD_FOLDER.format('*')}/{CONFIG}")]
    there = [path for path in configs if path.exists()]
    return bool(there) and all(is_finder_config(read_json(path)) for path in there)
