"""The largest batch that fits the accelerator: halved until a whole step runs, the effective batch kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from harmonize.errors import UserError
from headspark.masking import draw_mask, mask_grid, ratio_bounds
from headspark.optim import make_optimizer
from headspark.packed.geometry import MaskGeometry
from headspark.recipe import Recipe
from headspark.run.device import say_once


def fit_batch(recipe: Recipe, accelerator: Accelerator, make_model: Callable[[Recipe], nn.Module]) -> tuple[int, int]:
    """Try whole steps of a throw-away model on noise, at the recipe's largest visible share.

    Returns:
        Batch and accumulation; their product is the recipe's.

    Raises:
        UserError: Not even one sample fits.
    """

    def fits_everywhere(batch: int) -> bool:
        fits = torch.tensor(float(_step_fits(recipe, accelerator, make_model, batch)), device=accelerator.device)
        return bool(accelerator.reduce(fits, "sum").item() == accelerator.num_processes)

    batch, accumulate = largest_batch(recipe.train.batch, recipe.train.accumulate, fits_everywhere)
    if batch < recipe.train.batch:
        say_once(
            accelerator,
            f"out of memory with train.batch {recipe.train.batch}: going on with {batch} and train.accumulate "
            f"{accumulate}, which gives the same steps more slowly",
        )
    return batch, accumulate


def largest_batch(batch: int, accumulate: int, fits: Callable[[int], bool]) -> tuple[int, int]:
    """Go down the divisors of `batch` until one fits; the product with `accumulate` stays.

    Example:
        >>> largest_batch(6, 2, lambda batch: batch <= 2)
        (2, 6)

    Raises:
        UserError: Not even one sample fits.
    """
    wanted = batch
    while not fits(batch):
        if batch == 1:
            raise UserError(
                "one sample does not fit the accelerator's memory: take a smaller data.patch or encoder, "
                "train.precision bf16 or train.activation_checkpointing true"
            )
        batch = next(size for size in range(batch - 1, 0, -1) if wanted % size == 0)
    return batch, wanted * accumulate // batch


def _step_fits(recipe: Recipe, accelerator: Accelerator, make_model: Callable[[Recipe], nn.Module], batch: int) -> bool:
    try:
        _step(recipe, accelerator, make_model(recipe), batch)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def _step(recipe: Recipe, accelerator: Accelerator, model: nn.Module, batch: int) -> None:
    patch, device = recipe.data.patch, accelerator.device
    model = model.to(device)
    optimizer = make_optimizer(model, recipe.optim)
    visible_Bdhw = draw_mask(batch, mask_grid((patch,) * 3, recipe.mask.block), ratio_bounds(recipe.mask.ratio)[0])
    x_BCDHW = torch.randn(batch, recipe.encoder.in_channels, patch, patch, patch, device=device)
    with accelerator.autocast():
        loss = model(x_BCDHW, MaskGeometry(visible_Bdhw)).loss
    loss.backward()
    optimizer.step()
