"""A fine-tuned model on disk: its weights, and everything that a raw series needs to become its input."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune.data import DataConfig
from finetune.model import AneurysmClassifier, HeadConfig
from finetune.rsna import SOURCE
from harmonize.aneurysm_labels import LABELS
from harmonize.corpus import NYUL, Corpus
from harmonize.errors import UserError
from harmonize.files import atomic_path, write_json
from harmonize.settings import Settings
from headspark.config import from_plain, to_plain
from headspark.encoder import EncoderConfig, build_encoder
from headspark.hub import load_weights
from headspark.seen import is_model_config, read_json, seen_at

SCHEMA_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What is needed besides the weights.

    Attributes:
        encoder: Its shape.
        head: The head.
        data: How a patch is cut; windows as the encoder wants them.
        settings: How the corpus was harmonized.
    """

    encoder: EncoderConfig
    head: HeadConfig
    data: DataConfig
    settings: Settings


def settings_of(corpus: Corpus) -> Settings:
    """The settings that the RSNA part of a corpus was made with (its salt, which is secret, stays empty)."""
    shared, own = corpus.info["settings"], corpus.info["sources"][SOURCE]
    return Settings(
        spacing=corpus.spacing,
        mri_norm=own["mri_norm"],
        nyul_folder=corpus.path / NYUL if own["mri_norm"] == "nyul" else None,
        crop_foreground=shared["crop_foreground"],
        bake_windows=shared["bake_windows"],
        n4=shared["n4"],
    )


def save_bundle(folder: Path, bundle: Bundle, weights: dict[str, torch.Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors``, and copy the standard histograms if there are any.

    Args:
        folder: Where to.
        bundle: The configuration.
        weights: State dict of `AneurysmClassifier`.
    """
    settings = bundle.settings
    if settings.nyul_folder is not None and settings.nyul_folder != folder / NYUL:
        shutil.copytree(settings.nyul_folder, folder / NYUL, dirs_exist_ok=True)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, temporary)
    write_json(
        folder / CONFIG,
        {
            "schema_version": SCHEMA_VERSION,
            "labels": list(LABELS),
            "encoder": to_plain(bundle.encoder),
            "head": to_plain(bundle.head),
            "data": to_plain(bundle.data),
            "harmonize": {
                "spacing": list(settings.spacing),
                "mri_norm": settings.mri_norm,
                "crop_foreground": settings.crop_foreground,
                "bake_windows": settings.bake_windows,
                "n4": settings.n4,
            },
        },
    )


def read_bundle(folder: Path) -> Bundle:
    """Read the configuration that `save_bundle` wrote.

    Raises:
        UserError: No finished fine-tuning run there, or a damaged one.
    """
    config = read_json(folder / CONFIG)
    if config is None and (folder / CONFIG).is_file():
        raise UserError(f"{folder / CONFIG}: damaged; train again")
    if not is_model_config(config):
        fault = "is missing" if config is None else "is another's"
        raise UserError(
            f"{folder}: no fine-tuned model there ({CONFIG} {fault}), but {seen_at(folder)}; let finetune.train "
            "finish, or give its --out",
            exit_code=2,
        )
    if config.get("schema_version") != SCHEMA_VERSION or config.get("labels") != list(LABELS):
        raise UserError(f"{folder / CONFIG}: written by another version of headspark; train again")
    settings = config["harmonize"]
    x, y, z = settings.pop("spacing")
    nyul = folder / NYUL if settings["mri_norm"] == "nyul" else None
    return Bundle(
        encoder=from_plain(EncoderConfig, config["encoder"]),
        head=from_plain(HeadConfig, config["head"]),
        data=from_plain(DataConfig, config["data"]),
        settings=Settings(spacing=(x, y, z), nyul_folder=nyul, **settings),
    )


def load_model(folder: Path, bundle: Bundle) -> AneurysmClassifier:
    """The trained model, on the CPU and in eval mode.

    Args:
        folder: As for `read_bundle`.
        bundle: What that gave.

    Raises:
        UserError: The weights are absent or damaged.
    """
    model = AneurysmClassifier(build_encoder(bundle.encoder), bundle.head)
    try:
        weights = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(f"{folder / WEIGHTS}: missing; train again") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: damaged, or no safetensors file ({error}); train again") from error
    load_weights(model, weights, where=f"{folder / WEIGHTS}", wanted=CONFIG)
    return model.eval()
