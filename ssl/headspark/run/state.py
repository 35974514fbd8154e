"""What a pretraining step works on: model, optimizer, plan and counters, made, saved and restored together."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from harmonize.errors import UserError
from headspark.config import WRONG_USE
from headspark.data.batches import Plan
from headspark.encoder import build_encoder
from headspark.optim import make_optimizer, make_schedule
from headspark.recipe import Recipe
from headspark.run.checkpoint import Checkpoint
from headspark.run.device import on_gpu, say_once
from headspark.run.diverged import all_finite
from headspark.run.fit import fit_batch
from headspark.run.plain_state import SCALER
from headspark.run.split_norms import split_norms
from headspark.spark import SparK

NEEDED = ("scaler", "effective_batch", "skipped", "skipped_in_a_row", "evaluated", "pending")
"""What a checkpoint must hold for a run to go on from it, version 0.1.0's too."""

SHAPE = {
    "scaler": SCALER,
    "effective_batch": int,
    "skipped": int,
    "skipped_in_a_row": int,
    "evaluated": int,
    "held_out_loss": (Real, type(None)),
    "pending": {"losses": [Real], "norms": [Real]},
}
"""Of what that is, as `harmonize.bounded_files.fits` takes it; losses need not be finite."""


@dataclass(slots=True, kw_only=True)
class Training:
    """What changes from step to step, and what moves it.

    Attributes:
        recipe: What the run is.
        accelerator: Device, ranks, precision.
        plan: Which samples each step uses.
        model: As prepared by the accelerator.
        optimizer: As prepared by the accelerator.
        schedule: Sets the learning rate of a step.
        ema: Moving average of the weights, or None.
        step: Optimizer steps done.
        skipped: Steps whose loss or gradient was not finite.
        skipped_in_a_row: The last so many of them.
        evaluated: The last step after which `evaluate` was called.
        held_out_loss: What it found; None where nothing is held out, or before that.
    """

    recipe: Recipe
    accelerator: Accelerator
    plan: Plan
    model: nn.Module
    optimizer: Optimizer
    schedule: Scheduler
    ema: ModelEmaV3 | None
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    evaluated: int = -1
    held_out_loss: float | None = None

    @property
    def bare(self) -> SparK:
        """The model without the accelerator's wrapping."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def judged(self) -> SparK:
        """The model that is validated and exported: the moving average, if there is one."""
        return self.bare if self.ema is None else self.ema.module

    def any_rank(self, flag: bool) -> bool:
        """Whether it is so on any rank; the same answer on all of them."""
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum").item())

    def has_finite_weights(self) -> bool:
        """Whether the weights and their moving average are finite on all ranks."""
        return not self.any_rank(not all_finite([self.bare, None if self.ema is None else self.ema.module]))


def prepare(recipe: Recipe, accelerator: Accelerator) -> Training:
    """Model, optimizer and plan of a run at its first step."""
    batch, accumulate = recipe.train.batch, recipe.train.accumulate
    if on_gpu(accelerator):
        batch, accumulate = fit_batch(recipe, accelerator, make_model)
    model = make_model(recipe)
    ranks = accelerator.num_processes
    if ranks > 1 and on_gpu(accelerator):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    note = split_norms(model, batch=batch, accumulate=accumulate, ranks=ranks, key="encoder.norm")
    if note is not None:
        say_once(accelerator, f"note: {note}", stream=sys.stderr)
    optimizer = make_optimizer(model, recipe.optim)
    schedule = make_schedule(optimizer, recipe.optim, steps=recipe.train.steps)
    ema = None if recipe.train.ema is None else ModelEmaV3(model, decay=recipe.train.ema).to(accelerator.device)
    model, optimizer = accelerator.prepare(model, optimizer)
    return Training(
        recipe=recipe,
        accelerator=accelerator,
        plan=Plan(
            steps=recipe.train.steps,
            batch=batch,
            accumulate=accumulate,
            rank=accelerator.process_index,
            ranks=ranks,
        ),
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        ema=ema,
    )


def make_model(recipe: Recipe) -> SparK:
    """The model at its first step: a function of the recipe's seed."""
    torch.manual_seed(recipe.train.seed)
    encoder = build_encoder(recipe.encoder)
    if recipe.train.activation_checkpointing:
        if not hasattr(encoder, "set_grad_checkpointing"):
            raise UserError(f"train.activation_checkpointing: {recipe.encoder.kind} cannot", exit_code=WRONG_USE)
        encoder.set_grad_checkpointing(True)
    return SparK(encoder, recipe.decoder, recipe.spark, in_channels=recipe.encoder.in_channels)


def snapshot(training: Training, *, pending: dict[str, list[float]]) -> Checkpoint:
    """The state after `training.step` steps.

    Args:
        training: What is saved.
        pending: Of the report: the steps that were not yet written as a line.
    """
    scaler = training.accelerator.scaler
    state: dict[str, Any] = {
        "optimizer": training.optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "effective_batch": training.plan.effective,
        "skipped": training.skipped,
        "skipped_in_a_row": training.skipped_in_a_row,
        "evaluated": training.evaluated,
        "held_out_loss": training.held_out_loss,
        "pending": pending,
    }
    ema = None if training.ema is None else training.ema.module.state_dict()
    return Checkpoint(step=training.step, model=training.bare.state_dict(), ema=ema, training=state)


def restore(training: Training, found: Checkpoint, *, where: object) -> None:
    """Undo everything since a checkpoint.

    Args:
        training: Takes its state.
        found: The checkpoint.
        where: The run's folder, for the message.

    Raises:
        UserError: With exit code 2: a step has another number of samples now.
    """
    effective = found.training["effective_batch"]
    if effective != training.plan.effective:
        raise UserError(
            f"{where}: began with {effective} samples a step, now {training.plan.effective}: "
            "set train.batch, train.accumulate and the number of ranks so that their product is the same",
            exit_code=WRONG_USE,
        )
    training.step, training.evaluated = found.step, found.training["evaluated"]
    training.held_out_loss = found.training.get("held_out_loss")
    training.skipped, training.skipped_in_a_row = found.training["skipped"], found.training["skipped_in_a_row"]
    training.bare.load_state_dict(found.model)
    training.optimizer.load_state_dict(found.training["optimizer"])
    if training.ema is not None and found.ema is not None:
        training.ema.module.load_state_dict(found.ema)
    if training.accelerator.scaler is not None and found.training["scaler"]:
        training.accelerator.scaler.load_state_dict(found.training["scaler"])
