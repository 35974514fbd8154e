"""From the folder of a run to its model with everything that is told about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonize.errors import UserError, WrongUse
from harmonize.terminal import warn
from headspark.decoder import UNetDecoder
from headspark.encoder import ResidualEncoder, build_encoder
from headspark.folder_kind import seen_at
from headspark.hub.encoder_folder import Card
from headspark.hub.model_card import preprocessing_of, write_card
from headspark.hub.probe_table import read_probe
from headspark.interop.nnssl import write_nnssl
from headspark.pretraining.origin import check_state
from headspark.pretraining.state import spark_of
from headspark.recipe import Recipe
from headspark.run.checkpoint import load_newest
from headspark.run.diverged import all_finite, divergence
from headspark.run.folder import RECIPE, read_metrics, read_run_recipe, read_state
from headspark.spark import SparK
from headspark.weights import build_with, weights_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A model ready to be written.

    Attributes:
        model: Encoder and decoder, in eval mode.
        step: Of the checkpoint.
        recipe: Of the run.
        preprocessing: For config.json.
        card: README.md and its pictures.
        decoder: The decoder, if it shall lie beside the encoder.
    """

    model: SparK
    step: int
    recipe: Recipe
    preprocessing: dict[str, Any]
    card: Card
    decoder: UNetDecoder | None


def export_run(folder: Path, *, decoder: bool = False, probe: Path | None = None) -> Exported:
    """Read the newest whole checkpoint of a run; its moving average, if it has one.

    That the run diverged is said on standard error and in the card.

    Args:
        folder: Of the run.
        decoder: Whether its decoder goes along, which must be of kind ``unet``.
        probe: What ``finetune probe --json`` found out about its encoder, for the card.

    Raises:
        UserError: The run has no checkpoint yet, or weights that are not finite.
        WrongUse: The folder holds no run, its decoder is none to take along, or the probe is of another encoder.
    """
    state = read_state(folder)
    if state is None or "corpus" not in state:
        raise WrongUse(f"{folder}: {seen_at(folder)}, not a pretraining run; `headspark pretrain --out` makes one")
    recipe = read_run_recipe(Recipe, folder)
    if decoder and recipe.decoder.kind != "unet":
        raise WrongUse(
            f"--decoder: {folder} has one of kind {recipe.decoder.kind}, which serves pretraining alone; only unet is "
            "worth keeping"
        )
    checkpoint = load_newest(folder / "checkpoints", say=warn)
    if checkpoint is None:
        raise UserError(f"{folder}: no checkpoint yet; let the run reach train.checkpoint_every")
    weights = checkpoint.model if checkpoint.ema is None else checkpoint.ema
    model = build_with(
        lambda: spark_of(recipe, build_encoder(recipe.encoder)),
        weights,
        where=f"{folder}, step {checkpoint.step}",
        wanted=f"its {RECIPE}",
    ).eval()
    if not all_finite([model]):
        raise UserError(f"{folder}, step {checkpoint.step}: its weights are not finite; nothing can be made of them")
    probed = "" if probe is None else read_probe(probe, weights_sha256(model.encoder.state_dict()))
    metrics = read_metrics(folder)
    check_state(folder, state)
    diverged = divergence(state, metrics)
    if diverged is not None:
        warn(f"warning: {folder} {diverged}; what is exported are the weights of step {checkpoint.step}")
    pictures = sorted((folder / "pictures").glob("step_*.png"))
    picture = pictures[-1] if pictures else None
    return Exported(
        model=model,
        step=checkpoint.step,
        recipe=recipe,
        preprocessing=preprocessing_of(recipe, state["corpus"]),
        card=write_card(recipe, state, metrics, step=checkpoint.step, picture=picture, decoder=decoder, probe=probed),
        decoder=model.volume_decoder() if decoder else None,
    )


def write_nnunet(exported: Exported, folder: Path) -> Path:
    """Write the checkpoint and the adaptation plan that nnU-Net's fine-tuning takes; see `headspark.interop.nnssl`.

    Raises:
        WrongUse: nnU-Net has no such encoder.
    """
    encoder = exported.model.encoder
    if not isinstance(encoder, ResidualEncoder):
        raise WrongUse(f"--format nnunet: nnU-Net has no {exported.recipe.encoder.kind} encoder")
    x, y, z = exported.preprocessing["spacing_mm"]
    return write_nnssl(
        folder,
        encoder,
        decoder=exported.model.volume_decoder(),
        patch=(exported.recipe.data.patch,) * 3,
        spacing=(x, y, z),
    )
