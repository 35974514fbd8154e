"""Checkpoints of a run: whole or absent, verified before they are read, and never a foreign pickle.

::

    checkpoints/step_000123/
      model.safetensors     encoder and decoder
      ema.safetensors       their moving average, if the recipe keeps one
      training.pt           optimizer, gradient scaler, counters; tensors and plain values only
      checkpoint.json       step, and size and SHA-256 of the other files
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from harmonize.errors import UserError
from harmonize.files import TEMPORARY

FORMAT = 1
MODEL, EMA, TRAINING, SEAL = "model.safetensors", "ema.safetensors", "training.pt", "checkpoint.json"
_NAME = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of a run after `step` steps.

    Attributes:
        step: Steps done.
        model: State dict of the model.
        ema: State dict of its moving average, or None.
        training: Everything else: nested dicts and lists of tensors, numbers and strings.
    """

    step: int
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] | None
    training: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write ``folder/step_000123``, then remove all but the `keep` newest up to it.

    The folder appears under its name only when every byte is on disk. A later step that is there is one that could not
    be read when the run was taken up again: it neither counts nor is removed, and is replaced when the run gets there.

    Raises:
        UserError: The disk is full or cannot be written; what was there is intact.
    """
    target = folder / f"step_{checkpoint.step:06d}"
    temporary = folder / f"{TEMPORARY}{os.getpid()}-{target.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        seal: dict[str, dict[str, Any]] = {}
        for name, content in _contents(checkpoint):
            _write(temporary / name, content)
            seal[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        _write(temporary / SEAL, json.dumps({"format": FORMAT, "step": checkpoint.step, "files": seal}).encode())
        _sync_folder(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        newest = max(_steps(folder), default=None)
        left = "there is no earlier one" if newest is None else f"step {newest} is intact"
        raise UserError(
            f"{target}: {error.strerror or error}; {left}: make room and give the same command again"
        ) from error
    for step in sorted(step for step in _steps(folder) if step <= checkpoint.step)[:-keep]:
        shutil.rmtree(folder / f"step_{step:06d}")
    return target


def load_newest(folder: Path, *, say: Callable[[str], object]) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none. Leftovers of killed writes are ignored.

    Args:
        folder: The run's ``checkpoints``.
        say: Told about each checkpoint that is passed over.
    """
    for step in sorted(_steps(folder), reverse=True):
        path = folder / f"step_{step:06d}"
        try:
            return load_checkpoint(path)
        except UserError as error:
            say(f"{error}; passed over")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        UserError: It is incomplete, damaged, or holds anything but tensors and plain values.
    """
    try:
        seal = json.loads((path / SEAL).read_bytes())
        contents = {name: (path / name).read_bytes() for name in seal["files"]}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"checkpoint {path} is incomplete") from error
    if seal["format"] != FORMAT:
        raise UserError(f"checkpoint {path} has format {seal['format']}, this headspark reads {FORMAT}")
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != seal["files"][name]["sha256"]:
            raise UserError(f"checkpoint {path}: {name} is damaged")
    try:
        return Checkpoint(
            step=seal["step"],
            model=safetensors.torch.load(contents[MODEL]),
            ema=safetensors.torch.load(contents[EMA]) if EMA in contents else None,
            training=torch.load(io.BytesIO(contents[TRAINING]), map_location="cpu", weights_only=True),
        )
    except (KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {path} holds something else than weights: {type(error).__name__}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writes left; only while no other process writes there."""
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def _contents(checkpoint: Checkpoint) -> list[tuple[str, bytes]]:
    files = [(MODEL, _tensors(checkpoint.model))]
    if checkpoint.ema is not None:
        files.append((EMA, _tensors(checkpoint.ema)))
    stream = io.BytesIO()
    torch.save(dict(checkpoint.training), stream)
    return [*files, (TRAINING, stream.getvalue())]


def _tensors(state: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(found[1]) for path in folder.iterdir() if path.is_dir() and (found := _NAME.fullmatch(path.name))]
