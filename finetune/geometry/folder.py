"""A geometry network on disk: ``config.json`` and ``model.safetensors``, with nothing of a patient in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from finetune.geometry.network import FEATURES, SHAPE, WAYS, GeometryNetwork
from finetune.geometry.reader import GeometryReader
from harmonize.bounded_files import fits
from harmonize.errors import UserError, WrongUse
from harmonize.files import atomic_path, write_json
from headspark.folder_kind import read_json, seen_at
from headspark.weights import build_with, read_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
GEOMETRY_FILES = (CONFIG, WEIGHTS)
KIND = "stack geometry"
SCHEMA_VERSION = 1

_NETWORK = {"shape": list(SHAPE), "ways": list(WAYS), "features": list(FEATURES)}
_SHAPE: dict[str, Any] = {
    "schema_version": int,
    "geometry": str,
    "network": {"shape": [int], "ways": [str], "features": [int]},
    "spread": [float],
    "facts": dict,
}


def save_geometry(folder: Path, reader: GeometryReader) -> None:
    """Write it into a folder that is there."""
    weights = {name: value.detach().cpu().contiguous() for name, value in reader.network.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    write_json(
        folder / CONFIG,
        {
            "schema_version": SCHEMA_VERSION,
            "geometry": KIND,
            "network": _NETWORK,
            "spread": [round(float(value), 4) for value in reader.spread_2],
            "facts": reader.facts,
        },
    )


def is_geometry_folder(folder: Path) -> bool:
    """Whether a folder was written by `finetune geometry`."""
    config = read_json(folder / CONFIG)
    return isinstance(config, dict) and config.get("geometry") == KIND


def read_geometry(folder: Path) -> GeometryReader:
    """Read what `save_geometry` wrote.

    Raises:
        UserError: It is damaged; with exit code 2, there is none.
    """
    if not all((folder / name).is_file() for name in GEOMETRY_FILES) or not is_geometry_folder(folder):
        raise WrongUse(f"{folder}: holds {seen_at(folder)}, no geometry network; `finetune geometry` makes one")
    config = read_json(folder / CONFIG)
    damaged = f"{folder / CONFIG}: damaged, or of another version; make it again with `finetune geometry`"
    if not fits(config, _SHAPE) or config["schema_version"] != SCHEMA_VERSION or config["network"] != _NETWORK:
        raise UserError(damaged)
    spread = config["spread"]
    if len(spread) != 2 or not all(np.isfinite(value) and value > 0 for value in spread):
        raise UserError(damaged)
    network = build_with(GeometryNetwork, read_weights(folder / WEIGHTS), where=f"{folder / WEIGHTS}", wanted=CONFIG)
    return GeometryReader(
        network=network.eval().requires_grad_(False), spread_2=(spread[0], spread[1]), facts=config["facts"]
    )
