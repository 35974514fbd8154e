"""What a fine-tuning step works on: model, optimizer and moving average, made, saved and restored together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import AdamW, Optimizer

from finetune.bundle import Bundle
from finetune.data import DataConfig, check_patch
from finetune.model import AneurysmClassifier
from finetune.recipe import Recipe
from finetune.rsna import SOURCE
from finetune.stages import Rates, parameter_groups, rates_at
from harmonize.corpus import Corpus
from harmonize.settings import Settings
from headspark.checkpoint import Checkpoint
from headspark.encoder import EncoderConfig, build_encoder
from headspark.hub import Encoder


@dataclass(slots=True, kw_only=True)
class Trainer:
    """What a step needs.

    Attributes:
        recipe: The run's.
        data: Its data section, with the encoder's own windows.
        accelerator: Ranks, devices and precision.
        model: The classifier itself.
        parallel: The classifier as it is called in training: wrapped for several ranks and for mixed precision.
        optimizer: One for the whole run.
        ema: The moving average, or None.
        step: Optimizer steps done.
        non_finite: Steps in a row whose gradient was not finite.
    """

    recipe: Recipe
    data: DataConfig
    accelerator: Accelerator
    model: AneurysmClassifier
    parallel: nn.Module
    optimizer: Optimizer
    ema: ModelEmaV3 | None
    step: int = 0
    non_finite: int = 0

    @property
    def judged(self) -> nn.Module:
        """The weights that are validated and kept."""
        return self.model if self.ema is None else self.ema.module

    def rates(self) -> Rates:
        """What the coming step trains."""
        return rates_at(self.step, self.recipe.stages, len(self.model.layers))

    def last_stage(self) -> str:
        """The stage of the step that was taken last."""
        return rates_at(max(self.step - 1, 0), self.recipe.stages, len(self.model.layers)).name

    def bundle(self, settings: Settings) -> Bundle:
        """What must be known besides the weights to predict."""
        shape = cast(EncoderConfig, self.model.encoder.config)
        return Bundle(encoder=shape, head=self.recipe.head, data=self.data, settings=settings)


def make_trainer(recipe: Recipe, accelerator: Accelerator, encoder_folder: str | None) -> Trainer:
    """Model, optimizer and moving average at step 0."""
    torch.manual_seed(recipe.train.seed)
    data = recipe.data
    if encoder_folder is None:
        encoder = build_encoder(recipe.scratch)
    else:
        encoder = Encoder.from_pretrained(encoder_folder)
        data = replace(data, ct_windows=tuple(encoder.preprocessing["ct_windows"]))
        check_patch(data, encoder.strides[-1])
    model = AneurysmClassifier(encoder, recipe.head).to(memory_format=torch.channels_last_3d).to(accelerator.device)
    optimizer = AdamW(parameter_groups(model, weight_decay=recipe.train.weight_decay), lr=0.0)
    # Wrapped while everything wants a gradient: the wrapper for several ranks looks only once at who takes part.
    parallel, optimizer = accelerator.prepare(model.requires_grad_(True), optimizer)
    ema = ModelEmaV3(model, decay=recipe.train.ema) if recipe.train.ema > 0 else None
    return Trainer(
        recipe=recipe,
        data=data,
        accelerator=accelerator,
        model=model,
        parallel=parallel,
        optimizer=optimizer,
        ema=ema,
    )


def differences(encoder: nn.Module, corpus: Corpus, data: DataConfig) -> list[str]:
    """In what the scans differ from those that a pretrained encoder has seen; it may still be meant so."""
    seen = getattr(encoder, "preprocessing", None)
    if seen is None:
        return []
    lines = []
    spacing = [data.spacing] * 3 if data.spacing is not None else list(corpus.spacing)
    if spacing != list(seen["spacing_mm"]):
        lines.append(f"the encoder was pretrained at {seen['spacing_mm']} mm, this run works at {spacing} mm")
    norm = corpus.mri_norms[SOURCE]
    if seen["mri_norms"] and norm not in seen["mri_norms"].values():
        lines.append(f"the encoder was pretrained on MRI normalised by {seen['mri_norms']}, this corpus by {norm}")
    return lines


def snapshot(trainer: Trainer) -> Checkpoint:
    """The state after `trainer.step` steps; samples, rates and dropout follow from the step."""
    scaler = trainer.accelerator.scaler
    return Checkpoint(
        step=trainer.step,
        model=trainer.model.state_dict(),
        ema=None if trainer.ema is None else trainer.ema.module.state_dict(),
        training={
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "non_finite": trainer.non_finite,
        },
    )


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Undo everything since `checkpoint`."""
    trainer.step = checkpoint.step
    trainer.model.load_state_dict(checkpoint.model)
    if trainer.ema is not None and checkpoint.ema is not None:
        trainer.ema.module.load_state_dict(checkpoint.ema)
    trainer.optimizer.load_state_dict(checkpoint.training["optimizer"])
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(checkpoint.training["scaler"])
    trainer.non_finite = checkpoint.training["non_finite"]
