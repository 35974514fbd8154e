"""The largest batch that fits the accelerator: halved until a whole step runs, the samples of a step kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from harmonize.errors import UserError
from headspark.data.batches import Plan
from headspark.run.device import on_gpu, say_once

SMALLER = "a smaller data.patch or encoder, or train.precision bf16"

OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its handle could not be allocated
)
"""What PyTorch, cuDNN and cuBLAS write where memory cannot be had."""


def fit_plan(
    accelerator: Accelerator,
    *,
    steps: int,
    batch: int,
    accumulate: int,
    try_step: Callable[[int], object],
    advice: str = SMALLER,
) -> Plan:
    """Which samples each step uses, in passes that the accelerator has the memory for.

    Args:
        accelerator: Its GPU is tried; without one, memory is not known to fail before it does.
        steps: Of the run.
        batch: Samples in a forward pass of a rank, as the recipe wants it.
        accumulate: Forward passes in a step, likewise; the product of the two is kept.
        try_step: Takes a whole step of a throw-away model on a batch of so many samples, as large as they get.
        advice: What to do if not even one sample fits.

    Raises:
        UserError: Not even one sample fits.
    """
    wanted = batch
    if on_gpu(accelerator):
        batch, accumulate = largest_batch(
            batch, accumulate, partial(_fits_everywhere, accelerator, try_step), advice=advice
        )
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)  # the run's own is what is reported
    if batch < wanted:
        say_once(
            accelerator,
            f"out of memory with train.batch {wanted}: going on with {batch} and train.accumulate {accumulate}, which "
            "gives the same steps more slowly",
        )
    rank, ranks = accelerator.process_index, accelerator.num_processes
    return Plan(steps=steps, batch=batch, accumulate=accumulate, rank=rank, ranks=ranks)


def largest_batch(
    batch: int, accumulate: int, fits: Callable[[int], bool], *, advice: str = SMALLER
) -> tuple[int, int]:
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
            raise UserError(f"one sample does not fit the accelerator's memory: take {advice}")
        batch = next(size for size in range(batch - 1, 0, -1) if wanted % size == 0)
    return batch, wanted * accumulate // batch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's memory ran out: in PyTorch, or in a library that it calls, which says so in its own words.

    Example:
        >>> is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"))
        True
        >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        False
    """
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def hold_what_later_steps_hold(model: nn.Module, optimizer: Optimizer) -> None:
    """Give a throw-away model what is in memory during the passes of every step but the first.

    That is the optimizer's state, and gradients: those of the passes before, where a step adds up several, or the
    buckets through which several ranks exchange them.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def _fits_everywhere(accelerator: Accelerator, try_step: Callable[[int], object], batch: int) -> bool:
    try:
        try_step(batch)
        fits = 1.0
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fits = 0.0
    finally:
        torch.cuda.empty_cache()
    all_fit = accelerator.reduce(torch.tensor(fits, device=accelerator.device), "sum").item()
    return bool(all_fit == accelerator.num_processes)
