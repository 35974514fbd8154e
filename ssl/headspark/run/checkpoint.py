"""Checkpoints of a run: whole or absent, verified before they are read, and never a foreign pickle.

::

    checkpoints/step_000123/
      model.safetensors     encoder and decoder
      ema.safetensors       their moving average, if the recipe keeps one
      training.pt           optimizer, gradient scaler, counters; tensors and plain values only
      checkpoint.json       step, and size and SHA-256 of the other files
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harmonize.bounded_files import fits, parse_json, read_small
from harmonize.errors import UserError
from harmonize.files import TEMPORARY, fsync, temporary_beside
from headspark.run.plain_state import check_optimizer_state, load_plain
from headspark.weights import check_weights

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
    target = folder / folder_name(checkpoint.step)
    temporary = temporary_beside(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        seal: dict[str, dict[str, Any]] = {}
        for name, content in _contents(checkpoint):
            _write(temporary / name, content)
            seal[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        _write(temporary / SEAL, json.dumps({"format": FORMAT, "step": checkpoint.step, "files": seal}).encode())
        fsync(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        fsync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        newest = max(_steps(folder), default=None)
        left = "there is no earlier one" if newest is None else f"step {newest} is intact"
        raise UserError(
            f"{target}: {error.strerror or error}; {left}: make room and give the same command again"
        ) from error
    for step in sorted(step for step in _steps(folder) if step <= checkpoint.step)[:-keep]:
        shutil.rmtree(folder / folder_name(step))
    return target


def load_newest(
    folder: Path, *, say: Callable[[str], object], fits: Callable[[Checkpoint, str], object] | None = None
) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none. Leftovers of killed writes are ignored.

    Args:
        folder: The run's ``checkpoints``.
        say: Told about each checkpoint that is passed over.
        fits: Given a whole checkpoint and its name for messages; raises `UserError` if it is none of this run's.
    """
    for step in sorted(_steps(folder), reverse=True):
        path = folder / folder_name(step)
        try:
            found = load_checkpoint(path)
            if fits is not None:
                fits(found, f"checkpoint {path}")
        except UserError as error:
            say(f"{error}; passed over")
        else:
            return found
    return None


def check_fits(
    found: Checkpoint,
    where: str,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    needs: Collection[str],
    shape: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a checkpoint that a run cannot go on from.

    Args:
        found: A whole one.
        where: Names it.
        model: Of the run.
        optimizer: Of the run.
        needs: What `Checkpoint.training` must hold besides the optimizer.
        shape: What is held under some names, as `harmonize.bounded_files.fits` takes it.

    Raises:
        UserError: Something is missing or has another shape.
    """
    missing = sorted({"optimizer", *needs} - set(found.training))
    if missing:
        raise UserError(f"{where}: {TRAINING} lacks {', '.join(missing)}")
    odd = [
        name for name, kind in (shape or {}).items() if name in found.training and not fits(found.training[name], kind)
    ]
    if odd:
        raise UserError(f"{where}: {TRAINING} holds something else for {', '.join(odd)}")
    for name, weights in ((MODEL, found.model), (EMA, found.ema)):
        if weights is not None:
            check_weights(model.state_dict(), weights, where=f"{where}: {name}", wanted="the recipe")
    state = found.training["optimizer"]
    groups = state.get("param_groups") if isinstance(state, dict) and isinstance(state.get("state"), dict) else None
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    try:
        same = groups is not None and [len(group["params"]) for group in groups] == sizes
    except (KeyError, TypeError):
        same = False
    if not same or not check_optimizer_state(state, optimizer):
        raise UserError(f"{where}: {TRAINING} holds another optimizer's state")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        UserError: It is incomplete, damaged, of another format or under another step's name, or holds anything but
            tensors and plain values.
    """
    step, files = _read_seal(path)
    contents: dict[str, bytes] = {}
    for name, seal in files.items():
        try:
            contents[name] = _read(path / name)
        except OSError as error:
            raise UserError(f"checkpoint {path} is incomplete: {name}: {error.strerror or error}") from error
        if hashlib.sha256(contents[name]).hexdigest() != seal:
            raise UserError(f"checkpoint {path}: {name} is damaged")
    try:
        training = load_plain(contents[TRAINING])
        return Checkpoint(
            step=step,
            model=safetensors.torch.load(contents[MODEL]),
            ema=safetensors.torch.load(contents[EMA]) if EMA in contents else None,
            training=training,
        )
    # What a damaged archive or a foreign pickle makes PyTorch raise has no common base below Exception.
    except Exception as error:
        raise UserError(f"checkpoint {path} holds something else than weights: {type(error).__name__}") from error


def _read_seal(path: Path) -> tuple[int, dict[str, str]]:
    """The step, and the SHA-256 of each file by its name.

    Raises:
        UserError: There is no seal, or it is none of ours.
    """
    try:
        content = read_small(path / SEAL)
    except OSError as error:
        raise UserError(f"checkpoint {path} is incomplete: {SEAL}: {error.strerror or error}") from error
    try:
        seal = parse_json(content)
        found = seal.get("format")
        if found != FORMAT:
            raise UserError(f"checkpoint {path} has format {found}, this headspark reads {FORMAT}")
        step, files = seal["step"], {name: facts["sha256"] for name, facts in seal["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"checkpoint {path}: its {SEAL} is damaged") from error
    if not {MODEL, TRAINING} <= set(files) <= {MODEL, EMA, TRAINING}:
        raise UserError(f"checkpoint {path}: its {SEAL} names {', '.join(map(str, sorted(files))) or 'no files'}")
    if type(step) is not int or folder_name(step) != path.name:
        raise UserError(f"checkpoint {path}: its {SEAL} says step {step}")
    return step, files


def _read(path: Path) -> bytes:
    if not path.is_file():
        path.stat()  # raises if there is nothing
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return path.read_bytes()


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


def folder_name(step: int) -> str:
    """What the checkpoint of a step is called, and its revision on the Hub."""
    return f"step_{step:06d}"


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(found[1]) for path in folder.iterdir() if path.is_dir() and (found := _NAME.fullmatch(path.name))]
