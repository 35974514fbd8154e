"""Recipes, runs, checkpoints, encoder and model folders, and the weights of others."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator

from finetune.model_folder import load_model, read_bundle
from finetune.recipe import Recipe as FinetuneRecipe
from fuzz.damage import ODD, Damage, either, of_bytes, of_json, of_json_lines, of_yaml
from fuzz.kinds import Fault, Kind
from fuzz.valid import OLD
from headspark import Encoder, config
from headspark.config import read_recipe
from headspark.folder_kind import NNSSL_CHECKPOINT
from headspark.hub import export as exports
from headspark.interop import nnssl as interop
from headspark.interop.adaptation_plan import PLAN_NAME
from headspark.pretraining.state import prepare
from headspark.recipe import Recipe
from headspark.run.checkpoint import load_newest
from headspark.run.claim import read_metrics, read_state
from headspark.run.resume import check_resumable, restore

torch.set_num_threads(1)
config.recipe_parser = functools.cache(config.recipe_parser)
# Of a run that is exported again and again, one file changes, and it is none of these.
exports.load_newest = functools.cache(exports.load_newest)
exports.read_run_recipe = functools.cache(exports.read_run_recipe)
OLD_STEP, NEW_STEP = "step_000002", "step_000004"
FLAT = 1e-6


def _copied(folder: Path, name: str, target: str, damage: Damage, read: Callable[[], object]) -> Kind:
    shutil.copytree(OLD / name, folder / name, dirs_exist_ok=True)
    return Kind(target=folder / name / target, damage=damage, read=read)


def recipe(folder: Path) -> Kind:
    """A recipe of pretraining."""
    read = functools.partial(read_recipe, Recipe, folder / "run/recipe.yaml")
    return _copied(folder, "run", "recipe.yaml", of_yaml, read)


def finetune_recipe(folder: Path) -> Kind:
    """A recipe of fine-tuning."""
    read = functools.partial(read_recipe, FinetuneRecipe, folder / "finetuned/recipe.yaml")
    return _copied(folder, "finetuned", "recipe.yaml", of_yaml, read)


def _checkpoint(folder: Path, name: str, damage: Damage) -> Kind:
    """One file of the newest of two checkpoints, under a right seal: a stranger seals what he likes."""
    shutil.copytree(OLD / "run", folder / "run")
    checkpoints = folder / "run/checkpoints"
    newest, older = checkpoints / NEW_STEP, checkpoints / OLD_STEP
    shutil.copytree(newest, older)
    seal = json.loads((older / "checkpoint.json").read_text(encoding="utf-8"))
    (older / "checkpoint.json").write_text(json.dumps(seal | {"step": 2}), encoding="utf-8")
    began = read_recipe(Recipe, folder / "run/recipe.yaml")
    state = prepare(began, Accelerator(cpu=True))

    def write(content: bytes) -> None:
        (newest / name).write_bytes(content)
        digest = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        sealed = seal | {"step": 4, "files": seal["files"] | {name: digest}}
        (newest / "checkpoint.json").write_text(json.dumps(sealed), encoding="utf-8")

    def read() -> None:
        fits = functools.partial(check_resumable, state)
        found = load_newest(checkpoints, say=lambda line: None, fits=fits)
        if found is None:
            raise Fault("the older checkpoint was not taken either")
        restore(state, found, where="run")
        for parameter in state.unwrapped.parameters():
            parameter.grad = torch.full_like(parameter, FLAT)
        state.optimizer.step()

    return Kind(target=newest / name, damage=damage, read=read, write=None if name == "checkpoint.json" else write)


def checkpoint_weights(folder: Path) -> Kind:
    """The weights of a checkpoint."""
    return _checkpoint(folder, "model.safetensors", _of_safetensors)


def checkpoint_training(folder: Path) -> Kind:
    """What else a checkpoint holds."""
    return _checkpoint(folder, "training.pt", either(of_bytes, _of_state))


def checkpoint_seal(folder: Path) -> Kind:
    """Its seal."""
    return _checkpoint(folder, "checkpoint.json", of_json)


def run_json(folder: Path) -> Kind:
    """How a run stands, read to export its encoder."""
    run = folder / "run"

    def read() -> None:
        state = read_state(run)
        if state is not None:
            exports.export_run(run)

    return _copied(folder, "run", "run.json", of_json, read)


def metrics(folder: Path) -> Kind:
    """What a run measured."""
    run = folder / "run"

    def read() -> None:
        read_metrics(run)
        exports.export_run(run)

    return _copied(folder, "run", "metrics.jsonl", of_json_lines, read)


def encoder_config(folder: Path) -> Kind:
    """What an encoder says of itself."""
    read = functools.partial(Encoder.from_pretrained, folder / "encoder")
    return _copied(folder, "encoder", "config.json", of_json, read)


def encoder_weights(folder: Path) -> Kind:
    """The weights of an encoder."""
    read = functools.partial(Encoder.from_pretrained, folder / "encoder")
    return _copied(folder, "encoder", "model.safetensors", _of_safetensors, read)


def _model(folder: Path) -> None:
    load_model(folder / "finetuned", read_bundle(folder / "finetuned"))


def model_config(folder: Path) -> Kind:
    """What a fine-tuned model says of itself."""
    return _copied(folder, "finetuned", "config.json", of_json, functools.partial(_model, folder))


def model_weights(folder: Path) -> Kind:
    """The weights of a fine-tuned model."""
    return _copied(folder, "finetuned", "model.safetensors", _of_safetensors, functools.partial(_model, folder))


def _nnssl(folder: Path) -> Path:
    network = Encoder.from_pretrained(OLD / "encoder")
    return interop.write_nnssl(folder, network, patch=(16, 16, 16))


def nnssl(folder: Path) -> Kind:
    """A checkpoint of nnssl."""
    _nnssl(folder / "nnssl")
    read = functools.partial(interop.read_nnssl, folder / "nnssl")
    target = folder / "nnssl" / NNSSL_CHECKPOINT
    return Kind(target=target, damage=either(of_bytes, _of_state), read=read)


def nnssl_plan(folder: Path) -> Kind:
    """The plan beside it."""
    _nnssl(folder / "nnssl")
    path = folder / "nnssl" / NNSSL_CHECKPOINT
    whole = torch.load(path, weights_only=True)
    whole.pop("nnssl_adaptation_plan", None)
    torch.save(whole, path)
    read = functools.partial(interop.read_nnssl, folder / "nnssl")
    return Kind(target=folder / "nnssl" / PLAN_NAME, damage=of_json, read=read)


def _of_safetensors(content: bytes, dice: random.Random) -> bytes:
    """Another header over the same numbers, other tensors, or damaged bytes."""
    kind = dice.randrange(3)
    if kind == 0:
        return of_bytes(content, dice)
    if kind == 1:
        (size,) = struct.unpack("<Q", content[:8])
        header = of_json(content[8 : 8 + size], dice)
        return struct.pack("<Q", len(header)) + header + content[8 + size :]
    weights = safetensors.torch.load(content)
    name = dice.choice(sorted(weights))
    changed = _odd_tensor(weights.pop(name), dice)
    if dice.random() < 0.8:
        weights[name if dice.random() < 0.7 else "x"] = changed
    return safetensors.torch.save(weights)


def _of_state(content: bytes, dice: random.Random) -> bytes:
    """Another value in one place of what PyTorch saved."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    places = list(_places(state))
    holder, key = dice.choice(places)
    kind = dice.randrange(4)
    if kind == 0:
        del holder[key]
    elif isinstance(holder[key], torch.Tensor) and kind < 3:
        holder[key] = _odd_tensor(holder[key], dice)
    else:
        holder[key] = dice.choice((*ODD, torch.zeros(0), torch.ones(3)))
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def _places(value: Any) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries):
        yield value, key
        yield from _places(inner)


def _odd_tensor(tensor: torch.Tensor, dice: random.Random) -> torch.Tensor:
    makes: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: tensor.flatten(), lambda: tensor.new_zeros(0), lambda: tensor[None], lambda: tensor.double(),
        lambda: tensor.to(torch.int8), lambda: tensor.to(torch.bool), lambda: torch.full_like(tensor, float("nan")),
        lambda: tensor.new_zeros(()), lambda: tensor.repeat(2, *[1] * max(0, tensor.dim() - 1)),
    )  # fmt: skip
    made = dice.choice(makes)()
    return made.contiguous()
