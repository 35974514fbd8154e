"""What a fine-tuning step works on: model, optimizer and moving average, made, saved and restored together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import AdamW, Optimizer

from finetune.model_folder import Bundle
from finetune.models.assemble import AneurysmClassifier
from finetune.recipe import Recipe
from finetune.samples import DataConfig, check_patch
from finetune.stages import Rates, parameter_groups, rates_at
from finetune.tasks.aneurysm import SOURCE
from harmonize.bounded_files import fits
from harmonize.corpus import Corpus
from harmonize.errors import UserError
from harmonize.settings import Settings
from harmonize.voxels.intensity import CT_WINDOWS
from headspark.encoder import EncoderConfig, build_encoder
from headspark.run.checkpoint import Checkpoint
from headspark.run.diverged import all_finite
from headspark.run.plain_state import SCALER
from headspark.run.split_norms import split_norms

NEEDED = ("scaler", "non_finite")
"""What a checkpoint must hold for a run to go on from it, version 0.1.0's too."""

SHAPE = {
    "scaler": SCALER,
    "non_finite": int,
    "skipped": int,
    "validated": int,
    "pending": lambda pending: fits(pending, [[Real]]) and all(len(one) == len(StepReport._fields) for one in pending),
}
"""Of what that is, as `harmonize.bounded_files.fits` takes it."""


class StepReport(NamedTuple):
    """One step in numbers; over several ranks their mean."""

    loss: float
    labels: float
    presence: float
    territory: float
    gradient_norm: float

    @property
    def finite(self) -> bool:
        """Whether the step counted; one that did not changed nothing."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


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
        skipped: Steps whose loss or gradient was not finite, and which changed nothing.
        non_finite: The last so many of them, in a row.
        validated: The last step after which a validation was due and made.
        pending: The steps that were not yet written as a line.
    """

    recipe: Recipe
    data: DataConfig
    accelerator: Accelerator
    model: AneurysmClassifier
    parallel: nn.Module
    optimizer: Optimizer
    ema: ModelEmaV3 | None
    step: int = 0
    skipped: int = 0
    non_finite: int = 0
    validated: int = 0
    pending: list[StepReport] = field(default_factory=list)

    @property
    def judged(self) -> nn.Module:
        """The weights that are validated and kept."""
        return self.model if self.ema is None else self.ema.module

    def has_finite_weights(self) -> bool:
        """Whether the weights and their moving average are finite on all ranks."""
        odd = float(not all_finite([self.model, None if self.ema is None else self.ema.module]))
        return not self.accelerator.reduce(torch.tensor(odd, device=self.accelerator.device), "sum").item()

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


def make_trainer(recipe: Recipe, accelerator: Accelerator, pretrained: Any | None) -> Trainer:
    """Model, optimizer and moving average at step 0.

    Args:
        recipe: The run's.
        accelerator: Ranks, devices and precision.
        pretrained: What `Encoder.from_pretrained` gives; None trains the recipe's encoder from scratch.
    """
    torch.manual_seed(recipe.train.seed)
    data = recipe.data
    encoder: Any
    if pretrained is None:
        encoder = build_encoder(recipe.scratch)
    else:
        encoder = pretrained
        data = replace(data, ct_windows=windows_of(encoder))
        check_patch(data, encoder.strides[-1])
    model = AneurysmClassifier(encoder, recipe.head).to(memory_format=torch.channels_last_3d).to(accelerator.device)
    optimizer = AdamW(parameter_groups(model, weight_decay=recipe.train.weight_decay), lr=0.0)
    # Wrapped while everything wants a gradient: the wrapper for several ranks looks only once at who takes part.
    parallel, optimizer = accelerator.prepare(model.requires_grad_(True), optimizer)
    ema = ModelEmaV3(model, decay=recipe.train.ema) if recipe.train.ema is not None else None
    return Trainer(
        recipe=recipe,
        data=data,
        accelerator=accelerator,
        model=model,
        parallel=parallel,
        optimizer=optimizer,
        ema=ema,
    )


def notes(trainer: Trainer, corpus: Corpus) -> list[str]:
    """What the user may not expect of a run that starts."""
    train, ranks = trainer.recipe.train, trainer.accelerator.num_processes
    key = "the encoder's norm"
    split = split_norms(trainer.model, batch=train.batch, accumulate=train.accumulate, ranks=ranks, key=key)
    lines = differences(trainer.model.encoder, corpus, trainer.recipe.data)
    return lines if split is None else [*lines, split]


def windows_of(encoder: Any) -> tuple[str, ...]:
    """The CT windows that a pretrained encoder wants, one a channel.

    Raises:
        UserError: Its config.json does not say them, or other ones than it has channels for.
    """
    windows, channels = encoder.preprocessing.get("ct_windows"), encoder.config.in_channels
    known = (
        isinstance(windows, list | tuple) and len(windows) == channels and all(name in CT_WINDOWS for name in windows)
    )
    if not known:
        raise UserError(
            f"--encoder: preprocessing.ct_windows in its config.json is {windows}; fine-tuning wants the names of its "
            f"{channels} channels, of {', '.join(CT_WINDOWS)}"
        )
    return tuple(windows)


def differences(encoder: nn.Module, corpus: Corpus, data: DataConfig) -> list[str]:
    """In what the scans differ from those that a pretrained encoder has seen; it may still be meant so."""
    seen = getattr(encoder, "preprocessing", None)
    if seen is None:
        return []
    lines = []
    spacing = [data.spacing] * 3 if data.spacing is not None else list(corpus.spacing)
    if seen.get("spacing_mm") and spacing != list(seen["spacing_mm"]):
        lines.append(f"the encoder was pretrained at {seen['spacing_mm']} mm, this run works at {spacing} mm")
    norm = corpus.mri_norms[SOURCE]
    if seen.get("mri_norms") and norm not in seen["mri_norms"].values():
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
            "skipped": trainer.skipped,
            "validated": trainer.validated,
            "pending": [list(report) for report in trainer.pending],
        },
    )


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Undo everything since `checkpoint`."""
    trainer.step = checkpoint.step
    trainer.model.load_state_dict(checkpoint.model)
    if trainer.ema is not None and checkpoint.ema is not None:
        trainer.ema.module.load_state_dict(checkpoint.ema)
    trainer.optimizer.load_state_dict(checkpoint.training["optimizer"])
    if trainer.accelerator.scaler is not None and checkpoint.training["scaler"]:
        trainer.accelerator.scaler.load_state_dict(checkpoint.training["scaler"])
    training = checkpoint.training  # version 0.1.0 kept no more than the row, and wrote no checkpoint before validating
    trainer.non_finite, trainer.skipped = training["non_finite"], training.get("skipped", 0)
    trainer.validated = training.get("validated", checkpoint.step)
    trainer.pending = [StepReport(*values) for values in training.get("pending", ())]
