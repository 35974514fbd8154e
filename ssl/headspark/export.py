"""From the folder of a run to its encoder with everything that is told about it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonize.errors import UserError
from headspark.card import preprocessing_of, write_card
from headspark.checkpoint import load_newest
from headspark.config import WRONG_USE, read_recipe
from headspark.encoder import MaskableEncoder, build_encoder
from headspark.hub import Card
from headspark.recipe import Recipe
from headspark.run import RECIPE, read_metrics, read_state

ENCODER_PREFIX = "encoder."
"""Of the encoder's keys in a checkpoint's model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An encoder ready to be written.

    Attributes:
        encoder: In eval mode.
        preprocessing: For config.json.
        card: README.md and its pictures.
    """

    encoder: MaskableEncoder
    preprocessing: dict[str, Any]
    card: Card


def export_run(folder: Path) -> Exported:
    """Read the newest whole checkpoint of a run; its moving average, if it has one.

    Raises:
        UserError: The folder holds no run (exit code 2), or one without a checkpoint yet.
    """
    state = read_state(folder)
    if state is None:
        raise UserError(f"{folder}: no run there; `ssl/pretrain.py --out` makes one", exit_code=WRONG_USE)
    recipe = read_recipe(Recipe, folder / RECIPE)
    checkpoint = load_newest(folder / "checkpoints", say=lambda line: print(line, file=sys.stderr))
    if checkpoint is None:
        raise UserError(f"{folder}: no checkpoint yet; let the run reach train.checkpoint_every")
    weights = checkpoint.model if checkpoint.ema is None else checkpoint.ema
    encoder = build_encoder(recipe.encoder)
    encoder.load_state_dict(
        {
            name.removeprefix(ENCODER_PREFIX): tensor
            for name, tensor in weights.items()
            if name.startswith(ENCODER_PREFIX)
        }
    )
    pictures = sorted((folder / "pictures").glob("step_*.png"))
    card = write_card(
        recipe, state, read_metrics(folder), step=checkpoint.step, picture=pictures[-1] if pictures else None
    )
    return Exported(encoder=encoder.eval(), preprocessing=preprocessing_of(recipe, state["corpus"]), card=card)
