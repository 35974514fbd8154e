"""What changes from step to step in every run: the weights, what moves them, and how many steps counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar, Generic, TypeVar

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from headspark.data.batches import Plan
from headspark.run.diverged import all_finite

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step gave; the same on all ranks.

    Attributes:
        numbers: Its measures by name, as `TrainState.measures`: the ``loss`` first, the gradient's ``norm`` last.
        stop: Whether any rank was asked to stop.
        waited: Seconds that the ranks spent waiting for batches, on average.
        skipped_scans: What the step saw on all ranks, if it was skipped because it was not finite; else nothing.
    """

    numbers: Mapping[str, float]
    stop: bool
    waited: float
    skipped_scans: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class TrainState(Generic[M]):
    """What a step works on; a program adds what it alone has.

    Attributes:
        advice: What to do about a run that diverged.
        accelerator: Device, ranks, precision.
        plan: Which samples each step uses.
        model: As it is called in training: wrapped for several ranks and for mixed precision.
        unwrapped: The same model without that.
        optimizer: As prepared by the accelerator.
        ema: Moving average of the weights, or None.
        step: Optimizer steps done.
        skipped: Steps whose loss or gradient was not finite, and which changed nothing.
        skipped_in_a_row: The last so many of them.
        evaluated: The last step after which the model was evaluated as far as that was due; -1 before the first.
        held_out_loss: What was found then; None before that, or where nothing is held out.
        pending: The numbers of the steps that were not yet written as a line.
    """

    advice: ClassVar[str]

    accelerator: Accelerator
    plan: Plan
    model: nn.Module
    unwrapped: M
    optimizer: Optimizer
    ema: ModelEmaV3 | None
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    evaluated: int = -1
    held_out_loss: float | None = None
    pending: list[dict[str, float]] = field(default_factory=list)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what a step measures: the loss first, the gradient's norm last."""
        return ("loss", "norm")

    def todays_names(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Weights of a checkpoint by the names of this version; a program whose names changed knows the old ones."""
        return dict(weights)

    @property
    def eval_model(self) -> M:
        """The model that is evaluated and exported: the moving average, if there is one."""
        return self.unwrapped if self.ema is None else self.ema.module

    def update(self, *, finite: bool) -> None:
        """Move the weights by their gradient and count the step; one that is not finite is skipped.

        Args:
            finite: Whether the loss and the gradient are.
        """
        if finite or self.accelerator.scaler is not None:  # the scaler of fp16 skips by itself, and lowers its scale
            self.optimizer.step()
        self.optimizer.zero_grad()
        if finite and self.ema is not None:
            self.ema.update(self.unwrapped)
        self.step += 1
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1

    def any_rank(self, flag: bool) -> bool:
        """Whether it is so on any rank; the same answer on all of them."""
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum").item())

    def has_finite_weights(self) -> bool:
        """Whether the weights and their moving average are finite on all ranks."""
        return not self.any_rank(not all_finite([self.unwrapped, None if self.ema is None else self.ema.module]))


def counts(numbers: Mapping[str, float]) -> bool:
    """Whether a step with these numbers changed the weights."""
    return isfinite(numbers["loss"]) and isfinite(numbers["norm"])


def due(step: int, every: int) -> bool:
    """Whether what is done `every` so many steps is done after this one; 0: never."""
    return every > 0 and step % every == 0
