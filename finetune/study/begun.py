"""What a study began with, kept beside it: its recipes and its pretrained encoder. Cells of others are refused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from finetune.recipe import Recipe
from finetune.study.cells import run_folder
from finetune.study.config import PRETRAINED, PROBE, Cell, StudyConfig
from finetune.study.plan import STUDY
from finetune.study.table import check_encoders
from harmonize.corpus.target import check_folder
from harmonize.errors import WrongUse
from harmonize.files import write_text
from headspark.config import read_recipe, to_yaml
from headspark.hub import load_encoder
from headspark.recipe import Recipe as PretrainRecipe
from headspark.run.folder import FREE_ON_RESUME, OF_A_STEP, first_difference, read_state
from headspark.weights import weights_sha256

RECIPES = PRETRAINING_RECIPE, FINETUNING_RECIPE = "pretraining.yaml", "finetuning.yaml"
"""Beside the study's recipe, which only names these two: all their keys, as they were when it began."""

ENCODERS, PRETRAINED_ENCODER = "encoders", "pretrained"
"""Folder of the encoders that cells begin with, and of the pretrained one there."""

_FREE = FREE_ON_RESUME - OF_A_STEP


def check_same(
    out: Path, config: StudyConfig, pretraining: PretrainRecipe, finetuning: Recipe, *, ours: Collection[str]
) -> None:
    """Keep the recipes of a study, or compare them with those of the folder.

    A folder of an older version lacks two of them, which are kept from now on; predictions alone may have been copied
    there.

    Args:
        out: The study's folder.
        config: Its recipe.
        pretraining: Of its encoder, with the study's changes.
        finetuning: What all fine-tunings share, likewise.
        ours: Names in a folder without a recipe that are those of a study.

    Raises:
        WrongUse: The folder holds another study, or one of other recipes.
    """
    check_folder(out)
    path = out / STUDY
    if not path.is_file():
        foreign = sorted({one.name for one in out.iterdir()} - {*ours}) if out.is_dir() else []
        if foreign:
            raise WrongUse(f"{out}: holds {foreign[0]} and no study ({STUDY} is missing); give --out a new folder")
    kept = ((STUDY, config), (PRETRAINING_RECIPE, pretraining), (FINETUNING_RECIPE, finetuning))
    there = [(out / name, now) for name, now in kept if (out / name).is_file()]
    for path, now in there:
        fault = first_difference(read_recipe(type(now), path), now, () if now is config else _FREE)
        if fault is not None:
            raise WrongUse(f"{path}: this study {fault}; give that, or --out a new folder")
    for name, now in kept:
        if not (out / name).is_file():
            write_text(out / name, to_yaml(now))


def encoder_of_cell(config: StudyConfig, cell: Cell, out: Path) -> str | None:
    """Hash of the pretrained encoder that a finished cell began with; None: it began with none.

    Args:
        config: The study's.
        cell: Which.
        out: The study's folder.
    """
    if cell.arm.startswith(PROBE):
        return pretrained_sha256(out) if cell.arm.endswith(PRETRAINED) else None
    if not config.arm(cell.arm).pretrained:
        return None
    encoder = ((read_state(run_folder(out, cell)) or {}).get("origin") or {}).get("encoder") or {}
    return encoder.get("sha256") or pretrained_sha256(out)


def check_encoder(config: StudyConfig, out: Path) -> None:
    """Refuse to go on with another pretrained encoder than finished cells began with; arguments as `check_encoders`."""
    check_encoders(config, out, now=pretrained_sha256(out))


def pretrained_sha256(out: Path) -> str:
    """Hash of the pretrained encoder of a study."""
    return weights_sha256(load_encoder(str(out / ENCODERS / PRETRAINED_ENCODER)).state_dict())
