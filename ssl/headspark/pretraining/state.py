"""What a pretraining step works on, made at its first step."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from headspark.encoder import MaskableEncoder, build_encoder
from headspark.masking import draw_mask, draw_second_mask, mask_grid, ratio_bounds
from headspark.optim import make_optimizer, make_schedule
from headspark.packed import MaskGeometry
from headspark.recipe import Recipe
from headspark.run.device import on_gpu, say_once
from headspark.run.fit import fit_plan, hold_what_later_steps_hold
from headspark.run.split_norms import split_norms
from headspark.run.state import TrainState
from headspark.spark import SparK

SMALLER = "a smaller data.patch or encoder, train.precision bf16 or train.activation_checkpointing true"


@dataclass(slots=True, kw_only=True)
class PretrainState(TrainState[SparK]):
    """The state of a pretraining run.

    Attributes:
        recipe: What the run is.
        schedule: Sets the learning rate of a step.
    """

    advice: ClassVar[str] = "lower optim.lr or lengthen optim.warmup, and give --out a new folder"

    recipe: Recipe
    schedule: Scheduler

    @property
    def terms(self) -> tuple[str, ...]:
        """What a step measures beside the loss and the gradient's norm."""
        return self.unwrapped.terms

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what a step measures: the loss first, the gradient's norm last."""
        return ("loss", *self.terms, "norm")


def prepare(recipe: Recipe, accelerator: Accelerator) -> PretrainState:
    """Model, optimizer and plan of a run at its first step."""
    train = recipe.train
    plan = fit_plan(
        accelerator,
        steps=train.steps,
        batch=train.batch,
        accumulate=train.accumulate,
        try_step=partial(try_step, recipe, accelerator),
        advice=SMALLER,
    )
    unwrapped = make_model(recipe)
    if plan.ranks > 1 and on_gpu(accelerator):
        unwrapped = nn.SyncBatchNorm.convert_sync_batchnorm(unwrapped)
    note = split_norms(unwrapped, batch=plan.batch, accumulate=plan.accumulate, ranks=plan.ranks, key="encoder.norm")
    if note is not None:
        say_once(accelerator, f"note: {note}", stream=sys.stderr)
    optimizer = make_optimizer(unwrapped, recipe.optim)
    schedule = make_schedule(optimizer, recipe.optim, steps=train.steps)
    ema = None if train.ema is None else ModelEmaV3(unwrapped, decay=train.ema).to(accelerator.device)
    model, optimizer = accelerator.prepare(unwrapped, optimizer)
    return PretrainState(
        recipe=recipe,
        accelerator=accelerator,
        plan=plan,
        model=model,
        unwrapped=accelerator.unwrap_model(model),
        optimizer=optimizer,
        schedule=schedule,
        ema=ema,
    )


def make_model(recipe: Recipe) -> SparK:
    """The model at its first step: a function of the recipe's seed."""
    torch.manual_seed(recipe.train.seed)
    encoder = build_encoder(recipe.encoder)
    encoder.set_grad_checkpointing(recipe.train.activation_checkpointing)
    return spark_of(recipe, encoder)


def spark_of(recipe: Recipe, encoder: MaskableEncoder) -> SparK:
    """An encoder with what a recipe pretrains it with."""
    return SparK(
        encoder,
        recipe.decoder,
        recipe.spark,
        in_channels=recipe.encoder.in_channels,
        vessels=recipe.vessels,
        hybrid=recipe.hybrid,
    )


def try_step(recipe: Recipe, accelerator: Accelerator, batch: int) -> None:
    """A step of a throw-away model on noise, at the recipe's largest visible share, with all that the run has."""
    patch, device = recipe.data.patch, accelerator.device
    model = make_model(recipe).to(device)
    average = None if recipe.train.ema is None else ModelEmaV3(model, decay=recipe.train.ema)
    optimizer = make_optimizer(model, recipe.optim)
    hold_what_later_steps_hold(model, optimizer)
    mask_Bdhw = draw_mask(batch, mask_grid((patch,) * 3, recipe.mask.block), ratio_bounds(recipe.mask.ratio)[0])
    x_BCDHW = torch.randn(batch, recipe.encoder.in_channels, patch, patch, patch, device=device)
    steps_B1DHW = torch.zeros_like(x_BCDHW[:, :1]) if recipe.vessels.distance_weight > 0 else None
    twice = None
    if recipe.hybrid.weight > 0:
        draws, everywhere = torch.Generator().manual_seed(0), torch.ones_like(mask_Bdhw[0])
        seconds = [draw_second_mask(mask_dhw, everywhere, recipe.hybrid.share, draws) for mask_dhw in mask_Bdhw]
        twice = MaskGeometry(torch.cat([mask_Bdhw, torch.stack(seconds)]))
    with accelerator.autocast():
        loss = model(x_BCDHW, MaskGeometry(mask_Bdhw), None, None, steps_B1DHW, twice).loss
    loss.backward()
    optimizer.step()
    if average is not None:
        average.update(model)
